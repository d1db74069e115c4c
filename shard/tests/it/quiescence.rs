//! Quiet groups: they cost nothing, and nobody misses a leader because of them.

use crate::cluster::{Cluster, MS};
use crate::{S1, one_shard, others};
use floe_raft::Term;
use floe_shard::*;

const ELECTION_TIMEOUT_MS: u64 = 300;

/// Shards whose replicas, as many as are up, are all quiet.
pub fn quiet_cluster(shards: u32) -> Cluster {
    let mut cluster = Cluster::new(ShardConfig::default(), shards);
    let all = 3 * shards as usize;
    cluster.run_until("quiet", |cluster| quiet_replicas(cluster) == all);
    cluster
}

fn quiet_replicas(cluster: &Cluster) -> usize {
    cluster.nodes.iter().map(|node| node.multi.quiet_replicas()).sum()
}

fn words_sent(cluster: &Cluster) -> u64 {
    cluster.nodes.iter().map(|node| node.words_sent).sum()
}

fn shards(cluster: &Cluster) -> Vec<ShardId> {
    cluster.map.iter().map(|descriptor| descriptor.shard).collect()
}

fn term(cluster: &Cluster, node: usize, shard: ShardId) -> Term {
    cluster.nodes[node].multi.status(shard).expect("every node has every shard").term
}

#[test]
fn of_idle_groups_nothing_is_sent_but_one_beat_per_core_pair() {
    let mut cluster = quiet_cluster(50);
    let shards = shards(&cluster);
    let leaders: Vec<_> = shards.iter().map(|shard| cluster.leader_of(*shard).unwrap()).collect();
    // Timers from before come up once more.
    cluster.run(ELECTION_TIMEOUT_MS);
    let (words, beats) = (words_sent(&cluster), cluster.nodes[0].beats_sent);
    let turns = cluster.nodes[0].turns;
    cluster.run(3000);
    assert_eq!(words_sent(&cluster), words, "no word about any group in three seconds");
    let sent = cluster.nodes[0].beats_sent - beats;
    assert!((198..=202).contains(&sent), "{sent} beats to 2 peers in 100 intervals");
    let turns = cluster.nodes[0].turns - turns;
    assert!(turns <= 102, "{turns} turns: a core of quiet groups wakes up to beat, and for nothing else");
    for (shard, leader) in shards.into_iter().zip(leaders) {
        assert_eq!(cluster.leader_of(shard), Some(leader));
        assert_eq!((0..3).map(|node| term(&cluster, node, shard)).collect::<Vec<_>>(), [1; 3]);
    }
}

#[test]
fn a_write_or_a_linearizable_read_wakes_its_group_and_no_other() {
    let mut cluster = quiet_cluster(12);
    for shard in shards(&cluster).into_iter().take(3) {
        let leader = cluster.leader_of(shard).unwrap();
        let key = cluster.map.get(shard).unwrap().range.start.to_vec();
        let key: &'static [u8] = Box::leak([&key[..], b"\0"].concat().into_boxed_slice());
        let answer = cluster.put(leader, shard, key, b"1");
        assert!(matches!(answer, Answer::Written { .. }), "{answer:?}");
        assert_eq!(quiet_replicas(&cluster), 33);
        cluster.run_until("quiet again", |cluster| quiet_replicas(cluster) == 36);
        cluster.assert_equal_states(shard);
        let begun = cluster.now;
        assert!(matches!(cluster.get(leader, shard, key), Answer::Value(Some(_))));
        assert!(cluster.now - begun < 20 * MS, "woken within {} ns", cluster.now - begun);
        assert_eq!(quiet_replicas(&cluster), 33, "a read is activity");
        let stale = crate::cluster::get(shard, key, Consistency::ANY_AGE);
        cluster.run_until("quiet again", |cluster| quiet_replicas(cluster) == 36);
        assert!(matches!(cluster.ask(leader, stale), Answer::Value(Some(_))));
        cluster.run(5);
        assert_eq!(quiet_replicas(&cluster), 36, "a stale read is not");
    }
}

