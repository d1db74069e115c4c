//! What a simulated disk keeps, loses and damages.

use super::*;

struct Bench {
    disk: Disk,
    op: u64,
}

impl Bench {
    fn new(seed: u64) -> Self {
        Self { disk: Disk::new(Random::new(seed), DiskProfile::default()), op: 0 }
    }

    fn begin(&mut self, call: DiskCall) -> u64 {
        self.op += 1;
        self.disk.issue(0, OpId { owner: OpOwner::Wal, number: self.op }, call).0
    }

    fn call(&mut self, call: DiskCall) -> DiskResult {
        let ticket = self.begin(call);
        self.disk.complete(ticket).expect("nothing crashed").2
    }

    fn content(&mut self, path: &str) -> Option<Bytes> {
        match self.call(DiskCall::Read { path: path.into(), offset: 0, len: 1 << 20 }) {
            Ok(DiskDone::Read(bytes)) => Some(bytes),
            _ => None,
        }
    }
}

fn write(path: &str, byte: u8, blocks: usize) -> DiskCall {
    let data = Box::new(Bytes::from(vec![byte; blocks * BLOCK]));
    DiskCall::Write { path: path.into(), offset: 0, data }
}

fn create(path: &str) -> DiskCall {
    DiskCall::Create { path: path.into(), len: 4 * BLOCK as u64 }
}

fn sync(dir: &str) -> DiskCall {
    DiskCall::SyncDir { dir: dir.into() }
}

#[test]
fn what_completed_and_is_linked_survives_a_power_cut() {
    for seed in 0..50 {
        let mut bench = Bench::new(seed);
        for call in [create("wal/a"), sync("wal"), write("wal/a", 7, 4)] {
            bench.call(call).unwrap();
        }
        bench.disk.crash(Crash::Power);
        assert_eq!(bench.content("wal/a").unwrap(), vec![7; 4 * BLOCK]);
    }
}

#[test]
fn any_subset_of_the_sectors_of_a_write_in_flight_lands() {
    let (mut torn, mut all, mut none) = (0, 0, 0);
    for seed in 0..200 {
        let mut bench = Bench::new(seed);
        bench.call(create("a")).unwrap();
        bench.call(sync("")).unwrap();
        bench.begin(write("a", 7, 4));
        bench.disk.crash(Crash::Power);
        let content = bench.content("a").unwrap();
        let landed = content.chunks(SECTOR).filter(|sector| sector[0] == 7).count();
        assert!(content.chunks(SECTOR).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
        *match landed {
            0 => &mut none,
            32 => &mut all,
            _ => &mut torn,
        } += 1;
    }
    assert!(torn > 20 && all > 20 && none > 20, "{torn} {all} {none}");
}

#[test]
fn what_landed_before_a_kill_may_still_go_in_a_later_power_cut() {
    let lost = (0..200).filter(|&seed| {
        let mut bench = Bench::new(seed);
        bench.call(create("a")).unwrap();
        bench.call(sync("")).unwrap();
        bench.begin(write("a", 7, 1));
        bench.disk.crash(Crash::Process);
        let seen = bench.content("a").unwrap();
        bench.disk.crash(Crash::Power);
        seen != bench.content("a").unwrap()
    });
    assert!(lost.count() > 20, "reading after a restart proved durability");
}

#[test]
fn names_are_durable_only_after_the_directory_is_synced() {
    let (mut kept, mut gone) = (0, 0);
    for seed in 0..100 {
        let mut bench = Bench::new(seed);
        for call in [create("old"), write("old", 1, 4), create("new"), sync(""), write("new", 2, 4)] {
            bench.call(call).unwrap();
        }
        bench.call(DiskCall::Rename { from: "new".into(), to: "old".into() }).unwrap();
        assert_eq!(bench.content("old").unwrap()[0], 2);
        bench.disk.crash(Crash::Power);
        // A rename lands as a whole: one of the two files, whole, under the name.
        match (bench.content("old").map(|bytes| bytes[0]), bench.content("new").map(|bytes| bytes[0])) {
            (Some(2), None) => kept += 1,
            (Some(1), Some(2)) => gone += 1,
            other => panic!("seed {seed}: {other:?}"),
        }
        bench.call(sync("")).unwrap();
        let before = bench.content("old");
        bench.disk.crash(Crash::Power);
        assert_eq!(bench.content("old"), before, "a synced name stays");
    }
    assert!(kept > 10 && gone > 10, "{kept} {gone}");
}

#[test]
#[should_panic(expected = "different writes in flight")]
fn two_writes_in_flight_to_the_same_bytes_are_a_bug_of_the_caller() {
    let mut bench = Bench::new(1);
    bench.call(create("a")).unwrap();
    bench.begin(write("a", 1, 2));
    bench.begin(write("a", 2, 1));
}
