//! `nixbox completions` and `nixbox man`, and what a shell asks nixbox for while a person types.
//!
//! The scripts for bash, zsh and fish call nixbox again with [`VARIABLE`] in the environment, and [`answer`] prints the candidates.
//! Such a call reads what it needs and nothing else: it takes no lock, makes no directory, and is silent about what it cannot read,
//! because a person who types a command line did not ask for an error. nushell has no such call; its script knows the commands and
//! options, and no names.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Arg, Command, CommandFactory as _, ValueEnum, ValueHint};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::Shells;
use clap_complete::{CompleteEnv, generate};
use clap_complete_nushell::Nushell;

use super::command::block_on;
use super::error::{self, CliError, Outcome, Problem};
use super::{WorkspaceLocation, named, success};
use crate::files::copy::NoProgress;
use crate::store::{LeakSearch, Snapshots};
use crate::workspace::registry::Registry;
use crate::world::{Catalog as _, ListedSnapshot, OnLeak};

/// The variable by which the script of a shell asks for candidates.
const VARIABLE: &str = "NIXBOX_COMPLETE";

/// Print a script by which a shell completes commands, options, snapshots and workspaces
///
/// In bash: `source <(nixbox completions bash)` in ~/.bashrc; in zsh the same in ~/.zshrc, after compinit; in fish
/// `nixbox completions fish | source` in ~/.config/fish/config.fish; in nushell the output of `nixbox completions nushell` is a
/// module to `use`. In nushell, names of snapshots and workspaces are not completed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: source <(nixbox completions bash)")]
pub(super) struct Arguments {
    /// The shell
    shell: CompletionShell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CompletionShell {
    Bash,
    Zsh,
    Fish,
    Nushell,
}

pub(super) fn run(_: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let mut script = Vec::new();
    let of_shell = match arguments.shell {
        CompletionShell::Bash => "bash",
        CompletionShell::Zsh => "zsh",
        CompletionShell::Fish => "fish",
        CompletionShell::Nushell => "",
    };
    match Shells::builtins().completer(of_shell) {
        Some(shell) => shell
            .write_registration(VARIABLE, "nixbox", "nixbox", "nixbox", &mut script)
            .map_err(CliError::Stdout)?,
        None => generate(Nushell, &mut super::Arguments::command(), "nixbox", &mut script),
    }
    // With `default`, bash completes paths where nixbox has no candidates, and quotes them.
    let script = String::from_utf8_lossy(&script).replace("-o bashdefault", "-o bashdefault -o default");
    error::print(script.trim_end())?;
    success()
}

/// Write the manual pages of all commands into a directory
///
/// Each command has a page, as nixbox-snapshot-list.1. Files of the same names are replaced.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: mkdir -p ~/.local/share/man/man1 && nixbox man ~/.local/share/man/man1 && man nixbox-up"
)]
pub(super) struct ManArguments {
    /// The directory, which is there already
    directory: PathBuf,
}

pub(super) fn run_man(_: &WorkspaceLocation, arguments: &ManArguments) -> Outcome {
    let written = clap_mangen::generate_to(super::Arguments::command(), &arguments.directory);
    written.map_err(|source| CliError::ManualPages { path: arguments.directory.clone(), source })?;
    error::print(&format!("the manual pages are in {}", arguments.directory.display()))?;
    success()
}

/// Answers the script of a shell, and ends the process, if one asks. Does nothing otherwise.
pub(super) fn answer() {
    CompleteEnv::with_factory(|| without_paths(super::Arguments::command())).var(VARIABLE).complete();
}

/// The description of the command line without completion of paths, which the shells do themselves. The script for bash puts a
/// candidate into the line as it is, and the name of a file may be `$(…)`, which bash would run.
fn without_paths(command: Command) -> Command {
    let plain = |argument: Arg| match argument.get_value_hint() {
        ValueHint::Unknown => argument,
        _ => argument.value_hint(ValueHint::Other),
    };
    command.mut_args(plain).mut_subcommands(without_paths)
}

