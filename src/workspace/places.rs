//! Where nixbox keeps the state of this user's workspaces on this host.
//!
//! ```text
//! STATE/registry/<id>.json       which directory a workspace is, and where its state is
//! STATE/nixbox-<user>/<half of an id>/ sockets of a VM, for a user whose other directories end at a log-out
//! STATE/images/                  images, which workspaces boot: see `image/store.rs`
//! STATE/workspaces/<id>/         the state of a workspace: everything that a guest must not reach
//!   journal/                     what was done and what is being done
//!   run/                         images and records of the VM that runs
//!   snapshots/  ssh/
//!   confirmed.json               what a person has confirmed that the configuration does on the host
//!   lock                         held while something is changed; never removed
//! ```
//!
//! STATE is `/var/lib/nixbox` for root, and for another user `$XDG_STATE_HOME/nixbox`, which is `~/.local/state/nixbox` if
//! the variable is not set. The home is that of the password database, so that a command finds the state from every
//! environment; for a user without an entry there it is `$HOME`.
//!
//! The key `state.directory` of the user's configuration puts the state of *new* workspaces elsewhere, so that it can be on
//! a file system that shares blocks. The registry keeps where the state of each workspace is, so an edit of that key moves
//! nothing. May use `world`, `config` and `files`.

use std::path::{Path, PathBuf};

use crate::config::{ConfigError, USER_DIRECTORY, UserConfig};
use crate::files::{FileError, Folder};
use crate::world::WorkspaceId;

/// The directories in the state of a workspace.
pub(super) const DIRECTORIES: [&str; 4] = ["journal", "run", SNAPSHOTS, "ssh"];
/// The directory of the snapshots.
pub(super) const SNAPSHOTS: &str = "snapshots";

/// Why there is no place for nixbox's state.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum PlacesError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "no directory for nixbox's state: user {0} has no home, and neither HOME nor XDG_STATE_HOME is an absolute path"
    )]
    NoHome(u32),
    #[error("the user's configuration, which says where the state of new workspaces is kept, cannot be used")]
    UserConfig(#[source] Box<ConfigError>),
}

/// The places of one user's state.
#[derive(Debug, Clone)]
pub struct StatePlaces {
    /// STATE.
    state: PathBuf,
    /// The directory of the user's configuration.
    user_config: PathBuf,
    home: Option<PathBuf>,
}

