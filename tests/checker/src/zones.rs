//! When did a value stand? What that says about everything else.
//!
//! A value that only one operation writes stands once, without a gap: from its write until after the last
//! operation that saw it. Of the operations that wrote or saw it, its *cluster*, let `f` be the first answer
//! and `s` the last call. If `f < s`, the value stands from `f` to `s`: the cluster's *zone* (Gibbons &
//! Korach 1997). It follows, without any search:
//! - two zones don't overlap;
//! - what can't happen while the value stands and was called within its zone, happens after it, and what was
//!   answered within it, before it: the operation's interval shrinks;
//! - a write comes before the first answer of its cluster, what saw the value after the write's call, and
//!   a conditional write that replaces it after the last call.
//!
//! An interval only ever shrinks to what the order of the cluster implies, so no order is lost. Where nothing
//! is left of one, the history is refuted. Shrinking is repeated: one zone's end moves another's.
//!
//! Gibbons & Korach decide plain reads and writes of unique values by such rules alone. With conditional writes,
//! deletions and repeated values they decide less, and the search does the rest.

use crate::linearizability::Operation;
use crate::model::{Action, Value};
use std::collections::{BTreeMap, BTreeSet};

/// How often intervals shrink at the most: each time makes the search easier, none is needed.
const ROUNDS_MAX: usize = 8;

/// What is known of a value that one operation writes.
#[derive(Clone, Copy, Debug)]
struct Cluster {
    /// When its write was called.
    written: u64,
    /// The first answer of those that wrote or saw it.
    first_answer: u64,
    /// The last call of those that wrote or saw it.
    last_call: u64,
    /// Whether a conditional write replaced it.
    is_replaced: bool,
}

/// While a value stands for certain: its first moment, its last, and the value.
type Zone = (u64, u64, u64);

/// Shrinks the intervals of a key's operations as far as the values in `repeated`, which are written more
/// than once, allow.
///
/// # Errors
/// Why there can't be any order.
pub(crate) fn narrow(operations: &mut [Operation], repeated: &BTreeSet<u64>) -> Result<(), String> {
    for _ in 0..ROUNDS_MAX {
        let clusters = clusters(operations, repeated)?;
        let zones = zones(&clusters)?;
        let mut changed = false;
        for operation in operations.iter_mut() {
            let narrower = narrowed(*operation, &clusters, &zones);
            if narrower.answered.is_some_and(|answered| answered < narrower.called) {
                return Err(format!("no moment is left for {operation}"));
            }
            changed |= narrower != *operation;
            *operation = narrower;
        }
        if !changed {
            break;
        }
    }
    Ok(())
}

/// The value that an operation saw, if it surely took effect.
fn seen(operation: &Operation) -> Value {
    match operation.action {
        Action::Read(seen) | Action::Cas { expected: seen, .. } => {
            seen.filter(|_| operation.answered.is_some())
        }
        Action::Write(_) | Action::CasFailed { .. } | Action::Append(_) => None,
    }
}

/// The value that an operation writes.
fn written(operation: &Operation) -> Value {
    match operation.action {
        Action::Write(new) | Action::Cas { new, .. } => new,
        Action::Read(_) | Action::CasFailed { .. } | Action::Append(_) => None,
    }
}

fn clusters(operations: &[Operation], repeated: &BTreeSet<u64>) -> Result<BTreeMap<u64, Cluster>, String> {
    let mut clusters = BTreeMap::new();
    for operation in operations {
        if let Some(value) = written(operation).filter(|value| !repeated.contains(value)) {
            let (written, first_answer) = (operation.called, operation.answered.unwrap_or(u64::MAX));
            clusters.insert(value, Cluster { written, first_answer, last_call: written, is_replaced: false });
        }
    }
    for operation in operations {
        let Some(value) = seen(operation).filter(|value| !repeated.contains(value)) else { continue };
        let Some(cluster) = clusters.get_mut(&value) else {
            return Err(format!("nobody wrote what was seen by {operation}"));
        };
        cluster.first_answer = cluster.first_answer.min(operation.answered.unwrap_or(u64::MAX));
        cluster.last_call = cluster.last_call.max(operation.called);
        let replaces = matches!(operation.action, Action::Cas { .. });
        if replaces && std::mem::replace(&mut cluster.is_replaced, true) {
            return Err(format!("value {value} had been replaced when it was by {operation}"));
        }
    }
    Ok(clusters)
}

/// The zones in order of time.
fn zones(clusters: &BTreeMap<u64, Cluster>) -> Result<Vec<Zone>, String> {
    let zone = |(value, cluster): (&u64, &Cluster)| (cluster.first_answer, cluster.last_call, *value);
    let mut zones: Vec<Zone> = clusters.iter().map(zone).filter(|(from, to, _)| from < to).collect();
    zones.sort_unstable();
    for pair in zones.windows(2) {
        let [(from, to, value), (other_from, other_to, other)] = [pair[0], pair[1]];
        if other_from < to {
            return Err(format!(
                "value {value} stands from {from} to {to}, and value {other} from {other_from} to {other_to}"
            ));
        }
    }
    Ok(zones)
}

