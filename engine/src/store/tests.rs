//! The durable store against the memory store, over flushes at any moment, reopening, and crashes between a flush and
//! its record. A test's `Node` does with dumps what the shard layer and the engine do.

use super::*;
use crate::config::LsmSettings;
use bytes::Bytes;
use floe_checker::random::Random;
use floe_raft::Mark;
use floe_shard::{
    COMMAND_HEAD_BYTES, CommandResult, DumpHead, JobDone, KeyRange, MemoryStore, NodeId, Query, QueryResult,
    Row, ShardId, Stage, StateMachine, View, WriteBatch, encode, pre_split,
};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn stores(dir: &Path) -> (Arc<Stores>, Janitor) {
    Stores::open(dir, &LsmSettings::default()).unwrap()
}

fn shard() -> ShardId {
    pre_split(&[NodeId(1)], 1, 1)[0].shard
}

fn head(index: u64) -> DumpHead {
    let descriptor = pre_split(&[NodeId(1)], 1, 1).remove(0);
    let membership = descriptor.membership();
    DumpHead { shard: descriptor.shard, mark: Mark::new(1, index), descriptor, membership }
}

/// The bytes of a dump, after what had to be made durable before.
fn saved(dump: Box<dyn floe_shard::Dump>) -> Bytes {
    let mut bytes = Vec::new();
    dump.write(&mut bytes).unwrap();
    bytes.into()
}

/// Puts a whole dump's rows into files, in parts of so many bytes; the bytes that name them.
fn staged(mut stage: impl Stage, head: &DumpHead, rows: &Bytes, part: usize) -> Result<Bytes, String> {
    for part in rows.chunks(part) {
        assert_eq!(stage.take(rows.slice_ref(part))()?, JobDone::Done);
    }
    match stage.finish(head)()? {
        JobDone::Staged(body) => Ok(body),
        other => panic!("{other:?} is no name of files"),
    }
}

fn payload(batch: &WriteBatch) -> Bytes {
    encode(batch, 1).unwrap().slice(COMMAND_HEAD_BYTES..)
}

/// Applies a command, fetching what it waits for; says whether it waited.
fn apply(store: &mut LsmStore, index: u64, payload: &[u8]) -> (CommandResult, bool) {
    let (at, range) = (Mark::new(1, index), KeyRange::all());
    match store.apply(at, payload, &range) {
        CommandResult::Pending => {
            assert_eq!(store.fetch()(), Ok(JobDone::Done));
            (store.apply(at, payload, &range), true)
        }
        result => (result, false),
    }
}

fn put(store: &mut LsmStore, index: u64, key: &str, value: &str) {
    let (key, value) = (key.to_owned(), value.to_owned());
    let result = apply(store, index, &payload(WriteBatch::new().put(key, value)));
    assert_eq!(result, (CommandResult::Written, false));
}

fn scan(start: &str, end: &str, limit: u32, reverse: bool) -> Query {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    Query::Scan { start: bytes(start), end: bytes(end), limit, bytes_max: 1 << 20, reverse, view: None }
}

fn read(store: &LsmStore, query: &Query) -> QueryResult {
    match store.read_job(query, &KeyRange::all()) {
        Some(job) => match job() {
            Ok(JobDone::Read(found)) => found,
            other => panic!("{other:?}"),
        },
        None => store.read(query, &KeyRange::all()),
    }
}

fn rows(result: QueryResult) -> Vec<Row> {
    let QueryResult::Rows(rows, _) = result else { panic!() };
    rows
}

fn all_rows(view: &dyn View) -> Vec<Row> {
    rows(view.read(&scan("", "", 0, false), &KeyRange::all()).unwrap())
}

/// Draws what clients ask for.
struct Asker(Random);

impl Asker {
    fn below(&mut self, bound: u64) -> u64 {
        self.0.below(bound)
    }

