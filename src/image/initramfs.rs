//! Writes an initramfs: a cpio archive in the format `newc` (Documentation/driver-api/early-userspace/buffer-format.rst of
//! Linux), compressed by gzip. All that is in it belongs to root.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;

/// An initramfs while it is written.
#[derive(Debug)]
pub struct InitramfsWriter<W: Write> {
    inner: GzEncoder<W>,
    position: usize,
    inode: u32,
}

impl<W: Write> InitramfsWriter<W> {
    /// Begins an initramfs.
    pub fn new(inner: W) -> Self {
        Self { inner: GzEncoder::new(inner, Compression::fast()), position: 0, inode: 0 }
    }

    /// Adds a directory with the mode 0755. The directory above it must have been added before.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY | 0o755, &[])
    }

    /// Adds a file with these permissions.
    ///
    /// # Errors
    /// If the file cannot be written, or the content is too large for the format.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(path, REGULAR | mode & 0o7777, content)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, SYMLINK | 0o777, target.as_bytes())
    }

    /// Ends the initramfs.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.write_entry("TRAILER!!!", 0, 0, &[])?;
        self.inner.finish()
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.inode += 1;
        self.write_entry(path, self.inode, mode, content)
    }

    fn write_entry(&mut self, path: &str, inode: u32, mode: u32, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let name_size = u32::try_from(path.len() + 1).map_err(|_| io::ErrorKind::InvalidFilename)?;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = b"070701".to_vec();
        for field in fields {
            header.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.put(&header)?;
        self.put(path.as_bytes())?;
        self.put(&[0])?;
        self.align()?;
        self.put(content)?;
        self.align()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len();
        self.inner.write_all(bytes)
    }

    fn align(&mut self) -> io::Result<()> {
        let padding = (4 - self.position % 4) % 4;
        self.put(&[0; 3][..padding])
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn listed(initramfs: &[u8]) -> String {
        let mut child = Command::new("sh")
            .args(["-c", "gzip -dc | cpio -itvn --quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(initramfs).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
    }

    #[test]
    fn cpio_reads_what_is_written() {
        let mut writer = InitramfsWriter::new(Vec::new());
        writer.directory("bin").unwrap();
        writer.file("bin/tool", 0o4755, b"12345").unwrap();
        writer.symlink("bin/sh", "tool").unwrap();
        writer.file("init", 0o755, b"").unwrap();
        let listed = listed(&writer.finish().unwrap());
        let expected = "drwxr-xr-x 1 0 0 0 Jan 1 1970 bin\n\
                        -rwsr-xr-x 1 0 0 5 Jan 1 1970 bin/tool\n\
                        lrwxrwxrwx 1 0 0 4 Jan 1 1970 bin/sh -> tool\n\
                        -rwxr-xr-x 1 0 0 0 Jan 1 1970 init\n";
        assert_eq!(listed, expected);
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        let write = || {
            let mut writer = InitramfsWriter::new(Vec::new());
            writer.file("init", 0o755, b"#!/bin/sh\n").unwrap();
            writer.finish().unwrap()
        };
        assert_eq!(write(), write());
    }
}
