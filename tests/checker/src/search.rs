//! The search of [`crate::linearizability`]: depth first over the orders in which operations may
//! have taken effect, never twice from the same configuration.
//!
//! Calls and answers stand in one doubly linked list in order of time, as Lowe has it: what may come next, what is
//! *open*, was called before the first answer in the list, and taking an operation unlinks both of its ends.
//!
//! In which order the choices are tried decides how far a wrong one leads. The first answer in the list is the
//! next deadline: what writes the value that its operation must see is tried first, then what is answered
//! soonest, then what was never answered.

use crate::linearizability::{Operation, Verdict};
use crate::model::{Action, Texts, Value, step};
use crate::reductions::{Prepared, seen_by};
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

/// What the search may take next, in the order in which it is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Choice {
    /// Whether it does not write the value that the next deadline waits for.
    is_idle: bool,
    candidate: Candidate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Candidate {
    /// The answered operation whose answer is this end of the list.
    Answered(usize),
    /// The next unanswered operation of this group.
    Group(usize),
}

/// One operation that was taken.
#[derive(Clone, Copy, Debug)]
struct Taken {
    choice: Choice,
    value_before: Value,
    /// Whether there can be an alternative to it.
    changes: bool,
}

/// Which operations took effect, and the value they left: answered ones as so many words of bits above a
/// prefix of full words, then the counters of those groups of unanswered ones that matter later.
type Configuration = (usize, usize, Vec<u64>, Value);

pub(crate) struct Search<'a> {
    history: &'a Prepared,
    texts: Texts,
    ends: Vec<End>,
    /// The end that is an answered operation's call.
    calls: Vec<usize>,
    bits: Vec<u64>,
    full_words: usize,
    used: Vec<usize>,
    /// Groups whose counter matters later. That of conditional writes of a value that can't come back doesn't:
    /// once one of them was used, none fits any more.
    counted: Vec<usize>,
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
    /// Where it goes on; `None` = it gives back.
    next: Option<Choice>,
    /// The least number of answered operations that were ever left, and the answer that blocked there.
    best: (usize, usize),
}

/// Index of the list's head.
const HEAD: usize = 0;
/// After the last end.
const NONE: usize = usize::MAX;

/// The value that a group of unanswered operations expects, if it is one of conditional writes.
fn expected_by(group: &[Operation]) -> Option<Value> {
    match group[0].action {
        Action::Cas { expected, .. } => Some(expected),
        _ => None,
    }
}

/// Calls and answers as a list, and where each operation's call is in it. At equal times calls come first: the
/// operations then overlap, which forbids less.
fn list(history: &Prepared) -> (Vec<End>, Vec<usize>) {
    let count = history.answered.len();
    let mut order: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * count);
    for (number, operation) in history.answered.iter().enumerate() {
        let answered = operation.answered.unwrap_or(u64::MAX).max(operation.called);
        order.push((operation.called, false, number));
        order.push((answered, true, number));
    }
    order.sort_unstable();
    let mut ends = vec![End { operation: NONE, answer: None, before: NONE, after: NONE }];
    let mut calls = vec![NONE; count];
    for (_, is_answer, operation) in order {
        let here = ends.len();
        if is_answer {
            ends[calls[operation]].answer = Some(here);
        } else {
            calls[operation] = here;
        }
        ends[here - 1].after = here;
        ends.push(End { operation, answer: None, before: here - 1, after: NONE });
    }
    (ends, calls)
}