    fn key(&mut self) -> String {
        // Some longer than what a stored key has in place.
        let number = self.below(120);
        if number.is_multiple_of(3) {
            format!("k{number:03}-a-key-of-more-than-16-bytes")
        } else {
            format!("k{number:03}")
        }
    }

    fn batch(&mut self, index: u64) -> WriteBatch {
        let mut batch = WriteBatch::new();
        match self.below(10) {
            0 => batch.if_absent(self.key()),
            1 => batch.if_version(self.key(), index.saturating_sub(self.below(40))),
            2 => batch.if_equals(self.key(), format!("v{}", self.below(4))),
            _ => &mut batch,
        };
        for _ in 0..1 + self.below(3) {
            match self.below(20) {
                0 => {
                    let (one, other) = (self.key(), self.key());
                    let end = format!("{}~", one.clone().max(other.clone()));
                    batch.delete_range(one.min(other), end)
                }
                1..5 => batch.delete(self.key()),
                _ => batch.put(self.key(), format!("v{}", self.below(4))),
            };
        }
        batch
    }

    fn query(&mut self) -> Query {
        let (one, other) = (self.key(), self.key());
        let end = if self.below(4) == 0 { String::new() } else { one.clone().max(other.clone()) };
        let limit = self.below(30) as u32;
        scan(&one.min(other), &end, limit, self.below(2) == 0)
    }
}

#[test]
fn it_does_what_the_memory_store_does_over_flushes_and_reopening() {
    for seed in 0..6 {
        model_run(seed);
    }
}

fn model_run(seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let (mut stores_now, mut janitor) = stores(dir.path());
    let (mut store, mut model) = (LsmStore::new(shard(), &stores_now), MemoryStore::new());
    let mut random = Asker(Random::new(seed));
    let (mut log, mut dump, mut waited) = (Vec::new(), None, 0);
    for index in 1..2_500 {
        let command = payload(&random.batch(index));
        let expected = model.apply(Mark::new(1, index), &command, &KeyRange::all());
        let (result, pended) = apply(&mut store, index, &command);
        assert_eq!(result, expected, "seed {seed}, command {index}");
        waited += u64::from(pended);
        log.push(command);
        if random.below(10) == 0 {
            let query = random.query();
            assert_eq!(
                read(&store, &query),
                model.read(&query, &KeyRange::all()),
                "seed {seed}, {index}: {query:?}"
            );
            let query = Query::Get { key: random.key().into() };
            assert_eq!(
                read(&store, &query),
                model.read(&query, &KeyRange::all()),
                "seed {seed}, {index}: {query:?}"
            );
        }
        if random.below(60) == 0 {
            dump = Some((index, saved(store.flush(&head(index)).unwrap())));
        } else if random.below(200) == 0 {
            // As if it came from a leader that stands just here.
            let rows = saved(store.dump());
            let part = 1 + random.below(5_000) as usize;
            let body = staged(store.stage_in_batches_of(10_000), &head(index), &rows, part).unwrap();
            store.restore(&body).unwrap();
            store.installed();
            dump = Some((index, body));
        } else if random.below(300) == 0 {
            // The process ends; the log replays what the newest dump doesn't hold.
            let hash = store.state_hash();
            drop((store, stores_now, janitor));
            (stores_now, janitor) = stores(dir.path());
            store = LsmStore::new(shard(), &stores_now);
            let from = dump.as_ref().map_or(0, |(at, bytes)| {
                store.restore(bytes).unwrap();
                assert_eq!(store.newer().map(|head| head.mark.index), Some(*at));
                *at
            });
            janitor.remove_strays();
            for (at, command) in log.iter().enumerate().skip(from as usize) {
                apply(&mut store, at as u64 + 1, command);
            }
            assert_eq!(store.state_hash(), hash, "seed {seed}, reopened at {index}");
        }
    }
    assert!(waited > 20, "only {waited} conditions had to wait for the tables");
    assert_eq!(all_rows(&*store.view().unwrap()), all_rows(&*model.view().unwrap()), "seed {seed}");
}

