//! What every changing command does: take the lock, put the world together, open the journal, run, and end in time.

use std::sync::Arc;
use std::time::Duration;

use super::error::{self, ExitKind, Problem};
use super::progress::ProgressDisplay;
use super::wiring::{self, Wiring};
use super::{WorkspaceLocation, journal_state, signals};
use crate::config::Config;
use crate::engine::executor::Observer;
use crate::engine::journal::Journal;
use crate::engine::transition::Interrupt;
use crate::operations::{LossReason, Recovered, Session};
use crate::store::journal_files::FileStorage;
use crate::workspace::{Lock, Workspace};
use crate::world::{Failure, Generation, VmmState};

/// How long a copy on another thread may take to notice that nobody waits for it any more.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// How a changing command speaks.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct OutputOptions {
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Print the result as JSON, and nothing else but errors
    #[arg(long)]
    pub(super) json: bool,
}

impl OutputOptions {
    pub(super) fn silent(self) -> bool {
        self.quiet || self.json
    }

    /// Prints a result: a sentence for people, a word for programs.
    pub(super) fn result(self, word: &str, sentence: &str) -> Result<(), Problem> {
        self.report(&serde_json::json!({ "result": word }), sentence)
    }

    /// Prints a result: a sentence for people, a value for programs.
    pub(super) fn report(self, json: &serde_json::Value, sentence: &str) -> Result<(), Problem> {
        if self.json {
            error::print_json(json)
        } else {
            if !self.silent() {
                error::say(&format!("nixbox: {sentence}\n"));
            }
            Ok(())
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("cannot start the asynchronous runtime")]
struct NoRuntime(#[source] std::io::Error);

/// The runtime of one command. Seams do their long work on threads of their own.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Problem> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Problem::new(ExitKind::Failed, NoRuntime(error)))
}

/// Waits for something, and for what it left on other threads a little longer only.
pub(super) fn block_on<T>(future: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    let runtime = runtime()?;
    let done = runtime.block_on(future);
    runtime.shutdown_timeout(LAST_WAIT);
    done
}

/// A script that failed where the operation goes on.
pub(super) fn complain() -> Arc<crate::host::hooks::Complain> {
    Arc::new(|error| error::say(&format!("nixbox: {error}; what was done stays\n")))
}

/// How long a command that only looks waits for a VMM.
const GLANCE: Duration = Duration::from_secs(5);

/// How a VMM is right now, for commands that only look: [`VmmState::Silent`] already if it does not answer at once.
pub(super) async fn glance(assembly: &Wiring, vmm: Generation) -> Result<VmmState, Failure> {
    tokio::time::timeout(GLANCE, assembly.world.vmm.find(vmm)).await.unwrap_or(Ok(VmmState::Silent))
}

/// A workspace that a command works in.
pub(super) struct OpenWorkspace {
    pub(super) workspace: Workspace,
    pub(super) config: Config,
    pub(super) show: Arc<ProgressDisplay>,
    /// None for commands that only look.
    _lock: Option<Lock>,
}

/// Takes the lock of the workspace for `operation`, then reads its configuration.
pub(super) fn hold(
    place: &WorkspaceLocation,
    operation: &str,
    manner: OutputOptions,
) -> Result<OpenWorkspace, Problem> {
    let show = Arc::new(ProgressDisplay::new(manner.silent()));
    let workspace = place.workspace()?;
    let lock = workspace.lock(operation)?;
    let config = WorkspaceLocation::config(&workspace)?;
    Ok(OpenWorkspace { workspace, config, show, _lock: Some(lock) })
}

/// The workspace without its lock, for commands that change nothing and that nobody has to wait for.
pub(super) fn look(place: &WorkspaceLocation) -> Result<OpenWorkspace, Problem> {
    let workspace = place.workspace()?;
    let config = WorkspaceLocation::config(&workspace)?;
    Ok(OpenWorkspace { workspace, config, show: Arc::new(ProgressDisplay::new(true)), _lock: None })
}

impl OpenWorkspace {
    /// The world of this workspace.
    pub(super) fn assemble(&self) -> Result<Wiring, Problem> {
        Ok(wiring::assemble(&self.workspace, &self.config, self.show.clone(), complain())?)
    }

    /// Opens the journal and lets `act` run operations on the world.
    pub(super) fn run<T>(
        &self,
        assembly: &Wiring,
        act: impl AsyncFnOnce(&mut Session<'_, FileStorage>) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let storage = journal_state::storage(&self.workspace)?;
        let floor = journal_state::floor(&self.workspace)?;
        let observer: &dyn Observer = &*self.show;
        #[cfg(feature = "failpoints")]
        let observer: &dyn Observer = &super::failpoints::Failpoints::around(observer);
        self.interruptible(async |interrupt| {
            let now = assembly.world.clock.unix_ms();
            let journal = Journal::open(storage, self.workspace.id(), floor, now)?;
            let interrupt = interrupt.clone();
            let mut session = Session { world: &assembly.world, journal, interrupt, observer };
            act(&mut session).await
        })
        .map_err(|problem| problem.with_last_words(|| assembly.vmm.last_words()))
    }

    /// Lets `act` work, and asks it to stop when somebody interrupts.
    pub(super) fn interruptible<T>(
        &self,
        act: impl AsyncFnOnce(&Interrupt) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let interrupt = Interrupt::new();
        signals::listen(&interrupt, &self.show)?;
        block_on(act(&interrupt))
    }
}

/// What a recovery came to.
pub(super) struct Done {
    /// The operation that had been left open.
    pub(super) operation: Option<&'static str>,
    /// How it ended.
    pub(super) ended: Option<&'static str>,
    /// Why what was left of a VM was cleared away, if it was.
    pub(super) cleared: Option<LossReason>,
    /// What belonged to no VM.
    pub(super) swept: Vec<String>,
}

impl Done {
    /// In words; `None` if there was nothing to do.
    pub(super) fn sentence(&self) -> Option<String> {
        let operation = self
            .operation
            .zip(self.ended)
            .map(|(operation, ended)| format!("`{operation}`, which was left half done, {ended}"));
        let cleared = self.cleared.map(|why| {
            match why {
                LossReason::Gone => "what was left of a VM that is gone was cleared away",
                LossReason::Silent => "a VM whose VMM did not answer any more was ended and cleared away",
                LossReason::Condemned => "the VM, which was of no use, was ended and cleared away",
            }
            .to_owned()
        });
        let swept = self.swept.iter().map(|what| format!("{what} belonged to no VM and was removed"));
        let parts: Vec<_> = operation.into_iter().chain(cleared).chain(swept).collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// What a recovery came to, for those who print it.
///
/// # Errors
/// If a person is needed.
pub(super) fn recovered(recovered: Recovered) -> Result<Done, Problem> {
    use crate::engine::executor::Ending;
    if let Some(setback) = recovered.stuck {
        return Err(error::stuck(setback));
    }
    let (operation, ended) = recovered
        .operation
        .map(|(operation, ending)| {
            let how = match ending {
                Ending::Done => "was finished",
                Ending::RolledBack(_) => "was rolled back",
                Ending::Lost(_) => "had lost its VM",
                Ending::Stuck(_) => "is stuck",
            };
            (operation, how)
        })
        .unzip();
    let swept = recovered.swept.iter().map(ToString::to_string).collect();
    Ok(Done { operation, ended, cleared: recovered.cleared, swept })
}
