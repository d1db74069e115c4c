//! Is a history of reads, writes and conditional writes of *one key* linearizable?
//!
//! The algorithm is Wing & Gong's (1993) with Lowe's memoisation (2017): depth first over the orders in
//! which the operations may have taken effect, remembering every configuration (set of operations that
//! took effect, resulting value) that was seen. Linearizability is local (Herlihy & Wing 1990), so a
//! history of many keys is checked key by key ([`check_keys`]).
//!
//! What keeps histories with unknown outcomes tractable is in `reductions.rs`; the search itself
//! in `search.rs`.
//!
//! The search is bounded by a budget of steps. Out of budget is [`Verdict::Unknown`], which is *not* a pass.

pub use crate::model::{Action, Value};

use crate::model::Texts;
use crate::reductions::prepare;
use crate::search::Search;
use std::collections::BTreeMap;
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

/// Checks the histories of independent keys, each within `budget`; the first that isn't linearizable
/// decides, then the first that isn't known.
pub fn check_keys<K: fmt::Debug>(keys: &BTreeMap<K, Vec<Operation>>, budget: u64) -> Verdict {
    check_keys_while(keys, budget, &mut |_| false)
}

/// Like [`check_keys`]; `goes_on` is asked as in [`check_texts`].
pub fn check_keys_while<K: fmt::Debug>(
    keys: &BTreeMap<K, Vec<Operation>>,
    budget: u64,
    goes_on: &mut dyn FnMut(usize) -> bool,
) -> Verdict {
    let mut verdict = Verdict::Linearizable;
    for (key, operations) in keys {
        match check_texts(operations, Texts::default(), budget, goes_on) {
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
    let prepared = match prepare(operations, &mut texts) {
        Ok(prepared) => prepared,
        Err(evidence) => return Verdict::NotLinearizable { evidence },
    };
    let mut search = Search::new(&prepared, texts, budget);
    loop {
        match search.run() {
            Verdict::Unknown if goes_on(search.remembered()) => search.allow(budget),
            verdict => return verdict,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::step;
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
}
