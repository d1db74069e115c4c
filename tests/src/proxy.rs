//! A network fault for real processes: a proxy in user space between two ends of TCP connections.
//!
//! It can hold back what goes one way or both (a cut: the bytes arrive once it is healed, if the connection still
//! lives), delay, and reset every connection. TCP hides single lost packets; what is left to see of those is delay. What it
//! promises to prevent can be had as well: a piece of the stream that is lost, repeated or damaged ([`Spoil`]).

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const POLL: Duration = Duration::from_millis(5);
const CHUNK_BYTES: usize = 16 << 10;

/// What becomes of the next piece of data, in each direction, on whichever connection it comes first.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Spoil {
    /// It never arrives; what follows does.
    Lost = 1,
    /// Its last byte arrives twice. (All of it would be whole requests as often as not, which then are done twice: no
    /// protocol above TCP counts on that.)
    Repeated = 2,
    /// A bit is another one.
    Damaged = 3,
}

/// Forwards connections until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Nothing passes: towards the target, and back.
    cut: [AtomicBool; 2],
    delay_ms: AtomicU64,
    /// A [`Spoil`] for the next piece of data, by direction; 0 = none.
    spoil: [AtomicU8; 2],
    /// Connections that began under an older number are reset.
    generation: AtomicU64,
    closed: AtomicBool,
    /// Bytes passed on, both ways.
    passed: AtomicU64,
}

impl Proxy {
    /// Listens on `listen` and connects to `target` for everyone who comes.
    ///
    /// # Errors
    /// The port can't be had, or there can't be a thread.
    pub fn start(listen: &str, target: &str) -> std::io::Result<Self> {
        let listener = TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let (address, state) = (listener.local_addr()?, Arc::new(State::default()));
        let (shared, target) = (Arc::clone(&state), target.to_owned());
        thread::Builder::new().name("proxy".into()).spawn(move || accept_all(&listener, &target, &shared))?;
        Ok(Self { address, state })
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Holds back what goes towards the target, and what comes back.
    pub fn cut(&self, there: bool, back: bool) {
        self.state.cut[0].store(there, Ordering::Release);
        self.state.cut[1].store(back, Ordering::Release);
    }

    /// Each piece of data waits so long, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.state.delay_ms.store(delay.as_millis() as u64, Ordering::Release);
    }

    /// Spoils the next piece of data, in each direction.
    pub fn spoil_next(&self, how: Spoil) {
        self.state.spoil.iter().for_each(|spoil| spoil.store(how as u8, Ordering::Release));
    }

    /// Ends every connection there is.
    pub fn reset(&self) {
        self.state.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// No faults any more.
    pub fn heal(&self) {
        self.cut(false, false);
        self.delay(Duration::ZERO);
    }

    /// Bytes passed on so far, both ways.
    pub fn passed(&self) -> u64 {
        self.state.passed.load(Ordering::Acquire)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::Release);
        self.reset();
    }
}

fn accept_all(listener: &TcpListener, target: &str, state: &Arc<State>) {
    while !state.closed.load(Ordering::Acquire) {
        let Ok((client, _)) = listener.accept() else {
            thread::sleep(POLL);
            continue;
        };
        // A target that isn't there looks to the client as it would without a proxy: closed.
        let Ok(server) = TcpStream::connect(target) else { continue };
        let generation = state.generation.load(Ordering::Acquire);
        for (way, from, to) in [(0, &client, &server), (1, &server, &client)] {
            let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
            let state = Arc::clone(state);
            thread::spawn(move || pump(way, &from, &to, generation, &state));
        }
    }
}

/// Passes bytes on in one direction until either end or the proxy is done with the connection.
fn pump(way: usize, mut from: &TcpStream, mut to: &TcpStream, generation: u64, state: &State) {
    // One byte longer than what is read, for one that is repeated.
    let mut chunk = vec![0; CHUNK_BYTES + 1];
    let lives = || state.generation.load(Ordering::Acquire) == generation;
    let is_set = from.set_nonblocking(false).and_then(|()| from.set_read_timeout(Some(POLL)));
    let _ = to.set_nodelay(true);
    while is_set.is_ok() && lives() {
        if state.cut[way].load(Ordering::Acquire) {
            thread::sleep(POLL);
            continue;
        }
        match from.read(&mut chunk[..CHUNK_BYTES]) {
            Ok(0) => break,
            Ok(got) => {
                let delay = state.delay_ms.load(Ordering::Acquire);
                thread::sleep(Duration::from_millis(delay));
                // Cut meanwhile: what is under way is held back, too.
                while state.cut[way].load(Ordering::Acquire) && lives() {
                    thread::sleep(POLL);
                }
                if !lives() {
                    break;
                }
                // Before they can be seen at the other end.
                state.passed.fetch_add(got as u64, Ordering::AcqRel);
                let spoil = state.spoil[way].swap(0, Ordering::AcqRel);
                if to.write_all(spoilt(spoil, &mut chunk, got)).is_err() {
                    break;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// What arrives of the first `got` bytes.
fn spoilt(how: u8, chunk: &mut [u8], got: usize) -> &[u8] {
    match how {
        0 => &chunk[..got],
        how if how == Spoil::Lost as u8 => &[],
        how if how == Spoil::Repeated as u8 => {
            chunk[got] = chunk[got - 1];
            &chunk[..=got]
        }
        _ => {
            chunk[got / 2] ^= 0x10;
            &chunk[..got]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_piece_is_lost_repeated_or_damaged_and_the_next_arrives() {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::start("127.0.0.1:0", &target.local_addr().unwrap().to_string()).unwrap();
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        let (mut server, _) = target.accept().unwrap();
        // What never arrives must not be waited for without end.
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        for (how, arrives) in
            [(Spoil::Lost, &b"next"[..]), (Spoil::Repeated, b"pieceenext"), (Spoil::Damaged, b"pi\x75cenext")]
        {
            let before = proxy.passed();
            proxy.spoil_next(how);
            client.write_all(b"piece").unwrap();
            while proxy.passed() < before + 5 {
                thread::sleep(POLL);
            }
            client.write_all(b"next").unwrap();
            let mut read = vec![0; arrives.len()];
            let end = server.read_exact(&mut read);
            assert_eq!(read, arrives, "{how:?}: {end:?}");
            // Nothing was sent in the other direction: what was ordered for it is still due.
            proxy.state.spoil[1].store(0, Ordering::Release);
        }
    }

    #[test]
    fn a_cut_holds_bytes_back_one_way_until_it_is_healed_and_a_reset_ends_the_connection() {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::start("127.0.0.1:0", &target.local_addr().unwrap().to_string()).unwrap();
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        let (mut server, _) = target.accept().unwrap();
        let mut byte = [0];
        client.write_all(b"a").unwrap();
        server.read_exact(&mut byte).unwrap();
        proxy.cut(true, false);
        client.write_all(b"b").unwrap();
        server.write_all(b"c").unwrap();
        client.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"c");
        server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(server.read_exact(&mut byte).is_err(), "it is cut in this direction");
        server.set_read_timeout(None).unwrap();
        proxy.heal();
        server.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"b");
        assert_eq!(proxy.passed(), 3);
        proxy.reset();
        assert_eq!(client.read(&mut byte).unwrap_or(0), 0);
    }
}
