//! Finds the files that a configuration runs or reads on the host with a command, and that a guest can write.
//!
//! A guest that can write such a file decides what the command does. So each of them is confirmed by itself, by its
//! content, wherever the configuration is from, and again when its content has changed.
//!
//! A file counts if a word of the command names it and it lies below the source of a writable share of the same
//! configuration, outside of what the share protects; or if a link or directory on the way to it does. Words are looked up
//! in the workspace, in the directories that the same command names, and on `PATH`. A word after `>` names what the
//! command writes, and does not count. The working directory alone does not count, because a workspace is usually shared
//! whole: what a program finds there by itself, as `make` finds its `Makefile`, is not seen. May use `config`, `files` and
//! `world`.

use std::collections::BTreeSet;
use std::fs::{File, Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::OFlags;

use super::confirmations::{ConfirmationError, Confirmations};
use super::places::StatePlaces;
use super::{DIRECTORY, Workspace, WorkspaceError};
use crate::config::{Config, HostAction, MountTable};
use crate::files::real_path;
use crate::world::{HookPoint, PathInShare, SecretCommand, SecretSource, VariableName};

/// The largest file of which the content is read. A larger file is known by its inode, its size and the time of its last
/// change, which no guest can set.
const LARGEST: u64 = 32 << 20;

/// A directory in which the guest can write.
struct WritableShare {
    source: PathBuf,
    protect: Vec<PathInShare>,
}

/// Where the commands of a configuration find files.
pub struct GuestWritable {
    shares: Vec<WritableShare>,
    /// The directories to which a relative word may be relative.
    bases: Vec<PathBuf>,
    home: Option<PathBuf>,
    /// The directories of `PATH` in which a guest can write.
    programs: Vec<PathBuf>,
}

impl GuestWritable {
    /// For the workspace in the directory `root`.
    #[must_use]
    pub fn of(config: &Config, root: &Path) -> Self {
        let share = |mount: &MountTable| WritableShare {
            source: real_path(mount.source.as_path()),
            protect: mount.protect.clone(),
        };
        let shares = config.mounts.iter().filter(|mount| !mount.readonly).map(share).collect();
        let mut found = Self {
            shares,
            bases: std::iter::once(root.to_owned()).chain(std::env::current_dir()).collect(),
            home: std::env::var_os("HOME").map(PathBuf::from),
            programs: Vec::new(),
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        found.programs = std::env::split_paths(&path)
            .map(|directory| root.join(directory))
            .filter(|directory| found.can_write_in(directory))
            .collect();
        found
    }

    /// All such files of the commands of the configuration.
    #[must_use]
    pub fn actions(&self, config: &Config) -> Vec<HostAction> {
        let mut actions = Vec::new();
        for (point, scripts) in config.hooks.by_point() {
            actions.extend(scripts.iter().flat_map(|script| self.of_script(point, script)));
        }
        for (variable, source) in &config.env {
            if let SecretSource::Command(command) = source {
                actions.extend(self.of_command(variable, command));
            }
        }
        actions
    }

    /// Those of a script of `[hooks]`.
    #[must_use]
    pub fn of_script(&self, point: HookPoint, script: &str) -> Vec<HostAction> {
        self.named_in(point.key(), script, &mut words(script))
    }

    fn of_command(&self, variable: &VariableName, command: &SecretCommand) -> Vec<HostAction> {
        let mut all = vec![command.program.clone()];
        for argument in &command.arguments {
            let argument = String::from_utf8_lossy(argument.expose());
            all.extend(words(&argument));
            all.push(argument.into_owned());
        }
        self.named_in(&format!("env.{variable}"), &command.program, &mut all)
    }

    fn named_in(&self, key: &str, command: &str, words: &mut Vec<String>) -> Vec<HostAction> {
        words.sort();
        words.dedup();
        let mut bases = self.bases.clone();
        bases.extend(
            words.iter().flat_map(|word| self.places(word, &self.bases)).filter(|path| path.is_dir()),
        );
        let places = words.iter().flat_map(|word| self.places(word, &bases));
        let paths: BTreeSet<PathBuf> = places.map(|path| path.components().collect()).collect();
        let action = |path: PathBuf| {
            let about = std::fs::metadata(&path).ok()?;
            let content = content(&path, &about);
            let (key, command) = (key.to_owned(), command.to_owned());
            self.can_write(&path).then_some(HostAction::UseGuestFile { key, command, path, content })
        };
        paths.into_iter().filter_map(action).collect()
    }

    /// What a word may name, whether it exists or not.
    fn places(&self, word: &str, bases: &[PathBuf]) -> Vec<PathBuf> {
        let home = word.strip_prefix("~/").or_else(|| word.strip_prefix("$HOME/"));
        let mut places: Vec<PathBuf> =
            home.and_then(|rest| Some(self.home.as_ref()?.join(rest))).into_iter().collect();
        // A variable may stand for the directory that the script works in.
        let rest = word.strip_prefix('$').and_then(|rest| Some(rest.split_once('/')?.1));
        for base in bases {
            places.extend([word].into_iter().chain(rest).map(|word| base.join(word)));
        }
        if !word.contains('/') {
            places.extend(self.programs.iter().map(|directory| directory.join(word)));
        }
        places
    }

    /// Whether a guest can write the file, or can put another in its place.
    fn can_write(&self, path: &Path) -> bool {
        let mut real = PathBuf::new();
        for part in path.components() {
            match part {
                Component::ParentDir => {
                    real.pop();
                }
                Component::CurDir => {}
                part => {
                    real.push(part);
                    if self.is_shared(&real, false) {
                        return true;
                    }
                    real = std::fs::canonicalize(&real).unwrap_or(real);
                }
            }
        }
        self.is_shared(&real, false)
    }

    fn can_write_in(&self, directory: &Path) -> bool {
        self.can_write(directory) || self.is_shared(&real_path(directory), true)
    }

    /// Whether the path lies below a writable share. The source itself cannot be replaced by the guest.
    fn is_shared(&self, path: &Path, with_source: bool) -> bool {
        self.shares.iter().any(|share| {
            let Ok(below) = path.strip_prefix(&share.source) else { return false };
            let hidden = below.components().any(|part| part.as_os_str() == DIRECTORY);
            // A directory on the way to what is protected cannot be replaced either.
            let protected = share.protect.iter().any(|one| {
                let one = Path::new(one.as_str());
                below.starts_with(one)
                    || !with_source && one.starts_with(below) && share.source.join(one).exists()
            });
            !hidden && !protected && (with_source || !below.as_os_str().is_empty())
        })
    }
}

/// Why a script is not run although the configuration was confirmed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ScriptRefusal {
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    #[error(transparent)]
    Confirmation(#[from] ConfirmationError),
    #[error("the guest can write {}, and the present content of that file has not been confirmed: `nixbox trust` confirms it", path.display())]
    Changed { path: PathBuf },
}

/// Checks, right before a script is started, that each file which the script uses and a guest can write still has the
/// content that was confirmed.
///
/// # Errors
/// [`ScriptRefusal`].
pub fn check_script(
    root: &Path,
    places: &StatePlaces,
    config: &Config,
    (point, script): (HookPoint, &str),
) -> Result<(), ScriptRefusal> {
    let used = GuestWritable::of(config, root).of_script(point, script);
    if used.is_empty() {
        return Ok(());
    }
    let confirmations = Confirmations::load(&Workspace::find(root, places)?)?;
    match used.into_iter().find(|action| !confirmations.allow(action)) {
        Some(HostAction::UseGuestFile { path, .. }) => Err(ScriptRefusal::Changed { path }),
        _ => Ok(()),
    }
}

/// The words of a command line for a shell that may name files: as the shell separates them, and divided further at
/// everything that seldom is in a name.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut written = false;
    for one in line.chars().chain(['\n']) {
        match (one, quote) {
            ('\'' | '"' | '`', None) => quote = Some(one),
            (one, Some(open)) if one == open => quote = None,
            (one, None) if one.is_whitespace() || "();&|<>".contains(one) => {
                if !word.is_empty() {
                    let whole = std::mem::take(&mut word);
                    if !std::mem::take(&mut written) {
                        words.extend(divided(&whole));
                        words.push(whole);
                    }
                }
                written = one == '>' || written && one.is_whitespace();
            }
            (one, _) => word.push(one),
        }
    }
    // A quote that is not closed has the rest of the line in it.
    words.extend(divided(&word));
    words
}

fn divided(word: &str) -> Vec<String> {
    let apart = |one: char| one.is_whitespace() || "'\"`;&|()<>{}=,:\\[]".contains(one);
    word.split(apart).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// The hash of the content of a regular file; `None` for everything else, and for what cannot be read.
fn content(path: &Path, about: &Metadata) -> Option<[u8; 32]> {
    if !about.is_file() {
        return None;
    }
    let mut hasher = blake3::Hasher::new();
    if about.len() > LARGEST {
        for number in
            [about.ino(), about.len(), about.ctime().cast_unsigned(), about.ctime_nsec().cast_unsigned()]
        {
            hasher.update(&number.to_le_bytes());
        }
    } else {
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
        hasher.update_reader(file.take(LARGEST)).ok()?;
    }
    Some(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::config::{HostFacts, ShownArguments};

    /// A workspace with a few files, and the names that commands of a configuration use of what the guest can write.
    struct Files {
        directory: tempfile::TempDir,
        root: PathBuf,
    }

    impl Files {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let root = fs::canonicalize(directory.path()).unwrap().join("w");
            for name in ["sub", "read", ".git/hooks", ".nixbox"] {
                fs::create_dir_all(root.join(name)).unwrap();
            }
            for name in ["setup.sh", "a b", "sub/run", "read/tool", ".git/hooks/h", ".nixbox/n", "../outside"]
            {
                fs::write(root.join(name), name).unwrap();
            }
            symlink(root.join("../outside"), root.join("link")).unwrap();
            symlink(root.join("sub"), root.join("../way")).unwrap();
            Self { directory, root }
        }

        fn config(&self, text: &str) -> Config {
            let host = HostFacts { vcpus: 4, memory: 8 << 30, home: None };
            let text = format!("{text}\n[vm]\nkernel = \"vmlinuz\"\n");
            Config::parse(&text, Path::new("c"), &self.root, Path::new("/keys"), &host).unwrap()
        }

        fn actions(&self, text: &str) -> Vec<HostAction> {
            let config = self.config(text);
            GuestWritable::of(&config, &self.root).actions(&config)
        }

        fn used(&self, text: &str) -> Vec<String> {
            let used = |action: HostAction| match action {
                HostAction::UseGuestFile { path, .. } => {
                    let below = path.strip_prefix(self.directory.path().canonicalize().unwrap());
                    below.unwrap().display().to_string()
                }
                other => panic!("{other:?}"),
            };
            self.actions(text).into_iter().map(used).collect()
        }
    }

    #[test]
    #[rustfmt::skip]
    fn files_that_a_command_names_and_the_guest_can_write_are_found() {
        let files = Files::new();
        for (script, used) in [
            ("echo hello", &[][..]),
            ("make && ls . ./", &[]),
            ("./setup.sh", &["w/setup.sh"]),
            ("sh setup.sh --fast", &["w/setup.sh"]),
            ("X=1 sh -c 'cd / && . \"$PWD/setup.sh\"'", &["w/setup.sh"]),
            ("cat \"a b\"", &["w/a b"]),
            ("tool --file=sub/run", &["w/sub/run"]),
            ("cd sub;./run", &["w/sub", "w/sub/run"]),
            ("date >setup.sh", &[]),
            ("date > setup.sh", &[]),
            ("date 2>&1 | sh setup.sh", &["w/setup.sh"]),
            // What the link leads to is not the guest's, and the link is.
            ("sh link", &["w/link"]),
            ("sh ../way/run", &["w/../way/run"]),
            ("sh ../outside", &[]),
            (".git/hooks/h; cat .nixbox/n", &[]),
            ("sh absent.sh", &[]),
        ] {
            let text = format!("hooks.pre-up = [{script:?}]");
            assert_eq!(files.used(&text), used, "{script}");
            let nothing = ["mounts = []", "mounts = [{ source = \".\", target = \"/w\", readonly = true }]"];
            for mounts in nothing {
                assert_eq!(files.used(&format!("{mounts}\n{text}")), [""; 0], "{script}");
            }
        }
    }

    #[test]
    fn the_program_and_the_arguments_of_a_source_count_and_only_writable_shares_do() {
        let files = Files::new();
        let env = |command: &str| files.used(&format!("env.A = {{ command = [{command}] }}"));
        let setup = files.root.join("setup.sh").display().to_string();
        assert_eq!(env(&format!("{setup:?}")), ["w/setup.sh"]);
        assert_eq!(env(&format!("\"sh\", {setup:?}")), ["w/setup.sh"]);
        assert_eq!(env("\"sh\", \"-c\", \"exec ./setup.sh\""), ["w/setup.sh"]);
        assert_eq!(env("\"pass\", \"show\", \"it\""), [""; 0]);
        let mounts = "mounts = [{ source = \"sub\", target = \"/s\" }, { source = \"read\", target = \"/r\", readonly = true }]";
        let text = format!("{mounts}\nhooks.pre-up = [\"./setup.sh; read/tool; sub/run\"]");
        assert_eq!(files.used(&text), ["w/sub/run"]);
    }

    #[test]
    fn a_file_with_another_content_is_another_action() {
        let files = Files::new();
        let text = "hooks.pre-up = [\"./setup.sh\"]";
        let hash = || files.actions(text).remove(0).hash();
        let before = hash();
        assert_eq!(hash(), before);
        fs::write(files.root.join("setup.sh"), "something else").unwrap();
        assert_ne!(hash(), before);
        let sentence = files.actions(text).remove(0).sentence(ShownArguments::Plain);
        assert!(sentence.contains("setup.sh") && sentence.contains("the guest can write"), "{sentence}");
    }
}
