//! Is a history of reads, writes and conditional writes of *one key* linearizable?
//!
//! The algorithm is Wing & Gong's (1993) with Lowe's memoisation (2017): depth first over the orders in
//! which the operations may have taken effect, remembering every configuration (set of operations that
//! took effect, resulting value) that was seen. Linearizability is local (Herlihy & Wing 1990), so a
//! history of many keys is checked key by key ([`check_keys`]).
//!
//! An operation without an answer may take effect at any time after its call, or never. Five
//! reductions keep such histories tractable; each is exact, none guesses:
//! - a value that somebody who hasn't taken effect yet must see is not overwritten: it never comes back;
//! - an operation that changes nothing and fits is taken at once, without an alternative;
//! - a write comes before the first answer that saw its value, and what saw it comes after its call:
//!   that narrows intervals, and gives an unanswered write whose value was seen a bound, so that it
//!   becomes an ordinary operation;
//! - values that nobody ever saw or expected are all alike, and so are unanswered operations that
//!   differ only in such a value: of these the earliest called is used first;
//! - unanswered operations are tried last.
//!
//! The search is bounded by a budget of steps. Out of budget is [`Verdict::Unknown`], which is *not* a pass.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A value that was written, by a number that no other write of the key uses. Absence is `None`.
pub type Value = Option<u64>;

/// What an operation asked and, as far as it was answered, what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answered with this value. (Unanswered reads tell nothing and don't belong in a history.)
    Read(Value),
    /// Sets the value whatever it was; `None` deletes.
    Write(Value),
    /// Sets the value to `new` if it is `expected`.
    Cas {
        /// The value that must be there.
        expected: Value,
        /// The value that takes its place.
        new: Value,
    },
    /// A conditional write that was answered with "it isn't `expected`".
    CasFailed {
        /// The value that wasn't there.
        expected: Value,
    },
}

/// One operation of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Who called, for evidence only.
    pub client: u32,
    /// When it was called.
    pub called: u64,
    /// When it was answered; `None` = the outcome isn't known.
    pub answered: Option<u64>,
    /// What.
    pub action: Action,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, called, answered, action } = self;
        match answered {
            Some(answered) => write!(f, "client {client} [{called}..{answered}] {action:?}"),
            None => write!(f, "client {client} [{called}..?] {action:?}"),
        }
    }
}

/// What the checker found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains every answer.
    Linearizable,
    /// There is none.
    NotLinearizable {
        /// The operations around the point beyond which no order goes.
        evidence: String,
    },
    /// The budget ran out before an answer was found.
    Unknown,
}

/// Steps after which [`check`] gives up; a step is one operation tried.
pub const BUDGET: u64 = 2_000_000;

/// Checks the histories of independent keys; the first that isn't linearizable decides, then the first
/// that isn't known.
pub fn check_keys<K: fmt::Debug>(keys: &BTreeMap<K, Vec<Operation>>, budget: u64) -> Verdict {
    let mut verdict = Verdict::Linearizable;
    for (key, operations) in keys {
        match check(operations, budget) {
            Verdict::Linearizable => {}
            Verdict::Unknown => verdict = Verdict::Unknown,
            Verdict::NotLinearizable { evidence } => {
                return Verdict::NotLinearizable { evidence: format!("key {key:?}: {evidence}") };
            }
        }
    }
    verdict
}

/// Checks the history of one key, which is absent at the start.
pub fn check(operations: &[Operation], budget: u64) -> Verdict {
    let prepared = prepare(operations);
    Search::new(&prepared, budget).run()
}

/// The value of every write that nobody saw or expected.
const UNSEEN: Value = Some(u64::MAX);

/// Operations in order of their calls, unanswered ones apart.
#[derive(Debug)]
struct Prepared {
    answered: Vec<Operation>,
    /// Groups of unanswered operations that are all alike, each in order of calls.
    unanswered: Vec<Vec<Operation>>,
}

