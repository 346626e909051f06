//! Asks a person to confirm what a configuration does on the host, before a command obeys it.
//!
//! A command that acts asks on a terminal. Without a terminal it refuses, and names what is to be confirmed. `nixbox down`
//! never asks, and leaves out the scripts that were not confirmed. Which actions need a confirmation is decided in
//! [`crate::workspace::confirmations`].

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use super::error::{self, ExitKind, Problem};
use crate::config::{self, Config, CredentialsTable, HostAction, ShownArguments};
use crate::files::real_path;
use crate::workspace::Workspace;
use crate::workspace::confirmations::{ConfigOrigin, Confirmations};
use crate::workspace::guest_writable::GuestWritable;
use crate::world::HookPoint;

/// The option of commands that may confirm a configuration.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct TrustOption {
    /// Confirm all that the configuration does on this host, without a question
    #[arg(long)]
    pub(super) trust: bool,
}

/// Why a configuration is not obeyed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConsentError {
    #[error("what {} does on this host has not been confirmed yet; nothing was changed{}", path.display(), list(actions))]
    Unconfirmed { path: PathBuf, actions: Vec<String> },
    #[error("what {} does on this host was not confirmed; nothing was changed", path.display())]
    Declined { path: PathBuf },
    #[error("the answer cannot be read; nothing was changed")]
    Answer(#[source] std::io::Error),
}

impl From<ConsentError> for Problem {
    fn from(error: ConsentError) -> Self {
        Self::new(ExitKind::Failed, error).or_hint(
            "`nixbox trust` shows and confirms this; `--trust` of init, up and restore confirms it without a question",
        )
    }
}

/// Each sentence on a line of its own.
fn list(sentences: &[String]) -> String {
    sentences.iter().map(|sentence| format!("\n  - it {sentence}")).collect()
}

/// What each action is, in words that begin after "it".
pub(super) fn sentences(actions: &[HostAction]) -> Vec<String> {
    actions.iter().map(|action| action.sentence(ShownArguments::Plain)).collect()
}

/// What a configuration does on the host, and how much of it was confirmed.
pub(super) struct Consent<'a> {
    workspace: &'a Workspace,
    pub(super) confirmations: Confirmations,
}

/// The actions of the configuration of a workspace in the directory `root`, whose own keys are in `keys`.
pub(super) fn actions(root: &Path, keys: &Path, config: &Config) -> Vec<HostAction> {
    let mut actions = config.host_actions(&[root, &real_path(keys)], &real_path);
    actions.extend(GuestWritable::of(config, root).actions(config));
    actions
}

impl<'a> Consent<'a> {
    /// Reads what was confirmed in this workspace.
    pub(super) fn load(workspace: &'a Workspace) -> Result<Self, Problem> {
        Ok(Self { workspace, confirmations: Confirmations::load(workspace)? })
    }

    /// The actions of the configuration of this workspace.
    pub(super) fn actions(&self, config: &Config) -> Vec<HostAction> {
        actions(self.workspace.root(), &self.workspace.ssh(), config)
    }

    /// The actions that nixbox may not take yet.
    pub(super) fn missing(&self, actions: &[HostAction]) -> Vec<HostAction> {
        actions.iter().filter(|action| !self.confirmations.allow(action)).cloned().collect()
    }

    /// Makes sure that nixbox may do all that the configuration says. With the option, the person who runs the command
    /// has said so already, and `tell` hears what that means. What a person confirms is written down at once; that the
    /// command obeys the rest is written down by the caller, when nothing can refuse the command any more.
    pub(super) fn obtain(
        mut self,
        config: &Config,
        given: TrustOption,
        tell: impl Fn(&str),
    ) -> Result<ObeyedActions<'a>, Problem> {
        let actions = self.actions(config);
        let missing = self.missing(&actions);
        if !missing.is_empty() {
            agree(&self.workspace.nixbox()?.path_of(config::FILE), &missing, given, tell)?;
            self.confirm(&actions)?;
        }
        Ok(ObeyedActions { consent: self, actions })
    }

    /// Writes down that these actions are confirmed, and no others.
    pub(super) fn confirm(&mut self, actions: &[HostAction]) -> Result<(), Problem> {
        let before = self.confirmations.clone();
        self.confirmations.confirm(actions);
        self.save_after(&before)
    }

    /// Writes down where the configuration comes from, if it is not known.
    pub(super) fn written_here(&mut self) -> Result<(), Problem> {
        self.confirmations = Confirmations::none(ConfigOrigin::WrittenHere, self.workspace)?;
        Ok(self.confirmations.save(self.workspace)?)
    }

    /// Hands on what was confirmed to a copy of the workspace, which has an id of its own.
    pub(super) fn hand_on(&self, copy: &Workspace) -> Result<(), Problem> {
        Ok(self.confirmations.of_copy(self.workspace, copy)?.save(copy)?)
    }

    /// Writes down that a guest may have written the configuration.
    pub(super) fn distrust(mut self) -> Result<(), Problem> {
        let before = self.confirmations.clone();
        self.confirmations.distrust();
        self.save_after(&before)
    }

    fn save_after(&self, before: &Confirmations) -> Result<(), Problem> {
        if self.confirmations != *before || Confirmations::are_left_behind(self.workspace)? {
            self.confirmations.save(self.workspace)?;
        }
        Ok(())
    }
}

