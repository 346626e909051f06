use std::path::Path;
use std::process::Command;

use super::*;
use crate::testing::{Need, have};

const TEXT: &[u8] = b"a-value-that-is-nowhere-else";

fn image(size: u64) -> (tempfile::TempDir, File) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    file.set_len(size).unwrap();
    (directory, file)
}

/// Runs a program on the image.
fn make(program: &str, arguments: &[&str], directory: &Path) {
    let output = Command::new(program).args(arguments).arg(directory.join("image")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn fixed(image: &File, at: u64) -> Option<Fixed> {
    FileSystems::of(image).unwrap().fixed(image, at, TEXT.len() as u64).unwrap()
}

/// Where the text is in the image.
fn places(image: &File) -> Vec<u64> {
    let mut bytes = vec![0; image.metadata().unwrap().len() as usize];
    image.read_exact_at(&mut bytes, 0).unwrap();
    let starts = bytes.windows(TEXT.len()).enumerate();
    starts.filter(|(_, window)| *window == TEXT).map(|(at, _)| at as u64).collect()
}

#[test]
fn data_of_ext4_may_be_overwritten_and_its_tables_may_not() {
    if !have(&[Need::Program("mkfs.ext4")]) {
        return;
    }
    let (directory, image) = image(16 << 20);
    let source = directory.path().join("files");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), [TEXT, &[b'.'; 5000]].concat()).unwrap();
    // A name, and a link that is short enough to be in its inode.
    std::fs::write(source.join(String::from_utf8_lossy(TEXT).as_ref()), "").unwrap();
    std::os::unix::fs::symlink(String::from_utf8_lossy(TEXT).as_ref(), source.join("link")).unwrap();
    let from = source.to_str().unwrap();
    make("mkfs.ext4", &["-q", "-O", "metadata_csum", "-d", from], directory.path());
    let places = places(&image);
    let verdicts: Vec<Option<Fixed>> = places.iter().map(|at| fixed(&image, *at)).collect();
    assert_eq!(places.len(), 3, "{places:?}");
    assert_eq!(verdicts.iter().filter(|verdict| verdict.is_none()).count(), 1, "{verdicts:?}");
    assert!(verdicts.iter().all(|verdict| [None, Some(Fixed::Metadata)].contains(verdict)), "{verdicts:?}");
    assert_eq!(fixed(&image, 1024), Some(Fixed::Metadata));
    assert_eq!(fixed(&image, (16 << 20) - 4096), None, "a free block");
    assert_eq!(fixed(&image, (16 << 20) - 4), Some(Fixed::NoPartition), "beyond the end");
    // The file system is whole after the data was overwritten.
    let data = places.iter().zip(&verdicts).find(|(_, verdict)| verdict.is_none()).unwrap();
    image.write_all_at(&[b'*'; 28], *data.0).unwrap();
    make("e2fsck", &["-f", "-n"], directory.path());
}

#[test]
fn the_journal_of_ext4_may_be_overwritten_when_it_was_replayed() {
    if !have(&[Need::Program("mkfs.ext4"), Need::Program("debugfs")]) {
        return;
    }
    let (directory, image) = image(16 << 20);
    make("mkfs.ext4", &["-q", "-O", "metadata_csum", "-b", "1024"], directory.path());
    let block = directory.path().join("block");
    std::fs::write(&block, [TEXT, &[b'.'; 1024 - TEXT.len()]].concat()).unwrap();
    let commands = directory.path().join("commands");
    std::fs::write(&commands, format!("jo -c\njw -b 3000 {}\njc\n", block.display())).unwrap();
    make("debugfs", &["-w", "-f", commands.to_str().unwrap()], directory.path());
    let [in_journal] = places(&image)[..] else { panic!("{:?}", places(&image)) };
    assert_eq!(fixed(&image, in_journal), Some(Fixed::Metadata));
    // Once it was replayed, nobody reads it again.
    make("debugfs", &["-w", "-R", "jr"], directory.path());
    let now = places(&image);
    assert_eq!(now.len(), 2);
    assert_eq!(fixed(&image, in_journal), None);
}

