//! [`Lazy`]: a part of a replica that is there only while it holds something. Of many thousand replicas most are
//! idle; their empty buffers would be most of what they cost.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};

/// What a [`Lazy`] can hold.
pub trait Part: Default + 'static {
    /// One without content, for all to look at.
    fn empty() -> &'static Self;
    /// Whether this one holds nothing that would be missed.
    fn is_empty(&self) -> bool;
}

/// A part that comes to be when it is first changed, and goes with [`Lazy::give_back`].
#[derive(Debug)]
pub struct Lazy<T: Part>(Option<Box<T>>);

impl<T: Part> Default for Lazy<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Part> Deref for Lazy<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.0 {
            Some(part) => part,
            None => T::empty(),
        }
    }
}

impl<T: Part> DerefMut for Lazy<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }
}

impl<T: Part> Lazy<T> {
    /// Gives back its memory, if it holds nothing.
    pub fn give_back(&mut self) {
        self.0.take_if(|part| part.is_empty());
    }

    /// Whether it has memory of its own.
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }
}

impl<T: 'static> Part for Vec<T> {
    fn empty() -> &'static Self {
        const { &Self::new() }
    }

    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

impl<T: 'static> Part for VecDeque<T> {
    fn empty() -> &'static Self {
        const { &Self::new() }
    }

    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_there_from_the_first_change_until_it_is_given_back_empty() {
        let mut words = Lazy::<Vec<&str>>::default();
        assert!(!words.is_there() && words.is_empty() && !words.is_there(), "looking makes nothing");
        words.push("a");
        words.give_back();
        assert_eq!((words.is_there(), words.len()), (true, 1), "what holds something stays");
        words.clear();
        words.give_back();
        assert!(!words.is_there());
    }
}
