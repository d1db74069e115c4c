//! Is a history of reads, writes and conditional writes of *one key* linearizable?
//!
//! The algorithm is Wing & Gong's (1993) with Lowe's memoisation (2017): depth first over the orders in
//! which the operations may have taken effect, remembering every configuration (set of operations that
//! took effect, resulting value) that was seen. Linearizability is local (Herlihy & Wing 1990), so a
//! history of many keys is checked key by key ([`check_keys`]).
//!
//! An operation without an answer may take effect at any time after its call, or never. Five
//! reductions keep such histories tractable; each is exact, none guesses:
//! - a value that only one operation writes and that somebody who hasn't taken effect yet must see is not
//!   overwritten: it never comes back;
//! - an operation that changes nothing and fits is taken at once, without an alternative;
//! - a write comes before the first answer that saw its value if no other writes it, and what saw it
//!   comes after its call: that narrows intervals, and gives an unanswered write whose value was seen a bound, so that it
//!   becomes an ordinary operation;
//! - values that nobody ever saw or expected are all alike, and so are unanswered operations that
//!   differ only in such a value: of these the earliest called is used first;
//! - unanswered operations are tried last.
//!
//! The search is bounded by a budget of steps. Out of budget is [`Verdict::Unknown`], which is *not* a pass.

pub use crate::checker::model::{Action, Value};

use crate::checker::model::{Texts, UNSEEN, step};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

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

/// Checks the history of one key, which is absent at the start. Its values are mere numbers: no appends.
pub fn check(operations: &[Operation], budget: u64) -> Verdict {
    check_texts(operations, Texts::default(), budget, &mut |_| false)
}

/// Like [`check`], of values that may be appended to. Whenever `budget` steps were made, `goes_on` is asked,
/// with the number of words that the search remembers, whether to make as many again.
pub fn check_texts(
    operations: &[Operation],
    mut texts: Texts,
    budget: u64,
    goes_on: &mut dyn FnMut(usize) -> bool,
) -> Verdict {
    let prepared = prepare(operations, &mut texts);
    let mut search = Search::new(&prepared, texts, budget);
    loop {
        match search.run() {
            Verdict::Unknown if goes_on(search.remembered) => search.budget = budget,
            verdict => return verdict,
        }
    }
}

/// Operations in order of their calls, unanswered ones apart.
#[derive(Debug)]
struct Prepared {
    answered: Vec<Operation>,
    /// Groups of unanswered operations that are all alike, each in order of calls.
    unanswered: Vec<Vec<Operation>>,
    /// Values that may have been written more than once.
    repeated: Repeated,
}

/// Which values can come back after they were overwritten.
#[derive(Debug, Default)]
struct Repeated {
    /// Any: with appends, one text can be put together in many ways.
    all: bool,
    values: BTreeSet<u64>,
}

impl Repeated {
    fn of(operations: &[Operation]) -> Self {
        let mut written = BTreeSet::new();
        let mut repeated = Self::default();
        for operation in operations {
            repeated.all |= matches!(operation.action, Action::Append(_));
            if let Some((Some(value), _)) = written_at(operation)
                && !written.insert(value)
            {
                repeated.values.insert(value);
            }
        }
        repeated
    }

    fn contains(&self, value: u64) -> bool {
        self.all || self.values.contains(&value)
    }
}

/// What somebody saw, with the first answer that says so, and what somebody expected.
fn observations(operations: &[Operation]) -> (BTreeMap<u64, u64>, BTreeSet<u64>) {
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
            Action::Write(_) | Action::Append(_) => None,
        };
        if let (Some(value), Some(answered)) = (saw, answered) {
            let first = first_seen.entry(value).or_insert(answered);
            *first = answered.min(*first);
        }
    }
    (first_seen, expected)
}

