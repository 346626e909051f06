//! `nixbox journal`: shows every operation in the journal, and whether the file is intact. The command takes no lock.

use std::time::Duration;

use serde::Serialize;

use super::error::{self, CliError, ExitKind, Outcome, Problem};
use super::{WorkspaceLocation, journal_state, success};
use crate::engine::history::IllegalHistory;
use crate::engine::journal::{self, JournalError, Name, Storage as _};
use crate::engine::reader::{Located, ReadError, Tail};
use crate::engine::record::{Ended, HeaderError, Record};
use crate::engine::transition::{Generation, OperationId};
use crate::host::clock::utc;
use crate::operations;

/// Show the operations of this workspace, and how far each got
///
/// Also says whether the journal is clean, torn or damaged. A torn tail is harmless: the next changing command cuts it
/// off. A damaged journal gives the exit status 4. Nothing is changed, and the lock is not taken.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox journal --json | jq '.operations[-1]'")]
pub(super) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct JournalListing {
    path: String,
    verdict: Verdict,
    operations: Vec<OperationSummary>,
}

/// Whether the file is intact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
enum Verdict {
    /// There is no journal yet.
    Absent,
    Clean,
    /// The last record is incomplete; the next changing command cuts it off.
    Torn {
        bytes: u64,
    },
    Corrupt {
        byte: u64,
        message: String,
    },
    NewerVersion {
        message: String,
    },
    OtherWorkspace {
        message: String,
    },
    /// Every record is whole, but their sequence is illegal.
    Illegal {
        byte: u64,
        message: String,
    },
}