#[test]
fn keys_that_begin_with_the_highest_byte_keep_their_order_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (stores, _janitor) = stores(dir.path());
    let (mut store, mut model) = (LsmStore::new(shard(), &stores), MemoryStore::new());
    let longest = [0xFF; floe_shard::KEY_BYTES_MAX];
    let mut keys =
        [&b"\0"[..], &[0xFE, 0xFF], &[0xFF], &[0xFF, 0], &[0xFF, 0, 0], &[0xFF, 1], &[0xFF, 0xFF], &longest];
    keys.reverse();
    let mut batch = WriteBatch::new();
    for key in keys {
        batch.put(key.to_vec(), "v");
    }
    let command = payload(&batch);
    apply(&mut store, 1, &command);
    model.apply(Mark::new(1, 1), &command, &KeyRange::all());
    saved(store.flush(&head(1)).unwrap());
    store.flush_ended();
    let get = |key: &[u8]| Query::Get { key: Bytes::copy_from_slice(key) };
    for low in keys {
        assert_eq!(read(&store, &get(low)), model.read(&get(low), &KeyRange::all()), "{low:?}");
        for high in keys {
            let (start, end) = (Bytes::copy_from_slice(low), Bytes::copy_from_slice(high));
            let query = Query::Scan { start, end, limit: 0, bytes_max: 1 << 20, reverse: false, view: None };
            assert_eq!(read(&store, &query), model.read(&query, &KeyRange::all()), "{low:?} to {high:?}");
        }
    }
    assert_eq!(all_rows(&*store.view().unwrap()), all_rows(&*model.view().unwrap()));
}

#[test]
fn a_view_stays_as_it_was_through_flushes_and_compaction() {
    let dir = tempfile::tempdir().unwrap();
    let (stores, _janitor) = stores(dir.path());
    let mut store = LsmStore::new(shard(), &stores);
    let mut views = Vec::new();
    for index in 1..=60 {
        put(&mut store, index, &format!("k{}", index % 7), &format!("v{index}"));
        if index % 3 == 0 {
            let view = store.view().unwrap();
            views.push((all_rows(&*view), view));
        }
        saved(store.flush(&head(index)).unwrap());
        while store.compact_now() {}
    }
    for (rows, view) in &views {
        assert_eq!(all_rows(&**view), *rows);
    }
}

#[test]
fn a_tree_that_is_ahead_of_its_dump_says_so_and_one_that_is_gone_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (first, janitor) = stores(dir.path());
    let mut store = LsmStore::new(shard(), &first);
    put(&mut store, 1, "a", "1");
    let named = saved(store.flush(&head(1)).unwrap());
    put(&mut store, 2, "a", "2");
    // Ingested, but the process ends before its dump is saved.
    drop(saved(store.flush(&head(2)).unwrap()));
    let hash = store.state_hash();
    drop((store, first, janitor));
    let (second, janitor) = stores(dir.path());
    let mut store = LsmStore::new(shard(), &second);
    store.restore(&named).unwrap();
    assert_eq!((store.newer().unwrap().mark, store.state_hash()), (Mark::new(1, 2), hash));
    assert_eq!(rows(read(&store, &scan("", "", 0, false)))[0].value.value, "2");
    drop((store, second, janitor));
    std::fs::remove_file(dir.path().join("store/t1/current")).unwrap();
    let (third, _janitor) = stores(dir.path());
    let refused = format!("{:?}", LsmStore::new(shard(), &third).restore(&named).unwrap_err());
    assert!(refused.contains("store/t1/current is missing"), "{refused}");
}

