//! Translates scripts that were written for a guest, so that they run on this machine: paths of the guest become paths in
//! the directory that stands for its root.
//!
//! Paths of programs (`/bin`, `/usr`, `/lib`) and of devices such as `/dev/null` stay, because the programs and devices are
//! those of this machine. The machine code by which nixbox gives a guest entropy and the time is replaced by a script,
//! because it would act upon the kernel of this machine; other machine code is refused.

use std::io;
use std::path::{Path, PathBuf};

use super::programs;
use crate::guest::{settle, shell};

/// The directories of the guest that are translated.
const PATHS: [&str; 13] = [
    "/dev/shm", "/etc", "/home", "/media", "/mnt", "/opt", "/proc", "/root", "/run", "/srv", "/sys", "/tmp",
    "/var",
];

/// Translates scripts for one guest.
pub(super) struct Translator {
    root: String,
    /// Directories of this machine whose paths stay as they are: the root's, and those of the shares.
    kept: Vec<String>,
    settle: String,
}

impl Translator {
    pub(super) fn new(root: &Path, shares: &[PathBuf]) -> io::Result<Self> {
        let text = |path: &Path| Ok(path.to_str().ok_or(io::ErrorKind::InvalidData)?.to_owned());
        let root: String = text(root)?;
        let shares = shares.iter().map(|path| text(path)).collect::<io::Result<Vec<_>>>()?;
        let kept = std::iter::once(root.clone()).chain(shares).collect();
        let settle = format!("#!/bin/sh\n{}\n", programs::caller("settle")?);
        Ok(Self { root, kept, settle: settle::octal(settle.as_bytes()) })
    }

    /// Translates a script.
    ///
    /// # Errors
    /// If it contains machine code for which there is no replacement.
    pub(super) fn script(&self, text: &str) -> io::Result<String> {
        let text = text.replace(&settle::program(), &self.settle);
        if text.contains(&settle::octal(settle::ELF_MAGIC)) {
            return Err(io::Error::other(
                "the script contains machine code, which would run on this machine",
            ));
        }
        Ok(self.paths(&text))
    }

    /// Translates a script in a file of the guest. The path is one of this machine.
    ///
    /// # Errors
    /// Those of [`Translator::script`], and if the file is not below the root or cannot be read or written.
    pub(super) fn file(&self, path: &Path) -> io::Result<()> {
        if !path.starts_with(&self.root) {
            return Err(io::ErrorKind::NotFound.into());
        }
        // A value that is no text has no path in it that could be translated.
        match String::from_utf8(std::fs::read(path)?) {
            Ok(text) => std::fs::write(path, self.script(&text)?),
            Err(_) => Ok(()),
        }
    }

    /// Translates the paths in a text. Those that lie below a directory that is kept stay.
    fn paths(&self, text: &str) -> String {
        let mut done = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('/') {
            let (before, path) = rest.split_at(at);
            done.push_str(before);
            let inside = before.chars().next_back().or(done.chars().next_back());
            let inside =
                inside.is_some_and(|letter| letter.is_alphanumeric() || "_.-~/}*\\".contains(letter));
            let is_there = |name: &str| path.strip_prefix(name).is_some_and(ends);
            let length = if let Some(kept) = self.kept.iter().find(|kept| !inside && is_there(kept)) {
                kept.len()
            } else if let Some(name) = PATHS.iter().find(|name| !inside && is_there(name)) {
                done.push_str(&self.root);
                name.len()
            } else {
                1
            };
            done.push_str(&path[..length]);
            rest = &path[length..];
        }
        done.push_str(rest);
        done
    }
}

/// Whether a file name ends where `rest` begins.
fn ends(rest: &str) -> bool {
    rest.chars().next().is_none_or(|letter| !(letter.is_alphanumeric() || "_-".contains(letter)))
}

/// The stdin of a command: it begins with a script if the command is one that reads a script.
pub(super) enum CommandInput {
    /// All that follows is passed on as it is.
    Plain,
    /// The script, as far as it has arrived.
    Script(Vec<u8>),
}

impl CommandInput {
    pub(super) fn of(command: &str) -> Self {
        if command.contains(shell::END) { Self::Script(Vec::new()) } else { Self::Plain }
    }

    /// The bytes that the command gets when these arrive.
    ///
    /// # Errors
    /// As for [`Translator::script`].
    pub(super) fn take(&mut self, translator: &Translator, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        let Self::Script(script) = self else {
            return Ok(bytes);
        };
        script.extend(bytes);
        let end = format!("\n{}\n", shell::END);
        let Some(at) = script.windows(end.len()).position(|window| window == end.as_bytes()) else {
            return Ok(Vec::new());
        };
        let input = script.split_off(at);
        let text = String::from_utf8(std::mem::take(script)).map_err(io::Error::other)?;
        *self = Self::Plain;
        let mut whole = translator.script(&text)?.into_bytes();
        whole.extend(input);
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translator() -> Translator {
        let kept = vec!["/run/x/guest".into(), "/tmp/ws/src".into()];
        Translator { root: "/run/x/guest".into(), kept, settle: "S".into() }
    }

    #[test]
    fn paths_of_the_guest_are_translated_and_others_stay() {
        for (script, wanted) in [
            ("cat /proc/mounts", "cat /run/x/guest/proc/mounts"),
            ("echo 3 > /proc/sys/vm/drop_caches", "echo 3 > /run/x/guest/proc/sys/vm/drop_caches"),
            ("t='/home/u/.env'", "t='/run/x/guest/home/u/.env'"),
            ("t='/run/x/guest/home/u/.env'", "t='/run/x/guest/home/u/.env'"),
            (
                "for d in /dev/shm /run /tmp",
                "for d in /run/x/guest/dev/shm /run/x/guest/run /run/x/guest/tmp",
            ),
            ("dd if=/dev/zero of=\"$f\"", "dd if=/dev/zero of=\"$f\""),
            ("PATH=/usr/bin:/bin:/sbin", "PATH=/usr/bin:/bin:/sbin"),
            ("a/tmp $x/run ${p}/etc /tmpfoo //", "a/tmp $x/run ${p}/etc /tmpfoo //"),
            ("umount '/tmp/ws/src' /tmp/ws/src2", "umount '/tmp/ws/src' /run/x/guest/tmp/ws/src2"),
            ("s/\\(tmp\\)/x/", "s/\\(tmp\\)/x/"),
        ] {
            assert_eq!(translator().script(script).unwrap(), wanted);
        }
    }

    #[test]
    fn machine_code_without_a_replacement_is_refused() {
        let script = format!("printf '{}' > f", settle::program());
        assert_eq!(translator().script(&script).unwrap(), "printf 'S' > f");
        assert!(translator().script(&script.replace("\\220", "\\221").replacen("000", "001", 1)).is_err());
    }

    #[test]
    fn input_after_the_script_is_passed_on_as_it_is() {
        let mut input = CommandInput::of("sh -c '… nixbox:end …'");
        let mut given = Vec::new();
        for piece in [&b"cat /tmp/x\nnix"[..], b"box:end\n/tmp", b"\xff"] {
            given.extend(input.take(&translator(), piece.to_vec()).unwrap());
        }
        assert_eq!(given, b"cat /run/x/guest/tmp/x\nnixbox:end\n/tmp\xff");
    }
}
