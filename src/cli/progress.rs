//! The progress of operations on stderr: a line for each stage, and on a terminal a bar for each copy.
//!
//! [`ProgressDisplay`] also measures how long each stage took, for the result of the command.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::events::{self, CopyPace, PrintedEvent};
use super::visible::visible;
use super::wiring::SilentGuest;
use super::{error, trace};
use crate::engine::executor::{Event, Observer, TransitionFailure};
use crate::engine::planner::Direction;
use crate::files::copy::{CopyMethod, Progress};

/// The template of a bar. The bar fits into 80 columns with the names that nixbox gives to its copies.
const BAR: &str = "  {prefix:16} [{bar:24}] {bytes:>10} of {total_bytes} {binary_bytes_per_sec}";

/// The template of the line about a guest that is waited for.
const WAIT: &str = "  {wide_msg}";

/// A guest that answers sooner is not worth a line.
const SOON: Duration = Duration::from_secs(3);

/// Copies of fewer bytes end too soon to need a bar.
const BAR_MINIMUM: u64 = 4 << 20;

/// Prints stages as they end, and knows whether an interrupted operation would still be rolled back.
pub(super) struct ProgressDisplay {
    silent: bool,
    since: Instant,
    past_commit: AtomicBool,
    current: Mutex<CurrentOperation>,
    bars: MultiProgress,
    copies: Mutex<BTreeMap<String, ProgressBar>>,
    pace: CopyPace,
    wait: Mutex<GuestWait>,
}

/// What is shown of a guest that is waited for.
#[derive(Default)]
struct GuestWait {
    /// Whether a line was printed where no bar can be drawn.
    printed: bool,
    bar: Option<ProgressBar>,
    /// The last line of the guest's console that was seen.
    console: Option<String>,
}

#[derive(Default)]
struct CurrentOperation {
    operation: &'static str,
    commit: &'static str,
    stage: Option<(&'static str, Instant)>,
    times: Timings,
    paused: Option<Instant>,
}

/// How long a command and its stages took.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Timings {
    /// From the start of the command until the guest was SSH-ready, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ready_ms: Option<u64>,
    /// From the start of the command until its operation began, in milliseconds: everything that is checked before
    /// anything is changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) checks_ms: Option<u64>,
    /// How long the guest was paused, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) paused_ms: Option<u64>,
    /// The stages that ended, in order.
    pub(super) stages: Vec<StageTime>,
}

/// How long a stage took.
#[derive(Debug, Clone, Serialize)]
pub(super) struct StageTime {
    operation: &'static str,
    stage: &'static str,
    ms: u64,
}