#[test]
fn quiet_groups_of_a_dead_node_have_leaders_within_three_election_timeouts_and_not_in_one_burst() {
    const SHARDS: u32 = 300;
    let mut cluster = quiet_cluster(SHARDS);
    let shards = shards(&cluster);
    let orphans: Vec<_> =
        shards.iter().copied().filter(|shard| cluster.leader_of(*shard) == Some(0)).collect();
    assert_eq!(orphans.len(), SHARDS as usize / 3);
    cluster.isolated.insert(0);
    cluster.nodes.iter_mut().for_each(|node| node.messages_per_turn = 0);
    cluster.run(3 * ELECTION_TIMEOUT_MS);
    let led = orphans.iter().filter(|shard| cluster.leader_of(**shard).is_some()).count();
    assert_eq!(led, orphans.len(), "groups with a new leader");
    // 100 elections within the 150 ms between the two bounds of the timeout.
    let burst = cluster.nodes.iter().map(|node| node.messages_per_turn).max();
    assert!(burst <= Some(20), "{burst:?} messages in one turn");
    for shard in shards.iter().filter(|shard| !orphans.contains(shard)) {
        let terms = [1, 2].map(|node| term(&cluster, node, *shard));
        assert_eq!(terms, [1; 2], "{shard}: only the groups of the dead node elect");
    }
}

/// Two nodes stand still while the third dies: all its groups' timers run out in the same moment.
#[test]
fn elections_that_are_due_at_once_are_spread_over_turns() {
    const SHARDS: u32 = 600;
    let mut cluster = quiet_cluster(SHARDS);
    let shards = shards(&cluster);
    let orphans: Vec<_> = shards.into_iter().filter(|shard| cluster.leader_of(*shard) == Some(0)).collect();
    cluster.isolated.insert(0);
    cluster.now += 2 * ELECTION_TIMEOUT_MS * MS;
    let (mut most, mut first) = (0, None);
    let campaigns = |cluster: &Cluster| [1, 2].map(|node| cluster.nodes[node].multi.stats().campaigns);
    let mut before = campaigns(&cluster);
    for _ in 0..3 * ELECTION_TIMEOUT_MS {
        cluster.turn();
        let now = campaigns(&cluster);
        let begun = now.iter().zip(before).map(|(now, before)| now - before).max().unwrap_or(0);
        first = first.or((begun > 0).then_some(begun));
        (most, before) = (most.max(begun), now);
    }
    let max = cluster.config.campaigns_per_turn_max as u64;
    assert_eq!((most, first), (max, Some(max)), "all there may be in one turn, and no more");
    let led = orphans.iter().filter(|shard| cluster.leader_of(**shard).is_some()).count();
    assert_eq!(led, SHARDS as usize / 3, "groups with a new leader");
}

/// A node stands still for a moment longer than quiet followers wait for a sign of life. They all wake in one turn, some of
/// them with a timer that has run out, and when it is back each leader wakes its groups. No turn has more campaigns than
/// it may, and nobody else's groups elect.
#[test]
fn a_stall_that_wakes_quiet_groups_is_over_within_three_election_timeouts() {
    const SHARDS: u32 = 3_000;
    const STALL_MS: u64 = 170;
    let mut cluster = quiet_cluster(SHARDS);
    cluster.run(ELECTION_TIMEOUT_MS);
    let sums = |cluster: &Cluster| {
        let stats = cluster.nodes.iter().map(|node| node.multi.stats());
        stats.fold((0, 0), |(campaigns, elections), stats| {
            (campaigns + stats.campaigns, elections + stats.elections)
        })
    };
    let before = sums(&cluster);
    cluster.nodes.iter_mut().for_each(|node| node.messages_per_turn = 0);
    cluster.nodes[0].busy_until = cluster.now + STALL_MS * MS;
    let (mut woken, mut most, mut last) = (0, 0, before.0);
    for _ in 0..STALL_MS + 3 * ELECTION_TIMEOUT_MS {
        cluster.turn();
        woken = woken.max(3 * SHARDS as usize - quiet_replicas(&cluster));
        most = most.max(sums(&cluster).0 - last);
        last = sums(&cluster).0;
    }
    let max = cluster.config.campaigns_per_turn_max;
    let burst = cluster.nodes.iter().map(|node| node.messages_per_turn).max().unwrap_or(0);
    let elections = sums(&cluster).1 - before.1;
    assert!(woken >= SHARDS as usize, "{woken} woken: that was no stall");
    assert!(most <= 2 * max as u64 && burst <= 4 * max, "{most} begun in one turn, {burst} messages");
    assert!(elections <= u64::from(SHARDS) / 3, "{elections} elections: only of groups that it leads");
    assert_eq!(quiet_replicas(&cluster), 3 * SHARDS as usize, "all are quiet again");
}

