//! Requests as with an outdated map: to a shard whose range doesn't have the key, or by an epoch that isn't its range's.
//! Whoever leads the shard must refuse them by name, with its descriptor, and none may ever have an effect.

use super::{Call, ClientId, Clients, Doing, Pending, RANGE_EPOCH, SLACK_NS, odd, value_bytes};
use crate::checker::Violation;
use crate::checker::durability::{Condition, Intent, Outcome};
use crate::checker::raft_safety::RaftSafety;
use floe_raft::Nanos;
use floe_shard::{Answer, Consistency, Query, Refusal, Request, WriteBatch};

impl Clients {
    /// A read or a write of a shard whose range doesn't have the key, or by an epoch that isn't its range's.
    pub(super) fn stray(&mut self, now: Nanos, client: ClientId, key: u32) -> Call {
        let name = self.keys[key as usize].0.clone();
        let at = self.random.below(self.keys.len() as u64) as u32;
        let shard = self.shard_of(at);
        let range_epoch =
            if shard == self.shard_of(key) { *self.random.pick(&[0, RANGE_EPOCH + 1]) } else { RANGE_EPOCH };
        if self.random.percent(50) {
            let query = Query::Get { key: name };
            let consistency = Consistency::Linearizable;
            let request = Request::Read { shard, range_epoch, query, consistency };
            return self.call(now, client, shard, Doing::Stray { command: None }, request);
        }
        let value = self.next_value();
        let bytes = value_bytes(value, self.load.value_bytes_max);
        let command = floe_shard::encode(WriteBatch::new().put(name, bytes), range_epoch);
        let command = command.expect("far below every limit");
        let intent = Intent { key, condition: Condition::None, value: Some(value), is_at_home: false };
        let number = self.durability.sent(shard, &command, intent);
        self.values.insert(value, (key, number));
        let doing = Doing::Stray { command: Some(number) };
        self.call(now, client, shard, doing, Request::Write { shard, command })
    }

    /// A request to the wrong place must be told of the right one; where it didn't get there, it's refused otherwise.
    pub(super) fn end_stray(
        &mut self,
        pending: &Pending,
        command: Option<u64>,
        answer: &Option<Answer>,
        history: &RaftSafety,
    ) -> Result<(), Violation> {
        let outcome = match answer {
            Some(Answer::Refused(refusal)) => {
                self.counts.rerouted += u64::from(reroutes(refusal));
                Outcome::Refused
            }
            _ => {
                self.open_until = self.open_until.max(pending.called + pending.patience_ns + SLACK_NS);
                Outcome::Unknown
            }
        };
        match command {
            Some(command) => self.durability.answered(pending.shard, command, outcome, history),
            None => Ok(()),
        }
    }

    pub(super) fn expected_refusal(
        &mut self,
        pending: &Pending,
        answer: &Option<Answer>,
    ) -> Result<(), Violation> {
        match answer {
            Some(Answer::Refused(refusal)) if reroutes(refusal) => {
                let right = match (&pending.doing, refusal) {
                    (
                        Doing::Stray { .. },
                        Refusal::OutOfRange { descriptor } | Refusal::WrongEpoch { descriptor },
                    ) => descriptor.shard == pending.shard && descriptor.epoch.range == RANGE_EPOCH,
                    _ => false,
                };
                if !right {
                    return Err(odd(pending, answer));
                }
                self.counts.refused += 1;
            }
            None | Some(Answer::Unknown(_)) => self.counts.unknown += 1,
            Some(Answer::Refused(refusal)) => {
                self.counts.refused += 1;
                self.counts.busy += u64::from(matches!(refusal, Refusal::Busy(_)));
                let odd = matches!(refusal, Refusal::BadCommand { .. } | Refusal::NoSuchShard { .. });
                if odd {
                    return Err(Violation::new(
                        "answer",
                        format!("a sound request was refused: {refusal:?}"),
                    ));
                }
            }
            Some(_) => {}
        }
        Ok(())
    }
}

/// Says that another shard, or another epoch, is to be asked.
fn reroutes(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::OutOfRange { .. } | Refusal::WrongEpoch { .. })
}
