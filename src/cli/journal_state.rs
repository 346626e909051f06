//! Reads the state of a workspace from its journal, without the lock. This module changes nothing.

use super::error::{CliError, ExitKind, Problem};
use crate::engine::history::{History, OpenOperation};
use crate::engine::journal::{self, Name, Storage as _};
use crate::engine::record::PayloadError;
use crate::engine::transition::Generation;
use crate::files::Folder;
use crate::operations::{self, RunningVm, WorkspaceState};
use crate::store::built::{self, BuiltRecord, RecordFileError};
use crate::store::journal_files::FileStorage;
use crate::workspace::Workspace;

/// The state of a workspace according to its journal.
pub(super) struct JournalState {
    /// The state of the workspace. If an operation has not ended, this is the state before that operation.
    pub(super) state: WorkspaceState,
    /// `None` if there is no journal yet.
    history: Option<History>,
}

impl JournalState {
    pub(super) fn is_down(&self) -> bool {
        matches!(self.state, WorkspaceState::Down { .. })
    }

    /// The generation of the built record that describes the VM of this journal.
    pub(super) fn described_vm(&self, workspace: &Workspace) -> Result<Option<Generation>, CliError> {
        let described = self.history.as_ref().map(operations::described_vm).transpose();
        Ok(described.map_err(|source| unreadable(workspace, source))?.flatten())
    }

    /// The operation that has not ended.
    pub(super) fn open(&self) -> Option<&OpenOperation> {
        self.history.as_ref().and_then(History::open)
    }

    /// The name and the generation of the operation that has not ended.
    pub(super) fn open_label(&self) -> Option<(&'static str, Generation)> {
        let open = self.open()?;
        Some((operations::label(open.operation?), open.generation))
    }
}

fn unreadable(workspace: &Workspace, source: PayloadError) -> CliError {
    let path = workspace.journal().join(Name::Current.file_name()).display().to_string();
    CliError::JournalState { path, source }
}

/// Opens the directory of the journal.
pub(super) fn storage(workspace: &Workspace) -> Result<FileStorage, CliError> {
    let path = workspace.journal();
    FileStorage::new(&path)
        .map_err(|source| CliError::JournalDirectory { path: path.display().to_string(), source })
}

pub(super) fn read(workspace: &Workspace) -> Result<JournalState, Problem> {
    let mut storage = storage(workspace)?;
    let Some((_, history)) = journal::inspect(&mut storage, Some(workspace.id()), |_| {})? else {
        return Ok(JournalState { state: WorkspaceState::Down { disk: None }, history: None });
    };
    let state = WorkspaceState::of(&history.final_state)
        .map_err(|source| CliError::JournalState { path: storage.path(Name::Current), source })?;
    Ok(JournalState { state, history: Some(history) })
}

/// What the VM that the journal is about was built from; `None` if there is no such VM, or if an earlier nixbox built it.
pub(super) fn built_record(
    workspace: &Workspace,
    journal: &JournalState,
) -> Result<Option<BuiltRecord>, Problem> {
    let Some(generation) = journal.described_vm(workspace)? else {
        return Ok(None);
    };
    let run = Folder::open(&workspace.run()).map_err(RecordFileError::File)?;
    Ok(built::read(&run, generation)?)
}

/// The newest built record of the workspace, for a command that ends the VM though the journal cannot be used.
pub(super) fn newest_record(workspace: &Workspace) -> Result<Option<BuiltRecord>, Problem> {
    let run = Folder::open(&workspace.run()).map_err(RecordFileError::File)?;
    Ok(built::newest(&run)?)
}

/// The VM that runs in the workspace. An operation that is at work may have made it: then a script of the user's can run
/// commands in its guest.
pub(super) fn running_vm(workspace: &Workspace, journal: &JournalState) -> Result<RunningVm, Problem> {
    if let WorkspaceState::Up(vm) = journal.state {
        return Ok(vm);
    }
    let made = journal.open().map(operations::vm_in_progress).transpose();
    let made = made.map_err(|source| unreadable(workspace, source))?;
    match (made.flatten(), journal.open_label()) {
        (Some(vm), _) => Ok(vm),
        (None, Some((operation, _))) => Err(CliError::HalfDone(operation).into()),
        (None, None) => Err(CliError::NotRunning.into()),
    }
}

/// The highest generation in the names of the workspace's files. If the journal was lost, the new one must begin above
/// it, so that no generation is used twice.
pub(super) fn highest_generation(workspace: &Workspace) -> Result<Generation, Problem> {
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
            // The highest possible number is left for the operation that follows.
            highest = numbers.fold(highest, u64::max).min(u64::MAX - 1);
        }
    }
    Ok(Generation(highest))
}
