//! The parts that commands share: opening a workspace, running operations on it, and reporting the result.
//!
//! A command that changes something opens a [`LockedWorkspace`], which takes the lock, makes the preflight checks and
//! wires the real world, and then runs an `operations::Session`. A command that only reads opens an [`OpenWorkspace`],
//! which takes no lock.

use std::sync::Arc;
use std::time::Duration;

use super::consent::{self, Consent, TrustOption};
use super::error::{self, CliError, Problem};
use super::events::{self, PrintedEvent};
use super::journal_state::JournalState;
use super::preflight::{self, Preflight};
use super::progress::ProgressDisplay;
use super::wiring::{self, Description, Purpose, Wiring};
use super::{WorkspaceLocation, journal_state, signals};
use crate::config::{Config, DecidedDefaults};
use crate::engine::executor::Observer;
use crate::engine::journal::Journal;
use crate::engine::transition::Interrupt;
use crate::files::Folder;
use crate::files::copy::{NoProgress, Progress};
use crate::host::lifetime::Lifetime;
use crate::operations::{RunningVm, Session, WorkspaceState};
use crate::store::built::BuiltRecord;
use crate::store::journal_files::FileStorage;
use crate::workspace::registry::{Registry, RegistryError};
use crate::workspace::{self, Lock, MoveError, Workspace, WorkspaceError};
use crate::world::{Failure, Generation, VmmState, WorkspaceId};

mod observers;

use observers::observers;

/// How long a copy on another thread may take to notice that its result is no longer awaited.
pub(super) const LAST_WAIT: Duration = Duration::from_secs(2);

/// How long a command that only reads waits for an answer of the VMM.
const VMM_WAIT: Duration = Duration::from_secs(5);

/// What a changing command prints.
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
    /// Nothing but errors.
    pub(super) const QUIET: Self = Self { quiet: true, json: false };

    /// Whether no progress is printed.
    pub(super) fn silent(self) -> bool {
        self.quiet || self.json || events::are_on()
    }

    /// Prints a result: a sentence on stderr for people, or a value on stdout for programs.
    pub(super) fn report(self, json: &serde_json::Value, sentence: &str) -> Result<(), Problem> {
        if events::are_on() {
            events::print(&PrintedEvent::Result { result: json });
            Ok(())
        } else if self.json {
            error::print_json(json)
        } else {
            if !self.silent() {
                error::print_stderr(&format!("nixbox: {sentence}\n"));
            }
            Ok(())
        }
    }
}

/// The runtime of one command. One thread is enough, because the layers below do their long work on threads of their
/// own.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Problem> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.map_err(CliError::Runtime)?)
}

/// Waits for a future, and then at most [`LAST_WAIT`] for work that the future left running on other threads.
pub(super) fn block_on<T>(future: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    let runtime = runtime()?;
    let result = runtime.block_on(future);
    runtime.shutdown_timeout(LAST_WAIT);
    result
}

/// The state of a VM for commands that only read: [`VmmState::Silent`] if its VMM does not answer within [`VMM_WAIT`].
pub(super) async fn vm_state(wiring: &Wiring, vmm: Generation) -> Result<VmmState, Failure> {
    tokio::time::timeout(VMM_WAIT, wiring.world.vmm.find(vmm)).await.unwrap_or(Ok(VmmState::Silent))
}

/// Says that the guest of a running VM can reach a `.nixbox`, or that this cannot be told.
pub(super) fn exposed(wiring: &Wiring, vmm: Generation) -> Option<CliError> {
    match block_on(async { Ok(wiring.world.shares.exposed(vmm).await) }) {
        Ok(Ok(paths)) if paths.is_empty() => None,
        Ok(Ok(paths)) => Some(CliError::Exposed(paths)),
        Ok(Err(failure)) => Some(CliError::Masks(failure)),
        Err(_) => None,
    }
}

