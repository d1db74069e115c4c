//! Who waits for an answer.

use crate::request::{Answer, RequestId};
use std::collections::BTreeSet;

/// Counts open requests and forgets those that nobody waits for any more.
///
/// An abandoned request stays where it waits (finding it would cost more than answering it) and its
/// answer is dropped here. Invariant: when nothing is open, nothing is abandoned.
#[derive(Default)]
pub(crate) struct Callers {
    open: usize,
    abandoned: BTreeSet<RequestId>,
}

impl Callers {
    pub(crate) fn opened(&mut self) {
        self.open += 1;
    }

    pub(crate) fn abandon(&mut self, id: RequestId) {
        if self.open > 0 {
            self.abandoned.insert(id);
        }
    }

    /// Whether anybody waits for `id`.
    pub(crate) fn wants(&self, id: RequestId) -> bool {
        self.abandoned.is_empty() || !self.abandoned.contains(&id)
    }

    /// The request is over.
    pub(crate) fn close(&mut self, id: RequestId) {
        assert!(self.open > 0, "{id:?} is answered, but no request is open");
        self.open -= 1;
        if !self.abandoned.is_empty() {
            self.abandoned.remove(&id);
            if self.open == 0 {
                self.abandoned.clear();
            }
        }
    }

    pub(crate) fn answer(&mut self, id: RequestId, answer: Answer, answers: &mut Vec<(RequestId, Answer)>) {
        if self.wants(id) {
            answers.push((id, answer));
        }
        self.close(id);
    }

    pub(crate) fn open(&self) -> usize {
        self.open
    }
}
