//! The log on disk is bounded, also while nothing can be flushed.

use floe::{BusyReason, Config, Engine, Store, WriteError};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const SEGMENT_BYTES: u64 = 1 << 20;
const LOG_BYTES_MAX: u64 = 4 * SEGMENT_BYTES;
const GUARD: Duration = Duration::from_secs(60);

#[test]
fn a_log_that_can_not_be_cut_refuses_writes_and_takes_them_again_once_it_can() {
    let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let dir = tempfile::tempdir_in(base).unwrap();
    let mut config = Config::embedded(dir.path().join("node"));
    (config.wal.segment_bytes_min, config.wal.segment_bytes_max) = (SEGMENT_BYTES, SEGMENT_BYTES);
    config.wal.bytes_max = LOG_BYTES_MAX;
    config.store = Store::Memory;
    let engine = Engine::open(config).unwrap();
    let client = engine.client().with_timeout(GUARD);
    client.put_blocking("first", "value").unwrap();
    // No dump can be saved below a file.
    let dumps = dir.path().join("node/dump");
    fs::write(&dumps, "in the way").unwrap();
    let put = |at: u32| client.put_blocking(at.to_be_bytes(), vec![1; 16 << 10]);
    let refused = (0..4_000).find_map(|at| put(at).err());
    assert_eq!(refused, Some(WriteError::Busy(BusyReason::LogSpace)));
    let taken = engine.metrics().wal_disk_bytes;
    // What is in use, a frame beyond it, and what lies ready; and what another core has.
    let most = 4 * LOG_BYTES_MAX + 12 * SEGMENT_BYTES;
    assert!((4 * LOG_BYTES_MAX..=most).contains(&taken), "{taken} bytes of log");
    assert_eq!(client.get_blocking("first").unwrap().as_deref(), Some(&b"value"[..]));
    fs::remove_file(&dumps).unwrap();
    let until = Instant::now() + GUARD;
    while let Err(error) = put(0) {
        assert!(matches!(error, WriteError::Busy(_)) && Instant::now() < until, "{error}");
        std::thread::sleep(Duration::from_millis(50));
    }
    engine.shutdown();
}