/// If the guest of the running VM can reach a `.nixbox`, refuses a command that relies on the configuration, and makes any
/// other command run no script, because the scripts may be the guest's.
/// If it is the workspace's own, what the configuration does is confirmed anew afterwards.
fn mind_exposed(
    workspace: &Workspace,
    wiring: &mut Wiring,
    vmm: Generation,
    preflight: Preflight,
) -> Result<(), Problem> {
    let Some(exposed) = exposed(wiring, vmm) else { return Ok(()) };
    let own = workspace.root().join(workspace::DIRECTORY);
    let others_only = matches!(&exposed, CliError::Exposed(paths) if !paths.contains(&own));
    if !others_only && let Err(problem) = Consent::load(workspace).and_then(Consent::distrust) {
        error::print_stderr(&format!("nixbox: {}\n", problem.one_line()));
    }
    if !matches!(preflight, Preflight::None | Preflight::EndVm) {
        return Err(exposed.into());
    }
    wiring.leave_out_scripts();
    warn(&exposed, "; no script of the configuration is run");
    Ok(())
}

/// Prints why a command that goes on should be the last one before `nixbox down`.
fn warn(exposed: &CliError, more: &str) {
    error::print_stderr(&format!("nixbox: {}{more}\n", error::chain(exposed)));
}

/// A workspace whose lock is not taken, for commands that change nothing.
pub(super) struct OpenWorkspace {
    pub(super) workspace: Workspace,
    pub(super) journal: JournalState,
    /// The configuration of today, or why it cannot be used. A VM that runs is described without it.
    pub(super) config: Result<Config, Problem>,
    /// The built record of the VM that the journal is about, or why it cannot be used.
    pub(super) record: Result<Option<BuiltRecord>, Problem>,
}

impl OpenWorkspace {
    pub(super) fn open(location: &WorkspaceLocation) -> Result<Self, Problem> {
        let workspace = location.workspace()?;
        let journal = journal_state::read(&workspace)?;
        let config = WorkspaceLocation::config(&workspace);
        let record = journal_state::built_record(&workspace, &journal);
        Ok(Self { workspace, journal, config, record })
    }

    /// Opens a workspace and finds its running VM. If no VM runs, that error is reported before the configuration is
    /// read.
    pub(super) fn of_running_vm(location: &WorkspaceLocation) -> Result<(Self, RunningVm), Problem> {
        let open = Self::open(location)?;
        // A copy would speak to the VM of the original. A registry that cannot be used does not keep a person from a VM.
        let registry = Registry::open(open.workspace.places());
        let standing = registry.and_then(|registry| registry.examine(&open.workspace));
        if let Err(error @ RegistryError::Copy(_)) = standing {
            return Err(error.into());
        }
        let vm = journal_state::running_vm(&open.workspace, &open.journal)?;
        Ok((open, vm))
    }

    /// Wires the real world for a command that uses the running VM, and warns if its guest can reach a `.nixbox`.
    pub(super) fn wire_for(self, vm: &RunningVm) -> Result<Wiring, Problem> {
        let wiring = self.wire()?;
        if let Some(exposed) = exposed(&wiring, vm.machine.vmm) {
            warn(&exposed, "");
        }
        Ok(wiring)
    }

    /// Wires the real world of the VM that runs, or of the configuration if none does. Copies report no progress.
    pub(super) fn wire(self) -> Result<Wiring, Problem> {
        let Self { workspace, config, record, .. } = self;
        let (description, config) = match (record?, config) {
            // Who only looks at a VM, or speaks to it, gives it no credentials.
            (Some(record), config) => (described(&workspace, record, Preflight::EndVm)?, config.ok()),
            (None, config) => {
                let config = config?;
                (Description::of_config(&workspace, &config)?, Some(config))
            }
        };
        Self::assemble(&workspace, &description, Purpose::PresentVm(config.as_ref()))
    }

    /// Wires the real world of a VM that the configuration of today describes, for a look at what fits it. The error is why
    /// there is no such world.
    pub(super) fn wire_today(&self) -> Result<Wiring, String> {
        let config = self.config.as_ref().map_err(Problem::one_line)?;
        let assemble = || {
            let description = Description::of_config(&self.workspace, config)?;
            Self::assemble(&self.workspace, &description, Purpose::PresentVm(Some(config)))
        };
        assemble().map_err(|problem: Problem| problem.one_line())
    }