/// Three cores of a thousand shards start, so slow that stepping all their replicas once takes longer than a follower
/// waits for its leader. Whoever is led stays led, and the others' turn comes.
#[test]
fn shards_that_start_all_at_once_on_slow_cores_elect_once_each() {
    const SHARDS: u32 = 1000;
    let mut cluster = Cluster::new(ShardConfig::default(), SHARDS);
    cluster.replica_turn = 200_000;
    let max = cluster.config.campaigns_per_turn_max as u64;
    let campaigns = |cluster: &Cluster| [0, 1, 2].map(|node| cluster.nodes[node].multi.stats().campaigns);
    let mut before = campaigns(&cluster);
    cluster.run_until("led", |cluster| {
        let now = campaigns(cluster);
        let most = now.iter().zip(before).map(|(now, before)| now - before).max().unwrap_or(0);
        assert!(most <= max, "{most} campaigns begun in one turn, at most {max}");
        before = now;
        cluster.nodes.iter().map(|node| node.multi.leaders()).sum::<usize>() == SHARDS as usize
    });
    cluster.run_until("quiet", |cluster| quiet_replicas(cluster) == 3 * SHARDS as usize);
    let elections: u64 = cluster.nodes.iter().map(|node| node.multi.stats().elections).sum();
    assert!(elections <= u64::from(SHARDS) * 11 / 10, "{elections} elections for {SHARDS} shards");
}

#[test]
fn readers_of_a_dead_leaders_quiet_followers_put_off_no_election() {
    const SHARDS: u32 = 60;
    let mut cluster = quiet_cluster(SHARDS);
    let orphans = shards(&cluster);
    let orphans: Vec<_> = orphans.into_iter().filter(|shard| cluster.leader_of(*shard) == Some(0)).collect();
    cluster.run(30);
    cluster.isolated.insert(0);
    cluster.run(110);
    for shard in &orphans {
        let query = Query::Get { key: cluster.map.get(*shard).unwrap().range.start.clone() };
        let consistency = Consistency::LinearizableLocal;
        let read = Request::Read { shard: *shard, range_epoch: 1, query, consistency };
        for node in [1, 2] {
            cluster.submit(node, read.clone());
        }
    }
    cluster.run(ELECTION_TIMEOUT_MS + 10 - 110);
    let led = orphans.iter().filter(|shard| cluster.leader_of(**shard).is_some()).count();
    assert_eq!(led, orphans.len(), "groups with a new leader");
}

#[test]
fn a_new_boot_of_the_leaders_node_is_not_trusted_for_what_the_old_one_led() {
    let mut cluster = quiet_cluster(3);
    let shard = shards(&cluster).into_iter().find(|shard| cluster.leader_of(*shard) == Some(1)).unwrap();
    // It comes back at once and beats on, but without this replica: nobody but the followers can help.
    cluster.nodes[1].disk.remove(&shard);
    cluster.restart(1, false);
    cluster.run(3 * ELECTION_TIMEOUT_MS);
    let leader = cluster.leader_of(shard);
    assert!(leader.is_some_and(|leader| leader != 1), "{leader:?} leads {shard}");
}

#[test]
fn a_dead_peer_keeps_nobody_awake_and_is_led_again_when_it_is_back() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    cluster.put(leader, S1, b"a", b"1");
    let away = others(leader)[0];
    cluster.isolated.insert(away);
    cluster.put(leader, S1, b"a", b"2");
    cluster.run_until("the living are quiet", |cluster| {
        (0..3).all(|node| (node == away) != (cluster.nodes[node].multi.quiet_replicas() == 1))
    });
    cluster.run(2000);
    let before = term(&cluster, leader, S1);
    cluster.isolated.clear();
    cluster.run(70);
    assert_eq!(
        cluster.nodes[away].multi.status(S1).unwrap().leader_node,
        Some(cluster.nodes[leader].addr.node)
    );
    cluster.run_until("quiet", |cluster| quiet_replicas(cluster) == 3);
    cluster.assert_equal_states(S1);
    let terms = [0, 1, 2].map(|node| term(&cluster, node, S1));
    assert_eq!((cluster.leader_of(S1), terms), (Some(leader), [before; 3]), "and disturbs nobody");
}

#[test]
fn a_restarted_follower_of_a_quiet_group_finds_its_leader() {
    let mut cluster = quiet_cluster(1);
    let leader = cluster.leader_of(S1).unwrap();
    let follower = others(leader)[0];
    cluster.restart(follower, false);
    cluster.run(70);
    let status = cluster.nodes[follower].multi.status(S1).unwrap();
    assert_eq!(status.leader_node, Some(cluster.nodes[leader].addr.node), "told at once");
    cluster.run_until("quiet", |cluster| quiet_replicas(cluster) == 3);
    assert_eq!(cluster.leader_of(S1), Some(leader));
    assert_eq!(term(&cluster, leader, S1), 1, "nobody had to campaign");
}

