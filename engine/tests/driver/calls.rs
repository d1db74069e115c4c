//! A worker that makes disk calls, and what it asks of a disk.

use super::{fill, op};
use crate::disk::{self, BLOCK, DiskCall, DiskDone, DiskErrorKind};
use crate::seam::{Effects, Event, Failure, Input};
use crate::worker::Script;
use bytes::Bytes;
use floe_raft::Nanos;

/// Calls that are made at once, and the check of each one's answer.
pub type Step = (Vec<DiskCall>, Box<dyn Fn(&disk::DiskResult) -> bool + Send>);

/// Makes one call after the other and checks every answer.
pub struct Calls {
    pub steps: Vec<Step>,
    pub at: usize,
    pub missing: usize,
}

impl Calls {
    fn issue(&mut self, effects: &mut Effects) {
        let Some((calls, _)) = self.steps.get_mut(self.at) else {
            return effects.events.push(Event::Stopped);
        };
        self.missing = calls.len();
        let first = self.at as u64 * 100;
        effects.disk.extend(calls.drain(..).zip(first..).map(|(call, number)| (op(number), call)));
    }
}

impl Script for Calls {
    fn start(&mut self, effects: &mut Effects) {
        self.issue(effects);
    }
    fn step(&mut self, _now: Nanos, inputs: &mut Vec<Input>, effects: &mut Effects) {
        for input in inputs.drain(..) {
            let Input::Disk { op, result } = input else { continue };
            if op.number / 100 != self.at as u64 || !(self.steps[self.at].1)(&result) {
                let what = format!("call {} of step {}: {result:?}", op.number % 100, self.at);
                return effects.events.push(Event::Failed(Failure::Disk(what)));
            }
            self.missing -= 1;
            if self.missing == 0 {
                self.at += 1;
                self.issue(effects);
            }
        }
    }
}

pub fn done(calls: Vec<DiskCall>) -> Step {
    (calls, Box::new(|result| *result == Ok(DiskDone::Done)))
}

fn saves(path: &str, bytes: &'static [u8]) -> Step {
    let data = Box::new(Bytes::from_static(bytes));
    let call = DiskCall::Save { path: path.into(), data, is_long: false };
    (vec![call], Box::new(move |result| *result == Ok(DiskDone::Saved(bytes.len() as u64))))
}

fn reads(path: &str, offset: u64, expected: Vec<u8>) -> Step {
    let call = DiskCall::Read { path: path.into(), offset, len: expected.len() };
    let check = move |result: &disk::DiskResult| match result {
        Ok(DiskDone::Read(bytes)) => (bytes.as_ptr() as usize).is_multiple_of(8) && bytes[..] == expected[..],
        _ => false,
    };
    (vec![call], Box::new(check))
}

fn fails(call: DiskCall, kind: DiskErrorKind, named: &'static str) -> Step {
    let check = move |result: &disk::DiskResult| {
        result.as_ref().is_err_and(|error| error.kind == kind && error.message.contains(named))
    };
    (vec![call], Box::new(check))
}

fn lists(dir: &str, expected: &'static [(&'static str, u64)]) -> Step {
    let check = move |result: &disk::DiskResult| match result {
        Ok(DiskDone::Listed(found)) => {
            found.iter().map(|entry| (entry.name.as_str(), entry.len)).eq(expected.iter().copied())
        }
        _ => false,
    };
    (vec![DiskCall::List { dir: dir.into() }], Box::new(check))
}

pub fn write_call(path: &str, block: usize, byte: u8) -> DiskCall {
    DiskCall::Write { path: path.into(), offset: (block * BLOCK) as u64, data: fill(byte, 1) }
}

pub fn disk_steps() -> Vec<Step> {
    let all_in_flight = (0..8).map(|block| write_call("wal/a/one", block, block as u8)).collect();
    let blocks = |bytes: &[u8]| bytes.iter().flat_map(|byte| vec![*byte; BLOCK]).collect::<Vec<u8>>();
    let rename = |from: &str, to: &str| DiskCall::Rename { from: from.into(), to: to.into() };
    let create =
        |path: &str, blocks: usize| DiskCall::Create { path: path.into(), len: (blocks * BLOCK) as u64 };
    vec![
        lists("wal", &[]),
        fails(write_call("wal/a/one", 0, 1), DiskErrorKind::NotFound, "wal/a/one"),
        done(vec![create("wal/a/one", 300)]),
        reads("wal/a/one", 0, vec![0; 300 * BLOCK]),
        done(all_in_flight),
        reads("wal/a/one", 0, blocks(&[0, 1, 2, 3, 4, 5, 6, 7, 0])),
        // The name goes to the same file, and a new file takes the old one.
        done(vec![rename("wal/a/one", "wal/a/two")]),
        done(vec![create("wal/a/one", 4)]),
        done(vec![write_call("wal/a/one", 1, 0x11), write_call("wal/a/two", 1, 0x22)]),
        reads("wal/a/one", 0, blocks(&[0, 0x11, 0, 0])),
        reads("wal/a/two", 0, blocks(&[0, 0x22, 2])),
        // Renamed over a file that is open.
        done(vec![rename("wal/a/one", "wal/a/two")]),
        done(vec![write_call("wal/a/two", 2, 0x33), DiskCall::SyncDir { dir: "wal/a".into() }]),
        reads("wal/a/two", 0, blocks(&[0, 0x11, 0x33, 0])),
        lists("wal/a", &[("two", 4 * BLOCK as u64)]),
        done(vec![DiskCall::Remove { path: "wal/a/two".into() }]),
        done(vec![DiskCall::Remove { path: "wal/a/two".into() }]),
        fails(write_call("wal/a/two", 0, 1), DiskErrorKind::NotFound, "wal/a/two"),
        saves("dumps/x", b"odd length"),
        reads("dumps/x", 0, b"odd length".to_vec()),
        fails(DiskCall::Read { path: "none".into(), offset: 0, len: 8 }, DiskErrorKind::NotFound, "none"),
        fails(rename("none", "other"), DiskErrorKind::NotFound, "other"),
        lists("", &[("dumps", 0), ("wal", 0)]),
    ]
}
