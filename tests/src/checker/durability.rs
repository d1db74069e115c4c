//! No acknowledged write is lost, none is applied twice, no refused one is applied, and nobody's answer
//! contradicts the one committed history.
//!
//! Clients say what they send and what came back. An acknowledgement is checked at once against the
//! canonical history ([`RaftSafety`]); at the end the whole history is replayed by a little model of the
//! store, which gives what became of every key, which the final reads must find, and the outcome of every conditional
//! write.

use crate::checker::Violation;
use crate::checker::raft_safety::{RaftSafety, entry_hash};
use floe_raft::{EntryKind, Index};
use floe_shard::{FOUNDED_AT, ShardId};
use std::collections::BTreeMap;

/// What a command requires of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    None,
    /// That it doesn't exist.
    Absent,
    /// That its last write has this log index.
    Version(Index),
}

/// What a command means: one key, one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intent {
    /// The key's number.
    pub key: u32,
    /// Its condition.
    pub condition: Condition,
    /// The value it sets, by a number that no other command uses; `None` deletes.
    pub value: Option<u64>,
    /// Whether it is asked of the shard that serves the key, by its range epoch; else it must do nothing.
    pub is_at_home: bool,
}

/// What a client learned about a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Applied at this index.
    Written(Index),
    /// Its condition didn't hold.
    ConditionFailed,
    /// Surely not applied, now or ever.
    Refused,
    /// Not known.
    Unknown,
}

#[derive(Clone, Debug)]
struct Sent {
    intent: Intent,
    /// How often it was sent (only deletes look alike), and with what outcomes.
    times: usize,
    outcomes: Vec<Outcome>,
}

/// A value and the index that wrote it.
pub type Stored = (u64, Index);

/// What the committed history did to each key: at which index it set it to which value, or deleted it.
pub type Changes = BTreeMap<u32, Vec<(Index, Option<u64>)>>;

/// What stood under a key when everything up to an index was applied.
pub fn value_at(changes: &Changes, key: u32, at: Index) -> Option<Stored> {
    let of_key = changes.get(&key)?;
    let (index, value) = of_key[..of_key.partition_point(|(index, _)| *index <= at)].last()?;
    Some(((*value)?, *index))
}

/// The checker.
#[derive(Debug, Default)]
pub struct Durability {
    sent: BTreeMap<(ShardId, u64), Sent>,
    /// Commands that somebody was told are committed, before the checker saw it.
    unseen: Vec<(ShardId, Index, u64)>,
    /// Acknowledgements that were checked.
    pub acknowledged: u64,
}

impl Durability {
    /// A client sends a command. Answers the number by which to report its outcome.
    pub fn sent(&mut self, shard: ShardId, command: &[u8], intent: Intent) -> u64 {
        let hash = entry_hash(EntryKind::Command, command);
        let new = Sent { intent, times: 0, outcomes: Vec::new() };
        let sent = self.sent.entry((shard, hash)).or_insert(new);
        assert_eq!(sent.intent, intent, "two commands of different meaning look alike");
        sent.times += 1;
        hash
    }

    /// A client learned what came of a command.
    ///
    /// # Errors
    /// An acknowledged command that isn't committed where the answer says.
    pub fn answered(
        &mut self,
        shard: ShardId,
        command: u64,
        outcome: Outcome,
        history: &RaftSafety,
    ) -> Result<(), Violation> {
        let sent = self.sent.get_mut(&(shard, command)).expect("only what was sent is answered");
        sent.outcomes.push(outcome);
        if let Outcome::Written(index) = outcome {
            self.acknowledged += 1;
            return self.must_be_committed(shard, index, command, history);
        }
        Ok(())
    }

    /// Somebody was told that this command is committed at this index.
    ///
    /// # Errors
    /// Something else is.
    pub fn must_be_committed(
        &mut self,
        shard: ShardId,
        index: Index,
        command: u64,
        history: &RaftSafety,
    ) -> Result<(), Violation> {
        match history.committed(shard, index) {
            Some(committed) if committed.hash == command => {}
            // A core that stops in the very step in which it commits is seen no more: judged at the end.
            None => self.unseen.push((shard, index, command)),
            Some(committed) => {
                let detail = format!(
                    "{shard}: {:?} was said to be committed at {index}, where {committed:x?} is",
                    self.sent[&(shard, command)].intent
                );
                return Err(Violation::new("durability", detail));
            }
        }
        Ok(())
    }

