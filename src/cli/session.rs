//! What every changing command does: take the lock, put the world together, open the journal, run, and end in time.

use std::sync::Arc;
use std::time::Duration;

use super::assembly::{self, Assembly};
use super::report::{self, Exit, Problem};
use super::show::Show;
use super::{Place, signals, standing};
use crate::config::Config;
use crate::engine::executor::Observer;
use crate::engine::journal::Journal;
use crate::engine::transition::Interrupt;
use crate::host::copy::Silent;
use crate::operations::{Recovered, Session};
use crate::store::files::FileStorage;
use crate::workspace::{Lock, Workspace};

/// How long a copy on another thread may take to notice that nobody waits for it any more.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// How a changing command speaks.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Manner {
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Print the result as JSON, and nothing else but errors
    #[arg(long)]
    pub(super) json: bool,
}

impl Manner {
    fn silent(self) -> bool {
        self.quiet || self.json
    }

    /// Prints a result: a sentence for people, a word for programs.
    pub(super) fn result(self, word: &str, sentence: &str) -> Result<(), Problem> {
        if self.json {
            report::print_json(&serde_json::json!({ "result": word }))
        } else {
            if !self.silent() {
                report::say(&format!("nixbox: {sentence}\n"));
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
        .map_err(|error| Problem::new(Exit::Failed, NoRuntime(error)))
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
    Arc::new(|error| report::say(&format!("nixbox: {error}; what was done stays\n")))
}

/// A workspace whose lock is held.
pub(super) struct Held {
    pub(super) workspace: Workspace,
    pub(super) config: Config,
    _lock: Lock,
}

/// Takes the lock of the workspace for `operation`, then reads its configuration.
pub(super) fn hold(place: &Place, operation: &str) -> Result<Held, Problem> {
    let workspace = place.workspace()?;
    let lock = workspace.lock(operation)?;
    let config = Place::config(&workspace)?;
    Ok(Held { workspace, config, _lock: lock })
}

impl Held {
    /// The world of this workspace.
    pub(super) fn assemble(&self) -> Result<Assembly, Problem> {
        Ok(assembly::assemble(&self.workspace, &self.config, Arc::new(Silent), complain())?)
    }

    /// Opens the journal and lets `act` run operations on the world.
    pub(super) fn run<T>(
        &self,
        assembly: &Assembly,
        manner: Manner,
        act: impl AsyncFnOnce(&mut Session<'_, FileStorage>) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let interrupt = Interrupt::new();
        let show = Arc::new(Show::new(manner.silent()));
        signals::listen(&interrupt, &show)?;
        let storage = standing::storage(&self.workspace)?;
        let floor = standing::floor(&self.workspace)?;
        let journal = Journal::open(storage, self.workspace.id(), floor, assembly.world.clock.unix_ms())?;
        let observer: &dyn Observer = &*show;
        #[cfg(feature = "failpoints")]
        let observer: &dyn Observer = &super::failpoints::Failpoints::around(observer);
        block_on(async {
            let mut session = Session { world: &assembly.world, journal, interrupt, observer };
            act(&mut session).await
        })
    }
}

/// What a recovery came to, in words; `None` if there was nothing to do.
///
/// # Errors
/// If a person is needed.
pub(super) fn recovered(recovered: Recovered) -> Result<Option<String>, Problem> {
    use crate::engine::executor::Ending;
    if let Some(setback) = recovered.stuck {
        return Err(report::stuck(setback));
    }
    let ended = recovered.operation.map(|(operation, ending)| {
        let how = match ending {
            Ending::Done => "was finished",
            Ending::RolledBack(_) => "was rolled back",
            Ending::Lost(_) => "had lost its VM",
            Ending::Stuck(_) => "is stuck",
        };
        format!("`{operation}`, which was left half done, {how}")
    });
    let cleared = recovered.cleared.then(|| "what was left of a VM that is gone was cleared away".to_owned());
    let parts: Vec<_> = ended.into_iter().chain(cleared).collect();
    Ok((!parts.is_empty()).then(|| parts.join("; ")))
}
