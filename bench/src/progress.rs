//! A progress bar on a terminal; elsewhere one line per step, and one now and then while a step lasts. All on
//! standard error.

use indicatif::{ProgressBar, ProgressStyle};
use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often a step that lasts says so where there is no bar.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The progress of one step.
pub struct Progress {
    bar: ProgressBar,
    label: String,
    /// Whether a person watches.
    live: bool,
    total: u64,
    last_line: Cell<Instant>,
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
        Self { bar, label, live, total, last_line: Cell::new(Instant::now()) }
    }

    /// `position` units are done.
    pub fn at(&self, position: u64, message: impl FnOnce() -> String) {
        if self.live {
            self.bar.set_position(position);
            self.bar.set_message(message());
        } else if self.last_line.get().elapsed() >= LINE_EVERY {
            let percent = 100 * position.min(self.total) / self.total.max(1);
            self.say(&format!("{percent} %  {}", message()));
        }
    }

    /// Something to keep, said while the step goes on.
    pub fn say(&self, message: &str) {
        self.last_line.set(Instant::now());
        self.bar.suspend(|| eprintln!("{:>14}  {message}", self.label));
    }

    /// The step is over.
    pub fn finish(self, message: &str) {
        self.bar.finish_and_clear();
        eprintln!("{:>14}  {message}", self.label);
    }
}
