//! What a person sees while an operation runs: one line for each stage, on stderr.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::report;
use crate::engine::executor::{Event, Observer};
use crate::engine::planner::Direction;

/// Prints stages as they end, and knows whether an interrupt would still lead back.
pub(super) struct Show {
    silent: bool,
    past_commit: AtomicBool,
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    operation: &'static str,
    commit: &'static str,
    stage: Option<(&'static str, Instant)>,
}

impl Show {
    pub(super) fn new(silent: bool) -> Self {
        Self { silent, past_commit: AtomicBool::new(false), now: Mutex::default() }
    }

    /// Whether the operation that runs is past its commit point, or about to pass it.
    pub(super) fn past_commit(&self) -> bool {
        self.past_commit.load(Ordering::SeqCst)
    }

    fn line(&self, text: &str) {
        if !self.silent {
            report::say(&format!("nixbox: {text}\n"));
        }
    }

    fn end_stage(&self, now: &mut Now) {
        if let Some((label, since)) = now.stage.take() {
            let took = report::duration(since.elapsed());
            self.line(&format!("{}: {label} ({took})", now.operation));
        }
    }
}

impl Observer for Show {
    fn event(&self, event: Event) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Begun { operation, generation, commit, recovery } => {
                self.past_commit.store(false, Ordering::SeqCst);
                *now = Now { operation, commit, stage: None };
                if recovery {
                    self.line(&format!("`{operation}` of generation {generation} was left half done"));
                }
            }
            Event::Turned(direction) => {
                now.stage = None;
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
            Event::Failed(label) => {
                now.stage = None;
                self.line(&format!("{}: {label} failed", now.operation));
            }
            Event::Undone(label) => self.line(&format!("{}: took back {label}", now.operation)),
            Event::Ended(_) => self.end_stage(&mut now),
            Event::Done { .. } | Event::Undoes(_) => {}
        }
    }
}
