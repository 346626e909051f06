//! Entries in the directory of the user's ssh: `~/.ssh/nixbox/ID.conf` for each workspace.

use std::collections::BTreeSet;
use std::ffi::OsStr;

use crate::cli::error::CliError;
use crate::files::{FileError, Folder};
use crate::world::WorkspaceId;

/// More than a configuration of a person, or an entry, has in bytes.
pub(super) const LONGEST: u64 = 1 << 20;
/// The directory of the entries, below that of ssh.
const DIRECTORY: &str = "nixbox";
/// The line that makes ssh read them. A relative path is below `~/.ssh` (ssh_config(5)).
const INCLUDE: &str = "Include nixbox/*.conf";

/// The home of this user, which ssh reads from the same place and not from `HOME`.
///
/// # Errors
/// If this user has none.
pub(in crate::cli) fn home() -> Result<Folder, CliError> {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
    let home = user.map(|user| user.dir).filter(|home| home.is_absolute()).ok_or(CliError::NoHome)?;
    Ok(Folder::open(&home)?)
}

fn file_name(id: WorkspaceId) -> String {
    format!("{id}.conf")
}

fn entries(home: &Folder) -> Result<Option<Folder>, FileError> {
    match home.folder(".ssh")? {
        Some(ssh) => ssh.folder(DIRECTORY),
        None => Ok(None),
    }
}

/// The names of hosts in the entries of other workspaces.
///
/// # Errors
/// If they cannot be read.
pub(super) fn names(home: &Folder, id: WorkspaceId) -> Result<BTreeSet<String>, CliError> {
    let mut names = BTreeSet::new();
    let Some(entries) = entries(home)? else { return Ok(names) };
    for name in entries.names()? {
        if name == OsStr::new(&file_name(id)) {
            continue;
        }
        let text = entries.read(&name, LONGEST)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let hosts = text.lines().filter_map(|line| line.strip_prefix("Host "));
        names.extend(hosts.flat_map(str::split_whitespace).map(str::to_owned));
    }
    Ok(names)
}

/// Writes the entry of a workspace, and makes the user's configuration include it.
///
/// # Errors
/// If a file cannot be read or written. The user's configuration is as before then, or includes the entry.
pub(super) fn install(home: &Folder, id: WorkspaceId, entry: &str) -> Result<(), CliError> {
    let (ssh, _) = home.make_folder(".ssh")?;
    let (entries, _) = ssh.make_folder(DIRECTORY)?;
    entries.replace(file_name(id), entry.as_bytes())?;
    let config = match ssh.read("config", LONGEST) {
        // A person may keep it elsewhere.
        Err(FileError::Symlink { path }) => return Err(CliError::SshConfigIsLink { path, line: INCLUDE }),
        config => config?.unwrap_or_default(),
    };
    let is_include = |line: &[u8]| line.trim_ascii().eq_ignore_ascii_case(INCLUDE.as_bytes());
    if !config.split(|byte| *byte == b'\n').any(is_include) {
        // What stands behind a Host line belongs to that host.
        let mut with_include = format!("{INCLUDE}\n\n").into_bytes();
        with_include.extend_from_slice(&config);
        ssh.replace("config", &with_include)?;
    }
    Ok(())
}

/// Removes the entry of a workspace. Returns whether there was one.
///
/// # Errors
/// If it cannot be removed.
pub(in crate::cli) fn remove(home: &Folder, id: WorkspaceId) -> Result<bool, CliError> {
    let Some(entries) = entries(home)? else { return Ok(false) };
    if entries.examine(file_name(id))?.is_none() {
        return Ok(false);
    }
    entries.remove_file(file_name(id))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn id(digit: char) -> WorkspaceId {
        String::from(digit).repeat(32).parse().unwrap()
    }

    #[test]
    fn an_entry_is_included_once_before_what_a_person_wrote_and_is_removed_again() {
        let directory = tempfile::tempdir().unwrap();
        let home = Folder::open(directory.path()).unwrap();
        let path = |name: &str| directory.path().join(".ssh").join(name);
        let read = |name: &str| fs::read_to_string(path(name)).unwrap();
        assert!(!remove(&home, id('a')).unwrap() && names(&home, id('a')).unwrap().is_empty());
        install(&home, id('a'), "Host nixbox-x nixbox-aaaaaaaa\n").unwrap();
        assert_eq!(read("config"), format!("{INCLUDE}\n\n"));

        fs::write(path("config"), "Host a\n    User b\n").unwrap();
        for entry in ["Host nixbox-y nixbox-bbbbbbbb\n    User u\n", "Host nixbox-z nixbox-bbbbbbbb\n"] {
            install(&home, id('b'), entry).unwrap();
            assert_eq!(read("config"), format!("{INCLUDE}\n\nHost a\n    User b\n"));
            assert_eq!(read(&format!("nixbox/{}", file_name(id('b')))), entry);
        }
        let others = names(&home, id('b')).unwrap();
        assert_eq!(others.iter().collect::<Vec<_>>(), ["nixbox-aaaaaaaa", "nixbox-x"]);
        assert!(remove(&home, id('b')).unwrap() && !remove(&home, id('b')).unwrap());
        assert_eq!(names(&home, id('c')).unwrap(), others);
    }

    #[test]
    fn a_configuration_that_is_a_link_is_left_to_the_person() {
        let directory = tempfile::tempdir().unwrap();
        let home = Folder::open(directory.path()).unwrap();
        fs::create_dir(directory.path().join(".ssh")).unwrap();
        fs::write(directory.path().join("real"), "Host a\n").unwrap();
        std::os::unix::fs::symlink("../real", directory.path().join(".ssh/config")).unwrap();
        let refused = install(&home, id('a'), "Host nixbox-x\n").unwrap_err();
        assert!(refused.to_string().contains(INCLUDE), "{refused}");
        assert_eq!(fs::read_to_string(directory.path().join("real")).unwrap(), "Host a\n");
    }
}
