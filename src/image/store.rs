//! The images of a user on disk.
//!
//! ```text
//! STATE/images/<id>/               an image; the id is of what is in it
//!   image.json                     its name, its source, and what it is made of
//!   disk.img  vmlinuz  initramfs   what a VM boots from; cloned, never written
//! STATE/images/.staging-<n>/       an image while it is made
//! STATE/images/.trash-<id>/        an image while it is removed
//! STATE/images/lock                held by the command that makes or removes one
//! ```
//!
//! An image is made under another name, synced, and renamed when it is whole. What a killed command has left is removed by the
//! next command that takes the lock.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{FileError, Folder};
use crate::world::{ByteSize, ImageName, InvalidValue, UserName};

const DESCRIPTION: &str = "image.json";
/// More than a description takes.
const DESCRIPTION_LIMIT: u64 = 1 << 20;
const LOCK: &str = "lock";
const STAGING: &str = ".staging-";
const TRASH: &str = ".trash-";
/// The files of an image.
const FILES: [&str; 3] = ["disk.img", "vmlinuz", "initramfs"];

/// Why an image cannot be listed, added or removed.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum ImageStoreError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("another nixbox adds or removes an image in {}: try again when it has ended", .0.display())]
    Locked(PathBuf),
    #[error("{} is not the description of an image that nixbox wrote", path.display())]
    Description {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("the image {} is not whole: {file} is missing in it", path.display())]
    Incomplete { path: PathBuf, file: &'static str },
    #[error("the image in {} has no description", .0.display())]
    Undescribed(PathBuf),
    #[error(
        "the name {name} is that of another image, which was made from {source_text}: remove that image, or give another name with --name"
    )]
    NameTaken { name: ImageName, source_text: String },
}

type Result<T, E = ImageStoreError> = std::result::Result<T, E>;

/// The id of an image: a hash over all that is in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageId(String);

impl ImageId {
    const DIGITS: usize = 32;

    /// The id of an image with this hash.
    #[must_use]
    pub fn of(hash: &blake3::Hash) -> Self {
        let mut digits = hash.to_hex().to_string();
        digits.truncate(Self::DIGITS);
        Self(digits)
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ImageId {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == Self::DIGITS && text.bytes().all(digit) {
            Ok(Self(text))
        } else {
            Err(InvalidValue::new(&text, "is not the id of an image: 32 hexadecimal digits"))
        }
    }
}

impl From<ImageId> for String {
    fn from(id: ImageId) -> Self {
        id.0
    }
}

/// `image.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ImageDescription {
    /// The id, which is the name of the directory.
    pub id: ImageId,
    /// What people call it.
    pub name: ImageName,
    /// What it was made from.
    pub source: String,
    /// The architecture.
    pub architecture: String,
    /// The size of the disk.
    pub size: ByteSize,
    /// The bytes of its files.
    pub content: ByteSize,
    /// The release of its kernel.
    pub kernel: String,
    /// Where the kernel was found: `image`, or a path of the host.
    pub kernel_from: String,
    /// The user of the image that a person logs in as, if it has one.
    pub user: Option<UserName>,
    /// The environment of the image's processes, each a name, `=` and a value.
    pub environment: Vec<String>,
    /// When it was made, in seconds since 1970.
    pub created: u64,
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// Its description.
    pub description: ImageDescription,
    /// Its directory.
    pub directory: PathBuf,
}

impl StoredImage {
    /// The template of the disk.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.directory.join(FILES[0])
    }

    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.directory.join(FILES[1])
    }

    /// The initramfs.
    #[must_use]
    pub fn initramfs(&self) -> PathBuf {
        self.directory.join(FILES[2])
    }
}

/// The images of a user.
#[derive(Debug)]
pub struct ImageStore {
    folder: Folder,
}

/// The right to add and to remove images.
#[derive(Debug)]
pub struct ImageStoreLock {
    file: File,
}

impl Drop for ImageStoreLock {
    fn drop(&mut self) {
        // A child of this process has the file open until its exec, and would hold the lock for as long. A file that cannot be
        // unlocked is closed in a moment.
        self.file.unlock().ok();
    }
}

/// An image while it is made. If it is dropped, it is removed, as far as that is possible.
#[derive(Debug)]
pub struct StagedImage {
    folder: Folder,
    name: String,
}

impl StagedImage {
    /// Its directory.
    #[must_use]
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Where its disk is to be made.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.folder.path_of(FILES[0])
    }

    /// The name of the kernel in the directory.
    #[must_use]
    pub fn kernel() -> &'static str {
        FILES[1]
    }

    /// The name of the initramfs in the directory.
    #[must_use]
    pub fn initramfs() -> &'static str {
        FILES[2]
    }
}

impl ImageStore {
    /// The store in this directory.
    #[must_use]
    pub fn new(folder: Folder) -> Self {
        Self { folder }
    }

