//! `nixbox image make-minimal`.

use std::io;
use std::path::PathBuf;
use std::process::{Command as Process, ExitStatus, Stdio};

use crate::cli::error::{self, ExitKind, Outcome, Problem};
use crate::cli::{WorkspaceLocation, success, wiring};

/// Make a small Linux out of this machine's Debian packages: DIRECTORY/vmlinuz and DIRECTORY/initramfs.gz
///
/// It has a shell (busybox, bash), an SSH server (dropbear), the user `user` (uid 1000) and sudo, and lets in the key of
/// the workspace. A missing package is named. The command needs no root.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: nixbox init --initramfs image/initramfs.gz && nixbox image make-minimal image"
)]
pub(super) struct Arguments {
    /// Where the two files go; files of these names are replaced
    // The argument's id must not be `directory`, because that is the id of `-C`.
    #[arg(value_name = "DIRECTORY")]
    target: PathBuf,
    /// The public SSH key that is let in, a file; without it the key of the workspace
    #[arg(long, value_name = "PUBLIC-KEY")]
    key: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
enum MinimalImageError {
    #[error("the directory {} cannot be used", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    #[error("the public key {} cannot be used", .0.display())]
    Key(PathBuf, #[source] io::Error),
    #[error("cannot run bash, which makes the image")]
    Bash(#[source] io::Error),
    #[error("no image was made: {0}")]
    Failed(ExitStatus),
}

const MINIMAL: &str = include_str!("minimal-guest.sh");

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let Arguments { target, key } = arguments;
    let failed = |error| Problem::new(ExitKind::Failed, error);
    let key = match key {
        Some(key) => location.directory.join(key),
        None => {
            let mut public = wiring::own_key(&location.workspace()?).into_os_string();
            public.push(".pub");
            public.into()
        }
    };
    // Both paths are made absolute, because the script changes its working directory.
    let key = key.canonicalize().map_err(|error| failed(MinimalImageError::Key(key, error)))?;
    let directory = location.directory.join(target);
    let directory = std::fs::create_dir_all(&directory)
        .and_then(|()| directory.canonicalize())
        .map_err(|error| failed(MinimalImageError::Directory(directory, error)))?;
    let ended = Process::new("bash")
        .args(["-c", MINIMAL, "make-minimal"])
        .args([&directory, &key])
        .stdin(Stdio::null())
        .status()
        .map_err(|error| failed(MinimalImageError::Bash(error)))?;
    if !ended.success() {
        return Err(failed(MinimalImageError::Failed(ended)));
    }
    for name in ["vmlinuz", "initramfs.gz"] {
        error::print(&format!("made {}", directory.join(name).display()))?;
    }
    success()
}
