//! Recognizes disk images that are not raw. The VMM takes the bytes of an image as the bytes of a disk, and a guest would find
//! no partition and no file system in an image of another format, nor say why.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// A format by the bytes at a place in the file. Each command makes a raw image, where `FILE` stands for the path.
struct ImageFormat {
    name: &'static str,
    at: usize,
    magic: &'static [u8],
    command: &'static str,
}

const CONVERT: &str = "qemu-img convert -O raw FILE FILE.raw";

const fn image(name: &'static str, at: usize, magic: &'static [u8]) -> ImageFormat {
    ImageFormat { name, at, magic, command: CONVERT }
}

const fn compressed(name: &'static str, magic: &'static [u8], command: &'static str) -> ImageFormat {
    ImageFormat { name, at: 0, magic, command }
}

const FORMATS: [ImageFormat; 10] = [
    image("a qcow2 image", 0, b"QFI\xfb"),
    image("a QED image", 0, b"QED\0"),
    image("a VMDK image", 0, b"KDMV"),
    image("a VMDK image", 0, b"# Disk DescriptorFile"),
    image("a VHDX image", 0, b"vhdxfile"),
    image("a VHD image", 0, b"conectix"),
    image("a VDI image", 64, b"\x7f\x10\xda\xbe"),
    compressed("compressed with gzip", b"\x1f\x8b\x08", "gzip -dk FILE"),
    compressed("compressed with xz", b"\xfd7zXZ\0", "xz -dk FILE"),
    compressed("compressed with zstd", b"\x28\xb5\x2f\xfd", "zstd -d FILE"),
];

/// More than the end of every magic.
const HEAD: usize = 128;

/// What an image is that is not raw, and how to make a raw one of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ForeignFormat {
    pub(super) name: &'static str,
    pub(super) command: &'static str,
}

/// Recognizes the format of an image; `None` if it may be raw.
pub(super) fn foreign(file: &File) -> io::Result<Option<ForeignFormat>> {
    let mut head = [0; HEAD];
    let mut filled = 0;
    while filled < HEAD {
        match file.read_at(&mut head[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let head = &head[..filled];
    let is = |format: &&ImageFormat| head.get(format.at..).is_some_and(|rest| rest.starts_with(format.magic));
    let found = FORMATS.iter().find(is);
    Ok(found.map(|ImageFormat { name, command, .. }| ForeignFormat { name, command }))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn name(bytes: &[u8]) -> Option<&'static str> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        foreign(&file).unwrap().map(|format| format.name)
    }

    #[test]
    fn every_format_is_known_by_its_magic_alone() {
        for format in &FORMATS {
            assert!(format.at + format.magic.len() <= HEAD && format.command.contains("FILE"));
            let mut bytes = vec![0; format.at];
            bytes.extend_from_slice(format.magic);
            assert_eq!(name(&bytes), Some(format.name));
            bytes.pop();
            assert_eq!(name(&bytes), None);
        }
        // The beginning of a boot sector, of an ext4, and of a file that is shorter than all that.
        for raw in [&[0xeb, 0x63, 0x90][..], &[0; 2048], b""] {
            assert_eq!(name(raw), None);
        }
    }
}
