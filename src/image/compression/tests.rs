use std::io::Write as _;
use std::process::{Command, Stdio};

use super::*;

/// What a program of this machine makes of the bytes; `None` if it is not installed.
fn compressed(program: &[&str], bytes: &[u8]) -> Option<Vec<u8>> {
    let mut child = Command::new(program[0])
        .args(&program[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let mut stdin = child.stdin.take().unwrap();
    let own = bytes.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&own).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    Some(output.stdout)
}

fn plain(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    decompressed(bytes)?.read_to_end(&mut plain)?;
    Ok(plain)
}

fn sample() -> Vec<u8> {
    (0..300_000_u32).flat_map(|number| (number.wrapping_mul(number) / 7).to_le_bytes()).collect()
}

#[test]
fn what_the_usual_programs_compress_is_read_in_one_piece_or_several() {
    let sample = sample();
    for program in
        [&["gzip", "-c"][..], &["zstd", "-q", "-c"], &["zstd", "-q", "--fast", "-c"], &["xz", "-c", "-1"]]
    {
        let Some(bytes) = compressed(program, &sample) else { continue };
        assert_eq!(plain(&bytes).unwrap(), sample, "{program:?}");
        let twice = [&bytes[..], &bytes[..]].concat();
        assert_eq!(plain(&twice).unwrap().len(), 2 * sample.len(), "{program:?}");
        let cut = plain(&bytes[..bytes.len() / 2]);
        assert!(cut.is_err(), "{program:?} is cut, and {} bytes were read", cut.unwrap().len());
    }
    assert_eq!(plain(&sample).unwrap(), sample);
    assert_eq!(plain(b"").unwrap(), b"");
}

#[test]
fn frames_of_zstd_without_content_are_passed_over() {
    let Some(frame) = compressed(&["zstd", "-q", "-c"], b"content") else { return };
    let skippable = [&[0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    let stream = [&skippable[..], &frame, &skippable, &frame, &skippable].concat();
    assert_eq!(plain(&stream).unwrap(), b"contentcontent");
    assert!(plain(&[&frame[..], &skippable[..9]].concat()).is_err());
}

#[test]
fn formats_are_known_by_their_first_bytes() {
    let start = |magic: &[u8], at: usize| {
        let mut bytes = vec![0; 600];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        bytes
    };
    for (magic, at, format) in [
        (&b"QFI\xfb"[..], 0, FileFormat::Disk("qcow2")),
        (b"KDMV", 0, FileFormat::Disk("vmdk")),
        (b"vhdxfile", 0, FileFormat::Disk("vhdx")),
        (b"conectix", 0, FileFormat::Disk("vpc")),
        (b"<<< Oracle VM VirtualBox Disk Image >>>", 0, FileFormat::Disk("vdi")),
        (b"ustar", 257, FileFormat::Tar),
        (b"\x55\xaa", 510, FileFormat::RawDisk),
        (b"BZh9", 0, FileFormat::Bzip2),
        (b"PK", 0, FileFormat::Unknown),
    ] {
        assert_eq!(FileFormat::of(&start(magic, at)), format);
    }
    assert_eq!(FileFormat::of(b""), FileFormat::Unknown);
    assert!(decompressed(&b"BZh9"[..]).is_err());
}