fn prepare(operations: &[Operation]) -> Prepared {
    let mut first_seen: BTreeMap<u64, u64> = BTreeMap::new();
    let mut expected = BTreeSet::new();
    for operation in operations {
        let Operation { answered, action, .. } = *operation;
        let saw = match action {
            Action::Read(value) => value,
            Action::Cas { expected: value, .. } => {
                expected.extend(value);
                value.filter(|_| answered.is_some())
            }
            Action::CasFailed { expected: value } => {
                expected.extend(value);
                None
            }
            Action::Write(_) => None,
        };
        if let (Some(value), Some(answered)) = (saw, answered) {
            let first = first_seen.entry(value).or_insert(answered);
            *first = answered.min(*first);
        }
    }
    let canonical = |value: Value| match value {
        Some(number) if !first_seen.contains_key(&number) && !expected.contains(&number) => UNSEEN,
        other => other,
    };
    let called_at: BTreeMap<Value, u64> = operations.iter().filter_map(written_at).collect();
    let mut prepared = Prepared { answered: Vec::new(), unanswered: Vec::new() };
    let mut groups: BTreeMap<(u8, Value, Value), Vec<Operation>> = BTreeMap::new();
    for operation in operations {
        let mut operation = *operation;
        if let Action::Read(seen @ Some(_)) | Action::Cas { expected: seen @ Some(_), .. } = operation.action
        {
            let written = called_at.get(&seen).copied().unwrap_or(0);
            if operation.answered.is_none_or(|answered| written <= answered) {
                operation.called = operation.called.max(written);
            }
        }
        let new = match &mut operation.action {
            Action::Write(new) | Action::Cas { new, .. } => Some(new),
            Action::Read(_) | Action::CasFailed { .. } => None,
        };
        if let Some(new) = new {
            let bound = new.and_then(|value| first_seen.get(&value));
            operation.answered = operation.answered.into_iter().chain(bound.copied()).min();
            *new = canonical(*new);
        }
        match (operation.answered, operation.action) {
            (Some(_), _) => prepared.answered.push(operation),
            (None, Action::Write(new)) => groups.entry((0, new, None)).or_default().push(operation),
            (None, Action::Cas { expected, new }) => {
                groups.entry((1, new, expected)).or_default().push(operation);
            }
            (None, Action::Read(_) | Action::CasFailed { .. }) => {}
        }
    }
    prepared.answered.sort_by_key(|operation| operation.called);
    prepared.unanswered = groups.into_values().collect();
    prepared.unanswered.iter_mut().for_each(|group| group.sort_by_key(|operation| operation.called));
    prepared
}

/// The value that an answered operation must see, if it isn't absence.
fn seen_by(action: Action) -> Option<u64> {
    match action {
        Action::Read(seen) | Action::Cas { expected: seen, .. } => seen,
        Action::Write(_) | Action::CasFailed { .. } => None,
    }
}

/// The value that an operation writes, if it isn't absence, and when it was called.
fn written_at(operation: &Operation) -> Option<(Value, u64)> {
    match operation.action {
        Action::Write(new @ Some(_)) | Action::Cas { new: new @ Some(_), .. } => {
            Some((new, operation.called))
        }
        _ => None,
    }
}

/// The value after `action`, and whether it changes anything; `None` if it doesn't fit.
fn step(value: Value, action: Action) -> Option<(Value, bool)> {
    match action {
        Action::Read(read) => (read == value).then_some((value, false)),
        Action::Write(new) => Some((new, true)),
        Action::Cas { expected, new } => (expected == value).then_some((new, true)),
        Action::CasFailed { expected } => (expected != value).then_some((value, false)),
    }
}

/// One end of an answered operation, in a doubly linked list in order of time.
#[derive(Clone, Copy, Debug)]
struct End {
    operation: usize,
    /// The other end if this is the call; `None` if this is the answer.
    answer: Option<usize>,
    before: usize,
    after: usize,
}

