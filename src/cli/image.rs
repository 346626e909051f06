//! `nixbox image`: makes and keeps what VMs boot from.

use super::error::Outcome;
use super::{ExitKind, Problem, WorkspaceError, WorkspaceLocation};
use crate::image::import::ImportError;
use crate::image::registry::ImageRegistryError;
use crate::image::source::ImageSourceError;
use crate::image::store::{ImageStore, ImageStoreError};

mod build;
mod delete;
pub(super) mod import;
mod list;
mod make_minimal;

/// Make and keep what VMs boot from
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox image import debian:12 && nixbox init --image debian-12")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Import(import::Arguments),
    Build(build::Arguments),
    List(list::Arguments),
    Delete(delete::Arguments),
    MakeMinimal(make_minimal::Arguments),
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    match &arguments.command {
        Command::Import(arguments) => import::run(location, arguments),
        Command::Build(arguments) => build::run(location, arguments),
        Command::List(arguments) => list::run(arguments),
        Command::Delete(arguments) => delete::run(arguments),
        Command::MakeMinimal(arguments) => make_minimal::run(location, arguments),
    }
}

/// The images of this user.
pub(super) fn store() -> Result<ImageStore, Problem> {
    let folder = WorkspaceLocation::places()?.images().map_err(WorkspaceError::Places)?;
    Ok(ImageStore::new(folder))
}

impl From<ImageStoreError> for Problem {
    fn from(error: ImageStoreError) -> Self {
        let exit = match error {
            ImageStoreError::Locked(_) => ExitKind::Locked,
            ImageStoreError::NameTaken { .. } => ExitKind::Usage,
            _ => ExitKind::Failed,
        };
        Self::new(exit, error)
    }
}

impl From<ImageSourceError> for Problem {
    fn from(error: ImageSourceError) -> Self {
        let exit = match error {
            ImageSourceError::Invalid(..) => ExitKind::Usage,
            ImageSourceError::Absent(_) => ExitKind::NotFound,
            ImageSourceError::File(_) => ExitKind::Failed,
        };
        Self::new(exit, error)
    }
}

impl From<ImportError> for Problem {
    fn from(error: ImportError) -> Self {
        let exit = match error {
            ImportError::Store(error) => return error.into(),
            ImportError::Source(error) => return error.into(),
            ImportError::NoName(_) | ImportError::Size(_) => ExitKind::Usage,
            ImportError::Registry(ImageRegistryError::NoImage { .. }) => ExitKind::NotFound,
            ImportError::Registry(ImageRegistryError::Interrupted) => ExitKind::Interrupted,
            _ => ExitKind::Failed,
        };
        Self::new(exit, error)
    }
}
