//! The entry for ssh.

use std::path::{Path, PathBuf};

use super::name_of;
use crate::cli::error::CliError;
use crate::guest::host_key::ALIAS;
use crate::guest::shell::quoted;
use crate::workspace::Workspace;
use crate::world::{UserName, WorkspaceId};

/// What ssh needs to reach the guest of a workspace.
pub(super) struct SshEntry {
    /// The name for `ssh NAME`.
    pub(super) host: String,
    id: WorkspaceId,
    root: String,
    user: UserName,
    /// A command line for the user's shell.
    proxy: String,
    key: String,
    known_hosts: String,
}

impl SshEntry {
    /// The entry of a workspace with these paths: of nixbox's own program, of the key, and of the file with the host key.
    /// `is_taken` tells whether a name is that of another workspace.
    ///
    /// # Errors
    /// If a path has a character that no ssh configuration can express.
    pub(super) fn new(
        workspace: &Workspace,
        user: &UserName,
        [program, key, known_hosts]: [PathBuf; 3],
        state: Option<String>,
        is_taken: impl Fn(&str) -> bool,
    ) -> Result<Self, CliError> {
        let id = workspace.id();
        let mut host = host_of(&name_of(workspace));
        if is_taken(&host) {
            host = format!("{host}-{}", short(id));
        }
        // ssh's own environment may lack the variable, as in an editor that a desktop starts.
        let state = state.map_or(String::new(), |state| format!("env XDG_STATE_HOME={} ", quoted(&state)));
        let program = quoted(&text(&program)?);
        Ok(Self {
            host,
            id,
            root: workspace.root().to_string_lossy().replace(char::is_control, "?"),
            user: user.clone(),
            // ssh replaces what begins with a percent sign, and gives the rest to the user's shell.
            proxy: format!("{state}{program} ssh-proxy {id}").replace('%', "%%"),
            key: text(&key)?.replace('%', "%%"),
            known_hosts: text(&known_hosts)?.replace('%', "%%"),
        })
    }

    /// As it stands in a configuration.
    pub(super) fn text(&self) -> String {
        let Self { host, id, root, user, proxy, key, known_hosts } = self;
        format!(
            "# The nixbox workspace {root}\n\
             Host {host} nixbox-{}\n\
             \x20   HostName {ALIAS}\n\
             \x20   User {user}\n\
             \x20   ProxyCommand {proxy}\n\
             \x20   IdentityFile \"{key}\"\n\
             \x20   IdentitiesOnly yes\n\
             \x20   HostKeyAlias {ALIAS}\n\
             \x20   UserKnownHostsFile \"{known_hosts}\"\n\
             \x20   GlobalKnownHostsFile /dev/null\n\
             \x20   StrictHostKeyChecking yes\n\
             \x20   UpdateHostKeys no\n",
            short(*id)
        )
    }
}

/// The first digits of an id.
fn short(id: WorkspaceId) -> String {
    id.to_string().chars().take(8).collect()
}

/// The name of a host after that of a directory. Other characters could be a pattern to ssh.
fn host_of(directory: &str) -> String {
    let plain =
        |letter: char| if letter.is_ascii_alphanumeric() || "._-".contains(letter) { letter } else { '-' };
    format!("nixbox-{}", directory.chars().map(plain).collect::<String>())
}

/// A path as a word within double quotes. ssh has no way to write these characters there, or takes a dollar sign for a
/// variable (OpenSSH 8.4).
fn text(path: &Path) -> Result<String, CliError> {
    let refuse = || CliError::PathForSsh(path.to_owned());
    let text = path.to_str().ok_or_else(refuse)?;
    let odd = |letter: char| letter.is_control() || "\"\\$".contains(letter);
    if text.contains(odd) { Err(refuse()) } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_named_after_its_directory_and_is_no_pattern() {
        assert_eq!(host_of("my.app-1_x"), "nixbox-my.app-1_x");
        assert_eq!(host_of("a b*?!,\n\u{e4}"), "nixbox-a-b------");
        assert_eq!(host_of(""), "nixbox-");
    }

    #[test]
    fn a_path_that_ssh_cannot_be_told_is_refused() {
        for bad in ["/a\"b", "/a\\b", "/a$b", "/a\nb"] {
            assert!(text(Path::new(bad)).is_err(), "{bad}");
        }
        assert_eq!(text(Path::new("/it's a %path")).unwrap(), "/it's a %path");
    }
}
