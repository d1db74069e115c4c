//! The accepting side: one listening port and one thread per node, and a short-lived thread per hello.

use super::{
    HELLO_TIMEOUT, Hello, HelloIdentity, HelloKind, HelloReply, PeerStores, RefusalCode, hand_over,
    read_within,
};
use crate::boot::cluster_text;
use crate::driver::sys;
use crate::gateway::Gateway;
use crate::mailbox::{Control, Mailbox};
use floe_shard::NodeId;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Hellos that are waited for at a time; who comes on top is turned away at once.
const HELLOS_MAX: usize = 64;
const STOP_POLL: Duration = Duration::from_millis(100);

/// Accepts connections for all cores of a node. Stops when dropped.
pub struct Acceptor {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    own: HelloIdentity,
    known: Vec<NodeId>,
    mailboxes: Vec<Arc<Mailbox>>,
    gateway: Option<Arc<Gateway>>,
    stores: Arc<PeerStores>,
    stop: AtomicBool,
    hellos: AtomicUsize,
}

impl Acceptor {
    /// Starts accepting. `own` is this node, `known` are the nodes that may connect, `mailboxes` those of
    /// this node's cores, in order; `gateway` serves clients, without it they are refused; `stores` are those of the peers. `listener` must not have been bound with SO_REUSEPORT (std's never is),
    /// or two nodes could share a port without noticing.
    ///
    /// # Errors
    /// If there can't be a thread.
    pub fn start(
        listener: TcpListener,
        own: HelloIdentity,
        known: Vec<NodeId>,
        mailboxes: Vec<Arc<Mailbox>>,
        gateway: Option<Arc<Gateway>>,
        stores: Arc<PeerStores>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        sys::bound_segments(listener.as_fd())?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            known,
            mailboxes,
            gateway,
            stores,
            stop: AtomicBool::new(false),
            hellos: AtomicUsize::new(0),
            own,
        });
        let thread = std::thread::Builder::new().name(format!("floe-{}-accept", shared.own.node)).spawn({
            let shared = Arc::clone(&shared);
            move || accept_loop(&listener, &shared)
        })?;
        Ok(Self { shared, address, thread: Some(thread) })
    }

    /// Stops accepting; returns when its thread has ended. Hellos under way may still reach their cores.
    pub fn stop(self) {
        drop(self);
    }

    /// Where it listens: the port that was chosen, if port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the acceptor thread panicked");
        }
    }
}

fn accept_loop(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.stop.load(Ordering::Acquire) {
        match sys::wait_readable(listener.as_fd(), STOP_POLL) {
            Ok(false) => continue,
            Ok(true) => {}
            Err(error) => {
                tracing::warn!(%error, "waiting for connections");
                std::thread::sleep(STOP_POLL);
                continue;
            }
        }
        match listener.accept() {
            Ok((socket, from)) => maybe_greet(socket, from, shared),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                // Out of descriptors, say: the connection stays in the backlog, so don't spin.
                tracing::warn!(%error, "accepting a connection");
                std::thread::sleep(STOP_POLL);
            }
        }
    }
}

/// Gives the connection a thread for its hello, unless too many wait already.
fn maybe_greet(socket: TcpStream, from: SocketAddr, shared: &Arc<Shared>) {
    if shared.hellos.fetch_add(1, Ordering::AcqRel) >= HELLOS_MAX {
        shared.hellos.fetch_sub(1, Ordering::AcqRel);
        tracing::warn!(%from, "connection closed: {HELLOS_MAX} others have yet to say hello");
        return;
    }
    let thread = std::thread::Builder::new().name("floe-hello".into()).stack_size(256 << 10).spawn({
        let shared = Arc::clone(shared);
        move || {
            let greeted = greet(socket, &shared);
            shared.hellos.fetch_sub(1, Ordering::AcqRel);
            let ended = match greeted {
                // This thread stays with it.
                Ok(Some((gateway, client))) => gateway.serve(client),
                other => other.map(drop),
            };
            if let Err(reason) = ended {
                tracing::warn!(%from, reason, "connection closed");
            }
        }
    });
    if let Err(error) = thread {
        shared.hellos.fetch_sub(1, Ordering::AcqRel);
        tracing::warn!(%from, %error, "connection closed: no thread for its hello");
    }
}