fn prepare(operations: &[Operation], texts: &mut Texts) -> Prepared {
    let (first_seen, expected) = observations(operations);
    let repeated = Repeated::of(operations);
    if repeated.all {
        first_seen.keys().chain(&expected).for_each(|number| texts.observe(Some(*number)));
    }
    let is_observed = |number: u64| match repeated.all {
        true => texts.leads_to_observed(number),
        false => first_seen.contains_key(&number) || expected.contains(&number),
    };
    let canonical = |value: Value| if value.is_none_or(is_observed) { value } else { UNSEEN };
    let called_at: BTreeMap<Value, u64> = operations.iter().filter_map(written_at).collect();
    let once = |value: Value| value.filter(|number| !repeated.contains(*number));
    let mut prepared =
        Prepared { answered: Vec::new(), unanswered: Vec::new(), repeated: Repeated::default() };
    let mut groups: BTreeMap<(u8, Value, Value), Vec<Operation>> = BTreeMap::new();
    for operation in operations {
        let mut operation = *operation;
        if let Action::Read(seen) | Action::Cas { expected: seen, .. } = operation.action
            && let seen @ Some(_) = once(seen)
        {
            let written = called_at.get(&seen).copied().unwrap_or(0);
            if operation.answered.is_none_or(|answered| written <= answered) {
                operation.called = operation.called.max(written);
            }
        }
        let new = match &mut operation.action {
            Action::Write(new) | Action::Cas { new, .. } => Some(new),
            Action::Read(_) | Action::CasFailed { .. } | Action::Append(_) => None,
        };
        if let Some(new) = new {
            let bound = once(*new).and_then(|value| first_seen.get(&value));
            operation.answered = operation.answered.into_iter().chain(bound.copied()).min();
            *new = canonical(*new);
        }
        match (operation.answered, operation.action) {
            (Some(_), _) => prepared.answered.push(operation),
            (None, Action::Write(new)) => groups.entry((0, new, None)).or_default().push(operation),
            (None, Action::Cas { expected, new }) => {
                groups.entry((1, new, expected)).or_default().push(operation);
            }
            (None, Action::Append(piece)) => {
                groups.entry((2, Some(piece), None)).or_default().push(operation);
            }
            (None, Action::Read(_) | Action::CasFailed { .. }) => {}
        }
    }
    prepared.answered.sort_by_key(|operation| operation.called);
    prepared.unanswered = groups.into_values().collect();
    prepared.repeated = repeated;
    prepared.unanswered.iter_mut().for_each(|group| group.sort_by_key(|operation| operation.called));
    prepared
}