#[test]
fn free_blocks_of_xfs_may_be_overwritten_and_its_log_may_not() {
    if !have(&[Need::Program("mkfs.xfs")]) {
        return;
    }
    let (directory, image) = image(320 << 20);
    make("mkfs.xfs", &["-q"], directory.path());
    let superblock: [u8; 4096] = bytes(&image, 0).unwrap();
    let log = Xfs::of(&superblock).unwrap().log;
    assert!(log.0 > 0 && log.0 < log.1 && log.1 < 320 << 20, "{log:?}");
    for at in [0, 600, log.0, log.1 - 1000] {
        assert_eq!(fixed(&image, at), Some(Fixed::Metadata), "{at}");
    }
    assert_eq!(fixed(&image, (320 << 20) - 4096), None);
}

#[test]
fn what_checks_its_data_or_is_not_known_is_left_alone() {
    let (_directory, image) = image(1 << 20);
    assert_eq!(fixed(&image, 5000), Some(Fixed::Unknown));
    let with = |at: u64, magic: &[u8]| {
        image.write_all_at(magic, at).unwrap();
        let found = fixed(&image, 5000);
        image.write_all_at(&vec![0; magic.len()], at).unwrap();
        found
    };
    assert_eq!(with(65_600, b"_BHRfS_M"), Some(Fixed::Checked("btrfs")));
    assert_eq!(with(0, b"LUKS\xba\xbe"), Some(Fixed::Checked("encrypted with LUKS")));
    assert_eq!(with(0, b"XFSB"), Some(Fixed::Unknown), "numbers that no xfs has");
    assert_eq!(with(1024 + 56, &[0x53, 0xef]), Some(Fixed::Unknown), "numbers that no ext4 has");
    assert_eq!(with(4086, b"SWAPSPACE2"), None);
}

#[test]
fn a_volume_is_found_by_the_table_of_partitions() {
    let (_directory, image) = image(4 << 20);
    image.write_all_at(&[0x55, 0xaa], 510).unwrap();
    // One partition of Linux: from sector 2048 on, 4096 sectors.
    let entry = [0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0];
    image.write_all_at(&entry, 446).unwrap();
    image.write_all_at(b"SWAPSPACE2", (1 << 20) + 4086).unwrap();
    assert_eq!(fixed(&image, (1 << 20) + 9000), None);
    assert_eq!(fixed(&image, 9000), Some(Fixed::NoPartition));
    assert_eq!(fixed(&image, (3 << 20) - 10), Some(Fixed::NoPartition), "across its end");

    image.write_all_at(b"EFI PART", SECTOR).unwrap();
    let mut header = [0_u8; 16];
    header[..8].copy_from_slice(&2_u64.to_le_bytes());
    header[8..12].copy_from_slice(&4_u32.to_le_bytes());
    header[12..].copy_from_slice(&128_u32.to_le_bytes());
    image.write_all_at(&header, SECTOR + 72).unwrap();
    let mut entry = [1_u8; 48];
    entry[32..40].copy_from_slice(&2048_u64.to_le_bytes());
    entry[40..].copy_from_slice(&4095_u64.to_le_bytes());
    image.write_all_at(&entry, 2 * SECTOR + 128).unwrap();
    assert_eq!(fixed(&image, (1 << 20) + 9000), None);
    assert_eq!(fixed(&image, (2 << 20) - 10), Some(Fixed::NoPartition));
    // Numbers that lead out of the file are no panic.
    image.write_all_at(&[0xff; 16], 2 * SECTOR + 128 + 32).unwrap();
    image.write_all_at(&[0xff; 16], SECTOR + 72).unwrap();
    assert!(fixed(&image, 9000).is_some());
}