    /// The directory of the images.
    #[must_use]
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Takes the lock, and removes what killed commands have left.
    ///
    /// # Errors
    /// [`ImageStoreError::Locked`]; otherwise if something cannot be removed.
    pub fn lock(&self) -> Result<ImageStoreLock> {
        let file = match self.folder.file_to_write(LOCK)? {
            Some(file) => file,
            None => match self.folder.new_file(LOCK) {
                Ok(file) => file,
                Err(error) if error.is(io::ErrorKind::AlreadyExists) => self
                    .folder
                    .file_to_write(LOCK)?
                    .ok_or_else(|| ImageStoreError::Locked(self.folder.path().into()))?,
                Err(error) => return Err(error.into()),
            },
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ImageStoreError::Locked(self.folder.path().into())),
            Err(TryLockError::Error(error)) => {
                return Err(FileError::system("lock", self.folder.path_of(LOCK))(error).into());
            }
        }
        let lock = ImageStoreLock { file };
        for name in self.folder.names()? {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with(STAGING) || name.starts_with(TRASH) {
                remove_deep(&self.folder, &name)?;
            }
        }
        Ok(lock)
    }

    /// All images in the order of their names; for each that cannot be used, why.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Result<StoredImage>>> {
        let names = self.folder.names()?;
        let ids = names.iter().filter_map(|name| ImageId::try_from(name.to_str()?.to_owned()).ok());
        let mut images: Vec<_> = ids.map(|id| self.read(&id)).collect();
        images.sort_by_key(|image| image.as_ref().ok().map(|image| image.description.name.to_string()));
        Ok(images)
    }

    fn read(&self, id: &ImageId) -> Result<StoredImage> {
        let path = self.folder.path_of(id.as_str());
        let folder =
            self.folder.folder(id.as_str())?.ok_or_else(|| ImageStoreError::Undescribed(path.clone()))?;
        let bytes = folder.read_private(DESCRIPTION, DESCRIPTION_LIMIT)?;
        let bytes = bytes.ok_or_else(|| ImageStoreError::Undescribed(path.clone()))?;
        let description: ImageDescription = serde_json::from_slice(&bytes)
            .map_err(|source| ImageStoreError::Description { path: folder.path_of(DESCRIPTION), source })?;
        for file in FILES {
            if folder.file(file)?.is_none() {
                return Err(ImageStoreError::Incomplete { path, file });
            }
        }
        Ok(StoredImage { description, directory: path })
    }

    /// The image that a person calls by its name, or by its id.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn find(&self, text: &str) -> Result<Option<StoredImage>> {
        let usable: Vec<StoredImage> = self.list()?.into_iter().filter_map(Result::ok).collect();
        let named = usable.iter().find(|image| image.description.name.as_str() == text);
        Ok(named.or_else(|| usable.iter().find(|image| image.description.id.as_str() == text)).cloned())
    }

    /// Makes sure that no image has this name.
    ///
    /// # Errors
    /// [`ImageStoreError::NameTaken`].
    pub fn check_name(&self, name: &ImageName) -> Result<()> {
        match self.list()?.into_iter().flatten().find(|image| image.description.name == *name) {
            Some(image) => {
                Err(ImageStoreError::NameTaken { name: name.clone(), source_text: image.description.source })
            }
            None => Ok(()),
        }
    }

    /// Begins an image.
    ///
    /// # Errors
    /// If its directory cannot be made.
    pub fn begin(&self, _lock: &ImageStoreLock) -> Result<StagedImage> {
        let name = format!("{STAGING}{}", std::process::id());
        let (folder, _) = self.folder.make_folder(&name)?;
        Ok(StagedImage { folder, name })
    }

    /// Puts an image into its place. All that is in its directory is on the medium when this returns. If the same image is there
    /// already, that one stays.
    ///
    /// # Errors
    /// If something cannot be written; then the store is as it was.
    pub fn commit(
        &self,
        _lock: &ImageStoreLock,
        staged: StagedImage,
        description: &ImageDescription,
    ) -> Result<StoredImage> {
        let path = staged.folder.path_of(DESCRIPTION);
        let text = serde_json::to_vec_pretty(description)
            .map_err(|source| ImageStoreError::Description { path, source })?;
        staged.folder.replace(DESCRIPTION, &text)?;
        for name in FILES {
            let missing =
                || ImageStoreError::Incomplete { path: staged.folder.path().to_owned(), file: name };
            let file = staged.folder.file(name)?.ok_or_else(missing)?;
            file.sync_all().map_err(FileError::system("sync", staged.folder.path_of(name)))?;
        }
        staged.folder.sync()?;
        self.folder.rename(&staged.name, description.id.as_str())?;
        self.folder.sync()?;
        self.read(&description.id)
    }

    /// Removes an image that is being made.
    ///
    /// # Errors
    /// If it cannot be removed; the next command that takes the lock tries again.
    pub fn discard(&self, _lock: &ImageStoreLock, staged: &StagedImage) -> Result<()> {
        remove_deep(&self.folder, &staged.name)
    }

    /// Removes an image. It is not listed any more from the first change on.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove(&self, _lock: &ImageStoreLock, id: &ImageId) -> Result<()> {
        let trash = format!("{TRASH}{}", id.as_str());
        self.folder.rename(id.as_str(), &trash)?;
        self.folder.sync()?;
        remove_deep(&self.folder, &trash)
    }
}

/// Removes a directory in which files of an image may be, so that it may be deep. It is private to the user, and
/// [`fs::remove_dir_all`] follows no link.
fn remove_deep(folder: &Folder, name: &str) -> Result<()> {
    let path = folder.path_of(name);
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::system("remove", &path)(error).into())
        }
        _ => Ok(folder.sync()?),
    }
}

/// Removes a directory in an image that is being made.
///
/// # Errors
/// If it cannot be removed.
pub fn remove_workplace(staged: &StagedImage, name: &str) -> Result<()> {
    remove_deep(&staged.folder, name)
}

/// Whether a path is a file of the image in this directory.
#[must_use]
pub fn is_of(path: &Path, directory: &Path) -> bool {
    path.starts_with(directory)
}

#[cfg(test)]
mod tests;