/// The actions that a command is about to obey.
pub(super) struct ObeyedActions<'a> {
    consent: Consent<'a>,
    actions: Vec<HostAction>,
}

impl ObeyedActions<'_> {
    /// Writes down that these actions are confirmed, and no others.
    pub(super) fn write_down(mut self) -> Result<(), Problem> {
        self.consent.confirm(&self.actions)
    }
}

/// Asks for a confirmation of these actions of the configuration at `path`, unless it is given.
pub(super) fn agree(
    path: &Path,
    missing: &[HostAction],
    given: TrustOption,
    tell: impl Fn(&str),
) -> Result<(), Problem> {
    let (path, sentences) = (path.to_owned(), sentences(missing));
    if given.trust {
        tell(&format!("confirmed for {}:{}", path.display(), list(&sentences)));
        return Ok(());
    }
    if !may_ask() {
        return Err(ConsentError::Unconfirmed { path, actions: sentences }.into());
    }
    let question = format!(
        "{} was not written by `nixbox init` here, or somebody else may have changed it. Nobody has confirmed yet \
         what it does on this host:{}\nMay nixbox do this?",
        path.display(),
        list(&sentences)
    );
    match ask(&question).map_err(ConsentError::Answer)? {
        true => Ok(()),
        false => Err(ConsentError::Declined { path }.into()),
    }
}

/// Whether a person sits at a terminal who could answer a question.
pub(super) fn may_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks a person on the terminal, and tells whether the answer is yes.
pub(super) fn ask(question: &str) -> std::io::Result<bool> {
    error::print_stderr(&format!("nixbox: {question} [y/N] "));
    std::io::stderr().flush().ok();
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// Takes out of a configuration what nixbox may not do, for a command that ends a VM and needs none of it. Says with `tell`
/// what is left out.
pub(super) fn withhold(workspace: &Workspace, config: &mut Config, tell: impl Fn(&str)) {
    let consent = Consent::load(workspace);
    let allowed = |action: &HostAction| consent.as_ref().is_ok_and(|known| known.confirmations.allow(action));
    let refused: Vec<HostAction> = actions(workspace.root(), &workspace.ssh(), config)
        .into_iter()
        .filter(|action| !allowed(action))
        .collect();
    if refused.is_empty() {
        return;
    }
    // No source of a credential is read: the guest that would get it goes.
    config.env.clear();
    config.credentials = CredentialsTable::default();
    let runs = |at: HookPoint, index: usize, text: &str| {
        !refused.iter().any(|action| match action {
            HostAction::RunScript { point, number, .. } => *point == at && *number == index + 1,
            HostAction::UseGuestFile { key, command, .. } => key == at.key() && command == text,
            _ => false,
        })
    };
    let mut left_out = 0;
    for (at, scripts) in config.hooks.by_point_mut() {
        let all = std::mem::take(scripts);
        let count = all.len();
        scripts.extend(
            all.into_iter().enumerate().filter(|(index, text)| runs(at, *index, text)).map(|(_, one)| one),
        );
        left_out += count - scripts.len();
    }
    if left_out > 0 {
        let why = match &consent {
            Ok(_) => "these scripts have not been confirmed; `nixbox trust` shows them".to_owned(),
            Err(problem) => problem.one_line(),
        };
        tell(&format!("scripts of the configuration that are not run: {left_out}, because {why}"));
    }
}
