//! What an image is made from, as a person writes it.

use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use super::debian::DebianSystem;
use super::reference::ImageReference;
use crate::files::FileError;
use crate::world::{ImageName, InvalidValue};

/// Why a text is no source.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum ImageSourceError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{0:?} is no source of an image")]
    Invalid(String, #[source] InvalidValue),
    #[error("there is no file or directory {}", .0.display())]
    Absent(PathBuf),
}

/// What an image is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// A root file system as a directory.
    Directory(PathBuf),
    /// An OCI layout.
    Layout(PathBuf),
    /// An archive of a root file system, of an OCI layout, or of `docker save`.
    Archive(PathBuf),
    /// An image in a registry.
    Registry(ImageReference),
    /// Debian packages.
    Debian(DebianSystem),
}

impl ImageSource {
    /// What a person means by a text; relative paths are those of `directory`.
    ///
    /// # Errors
    /// [`ImageSourceError`].
    pub fn parse(text: &str, directory: &Path) -> Result<Self, ImageSourceError> {
        let path = directory.join(text);
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() && path.join("oci-layout").is_file() => {
                return Ok(Self::Layout(path));
            }
            Ok(found) if found.is_dir() => return Ok(Self::Directory(path)),
            Ok(_) => return Ok(Self::Archive(path)),
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.kind() == io::ErrorKind::NotADirectory => {}
            Err(error) => return Err(FileError::system("examine", &path)(error).into()),
        }
        if text.starts_with(['/', '.']) || text.ends_with(".tar") || text.contains(".tar.") {
            return Err(ImageSourceError::Absent(path));
        }
        text.parse().map(Self::Registry).map_err(|error| ImageSourceError::Invalid(text.to_owned(), error))
    }

    /// The name that the image gets if a person gives none.
    #[must_use]
    pub fn name(&self) -> Option<ImageName> {
        match self {
            Self::Registry(reference) => reference.image_name(),
            Self::Debian(system) => system.image_name(),
            Self::Directory(path) | Self::Layout(path) | Self::Archive(path) => {
                let path = path.canonicalize().ok()?;
                let name = path.file_name()?.to_str()?.to_owned();
                let ends = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".oci"];
                let bare = ends.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
                bare.parse().ok()
            }
        }
    }
}

impl fmt::Display for ImageSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) | Self::Layout(path) | Self::Archive(path) => {
                let path = path.canonicalize().unwrap_or_else(|_| path.clone());
                path.display().fmt(formatter)
            }
            Self::Registry(reference) => reference.fmt(formatter),
            Self::Debian(system) => system.fmt(formatter),
        }
    }
}
