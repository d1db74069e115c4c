//! Random histories whose verdict is known beforehand, to check the checker.
//!
//! [`draw`] executes a real, sequential store: each operation takes effect at a drawn moment between its call
//! and its answer, so the history is linearizable by construction. [`spoil`] then changes one answer such
//! that a short argument shows it wrong, whatever the other operations did; every argument rests on
//! values being written only once.

use crate::linearizability::Operation;
use crate::model::{Action, Value};
use crate::random::Random;
use std::collections::BTreeMap;

/// What a history is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Operations, over all keys.
    pub operations: u64,
    /// Clients, each with one operation at a time.
    pub clients: u32,
    /// Keys, each used about equally.
    pub keys: u32,
    /// Of a hundred writes, how many are never answered.
    pub unknown_percent: u64,
}

impl Shape {
    /// A drawn shape of at most so many operations and clients: every fourth has as many of both.
    ///
    /// # Panics
    /// If either bound is 0.
    pub fn draw(random: &mut Random, operations_max: u64, clients_max: u32) -> Self {
        let is_largest = random.percent(25);
        let operations = if is_largest { operations_max } else { random.between(1, operations_max) };
        let clients = if is_largest { clients_max } else { random.between(1, clients_max.into()) as u32 };
        let keys = *random.pick(&[1, 5, 20, 100]);
        Self { operations, clients, keys, unknown_percent: *random.pick(&[0, 1, 5, 20]) }
    }
}

/// How a history was made wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spoilt {
    /// A read sees what nobody wrote.
    ThinAir,
    /// A read sees what was only written after its answer.
    Future,
    /// A read sees a value whose write was followed by another one, both before its call.
    Stale,
    /// Of three reads one after the other, the third sees what the first saw and the second did not.
    BackAgain,
    /// Two conditional writes succeed on one value.
    TwoWinners,
}

impl Spoilt {
    /// Every way.
    pub const ALL: [Self; 5] = [Self::ThinAir, Self::Future, Self::Stale, Self::BackAgain, Self::TwoWinners];
}

/// A linearizable history, key by key, each in the order in which operations took effect.
pub fn draw(random: &mut Random, shape: Shape) -> BTreeMap<u32, Vec<Operation>> {
    let mut free_at = vec![0; shape.clients as usize];
    let mut planned = Vec::with_capacity(shape.operations as usize);
    for number in 0..shape.operations {
        let client = random.index(free_at.len());
        let called = free_at[client] + random.between(1, 30);
        let is_answered = !random.percent(shape.unknown_percent);
        let takes = if is_answered { 40 } else { 1_000 };
        let effect = called + random.between(0, takes);
        let answered = is_answered.then(|| effect + random.between(0, 40));
        // Who gets no answer gives up after a while and goes on.
        free_at[client] = answered.unwrap_or(called + 60) + 1;
        planned.push((
            effect,
            number,
            Operation { client: client as u32, called, answered, action: Action::Read(None) },
        ));
    }
    planned.sort_unstable_by_key(|(effect, number, _)| (*effect, *number));
    let mut keys: BTreeMap<u32, Key> = BTreeMap::new();
    for (_, number, operation) in planned {
        let key = random.below(shape.keys.into()) as u32;
        keys.entry(key).or_default().execute(random, number, operation);
    }
    keys.into_iter().map(|(key, state)| (key, state.history)).collect()
}

/// One key of the sequential store.
#[derive(Default)]
struct Key {
    value: Value,
    /// What was ever there, the newest last.
    values: Vec<Value>,
    history: Vec<Operation>,
}

impl Key {
    /// Lets a drawn operation take effect; `number` is the value if it writes one.
    fn execute(&mut self, random: &mut Random, number: u64, mut operation: Operation) {
        let is_answered = operation.answered.is_some();
        let new = (!random.percent(20)).then_some(number);
        operation.action = match random.below(10) {
            0..5 if is_answered => Action::Read(self.value),
            0..8 => Action::Write(new),
            _ => {
                let recent = self.values.len().saturating_sub(4)..self.values.len();
                let expected = if recent.is_empty() {
                    None
                } else {
                    self.values[recent.start + random.index(recent.len())]
                };
                match expected == self.value {
                    false if is_answered => Action::CasFailed { expected },
                    _ => Action::Cas { expected, new },
                }
            }
        };
        // Without an answer, it may as well never happen.
        let happens = is_answered || random.percent(50);
        let after = match operation.action {
            Action::Write(new) if happens => new,
            Action::Cas { expected, new } if happens && expected == self.value => new,
            _ => self.value,
        };
        if after != self.value {
            self.value = after;
            self.values.push(after);
        }
        self.history.push(operation);
    }
}

/// Makes a history wrong in a drawn way and at a drawn place; `None` if no answer can be made wrong.
pub fn spoil(random: &mut Random, keys: &mut BTreeMap<u32, Vec<Operation>>) -> Option<Spoilt> {
    let mut ways = Spoilt::ALL;
    random.shuffle(&mut ways);
    let mut order: Vec<u32> = keys.keys().copied().collect();
    random.shuffle(&mut order);
    for way in ways {
        for key in &order {
            let history = keys.get_mut(key)?;
            if let Some((at, action)) = wrong_answer(random, history, way) {
                history[at].action = action;
                return Some(way);
            }
        }
    }
    None
}

