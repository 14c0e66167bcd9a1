//! A progress bar, or occasional log lines if standard error is not a terminal.

use std::cell::Cell;
use std::fmt::Arguments;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// The interval between log lines.
const PAUSE: Duration = Duration::from_secs(30);

pub struct Progress {
    bar: ProgressBar,
    /// Whether to print log lines instead of the bar.
    lines: bool,
    begun: Cell<Option<Instant>>,
    told: Cell<Instant>,
    failed: Cell<u64>,
}

impl Progress {
    pub fn new(files: u64, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal && !quiet { ProgressBar::new(files) } else { ProgressBar::hidden() };
        bar.set_length(files);
        let style = "{wide_bar} {human_pos} of {human_len} · {per_sec} · {eta} left{msg}";
        bar.set_style(ProgressStyle::with_template(style).expect("a template that a test draws"));
        let (begun, told) = (Cell::new(None), Cell::new(Instant::now()));
        Self { bar, lines: !terminal && !quiet, begun, told, failed: Cell::new(0) }
    }

    /// Called when a worker has loaded its model: rates are measured from the first call on.
    pub fn begin(&self) {
        if self.begun.get().is_none() {
            self.begun.set(Some(Instant::now()));
            self.bar.reset_eta();
        }
    }

    pub fn step(&self) {
        self.bar.inc(1);
        if self.lines && self.told.get().elapsed() >= PAUSE {
            self.told.set(Instant::now());
            tell(format_args!("clip-embed: {}", self.line()));
        }
    }

    fn rate(&self) -> f64 {
        let seconds = self.begun.get().map_or(0.0, |begun| begun.elapsed().as_secs_f64());
        self.bar.position() as f64 / seconds.max(1e-3)
    }

    fn line(&self) -> String {
        let (done, of, rate) = (self.bar.position(), self.bar.length().unwrap_or(0), self.rate());
        let left = Duration::try_from_secs_f64((of - done) as f64 / rate.max(1e-9)).unwrap_or(Duration::MAX);
        let failed = self.failed.get();
        format!("{done} of {of} files, {rate:.1} a second, {} left, {failed} failed", HumanDuration(left))
    }

    pub fn fail(&self) {
        self.failed.set(self.failed.get() + 1);
        self.bar.set_message(format!(" · {} failed", self.failed.get()));
    }

    /// Prints a message above the bar.
    pub fn say(&self, text: &str) {
        self.bar.suspend(|| tell(format_args!("clip-embed: {text}")));
    }

    /// Runs `f`, which may print, while the bar is hidden.
    pub fn suspend<T>(&self, f: impl FnOnce() -> T) -> T {
        self.bar.suspend(f)
    }

    pub fn finish(&self, rows: usize, failed: usize, output: &Path, failures: &str) {
        self.bar.finish_and_clear();
        let (done, rate) = (self.bar.position(), self.rate());
        let path = output.display();
        tell(format_args!("clip-embed: {} at {rate:.1} a second; vectors in \"{path}\": {rows}", files(done)));
        if failed > 0 {
            tell(format_args!("clip-embed: {} failed: see {failures}", files(failed as u64)));
        }
    }
}

/// A number of files, with the noun in singular or plural.
pub fn files(count: u64) -> String {
    if count == 1 { "1 file".to_owned() } else { format!("{count} files") }
}

/// Prints a line to standard error. `eprintln` would panic if the terminal or pipe was closed, and end a run of days.
pub fn tell(line: Arguments) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::Progress;

    #[test]
    fn says_how_far_it_is() {
        let progress = Progress::new(10, true);
        progress.begin();
        progress.step();
        progress.fail();
        let line = progress.line();
        assert!(line.starts_with("1 of 10 files, ") && line.ends_with(" left, 1 failed"), "{line}");
    }
}
