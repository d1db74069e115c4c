//! The sequential models: what one key does when one operation comes after the other.
//!
//! A key holds a value or nothing. The search ([`crate::linearizability`]) knows values by
//! number only. Where values are texts, [`Texts`] gives them their numbers, and says what number an append
//! leaves. It also keeps the number of states small: a text that is no beginning of any text that
//! somebody saw or expected can't be told from another such text, whatever is appended to it, so all of
//! them are [`UNSEEN`].

use std::collections::{BTreeMap, BTreeSet};

/// A value that was written, by number. Absence is `None`.
pub type Value = Option<u64>;

/// Every value that nobody saw or expected.
pub const UNSEEN: Value = Some(u64::MAX);

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
    /// Puts this text, by its number in [`Texts`], at the end of the value; absence is the empty text.
    Append(u64),
}

/// The value after `action`, and whether it may change anything; `None` if it doesn't fit.
pub(crate) fn step(value: Value, action: Action, texts: &mut Texts) -> Option<(Value, bool)> {
    match action {
        Action::Read(read) => (read == value).then_some((value, false)),
        Action::Write(new) => Some((new, true)),
        Action::Cas { expected, new } => (expected == value).then_some((new, true)),
        Action::CasFailed { expected } => (expected != value).then_some((value, false)),
        Action::Append(piece) => Some((texts.append(value, piece), true)),
    }
}

/// The texts of one key's history and their numbers.
#[derive(Clone, Debug, Default)]
pub struct Texts {
    texts: Vec<String>,
    numbers: BTreeMap<String, u64>,
    /// What somebody saw or expected.
    observed: BTreeSet<String>,
    /// What appends left so far: the search asks for the same ones over and over.
    appended: BTreeMap<(Value, u64), Value>,
}

impl Texts {
    /// The number of a text, always the same.
    pub fn number(&mut self, text: &str) -> u64 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = self.texts.len() as u64;
        self.texts.push(text.to_owned());
        self.numbers.insert(text.to_owned(), number);
        number
    }

    /// Somebody saw or expected this value. All of this is said before the search begins.
    pub(crate) fn observe(&mut self, value: Value) {
        let text = value.and_then(|number| self.texts.get(number as usize));
        self.observed.extend(text.cloned());
    }

    /// Whether this value is, or can become by appends, what somebody saw or expected.
    pub(crate) fn leads_to_observed(&self, number: u64) -> bool {
        let text = self.text(number);
        self.observed.range(text.to_owned()..).next().is_some_and(|first| first.starts_with(text))
    }

    fn text(&self, number: u64) -> &str {
        let text = self.texts.get(number as usize);
        text.unwrap_or_else(|| panic!("{number} is none of {} texts", self.texts.len()))
    }

    fn append(&mut self, value: Value, piece: u64) -> Value {
        if value == UNSEEN {
            return UNSEEN;
        }
        if let Some(known) = self.appended.get(&(value, piece)) {
            return *known;
        }
        let text = format!("{}{}", value.map_or("", |number| self.text(number)), self.text(piece));
        let number = (!text.is_empty()).then(|| self.number(&text));
        let after = if number.is_none_or(|number| self.leads_to_observed(number)) { number } else { UNSEEN };
        self.appended.insert((value, piece), after);
        after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appends_that_lead_nowhere_are_all_alike() {
        let mut texts = Texts::default();
        let [a, b, ab] = ["a", "b", "ab"].map(|text| texts.number(text));
        texts.observe(Some(ab));
        assert_eq!(texts.append(None, a), Some(a), "absence is the empty text");
        assert_eq!(texts.append(Some(a), b), Some(ab));
        assert_eq!(texts.append(None, b), UNSEEN);
        assert_eq!(texts.append(Some(ab), a), UNSEEN);
        assert_eq!(texts.append(UNSEEN, b), UNSEEN);
        let empty = texts.number("");
        assert_eq!(texts.append(None, empty), None);
    }
}