/// The value that an answered operation must see, if it isn't absence.
fn seen_by(action: Action) -> Option<u64> {
    match action {
        Action::Read(seen) | Action::Cas { expected: seen, .. } => seen,
        Action::Write(_) | Action::CasFailed { .. } | Action::Append(_) => None,
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
    texts: Texts,
    ends: Vec<End>,
    bits: Vec<u64>,
    full_words: usize,
    used: Vec<usize>,
    value: Value,
    taken: Vec<Taken>,
    answered_left: usize,
    /// For each value that can't come back, how many operations that haven't taken effect must see it.
    wanted: BTreeMap<u64, usize>,
    seen: BTreeSet<Configuration>,
    /// Words of 64 bits in `seen`, about.
    remembered: usize,
    /// Steps left before the search pauses.
    budget: u64,
    /// Where it goes on.
    next: Candidate,
    /// The least number of answered operations that were ever left, and the answer that blocked there.
    best: (usize, usize),
}

/// Index of the list's head.
const HEAD: usize = 0;
/// After the last end.
const NONE: usize = usize::MAX;

impl<'a> Search<'a> {
    fn new(history: &'a Prepared, texts: Texts, budget: u64) -> Self {
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
        let seen = history.answered.iter().filter_map(|operation| seen_by(operation.action));
        for value in seen.filter(|value| !history.repeated.contains(*value)) {
            *wanted.entry(value).or_default() += 1;
        }
        Self {
            history,
            texts,
            next: Candidate::End(ends[HEAD].after),
            ends,
            wanted,
            bits: vec![0; count.div_ceil(64)],
            full_words: 0,
            used: vec![0; history.unanswered.len()],
            value: None,
            taken: Vec::new(),
            answered_left: count,
            seen: BTreeSet::new(),
            remembered: 0,
            budget,
            best: (usize::MAX, NONE),
        }
    }

    /// Goes on until there is a verdict, or [`Verdict::Unknown`] when the budget is spent.
    fn run(&mut self) -> Verdict {
        while self.answered_left > 0 {
            if self.budget == 0 {
                return Verdict::Unknown;
            }
            self.budget -= 1;
            self.next = match self.next {
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
    fn next(&mut self) -> Candidate {
        let first = self.ends[HEAD].after;
        let mut end = first;
        while end != NONE && self.ends[end].answer.is_some() {
            let action = self.history.answered[self.ends[end].operation].action;
            if step(self.value, action, &mut self.texts).is_some_and(|(_, changes)| !changes) {
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
        let action = self.history.answered[operation].action;
        let Some((value, changes)) = step(self.value, action, &mut self.texts) else {
            return Candidate::End(after);
        };
        let sees = usize::from(changes && seen_by(action).is_some());
        if changes && self.is_wanted(sees) {
            return Candidate::End(after);
        }
        self.flip(operation);
        if changes && !self.is_new(value) {
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
        let stepped = step(self.value, operation.action, &mut self.texts);
        let stepped = stepped.filter(|(value, _)| *value != self.value);
        let may_come = operation.called <= self.first_answer() && !self.is_wanted(0);
        let Some((value, _)) = stepped.filter(|_| may_come) else {
            return Candidate::Group(group + 1);
        };
        self.used[group] += 1;
        if !self.is_new(value) {
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

    /// Whether nothing was tried yet from what took effect and this value; remembers it.
    fn is_new(&mut self, value: Value) -> bool {
        let configuration = self.configuration(value);
        // The tuple itself and its share of the tree are some eight words.
        self.remembered += configuration.1.len() + 8;
        self.seen.insert(configuration)
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
    use Action::{Append, Cas, CasFailed, Read, Write};

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
    fn brute_force(left: &[Operation], value: Value, texts: &mut Texts) -> bool {
        let Some(first_answer) = left.iter().filter_map(|o| o.answered).min() else { return true };
        left.iter().enumerate().any(|(i, operation)| {
            let rest = [&left[..i], &left[i + 1..]].concat();
            operation.called <= first_answer
                && step(value, operation.action, texts)
                    .is_some_and(|(value, _)| brute_force(&rest, value, texts))
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
            let expected = brute_force(&history, None, &mut Texts::default());
            assert_eq!(verdict_of(&history), expected, "seed {seed}: {history:#?}");
            *(if expected { &mut yes } else { &mut no }) += 1;
        }
        assert!(yes > 500 && no > 500, "one-sided: {yes} {no}");
    }

    /// Values repeat and are appended to: none of the reductions for values that are written once holds.
    #[test]
    fn small_histories_of_repeated_values_agree_with_brute_force() {
        let (mut yes, mut no) = (0, 0);
        for seed in 0..4000 {
            let mut random = Random::new(seed);
            let mut texts = Texts::default();
            let numbers = ["a", "b", "aa", "ab", "ba", "aba"].map(|text| texts.number(text));
            let appends = random.percent(50);
            let mut history = Vec::new();
            for number in 0..random.between(2, 6) {
                let called = random.below(12);
                let unknown = random.percent(30);
                let some = |random: &mut Random| random.percent(80).then(|| *random.pick(&numbers[..4]));
                let action = match random.below(if unknown { 3 } else { 6 }) {
                    0 if appends => Append(*random.pick(&numbers[..2])),
                    0 | 2 => Write(some(&mut random)),
                    1 => Cas { expected: some(&mut random), new: some(&mut random) },
                    3 => CasFailed { expected: some(&mut random) },
                    _ => Read(some(&mut random)),
                };
                let answered = if unknown { 0 } else { called + random.between(1, 8) };
                history.push(op(number as u32, called, answered, action));
            }
            let mut observing = texts.clone();
            numbers.iter().for_each(|number| observing.observe(Some(*number)));
            let expected = brute_force(&history, None, &mut observing);
            let verdict = check_texts(&history, texts, BUDGET, &mut |_| false);
            assert_ne!(verdict, Verdict::Unknown, "seed {seed}");
            assert_eq!(verdict == Verdict::Linearizable, expected, "seed {seed}: {history:#?}");
            *(if expected { &mut yes } else { &mut no }) += 1;
        }
        assert!(yes > 500 && no > 500, "one-sided: {yes} {no}");
    }

    #[test]
    fn a_value_that_is_written_twice_may_come_back() {
        let write = |at, value| op(1, at, at + 1, Write(Some(value)));
        let read = |called, answered, value| op(called as u32, called, answered, Read(Some(value)));
        let history = [write(1, 1), write(3, 2), write(5, 1), read(2, 20, 1), read(7, 8, 1)];
        assert!(verdict_of(&history));
        let late = op(3, 9, 10, Write(Some(2)));
        assert!(!verdict_of(&[&history[..], &[late, read(11, 12, 1)]].concat()));
        assert!(verdict_of(&[&history[..], &[late, op(4, 9, 0, Write(Some(1))), read(11, 12, 1)]].concat()));
    }

    #[test]
    fn ten_thousand_operations_of_fifty_clients_take_seconds() {
        let mut random = Random::new(3);
        let keys: BTreeMap<u32, Vec<Operation>> =
            (0..20).map(|key| (key, generate(&mut random, 500, 50, 2))).collect();
        assert_eq!(check_keys(&keys, BUDGET), Verdict::Linearizable);
    }
}