    /// Replays a shard's committed history and compares every outcome with it. Answers what it did to each key.
    ///
    /// # Errors
    /// What doesn't agree.
    pub fn replay(&self, shard: ShardId, history: &RaftSafety) -> Result<Changes, Violation> {
        let mut changes = Changes::new();
        let mut executed: BTreeMap<u64, Vec<Outcome>> = BTreeMap::new();
        for (expected, (index, committed)) in (FOUNDED_AT.index + 1..).zip(history.history(shard)) {
            if index != expected {
                let detail = format!("{shard}: nobody ever had the committed entry {expected}");
                return Err(Violation::new("durability", detail));
            }
            if committed.kind != EntryKind::Command {
                continue;
            }
            let Some(sent) = self.sent.get(&(shard, committed.hash)) else {
                let detail = format!("{shard}: nobody sent what is committed at {index}");
                return Err(Violation::new("invented command", detail));
            };
            let Intent { key, condition, value, is_at_home } = sent.intent;
            if !is_at_home {
                continue;
            }
            let stored = value_at(&changes, key, index);
            let holds = match condition {
                Condition::None => true,
                Condition::Absent => stored.is_none(),
                Condition::Version(version) => stored.is_some_and(|stored| stored.1 == version),
            };
            let outcome = if holds { Outcome::Written(index) } else { Outcome::ConditionFailed };
            executed.entry(committed.hash).or_default().push(outcome);
            if holds {
                changes.entry(key).or_default().push((index, value));
            }
        }
        for (_, index, command) in self.unseen.iter().filter(|(of, _, _)| *of == shard) {
            let committed = history.committed(shard, *index);
            if committed.is_none_or(|committed| committed.hash != *command) {
                let intent = self.sent[&(shard, *command)].intent;
                let detail = format!(
                    "{shard}: {intent:?} was acknowledged at {index}, where {committed:x?} is committed"
                );
                return Err(Violation::new("durability", detail));
            }
        }
        for ((_, command), sent) in self.sent.iter().filter(|((of, _), _)| *of == shard) {
            agree(shard, sent, executed.get(command).map_or(&[][..], Vec::as_slice))?;
        }
        Ok(changes)
    }
}

