//! The pictures and tables of the documentation are those of the code: each is drawn here from the operations' own
//! tables and from the planner's decisions, and compared with the module heads and the README.
//!
//! Where a comparison fails, the message prints what belongs there, ready to be pasted.

use std::collections::BTreeMap;

use nixbox::engine::history::TransitionStatus;
use nixbox::engine::planner::{CommitSide, Decision, decide};
use nixbox::engine::transition::{Operation, UndoPolicy};
use nixbox::operations;
use nixbox::world::World;

const README: &str = include_str!("../../README.md");
const OPERATIONS: &str = include_str!("../../src/operations/mod.rs");
const PLANNER: &str = include_str!("../../src/engine/planner.rs");

/// The head of each operation's file.
const HEADS: [(&str, &str); 6] = [
    ("up", include_str!("../../src/operations/up.rs")),
    ("down", include_str!("../../src/operations/down.rs")),
    ("snapshot", include_str!("../../src/operations/snapshot.rs")),
    ("restore", include_str!("../../src/operations/restore.rs")),
    ("equip", include_str!("../../src/operations/equip.rs")),
    ("delete", include_str!("../../src/operations/delete.rs")),
];

/// No line of a picture is longer, in characters.
const WIDTH: usize = 100;

/// The text of a module head.
fn head(source: &str) -> Vec<&str> {
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect()
}

/// The first picture of a module head.
fn picture(source: &str) -> String {
    let lines = head(source).into_iter().skip_while(|line| *line != "```text").skip(1);
    lines.take_while(|line| *line != "```").collect::<Vec<_>>().join("\n")
}

/// The first table of a module head, or that after a marker of the README.
fn table<'a>(lines: impl IntoIterator<Item = &'a str>) -> String {
    let lines = lines.into_iter().skip_while(|line| !line.starts_with('|'));
    lines.take_while(|line| line.starts_with('|')).collect::<Vec<_>>().join("\n")
}

fn readme_table(marker: &str) -> String {
    let marker = format!("<!-- {marker} -->");
    table(README.lines().skip_while(|line| *line != marker))
}

/// Every place that has another picture than the code. All are told at once.
#[derive(Default)]
struct Drift(Vec<String>);

impl Drift {
    fn compare(&mut self, place: &str, found: &str, expected: &str) {
        if found != expected {
            let comment: Vec<_> =
                expected.lines().map(|line| format!("//! {line}").trim_end().to_owned()).collect();
            self.0.push(format!(
                "{place} should have\n\n{expected}\n\nand as a comment\n\n{}",
                comment.join("\n")
            ));
        }
    }

    fn none(self) {
        assert!(self.0.is_empty(), "{}", self.0.join("\n\n"));
    }
}

/// The tables of each command: the first has all transitions that any of them has.
fn commands() -> Vec<(&'static str, Vec<Operation<World>>)> {
    let mut commands: Vec<(&str, Vec<_>)> = Vec::new();
    for (command, operation) in operations::tables() {
        match commands.last_mut() {
            Some((last, variants)) if *last == command => variants.push(operation),
            _ => commands.push((command, vec![operation])),
        }
    }
    commands
}

fn drawn(command: &str, variants: &[Operation<World>]) -> String {
    let ids = |variant: &Operation<World>| -> Vec<_> {
        variant.transitions().map(|transition| transition.spec().id).collect()
    };
    let full = &variants[0];
    for variant in variants {
        // Each variant is the full one with transitions left out, and none is in another order.
        let left = ids(variant);
        let mut all = ids(full).into_iter();
        assert!(left.iter().all(|id| all.any(|other| other == *id)), "{command}: {left:?}");
    }
    let in_all = |id| variants.iter().all(|variant| ids(variant).contains(&id));
    let commit = full.commit_point().unwrap();
    let mut index = 0;
    let mut stages = Vec::new();
    for stage in full.stages() {
        let mut transitions = Vec::new();
        for spec in stage.transitions.iter().map(|transition| transition.spec()) {
            let mut text = if index == commit { spec.label.to_uppercase() } else { spec.label.to_owned() };
            if spec.undo == UndoPolicy::Undoable {
                text.push_str(" ↶");
            }
            transitions.push(if in_all(spec.id) { text } else { format!("[{text}]") });
            index += 1;
        }
        stages.push(transitions.join(" ∥ "));
    }
    wrapped(&stages)
}

