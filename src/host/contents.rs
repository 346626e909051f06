//! The content of the files that a VM is built from: kernel, initramfs and the templates of disks.
//!
//! A template may have many gigabytes, so the hashes are kept in a file of the workspace with what `stat` said of each file
//! when it was read. The kernel sets the change time at every write, and no program can choose it: a file that looks as it
//! did has the same bytes. The record is a hint: if it is missing or does not fit, files are read.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::files::Folder;
use crate::files::copy::{self, CopyError, NamedFile, Progress};
use crate::world::{Failure, HashMethod, Interrupt, Result, SourceFiles};

/// The file with the hashes, in the state of the workspace.
pub const FILE: &str = "contents.json";
/// More than the record of a kernel, an initramfs and 16 disks takes.
const LIMIT: u64 = 1 << 20;
/// A file that was changed so short a time ago may be changed again without another change time.
const SETTLED: Duration = Duration::from_secs(2);

/// What `stat` says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceStamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl SourceStamp {
    fn of(file: &File) -> std::io::Result<Self> {
        let status = file.metadata()?;
        Ok(Self {
            device: status.dev(),
            inode: status.ino(),
            size: status.len(),
            modified: (status.mtime(), status.mtime_nsec()),
            changed: (status.ctime(), status.ctime_nsec()),
        })
    }

    /// Whether the file was changed long enough ago for its change time to tell it from a later content.
    fn is_settled(&self) -> bool {
        let changed = u64::try_from(self.changed.0).unwrap_or(0);
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(changed);
        then.elapsed().is_ok_and(|since| since > SETTLED)
    }
}

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownContent {
    stamp: SourceStamp,
    /// Its hashes in hexadecimal digits, as far as they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pieces: Option<String>,
}

impl KnownContent {
    fn of(stamp: SourceStamp) -> Self {
        Self { stamp, blake3: None, pieces: None }
    }

    fn digits(&mut self, method: HashMethod) -> &mut Option<String> {
        match method {
            HashMethod::Whole => &mut self.blake3,
            HashMethod::Pieces => &mut self.pieces,
        }
    }

    /// The hash, if it is known. A hash that is malformed is not used, as if the record did not have it.
    fn hash(&mut self, method: HashMethod) -> Option<[u8; 32]> {
        let mut hash = [0; 32];
        hex::decode_to_slice(self.digits(method).as_ref()?, &mut hash).ok().map(|()| hash)
    }
}

/// [`SourceFiles`] of one workspace.
#[allow(missing_docs, reason = "the types say it")]
pub struct SourceContents {
    /// The files by the key of the shape that names them.
    pub files: Vec<(String, PathBuf)>,
    /// The directory of the record.
    pub directory: PathBuf,
    pub progress: Arc<dyn Progress>,
}

impl SourceContents {
    /// What is known of one file, with its hash, from the record or from its bytes; `None` if the file cannot be read, or
    /// changes meanwhile.
    async fn content(
        &self,
        path: &Path,
        method: HashMethod,
        known: &BTreeMap<PathBuf, KnownContent>,
        interrupt: &Interrupt,
    ) -> Result<Option<KnownContent>> {
        let opened = open(path).and_then(|file| Ok((SourceStamp::of(&file)?, file)));
        let Ok((stamp, file)) = opened else { return Ok(None) };
        let known = known.get(path).filter(|known| known.stamp == stamp).cloned();
        let mut content = known.unwrap_or(KnownContent::of(stamp));
        if content.hash(method).is_some() {
            return Ok(Some(content));
        }
        let what = format!("content of {}", path.display());
        let source = NamedFile { file, path: path.to_owned() };
        let hash = match copy::hash(what, source, method, None, Arc::clone(&self.progress), interrupt).await {
            Err(CopyError::Interrupted) => return Err(Failure::Interrupted),
            Err(_unreadable) => return Ok(None),
            Ok((hash, _)) => hash,
        };
        *content.digits(method) = Some(hex::encode(hash));
        let after = open(path).and_then(|file| SourceStamp::of(&file)).ok();
        Ok((after == Some(stamp)).then_some(content))
    }
}

/// Opens a regular file. A guest may have put a FIFO in its place, the opening of which would wait for a writer.
fn open(path: &Path) -> std::io::Result<File> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(nonblocking).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(std::io::ErrorKind::InvalidInput.into()) }
}

