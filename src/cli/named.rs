//! Which workspace the value of `-C` means: that of a directory, or one with this name or id, wherever it is.

use std::path::{Component, Path, PathBuf};

use super::WorkspaceLocation;
use super::error::{CliError, Problem};
use crate::workspace::Workspace;
use crate::workspace::registry::{RegisteredWorkspace, Registry};
use crate::world::{WorkspaceId, WorkspaceName};

/// The workspace that a value means. A value with a slash, and one that exists here, is a directory. Any other value is the id
/// or the name of a workspace of this user on this host.
///
/// # Errors
/// If no workspace, or more than one, has that name.
pub(super) fn location(value: PathBuf) -> Result<WorkspaceLocation, Problem> {
    let mut components = value.components();
    let is_plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    let word = value.to_str().filter(|word| is_plain && !word.contains('/'));
    let Some(word) = word.filter(|_| std::fs::symlink_metadata(&value).is_err()) else {
        return Ok(WorkspaceLocation::of_directory(value));
    };
    let places = WorkspaceLocation::places()?;
    // An entry that cannot be read has no name.
    let entries: Vec<_> = Registry::open(&places)?.list()?.into_iter().flatten().collect();
    if let Ok(id) = word.parse::<WorkspaceId>()
        && entries.iter().any(|entry| entry.id == id)
    {
        return Ok(WorkspaceLocation { directory: PathBuf::from("."), id: Some(id) });
    }
    let is_there = |entry: &&RegisteredWorkspace| {
        Workspace::find(&entry.path, &places)
            .is_ok_and(|there| there.root() == entry.path && there.id() == entry.id)
    };
    let has_name = |entry: &&RegisteredWorkspace| name_at(&entry.path).as_str() == word;
    let named: Vec<_> = entries.iter().filter(is_there).filter(has_name).collect();
    match named.as_slice() {
        [] => Err(CliError::NoSuchWorkspace(word.to_owned()).into()),
        [one] => Ok(WorkspaceLocation::of_directory(one.path.clone())),
        several => {
            let paths = several.iter().map(|entry| entry.path.clone()).collect();
            Err(CliError::AmbiguousName { name: word.to_owned(), paths }.into())
        }
    }
}

/// The name of the workspace at this path: that of its configuration, or that of its directory if the configuration cannot be
/// used.
pub(super) fn name_at(path: &Path) -> WorkspaceName {
    let configured = WorkspaceLocation::of_directory(path.to_owned())
        .workspace()
        .and_then(|workspace| WorkspaceLocation::config(&workspace));
    configured.map_or_else(|_| WorkspaceName::of_directory(path), |config| config.name)
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory as _};

    /// clap takes two arguments of one name for the same, and ends the program if their types differ.
    #[test]
    fn no_command_has_an_argument_with_the_name_of_a_global_one() {
        fn check(command: &Command, globals: &[String]) {
            for argument in command.get_arguments().filter(|argument| !argument.is_global_set()) {
                let name = argument.get_id().as_str();
                assert!(!globals.iter().any(|global| global == name), "{}: {name}", command.get_name());
            }
            command.get_subcommands().for_each(|command| check(command, globals));
        }
        let command = crate::cli::Arguments::command();
        let globals = command.get_arguments().filter(|argument| argument.is_global_set());
        let globals: Vec<_> = globals.map(|argument| argument.get_id().to_string()).collect();
        assert_eq!(globals, ["chosen_workspace", "verbose", "timings", "events"]);
        check(&command, &globals);
    }
}