#[test]
fn a_list_of_tables_that_has_rotted_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (first, janitor) = stores(dir.path());
    let mut store = LsmStore::new(shard(), &first);
    put(&mut store, 1, "a", "1");
    let named = saved(store.flush(&head(1)).unwrap());
    drop((store, first, janitor));
    let tree = dir.path().join("store/t1");
    let is_manifest = |name: &str| name.strip_prefix('v').is_some_and(|n| n.parse::<u64>().is_ok());
    let names =
        std::fs::read_dir(&tree).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name == "current" || is_manifest(name)).collect();
    names.sort();
    assert!(names.len() >= 2, "{names:?}");
    // Older lists may still lie there; the last one counts.
    for name in [&names[0], &names[names.len() - 1]] {
        let (path, sound) = (tree.join(name), std::fs::read(tree.join(name)).unwrap());
        for at in 0..sound.len() {
            let mut rotted = sound.clone();
            rotted[at] ^= 4;
            std::fs::write(&path, &rotted).unwrap();
            let (again, _janitor) = stores(dir.path());
            let refused = LsmStore::new(shard(), &again).restore(&named);
            assert!(refused.is_err(), "byte {at} of {name}");
        }
        std::fs::write(&path, &sound).unwrap();
    }
    let (last, _janitor) = stores(dir.path());
    LsmStore::new(shard(), &last).restore(&named).unwrap();
}

#[test]
fn apply_is_timed() {
    let dir = tempfile::tempdir().unwrap();
    let (stores, janitor) = stores(dir.path());
    let mut store = LsmStore::new(shard(), &stores);
    (1..=80).for_each(|index| put(&mut store, index, "a", "1"));
    let mut timed = crate::metrics::Metrics::sum([]).apply_latency;
    janitor.apply_latency().add_to(&mut timed);
    assert_eq!(timed.len(), 10);
}

#[test]
fn what_no_dump_names_is_removed_and_what_one_names_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (first, janitor) = stores(dir.path());
    let mut dumps = Vec::new();
    for _ in 0..2 {
        let mut store = LsmStore::new(shard(), &first);
        put(&mut store, 1, "a", "1");
        dumps.push(saved(store.flush(&head(1)).unwrap()));
    }
    drop((first, janitor));
    let (second, janitor) = stores(dir.path());
    let mut store = LsmStore::new(shard(), &second);
    store.restore(&dumps[1]).unwrap();
    janitor.remove_strays();
    let exists = |number: u64| dir.path().join(format!("store/t{number}")).exists();
    let begun = Instant::now();
    while exists(1) {
        assert!(begun.elapsed() < Duration::from_secs(20), "the stray tree stays");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(exists(2));
}

/// A leader's whole dump after three commands.
fn leaders_dump(leader: &mut LsmStore) -> Bytes {
    put(leader, 1, "a", "1");
    put(leader, 2, "b", "2");
    saved(leader.flush(&head(2)).unwrap());
    put(leader, 3, "c", "3");
    saved(leader.dump())
}

fn await_gone(path: &Path) {
    let begun = Instant::now();
    while path.exists() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{} stays", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_staged_dump_is_swapped_in_from_its_tree_without_a_memtable_and_a_restart_finds_it() {
    let dir = tempfile::tempdir().unwrap();
    let (first, janitor) = stores(dir.path());
    let mut leader = LsmStore::new(shard(), &first);
    let rows = leaders_dump(&mut leader);
    let mut follower = LsmStore::new(shard(), &first);
    put(&mut follower, 1, "z", "gone");
    saved(follower.flush(&head(1)).unwrap());
    let body = staged(follower.stage_in_batches_of(1), &head(3), &rows, 50).unwrap();
    assert_eq!(all_rows(&*follower.view().unwrap()).len(), 1, "only staged");
    // The core looks for nothing on the disk: it would find no tree there.
    let (tree, away) = (dir.path().join("store/t3"), dir.path().join("away"));
    std::fs::rename(&tree, &away).unwrap();
    follower.restore(&body).unwrap();
    std::fs::rename(&away, &tree).unwrap();
    let before = dir.path().join("store/t2");
    assert!(before.exists(), "the log still names it");
    follower.installed();
    await_gone(&before);
    assert_eq!(all_rows(&*follower.view().unwrap()), all_rows(&*leader.view().unwrap()));
    assert_eq!((follower.state_hash(), follower.newer()), (leader.state_hash(), None));
    assert_eq!(follower.unflushed_bytes(), 0);
    let hash = follower.state_hash();
    drop((leader, follower, first, janitor));

    let (second, janitor) = stores(dir.path());
    let mut follower = LsmStore::new(shard(), &second);
    follower.restore(&body).unwrap();
    janitor.remove_strays();
    assert_eq!((follower.newer().unwrap(), follower.state_hash()), (head(3), hash));
    assert_eq!(all_rows(&*follower.view().unwrap()).len(), 3);
    await_gone(&dir.path().join("store/t1"));
    assert!(tree.exists());
}

