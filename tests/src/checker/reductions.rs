//! What makes the search of a history with unknown outcomes tractable.
//!
//! An operation without an answer may take effect at any time after its call, or never. Five
//! reductions keep such histories tractable; each is exact, none guesses. Here, before the search:
//! - a write comes before the first answer that saw its value if no other writes it, and what saw it
//!   comes after its call: that narrows intervals, and gives an unanswered write whose value was seen a
//!   bound, so that it becomes an ordinary operation;
//! - values that nobody ever saw or expected are all alike, and so are unanswered operations that
//!   differ only in such a value: of these the earliest called is used first.
//!
//! In the search ([`crate::checker::search`]):
//! - a value that only one operation writes and that somebody who hasn't taken effect yet must see is not
//!   overwritten: it never comes back;
//! - an operation that changes nothing and fits is taken at once, without an alternative;
//! - unanswered operations are tried last.

use crate::checker::linearizability::Operation;
use crate::checker::model::{Action, Texts, UNSEEN, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Operations in order of their calls, unanswered ones apart.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) answered: Vec<Operation>,
    /// Groups of unanswered operations that are all alike, each in order of calls.
    pub(crate) unanswered: Vec<Vec<Operation>>,
    /// Values that may have been written more than once.
    pub(crate) repeated: Repeated,
}

/// Which values can come back after they were overwritten.
#[derive(Debug, Default)]
pub(crate) struct Repeated {
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

    pub(crate) fn contains(&self, value: u64) -> bool {
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

/// Narrows intervals, makes alike what can't be told apart, and sets unanswered operations apart.
pub(crate) fn prepare(operations: &[Operation], texts: &mut Texts) -> Prepared {
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
pub(crate) fn seen_by(action: Action) -> Option<u64> {
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