#[derive(Debug, Serialize)]
struct OperationSummary {
    generation: u64,
    operation: &'static str,
    begun_ms: u64,
    ended_ms: Option<u64>,
    /// `open` until the operation has ended.
    ended: &'static str,
    transitions: Vec<TransitionSummary>,
    #[serde(skip)]
    labels: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct TransitionSummary {
    index: u16,
    id: u16,
    label: String,
    status: &'static str,
    /// How long the transition took; `None` if a probe found it done.
    micros: Option<u64>,
    undo_micros: Option<u64>,
}

/// Folds the records of a scan into summaries of operations.
#[derive(Default)]
struct Fold(Vec<OperationSummary>);

impl Fold {
    fn add(&mut self, located: &Located<'_>) {
        if let Record::Begin { operation, parameters, at_ms } = located.record {
            self.0.push(begun(located.generation, operation, parameters, at_ms));
            return;
        }
        let Some(open) = self.0.last_mut() else {
            return;
        };
        match located.record {
            Record::Checkpoint { .. } | Record::Begin { .. } => {}
            Record::Intent { index, transition, .. } => {
                let entry = open.entry(index);
                entry.id = transition;
                entry.status = "intent only";
            }
            Record::Outcome { index, micros, .. } => {
                let entry = open.entry(index);
                entry.status = "done";
                entry.micros = (micros > 0).then_some(micros);
            }
            Record::UndoBegun { index } => open.entry(index).status = "undo begun",
            Record::Undone { index, micros } => {
                let entry = open.entry(index);
                entry.status = "undone";
                entry.undo_micros = Some(micros);
            }
            Record::End { ended, at_ms, .. } => {
                open.ended_ms = Some(at_ms);
                open.ended = match ended {
                    Ended::Done => "done",
                    Ended::RolledBack => "rolled back",
                    Ended::Lost => "lost",
                };
            }
        }
    }
}

fn begun(generation: Generation, id: u16, parameters: &[u8], begun_ms: u64) -> OperationSummary {
    let id = OperationId(id);
    // This nixbox has no table for an operation of another version, and shows its transitions by number.
    let labels = operations::table(id, parameters)
        .map_or_else(|_| Vec::new(), |table| table.transitions().map(|one| one.spec().label).collect());
    OperationSummary {
        generation: generation.0,
        operation: operations::label(id),
        begun_ms,
        ended_ms: None,
        ended: "open",
        transitions: Vec::new(),
        labels,
    }
}

impl OperationSummary {
    fn entry(&mut self, index: u16) -> &mut TransitionSummary {
        let position = match self.transitions.binary_search_by_key(&index, |entry| entry.index) {
            Ok(position) => position,
            Err(position) => {
                let label = self.labels.get(usize::from(index));
                let fresh = TransitionSummary {
                    index,
                    id: 0,
                    label: label.map_or_else(|| format!("transition {index}"), |l| (*l).to_owned()),
                    status: "never started",
                    micros: None,
                    undo_micros: None,
                };
                self.transitions.insert(position, fresh);
                position
            }
        };
        &mut self.transitions[position]
    }
}

fn verdict(error: ReadError<IllegalHistory>) -> Result<Verdict, ReadError<IllegalHistory>> {
    let message = error.to_string();
    Ok(match error {
        ReadError::Io { .. } => return Err(error),
        ReadError::Header(HeaderError::Version { .. }) => Verdict::NewerVersion { message },
        ReadError::Header(HeaderError::OtherWorkspace { .. }) => Verdict::OtherWorkspace { message },
        ReadError::Header(_) | ReadError::NoCheckpoint => Verdict::Corrupt { byte: 0, message },
        ReadError::Corrupt { offset, .. }
        | ReadError::OutOfPlace { offset, .. }
        | ReadError::NumberTooLarge { offset, .. }
        | ReadError::TailTooLong { offset, .. } => Verdict::Corrupt { byte: offset, message },
        ReadError::Unknown { offset, .. } => Verdict::Illegal { byte: offset, message },
        ReadError::Refused { offset, ref source, .. } => {
            Verdict::Illegal { byte: offset, message: format!("{message}: {source}") }
        }
    })
}

fn read(location: &WorkspaceLocation) -> Result<JournalListing, Problem> {
    let workspace = location.workspace()?;
    let mut storage = journal_state::storage(&workspace)?;
    let path = storage.path(Name::Current);
    let mut fold = Fold::default();
    let inspected = journal::inspect(&mut storage, Some(workspace.id()), |located| {
        fold.add(&located);
    });
    let verdict = match inspected {
        Ok(None) => Verdict::Absent,
        Ok(Some((scan, _))) => match scan.tail {
            Tail::Clean => Verdict::Clean,
            Tail::Torn(bytes) => Verdict::Torn { bytes },
        },
        Err(JournalError::Unusable { source, .. }) => {
            verdict(*source).map_err(|source| CliError::Journal { path: path.clone(), source })?
        }
        Err(error) => return Err(error.into()),
    };
    Ok(JournalListing { path, verdict, operations: fold.0 })
}

fn text(listing: &JournalListing) -> String {
    let mut lines = Vec::new();
    for operation in &listing.operations {
        let took = operation.ended_ms.map_or_else(String::new, |ended| {
            let took = Duration::from_millis(ended.saturating_sub(operation.begun_ms));
            format!(" after {}", error::duration(took))
        });
        lines.push(format!(
            "{:>5}  {}  {}: {}{took}",
            operation.generation,
            utc(operation.begun_ms),
            operation.operation,
            operation.ended
        ));
        for entry in &operation.transitions {
            let micros = |micros: Option<u64>| {
                micros.map_or_else(String::new, |micros| {
                    format!(" in {}", error::duration(Duration::from_micros(micros)))
                })
            };
            let took = match entry.status {
                "undone" => micros(entry.undo_micros),
                _ => micros(entry.micros),
            };
            lines.push(format!("         {}: {}{took}", entry.label, entry.status));
        }
    }
    lines.push(format!("{}: {}", listing.path, sentence(&listing.verdict)));
    lines.join("\n")
}

fn sentence(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Absent => "there is no journal yet".to_owned(),
        Verdict::Clean => "clean".to_owned(),
        Verdict::Torn { bytes } => {
            format!("a torn tail of {bytes} bytes, which the next changing command cuts off")
        }
        Verdict::Corrupt { byte, message } => format!("corrupt at byte {byte}: {message}"),
        Verdict::Illegal { byte, message } => format!("illegal at byte {byte}: {message}"),
        Verdict::NewerVersion { message } | Verdict::OtherWorkspace { message } => message.clone(),
    }
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let listing = read(location)?;
    if arguments.json {
        error::print_json(&listing)?;
    } else {
        error::print(&text(&listing))?;
    }
    match listing.verdict {
        Verdict::Absent | Verdict::Clean | Verdict::Torn { .. } => success(),
        _ => Ok(ExitKind::Stuck as u8),
    }
}
