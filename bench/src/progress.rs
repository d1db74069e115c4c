//! A progress bar on a terminal; one line per step elsewhere. Both on standard error.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// The progress of one step.
pub struct Progress {
    bar: ProgressBar,
    label: String,
    /// Whether a person watches.
    live: bool,
}

impl Progress {
    /// A step of `total` units.
    pub fn new(label: impl Into<String>, total: u64) -> Self {
        let label = label.into();
        let live = std::io::stderr().is_terminal();
        let bar = if live { ProgressBar::new(total) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{prefix:>14} [{bar:32}] {percent:>3}%  {msg}")
            .expect("the template is a constant")
            .progress_chars("=> ");
        bar.set_style(style);
        bar.set_prefix(label.clone());
        Self { bar, label, live }
    }

    /// `position` units are done.
    pub fn at(&self, position: u64, message: impl FnOnce() -> String) {
        if self.live {
            self.bar.set_position(position);
            self.bar.set_message(message());
        }
    }

    /// The step is over.
    pub fn finish(self, message: &str) {
        self.bar.finish_and_clear();
        eprintln!("{:>14}  {message}", self.label);
    }
}