impl ProgressDisplay {
    /// Starts the measurement of time. If `silent`, only [`Self::print`] prints.
    pub(super) fn new(silent: bool) -> Self {
        let target = if silent || trace::is_on() {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        Self {
            silent,
            since: Instant::now(),
            past_commit: AtomicBool::new(false),
            current: Mutex::default(),
            bars: MultiProgress::with_draw_target(target),
            copies: Mutex::default(),
            pace: CopyPace::default(),
            wait: Mutex::default(),
        }
    }

    /// Whether the running operation has passed its commit point or is about to pass it.
    pub(super) fn past_commit(&self) -> bool {
        self.past_commit.load(Ordering::SeqCst)
    }

    /// The times measured so far.
    pub(super) fn times(&self) -> Timings {
        self.current().times.clone()
    }

    /// Prints a line above the bars.
    pub(super) fn print(&self, text: &str) {
        self.bars.suspend(|| error::print_stderr(&format!("nixbox: {text}\n")));
    }

    fn print_progress(&self, text: &str) {
        if !self.silent {
            self.print(text);
        }
    }

    fn current(&self) -> MutexGuard<'_, CurrentOperation> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copies(&self) -> MutexGuard<'_, BTreeMap<String, ProgressBar>> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_stage(&self, current: &mut CurrentOperation) {
        self.end_copies();
        if let Some((stage, since)) = current.stage.take() {
            let took = since.elapsed();
            current.times.stages.push(StageTime { operation: current.operation, stage, ms: millis(took) });
            self.print_progress(&format!("{}: {stage} ({})", current.operation, error::duration(took)));
        }
    }

    fn wait(&self) -> MutexGuard<'_, GuestWait> {
        self.wait.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows that a guest is waited for, for how long, and what it last wrote to its console.
    pub(super) fn waits_for(&self, SilentGuest { waited, timeout, console }: SilentGuest) {
        let mut wait = self.wait();
        wait.console = console.or(wait.console.take());
        if self.silent || waited < SOON {
            return;
        }
        if self.bars.is_hidden() {
            if !std::mem::replace(&mut wait.printed, true) {
                self.print(&format!(
                    "waiting for the guest to answer SSH, for {timeout}, or longer while it writes to its console"
                ));
            }
            return;
        }
        let seconds = waited.as_secs();
        let mut text = format!("waiting for the guest to answer SSH: {seconds} s");
        if waited < timeout.duration() {
            text.push_str(&format!(" of {timeout}"));
        } else {
            text.push_str(", because it still writes to its console");
        }
        if let Some(line) = &wait.console {
            text.push_str(&format!("; its console: {line}"));
        }
        let bar = wait.bar.get_or_insert_with(|| {
            let style =
                ProgressStyle::with_template(WAIT).unwrap_or_else(|_| ProgressStyle::default_spinner());
            self.bars.add(ProgressBar::no_length().with_style(style))
        });
        bar.set_message(visible(&text));
        bar.tick();
    }

    /// The last line of the console of a guest that was waited for.
    pub(super) fn console(&self) -> Option<String> {
        self.wait().console.clone()
    }

    /// Removes the bars, also those of copies that failed or were interrupted.
    fn end_copies(&self) {
        let mut wait = self.wait();
        wait.printed = false;
        if let Some(bar) = wait.bar.take() {
            bar.finish_and_clear();
        }
        for bar in std::mem::take(&mut *self.copies()).into_values() {
            bar.finish_and_clear();
        }
    }

    fn bar(&self, what: &str) -> ProgressBar {
        let mut copies = self.copies();
        if let Some(bar) = copies.get(what) {
            return bar.clone();
        }
        let bar = self.bars.add(ProgressBar::no_length().with_prefix(visible(what)));
        if let Ok(style) = ProgressStyle::with_template(BAR) {
            bar.set_style(style.progress_chars("=> "));
        }
        copies.insert(what.to_owned(), bar.clone());
        bar
    }
}

/// A duration in milliseconds.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Progress for ProgressDisplay {
    fn progress(&self, what: &str, done: u64, total: u64) {
        self.pace.print(what, done, total);
        if self.silent || total < BAR_MINIMUM {
            return;
        }
        let bar = self.bar(what);
        bar.set_length(total);
        bar.set_position(done);
        if done >= total {
            // The bar stays in the list until the stage ends, so that a repeated report of the end does not add another
            // bar.
            bar.finish_and_clear();
        }
    }

    fn copied(&self, what: &str, method: CopyMethod) {
        let how = match method {
            CopyMethod::Reflink => "its blocks are shared, nothing was copied".to_owned(),
            CopyMethod::Sparse { written, .. } => format!("{} copied", HumanBytes(written)),
        };
        self.print_progress(&format!("  {what}: {how}"));
    }
}

impl Observer for ProgressDisplay {
    fn event(&self, event: Event) {
        events::print(&PrintedEvent::from(&event));
        let mut current = self.current();
        match event {
            Event::Begun { operation, generation, commit, recovery } => {
                self.past_commit.store(false, Ordering::SeqCst);
                (current.operation, current.commit, current.stage) = (operation, commit, None);
                current.times.checks_ms = Some(millis(self.since.elapsed()));
                if recovery {
                    self.print_progress(&format!(
                        "`{operation}` of generation {generation} was left half done"
                    ));
                }
            }
            Event::Turned(direction) => {
                current.stage = None;
                self.end_copies();
                let forward = direction == Direction::Forward;
                self.past_commit.store(forward, Ordering::SeqCst);
                let way = if forward { "going on" } else { "rolling back" };
                self.print_progress(&format!("{}: {way}", current.operation));
            }
            Event::Stage(label) => {
                self.end_stage(&mut current);
                current.stage = Some((label, Instant::now()));
            }
            Event::Acts(label) => {
                if label == current.commit {
                    self.past_commit.store(true, Ordering::SeqCst);
                }
            }
            Event::Failed(_) => current.stage = None,
            Event::Done { label: "pause", .. } => current.paused = Some(Instant::now()),
            Event::Done { label: "resume", .. } => {
                let paused = current.paused.take();
                current.times.paused_ms =
                    paused.map(|since| millis(since.elapsed())).or(current.times.paused_ms);
            }
            Event::Done { label: "SSH-ready", .. } => {
                current.times.ready_ms = Some(millis(self.since.elapsed()))
            }
            Event::Undone(label) => self.print_progress(&format!("{}: undid {label}", current.operation)),
            Event::Ended(_) => self.end_stage(&mut current),
            Event::Done { .. } | Event::Undoes(_) => {}
        }
    }

    fn waits(&self, why: &str) {
        events::print(&PrintedEvent::Waits { text: why });
        self.print_progress(why);
    }

    fn failure(&self, failure: &TransitionFailure) {
        events::print(&PrintedEvent::from(failure));
        self.end_copies();
        let operation = self.current().operation;
        self.print_progress(&format!("{operation}: {}", error::chain(failure)));
    }
}
