//! Where tasks of one core leave what the pump is to take, and how they wake it.

use crate::seam::Input;
use std::cell::{Cell, RefCell};
use std::task::Waker;

/// Shared by the tasks of one executor; borrowed only for a moment each.
#[derive(Default)]
pub(super) struct Inbox {
    inputs: RefCell<Vec<Input>>,
    ended: RefCell<Vec<EndedConnection>>,
    waker: RefCell<Option<Waker>>,
    /// Whether the pump took anything since the ticker last looked.
    pub(super) active: Cell<bool>,
}

/// A connection that doesn't work any more.
pub(super) struct EndedConnection {
    pub(super) number: u64,
    pub(super) reason: String,
}

impl Inbox {
    pub(super) fn push(&self, input: Input) {
        self.inputs.borrow_mut().push(input);
        self.wake();
    }

    pub(super) fn push_ended(&self, ended: EndedConnection) {
        self.ended.borrow_mut().push(ended);
        self.wake();
    }

    /// Moves everything that waits to the end of `inputs`.
    pub(super) fn take(&self, inputs: &mut Vec<Input>) {
        inputs.append(&mut self.inputs.borrow_mut());
    }

    pub(super) fn take_ended(&self) -> Vec<EndedConnection> {
        std::mem::take(&mut self.ended.borrow_mut())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.inputs.borrow().is_empty() && self.ended.borrow().is_empty()
    }

    /// The pump sleeps: the next push wakes it.
    pub(super) fn sleep(&self, waker: &Waker) {
        *self.waker.borrow_mut() = Some(waker.clone());
    }

    fn wake(&self) {
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