#[test]
fn a_staged_tree_that_is_not_installed_goes_at_once_or_when_it_is_made_or_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let (first, janitor) = stores(dir.path());
    let rows = leaders_dump(&mut LsmStore::new(shard(), &first));
    let mut follower = LsmStore::new(shard(), &first);
    let tree = |number: u64| dir.path().join(format!("store/t{number}"));

    let stage = |follower: &mut LsmStore| {
        staged(follower.stage_in_batches_of(1), &head(3), &rows, 50).unwrap();
    };
    stage(&mut follower);
    assert!(tree(3).exists());
    follower.unstage();
    await_gone(&tree(3));

    // The replica is destroyed while a thread still writes it.
    let mut into_files = follower.stage_in_batches_of(1);
    follower.destroy();
    into_files.take(rows.clone())().unwrap();
    assert!(tree(4).exists());
    drop(into_files);
    await_gone(&tree(4));

    // A crash comes before anything names it.
    let mut follower = LsmStore::new(shard(), &first);
    stage(&mut follower);
    let number = dir.path().join("store").join("t7");
    assert!(number.exists());
    std::mem::forget(follower);
    drop((first, janitor));
    let (_second, janitor) = stores(dir.path());
    assert!(number.exists());
    janitor.remove_strays();
    await_gone(&number);
}

#[test]
fn what_is_no_whole_dump_is_not_staged() {
    let dir = tempfile::tempdir().unwrap();
    let (stores, _janitor) = stores(dir.path());
    let rows = leaders_dump(&mut LsmStore::new(shard(), &stores));
    let mut follower = LsmStore::new(shard(), &stores);
    let cut = rows.slice(..rows.len() - 1);
    let of_a_tree = Bytes::copy_from_slice(&image::of_tree(1, 1));
    for (number, bytes) in [Bytes::new(), cut, of_a_tree].into_iter().enumerate() {
        let refused = staged(follower.stage_in_batches_of(1), &head(3), &bytes, 50);
        assert!(refused.is_err(), "{number}: {refused:?}");
    }
    staged(follower.stage_in_batches_of(1), &head(3), &rows, 50).unwrap();
}

#[test]
fn batches_of_a_dump_form_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let (stores, _janitor) = stores(dir.path());
    let mut leader = LsmStore::new(shard(), &stores);
    (1..200).for_each(|index| put(&mut leader, index, &format!("k{index:05}"), &"v".repeat(100)));
    let mut follower = LsmStore::new(shard(), &stores);
    let rows = saved(leader.dump());
    let body = staged(follower.stage_in_batches_of(2_000), &head(199), &rows, 500).unwrap();
    follower.restore(&body).unwrap();
    assert_eq!(follower.table_runs(), 1);
    assert_eq!(all_rows(&*follower.view().unwrap()), all_rows(&*leader.view().unwrap()));
}