    /// Wires the real world of the VM that runs, with the credentials that the configuration of today has for its guest.
    pub(super) fn wire_with_credentials(self) -> Result<Wiring, Problem> {
        let Self { workspace, config, record, .. } = self;
        let config = config?;
        let description = match record? {
            Some(record) => described(&workspace, record, Preflight::GiveCredentials)?,
            None => Description::of_config(&workspace, &config)?,
        };
        Self::assemble(&workspace, &description, Purpose::Any(&config))
    }

    fn assemble(
        workspace: &Workspace,
        description: &Description,
        purpose: Purpose<'_>,
    ) -> Result<Wiring, Problem> {
        Ok(wiring::assemble(workspace, description, purpose, Arc::new(NoProgress), observers(None))?)
    }
}

/// The description in a built record. The runtime directory is made again if it is missing, as after a reboot of the host.
fn described(
    workspace: &Workspace,
    record: BuiltRecord,
    preflight: Preflight,
) -> Result<Description, Problem> {
    let runtime = workspace.runtime_at(&record.runtime)?.path().to_owned();
    let withholds_credentials = preflight.withholds(workspace, record.generation())?;
    let BuiltRecord { root, namespace, spec, .. } = record;
    Ok(Description { spec: spec.moved(&root, workspace.root()), runtime, namespace, withholds_credentials })
}

/// A workspace whose lock this command holds, wired to the real world, for commands that change something.
pub(super) struct LockedWorkspace {
    /// The configuration of today; `None` if it cannot be used, and the command ends a VM and does not need it.
    pub(super) config: Option<Config>,
    pub(super) progress: Arc<ProgressDisplay>,
    /// Why the journal cannot be used; only for a command that ends a VM.
    pub(super) journal_problem: Option<Problem>,
    /// The world of the VM that the journal is about, or else of a VM that this command builds.
    pub(super) wiring: Wiring,
    /// The world of a VM that this command builds, if it is another one.
    next: Option<Wiring>,
    workspace: Workspace,
    /// Released last.
    _lock: Lock,
}

impl LockedWorkspace {
    /// Prepares the operation of a changing command: takes the lock in the name of `command`, reads the configuration,
    /// reads from the journal whether a VM runs, makes the checks that need only the configuration, wires the real
    /// world, and makes the checks that ask the host.
    pub(super) fn open(
        location: &WorkspaceLocation,
        command: &str,
        preflight: Preflight,
        output: OutputOptions,
    ) -> Result<Self, Problem> {
        Self::open_trusting(location, command, preflight, output, TrustOption { trust: false })
    }