#[test]
fn a_quiet_leader_that_was_replaced_serves_no_read() {
    let mut cluster = quiet_cluster(1);
    let old = cluster.leader_of(S1).unwrap();
    cluster.isolated.insert(old);
    let new = cluster.await_leader(S1);
    cluster.put(new, S1, b"a", b"new");
    assert!(cluster.nodes[old].multi.raft(S1).unwrap().is_leader(), "it doesn't know");
    let id = cluster.submit(old, crate::cluster::get(S1, b"a", Consistency::Linearizable));
    cluster.run(2 * ELECTION_TIMEOUT_MS);
    let answer = cluster.nodes[old].answers.remove(&id);
    assert_eq!(answer, Some(Answer::Refused(Refusal::NotLeader { leader: None })));
}

#[test]
fn groups_stay_awake_if_they_are_told_to() {
    let config = ShardConfig { quiet_after_ns: floe_raft::Nanos::MAX, ..ShardConfig::default() };
    let mut cluster = Cluster::new(config, 3);
    cluster.run(5000);
    assert_eq!(quiet_replicas(&cluster), 0);
}

/// A leader hears of a peer's return from its beat; nothing else is said in a quiet group.
#[test]
fn a_returning_peer_is_woken_although_nobody_has_anything_to_say() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    cluster.put(leader, S1, b"a", b"1");
    let away = others(leader)[0];
    cluster.isolated.insert(away);
    cluster.put(leader, S1, b"a", b"2");
    cluster.run_until("the living are quiet", |cluster| {
        (0..3).all(|node| (node == away) != (cluster.nodes[node].multi.quiet_replicas() == 1))
    });
    cluster.run(1000);
    // The one that comes back hears, but isn't heard but for its beats: it can't ask for anything by itself.
    cluster.isolated.clear();
    cluster.beats_only.insert(away);
    cluster.run(100);
    assert!(!cluster.nodes[leader].multi.raft(S1).unwrap().is_quiet(), "there is one who waits for a leader");
    let follows = cluster.nodes[away].multi.status(S1).unwrap().leader_node;
    assert_eq!(follows, Some(cluster.nodes[leader].addr.node));
}

/// All orphans of a node hear of its death at once. Each counts a timeout of its own from the last beat on.
#[test]
fn timers_are_spread_when_orphans_wake() {
    const SHARDS: u32 = 300;
    let mut cluster = quiet_cluster(SHARDS);
    let orphans: Vec<_> =
        shards(&cluster).into_iter().filter(|shard| cluster.leader_of(*shard) == Some(0)).collect();
    cluster.run(30);
    cluster.isolated.insert(0);
    let died_at = cluster.now;
    let mut campaigns = std::collections::BTreeMap::<u64, usize>::new();
    let mut waiting: std::collections::BTreeSet<_> = orphans.iter().copied().collect();
    while !waiting.is_empty() && cluster.now < died_at + ELECTION_TIMEOUT_MS * MS {
        cluster.turn();
        let stands = |shard: &ShardId| {
            [1, 2].iter().any(|&node| {
                let raft = cluster.nodes[node].multi.raft(*shard).unwrap();
                raft.leader().is_none() && !raft.is_quiet()
            })
        };
        let stood: Vec<_> = waiting.iter().copied().filter(stands).collect();
        stood.iter().for_each(|shard| assert!(waiting.remove(shard)));
        *campaigns.entry((cluster.now - died_at) / (10 * MS)).or_default() += stood.len();
    }
    assert!(waiting.is_empty(), "{} groups didn't campaign within an election timeout", waiting.len());
    let most = campaigns.values().max();
    assert!(most <= Some(&35), "{campaigns:?}: campaigns of 100 groups per 10 ms");
}

/// As the engine says of a shard that callers' threads read.
#[test]
fn reads_past_the_core_keep_a_group_awake() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    cluster.put(leader, S1, b"a", b"1");
    for _ in 0..30 {
        cluster.run(100);
        cluster.nodes[leader].multi.note_read(S1);
        assert_eq!(quiet_replicas(&cluster), 0, "at {} ms", cluster.now / MS);
    }
    cluster.run(1200);
    assert_eq!(quiet_replicas(&cluster), 3, "nobody reads any more");
}