/// An answer that can't be right in place of the one that was given: which operation, and its new action.
fn wrong_answer(random: &mut Random, history: &[Operation], way: Spoilt) -> Option<(usize, Action)> {
    let is_read = |at: &usize| matches!(history[*at].action, Action::Read(_));
    let mut reads: Vec<usize> = (0..history.len()).filter(is_read).collect();
    random.shuffle(&mut reads);
    // The search is quadratic at the least, and a few places are as good as all.
    reads.truncate(20);
    reads.into_iter().find_map(|at| {
        let read = &history[at];
        match way {
            Spoilt::ThinAir => Some((at, Action::Read(Some(u64::MAX - 1)))),
            Spoilt::Future => future(history, read).map(|value| (at, Action::Read(Some(value)))),
            Spoilt::Stale => stale(history, read).map(|value| (at, Action::Read(Some(value)))),
            Spoilt::BackAgain => back_again(history, read).map(|value| (at, Action::Read(Some(value)))),
            Spoilt::TwoWinners => two_winners(random, history),
        }
    })
}

/// The value that an operation writes for sure, if it takes effect.
fn written(operation: &Operation) -> Value {
    match operation.action {
        Action::Write(new) | Action::Cas { new, .. } => new,
        Action::Read(_) | Action::CasFailed { .. } | Action::Append(_) => None,
    }
}

/// Whether the first was answered before the second was called.
fn precedes(first: &Operation, second: &Operation) -> bool {
    first.answered.is_some_and(|answered| answered < second.called)
}

fn future(history: &[Operation], read: &Operation) -> Option<u64> {
    let later = history.iter().filter(|later| precedes(read, later) && written(later).is_some());
    later.min_by_key(|later| later.called).and_then(written)
}

/// The last value that was surely overwritten before the read was called.
fn stale(history: &[Operation], read: &Operation) -> Option<u64> {
    let changes = |operation: &&Operation| matches!(operation.action, Action::Write(_) | Action::Cas { .. });
    let before = |than: &Operation, all: &dyn Fn(&Operation) -> bool| {
        let earlier =
            history.iter().filter(changes).filter(|earlier| precedes(earlier, than) && all(earlier));
        earlier.max_by_key(|earlier| earlier.answered).copied()
    };
    let overwriting = before(read, &|_| true)?;
    written(&before(&overwriting, &|earlier| written(earlier).is_some())?)
}

/// What a read saw before another read, itself before this one, saw something else.
fn back_again(history: &[Operation], third: &Operation) -> Option<u64> {
    let last_read_before = |than: &Operation, sees: &dyn Fn(Value) -> bool| {
        let reads = history.iter().filter_map(|read| match read.action {
            Action::Read(value) if precedes(read, than) && sees(value) => Some((read, value)),
            _ => None,
        });
        reads.max_by_key(|(read, _)| read.answered)
    };
    let (second, seen) = last_read_before(third, &|_| true)?;
    last_read_before(second, &|value| value.is_some() && value != seen)?.1
}

fn two_winners(random: &mut Random, history: &[Operation]) -> Option<(usize, Action)> {
    let wins = |(at, operation): (usize, &Operation)| match operation.action {
        Action::Cas { expected, new } if operation.answered.is_some() => Some((at, expected, new)),
        _ => None,
    };
    let winners: Vec<_> = history.iter().enumerate().filter_map(wins).collect();
    let first = winners.iter().filter_map(|(at, expected, _)| Some((*at, (*expected)?))).next()?;
    let others: Vec<_> = winners.iter().filter(|(at, _, _)| *at != first.0).collect();
    let (at, _, new) = **others.get(random.index(others.len().max(1)))?;
    Some((at, Action::Cas { expected: Some(first.1), new }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linearizability::{BUDGET, Verdict, check_keys};

    #[test]
    fn random_histories_are_judged_right() {
        let mut spoilt: BTreeMap<Spoilt, u32> = BTreeMap::new();
        for seed in 0..120 {
            let mut random = Random::new(seed);
            let shape = Shape::draw(&mut random, 2_000, 50);
            let mut keys = draw(&mut random, shape);
            let way = if seed % 2 == 0 { None } else { spoil(&mut random, &mut keys) };
            let verdict = check_keys(&keys, BUDGET);
            match (way, &verdict) {
                (None, Verdict::Linearizable) | (Some(_), Verdict::NotLinearizable { .. }) => {}
                _ => panic!("seed {seed}, {shape:?}, spoilt: {way:?}, but the verdict is {verdict:?}"),
            }
            way.into_iter().for_each(|way| *spoilt.entry(way).or_default() += 1);
        }
        assert_eq!(spoilt.len(), Spoilt::ALL.len(), "not every way was taken: {spoilt:?}");
    }
}