impl<'a> Search<'a> {
    /// Nothing has taken effect yet; it may make `budget` steps.
    pub(crate) fn new(history: &'a Prepared, texts: Texts, budget: u64) -> Self {
        let count = history.answered.len();
        let (ends, calls) = list(history);
        let mut wanted = BTreeMap::new();
        let seen = history.answered.iter().filter_map(|operation| seen_by(operation.action));
        for value in seen.filter(|value| !history.repeated.contains(*value)) {
            *wanted.entry(value).or_default() += 1;
        }
        let matters = |group: &usize| match expected_by(&history.unanswered[*group]) {
            None | Some(None) => true,
            Some(Some(value)) => history.repeated.contains(value),
        };
        let mut search = Self {
            history,
            texts,
            next: None,
            ends,
            calls,
            wanted,
            bits: vec![0; count.div_ceil(64)],
            full_words: 0,
            used: vec![0; history.unanswered.len()],
            counted: (0..history.unanswered.len()).filter(matters).collect(),
            value: None,
            taken: Vec::new(),
            answered_left: count,
            seen: BTreeSet::new(),
            remembered: 0,
            budget,
            best: (usize::MAX, NONE),
        };
        if count > 0 {
            search.next = search.next();
        }
        search
    }

    /// Goes on until there is a verdict, or [`Verdict::Unknown`] when the budget is spent.
    pub(crate) fn run(&mut self) -> Verdict {
        while self.answered_left > 0 {
            if self.budget == 0 {
                return Verdict::Unknown;
            }
            self.budget -= 1;
            let Some(choice) = self.next else {
                let Some(taken) = self.give_back() else {
                    return Verdict::NotLinearizable { evidence: self.evidence() };
                };
                self.next = self.choice_after(Some(taken));
                continue;
            };
            let is_taken = match choice.candidate {
                Candidate::Answered(answer) => self.try_answered(choice, answer),
                Candidate::Group(group) => self.try_group(choice, group),
            };
            self.next = match is_taken {
                true if self.answered_left == 0 => None,
                true => self.next(),
                false => self.choice_after(Some(choice)),
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

    /// Where to go on after something took effect: an open operation that fits and changes nothing; else the
    /// first choice of all.
    fn next(&mut self) -> Option<Choice> {
        let blocking = self.blocking();
        if self.answered_left < self.best.0 {
            self.best = (self.answered_left, self.ends[blocking].operation);
        }
        let mut end = self.ends[HEAD].after;
        while let Some(answer) = self.ends[end].answer {
            let action = self.history.answered[self.ends[end].operation].action;
            if step(self.value, action, &mut self.texts).is_some_and(|(_, changes)| !changes) {
                return Some(Choice { is_idle: false, candidate: Candidate::Answered(answer) });
            }
            end = self.ends[end].after;
        }
        self.choice_after(None)
    }

    /// The first choice of what changes something, or the one after this.
    fn choice_after(&self, last: Option<Choice>) -> Option<Choice> {
        let next_deadline = self.history.answered[self.ends[self.blocking()].operation].action;
        let needed = match next_deadline {
            Action::Read(seen) | Action::Cas { expected: seen, .. } => Some(seen),
            Action::Write(_) | Action::CasFailed { .. } | Action::Append(_) => None,
        };
        let answered = self.open().map(|(answer, action)| (Candidate::Answered(answer), action));
        let (is_wanted, is_wanted_by_others) = (self.is_wanted(0), self.is_wanted(1));
        let groups = self.fitting_groups().filter(|_| !is_wanted);
        let groups = groups.map(|at| (Candidate::Group(at), self.history.unanswered[at][0].action));
        let choices = answered.chain(groups).filter_map(|(candidate, action)| {
            let (written, fits) = match action {
                Action::Write(new) => (Some(new), !is_wanted),
                Action::Append(_) => (None, !is_wanted),
                Action::Cas { expected, new } => (Some(new), expected == self.value && !is_wanted_by_others),
                Action::Read(_) | Action::CasFailed { .. } => return None,
            };
            let is_idle = written.is_none() || written != needed;
            fits.then_some(Choice { is_idle, candidate })
        });
        choices.filter(|choice| last.is_none_or(|last| *choice > last)).min()
    }

    /// What may come next of the answered operations: the ends that are their answers, and what they do.
    fn open(&self) -> impl Iterator<Item = (usize, Action)> {
        let ends = std::iter::successors(Some(self.ends[HEAD].after), |end| Some(self.ends[*end].after));
        ends.map_while(|end| {
            let End { operation, answer, .. } = self.ends[end];
            Some((answer?, self.history.answered[operation].action))
        })
    }

    /// Groups whose operations fit the present value.
    fn fitting_groups(&self) -> impl Iterator<Item = usize> {
        let groups = &self.history.unanswered;
        let unconditional = groups.partition_point(|group| expected_by(group).is_none());
        let from = groups.partition_point(|group| expected_by(group) < Some(self.value));
        let conditional = (from..groups.len()).take_while(|at| expected_by(&groups[*at]) == Some(self.value));
        (0..unconditional).chain(conditional)
    }

    /// Tries the operation with this answer; whether it was taken.
    fn try_answered(&mut self, choice: Choice, answer: usize) -> bool {
        let operation = self.ends[answer].operation;
        let action = self.history.answered[operation].action;
        let Some((value, changes)) = step(self.value, action, &mut self.texts) else { return false };
        // Of open operations that are alike, the one that is answered first comes first.
        let is_later_alike = || self.open().any(|(other, alike)| other < answer && alike == action);
        if changes && is_later_alike() {
            return false;
        }
        self.flip(operation);
        if changes && !self.is_new(value) {
            self.flip(operation);
            return false;
        }
        self.taken.push(Taken { choice, value_before: self.value, changes });
        self.value = value;
        self.unlink(self.calls[operation]);
        self.unlink(answer);
        self.count_wanted(operation, true);
        self.answered_left -= 1;
        true
    }

    /// Tries the next unanswered operation of a group; whether it was taken.
    fn try_group(&mut self, choice: Choice, group: usize) -> bool {
        let Some(operation) = self.history.unanswered[group].get(self.used[group]) else { return false };
        let blocking = self.history.answered[self.ends[self.blocking()].operation];
        if operation.called > blocking.answered.unwrap_or(u64::MAX) {
            return false;
        }
        let stepped = step(self.value, operation.action, &mut self.texts);
        let stepped = stepped.filter(|(value, _)| *value != self.value);
        let Some((value, _)) = stepped.filter(|(value, _)| self.explains(*value, operation.action)) else {
            return false;
        };
        self.used[group] += 1;
        if !self.is_new(value) {
            self.used[group] -= 1;
            return false;
        }
        self.taken.push(Taken { choice, value_before: self.value, changes: true });
        self.value = value;
        true
    }

    /// Whether an unanswered operation that leaves `value` can be of any use now: something open must fit
    /// then that doesn't now. Were it overwritten at once, it could as well never take effect. Nor is it
    /// needed while an answered one that is alike is open, which must take effect anyhow.
    fn explains(&self, value: Value, action: Action) -> bool {
        let groups = &self.history.unanswered;
        let is_expected = groups.binary_search_by(|group| expected_by(group).cmp(&Some(value))).is_ok();
        // Appends fit everywhere and tell all values apart.
        let mut fits = is_expected || self.history.repeated.any();
        for (_, open) in self.open() {
            if open == action {
                return false;
            }
            fits |= match open {
                Action::Read(seen) | Action::Cas { expected: seen, .. } => seen == value,
                Action::CasFailed { expected } => expected != value,
                Action::Write(_) | Action::Append(_) => false,
            };
        }
        fits
    }

    /// Takes back the last operation that had alternatives, and answers which it was.
    fn give_back(&mut self) -> Option<Choice> {
        loop {
            let Taken { choice, value_before, changes } = self.taken.pop()?;
            self.value = value_before;
            match choice.candidate {
                Candidate::Answered(answer) => {
                    let operation = self.ends[answer].operation;
                    self.link(answer);
                    self.link(self.calls[operation]);
                    self.flip(operation);
                    self.count_wanted(operation, false);
                    self.answered_left += 1;
                }
                Candidate::Group(group) => self.used[group] -= 1,
            }
            if changes {
                return Some(choice);
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

    /// The first answer in the list: its operation is the next that must take effect.
    fn blocking(&self) -> usize {
        let mut end = self.ends[HEAD].after;
        while self.ends[end].answer.is_some() {
            end = self.ends[end].after;
        }
        end
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
        // The tuple itself and its share of the tree are some nine words.
        self.remembered += configuration.2.len() + 9;
        self.seen.insert(configuration)
    }

    fn configuration(&self, value: Value) -> Configuration {
        let above = &self.bits[self.full_words..];
        let length = above.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        let mut words = above[..length].to_vec();
        let used = self.counted.iter().filter(|group| self.used[**group] > 0);
        words.extend(used.flat_map(|group| [*group as u64, self.used[*group] as u64]));
        (self.full_words, length, words, value)
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
    use crate::linearizability::check;
    use Action::{Cas, CasFailed, Read, Write};

    fn op(called: u64, answered: u64, action: Action) -> Operation {
        Operation { client: 1, called, answered: (answered > 0).then_some(answered), action }
    }

    /// Far fewer steps than there are subsets of the operations.
    const FEW: u64 = 200_000;

    #[test]
    fn answered_operations_that_are_alike_have_one_order() {
        let unseen = (0..40).map(|value| op(1, 90 + value, Write(Some(value))));
        let deletes = (0..20).map(|number| op(2, 150 + number, Write(None)));
        let last = [op(180, 181, Write(Some(50))), op(182, 183, Read(None))];
        let history: Vec<_> = unseen.chain(deletes).chain(last).collect();
        assert!(matches!(check(&history, FEW), Verdict::NotLinearizable { .. }));
    }

    #[test]
    fn unanswered_operations_that_explain_nothing_are_not_tried() {
        let writes = (0..40).map(|value| op(1, 0, Write(Some(value))));
        let failed = (0..40).map(|value| op(2, 3, CasFailed { expected: Some(value) }));
        let last = [op(4, 5, Write(Some(50))), op(6, 7, Read(None))];
        let history: Vec<_> = writes.chain(failed).chain(last).collect();
        assert!(matches!(check(&history, FEW), Verdict::NotLinearizable { .. }));
    }

    #[test]
    fn what_the_next_deadline_waits_for_is_tried_first() {
        // Twenty times, a delete is seen and then that something was written: who spends the writes, which can't be
        // told apart by time, before the first delete has none left.
        for answered in [0, 450] {
            let mut history: Vec<_> = (0..40).map(|value| op(1, 400, Write(Some(value)))).collect();
            history.extend((0..40).map(|value| op(405, 490, CasFailed { expected: Some(value) })));
            history.push(op(480, 481, Write(Some(50))));
            for at in (0..20).map(|round| 10 * round + 5) {
                history.push(op(2, answered, Write(None)));
                history.push(op(at, at + 1, Read(None)));
                history.push(op(at + 2, at + 3, CasFailed { expected: None }));
            }
            assert_eq!(check(&history, FEW), Verdict::Linearizable, "deletes are answered at {answered}");
        }
    }

    #[test]
    fn conditional_writes_of_values_that_are_gone_are_forgotten() {
        // What explains that a condition failed, the write that isn't answered or the next one, is all the same later.
        let mut history = Vec::new();
        for value in 0..24 {
            let at = 10 * value;
            history.push(op(at, at + 1, Write(Some(value))));
            history.push(op(at + 2, 0, Cas { expected: Some(value), new: Some(1_000 + value) }));
            history.push(op(at + 3, at + 15, CasFailed { expected: Some(value) }));
        }
        history.push(op(290, 291, Write(Some(24))));
        history.push(op(300, 301, Read(None)));
        assert!(matches!(check(&history, FEW), Verdict::NotLinearizable { .. }));
    }
}