#[async_trait]
impl SourceFiles for SourceContents {
    async fn contents(
        &self,
        method: HashMethod,
        interrupt: &Interrupt,
    ) -> Result<BTreeMap<String, [u8; 32]>> {
        let folder = Folder::open(&self.directory).ok();
        let bytes = folder.as_ref().and_then(|folder| folder.read(FILE, LIMIT).ok().flatten());
        let known: BTreeMap<PathBuf, KnownContent> =
            bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let (mut contents, mut next) = (BTreeMap::new(), BTreeMap::new());
        for (key, path) in &self.files {
            let Some(mut content) = self.content(path, method, &known, interrupt).await? else { continue };
            let Some(hash) = content.hash(method) else { continue };
            contents.insert(key.clone(), hash);
            if content.stamp.is_settled() {
                next.insert(path.clone(), content);
            }
        }
        if let Some(folder) = folder.filter(|_| next != known) {
            let text = serde_json::to_vec(&next).map_err(Failure::world)?;
            // A record that cannot be written costs time at the next call.
            drop(folder.replace(FILE, &text));
        }
        Ok(contents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::copy::NoProgress;
    use crate::files::hash::tests::root_of;

    fn hashes(
        root: &Path,
        method: HashMethod,
        files: &[(&str, &str)],
        progress: Arc<dyn Progress>,
    ) -> BTreeMap<String, [u8; 32]> {
        let files = files.iter().map(|(key, name)| ((*key).to_owned(), root.join(name))).collect();
        let source = SourceContents { files, directory: root.to_owned(), progress };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(source.contents(method, &Interrupt::new())).unwrap()
    }

    fn contents(root: &Path, files: &[(&str, &str)]) -> BTreeMap<String, [u8; 32]> {
        hashes(root, HashMethod::Pieces, files, Arc::new(NoProgress))
    }

    #[test]
    fn a_file_is_known_by_its_content_wherever_it_is() {
        let root = tempfile::tempdir().unwrap();
        for (name, bytes) in [("a", "kernel"), ("b", "kernel"), ("c", "other")] {
            std::fs::write(root.path().join(name), bytes).unwrap();
        }
        // A guest can put a FIFO in the place of a template. It has no content, and nobody waits for one.
        let fifo = root.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .unwrap();
        let files = [("x", "a"), ("y", "b"), ("z", "c"), ("gone", "d"), ("fifo", "fifo"), ("directory", ".")];
        let found = contents(root.path(), &files);
        assert_eq!(found["x"], root_of(b"kernel"));
        assert_eq!(found["x"], found["y"]);
        assert_ne!(found["x"], found["z"]);
        assert_eq!(found.len(), 3);
    }

    struct NothingIsRead;

    impl Progress for NothingIsRead {
        fn progress(&self, what: &str, _done: u64, _total: u64) {
            panic!("{what} is read");
        }
    }

    #[test]
    fn a_file_that_was_changed_long_ago_is_written_down() {
        let root = tempfile::tempdir().unwrap();
        let old = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let found = contents(root.path(), &[("x", old)]);
        let record = std::fs::read_to_string(root.path().join(FILE)).unwrap();
        assert!(record.contains(&hex::encode(found["x"])) && record.contains(old), "{record}");
        assert_eq!(contents(root.path(), &[("x", old)]), found);
        // The hash of the other method is computed when it is asked for, and kept beside it.
        let whole = hashes(root.path(), HashMethod::Whole, &[("x", old)], Arc::new(NoProgress));
        assert_eq!(whole["x"], *blake3::hash(&std::fs::read(old).unwrap()).as_bytes());
        for method in [HashMethod::Pieces, HashMethod::Whole] {
            let unread = hashes(root.path(), method, &[("x", old)], Arc::new(NothingIsRead));
            assert_eq!(unread["x"], if method == HashMethod::Whole { whole["x"] } else { found["x"] });
        }
        // A file that is not asked for any more is forgotten.
        contents(root.path(), &[]);
        assert_eq!(std::fs::read_to_string(root.path().join(FILE)).unwrap(), "{}");
    }

    #[test]
    fn a_hash_is_used_again_only_if_the_file_looks_as_it_did() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a");
        std::fs::write(&path, "kernel").unwrap();
        let stamp = SourceStamp::of(&File::open(&path).unwrap()).unwrap();
        let invented = KnownContent { pieces: Some(hex::encode([7; 32])), ..KnownContent::of(stamp) };
        let record = BTreeMap::from([(&path, invented)]);
        std::fs::write(root.path().join(FILE), serde_json::to_vec(&record).unwrap()).unwrap();
        assert_eq!(contents(root.path(), &[("x", "a")])["x"], [7; 32]);

        // The same size, and another content.
        std::fs::write(&path, "KERNEL").unwrap();
        assert_eq!(contents(root.path(), &[("x", "a")])["x"], root_of(b"KERNEL"));
        for bad in ["", "{}", "[]", "{\"a\": 1}"] {
            std::fs::write(root.path().join(FILE), bad).unwrap();
            assert_eq!(contents(root.path(), &[("x", "a")])["x"], root_of(b"KERNEL"));
        }
    }
}
