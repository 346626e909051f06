//! The table of `--timings`: every part of a command in the order of its beginning, and which of them the command waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::cli::error;

/// How `--timings` is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum TimingsFormat {
    /// A table for people.
    Table,
    /// One line of JSON.
    Json,
}

/// A part of a command that has ended. Times are from the start of the command on.
#[derive(Debug, Clone)]
pub(super) struct SpanTime {
    pub(super) id: u64,
    pub(super) parent: Option<u64>,
    pub(super) begun: Duration,
    pub(super) took: Duration,
    /// For how long nixbox itself worked on the part, and did not wait.
    pub(super) busy: Duration,
    pub(super) text: String,
}

impl SpanTime {
    fn end(&self) -> Duration {
        self.begun + self.took
    }
}

/// The parts of a command that have ended.
#[derive(Debug, Default)]
pub(super) struct Timetable {
    spans: Mutex<Vec<SpanTime>>,
}

/// The part of a command in the form of the JSON output.
#[derive(Debug, Serialize)]
struct PartReport {
    /// How many parts are around this one.
    depth: usize,
    what: String,
    /// From the start of the command on, in milliseconds.
    begun_ms: f64,
    took_ms: f64,
    /// For how long nixbox's own threads worked on this part and those in it, and did not wait. A thread that waits in a system
    /// call works in this sense, because it does nothing else meanwhile.
    busy_ms: f64,
    /// Whether the command waited for this part: without it, the command would have ended sooner.
    critical: bool,
}

/// All parts in the form of the JSON output.
#[derive(Debug, Serialize)]
struct TimingsReport {
    took_ms: f64,
    parts: Vec<PartReport>,
}

impl Timetable {
    pub(super) fn add(&self, span: SpanTime) {
        self.spans().push(span);
    }

    fn spans(&self) -> MutexGuard<'_, Vec<SpanTime>> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The text of the table, or the line of JSON, of a command that took so long.
    pub(super) fn shown(&self, format: TimingsFormat, took: Duration) -> String {
        let parts = parts(&self.spans());
        if format == TimingsFormat::Json {
            let report = TimingsReport { took_ms: milliseconds(took), parts };
            // Texts, numbers and truth values can always be written.
            return serde_json::to_string(&report).unwrap_or_default() + "\n";
        }
        let mut text = "     begin       took       busy  (* the command waited for it)\n".to_owned();
        for PartReport { depth, what, begun_ms, took_ms, busy_ms, critical } in parts {
            let mark = if critical { '*' } else { ' ' };
            let indent = "  ".repeat(depth);
            text += &format!("{begun_ms:7.0} ms {took_ms:7.0} ms {busy_ms:7.0} ms {mark} {indent}{what}\n");
        }
        text + &format!("{:>10} {:>10} {:>10}   the whole command\n", "", error::duration(took), "")
    }
}

/// A duration in milliseconds, to the microsecond.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn parts(spans: &[SpanTime]) -> Vec<PartReport> {
    let ended: BTreeSet<u64> = spans.iter().map(|span| span.id).collect();
    let mut children: BTreeMap<Option<u64>, Vec<&SpanTime>> = BTreeMap::new();
    for span in spans {
        // A part may outlive the one around it.
        let parent = span.parent.filter(|parent| ended.contains(parent));
        children.entry(parent).or_default().push(span);
    }
    children.values_mut().for_each(|siblings| siblings.sort_by_key(|span| (span.begun, span.id)));
    let mut parts = Vec::new();
    list(&children, None, 0, true, &mut parts);
    parts
}

fn list(
    children: &BTreeMap<Option<u64>, Vec<&SpanTime>>,
    parent: Option<u64>,
    depth: usize,
    parent_is_critical: bool,
    parts: &mut Vec<PartReport>,
) {
    let siblings = children.get(&parent).map(Vec::as_slice).unwrap_or_default();
    let waited_for = if parent_is_critical { critical(siblings) } else { BTreeSet::new() };
    for span in siblings {
        let critical = waited_for.contains(&span.id);
        parts.push(PartReport {
            depth,
            what: span.text.clone(),
            begun_ms: milliseconds(span.begun),
            took_ms: milliseconds(span.took),
            busy_ms: milliseconds(span.busy),
            critical,
        });
        list(children, Some(span.id), depth + 1, critical, parts);
    }
}

/// The parts that were waited for, found from the end backwards: the one that ended last, then of those that had ended before
/// that one began the one that ended last, and so on.
fn critical(siblings: &[&SpanTime]) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    let mut until = Duration::MAX;
    while let Some(last) = siblings
        .iter()
        .filter(|span| span.end() <= until && !found.contains(&span.id))
        .max_by_key(|span| (span.end(), span.took))
    {
        found.insert(last.id);
        until = last.begun;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(id: u64, parent: Option<u64>, begun: u64, end: u64, text: &str) -> SpanTime {
        let (begun, end) = (Duration::from_millis(begun), Duration::from_millis(end));
        SpanTime { id, parent, begun, took: end - begun, busy: Duration::ZERO, text: text.to_owned() }
    }

    /// `prepare` is alone; then `network` and `memory` are beside each other, and `network` takes longer.
    fn timetable() -> Timetable {
        let timetable = Timetable::default();
        // Parts come in the order of their ends.
        for span in [
            span(1, None, 0, 10, "prepare"),
            span(4, Some(2), 11, 20, "nft"),
            span(3, None, 10, 40, "memory"),
            span(5, Some(2), 20, 59, "dnsmasq"),
            span(6, Some(3), 12, 30, "copy"),
            span(2, None, 10, 60, "network"),
        ] {
            timetable.add(span);
        }
        timetable
    }

    #[test]
    fn parts_stand_in_the_order_of_their_beginning_below_those_around_them() {
        let parts = parts(&timetable().spans());
        let listed: Vec<_> =
            parts.iter().map(|part| (part.depth, part.what.as_str(), part.critical)).collect();
        let expected = [
            (0, "prepare", true),
            (0, "network", true),
            (1, "nft", true),
            (1, "dnsmasq", true),
            (0, "memory", false),
            (1, "copy", false),
        ];
        assert_eq!(listed, expected);
    }

    #[test]
    fn a_table_for_people_and_a_line_for_programs() {
        let took = Duration::from_millis(61);
        let table = timetable().shown(TimingsFormat::Table, took);
        assert!(
            table.contains(
                "     10 ms      50 ms       0 ms * network\n     11 ms       9 ms       0 ms *   nft\n"
            ),
            "{table}"
        );
        assert!(table.contains("     12 ms      18 ms       0 ms     copy\n"), "{table}");
        let json = timetable().shown(TimingsFormat::Json, took);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json.lines().count(), 1);
        assert_eq!((&value["took_ms"], &value["parts"][1]["took_ms"]), (&61.0.into(), &50.0.into()));
    }

    #[test]
    fn a_part_whose_surroundings_have_not_ended_stands_alone() {
        let parts = parts(&[span(7, Some(1), 0, 0, "request"), span(8, Some(7), 0, 0, "x")]);
        assert_eq!((parts[0].depth, parts[1].depth), (0, 1));
    }
}
