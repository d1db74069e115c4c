//! What makes the search of a history with unknown outcomes tractable.
//!
//! An operation without an answer may take effect at any time after its call, or never. The
//! reductions that keep such histories tractable are exact, none guesses. Before the search:
//! - intervals shrink to what the values seen in between allow ([`crate::zones`]), which also gives an
//!   unanswered write whose value was seen a bound, so that it becomes an ordinary operation;
//! - values that nobody ever saw or expected are all alike, and so are operations that differ only in such a value.
//!
//! In the search ([`crate::search`]):
//! - a value that only one operation writes and that somebody who hasn't taken effect yet must see is not
//!   overwritten: it never comes back;
//! - an operation that changes nothing and fits is taken at once, without an alternative;
//! - of operations that are alike and may come next, the one that is answered first comes first (in any order that
//!   explains the answers, the two can change places), and of unanswered ones the one that was called first;
//! - an unanswered operation takes effect only where something fits at once that didn't before: otherwise it
//!   is overwritten unseen, and the order without it is as good;
//! - which of the unanswered conditional writes took effect is forgotten when what they expect can't come back.

use crate::linearizability::Operation;
use crate::model::{Action, Texts, UNSEEN, Value};
use crate::zones::narrow;
use std::collections::{BTreeMap, BTreeSet};

/// Operations in order of their calls, unanswered ones apart.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) answered: Vec<Operation>,
    /// Groups of unanswered operations that are all alike, each in order of calls: first those that fit any value,
    /// then conditional writes in order of what they expect.
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
            let new = match operation.action {
                Action::Write(new) | Action::Cas { new, .. } => new,
                Action::Read(_) | Action::CasFailed { .. } | Action::Append(_) => None,
            };
            repeated.values.extend(new.filter(|value| !written.insert(*value)));
        }
        repeated
    }

    /// Whether any can, because there are appends.
    pub(crate) fn any(&self) -> bool {
        self.all
    }

    pub(crate) fn contains(&self, value: u64) -> bool {
        self.all || self.values.contains(&value)
    }
}

/// What somebody saw or expected.
fn observations(operations: &[Operation]) -> BTreeSet<u64> {
    let observed = operations.iter().filter_map(|operation| match operation.action {
        Action::Read(value) => value.filter(|_| operation.answered.is_some()),
        Action::Cas { expected, .. } | Action::CasFailed { expected } => expected,
        Action::Write(_) | Action::Append(_) => None,
    });
    observed.collect()
}

/// Narrows intervals, makes alike what can't be told apart, and sets unanswered operations apart.
///
/// # Errors
/// Why there can't be any order, if that is plain.
pub(crate) fn prepare(operations: &[Operation], texts: &mut Texts) -> Result<Prepared, String> {
    let observed = observations(operations);
    let repeated = Repeated::of(operations);
    let mut operations = operations.to_vec();
    if repeated.all {
        observed.iter().for_each(|number| texts.observe(Some(*number)));
    } else {
        narrow(&mut operations, &repeated.values)?;
    }
    let is_observed = |number: u64| match repeated.all {
        true => texts.leads_to_observed(number),
        false => observed.contains(&number),
    };
    let canonical = |value: Value| if value.is_none_or(is_observed) { value } else { UNSEEN };
    let mut prepared =
        Prepared { answered: Vec::new(), unanswered: Vec::new(), repeated: Repeated::default() };
    let mut groups: BTreeMap<(u8, Value, Value), Vec<Operation>> = BTreeMap::new();
    for mut operation in operations {
        let new = match &mut operation.action {
            Action::Write(new) | Action::Cas { new, .. } => Some(new),
            Action::Read(_) | Action::CasFailed { .. } | Action::Append(_) => None,
        };
        if let Some(new) = new {
            *new = canonical(*new);
        }
        match (operation.answered, operation.action) {
            (Some(_), _) => prepared.answered.push(operation),
            (None, Action::Write(new)) => groups.entry((0, new, None)).or_default().push(operation),
            (None, Action::Cas { expected, new }) => {
                groups.entry((2, expected, new)).or_default().push(operation);
            }
            (None, Action::Append(piece)) => {
                groups.entry((1, Some(piece), None)).or_default().push(operation);
            }
            (None, Action::Read(_) | Action::CasFailed { .. }) => {}
        }
    }
    prepared.answered.sort_by_key(|operation| operation.called);
    prepared.unanswered = groups.into_values().collect();
    prepared.repeated = repeated;
    prepared.unanswered.iter_mut().for_each(|group| group.sort_by_key(|operation| operation.called));
    Ok(prepared)
}

/// The value that an answered operation must see, if it isn't absence.
pub(crate) fn seen_by(action: Action) -> Option<u64> {
    match action {
        Action::Read(seen) | Action::Cas { expected: seen, .. } => seen,
        Action::Write(_) | Action::CasFailed { .. } | Action::Append(_) => None,
    }
}
