//! `nixbox credentials`: gives the guest of a VM that runs its credentials anew, takes them away, or compares them.
//!
//! Both changes are the operation `equip`, which gives a guest the credentials that its world wants. A guest whose credentials
//! are withheld is wired with none, so that the operation takes from it what it was given before. That credentials are withheld
//! is written down before the first of them is taken, and that they no longer are after the last of them was given. So a guest
//! that may be without credentials never counts as one that has them.

use serde::Serialize;

use super::command::{LockedWorkspace, OpenWorkspace, OutputOptions, block_on};
use super::error::{self, CliError, Outcome, Problem};
use super::preflight::Preflight;
use super::{WorkspaceLocation, receipt, success};
use crate::guest::inject::CredentialState;
use crate::guest::ssh_guest::{ConfiguredCredential, CredentialStates};
use crate::store::withheld;
use crate::world::{GuestAudit, UnprovenPlace};

/// Give the guest of the running VM its credentials, take them away, or compare them
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox credentials inject")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: CredentialsCommand,
}

#[derive(Debug, clap::Subcommand)]
enum CredentialsCommand {
    /// Read the credentials from their sources again, and write them into the guest
    ///
    /// A credential that was renewed replaces the former one, and one that was taken out of the configuration is overwritten and
    /// removed. Programs of the guest that have read the former value keep it until they are started again. Credentials that were
    /// withheld are given again.
    #[command(after_help = "Example: gh auth refresh && nixbox credentials inject")]
    Inject {
        #[command(flatten)]
        output: OutputOptions,
    },
    /// Overwrite and remove the credentials in the guest, and withhold them from now on
    ///
    /// The VM runs on without them, through snapshots and reboots of the guest, until `nixbox credentials inject` gives them
    /// again. A VM that is booted or restored later is given its credentials. Histories and files that nixbox did not write
    /// stay. Programs of the guest that hold a value in their environment or arguments are named.
    #[command(after_help = "Example: nixbox credentials wipe && nixbox run ./untrusted-agent")]
    Wipe {
        #[command(flatten)]
        output: OutputOptions,
    },
    /// Show which credentials the guest has, and whether they are those of today
    ///
    /// The credentials are read from their sources and compared with the files in the guest. No value is printed.
    #[command(after_help = "Example: nixbox credentials status --json | jq -r '.configured[].state'")]
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    match arguments.command {
        CredentialsCommand::Inject { output } => inject(location, output),
        CredentialsCommand::Wipe { output } => wipe(location, output),
        CredentialsCommand::Status { json } => status(location, json),
    }
}

fn inject(location: &WorkspaceLocation, output: OutputOptions) -> Outcome {
    let workspace =
        LockedWorkspace::open(location, "credentials inject", Preflight::GiveCredentials, output)?;
    workspace.run(async |session| {
        let vm = session.running_vm().await?;
        error::check_result(session.equip_anew(vm).await?)
    })?;
    withheld::no_longer(workspace.state())?;
    output.report(&serde_json::json!({ "result": "done" }), "the guest has its credentials of today")?;
    success()
}

fn wipe(location: &WorkspaceLocation, output: OutputOptions) -> Outcome {
    let workspace =
        LockedWorkspace::open(location, "credentials wipe", Preflight::WithholdCredentials, output)?;
    let GuestAudit { processes, unproven } = workspace.run(async |session| {
        let vm = session.running_vm().await?;
        withheld::withhold(workspace.state(), vm.machine.memory)?;
        let taken = session.equip_anew(vm).await.map_err(Problem::from).and_then(error::check_result);
        taken.map_err(|problem| {
            problem.or_hint("the credentials are withheld from now on: the next `nixbox credentials wipe`, or any command that \
                             gives the guest its credentials, takes what is left")
        })?;
        Ok(session.world.guest.audit(&vm.machine, None).await.map_err(CliError::Connect)?)
    })?;
    let mut sentence = "the guest's files have no credentials until `nixbox credentials inject`".to_owned();
    if let Some(named) = receipt::holding(&processes) {
        sentence += &format!(
            "; a credential is in the environment or the arguments of {named}, which keeps it until the process ends"
        );
    }
    for UnprovenPlace { place, reason } in &unproven {
        sentence += &format!("; {place} could not be examined: {reason}");
    }
    let json = serde_json::json!({ "result": "done", "processes": processes, "unexamined": unproven });
    output.report(&json, &sentence)?;
    success()
}

/// What `nixbox credentials status` prints.
#[derive(Debug, Serialize)]
struct CredentialsReport {
    /// Whether `nixbox credentials wipe` has taken the credentials from the guest.
    withheld: bool,
    configured: Vec<ConfiguredCredential>,
    /// Files that nixbox has written and that are not in the configuration any more.
    others: Vec<String>,
    /// Why the credentials could not be read from their sources.
    problem: Option<String>,
}

fn status(location: &WorkspaceLocation, json: bool) -> Outcome {
    let (open, vm) = OpenWorkspace::of_running_vm(location)?;
    let withheld = withheld::is_withheld(open.workspace.state(), vm.machine.memory)?;
    let wiring = open.wire_with_credentials()?;
    let waits = |words: &str| {
        if !json {
            error::print_stderr(&format!("nixbox: {words}\n"));
        }
    };
    let states = block_on(async {
        Ok(wiring.guest.credential_states(&vm.machine, &waits).await.map_err(CliError::Connect)?)
    })?;
    let CredentialStates { configured, others, problem } = states;
    let others = others.iter().map(ToString::to_string).collect();
    let report = CredentialsReport { withheld, configured, others, problem };
    if json {
        error::print_json(&report)?;
    } else {
        error::print(&text(&report))?;
    }
    success()
}

fn text(report: &CredentialsReport) -> String {
    let mut lines = Vec::new();
    if report.withheld {
        lines
            .push("the credentials are withheld from the guest until `nixbox credentials inject`".to_owned());
    }
    for ConfiguredCredential { target, variables, state } in &report.configured {
        let of = if variables.is_empty() { String::new() } else { format!(" ({})", variables.join(", ")) };
        let state = match (state, report.withheld) {
            (CredentialState::Given, _) => "given",
            (CredentialState::Outdated, _) => "differs from today's: `nixbox credentials inject` replaces it",
            (CredentialState::Foreign, _) => "is a file that nixbox did not write",
            (CredentialState::Absent, true) => "withheld",
            (CredentialState::Absent, false) => "missing: `nixbox credentials inject` writes it",
            (CredentialState::Unchecked, _) => "there, and not compared with its source",
        };
        lines.push(format!("{target}{of}: {state}"));
    }
    for target in &report.others {
        lines.push(format!("{target}: no longer configured: `nixbox credentials inject` removes it"));
    }
    if let Some(problem) = &report.problem {
        lines.push(format!("the sources cannot be read: {problem}"));
    }
    if lines.is_empty() {
        lines.push("the configuration has no credentials for the guest, and the guest has none".to_owned());
    }
    lines.join("\n")
}