/// The stages in one line, or in several that each begin with an arrow.
fn wrapped(stages: &[String]) -> String {
    let mut lines = vec![stages[0].clone()];
    for stage in &stages[1..] {
        let line = lines.last_mut().unwrap();
        if line.chars().count() + stage.chars().count() + 4 <= WIDTH {
            line.push_str(&format!(" ─► {stage}"));
        } else {
            lines.push(format!("  ─► {stage}"));
        }
    }
    lines.join("\n")
}

#[test]
fn the_head_of_each_operation_draws_its_table() {
    let mut drift = Drift::default();
    for (name, source) in HEADS {
        let commands: Vec<_> =
            commands().into_iter().filter(|(_, variants)| variants[0].label == name).collect();
        let pictures: Vec<_> = commands
            .iter()
            .map(|(command, variants)| {
                let title = if commands.len() > 1 { format!("{command}:\n") } else { String::new() };
                title + &drawn(command, variants)
            })
            .collect();
        drift.compare(&format!("operations/{name}.rs"), &picture(source), &pictures.join("\n\n"));
    }
    drift.none();
}

/// What recovery promises is prose. Which operations there are, and their commit points, are the code's; and the README
/// says what the code says.
#[test]
fn the_table_of_operations_has_their_commit_points() {
    let in_head = table(head(OPERATIONS));
    let rows: Vec<Vec<&str>> =
        in_head.lines().skip(2).map(|line| line.split('|').map(str::trim).collect()).collect();
    let promises: BTreeMap<&str, &[&str]> = rows.iter().map(|row| (row[1], &row[3..5])).collect();
    let mut expected =
        String::from("| operation | commit point | before it, recovery goes | after it |\n|---|---|---|---|");
    for (command, variants) in commands().iter().filter(|(command, _)| !command.contains(' ')) {
        let commit = variants[0].transitions().nth(variants[0].commit_point().unwrap()).unwrap();
        let name = format!("`{command}`");
        let promises = promises.get(name.as_str()).map_or("? | ?".to_owned(), |cells| cells.join(" | "));
        expected.push_str(&format!("\n| {name} | {} | {promises} |", commit.spec().label));
    }
    let rows = |text: &str| {
        let mut rows: Vec<_> = text.lines().map(str::to_owned).collect();
        rows.sort();
        rows
    };
    assert_eq!(rows(&in_head), rows(&expected), "operations/mod.rs should have\n\n{expected}\n");
    let mut drift = Drift::default();
    drift.compare("The README, after <!-- operations -->,", &readme_table("operations"), &in_head);
    drift.none();
}

fn cell(decision: Decision) -> &'static str {
    match decision {
        Decision::Skip => "skip",
        Decision::ProbeThenUndo => "probe, undo",
        Decision::Undo => "undo, in reverse order",
        Decision::Nothing => "nothing",
        Decision::RollBack => "roll back",
        Decision::RollForward => "roll forward",
        Decision::ProbeDecides => "probe decides the direction; cannot tell: stuck",
        Decision::Apply => "apply",
        Decision::ProbeThenApply => "probe: done → record, not done → apply, lost → clear away",
        Decision::Illegal => "illegal history",
    }
}

#[test]
fn the_table_of_decisions_is_the_planners() {
    let statuses = [
        (TransitionStatus::NeverStarted, "never started"),
        (TransitionStatus::IntentOnly, "intent only"),
        (TransitionStatus::Done, "done"),
        (TransitionStatus::UndoBegun, "undo begun"),
        (TransitionStatus::Undone, "undone"),
    ];
    let mut expected = String::from(
        "| status of a transition | before the commit point | the commit point itself | after it |\n|---|---|---|---|",
    );
    for (status, name) in statuses {
        let cells = [CommitSide::Before, CommitSide::Commit, CommitSide::After]
            .map(|side| cell(decide(side, status)));
        expected.push_str(&format!("\n| {name} | {} |", cells.join(" | ")));
    }
    let mut drift = Drift::default();
    drift.compare("engine/planner.rs", &table(head(PLANNER)), &expected);
    drift.compare("The README, after <!-- recovery -->,", &readme_table("recovery"), &expected);
    drift.none();
}
