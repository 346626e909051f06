use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::files::copy::NoProgress;
use crate::host::memory::tests::{GENERATION, ram};
use crate::world::{Backing, Memory};

const CONTENT: &[u8] = b"{}\nssh deploy@example.com";

fn content() -> Secret {
    Secret::new(CONTENT.to_vec())
}

/// Whether a file below the directory holds the text.
fn holds(directory: &Path, text: &[u8]) -> bool {
    std::fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return holds(&path, text);
        }
        // RAM is large and empty here.
        let small = std::fs::metadata(&path).unwrap().len() < 1 << 20;
        small && std::fs::read(&path).unwrap().windows(text.len()).any(|window| window == text)
    })
}

fn backup_files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.to_str().unwrap().contains("backup")).collect()
}

async fn check(ram: &RamFiles, place: &Path, hidden: bool) {
    ram.create(GENERATION).await.unwrap();
    Backups::examine(ram, GENERATION, 1 << 20).await.unwrap();
    assert_eq!(Backups::find(ram, GENERATION).await.unwrap(), Presence::Absent);
    assert!(Backups::read(ram, GENERATION).await.unwrap().is_none());
    Backups::write(ram, GENERATION, &Secret::new(b"earlier".to_vec())).await.unwrap();
    Backups::write(ram, GENERATION, &content()).await.unwrap();
    let [file] = &backup_files(place)[..] else { panic!("{:?}", backup_files(place)) };
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(holds(place, b"deploy"), !hidden);
    // Another nixbox reads it.
    let other = self::ram(ram.run.parent().unwrap(), &ram.tmpfs[0], Backing::Auto, Arc::new(NoProgress));
    assert_eq!(Backups::read(&other, GENERATION).await.unwrap().unwrap().expose(), CONTENT);
    assert_eq!(Backups::find(&other, GENERATION).await.unwrap(), Presence::Whole);
    assert!(ram.generations().unwrap().contains(&GENERATION));
    for _ in 0..2 {
        Backups::remove(&other, GENERATION).await.unwrap();
        assert_eq!(backup_files(place), Vec::<PathBuf>::new());
    }
    // It goes with the RAM, and so does what was half written.
    Backups::write(ram, GENERATION, &content()).await.unwrap();
    std::fs::write(place.join(format!(".{}.unfinished", backup_name(GENERATION))), "half").unwrap();
    Memory::remove(ram, GENERATION).await.unwrap();
    assert!(!place.exists() || backup_files(place).is_empty());
    assert!(Backups::examine(ram, GENERATION, 1).await.is_err());
}

#[tokio::test]
async fn a_backup_lies_beside_ram_on_tmpfs_until_it_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    // Any tmpfs will do, and this one is on every host.
    let tmpfs = tempfile::tempdir_in("/dev/shm").unwrap();
    let ram = ram(directory.path(), tmpfs.path(), Backing::Tmpfs, Arc::new(NoProgress));
    let user = format!("nixbox-{}", rustix::process::geteuid().as_raw());
    check(&ram, &tmpfs.path().join(user).join(ram.workspace.to_string()), false).await;
}

#[tokio::test]
async fn a_backup_on_disk_is_encrypted() {
    let directory = tempfile::tempdir().unwrap();
    let ram = ram(directory.path(), directory.path(), Backing::Disk, Arc::new(NoProgress));
    if let Err(error) = seal::examine("nixbox test of a backup") {
        println!("skipped: {error}");
        return;
    }
    check(&ram, &ram.run, true).await;
    let vmms_own = self::ram(directory.path(), directory.path(), Backing::Vmm, Arc::new(NoProgress));
    check(&vmms_own, &vmms_own.run, true).await;

    // Without its key nothing can be read, and the message says what to do.
    ram.create(GENERATION).await.unwrap();
    Backups::write(&ram, GENERATION, &content()).await.unwrap();
    seal::forget(&ram.key_name(GENERATION)).unwrap();
    let lost = Backups::read(&ram, GENERATION).await.unwrap_err();
    let world::Failure::World(lost) = lost else { panic!("{lost:?}") };
    let why = std::error::Error::source(&*lost).unwrap().to_string();
    assert!(
        lost.to_string().contains("memory-7.backup") && why.contains("to go on without it"),
        "{lost}: {why}"
    );
    std::fs::remove_file(&backup_files(&ram.run)[0]).unwrap();
    assert!(Backups::read(&ram, GENERATION).await.unwrap().is_none());
    Memory::remove(&ram, GENERATION).await.unwrap();
}

#[tokio::test]
async fn a_backup_without_room_is_refused_with_the_place() {
    let directory = tempfile::tempdir().unwrap();
    let ram = ram(directory.path(), directory.path(), Backing::Disk, Arc::new(NoProgress));
    ram.create(GENERATION).await.unwrap();
    let refused = Backups::examine(&ram, GENERATION, u64::MAX / 4).await.unwrap_err().to_string();
    assert!(refused.contains(ram.run.to_str().unwrap()) && refused.contains("do not fit"), "{refused}");
    assert_eq!(backup_files(&ram.run), Vec::<PathBuf>::new());
    Memory::remove(&ram, GENERATION).await.unwrap();
}