#[test]
fn memory_is_given_back_once_it_lies_in_tables() {
    let dir = tempfile::tempdir().unwrap();
    let settings = LsmSettings { write_buffer_bytes: 1 << 20, ..LsmSettings::default() };
    let (stores, _janitor) = Stores::open(dir.path(), &settings).unwrap();
    let mut store = LsmStore::new(shard(), &stores);
    let mut index = 0;
    while store.pressure() != floe_shard::Pressure::Full {
        index += 1;
        put(&mut store, index, &format!("k{index:05}"), &"v".repeat(100));
    }
    assert!(index < 8_000, "{index} rows of over 230 bytes fit 1 MiB");
    saved(store.flush(&head(index)).unwrap());
    // No command comes before there is memory again.
    store.flush_ended();
    let begun = Instant::now();
    while store.pressure() != floe_shard::Pressure::None {
        assert!(begun.elapsed() < Duration::from_secs(20), "{} bytes", stores.budget().used());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(rows(read(&store, &scan("", "", 0, false))).len() as u64, index);
}

#[test]
fn compaction_keeps_runs_few_and_every_row() {
    let dir = tempfile::tempdir().unwrap();
    let (stores, _janitor) = stores(dir.path());
    let mut store = LsmStore::new(shard(), &stores);
    for index in 1..=40 {
        put(&mut store, index, &format!("k{index:02}"), "v");
        saved(store.flush(&head(index)).unwrap());
        while store.compact_now() {}
    }
    assert!(store.table_runs() <= 5, "{} runs after 40 flushes", store.table_runs());
    assert_eq!(rows(read(&store, &scan("", "", 0, false))).len(), 40);
    assert_eq!(rows(read(&store, &scan("k10", "k13", 0, true))).len(), 3);
}

#[test]
fn a_flush_that_waits_for_compaction_seals_nothing_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (stores, janitor) = stores(dir.path());
    // Nobody compacts.
    drop(janitor);
    let mut store = LsmStore::new(shard(), &stores);
    let most = super::tree::LEVEL0_RUNS_MAX as u64;
    for index in 1..=most {
        put(&mut store, index, "k", &format!("v{index}"));
        saved(store.flush(&head(index)).unwrap());
    }
    put(&mut store, most + 1, "k", "last");
    let waiting = store.unflushed_bytes();
    for _ in 0..2 {
        assert!(store.flush(&head(most + 1)).is_none());
        assert_eq!(store.unflushed_bytes(), waiting);
    }
    while store.compact_now() {}
    let dump = saved(store.flush(&head(most + 1)).unwrap());
    assert_eq!(store.unflushed_bytes(), 0);
    let mut again = LsmStore::new(shard(), &stores);
    drop(store);
    again.restore(&dump).unwrap();
    let found = rows(read(&again, &scan("", "", 0, false)));
    assert_eq!((found.len(), &found[0].value.value[..]), (1, &b"last"[..]));
}

fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// What an open tree with one small table takes, measured from outside: why there is no limit on how many are open.
#[test]
#[ignore = "makes a thousand trees, and must be alone in its process"]
fn an_open_tree_takes_less_than_16_kib() {
    const TREES: u64 = 1000;
    let dir = tempfile::tempdir().unwrap();
    let (first, janitor) = stores(dir.path());
    let flushed = |_| {
        let mut store = LsmStore::new(shard(), &first);
        put(&mut store, 1, "key", &"v".repeat(100));
        saved(store.flush(&head(1)).unwrap())
    };
    let dumps: Vec<Bytes> = (0..TREES).map(flushed).collect();
    drop((first, janitor));
    let (second, _janitor) = stores(dir.path());
    let mut open = Vec::with_capacity(TREES as usize);
    let mut before = 0;
    for dump in &dumps {
        let mut store = LsmStore::new(shard(), &second);
        store.restore(dump).unwrap();
        open.push(store);
        // The first ones also bring what all share.
        if open.len() == 100 {
            before = resident_bytes();
        }
    }
    let per_tree = (resident_bytes() - before) / (TREES as usize - 100);
    println!("{per_tree} bytes per open tree");
    assert!(per_tree < 16 << 10, "{per_tree} bytes");
}
