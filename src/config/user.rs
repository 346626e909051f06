//! The configuration of the user, which holds for all of their workspaces. It is in `/etc/nixbox/config.toml` for root,
//! and for another user in `$XDG_CONFIG_HOME/nixbox/config.toml`, which is `~/.config/nixbox/config.toml` if the variable
//! is not set. It is read by the same rules as the configuration of a workspace.

use std::path::Path;

use super::LIMIT;
use super::error::{ConfigError, Result};
use super::read::{SourceText, TomlTable};
use crate::files::Folder;
use crate::world::{HostPath, InvalidValue};

/// The directory of the configuration, in `/etc` or in the directory of the user's configurations.
pub const USER_DIRECTORY: &str = "nixbox";

const TOP: &[&str] = &["state"];
const STATE: &[&str] = &["directory"];

/// The user's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserConfig {
    /// `state.directory`: where the state of new workspaces is kept.
    pub state_directory: Option<HostPath>,
}

impl UserConfig {
    /// Reads the file in `directory`, which is [`USER_DIRECTORY`] in its place. A user without the directory or the file
    /// has the default configuration.
    ///
    /// # Errors
    /// See [`ConfigError`]; also if another user owns the directory, or may write in it.
    pub fn load(directory: &Path, home: Option<&Path>) -> Result<Self> {
        let folder = match Folder::open(directory) {
            Ok(folder) => folder,
            Err(error) if error.is(std::io::ErrorKind::NotFound) => return Ok(Self::default()),
            Err(error) => return Err(error.into()),
        };
        folder.check_private()?;
        let path = folder.path_of(super::FILE);
        let Some(bytes) = folder.read(super::FILE, LIMIT)? else {
            return Ok(Self::default());
        };
        let text = std::str::from_utf8(&bytes).map_err(|_| ConfigError::NotText { path: path.clone() })?;
        Self::parse(text, &path, home)
    }

    /// Parses a text, which is the content of the file `path`.
    ///
    /// # Errors
    /// The first [`ConfigError`].
    pub fn parse(text: &str, path: &Path, home: Option<&Path>) -> Result<Self> {
        let text = SourceText { path, text };
        let tree = text.parse()?;
        let top = TomlTable::whole(text, tree.get_ref(), TOP)?;
        let Some(state) = top.get("state") else {
            return Ok(Self::default());
        };
        let Some(value) = state.table(STATE)?.get("directory") else {
            return Ok(Self::default());
        };
        let written = value.text()?;
        if !(written.starts_with('/') || written == "~" || written.starts_with("~/")) {
            let rule = "is not an absolute path, and does not begin with ~/";
            return Err(value.refuse(InvalidValue::new(written, rule)));
        }
        let directory =
            HostPath::resolve(written, Path::new("/"), home).map_err(|error| value.refuse(error))?;
        Ok(Self { state_directory: Some(directory) })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::files::FileError;

    fn parse(text: &str) -> Result<UserConfig> {
        UserConfig::parse(text, Path::new("c"), Some(Path::new("/home/me")))
    }

    #[test]
    fn the_state_directory_is_read() {
        let directory = |text: &str| parse(text).unwrap().state_directory;
        assert_eq!(directory(""), None);
        assert_eq!(directory("[state]"), None);
        for (text, path) in [("/data/nixbox", "/data/nixbox"), ("~/fast//x", "/home/me/fast/x")] {
            let read = directory(&format!("[state]\ndirectory = {text:?}")).unwrap();
            assert_eq!(read.as_path(), Path::new(path));
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_at_its_place() {
        for (text, words) in [
            ("state.directory = \"data\"", "c:1:19: state.directory is wrong"),
            ("state.directory = 3", "c:1:19: state.directory has to be of type string"),
            ("[state]\ndirectori = \"/\"", "c:2:1: there is no key state.directori; did you mean directory?"),
            ("[vm]\nvcpus = 1", "c:1:2: there is no key vm; there are state"),
            ("state.directory = \"\"", "c:1:19: state.directory is wrong"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(words), "{error}");
        }
        assert!(UserConfig::parse("state.directory = \"~/x\"", Path::new("c"), None).is_err());
    }

    #[test]
    fn a_file_that_others_may_write_is_refused_and_a_missing_one_is_none() {
        let above = tempfile::tempdir().unwrap();
        let directory = above.path().join(USER_DIRECTORY);
        assert_eq!(UserConfig::load(&directory, None).unwrap(), UserConfig::default());
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(UserConfig::load(&directory, None).unwrap(), UserConfig::default());
        fs::write(directory.join("config.toml"), "state.directory = \"/data\"").unwrap();
        assert!(UserConfig::load(&directory, None).unwrap().state_directory.is_some());
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(
            UserConfig::load(&directory, None),
            Err(ConfigError::File(FileError::Writable { .. }))
        ));
    }
}