    /// The same for a command that can confirm what the configuration does on the host.
    pub(super) fn open_trusting(
        location: &WorkspaceLocation,
        command: &str,
        preflight: Preflight,
        output: OutputOptions,
        trust: TrustOption,
    ) -> Result<Self, Problem> {
        let _checks = tracing::debug_span!("checks").entered();
        let progress = Arc::new(ProgressDisplay::new(output.silent()));
        let copies: Arc<dyn Progress> = progress.clone();
        let (workspace, lock) = location.lock(command, &copies)?;
        let ends_vm = preflight == Preflight::EndVm;
        WorkspaceLocation::registered(&workspace, ends_vm, |words| progress.print(words))?;
        let (workspace, lock) = move_state_out(workspace, lock, command, &progress)?;
        let config = match WorkspaceLocation::config(&workspace) {
            Ok(mut config) => {
                if ends_vm {
                    consent::withhold(&workspace, &mut config, |words| progress.print(words));
                }
                Some(config)
            }
            Err(problem) if preflight == Preflight::EndVm => {
                progress
                    .print(&format!("no script of the configuration runs, because {}", problem.one_line()));
                None
            }
            Err(problem) => return Err(problem),
        };
        let (mut vm, mut is_first) = (None, false);
        let (record, starts_vm, journal_problem) = match journal_state::read(&workspace) {
            Ok(journal) => {
                is_first = matches!(journal.state, WorkspaceState::Down { disk: None });
                let starts_vm = preflight.starts_vm() && journal.is_down();
                if let WorkspaceState::Up(running) = &journal.state {
                    vm = Some(running.machine.vmm);
                }
                (journal_state::built_record(&workspace, &journal), starts_vm, None)
            }
            Err(problem) if preflight == Preflight::EndVm => {
                (journal_state::newest_record(&workspace), false, Some(problem))
            }
            Err(problem) => return Err(problem),
        };
        let consent = || match &config {
            Some(config) if !ends_vm => {
                Consent::load(&workspace)?.obtain(config, trust, |words| progress.print(words)).map(Some)
            }
            _ => Ok(None),
        };
        let mut obeyed = None;
        if vm.is_none() {
            obeyed = consent()?;
        }
        if let Some(config) = &config {
            preflight.check_config(config, starts_vm)?;
        }
        let wire = Wire { workspace: &workspace, config: config.as_ref(), progress: &progress };
        let (mut wiring, next) = wire.both(preflight, record)?;
        if let Some(vm) = vm {
            mind_exposed(&workspace, &mut wiring, vm, preflight)?;
            // A guest may have written the configuration if it could reach it, which is known only now.
            obeyed = consent()?;
        }
        if preflight == Preflight::Snapshot || preflight == Preflight::Restore {
            // These may end daemons before they start others. A share that is refused only then would cost the guest.
            let shares =
                &next.as_ref().filter(|_| preflight == Preflight::Restore).unwrap_or(&wiring).world.shares;
            block_on(async { Ok(shares.rehearse().await.map_err(CliError::Shares)?) })?;
        }
        if starts_vm {
            let lifetime = Lifetime::of_this_process().map_err(WorkspaceError::File)?;
            if !output.silent() {
                let rehearsed = block_on(async { Ok(lifetime.rehearse().await) })?;
                let refused = rehearsed.err().map(|error| error::chain(&error));
                lifetime.warnings(refused.as_deref()).iter().for_each(|words| progress.print(words));
                // It is said once: the workspace has a disk from then on.
                let told = config.as_ref().filter(|config| is_first && config.gives_credentials());
                if let Some(meaning) = told.and_then(Config::unzeroed_memory) {
                    progress.print(meaning);
                }
            }
            block_on(preflight::check_host(next.as_ref().unwrap_or(&wiring)))?;
        }
        if let Some(config) = &config
            && (starts_vm || preflight == Preflight::Restore)
        {
            DecidedDefaults::decide(workspace.state(), config)?;
        }
        if let Some(obeyed) = obeyed {
            obeyed.write_down()?;
        }
        Ok(Self { config, progress, journal_problem, wiring, next, workspace, _lock: lock })
    }

    /// The workspace's id.
    pub(super) fn id(&self) -> WorkspaceId {
        self.workspace.id()
    }

    /// The directory of everything of the workspace that a guest must not reach.
    pub(super) fn state(&self) -> &Folder {
        self.workspace.state()
    }

