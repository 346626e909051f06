//! Scripts that were written for a guest, made to run beside it: paths of the guest lead into its view.
//!
//! The text is changed, not what it does. Left alone are programs (`/bin`, `/usr`, `/lib`), which are this machine's, and
//! the devices that are the same everywhere. One program is replaced: the machine code that nixbox brings to give a guest
//! entropy and the time would act upon the kernel of this machine.

use std::io;
use std::path::{Path, PathBuf};

use super::programs;
use crate::guest::{settle, shell};

/// Directories of the guest.
const PATHS: [&str; 13] = [
    "/dev/shm", "/etc", "/home", "/media", "/mnt", "/opt", "/proc", "/root", "/run", "/srv", "/sys", "/tmp",
    "/var",
];

/// For the guest whose root stands at `root`.
pub(super) struct Translator {
    root: String,
    /// Directories of this machine that the guest sees as they are: the root's, and those of its shares.
    seen: Vec<String>,
    settle: String,
}

impl Translator {
    pub(super) fn new(root: &Path, shares: &[PathBuf]) -> io::Result<Self> {
        let text = |path: &Path| Ok(path.to_str().ok_or(io::ErrorKind::InvalidData)?.to_owned());
        let root: String = text(root)?;
        let shares = shares.iter().map(|path| text(path)).collect::<io::Result<Vec<_>>>()?;
        let seen = std::iter::once(root.clone()).chain(shares).collect();
        let settle = format!("#!/bin/sh\n{}\n", programs::caller("settle")?);
        Ok(Self { root, seen, settle: settle::octal(settle.as_bytes()) })
    }

    /// A script.
    ///
    /// # Errors
    /// If it brings machine code that has no stand-in.
    pub(super) fn script(&self, text: &str) -> io::Result<String> {
        let text = text.replace(&settle::program(), &self.settle);
        if text.contains(&settle::octal(settle::ELF_MAGIC)) {
            return Err(io::Error::other("a script brings machine code, which would run on this machine"));
        }
        Ok(self.paths(&text))
    }

    /// Paths of the guest become those of its view. One that leads there already is left alone.
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
            let length = if let Some(seen) = self.seen.iter().find(|seen| !inside && is_there(seen)) {
                seen.len()
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

/// Whether a name ends before this.
fn ends(rest: &str) -> bool {
    rest.chars().next().is_none_or(|letter| !(letter.is_alphanumeric() || "_-".contains(letter)))
}

/// What comes on the stdin of a command: a script of nixbox's first, if the command asks for one.
pub(super) enum Input {
    /// Bytes that are passed on.
    Plain,
    /// The script so far.
    Script(Vec<u8>),
}

impl Input {
    pub(super) fn of(command: &str) -> Self {
        if command.contains(shell::END) { Self::Script(Vec::new()) } else { Self::Plain }
    }

    /// What the command is given of these bytes.
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
        let seen = vec!["/run/x/guest".into(), "/tmp/ws/src".into()];
        Translator { root: "/run/x/guest".into(), seen, settle: "S".into() }
    }

    #[test]
    fn paths_of_the_guest_lead_into_its_view_and_others_stay() {
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
    fn no_machine_code_gets_through_but_the_one_that_has_a_stand_in() {
        let script = format!("printf '{}' > f", settle::program());
        assert_eq!(translator().script(&script).unwrap(), "printf 'S' > f");
        assert!(translator().script(&script.replace("\\220", "\\221").replacen("000", "001", 1)).is_err());
    }

    #[test]
    fn what_follows_a_script_is_passed_on_as_it_is() {
        let mut input = Input::of("sh -c '… nixbox:end …'");
        let mut given = Vec::new();
        for piece in [&b"cat /tmp/x\nnix"[..], b"box:end\n/tmp", b"\xff"] {
            given.extend(input.take(&translator(), piece.to_vec()).unwrap());
        }
        assert_eq!(given, b"cat /run/x/guest/tmp/x\nnixbox:end\n/tmp\xff");
    }
}
