//! The journal's storage on the fake host and the storage on a real file system behave alike, and an error of a real disk
//! names the file.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::Command;

use nixbox::engine::journal::{Journal, JournalError, Name, Storage};
use nixbox::engine::record::Ended;
use nixbox::engine::transition::{Generation, OperationId, TransitionId};
use nixbox::fakes::Host;
use nixbox::store::journal_files::FileStorage;
use proptest::prelude::*;

use crate::harness::{WORKSPACE, cases};

/// A call that a journal makes to its storage.
#[derive(Debug, Clone)]
enum Call {
    Append(Name, Vec<u8>),
    Reserve(Name),
    Sync(Name),
    /// To so many 256ths of the size.
    Truncate(Name, u8),
    Remove(Name),
    Link,
    Rename,
    SyncNames,
}

impl Call {
    fn make(&self, storage: &mut dyn Storage) -> Result<(), ErrorKind> {
        let made = match self {
            Self::Append(name, bytes) => storage.append(*name, bytes),
            Self::Reserve(name) => storage.reserve(*name, 4096),
            Self::Sync(name) => storage.sync(*name),
            Self::Truncate(name, part) => {
                let size = storage.size(*name).unwrap().unwrap_or_default();
                storage.truncate(*name, size * u64::from(*part) / 256)
            }
            Self::Remove(name) => storage.remove(*name),
            Self::Link => storage.link(Name::Current, Name::Previous),
            Self::Rename => storage.rename(Name::Next, Name::Current),
            Self::SyncNames => storage.sync_names(),
        };
        made.map_err(|error| error.kind())
    }
}

const NAMES: [Name; 3] = [Name::Current, Name::Next, Name::Previous];

fn call() -> impl Strategy<Value = Call> {
    let name = || prop::sample::select(&NAMES[..]);
    prop_oneof![
        4 => (name(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(name, bytes)| Call::Append(name, bytes)),
        1 => name().prop_map(Call::Reserve),
        1 => name().prop_map(Call::Sync),
        1 => (name(), any::<u8>()).prop_map(|(name, part)| Call::Truncate(name, part)),
        2 => name().prop_map(Call::Remove),
        2 => Just(Call::Link),
        2 => Just(Call::Rename),
        1 => Just(Call::SyncNames),
    ]
}

/// The content of each file, read in two pieces.
fn contents(storage: &mut dyn Storage) -> [Result<Option<Vec<u8>>, ErrorKind>; 3] {
    NAMES.map(|name| {
        let Some(size) = storage.size(name).map_err(|error| error.kind())? else {
            let none = storage.read_at(name, 0, &mut [0]).map_err(|error| error.kind());
            assert_eq!(none, Err(ErrorKind::NotFound));
            return Ok(None);
        };
        let mut bytes = vec![0; size as usize + 1];
        let middle = bytes.len() / 2;
        let mut read = |from: usize, to: usize| storage.read_at(name, from as u64, &mut bytes[from..to]);
        let total = read(0, middle).and_then(|first| Ok(first + read(middle, size as usize + 1)?));
        assert_eq!(total.map_err(|error| error.kind())?, size as usize);
        bytes.pop();
        Ok(Some(bytes))
    })
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn the_fake_one_and_the_real_one_answer_alike(calls in prop::collection::vec(call(), 1..30)) {
        let directory = tempfile::tempdir().unwrap();
        let host = Host::new(53, false);
        let (mut fake, mut real) = (host.storage(WORKSPACE), FileStorage::new(directory.path()).unwrap());
        for call in &calls {
            prop_assert_eq!(call.make(&mut fake), call.make(&mut real), "{:?}", call);
            prop_assert_eq!(contents(&mut fake), contents(&mut real), "after {:?}", call);
        }
        // A storage that is opened anew sees the same.
        let mut again = FileStorage::new(directory.path()).unwrap();
        prop_assert_eq!(contents(&mut again), contents(&mut real));
    }
}

#[test]
fn a_journal_that_is_no_plain_file_is_refused_without_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(Name::Current.file_name());
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    let refused = |path: &Path| FileStorage::new(path).and_then(|mut storage| storage.size(Name::Current));
    assert!(refused(directory.path()).is_err());
    std::fs::remove_file(&path).unwrap();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    assert!(refused(directory.path()).is_err());
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(directory.path(), &link).unwrap();
    assert!(refused(&link).is_err());
}

fn open(directory: &Path) -> Result<Journal<FileStorage>, JournalError> {
    Journal::open(FileStorage::new(directory).unwrap(), WORKSPACE, Generation(0), 1)
}

/// Runs operations until the disk is full.
fn fill(journal: &mut Journal<FileStorage>) -> JournalError {
    loop {
        let done = journal.begin(OperationId(1), b"", 1).and_then(|_| {
            journal.intents(&[(0, TransitionId(1), vec![7; 30_000])])?;
            journal.end(Ended::Done, b"stands", 2)
        });
        if let Err(error) = done {
            return error;
        }
    }
}

fn mount(options: &[&str], directory: &Path) {
    assert!(Command::new("mount").args(options).arg(directory).status().unwrap().success(), "{options:?}");
}

fn failure(error: JournalError, directory: &Path) -> io::Error {
    let JournalError::Io { path, source, .. } = error else { panic!("{error:?}") };
    assert!(Path::new(&path).starts_with(directory), "{path}");
    source
}

/// Runs in a process of its own, because it needs a mount namespace of its own.
fn on_a_small_disk(directory: &Path) {
    mount(&["-t", "tmpfs", "-o", "size=512k", "small"], directory);
    let mut journal = open(directory).unwrap();
    assert_eq!(failure(fill(&mut journal), directory).kind(), ErrorKind::StorageFull);
    assert!(matches!(journal.sync(), Err(JournalError::Poisoned { .. })));
    drop(journal);
    mount(&["-o", "remount,ro"], directory);
    let refused = open(directory).map(drop).unwrap_err();
    assert_eq!(failure(refused, directory).kind(), ErrorKind::ReadOnlyFilesystem);
    mount(&["-o", "remount,rw,size=4m"], directory);
    let mut journal = open(directory).unwrap();
    if journal.open_operation().is_some() {
        journal.end(Ended::RolledBack, b"stands", 3).unwrap();
    }
    assert_eq!(journal.history().final_state, b"stands");
    journal.begin(OperationId(1), b"", 4).unwrap();
}

#[test]
fn errors_of_a_full_or_read_only_disk_name_the_file() {
    const ROLE: &str = "NIXBOX_TEST_SMALL_DISK";
    if let Some(directory) = std::env::var_os(ROLE) {
        return on_a_small_disk(&PathBuf::from(directory));
    }
    let directory = tempfile::tempdir().unwrap();
    let separate = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]).args(arguments);
        command.env(ROLE, directory.path()).output().unwrap()
    };
    if !separate(&["true"]).status.success() {
        println!("skipped: only root can have a mount table of its own");
        return;
    }
    let this = std::env::current_exe().unwrap();
    let name = "storage::a_real_disk_that_is_full_or_may_only_be_read_is_named";
    let output = separate(&[this.to_str().unwrap(), "--exact", name]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
