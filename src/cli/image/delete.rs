//! `nixbox image delete`.

use std::path::{Path, PathBuf};

use crate::cli::error::{self, ExitKind, Outcome, Problem};
use crate::cli::{WorkspaceLocation, success};
use crate::config::FILE;
use crate::image::store::StoredImage;
use crate::workspace::DIRECTORY;
use crate::workspace::registry::Registry;

/// Delete an image
///
/// This is refused while the configuration of a workspace names the image. The disks and the snapshots of workspaces are copies, and
/// stay.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox image delete debian-12")]
pub(super) struct Arguments {
    /// The name of the image, or its id
    image: String,
}

#[derive(Debug, thiserror::Error)]
enum DeleteImageError {
    #[error("there is no image {0:?}: `nixbox image list` shows those that there are")]
    Unknown(String),
    #[error(
        "the image {image} is used by {}; nothing was deleted: name another image there, or delete the workspace first",
        .users.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    Used { image: String, users: Vec<PathBuf> },
    #[error("cannot tell whether {} names the image; nothing was deleted", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

pub(super) fn run(arguments: &Arguments) -> Outcome {
    let store = super::store()?;
    let lock = store.lock()?;
    let unknown = || Problem::new(ExitKind::NotFound, DeleteImageError::Unknown(arguments.image.clone()));
    let image = store.find(&arguments.image)?.ok_or_else(unknown)?;
    let users = users(&image)?;
    if !users.is_empty() {
        let image = arguments.image.clone();
        return Err(Problem::new(ExitKind::Failed, DeleteImageError::Used { image, users }));
    }
    store.remove(&lock, &image.description.id)?;
    error::print(&format!("deleted the image {}", image.description.name))?;
    success()
}

/// The directories of the workspaces whose configurations name the image. The text is looked at, so that a configuration with an
/// error counts too.
fn users(image: &StoredImage) -> Result<Vec<PathBuf>, Problem> {
    let registry = Registry::open(&WorkspaceLocation::places()?)?;
    let mut users = Vec::new();
    for entry in registry.list()?.into_iter().flatten() {
        let path = entry.path.join(DIRECTORY).join(FILE);
        if names(&path, image.description.id.as_str())? {
            users.push(entry.path);
        }
    }
    Ok(users)
}

fn names(path: &Path, id: &str) -> Result<bool, Problem> {
    match std::fs::read(path) {
        Ok(text) => Ok(String::from_utf8_lossy(&text).contains(id)),
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            Ok(false)
        }
        Err(source) => {
            let error = DeleteImageError::Unreadable { path: path.to_owned(), source };
            Err(Problem::new(ExitKind::Failed, error))
        }
    }
}
