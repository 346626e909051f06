//! How a workspace stands by its journal, without the lock and without changing anything.

use crate::engine::history::History;
use crate::engine::journal::{self, Name, Storage as _};
use crate::engine::transition::Generation;
use crate::files::Folder;
use crate::operations::{self, RunningVm, WorkspaceState};
use crate::store::journal_files::FileStorage;
use crate::workspace::Workspace;

use super::error::{ExitKind, Problem};

/// How it stands.
pub(super) struct JournalState {
    pub(super) standing: WorkspaceState,
    /// The operation that has not ended, with its generation.
    pub(super) open: Option<(&'static str, Generation)>,
}

#[derive(Debug, thiserror::Error)]
enum JournalStateError {
    #[error("cannot open the journal's directory {path}")]
    Directory {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the journal {path} does not say how the workspace stands")]
    UnreadableState {
        path: String,
        #[source]
        source: crate::engine::record::PayloadError,
    },
    #[error("no VM is running")]
    NotRunning,
    #[error("no VM is running: `{0}` was left half done, or is under way")]
    HalfDone(&'static str),
}

pub(super) fn storage(workspace: &Workspace) -> Result<FileStorage, Problem> {
    let path = workspace.journal();
    FileStorage::new(&path).map_err(|source| {
        let path = path.display().to_string();
        Problem::new(ExitKind::Failed, JournalStateError::Directory { path, source })
    })
}

pub(super) fn peek(workspace: &Workspace) -> Result<JournalState, Problem> {
    let mut storage = storage(workspace)?;
    let Some((_, history)) = journal::inspect(&mut storage, Some(workspace.id()), |_| {})? else {
        return Ok(JournalState { standing: WorkspaceState::Down { disk: None }, open: None });
    };
    let standing = WorkspaceState::of(&history.final_state).map_err(|source| {
        let path = storage.path(Name::Current);
        Problem::new(ExitKind::Stuck, JournalStateError::UnreadableState { path, source })
    })?;
    let open = history.open();
    Ok(JournalState {
        standing,
        open: open.and_then(|open| Some((operations::label(open.operation?), open.generation))),
    })
}

/// What the journal says, if there is one.
pub(super) fn history(workspace: &Workspace) -> Result<Option<History>, Problem> {
    let mut storage = storage(workspace)?;
    let inspected = journal::inspect(&mut storage, Some(workspace.id()), |_| {})?;
    Ok(inspected.map(|(_, history)| history))
}

/// The VM that commands are run in.
pub(super) fn running(workspace: &Workspace) -> Result<RunningVm, Problem> {
    let peek = peek(workspace)?;
    match (peek.standing, peek.open) {
        (WorkspaceState::Up(vm), _) => Ok(vm),
        (_, Some((operation, _))) => {
            Err(Problem::new(ExitKind::NotFound, JournalStateError::HalfDone(operation))
                .with("`nixbox recover` finishes it or takes it back"))
        }
        (_, None) => {
            Err(Problem::new(ExitKind::NotFound, JournalStateError::NotRunning)
                .with("`nixbox up` starts one"))
        }
    }
}

/// The highest generation that anything in the workspace bears: a journal that was lost must not use one again.
pub(super) fn floor(workspace: &Workspace) -> Result<Generation, Problem> {
    let mut highest = 0;
    for path in [workspace.run(), workspace.snapshots()] {
        let names = Folder::open(&path)
            .and_then(|folder| folder.names())
            .map_err(|error| Problem::new(ExitKind::Failed, error))?;
        for name in names {
            let name = name.to_string_lossy().into_owned();
            let numbers = name
                .split(|character: char| !character.is_ascii_digit())
                .filter_map(|digits| digits.parse::<u64>().ok());
            // One below the highest is left, or no operation could follow.
            highest = numbers.fold(highest, u64::max).min(u64::MAX - 1);
        }
    }
    Ok(Generation(highest))
}
