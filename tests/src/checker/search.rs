//! The search of [`crate::checker::linearizability`]: depth first over the orders in which operations may
//! have taken effect, never twice from the same configuration.
//!
//! Calls and answers stand in one doubly linked list in order of time, as Lowe has it: what may come next is
//! what was called before the first answer in the list, and taking an operation unlinks both of its ends.

use crate::checker::linearizability::Verdict;
use crate::checker::model::{Texts, Value, step};
use crate::checker::reductions::{Prepared, seen_by};
use std::collections::{BTreeMap, BTreeSet};

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

pub(crate) struct Search<'a> {
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
    /// Nothing has taken effect yet; it may make `budget` steps.
    pub(crate) fn new(history: &'a Prepared, texts: Texts, budget: u64) -> Self {
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
    pub(crate) fn run(&mut self) -> Verdict {
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

    /// Words of 64 bits that it remembers, about.
    pub(crate) fn remembered(&self) -> usize {
        self.remembered
    }

    /// Lets it make so many steps from here on.
    pub(crate) fn allow(&mut self, budget: u64) {
        self.budget = budget;
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
