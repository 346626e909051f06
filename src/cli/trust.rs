//! `nixbox trust`.

use serde::Serialize;

use super::consent::{self, Consent, TrustOption};
use super::error::{self, Outcome};
use super::{WorkspaceLocation, success};
use crate::config::{self, HostAction, ShownArguments};
use crate::workspace::confirmations::ConfigOrigin;

/// Show what the configuration does on this host, and confirm it
///
/// A configuration that `nixbox init` did not write here, such as that of a cloned repository, is not obeyed before a
/// person has confirmed the programs that it runs on this host, the files and variables that it reads, and what it lets the
/// guest reach. Only what was not confirmed yet is asked about. Without a terminal, `--yes` confirms.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox trust && nixbox up")]
pub(super) struct Arguments {
    /// Confirm without a question
    #[arg(long)]
    yes: bool,
    /// Print JSON, and confirm only with --yes
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct ShownAction {
    does: String,
    confirmed: bool,
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let workspace = location.workspace()?;
    let tell = |words: &str| error::print_stderr(&format!("nixbox: {words}\n"));
    WorkspaceLocation::registered(&workspace, false, tell)?;
    let config = WorkspaceLocation::config(&workspace)?;
    let mut consent = Consent::load(&workspace)?;
    let actions = consent.actions(&config);
    let missing = consent.missing(&actions);
    let may_confirm = !arguments.json || arguments.yes;
    if !missing.is_empty() && may_confirm {
        consent::agree(
            &workspace.nixbox()?.path_of(config::FILE),
            &missing,
            TrustOption { trust: arguments.yes },
            |words| {
                if !arguments.json {
                    tell(words);
                }
            },
        )?;
        let _lock = workspace.lock("trust")?;
        consent.confirm(&actions)?;
    }
    let shown = |action: &HostAction| ShownAction {
        does: action.sentence(ShownArguments::Masked),
        confirmed: consent.confirmations.allow(action),
    };
    let shown: Vec<ShownAction> = actions.iter().map(shown).collect();
    if arguments.json {
        error::print_json(&serde_json::json!({
            "origin": consent.confirmations.origin(),
            "confirmed": shown.iter().all(|action| action.confirmed),
            "actions": shown,
        }))?;
        return success();
    }
    let origin = match consent.confirmations.origin() {
        ConfigOrigin::WrittenHere => "was written here",
        ConfigOrigin::Foreign => "came from elsewhere",
    };
    let mut lines = vec![match shown.is_empty() {
        true => format!("the configuration {origin}, and does nothing on this host outside of its VM"),
        false => format!("the configuration {origin}, and may do this on this host:"),
    }];
    lines.extend(shown.iter().map(|action| format!("  - it {}", action.does)));
    error::print(&lines.join("\n"))?;
    success()
}
