//! A node: opens its directory, runs its cores, hands out clients.

use crate::boot::Founding;
use crate::client::{Backend, Client, Shared};
use crate::clock;
use crate::codec::NodeStatus;
use crate::config::{Config, Store};
use crate::driver::{CoreSetup, spawn};
use crate::error::OpenError;
use crate::gateway::Gateway;
use crate::mailbox::{Control, Mailbox};
use crate::metrics::{CoreMetrics, Metrics};
use crate::probe;
use crate::read_cell::ReadCells;
use crate::seam::{Event, Failure, StartReport};
use crate::store::{Janitor, LsmStore, Stores};
use crate::transport::{Acceptor, HelloIdentity, PeerStores};
use crate::worker::{MachineFactory, Worker, WorkerConfig};
use floe_shard::{CoreAddr, Descriptor, MemoryStore, NodeId, ShardId, ShardMap, pre_split};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

/// A running node. Dropping it shuts it down cleanly.
pub struct Engine {
    client: Client,
    shared: Arc<Shared>,
    /// Serves remote clients; there is one from when the node has started until it stops.
    gateway: Option<Arc<Gateway>>,
    mailboxes: Vec<Arc<Mailbox>>,
    metrics: Vec<Arc<CoreMetrics>>,
    report: StartReport,
    threads: Vec<JoinHandle<()>>,
    acceptor: Option<Acceptor>,
    /// Cleans up behind the durable stores; outlives the cores.
    janitor: Option<Janitor>,
    /// Held until the cores are gone.
    lock: Option<File>,
}

impl Engine {
    /// Opens a node: alone with [`Config::embedded`], or as a member of a cluster with
    /// [`Config::member`]. Returns when recovery is done; leaders may still have to be elected, and
    /// requests wait for that up to their deadline.
    ///
    /// # Errors
    /// Says which setting, file or port is the reason, and what to do.
    pub fn open(config: Config) -> Result<Self, OpenError> {
        Self::open_locked(config, None)
    }

