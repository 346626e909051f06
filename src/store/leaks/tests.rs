use std::process::Command;

use super::*;
use crate::files::copy::{Copied, NoProgress, Progress};
use crate::files::hash::tests::root_of;
use crate::files::search::value::ValueKind;
use crate::store::Snapshots;
use crate::store::layout::staging_name;
use crate::testing::{Need, have};
use crate::world::{
    BootId, Catalog as _, Failure, Generation, HoldingProcess, Interrupt, Manifest, Origin, Secret, Slot,
    UnprovenPlace, VmmVersion,
};

const TOKEN: &str = "ghp_16C7e42F292c6912E7710c838347Ae178B4a";
const ID: SnapshotId = SnapshotId(Generation(7));

struct StagedSnapshot {
    directory: tempfile::TempDir,
    snapshots: Snapshots,
}

fn value(name: &str, kind: ValueKind, content: &str) -> NamedValue {
    NamedValue { name: name.to_owned(), kind, content: Secret::new(content.as_bytes().to_vec()) }
}

impl StagedSnapshot {
    /// A staging directory with these files, in a workspace whose guests were given some values.
    async fn new(on_leak: OnLeak, files: &[(&str, &[u8])]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_owned();
        let values = [
            value("TOKEN", ValueKind::Read, TOKEN),
            value("WORDS", ValueKind::Read, "correct horse battery"),
            value("EDITOR", ValueKind::Written, "/usr/bin/editor"),
            value("SHORT", ValueKind::Read, "hunter2"),
        ];
        KnownValues::remember(&Folder::open(&root).unwrap(), &values).unwrap();
        let leaks = Arc::new(LeakSearch::new(root.clone(), on_leak));
        let snapshots = Snapshots { root, progress: Arc::new(NoProgress), leaks };
        snapshots.stage(ID).await.unwrap();
        let place = Self { directory, snapshots };
        for (name, bytes) in files {
            std::fs::write(place.path(name), bytes).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(staging_name(ID)).join(name)
    }

    async fn digest(&self) -> std::result::Result<Receipt, StoreError> {
        match self.snapshots.digest(ID, &Interrupt::new()).await {
            Ok(files) => {
                for file in files {
                    let bytes = std::fs::read(self.path(&file.name)).unwrap();
                    assert_eq!(root_of(&bytes), file.hash, "the hash is of what is there now");
                }
                Ok(self.snapshots.receipt(ID).await.unwrap().unwrap())
            }
            Err(Failure::World(error)) => Err(*error.downcast().unwrap()),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn manifest(&self, name: &str) -> Manifest {
        Manifest {
            id: ID,
            name: name.parse().ok(),
            created_ms: 1,
            slot: Slot::try_from(0).unwrap(),
            boot: BootId([1; 16]),
            shares: false,
            origin: Origin {
                vmm: VmmVersion { major: 53, text: "v53.0".to_owned() },
                cpu: BTreeSet::new(),
                shape: BTreeMap::new(),
            },
            files: Vec::new(),
            given: Default::default(),
            receipt: self.snapshots.leaks.receipt(ID),
        }
    }
}

fn found(receipt: &Receipt) -> Vec<String> {
    let one = |FoundValue { value, place, form, count }: &FoundValue| {
        format!("{value} in {place} as {form}: {count}")
    };
    receipt.found.iter().map(one).collect()
}

/// RAM in which values lie at the ends of pages, chunks and pieces, and in several forms.
fn ram() -> Vec<u8> {
    let mut ram = vec![0_u8; (9 << 20) + 100];
    let length = ram.len();
    let mut plant = |at: usize, bytes: &[u8]| ram[at..at + bytes.len()].copy_from_slice(bytes);
    for at in [0, 4096 - 7, (1 << 20) - 1, (8 << 20) - 39, length - TOKEN.len()] {
        plant(at, TOKEN.as_bytes());
    }
    let wide: Vec<u8> = TOKEN.encode_utf16().flat_map(u16::to_le_bytes).collect();
    plant(100_000, &wide);
    plant(200_000, b"pass: correct horse battery\n");
    plant(300_000, b"EDITOR=/usr/bin/editor");
    ram
}

#[tokio::test]
async fn what_is_found_in_ram_is_overwritten_and_nothing_else() {
    let ram = ram();
    let place = StagedSnapshot::new(OnLeak::Redact, &[("memory.img", &ram), ("config.json", b"{}")]).await;
    let receipt = place.digest().await.unwrap();
    assert_eq!(
        found(&receipt),
        ["TOKEN in RAM as UTF-16: 1", "TOKEN in RAM as plain bytes: 5", "WORDS in RAM as plain bytes: 1"]
    );
    let unproven: Vec<&str> = receipt.unproven.iter().map(|one| one.value.as_str()).collect();
    assert_eq!(unproven, ["EDITOR", "SHORT"]);
    assert_eq!(receipt.values, ["EDITOR", "TOKEN", "WORDS"]);
    assert!(!receipt.zeroes_freed_memory);

    let text = String::from_utf8_lossy(&ram).into_owned();
    let mut expected = text.replace(TOKEN, &"*".repeat(TOKEN.len())).into_bytes();
    let mark = |bytes: &mut [u8], at: usize, length| bytes[at..at + length].fill(b'*');
    mark(&mut expected, 100_000, 2 * TOKEN.len());
    mark(&mut expected, 200_006, 21);
    assert!(std::fs::read(place.path("memory.img")).unwrap() == expected);
}

#[tokio::test]
async fn a_value_that_ends_in_a_hole_is_found() {
    let place = StagedSnapshot::new(OnLeak::Redact, &[("memory.img", b"")]).await;
    let wide: Vec<u8> = TOKEN.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let file = File::options().read(true).write(true).open(place.path("memory.img")).unwrap();
    file.set_len(4 << 20).unwrap();
    // The last byte of the value is a zero, and the first one of a hole.
    for end in [1 << 20, (2 << 20) + 4096] {
        let data = &wide[..wide.len() - 1];
        file.write_all_at(data, end - data.len() as u64).unwrap();
    }
    file.write_all_at(TOKEN.as_bytes(), (4 << 20) - TOKEN.len() as u64).unwrap();
    let receipt = place.digest().await.unwrap();
    assert_eq!(found(&receipt), ["TOKEN in RAM as UTF-16: 2", "TOKEN in RAM as plain bytes: 1"]);
    let bytes = std::fs::read(place.path("memory.img")).unwrap();
    assert_eq!(bytes.iter().filter(|byte| **byte == MARK).count(), 2 * wide.len() + TOKEN.len());
}

/// Runs a program of e2fsprogs on an image.
fn run_on(image: &std::path::Path, program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).arg(image).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// A disk with ext4 that has the token in a file, in the blocks of a deleted file, in a swap file and in its journal.
fn disk_with_tokens(image: &std::path::Path) {
    let directory = tempfile::tempdir().unwrap();
    let files = directory.path().join("files");
    std::fs::create_dir(&files).unwrap();
    let text = |before: usize| [vec![b'.'; before].as_slice(), TOKEN.as_bytes(), b"\n"].concat();
    std::fs::write(files.join("kept"), text(4096 - 11)).unwrap();
    std::fs::write(files.join("deleted"), text(3)).unwrap();
    let mut swap = vec![0; 64 << 10];
    swap[4086..4096].copy_from_slice(b"SWAPSPACE2");
    swap[20_000..20_000 + TOKEN.len()].copy_from_slice(TOKEN.as_bytes());
    std::fs::write(files.join("swap"), swap).unwrap();
    let block = directory.path().join("block");
    std::fs::write(&block, [&text(0), vec![0; 1023 - TOKEN.len()].as_slice()].concat()).unwrap();
    let commands = directory.path().join("commands");
    std::fs::write(&commands, format!("rm /deleted\njo -c\njw -b 3000 {}\njc\n", block.display())).unwrap();

    File::create(image).unwrap().set_len(16 << 20).unwrap();
    let from = files.to_str().unwrap();
    run_on(image, "mkfs.ext4", &["-q", "-F", "-O", "metadata_csum", "-b", "1024", "-d", from]);
    run_on(image, "debugfs", &["-w", "-f", commands.to_str().unwrap()]);
}

#[tokio::test]
async fn tokens_on_ext4_are_overwritten_in_files_free_blocks_and_a_journal_that_was_replayed() {
    if !have(&[Need::Program("mkfs.ext4"), Need::Program("debugfs")]) {
        return;
    }
    let place = StagedSnapshot::new(OnLeak::Redact, &[]).await;
    let image = place.path("disk-0.img");
    disk_with_tokens(&image);
    let before = std::fs::read(&image).unwrap();
    // A kernel would stop replaying where a block of the journal has not its checksum.
    let error = place.digest().await.unwrap_err().to_string();
    assert!(error.contains("TOKEN in disk 0, in a part of the file system that has a checksum"), "{error}");
    assert!(std::fs::read(&image).unwrap() == before, "nothing was overwritten");

    run_on(&image, "debugfs", &["-w", "-R", "jr"]);
    let receipt = place.digest().await.unwrap();
    // The block of the journal, and where that was written to when it was replayed.
    assert_eq!(found(&receipt), ["TOKEN in disk 0 as plain bytes: 5"]);
    assert!(!String::from_utf8_lossy(&std::fs::read(&image).unwrap()).contains(TOKEN));
    run_on(&image, "e2fsck", &["-f", "-n"]);
}

#[tokio::test]
async fn with_fail_all_that_is_found_is_named_and_no_value_is_printed() {
    let files: [(&str, &[u8]); 2] = [("memory.img", &ram()), ("memory-ranges", TOKEN.as_bytes())];
    let place = StagedSnapshot::new(OnLeak::Fail, &files).await;
    let error = place.digest().await.unwrap_err();
    assert!(matches!(&error, StoreError::Leak { .. }));
    let text = error.to_string();
    assert!(text.contains("TOKEN in RAM, WORDS in RAM") && !text.contains(TOKEN), "{text}");
    assert_eq!(place.snapshots.receipt(ID).await.unwrap(), None);
    assert!(std::fs::read(place.path("memory.img")).unwrap() == ram(), "nothing was overwritten");
}

#[tokio::test]
async fn a_value_that_looks_like_words_and_is_everywhere_is_left_and_told() {
    for (times, overwritten) in [(RARE, true), (RARE + 1, false)] {
        let text = "correct horse battery\n".repeat(times as usize);
        let place = StagedSnapshot::new(OnLeak::Redact, &[("memory.img", text.as_bytes())]).await;
        let receipt = place.digest().await.unwrap();
        assert_eq!(std::fs::read(place.path("memory.img")).unwrap() != text.as_bytes(), overwritten);
        assert_eq!(receipt.unproven.iter().any(|one| one.value == "WORDS"), !overwritten);
    }
}

#[tokio::test]
async fn what_the_vmm_wrote_and_an_unknown_disk_are_never_overwritten() {
    let state = format!("{{\"buffer\": \"{TOKEN}\"}}");
    let (state, disk) = (state.as_bytes(), TOKEN.as_bytes());
    for (name, bytes, words) in [
        ("state.json", state, "TOKEN in state.json, which the VMM wrote"),
        ("config.json", state, "TOKEN in config.json"),
        ("disk-0.img", disk, "TOKEN in disk 0, whose file system is not known to nixbox"),
    ] {
        let place = StagedSnapshot::new(OnLeak::Redact, &[(name, bytes)]).await;
        let error = place.digest().await.unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains(TOKEN), "{error}");
        assert_eq!(std::fs::read(place.path(name)).unwrap(), bytes);
    }
}

#[tokio::test]
async fn a_manifest_that_holds_a_token_is_not_committed() {
    let place = StagedSnapshot::new(OnLeak::Redact, &[]).await;
    place.digest().await.unwrap();
    let refused = place.snapshots.commit(place.manifest(TOKEN)).await.unwrap_err();
    let Failure::World(error) = refused else { panic!("{refused:?}") };
    assert!(error.to_string().contains("TOKEN in the manifest"), "{error}");
    assert!(place.snapshots.list().await.unwrap().is_empty());
    place.snapshots.commit(place.manifest("warm")).await.unwrap();
    let listed = place.snapshots.list().await.unwrap().remove(0).manifest.unwrap();
    assert_eq!(listed.receipt, place.snapshots.leaks.receipt(ID));
    assert!(listed.receipt.is_some());
}

#[tokio::test]
async fn a_listed_snapshot_is_searched_again_for_what_is_a_credential_today() {
    let later = "glpat-0123456789abcdefGHIJ";
    let place = StagedSnapshot::new(OnLeak::Redact, &[("memory.img", later.as_bytes())]).await;
    let files = place.snapshots.digest(ID, &Interrupt::new()).await.unwrap();
    place.snapshots.commit(Manifest { files, ..place.manifest("warm") }).await.unwrap();
    let never = Interrupt::new();
    assert!(place.snapshots.search(ID, &[], &never).await.unwrap().found.is_empty());
    let today = [value("LATER", ValueKind::Read, later)];
    let receipt = place.snapshots.search(ID, &today, &never).await.unwrap();
    assert_eq!(found(&receipt), ["LATER in RAM as plain bytes: 1"]);
    let file = place.directory.path().join("7/memory.img");
    assert_eq!(std::fs::read(file).unwrap(), later.as_bytes(), "a listed snapshot is never changed");
}

#[tokio::test]
async fn a_workspace_without_values_has_a_receipt_that_says_so() {
    let place = StagedSnapshot::new(OnLeak::Fail, &[("memory.img", &ram())]).await;
    std::fs::remove_file(place.directory.path().join(crate::files::search::known::FILE)).unwrap();
    let receipt = place.digest().await.unwrap();
    assert!(receipt.values.is_empty() && receipt.found.is_empty());
}

#[tokio::test]
async fn the_command_line_of_the_saved_vm_says_whether_freed_memory_is_zeroed() {
    for (cmdline, zeroes) in [
        ("quiet init_on_free=1", true),
        ("init_on_free=0 quiet init_on_free=1", true),
        ("init_on_free=1 init_on_free=0", false),
        ("xinit_on_free=1", false),
        ("quiet", false),
    ] {
        let config = format!("{{\"payload\":{{\"cmdline\":\"{cmdline}\"}}}}");
        let place = StagedSnapshot::new(OnLeak::Redact, &[("config.json", config.as_bytes())]).await;
        assert_eq!(place.digest().await.unwrap().zeroes_freed_memory, zeroes, "{cmdline}");
    }
}

/// The names of the files that were read.
#[derive(Default)]
struct FilesRead(Mutex<BTreeSet<String>>);

impl Progress for FilesRead {
    fn progress(&self, what: &str, _done: u64, _total: u64) {
        self.0.lock().unwrap().insert(what.to_owned());
    }
}

impl StagedSnapshot {
    /// Copies these bytes into a file of the staging directory, as a capture does.
    async fn copy(&self, name: &str, bytes: &[u8]) {
        let (leaks, source) = (&self.snapshots.leaks, self.directory.path().join("source"));
        std::fs::write(&source, bytes).unwrap();
        let staging = Folder::open(&self.directory.path().join(staging_name(ID))).unwrap();
        let capture = CaptureRequest {
            what: "copy".to_owned(),
            source: NamedFile { file: File::open(&source).unwrap(), path: source },
            name: name.to_owned(),
            reflink: false,
            smallest_hole: crate::files::extents::PAGE,
        };
        leaks.capture(ID, &staging, capture, Arc::new(NoProgress), &Interrupt::new()).await.unwrap();
    }

    /// Searches and hashes, and tells which files were read for it.
    async fn digest_and_count(&mut self) -> (Receipt, Vec<String>) {
        let read = Arc::new(FilesRead::default());
        self.snapshots.progress = read.clone();
        let receipt = self.digest().await.unwrap();
        let read = read.0.lock().unwrap().iter().cloned().collect();
        (receipt, read)
    }
}

#[tokio::test]
async fn a_file_that_was_searched_and_hashed_while_it_was_copied_is_not_read_again() {
    let ram = String::from_utf8_lossy(&ram()).replace("correct horse battery", "wrong").into_bytes();
    let mut read_later = StagedSnapshot::new(OnLeak::Redact, &[("memory.img", &ram)]).await;
    let mut copied = StagedSnapshot::new(OnLeak::Redact, &[("config.json", b"{}")]).await;
    copied.copy("memory.img", &ram).await;
    copied.copy("disk-0.img", b"a disk without a value").await;
    let (receipt, read) = copied.digest_and_count().await;
    assert_eq!(read, ["config.json"]);
    let (expected, read) = read_later.digest_and_count().await;
    assert_eq!(read, ["memory.img"]);
    assert_eq!((found(&receipt), &receipt.unproven), (found(&expected), &expected.unproven));
    let content = |place: &StagedSnapshot| std::fs::read(place.path("memory.img")).unwrap();
    assert!(content(&copied) == content(&read_later));
}

#[tokio::test]
async fn a_copied_file_is_read_where_the_search_on_the_way_is_not_enough() {
    // A value that looks like words is overwritten only when it is known how often it is there.
    let mut place = StagedSnapshot::new(OnLeak::Redact, &[]).await;
    place.copy("memory.img", &ram()).await;
    let (receipt, read) = place.digest_and_count().await;
    assert_eq!(read, ["memory.img"]);
    assert!(found(&receipt).contains(&"WORDS in RAM as plain bytes: 1".to_owned()));

    // The copy has changed since.
    let mut place = StagedSnapshot::new(OnLeak::Redact, &[]).await;
    place.copy("memory.img", b"nothing").await;
    std::fs::write(place.path("memory.img"), TOKEN).unwrap();
    let (receipt, read) = place.digest_and_count().await;
    assert_eq!(
        (found(&receipt), read),
        (vec!["TOKEN in RAM as plain bytes: 1".to_owned()], vec!["memory.img".to_owned()])
    );

    // A value became known after the copy.
    let mut place = StagedSnapshot::new(OnLeak::Redact, &[]).await;
    place.copy("memory.img", b"glpat-0123456789abcdefGHIJ").await;
    let later = [value("LATER", ValueKind::Read, "glpat-0123456789abcdefGHIJ")];
    KnownValues::remember(&Folder::open(place.directory.path()).unwrap(), &later).unwrap();
    let (receipt, _) = place.digest_and_count().await;
    assert_eq!(found(&receipt), ["LATER in RAM as plain bytes: 1"]);
}

#[tokio::test]
async fn a_token_that_was_written_while_its_file_was_copied_is_found() {
    let mut place = StagedSnapshot::new(OnLeak::Redact, &[]).await;
    let staging = Folder::open(&place.directory.path().join(staging_name(ID))).unwrap();
    let leaks = Arc::clone(&place.snapshots.leaks);
    // The search of each side of the seam saw the other side without its half of the token.
    let searching = leaks.while_copying("memory.img").unwrap();
    let mut bytes = vec![1; 2 << 20];
    bytes[(1 << 20) - 20..(1 << 20) - 20 + TOKEN.len()].copy_from_slice(TOKEN.as_bytes());
    std::fs::write(place.path("memory.img"), &bytes).unwrap();
    let copied = Copied {
        method: copy::CopyMethod::Sparse { read: 2 << 20, written: 2 << 20 },
        hash: Some(root_of(&bytes)),
        findings: Findings::default(),
        seams: vec![0, 1 << 20],
    };
    leaks.copied(ID, &staging, "memory.img", copied, &searching).unwrap();
    let (receipt, _) = place.digest_and_count().await;
    assert_eq!(found(&receipt), ["TOKEN in RAM as plain bytes: 1"]);
    assert!(!String::from_utf8_lossy(&std::fs::read(place.path("memory.img")).unwrap()).contains(TOKEN));
}

#[tokio::test]
async fn what_looks_like_a_token_is_counted_where_it_is_and_left() {
    const OTHER: &str = "glpat-16C7e42F292c6912E771";
    let memory = format!("{OTHER} {TOKEN} {OTHER}").into_bytes();
    let place =
        StagedSnapshot::new(OnLeak::Redact, &[("memory.img", &memory), ("state.json", OTHER.as_bytes())])
            .await;
    let receipt = place.digest().await.unwrap();
    let warning = |place: &str, count| TokenWarning {
        kind: "tokens of GitLab".to_owned(),
        place: place.to_owned(),
        count,
    };
    // The known token looks like one too, and was overwritten.
    assert_eq!(receipt.warnings, [warning("RAM", 2), warning("state.json", 1)]);
    let stars = "*".repeat(TOKEN.len());
    assert_eq!(
        std::fs::read_to_string(place.path("memory.img")).unwrap(),
        format!("{OTHER} {stars} {OTHER}")
    );
}

#[tokio::test]
async fn what_the_guest_was_found_to_hold_is_in_the_receipt() {
    let place = StagedSnapshot::new(OnLeak::Redact, &[("memory.img", b"nothing")]).await;
    let [program, name, reason] = ["java", "swap", "it stays on"].map(str::to_owned);
    let process = HoldingProcess { pid: 7, program, values: vec!["TOKEN".to_owned()] };
    let unproven = vec![UnprovenPlace { place: name, reason }];
    let audit = GuestAudit { processes: vec![process], unproven };
    place.snapshots.keep_audit(ID, audit.clone()).await.unwrap();
    let receipt = place.digest().await.unwrap();
    assert_eq!((receipt.processes, receipt.unproven_places), (audit.processes, audit.unproven));
}

#[tokio::test]
async fn a_log_that_holds_a_token_is_named_and_left() {
    let StagedSnapshot { directory, snapshots } = StagedSnapshot::new(OnLeak::Fail, &[]).await;
    let logs = tempfile::tempdir().unwrap();
    let written = format!("login: {TOKEN}\n");
    for (name, text) in [("serial-3.log", written.as_str()), ("serial-2.log", "quiet\n"), ("other", &written)]
    {
        std::fs::write(logs.path().join(name), text).unwrap();
    }
    let leaks = LeakSearch::new(directory.path().to_owned(), OnLeak::Fail).with_logs(logs.path().to_owned());
    let snapshots = Snapshots { leaks: Arc::new(leaks), ..snapshots };
    snapshots.digest(ID, &Interrupt::new()).await.unwrap();
    let receipt = snapshots.receipt(ID).await.unwrap().unwrap();
    let [UnprovenPlace { place, reason }] = &receipt.unproven_places[..] else { panic!("{receipt:?}") };
    assert!(
        place.contains("serial-3.log on this host") && reason.contains("it holds TOKEN"),
        "{place}: {reason}"
    );
    assert_eq!(std::fs::read_to_string(logs.path().join("serial-3.log")).unwrap(), written);
}