/// Whether what clients learned fits with what was executed.
fn agree(shard: ShardId, sent: &Sent, executed: &[Outcome]) -> Result<(), Violation> {
    let intent = sent.intent;
    let mut open = executed.to_vec();
    for &outcome in &sent.outcomes {
        match outcome {
            Outcome::Refused | Outcome::Unknown => {}
            learned => match open.iter().position(|done| *done == learned) {
                Some(at) => {
                    open.remove(at);
                }
                None => {
                    let detail =
                        format!("{shard}: {intent:?} was answered with {learned:?}, executed: {executed:?}");
                    return Err(Violation::new("durability", detail));
                }
            },
        }
    }
    // What is left must be of those whose outcome nobody learned.
    let settled = sent.outcomes.iter().filter(|outcome| **outcome != Outcome::Unknown).count();
    let unknown = sent.times - settled;
    if open.len() <= unknown {
        return Ok(());
    }
    let refused = sent.outcomes.contains(&Outcome::Refused);
    let property =
        if refused && executed.len() <= sent.times { "refused but applied" } else { "applied twice" };
    let detail = format!(
        "{shard}: {intent:?}, sent {} times, outcomes {:?}, executed {executed:?}",
        sent.times, sent.outcomes
    );
    Err(Violation::new(property, detail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::raft_safety::View;
    use bytes::Bytes;
    use floe_raft::{Entry, Mark, Membership, ReplicaId};
    use floe_shard::NodeId;

    const SHARD: ShardId = ShardId(1);

    fn put(value: u64) -> Intent {
        Intent { key: 1, condition: Condition::None, value: Some(value), is_at_home: true }
    }

    /// Where the first command of a shard stands.
    const FIRST: Index = FOUNDED_AT.index + 1;

    /// A history in which these commands are committed, in this order.
    fn committed(commands: &[&'static str]) -> RaftSafety {
        let last = FOUNDED_AT.index + commands.len() as u64;
        let term_at = |index: Index| Some(u64::from(index >= FIRST));
        let entries = |from: Index, to: Index| {
            let entry = |index: Index| {
                let data = Bytes::from_static(commands[(index - FIRST) as usize].as_bytes());
                Entry { mark: Mark::new(1, index), kind: EntryKind::Command, version: 1, data }
            };
            (from..=to).map(entry).collect()
        };
        let mut history = RaftSafety::default();
        let id = ReplicaId::new(1).expect("not 0");
        let view = View {
            replica: id,
            membership: (FOUNDED_AT.index, &Membership::of_voters([id])),
            term: 1,
            is_leader: true,
            commit: last,
            state: (FOUNDED_AT, 0),
            first: FIRST,
            last: Mark::new(1, last),
            term_at: &term_at,
            entries: &entries,
        };
        history.observe(NodeId(1), SHARD, &view).expect("a sound replica");
        history
    }

    /// One client sends commands, each with what came back; what breaks when they are judged.
    fn broken(commands: &[&'static str], sent: &[(&str, Intent, Outcome)]) -> Option<&'static str> {
        let history = committed(commands);
        let mut durability = Durability::default();
        let mut judge = || {
            for (command, intent, outcome) in sent {
                let number = durability.sent(SHARD, command.as_bytes(), *intent);
                durability.answered(SHARD, number, *outcome, &history)?;
            }
            durability.replay(SHARD, &history)
        };
        judge().err().map(|violation| violation.property)
    }

    #[test]
    fn what_clients_learned_fits_with_what_is_committed() {
        let other = Intent { condition: Condition::Absent, ..put(2) };
        let sent = [
            ("a", put(1), Outcome::Written(FIRST)),
            ("b", other, Outcome::ConditionFailed),
            ("c", put(3), Outcome::Unknown),
        ];
        assert_eq!(broken(&["a", "b"], &sent), None, "the last one never happened");
        assert_eq!(broken(&["a", "b", "c"], &sent), None, "or it did");
    }

    #[test]
    fn an_acknowledged_write_that_is_not_committed_is_lost() {
        let sent = [("a", put(1), Outcome::Written(FIRST)), ("b", put(2), Outcome::Written(FIRST + 1))];
        assert_eq!(broken(&["a"], &sent), Some("durability"), "nothing is there");
        assert_eq!(broken(&["b", "a"], &sent), Some("durability"), "others are there");
    }

    #[test]
    fn a_command_that_is_committed_twice_is_found() {
        assert_eq!(broken(&["a", "a"], &[("a", put(1), Outcome::Written(FIRST))]), Some("applied twice"));
        assert_eq!(broken(&["a", "a"], &[("a", put(1), Outcome::Unknown)]), Some("applied twice"));
    }

    #[test]
    fn a_refused_command_that_is_applied_is_found() {
        assert_eq!(broken(&["a"], &[("a", put(1), Outcome::Refused)]), Some("refused but applied"));
    }

    #[test]
    fn a_command_that_is_sent_twice_may_be_applied_twice() {
        let sent = [("a", put(1), Outcome::Unknown), ("a", put(1), Outcome::Written(FIRST + 1))];
        assert_eq!(broken(&["b", "a"], &[&sent[..], &[("b", put(2), Outcome::Unknown)]].concat()), None);
        assert_eq!(broken(&["a", "a"], &sent), None, "both are");
        assert_eq!(broken(&["b", "a", "a", "a"], &sent), Some("invented command"), "nobody sent b");
        assert_eq!(broken(&["a", "a", "a"], &sent), Some("applied twice"), "once more than it was sent");
    }

    #[test]
    fn a_command_that_a_foreign_shard_applies_is_found() {
        let stray = |value| Intent { is_at_home: false, ..put(value) };
        assert_eq!(broken(&["a"], &[("a", stray(1), Outcome::Refused)]), None, "in the log it does no harm");
        assert_eq!(broken(&["a"], &[("a", stray(1), Outcome::Written(FIRST))]), Some("durability"));
    }

    #[test]
    fn a_command_that_nobody_sent_is_found() {
        assert_eq!(broken(&["a"], &[]), Some("invented command"));
    }

    #[test]
    fn a_condition_that_is_answered_wrongly_is_found() {
        let absent = |value| Intent { condition: Condition::Absent, ..put(value) };
        let first = ("a", absent(1), Outcome::Written(FIRST));
        assert_eq!(broken(&["a", "b"], &[first, ("b", absent(2), Outcome::ConditionFailed)]), None);
        assert_eq!(
            broken(&["a", "b"], &[first, ("b", absent(2), Outcome::Written(FIRST + 1))]),
            Some("durability")
        );
        let version = |index, value| Intent { condition: Condition::Version(index), ..put(value) };
        assert_eq!(
            broken(&["a", "b"], &[first, ("b", version(FIRST, 2), Outcome::ConditionFailed)]),
            Some("durability")
        );
    }
}