    /// Opens the journal and lets `act` run operations on the world.
    pub(super) fn run<T>(
        &self,
        act: impl AsyncFnOnce(&mut Session<'_, FileStorage>) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let storage = journal_state::storage(&self.workspace)?;
        let floor = journal_state::highest_generation(&self.workspace)?;
        let observer: &dyn Observer = &*self.progress;
        #[cfg(feature = "failpoints")]
        let observer: &dyn Observer = &super::failpoints::Failpoints::around(observer);
        self.interruptible(async |interrupt| {
            let world = &self.wiring.world;
            let next = &self.next.as_ref().unwrap_or(&self.wiring).world;
            let journal = Journal::open(storage, self.workspace.id(), floor, world.clock.unix_ms())?;
            let interrupt = interrupt.clone();
            act(&mut Session { world, next, journal, interrupt, observer, keep: false }).await
        })
        .map_err(|problem| {
            problem.with_last_words(|| {
                let line =
                    self.progress.console().map(|line| format!("its console's last line then: {line}"));
                line.into_iter().chain(self.wiring.vmm.last_words()).collect()
            })
        })
    }

    /// Runs `act`, and asks it to stop at the first signal that interrupts nixbox.
    pub(super) fn interruptible<T>(
        &self,
        act: impl AsyncFnOnce(&Interrupt) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let interrupt = Interrupt::new();
        signals::listen(&interrupt, &self.progress)?;
        block_on(act(&interrupt))
    }
}

/// Moves the state of a workspace out of its directory, if an earlier nixbox kept it there and the workspace is down. A VM
/// that runs has files of the state open by their paths, so its workspace is left as it is until the VM is down.
fn move_state_out(
    workspace: Workspace,
    lock: Lock,
    command: &str,
    progress: &Arc<ProgressDisplay>,
) -> Result<(Workspace, Lock), Problem> {
    workspace.remove_former_lock().map_err(WorkspaceError::File)?;
    let at_rest = |journal: JournalState| journal.is_down() && journal.open().is_none();
    if workspace.state_is_apart() || !journal_state::read(&workspace).is_ok_and(at_rest) {
        return Ok((workspace, lock));
    }
    let copies: Arc<dyn Progress> = progress.clone();
    let interrupt = Interrupt::new();
    let moved = block_on(async { Ok(workspace.move_state(&copies, &interrupt).await) })?;
    let moved = match moved {
        Ok(Some(moved)) => moved,
        Ok(None) => return Ok((workspace, lock)),
        Err(WorkspaceError::Move(error @ MoveError::NoRoom { .. })) => {
            let why = error::chain(&error);
            progress.print(&format!("the state of the workspace stays in {}: {why}", workspace::DIRECTORY));
            return Ok((workspace, lock));
        }
        Err(error) => return Err(error.into()),
    };
    progress.print(&format!("the state of the workspace was moved to {}", moved.state().path().display()));
    let lock = moved.lock(command)?;
    moved.remove_former_lock().map_err(WorkspaceError::File)?;
    Registry::open(moved.places())?.follow(&moved)?;
    Ok((moved, lock))
}

/// What the worlds of a command are wired from.
#[derive(Clone, Copy)]
struct Wire<'a> {
    workspace: &'a Workspace,
    config: Option<&'a Config>,
    progress: &'a Arc<ProgressDisplay>,
}

impl Wire<'_> {
    /// The world of the VM with this record, and that of a VM of the configuration if the two are different.
    fn both(
        self,
        preflight: Preflight,
        record: Result<Option<BuiltRecord>, Problem>,
    ) -> Result<(Wiring, Option<Wiring>), Problem> {
        let record = match record {
            Err(problem) if preflight == Preflight::EndVm => {
                let why = problem.one_line();
                self.progress
                    .print(&format!("the VM is ended as the configuration describes it, because {why}"));
                None
            }
            record => record?,
        };
        let today = || self.config.map(|config| Description::of_config(self.workspace, config)).transpose();
        match (record, self.config) {
            (Some(record), _) => {
                let mut present = described(self.workspace, record, preflight)?;
                if let (Preflight::NetworkReload, Some(config)) = (preflight, self.config) {
                    present.spec.network = config.network.clone();
                }
                let present = self.world(preflight, &present)?;
                let next = match today()? {
                    Some(today) if preflight != Preflight::EndVm => Some(self.world(preflight, &today)?),
                    _ => None,
                };
                Ok((present, next))
            }
            (None, Some(config)) => {
                Ok((self.world(preflight, &Description::of_config(self.workspace, config)?)?, None))
            }
            // Without a record there is no VM, or an earlier nixbox built it. Then only the configuration describes it.
            (None, None) if self.workspace.nixbox().is_err() => Err(CliError::NotRunning.into()),
            (None, None) => {
                WorkspaceLocation::config(self.workspace).map(|_| ()).and(Err(CliError::NotRunning.into()))
            }
        }
    }

    fn world(self, preflight: Preflight, description: &Description) -> Result<Wiring, Problem> {
        let assemble = |purpose| {
            let progress = self.progress.clone();
            wiring::assemble(self.workspace, description, purpose, progress, observers(Some(self.progress)))
        };
        let ends_vm = preflight == Preflight::EndVm;
        Ok(match self.config.map(|config| assemble(Purpose::Any(config))) {
            Some(Ok(wiring)) => wiring,
            Some(Err(error)) if !ends_vm => return Err(error.into()),
            _ => assemble(Purpose::PresentVm(self.config))?,
        })
    }
}
