//! What a person sees while an operation runs, on stderr: a line for each stage, and on a terminal a bar for each copy.
//!
//! It also remembers how long what took, for the result.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::error;
use crate::engine::executor::{Event, Observer, TransitionFailure};
use crate::engine::planner::Direction;
use crate::files::copy::{Method, Progress};

/// Fits 80 columns with names as long as ours.
const BAR: &str = "  {prefix:16} [{bar:24}] {bytes:>10} of {total_bytes} {binary_bytes_per_sec}";

/// In bytes.
const WORTH_A_BAR: u64 = 4 << 20;

/// Prints stages as they end, and knows whether an interrupt would still lead back.
pub(super) struct ProgressDisplay {
    silent: bool,
    since: Instant,
    past_commit: AtomicBool,
    now: Mutex<Now>,
    bars: MultiProgress,
    copies: Mutex<BTreeMap<String, ProgressBar>>,
}

#[derive(Default)]
struct Now {
    operation: &'static str,
    commit: &'static str,
    stage: Option<(&'static str, Instant)>,
    times: Times,
    paused: Option<Instant>,
}

/// How long what took.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Times {
    /// From the start of the command until the guest was SSH-ready, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ready_ms: Option<u64>,
    /// How long the guest was paused, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) paused_ms: Option<u64>,
    /// Every stage that ended, in order.
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
    /// From the start of the command. `silent`: prints nothing.
    pub(super) fn new(silent: bool) -> Self {
        let target = if silent { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        Self {
            silent,
            since: Instant::now(),
            past_commit: AtomicBool::new(false),
            now: Mutex::default(),
            bars: MultiProgress::with_draw_target(target),
            copies: Mutex::default(),
        }
    }

    /// Whether the operation that runs is past its commit point, or about to pass it.
    pub(super) fn past_commit(&self) -> bool {
        self.past_commit.load(Ordering::SeqCst)
    }

    /// How long what took so far.
    pub(super) fn times(&self) -> Times {
        self.now().times.clone()
    }

    /// Prints a line, whatever bars there are below it.
    pub(super) fn say(&self, text: &str) {
        self.bars.suspend(|| error::say(&format!("nixbox: {text}\n")));
    }

    fn line(&self, text: &str) {
        if !self.silent {
            self.say(text);
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copies(&self) -> MutexGuard<'_, BTreeMap<String, ProgressBar>> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_stage(&self, now: &mut Now) {
        self.end_copies();
        if let Some((stage, since)) = now.stage.take() {
            let took = since.elapsed();
            now.times.stages.push(StageTime { operation: now.operation, stage, ms: millis(took) });
            self.line(&format!("{}: {stage} ({})", now.operation, error::duration(took)));
        }
    }

    /// Copies that failed or were interrupted leave no bar behind.
    fn end_copies(&self) {
        for bar in std::mem::take(&mut *self.copies()).into_values() {
            bar.finish_and_clear();
        }
    }

    fn bar(&self, what: &str) -> ProgressBar {
        let mut copies = self.copies();
        if let Some(bar) = copies.get(what) {
            return bar.clone();
        }
        let bar = self.bars.add(ProgressBar::no_length().with_prefix(what.to_owned()));
        if let Ok(style) = ProgressStyle::with_template(BAR) {
            bar.set_style(style.progress_chars("=> "));
        }
        copies.insert(what.to_owned(), bar.clone());
        bar
    }
}

/// In milliseconds, which no command takes too many of for a `u64`.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Progress for ProgressDisplay {
    fn progress(&self, what: &str, done: u64, total: u64) {
        // What takes no time needs no bar.
        if self.silent || total < WORTH_A_BAR {
            return;
        }
        let bar = self.bar(what);
        bar.set_length(total);
        bar.set_position(done);
        if done >= total {
            // It stays in the list until the stage ends, so that the last word of a copy does not begin another bar.
            bar.finish_and_clear();
        }
    }

    fn copied(&self, what: &str, method: Method) {
        let how = match method {
            Method::Reflink => "its blocks are shared, nothing was copied".to_owned(),
            Method::Sparse { written, .. } => format!("{} copied", HumanBytes(written)),
        };
        self.line(&format!("  {what}: {how}"));
    }
}

impl Observer for ProgressDisplay {
    fn event(&self, event: Event) {
        let mut now = self.now();
        match event {
            Event::Begun { operation, generation, commit, recovery } => {
                self.past_commit.store(false, Ordering::SeqCst);
                (now.operation, now.commit, now.stage) = (operation, commit, None);
                if recovery {
                    self.line(&format!("`{operation}` of generation {generation} was left half done"));
                }
            }
            Event::Turned(direction) => {
                now.stage = None;
                self.end_copies();
                let forward = direction == Direction::Forward;
                self.past_commit.store(forward, Ordering::SeqCst);
                let way = if forward { "going on" } else { "rolling back" };
                self.line(&format!("{}: {way}", now.operation));
            }
            Event::Stage(label) => {
                self.end_stage(&mut now);
                now.stage = Some((label, Instant::now()));
            }
            Event::Acts(label) => {
                if label == now.commit {
                    self.past_commit.store(true, Ordering::SeqCst);
                }
            }
            Event::Failed(_) => now.stage = None,
            Event::Done { label: "pause", .. } => now.paused = Some(Instant::now()),
            Event::Done { label: "resume", .. } => {
                let paused = now.paused.take();
                now.times.paused_ms = paused.map(|since| millis(since.elapsed())).or(now.times.paused_ms);
            }
            Event::Done { label: "SSH-ready", .. } => now.times.ready_ms = Some(millis(self.since.elapsed())),
            Event::Undone(label) => self.line(&format!("{}: took back {label}", now.operation)),
            Event::Ended(_) => self.end_stage(&mut now),
            Event::Done { .. } | Event::Undoes(_) => {}
        }
    }

    fn waits(&self, why: &str) {
        self.line(why);
    }

    fn failure(&self, failure: &TransitionFailure) {
        self.end_copies();
        let operation = self.now().operation;
        self.line(&format!("{operation}: {}", error::chain(failure)));
    }
}
