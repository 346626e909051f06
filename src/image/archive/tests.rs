use std::io::Write as _;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

/// All entries of an archive with their contents.
fn read_all(bytes: &[u8]) -> Result<Vec<(TarEntry, Vec<u8>)>, ArchiveError> {
    let mut reader = TarReader::new(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut content = Vec::new();
        if entry.kind == EntryKind::File {
            reader.content().read_to_end(&mut content).map_err(read_error)?;
        }
        entries.push((entry, content));
    }
    Ok(entries)
}

fn names(bytes: &[u8]) -> Vec<String> {
    read_all(bytes).unwrap().iter().map(|(entry, _)| entry.shown()).collect()
}

/// An archive that python's tarfile makes of the lines of a script, in which `add(name, **fields)` adds an entry.
pub(in crate::image) fn python(format: &str, lines: &str) -> Option<Vec<u8>> {
    let script = format!(
        "import io, sys, tarfile\n\
         out = io.BytesIO()\n\
         archive = tarfile.open(fileobj=out, mode='w', format=tarfile.{format})\n\
         def add(name, content=b'', **fields):\n\
        \x20   info = tarfile.TarInfo(name)\n\
        \x20   info.size = len(content)\n\
        \x20   for key, value in fields.items(): setattr(info, key, value)\n\
        \x20   archive.addfile(info, io.BytesIO(content))\n\
         {lines}\n\
         archive.close()\n\
         sys.stdout.buffer.write(out.getvalue())\n"
    );
    let mut child =
        Command::new("python3").arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{script}");
    Some(output.stdout)
}

#[test]
fn gnu_tar_and_pax_are_read_with_long_names_links_and_attributes() {
    let directory = tempfile::tempdir().unwrap();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    std::fs::create_dir(directory.path().join("d".repeat(120))).unwrap();
    std::fs::write(directory.path().join(&long), "content").unwrap();
    std::fs::hard_link(directory.path().join(&long), directory.path().join("hard")).unwrap();
    std::os::unix::fs::symlink("x".repeat(150), directory.path().join("soft")).unwrap();
    for format in ["gnu", "posix"] {
        let output = Command::new("tar")
            .args(["--sort=name", "--owner=7:70000", "--group=8:80000", "--format", format, "-cf", "-", "-C"])
            .arg(directory.path())
            .arg(".")
            .output()
            .unwrap();
        let entries = read_all(&output.stdout).unwrap();
        let entry = |name: &str| {
            entries.iter().find(|(entry, _)| entry.shown() == name).unwrap_or_else(|| panic!("{name}"))
        };
        let (file, content) = entry(&format!("./{long}"));
        assert_eq!(
            (file.kind, content.as_slice(), file.uid, file.gid),
            (EntryKind::File, &b"content"[..], 70000, 80000)
        );
        assert_eq!(entry("./hard").0.kind, EntryKind::HardLink, "{format}");
        assert_eq!(entry("./hard").0.link, format!("./{long}").as_bytes());
        assert_eq!(entry("./soft").0.link, "x".repeat(150).as_bytes());
        assert_eq!(entry("./").0.kind, EntryKind::Directory);
    }
}

#[test]
fn an_attribute_may_have_any_bytes() {
    let lines = "add('f', b'12', mode=0o4755, pax_headers={'SCHILY.xattr.security.capability': 'a\\nb=c\\n'})\n\
                 add('g', b'3')";
    let Some(archive) = python("PAX_FORMAT", lines) else { return };
    let entries = read_all(&archive).unwrap();
    let (file, content) = &entries[0];
    assert_eq!((file.mode, content.as_slice()), (0o4755, &b"12"[..]));
    assert_eq!(file.attributes[b"security.capability".as_slice()], b"a\nb=c\n");
    assert_eq!(names(&archive), ["f", "g"]);
}

#[test]
fn damaged_archives_are_refused() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(600);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    builder.append_data(&mut header, "file", &[1; 600][..]).unwrap();
    let good = builder.into_inner().unwrap();
    assert_eq!(names(&good), ["file"]);
    // Cut at any byte of the entry, it is truncated; without the end of the archive it is whole.
    for length in [1, 511, 513, 700, 1111] {
        assert!(matches!(read_all(&good[..length]), Err(ArchiveError::Truncated(_))), "{length}");
    }
    assert_eq!(names(&good[..1536]), ["file"]);
    let mut damaged = good.clone();
    damaged[0] = b'F';
    assert!(matches!(read_all(&damaged), Err(ArchiveError::Checksum(0))));
    // A size of more than memory has is not allocated.
    let mut huge = Header::new_gnu();
    huge.set_entry_type(EntryType::XHeader);
    huge.set_size(1 << 60);
    huge.set_cksum();
    assert!(matches!(read_all(huge.as_bytes()), Err(ArchiveError::Extension { .. })));
}

#[test]
fn records_that_are_not_well_formed_are_refused() {
    assert_eq!(parse_records(b"9 a=\nb=c\n").unwrap()[b"a".as_slice()], b"\nb=c");
    for bad in ["x a=b\n", "99 a=b\n", "3 a=b\n", "6 a=bc", "5 ab\n", "0 a=b\n", "18446744073709551615 a=b\n"]
    {
        assert!(parse_records(bad.as_bytes()).is_none(), "{bad:?}");
    }
    assert!(parse_records(b"").unwrap().is_empty());
}

proptest! {
    #[test]
    fn any_bytes_end_with_entries_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        drop(read_all(&bytes));
    }

    #[test]
    fn any_change_of_a_header_is_read_or_refused(at in 0_usize..512, value in any::<u8>(), fix in any::<bool>()) {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_ustar();
        header.set_size(5);
        header.set_cksum();
        builder.append_data(&mut header, "a/b", &b"12345"[..]).unwrap();
        let mut archive = builder.into_inner().unwrap();
        archive[at] = value;
        if fix {
            let mut block = [0; 512];
            block.copy_from_slice(&archive[..512]);
            let mut header = Header::from_byte_slice(&block).clone();
            header.set_cksum();
            archive[..512].copy_from_slice(header.as_bytes());
        }
        drop(read_all(&archive));
    }
}