/// What the search may take next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Candidate {
    /// The answered operation whose call is this end of the list, or what follows it.
    End(usize),
    /// The next unanswered operation of this group.
    Group(usize),
}

/// One operation that was taken.
#[derive(Clone, Copy, Debug)]
struct Taken {
    candidate: Candidate,
    value_before: Value,
    /// Whether there can be an alternative to it.
    changes: bool,
}

/// Which operations took effect, and the value they left: answered ones as words of bits above a prefix
/// of full words, then one counter per group of unanswered ones.
type Configuration = (usize, Vec<u64>, Value);

struct Search<'a> {
    history: &'a Prepared,
    ends: Vec<End>,
    bits: Vec<u64>,
    full_words: usize,
    used: Vec<usize>,
    value: Value,
    taken: Vec<Taken>,
    answered_left: usize,
    /// For each value, how many operations that haven't taken effect must see it.
    wanted: BTreeMap<u64, usize>,
    seen: BTreeSet<Configuration>,
    budget: u64,
    /// The least number of answered operations that were ever left, and the answer that blocked there.
    best: (usize, usize),
}

/// Index of the list's head.
const HEAD: usize = 0;
/// After the last end.
const NONE: usize = usize::MAX;

impl<'a> Search<'a> {
    fn new(history: &'a Prepared, budget: u64) -> Self {
        let count = history.answered.len();
        // At equal times calls come first: the operations then overlap, which forbids less.
        let mut order: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * count);
        for (number, operation) in history.answered.iter().enumerate() {
            let answered = operation.answered.unwrap_or(u64::MAX).max(operation.called);
            order.push((operation.called, false, number));
            order.push((answered, true, number));
        }
        order.sort_unstable();
        let mut ends = vec![End { operation: NONE, answer: None, before: NONE, after: NONE }];
        let mut call_of = vec![NONE; count];
        for (_, is_answer, operation) in order {
            let here = ends.len();
            if is_answer {
                ends[call_of[operation]].answer = Some(here);
            } else {
                call_of[operation] = here;
            }
            ends[here - 1].after = here;
            ends.push(End { operation, answer: None, before: here - 1, after: NONE });
        }
        let mut wanted = BTreeMap::new();
        for value in history.answered.iter().filter_map(|operation| seen_by(operation.action)) {
            *wanted.entry(value).or_default() += 1;
        }
        Self {
            history,
            ends,
            wanted,
            bits: vec![0; count.div_ceil(64)],
            full_words: 0,
            used: vec![0; history.unanswered.len()],
            value: None,
            taken: Vec::new(),
            answered_left: count,
            seen: BTreeSet::new(),
            budget,
            best: (usize::MAX, NONE),
        }
    }

    fn run(mut self) -> Verdict {
        let mut next = Candidate::End(self.ends[HEAD].after);
        while self.answered_left > 0 {
            if self.budget == 0 {
                return Verdict::Unknown;
            }
            self.budget -= 1;
            next = match next {
                Candidate::End(end) => self.try_end(end),
                Candidate::Group(group) if group < self.used.len() => self.try_group(group),
                Candidate::Group(_) => match self.give_back() {
                    Some(alternative) => alternative,
                    None => return Verdict::NotLinearizable { evidence: self.evidence() },
                },
            };
        }
        Verdict::Linearizable
    }

    /// The first operation that may come next, fits and changes nothing; else the first of all.
    fn next(&self) -> Candidate {
        let first = self.ends[HEAD].after;
        let mut end = first;
        while end != NONE && self.ends[end].answer.is_some() {
            let action = self.history.answered[self.ends[end].operation].action;
            if step(self.value, action).is_some_and(|(_, changes)| !changes) {
                return Candidate::End(end);
            }
            end = self.ends[end].after;
        }
        Candidate::End(first)
    }

    /// Tries the operation called at `end`; an answer there ends the operations that may come next.
    fn try_end(&mut self, end: usize) -> Candidate {
        let End { operation, answer, after, .. } = self.ends[end];
        let Some(answer) = answer else {
            if self.answered_left < self.best.0 {
                self.best = (self.answered_left, operation);
            }
            return Candidate::Group(0);
        };
        let Some((value, changes)) = step(self.value, self.history.answered[operation].action) else {
            return Candidate::End(after);
        };
        let sees = usize::from(changes && seen_by(self.history.answered[operation].action).is_some());
        if changes && self.is_wanted(sees) {
            return Candidate::End(after);
        }
        self.flip(operation);
        if changes && !self.seen.insert(self.configuration(value)) {
            self.flip(operation);
            return Candidate::End(after);
        }
        self.taken.push(Taken { candidate: Candidate::End(end), value_before: self.value, changes });
        self.value = value;
        self.unlink(end);
        self.unlink(answer);
        self.count_wanted(operation, true);
        self.answered_left -= 1;
        self.next()
    }

    /// Tries the next unanswered operation of a group.
    fn try_group(&mut self, group: usize) -> Candidate {
        let operations = &self.history.unanswered[group];
        let Some(operation) = operations.get(self.used[group]) else {
            return Candidate::Group(group + 1);
        };
        let stepped = step(self.value, operation.action).filter(|(value, _)| *value != self.value);
        let may_come = operation.called <= self.first_answer() && !self.is_wanted(0);
        let Some((value, _)) = stepped.filter(|_| may_come) else {
            return Candidate::Group(group + 1);
        };
        self.used[group] += 1;
        if !self.seen.insert(self.configuration(value)) {
            self.used[group] -= 1;
            return Candidate::Group(group + 1);
        }
        let candidate = Candidate::Group(group);
        self.taken.push(Taken { candidate, value_before: self.value, changes: true });
        self.value = value;
        self.next()
    }

    /// Takes back the last operation that had alternatives; where to go on from.
    fn give_back(&mut self) -> Option<Candidate> {
        loop {
            let Taken { candidate, value_before, changes } = self.taken.pop()?;
            self.value = value_before;
            let alternative = match candidate {
                Candidate::End(end) => {
                    let End { operation, answer, after, .. } = self.ends[end];
                    self.link(answer.expect("what was taken is a call"));
                    self.link(end);
                    self.flip(operation);
                    self.count_wanted(operation, false);
                    self.answered_left += 1;
                    Candidate::End(after)
                }
                Candidate::Group(group) => {
                    self.used[group] -= 1;
                    Candidate::Group(group + 1)
                }
            };
            if changes {
                return Some(alternative);
            }
        }
    }

    /// Whether more than `by` operations must still see the present value.
    fn is_wanted(&self, by: usize) -> bool {
        self.value.and_then(|value| self.wanted.get(&value)).is_some_and(|wanted| *wanted > by)
    }

    /// Counts an operation that takes effect, or gives it back, among those that must see a value.
    fn count_wanted(&mut self, operation: usize, takes_effect: bool) {
        let value = seen_by(self.history.answered[operation].action);
        if let Some(wanted) = value.and_then(|value| self.wanted.get_mut(&value)) {
            *wanted = if takes_effect { *wanted - 1 } else { *wanted + 1 };
        }
    }

    /// When the first answer comes of those operations that haven't taken effect.
    fn first_answer(&self) -> u64 {
        let mut end = self.ends[HEAD].after;
        while self.ends[end].answer.is_some() {
            end = self.ends[end].after;
        }
        self.history.answered[self.ends[end].operation].answered.unwrap_or(u64::MAX)
    }

    fn unlink(&mut self, end: usize) {
        let End { before, after, .. } = self.ends[end];
        self.ends[before].after = after;
        if after != NONE {
            self.ends[after].before = before;
        }
    }

    fn link(&mut self, end: usize) {
        let End { before, after, .. } = self.ends[end];
        self.ends[before].after = end;
        if after != NONE {
            self.ends[after].before = end;
        }
    }

    fn flip(&mut self, operation: usize) {
        self.bits[operation / 64] ^= 1 << (operation % 64);
        self.full_words = self.full_words.min(operation / 64);
        while self.bits.get(self.full_words) == Some(&u64::MAX) {
            self.full_words += 1;
        }
    }

    fn configuration(&self, value: Value) -> Configuration {
        let above = &self.bits[self.full_words..];
        let length = above.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        let mut words = above[..length].to_vec();
        words.extend(self.used.iter().map(|used| *used as u64));
        (self.full_words, words, value)
    }

    fn evidence(&self) -> String {
        let (left, blocked) = self.best;
        let blocked = &self.history.answered[blocked];
        let (from, to) = (blocked.called, blocked.answered.unwrap_or(u64::MAX));
        let near = self.history.answered.iter().chain(self.history.unanswered.iter().flatten());
        let overlapping = near.filter(|operation| {
            operation.called <= to && operation.answered.is_none_or(|answered| answered >= from)
        });
        let before = self
            .history
            .answered
            .iter()
            .filter(|operation| operation.answered.is_some_and(|answered| answered < from));
        let mut before: Vec<_> = before.collect();
        before.sort_by_key(|operation| operation.answered);
        let mut text = format!("no order explains {blocked}; {left} operations left");
        for operation in before.iter().rev().take(8).rev() {
            text.push_str(&format!("\n  before: {operation}"));
        }
        for operation in overlapping.take(24) {
            text.push_str(&format!("\n  overlapping: {operation}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use Action::{Cas, CasFailed, Read, Write};

    fn op(client: u32, called: u64, answered: u64, action: Action) -> Operation {
        let answered = (answered > 0).then_some(answered);
        Operation { client, called, answered, action }
    }

    fn verdict_of(operations: &[Operation]) -> bool {
        match check(operations, BUDGET) {
            Verdict::Linearizable => true,
            Verdict::NotLinearizable { .. } => false,
            Verdict::Unknown => panic!("out of budget"),
        }
    }

    #[test]
    fn a_read_overlapping_a_write_may_see_either_value() {
        for seen in [None, Some(1)] {
            assert!(verdict_of(&[op(1, 1, 5, Write(Some(1))), op(2, 2, 3, Read(seen))]));
        }
        assert!(!verdict_of(&[op(1, 1, 5, Write(Some(1))), op(2, 6, 7, Read(None))]), "a stale read");
        assert!(!verdict_of(&[op(1, 4, 5, Write(Some(1))), op(2, 1, 3, Read(Some(1)))]), "from the future");
        assert!(!verdict_of(&[op(2, 1, 3, Read(Some(1)))]), "out of thin air");
    }

    #[test]
    fn new_then_old_is_refused() {
        let write = op(1, 1, 20, Write(Some(1)));
        assert!(!verdict_of(&[write, op(2, 2, 3, Read(Some(1))), op(3, 4, 5, Read(None))]));
        assert!(verdict_of(&[write, op(2, 2, 4, Read(Some(1))), op(3, 4, 5, Read(None))]), "they overlap");
    }

    #[test]
    fn two_writers_fix_one_order_for_all_readers() {
        let writes = [op(1, 1, 10, Write(Some(1))), op(2, 1, 10, Write(Some(2)))];
        let reads = |a, b| [op(3, 11, 12, Read(Some(a))), op(4, 13, 14, Read(Some(b)))];
        let both = |a, b| [writes, reads(a, b)].concat();
        assert!(verdict_of(&both(1, 1)) && verdict_of(&both(2, 2)));
        assert!(!verdict_of(&both(1, 2)) && !verdict_of(&both(2, 1)));
    }

    #[test]
    fn only_one_of_two_conditional_writes_wins() {
        let cas = |client, new| op(client, 3, 9, Cas { expected: Some(1), new: Some(new) });
        let first = op(1, 1, 2, Write(Some(1)));
        assert!(!verdict_of(&[first, cas(2, 2), cas(3, 3)]));
        assert!(verdict_of(&[first, cas(2, 2), op(3, 3, 9, CasFailed { expected: Some(1) })]));
        assert!(!verdict_of(&[first, op(3, 3, 9, CasFailed { expected: Some(1) })]));
        let late = op(3, 3, 4, CasFailed { expected: Some(1) });
        assert!(!verdict_of(&[first, op(2, 5, 9, Cas { expected: Some(1), new: Some(2) }), late]));
    }

    #[test]
    fn an_unknown_write_may_take_effect_later_or_never_but_not_twice() {
        let first = op(1, 1, 2, Write(Some(1)));
        let unknown = op(2, 3, 0, Write(Some(2)));
        let read = |at, value| op(3, at, at + 1, Read(Some(value)));
        assert!(verdict_of(&[first, unknown, read(10, 1), read(20, 1)]));
        assert!(verdict_of(&[first, unknown, read(10, 1), read(20, 2)]));
        assert!(!verdict_of(&[first, unknown, read(10, 2), read(20, 1)]));
        let third = op(4, 12, 13, Write(Some(3)));
        assert!(!verdict_of(&[first, unknown, read(10, 2), third, read(20, 2)]));
        assert!(verdict_of(&[first, unknown, read(10, 1), third, read(20, 2)]));
        assert!(!verdict_of(&[first, read(2, 2), op(2, 5, 0, Write(Some(2)))]), "before its call");
    }

    #[test]
    fn an_unseen_unknown_write_explains_a_failed_condition() {
        let first = op(1, 1, 2, Write(Some(1)));
        let failed = op(3, 10, 11, CasFailed { expected: Some(1) });
        let unknown = |client, called| op(client, called, 0, Write(Some(u64::from(client))));
        assert!(verdict_of(&[first, unknown(8, 3), failed]));
        assert!(!verdict_of(&[first, unknown(8, 12), failed]), "called too late");
        let delete = op(5, 3, 0, Write(None));
        assert!(verdict_of(&[first, delete, failed]));
        let again = op(3, 12, 13, Read(Some(1)));
        assert!(!verdict_of(&[first, delete, failed, again]), "nothing brings the value back");
        let unknown_cas = op(6, 3, 0, Cas { expected: Some(1), new: Some(9) });
        assert!(verdict_of(&[first, unknown_cas, failed]));
    }

    /// Executes a sequential register at drawn points inside of drawn intervals: linearizable by
    /// construction.
    fn generate(random: &mut Random, count: u64, clients: u32, unknown_percent: u64) -> Vec<Operation> {
        let mut free_at = vec![0; clients as usize];
        let mut planned = Vec::new();
        for number in 0..count {
            let client = random.index(free_at.len());
            let called = free_at[client] + random.between(1, 30);
            let effect = called + random.between(0, 40);
            let answered = effect + random.between(0, 40);
            free_at[client] = answered + 1;
            planned.push((effect, number, client as u32, called, answered));
        }
        planned.sort_unstable();
        let mut value = None;
        let mut history = Vec::new();
        for (_, number, client, called, answered) in planned {
            let unknown = random.percent(unknown_percent);
            let happens = !unknown || random.percent(50);
            let set = |value: &mut Value, new| {
                if happens {
                    *value = new
                }
            };
            let action = match random.below(10) {
                0..5 => Read(value),
                5..8 => {
                    set(&mut value, Some(number));
                    Write(Some(number))
                }
                8 => {
                    set(&mut value, None);
                    Write(None)
                }
                _ if random.percent(50) => {
                    let expected = value;
                    set(&mut value, Some(number));
                    Cas { expected, new: Some(number) }
                }
                _ => CasFailed { expected: Some(count + number) },
            };
            let is_read = matches!(action, Read(_) | CasFailed { .. });
            history.push(op(client, called, if unknown && !is_read { 0 } else { answered }, action));
        }
        history
    }

    #[test]
    fn random_histories_of_a_register_pass() {
        for seed in 0..300 {
            let mut random = Random::new(seed);
            let (clients, unknown) = (random.between(1, 12) as u32, random.below(20));
            let history = generate(&mut random, 120, clients, unknown);
            let verdict = check(&history, BUDGET);
            assert_eq!(verdict, Verdict::Linearizable, "seed {seed}: {history:#?}");
        }
    }

    #[test]
    fn spoiled_random_histories_are_refused() {
        let mut refused = 0;
        for seed in 0..300 {
            let mut random = Random::new(seed);
            let mut history = generate(&mut random, 120, 4, 5);
            let reads: Vec<usize> =
                (60..history.len()).filter(|&i| matches!(history[i].action, Read(_))).collect();
            let spoiled = *random.pick(&reads);
            // A value that was overwritten long ago, by an answered write, before this read's call.
            let called = history[spoiled].called;
            let old = history[..20].iter().find_map(|old| match old.action {
                Write(Some(value)) if old.answered.is_some() => Some(value),
                _ => None,
            });
            let Some(old) = old else { continue };
            let gone = history[20..60].iter().any(|later| {
                matches!(later.action, Write(Some(_)))
                    && later.answered.is_some_and(|answered| answered < called)
                    && later.called > 300
            });
            if !gone {
                continue;
            }
            history[spoiled].action = Read(Some(old));
            refused += u32::from(!verdict_of(&history));
        }
        assert!(refused > 150, "only {refused} spoiled histories were refused");
    }

    /// Tries every order: slow and obviously right.
    fn brute_force(left: &[Operation], value: Value) -> bool {
        let Some(first_answer) = left.iter().filter_map(|o| o.answered).min() else { return true };
        left.iter().enumerate().any(|(i, operation)| {
            let rest = [&left[..i], &left[i + 1..]].concat();
            operation.called <= first_answer
                && step(value, operation.action).is_some_and(|(value, _)| brute_force(&rest, value))
        })
    }

    #[test]
    fn small_arbitrary_histories_agree_with_brute_force() {
        let (mut yes, mut no) = (0, 0);
        for seed in 0..4000 {
            let mut random = Random::new(seed);
            let mut history = Vec::new();
            for number in 0..random.between(2, 6) {
                let called = random.below(12);
                let unknown = random.percent(30);
                let some = |random: &mut Random| random.percent(80).then(|| random.below(5));
                let action = match random.below(if unknown { 3 } else { 6 }) {
                    0 => Write(Some(number)),
                    1 => Cas { expected: some(&mut random), new: Some(number) },
                    2 => Write(None),
                    3 => CasFailed { expected: some(&mut random) },
                    _ => Read(some(&mut random)),
                };
                let answered = if unknown { 0 } else { called + random.between(1, 8) };
                history.push(op(number as u32, called, answered, action));
            }
            let expected = brute_force(&history, None);
            assert_eq!(verdict_of(&history), expected, "seed {seed}: {history:#?}");
            *(if expected { &mut yes } else { &mut no }) += 1;
        }
        assert!(yes > 500 && no > 500, "one-sided: {yes} {no}");
    }

    #[test]
    fn ten_thousand_operations_of_fifty_clients_take_seconds() {
        let mut random = Random::new(3);
        let keys: BTreeMap<u32, Vec<Operation>> =
            (0..20).map(|key| (key, generate(&mut random, 500, 50, 2))).collect();
        assert_eq!(check_keys(&keys, BUDGET), Verdict::Linearizable);
    }
}