    /// [`Engine::open`] with a state machine of your own; `config.store` is then of no account.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_with(config: Config, machines: MachineFactory) -> Result<Self, OpenError> {
        Self::open_locked(config, Some(machines))
    }

    fn open_locked(config: Config, machines: Option<MachineFactory>) -> Result<Self, OpenError> {
        config.validate()?;
        probe::check(config.driver.needs())?;
        let lock = lock_dir(&config.dir)?;
        let listener = listen(&config)?;
        let (machines, janitor) = match machines {
            Some(machines) => (machines, None),
            None => own_machines(&config)?,
        };
        let stores = PeerStores::open(&config.dir).map_err(Failure::Boot)?;
        let parts = Parts::new(&config, machines, Arc::new(stores));
        let (events, arrived) = channel();
        let cores = 0..config.cores;
        let threads = cores
            .map(|core| {
                spawn(config.driver, parts.core(&config, core, events.clone())).map_err(OpenError::Spawn)
            })
            .collect::<Result<_, _>>()?;
        drop(events);
        let Parts { mailboxes, metrics, descriptors, identity, stores, cells, .. } = parts;
        let map = ShardMap::new(descriptors.to_vec());
        let shared = Arc::new(Shared { mailboxes: mailboxes.clone(), map, cores: config.cores, cells });
        let client = Client::new(Backend::Node(shared.clone()), config.timeout);
        let (report, gateway, acceptor, lock) = (StartReport::default(), None, None, Some(lock));
        let mut engine =
            Self { client, shared, gateway, mailboxes, metrics, report, threads, acceptor, janitor, lock };
        engine.report = engine.await_start(&arrived)?;
        if let Some(janitor) = &engine.janitor {
            janitor.remove_strays();
        }
        engine.connect(&config, listener, &identity, stores)?;
        Ok(engine)
    }

    /// Lets the node be reached and reach others; its identity is durable by now.
    fn connect(
        &mut self,
        config: &Config,
        listener: Option<TcpListener>,
        identity: &OnceLock<HelloIdentity>,
        stores: Arc<PeerStores>,
    ) -> Result<(), OpenError> {
        let own = HelloIdentity {
            cluster: config.cluster,
            node: config.node,
            store_uuid: self.report.store_uuid,
            boot_epoch: self.report.boot_epoch,
            cores: config.cores,
        };
        identity.set(own.clone()).expect("set here only");
        for mailbox in &self.mailboxes {
            mailbox.control(Control::Connect);
        }
        let gateway = Gateway::new(&own, config, stores.clone(), self.shared.clone(), self.metrics.clone());
        self.gateway = Some(gateway.clone());
        if let Some(listener) = listener {
            let known = config.founding().members.into_iter().filter(|&node| node != config.node).collect();
            let mailboxes = self.mailboxes.clone();
            let acceptor = Acceptor::start(listener, own, known, mailboxes, Some(gateway), stores);
            self.acceptor = Some(acceptor.map_err(OpenError::Spawn)?);
        }
        Ok(())
    }

    /// A handle for any thread and any async runtime.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// What was found at start.
    pub fn start_report(&self) -> &StartReport {
        &self.report
    }

    /// Counters and latencies of all cores, added up.
    pub fn metrics(&self) -> Metrics {
        let mut sum = Metrics::sum(self.metrics.iter().map(|core| &**core));
        if let Some(janitor) = &self.janitor {
            janitor.apply_latency().add_to(&mut sum.apply_latency);
            sum.write_buffer_bytes = janitor.write_buffer_bytes();
        }
        sum
    }

    /// How the node stands: its cores and its replicas. Asks each core, and waits for up to 2 s for one that is stuck.
    pub fn status(&self) -> NodeStatus {
        self.gateway.as_ref().map(|gateway| gateway.status()).unwrap_or_default()
    }

    /// The leading node of each shard that has a replica here, as far as is known here.
    pub fn leaders(&self) -> BTreeMap<ShardId, Option<NodeId>> {
        self.metrics.iter().flat_map(|core| core.leaders.lock().clone()).collect()
    }

    /// Shuts down cleanly: finishes what is under way (for up to a second), seals the log, and
    /// returns when every thread has ended.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.stop();
        }
        for mailbox in &self.mailboxes {
            mailbox.close();
            mailbox.control(Control::Shutdown);
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a core's thread panicked");
            }
        }
        if let Some(gateway) = self.gateway.take() {
            gateway.close();
        }
        self.janitor = None;
        self.lock = None;
    }

    /// Waits until every core has started; fails with the first that can't.
    fn await_start(&self, arrived: &Receiver<(u16, Event)>) -> Result<StartReport, OpenError> {
        let mut sum = StartReport::default();
        let mut waiting = self.mailboxes.len();
        while waiting > 0 {
            let gone = || Failure::Boot("a core ended while it was starting; see the log".into());
            match arrived.recv().map_err(|_| gone())?.1 {
                Event::Started(report) => {
                    waiting -= 1;
                    sum.add(&report);
                }
                Event::Failed(failure) => return Err(failure.into()),
                Event::Stopped => return Err(gone().into()),
                Event::Leader { .. } => {}
            }
        }
        Ok(sum)
    }
}

/// What the cores of a node share.
struct Parts {
    mailboxes: Vec<Arc<Mailbox>>,
    metrics: Vec<Arc<CoreMetrics>>,
    descriptors: Arc<Vec<Descriptor>>,
    cells: Arc<ReadCells>,
    identity: Arc<OnceLock<HelloIdentity>>,
    stores: Arc<PeerStores>,
    machines: MachineFactory,
    new_store_uuid: u128,
}

impl Parts {
    fn new(config: &Config, machines: MachineFactory, stores: Arc<PeerStores>) -> Self {
        let Founding { members, shards, replication } = config.founding();
        let descriptors = pre_split(&members, shards, replication as usize);
        Self {
            mailboxes: (0..config.cores).map(|_| Arc::new(Mailbox::new(config.requests_max))).collect(),
            metrics: (0..config.cores).map(|_| Arc::new(CoreMetrics::default())).collect(),
            cells: ReadCells::new(config.node, random(), &descriptors),
            descriptors: Arc::new(descriptors),
            identity: Arc::new(OnceLock::new()),
            stores,
            machines,
            new_store_uuid: u128::from(random()) << 64 | u128::from(random()),
        }
    }

