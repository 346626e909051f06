//! `--events`: what happens, as lines of JSON on stdout, for programs that show it or wait for it.
//!
//! Each line is one [`PrintedEvent`]. The first is `start`, and the last is `result` or `error`. A later nixbox may add fields and
//! kinds of events; [`FORMAT`] changes if one is renamed, removed or means something else. What is printed for people on stderr
//! is left out, except errors.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::error::{self, Problem};
use crate::engine::executor::{Event, TransitionFailure};
use crate::engine::planner::Direction;
use crate::engine::record::Ended;

/// The version of the events.
const FORMAT: u32 = 1;

/// How often the progress of one copy is reported at most, besides its end.
const PACE: Duration = Duration::from_millis(250);

/// Whether this process prints events. One process runs one command.
static ON: AtomicBool = AtomicBool::new(false);

/// Something that happened.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(super) enum PrintedEvent<'a> {
    /// nixbox has understood its command line.
    Start { format: u32, nixbox: &'static str },
    /// An operation begins, or is taken up again after an earlier run left it half done.
    Begun { operation: &'static str, generation: u64, recovery: bool },
    /// The operation goes on or is rolled back, after a failure or in a recovery.
    Turned { direction: &'static str },
    /// A stage of the operation begins.
    Stage { stage: &'static str },
    /// A transition is about to act.
    Acts { transition: &'static str },
    /// A transition is done. There is no time if it was found done.
    Done { transition: &'static str, took_ms: Option<u64> },
    /// A transition failed.
    Failed { transition: &'static str },
    /// Why it failed: the error and its causes.
    Failure { transition: &'static str, errors: Vec<String> },
    /// A transition is about to be undone.
    Undoes { transition: &'static str },
    /// A transition has been undone.
    Undone { transition: &'static str },
    /// The operation has ended.
    Ended { ended: &'static str },
    /// How far a copy is, in bytes.
    Progress { what: &'a str, done: u64, total: u64 },
    /// The operation waits for something.
    Waits { text: &'a str },
    /// The command has done what it was asked to do. The result is that of `--json`.
    Result { result: &'a serde_json::Value },
    /// The command failed: its exit code, the error and its causes, and what to do.
    Error { exit: u8, errors: Vec<String>, hint: Option<&'static str> },
}

impl From<&Event> for PrintedEvent<'_> {
    fn from(event: &Event) -> Self {
        match event {
            Event::Begun { operation, generation, commit: _, recovery } => {
                Self::Begun { operation, generation: generation.0, recovery: *recovery }
            }
            Event::Turned(direction) => Self::Turned {
                direction: match direction {
                    Direction::Forward => "forward",
                    Direction::Back => "back",
                    Direction::ProbeDecides => "undecided",
                },
            },
            Event::Stage(stage) => Self::Stage { stage },
            Event::Acts(transition) => Self::Acts { transition },
            Event::Done { label, took } => {
                let took_ms = took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
                Self::Done { transition: label, took_ms }
            }
            Event::Failed(transition) => Self::Failed { transition },
            Event::Undoes(transition) => Self::Undoes { transition },
            Event::Undone(transition) => Self::Undone { transition },
            Event::Ended(ended) => Self::Ended {
                ended: match ended {
                    Ended::Done => "done",
                    Ended::RolledBack => "rolled-back",
                    Ended::Lost => "lost",
                },
            },
        }
    }
}

impl<'a> From<&'a TransitionFailure> for PrintedEvent<'a> {
    fn from(failure: &'a TransitionFailure) -> Self {
        Self::Failure { transition: failure.label, errors: crate::world::messages(failure) }
    }
}

impl From<&Problem> for PrintedEvent<'_> {
    fn from(problem: &Problem) -> Self {
        Self::Error { exit: problem.exit() as u8, errors: problem.messages(), hint: problem.hint() }
    }
}

/// Lets this process print events from now on.
///
/// # Errors
/// If stdout cannot be written.
pub(super) fn begin() -> Result<(), Problem> {
    ON.store(true, Ordering::SeqCst);
    error::print_json_line(&PrintedEvent::Start { format: FORMAT, nixbox: env!("CARGO_PKG_VERSION") })
}

/// Whether this process prints events.
pub(super) fn are_on() -> bool {
    ON.load(Ordering::SeqCst)
}

/// Prints an event, if this process prints any. A reader that has gone does not end an operation.
pub(super) fn print(event: &PrintedEvent<'_>) {
    if are_on() {
        error::print_json_line(event).ok();
    }
}

/// When the progress of each copy was reported last.
#[derive(Debug, Default)]
pub(super) struct CopyPace(Mutex<BTreeMap<String, Instant>>);

impl CopyPace {
    /// Prints how far a copy is, unless that was printed a moment ago.
    pub(super) fn print(&self, what: &str, done: u64, total: u64) {
        if are_on() && self.is_due(what, done >= total) {
            print(&PrintedEvent::Progress { what, done, total });
        }
    }

    fn is_due(&self, what: &str, ended: bool) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = ended || last.get(what).is_none_or(|last| last.elapsed() >= PACE);
        if due {
            last.insert(what.to_owned(), Instant::now());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::transition::Generation;

    fn line(event: &PrintedEvent<'_>) -> String {
        serde_json::to_string(event).unwrap()
    }

    #[test]
    fn every_event_of_the_engine_has_its_line() {
        let took = Some(Duration::from_millis(7));
        for (event, expected) in [
            (
                Event::Begun { operation: "up", generation: Generation(4), commit: "boot", recovery: false },
                r#"{"event":"begun","operation":"up","generation":4,"recovery":false}"#,
            ),
            (Event::Turned(Direction::Back), r#"{"event":"turned","direction":"back"}"#),
            (Event::Stage("load"), r#"{"event":"stage","stage":"load"}"#),
            (Event::Acts("boot"), r#"{"event":"acts","transition":"boot"}"#),
            (Event::Done { label: "boot", took }, r#"{"event":"done","transition":"boot","took_ms":7}"#),
            (
                Event::Done { label: "boot", took: None },
                r#"{"event":"done","transition":"boot","took_ms":null}"#,
            ),
            (Event::Failed("boot"), r#"{"event":"failed","transition":"boot"}"#),
            (Event::Undoes("boot"), r#"{"event":"undoes","transition":"boot"}"#),
            (Event::Undone("boot"), r#"{"event":"undone","transition":"boot"}"#),
            (Event::Ended(Ended::RolledBack), r#"{"event":"ended","ended":"rolled-back"}"#),
        ] {
            assert_eq!(line(&PrintedEvent::from(&event)), expected);
        }
        let result = serde_json::json!({ "result": "done" });
        let expected = r#"{"event":"result","result":{"result":"done"}}"#;
        assert_eq!(line(&PrintedEvent::Result { result: &result }), expected);
    }

    #[test]
    fn a_copy_is_reported_now_and_then_and_at_its_end() {
        let pace = CopyPace::default();
        assert!(pace.is_due("RAM", false) && pace.is_due("disk", false), "each copy has its own pace");
        assert!(!pace.is_due("RAM", false), "a moment ago");
        assert!(pace.is_due("RAM", true), "the end");
    }
}