/// The names of the snapshots of the workspace that the command line is about, and the numbers of those without a name.
pub(super) fn of_snapshots() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| beginning_with(typed, snapshots().unwrap_or_default()))
}

/// The names of the workspaces of this user.
pub(super) fn of_workspaces() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| beginning_with(typed, workspaces().unwrap_or_default()))
}

/// The words that begin like this and mean nothing else to any shell.
fn beginning_with(typed: &OsStr, words: Vec<String>) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    let is_plain =
        |word: &String| word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    let words = words.into_iter().filter(|word| word.starts_with(&*typed) && is_plain(word));
    words.map(CompletionCandidate::new).collect()
}

fn snapshots() -> Result<Vec<String>, Problem> {
    if !has_workspaces()? {
        return Ok(Vec::new());
    }
    let words: Vec<OsString> = std::env::args_os().collect();
    let location = named::location(workspace_in(&words).into())?;
    let workspace = location.workspace()?;
    let leaks = Arc::new(LeakSearch::new(workspace.state().path().to_owned(), OnLeak::default()));
    let catalog = Snapshots { root: workspace.snapshots(), progress: Arc::new(NoProgress), leaks };
    let listed = block_on(async { Ok(catalog.list().await.map_err(CliError::VmState)?) })?;
    let word = |one: &ListedSnapshot| {
        let name = one.manifest.as_ref().ok().and_then(|manifest| manifest.name.as_ref());
        name.map_or_else(|| one.id.to_string(), ToString::to_string)
    };
    Ok(listed.iter().rev().map(word).collect())
}

fn workspaces() -> Result<Vec<String>, Problem> {
    if !has_workspaces()? {
        return Ok(Vec::new());
    }
    let entries = Registry::open(&WorkspaceLocation::places()?)?.list()?.into_iter().flatten();
    Ok(entries.map(|entry| named::name_at(&entry.path).as_str().to_owned()).collect())
}

/// Whether this user has made a workspace before. Otherwise the registry would be made by looking at it.
fn has_workspaces() -> Result<bool, Problem> {
    Ok(WorkspaceLocation::places()?.state().exists())
}

/// The value of `-C` in the words of a command line, which a shell has not taken apart yet.
fn workspace_in(words: &[OsString]) -> OsString {
    let mut value = OsString::from(".");
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let Some(text) = word.to_str() else { continue };
        if ["-C", "--workspace", "--directory"].contains(&text) {
            value = words.next().cloned().unwrap_or(value);
        } else if let Some(rest) =
            ["--workspace=", "--directory=", "-C=", "-C"].iter().find_map(|form| text.strip_prefix(form))
        {
            value = rest.into();
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_of_a_command_line_is_found_in_each_form() {
        let found = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            workspace_in(&words).into_string().unwrap()
        };
        assert_eq!(found("nixbox restore "), ".");
        assert_eq!(found("nixbox -C api restore "), "api");
        assert_eq!(found("nixbox restore -Capi "), "api");
        assert_eq!(found("nixbox restore -C=api --directory=other "), "other");
        assert_eq!(found("nixbox -C=api restore "), "api");
        assert_eq!(found("nixbox --workspace=/w/api restore "), "/w/api");
        assert_eq!(found("nixbox --workspace api restore -C"), "api");
    }

    #[test]
    fn candidates_begin_with_what_was_typed() {
        let words = || ["warm", "12", "wet", "w$(date)", "w x", "w\n"].map(str::to_owned).to_vec();
        let found = |typed: &str| {
            let candidates = beginning_with(OsStr::new(typed), words());
            candidates.iter().map(|one| one.get_value().to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(found(""), ["warm", "12", "wet"]);
        assert_eq!(found("w"), ["warm", "wet"]);
        assert!(found("x").is_empty());
    }
}