    fn worker(&self, config: &Config, me: CoreAddr) -> WorkerConfig {
        WorkerConfig {
            me,
            cores: config.cores,
            cluster: config.cluster,
            new_store_uuid: self.new_store_uuid,
            founding: config.founding(),
            shard: config.shard_config(),
            wal: config.core_wal(),
            bootstrap: self.descriptors.clone(),
            machines: self.machines.clone(),
            requests_max: config.requests_max,
            cells: self.cells.clone(),
            metrics: self.metrics[usize::from(me.core)].clone(),
        }
    }

    fn core(&self, config: &Config, core: u16, events: Sender<(u16, Event)>) -> CoreSetup {
        let (at, me, seed) = (usize::from(core), CoreAddr { node: config.node, core }, random());
        let worker = self.worker(config, me);
        CoreSetup {
            worker: Box::new(move |effects, now| Worker::new(worker, seed, now, effects)),
            me,
            cores: config.cores,
            data_dir: config.dir.clone(),
            mailbox: self.mailboxes[at].clone(),
            siblings: self.mailboxes.clone(),
            peers: peers(config),
            identity: self.identity.clone(),
            stores: self.stores.clone(),
            events,
            metrics: self.metrics[at].clone(),
            pin: config.pin_cores.then_some(at),
            spin_before_park: (!config.spin_before_park.is_zero()).then_some(config.spin_before_park),
            io_memory: None,
            send_queue_bytes_max: config.send_queue_bytes_max,
            requests_max: config.requests_max,
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What makes the state machines that the configuration asks for.
fn own_machines(config: &Config) -> Result<(MachineFactory, Option<Janitor>), OpenError> {
    let Store::Lsm(settings) = &config.store else {
        return Ok((Arc::new(|_| Box::new(MemoryStore::new())), None));
    };
    let fail = |source| OpenError::Dir { dir: config.dir.clone(), source };
    let (stores, janitor) = Stores::open(&config.dir, settings).map_err(fail)?;
    Ok((Arc::new(move |shard| Box::new(LsmStore::new(shard, &stores))), Some(janitor)))
}

fn peers(config: &Config) -> Vec<(NodeId, String)> {
    let others = config.members.iter().filter(|member| member.node != config.node);
    others.map(|member| (member.node, member.address.clone())).collect()
}

fn listen(config: &Config) -> Result<Option<TcpListener>, OpenError> {
    let Some(address) = config.listen_address() else { return Ok(None) };
    let listener = TcpListener::bind(address)
        .map_err(|source| OpenError::Listen { address: address.to_owned(), source })?;
    Ok(Some(listener))
}

/// Takes the directory's lock, which the system drops with the process.
fn lock_dir(dir: &Path) -> Result<File, OpenError> {
    let fail = |source| OpenError::Dir { dir: dir.to_owned(), source };
    fs::create_dir_all(dir).map_err(fail)?;
    let path = dir.join("LOCK");
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(fail)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let named = file.read_to_string(&mut holder).is_ok() && !holder.is_empty();
            let holder = if named { holder } else { "another process".into() };
            return Err(OpenError::Locked { dir: dir.to_owned(), holder: holder.trim().to_owned() });
        }
        Err(TryLockError::Error(source)) => return Err(fail(source)),
    }
    file.set_len(0).map_err(fail)?;
    file.seek(SeekFrom::Start(0)).map_err(fail)?;
    writeln!(file, "process {}", std::process::id()).map_err(fail)?;
    Ok(file)
}

/// Seeds for what needs to differ between processes; nothing below the driver draws its own.
fn random() -> u64 {
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u64(clock::now());
    hasher.finish()
}