/// A client's connection, and who serves it.
type Client = (Arc<Gateway>, TcpStream);

/// Exchanges hellos. A core's socket goes to the core that it asks for, a client's comes back. The error is for the
/// log.
fn greet(mut socket: TcpStream, shared: &Shared) -> Result<Option<Client>, String> {
    let io = |what: &str, error: io::Error| format!("{what}: {error}");
    socket.set_nonblocking(false).map_err(|e| io("socket", e))?;
    socket.set_write_timeout(Some(HELLO_TIMEOUT)).map_err(|e| io("socket", e))?;
    let bytes = read_within(&socket, HELLO_TIMEOUT).map_err(|e| io("reading a hello", e))?;
    let hello = Hello::parse(&bytes).map_err(|e| e.to_string())?;
    let own = match shared.judge(&hello) {
        Ok(own) => own,
        Err((code, text)) => {
            let reply = HelloReply::Refused { code, text: text.clone() }.encode();
            socket.write_all(&reply).map_err(|e| io(&text, e))?;
            return Err(format!("{} core {} ({:?}) refused: {text}", hello.node, hello.core, hello.kind));
        }
    };
    let reply = HelloReply::Accepted(own).encode();
    socket.write_all(&reply).map_err(|e| io("answering a hello", e))?;
    let socket = hand_over(socket).map_err(|e| io("socket", e))?;
    if hello.kind == HelloKind::Client {
        return Ok(shared.gateway.clone().map(|gateway| (gateway, socket.into())));
    }
    let mailbox = &shared.mailboxes[usize::from(hello.target_core)];
    mailbox.control(Control::Accepted { socket, hello });
    Ok(None)
}

impl Shared {
    /// This node's hello for one that is accepted, or why it isn't.
    fn judge(&self, hello: &Hello) -> Result<Hello, (RefusalCode, String)> {
        let refuse = |code, text: String| Err((code, text));
        let own = self.own.hello(hello.target_core, hello.core);
        let is_client = hello.kind == HelloKind::Client;
        if hello.cluster != own.cluster && !(is_client && hello.cluster == 0) {
            let text =
                format!("{} is not this cluster, {}", cluster_text(hello.cluster), cluster_text(own.cluster));
            return refuse(RefusalCode::WrongCluster, text);
        }
        if own.common_version(hello).is_none() {
            let (min, max) = (own.protocol_min, own.protocol_max);
            return refuse(RefusalCode::Version, format!("{} speaks {min} to {max}", own.node));
        }
        if is_client {
            return match &self.gateway {
                Some(gateway) if gateway.has_room() => Ok(own),
                _ => {
                    refuse(RefusalCode::ManyClients, format!("{} serves as many clients as it may", own.node))
                }
            };
        }
        if hello.node == own.node {
            return refuse(RefusalCode::OwnNode, format!("I am {} myself", own.node));
        }
        if !self.known.contains(&hello.node) {
            return refuse(RefusalCode::UnknownNode, format!("{} is not configured here", hello.node));
        }
        if hello.node > own.node {
            let text = format!("{} is the lower id: it connects", own.node);
            return refuse(RefusalCode::WrongDirection, text);
        }
        let Some(mailbox) = self.mailboxes.get(usize::from(hello.target_core)) else {
            return refuse(RefusalCode::NoSuchCore, format!("{} has {} cores", own.node, own.cores));
        };
        if mailbox.is_closed() {
            return refuse(RefusalCode::NotReady, format!("{} is stopping", own.node));
        }
        self.stores.judge(&own, hello)?;
        Ok(own)
    }
}