/// The operation with an interval as short as its value's cluster and the zones of others make it.
fn narrowed(mut operation: Operation, clusters: &BTreeMap<u64, Cluster>, zones: &[Zone]) -> Operation {
    if let Some(cluster) = written(&operation).and_then(|value| clusters.get(&value)) {
        let bound = Some(cluster.first_answer).filter(|first| *first < u64::MAX);
        operation.answered = operation.answered.into_iter().chain(bound).min();
    }
    match operation.action {
        Action::Read(Some(value)) => {
            if let Some(cluster) = clusters.get(&value) {
                operation.called = operation.called.max(cluster.written);
            }
        }
        Action::Cas { expected: Some(value), .. } => {
            if let Some(cluster) = clusters.get(&value) {
                operation.called = operation.called.max(cluster.last_call);
            }
        }
        _ => {}
    }
    if let Some((_, to, _)) = zone_around(operation.called, &operation, zones) {
        operation.called = to;
    }
    if let Some(answered) = operation.answered
        && let Some((from, _, _)) = zone_around(answered, &operation, zones)
    {
        operation.answered = Some(from);
    }
    operation
}

/// The zone that a moment lies inside of, if the operation can't happen in it.
fn zone_around(moment: u64, operation: &Operation, zones: &[Zone]) -> Option<Zone> {
    let after = zones.partition_point(|(from, _, _)| *from < moment);
    let zone = *zones.get(after.checked_sub(1)?)?;
    let stands = Some(zone.2);
    let is_foreign = match operation.action {
        Action::Read(value) | Action::Write(value) => value != stands,
        Action::Cas { expected, new } => expected != stands && new != stands,
        Action::CasFailed { expected } => expected == stands,
        Action::Append(_) => false,
    };
    (moment < zone.1 && is_foreign).then_some(zone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Action::{Cas, Read, Write};

    fn op(called: u64, answered: u64, action: Action) -> Operation {
        Operation { client: 1, called, answered: (answered > 0).then_some(answered), action }
    }

    fn refuted(operations: &[Operation]) -> String {
        narrow(&mut operations.to_vec(), &BTreeSet::new()).expect_err("there is no order")
    }

    #[test]
    fn what_no_order_explains_is_refuted_without_a_search() {
        let write = |called, answered, value| op(called, answered, Write(Some(value)));
        let read = |called, answered, value| op(called, answered, Read(Some(value)));
        assert!(refuted(&[read(1, 2, 7)]).starts_with("nobody wrote"));
        assert!(refuted(&[read(1, 2, 7), write(3, 4, 7)]).starts_with("no moment"), "from the future");
        assert!(refuted(&[write(1, 2, 7), write(3, 4, 8), read(5, 6, 7)]).starts_with("no moment"), "stale");
        let deleted = op(3, 4, Write(None));
        assert!(refuted(&[write(1, 2, 7), deleted, read(5, 6, 7)]).starts_with("no moment"), "deleted");
        let both = [write(1, 9, 7), write(1, 9, 8)];
        let back = [read(10, 11, 7), read(12, 13, 8), read(14, 15, 7)];
        assert!(refuted(&[&both[..], &back].concat()).contains(" stands from "), "back again");
        let crossed = [read(2, 3, 7), read(4, 5, 8), read(6, 7, 7), read(8, 9, 8)];
        assert!(refuted(&[&both[..], &crossed].concat()).contains(" stands from "), "to and fro");
        let cas = |new| op(3, 9, Cas { expected: Some(7), new: Some(new) });
        assert!(refuted(&[write(1, 2, 7), cas(8), cas(9)]).contains("had been replaced"), "two winners");
    }

    #[test]
    fn intervals_shrink_to_what_zones_leave() {
        let mut operations = [
            op(1, 30, Write(Some(7))),
            op(2, 5, Read(Some(7))),
            op(20, 25, Read(Some(7))),
            op(6, 40, Write(Some(8))),
            op(1, 10, Read(None)),
        ];
        narrow(&mut operations, &BTreeSet::new()).expect("there is an order");
        assert_eq!(operations[0].answered, Some(5), "it comes before what saw it");
        assert_eq!(operations[3].called, 20, "it would overwrite what is seen later");
        assert_eq!(operations[4].answered, Some(5), "it saw that nothing was there yet");
    }

    #[test]
    fn repeated_values_say_nothing() {
        let mut operations = [op(1, 2, Write(Some(7))), op(3, 4, Write(Some(8))), op(5, 6, Read(Some(7)))];
        let before = operations;
        narrow(&mut operations, &BTreeSet::from([7, 8])).expect("7 may have been written again");
        assert_eq!(operations, before);
    }
}