impl StatePlaces {
    /// The places of the user who runs nixbox. Nothing is made.
    ///
    /// # Errors
    /// [`PlacesError::NoHome`].
    pub fn of_this_user() -> Result<Self, PlacesError> {
        let user = rustix::process::geteuid();
        if user.is_root() {
            let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
            let user_config = Path::new("/etc").join(USER_DIRECTORY);
            return Ok(Self { state: "/var/lib/nixbox".into(), user_config, home });
        }
        let entry = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(user.as_raw())).ok().flatten();
        let variable =
            |name| std::env::var_os(name).map(PathBuf::from).filter(|path: &PathBuf| path.is_absolute());
        // A user of a container may have no entry.
        let home =
            entry.map(|entry| entry.dir).filter(|home| home.is_absolute()).or_else(|| variable("HOME"));
        let below_home = |variable_name, below: &str| {
            let home = || home.as_ref().map(|home| home.join(below));
            variable(variable_name).or_else(home).ok_or(PlacesError::NoHome(user.as_raw()))
        };
        Ok(Self {
            state: below_home("XDG_STATE_HOME", ".local/state")?.join("nixbox"),
            user_config: below_home("XDG_CONFIG_HOME", ".config")?.join(USER_DIRECTORY),
            home,
        })
    }

    /// Places below a directory that somebody else chose, without a configuration of the user.
    #[must_use]
    pub fn below(directory: &Path) -> Self {
        Self { state: directory.join("state"), user_config: directory.join(USER_DIRECTORY), home: None }
    }

    /// STATE.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The directory of the user's configuration.
    #[must_use]
    pub fn user_config(&self) -> &Path {
        &self.user_config
    }

    /// The directory of the registry, which is made if it is missing.
    ///
    /// # Errors
    /// If it cannot be made, belongs to another user, or may be written by others.
    pub(super) fn registry(&self) -> Result<Folder, PlacesError> {
        private(&self.made_state()?, "registry")
    }

    /// The directory of the images, which is made if it is missing.
    ///
    /// # Errors
    /// If it cannot be made, belongs to another user, or may be written by others.
    pub fn images(&self) -> Result<Folder, PlacesError> {
        private(&self.made_state()?, "images")
    }

    /// STATE, which is made if it is missing.
    ///
    /// # Errors
    /// If it cannot be made, belongs to another user, or may be written by others.
    pub(super) fn made_state(&self) -> Result<Folder, PlacesError> {
        make_private(&self.state)
    }

    /// The directory in which the state of new workspaces is made.
    ///
    /// # Errors
    /// If it cannot be made, belongs to another user, or may be written by others.
    pub(super) fn for_new_state(&self) -> Result<Folder, PlacesError> {
        match self.chosen()? {
            Some(chosen) => make_private(&chosen),
            None => private(&self.made_state()?, "workspaces"),
        }
    }

    /// `state.directory` of the user's configuration.
    fn chosen(&self) -> Result<Option<PathBuf>, PlacesError> {
        let read = UserConfig::load(&self.user_config, self.home.as_deref());
        let read = read.map_err(|error| PlacesError::UserConfig(Box::new(error)))?;
        Ok(read.state_directory.map(|directory| directory.as_path().to_owned()))
    }

    /// Finds the directory in which a workspace's state is, or is being moved to, if the registry does not know it.
    ///
    /// # Errors
    /// If a directory cannot be opened, or the user's configuration cannot be read and the state is not in its usual place.
    pub(super) fn search(&self, id: WorkspaceId) -> Result<Option<Folder>, PlacesError> {
        let has = |parent: &Path| -> Result<Option<Folder>, PlacesError> {
            let parent = match Folder::open(parent) {
                Ok(parent) => parent,
                Err(error) if error.is(std::io::ErrorKind::NotFound) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let there =
                parent.examine(state_name(id))?.is_some() || parent.examine(moving_name(id))?.is_some();
            Ok(there.then_some(parent))
        };
        if let Some(found) = has(&self.state.join("workspaces"))? {
            return Ok(Some(found));
        }
        self.chosen()?.map_or(Ok(None), |chosen| has(&chosen))
    }
}

/// The name of a workspace's state.
pub(super) fn state_name(id: WorkspaceId) -> String {
    id.to_string()
}

/// The name of a workspace's state while it is moved out of the workspace.
pub(super) fn moving_name(id: WorkspaceId) -> String {
    format!(".moving-{id}")
}

/// The name of a workspace's state while it is removed.
pub(super) fn trash_name(id: WorkspaceId) -> String {
    format!(".trash-{id}")
}

/// The directories in which the runtime directory of a workspace may be, unless it is in STATE.
pub(super) fn runtime_bases() -> Vec<PathBuf> {
    let user = rustix::process::geteuid();
    // The end of root's session removes /run/user/0, and root's VMs outlive the session.
    if user.is_root() {
        return vec!["/run".into()];
    }
    vec![format!("/run/user/{}", user.as_raw()).into(), "/dev/shm".into(), "/tmp".into()]
}

/// The names of the runtime directory of a workspace below a base: one for the user, and one for the workspace.
pub(super) fn runtime_names(id: WorkspaceId) -> [String; 2] {
    let mut digits = id.to_string();
    // Half of the id is enough to tell workspaces apart, and the path of a socket has at most 108 bytes.
    digits.truncate(16);
    [format!("nixbox-{}", rustix::process::geteuid().as_raw()), digits]
}

/// Makes a directory with the directories above it.
fn make_private(path: &Path) -> Result<Folder, PlacesError> {
    let above = path.parent().unwrap_or(path);
    std::fs::create_dir_all(above).map_err(FileError::system("make", above))?;
    let above = std::fs::canonicalize(above).map_err(FileError::system("open", above))?;
    private(&Folder::open(&above)?, path.file_name().unwrap_or_default())
}

fn private(above: &Folder, name: impl AsRef<std::ffi::OsStr>) -> Result<Folder, PlacesError> {
    let (folder, _) = above.make_folder(name)?;
    folder.check_private()?;
    Ok(folder)
}

/// Makes the directories of a state that are missing in it.
pub(super) fn complete(state: &Folder) -> Result<(), FileError> {
    for name in DIRECTORIES {
        state.make_folder(name)?.0.check_private()?;
    }
    Ok(())
}
