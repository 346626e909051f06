//! What a configuration makes nixbox do on the host: the programs that it runs, the files and variables that it reads, and
//! the directories that it gives to the guest.
//!
//! A person confirms these actions before nixbox obeys a configuration that was not written on this host. An action is known
//! by the hash of everything that decides about it, so that a change of it is another action.

use std::path::{Path, PathBuf};

use super::types::{
    Config, ConfiguredGuest, CredentialFile, CredentialsTable, GuestTable, MountTable, SnapshotTable, VmTable,
};
use crate::world::{
    DiskSpec, HookPoint, PathInShare, Secret, SecretCommand, SecretSource, VariableName, VmmChoice,
};

/// Something that a configuration makes nixbox do on the host.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum HostAction {
    RunScript {
        point: HookPoint,
        number: usize,
        script: String,
    },
    RunCommand {
        variable: VariableName,
        command: SecretCommand,
    },
    ReadVariable {
        variable: VariableName,
        name: VariableName,
    },
    ReadFile {
        purpose: String,
        path: PathBuf,
    },
    Share {
        path: PathBuf,
        readonly: bool,
    },
    Unprotected {
        path: PathBuf,
        within: PathInShare,
    },
    GiveOwnKey,
    Simulate,
    /// A command of the host uses a file that a guest can write. `content` is the hash of a regular file.
    UseGuestFile {
        key: String,
        command: String,
        path: PathBuf,
        content: Option<[u8; 32]>,
    },
}

/// How the arguments of a command are shown. They may be secret, and a command of which they are not shown cannot be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShownArguments {
    /// As they are, to a person who is to judge the command.
    Plain,
    /// Not at all.
    Masked,
}

/// The number by which an action is known: BLAKE3 of what decides about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActionHash([u8; 32]);

impl ActionHash {
    /// As hexadecimal digits.
    #[must_use]
    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }

    /// The hash with these digits.
    #[must_use]
    pub fn from_hex(digits: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).ok()?;
        Some(Self(bytes))
    }
}

impl HostAction {
    /// The hash of the action. Each part is preceded by its length, so that no two actions have the same bytes.
    #[must_use]
    pub fn hash(&self) -> ActionHash {
        let mut hasher = blake3::Hasher::new();
        let mut add = |part: &[u8]| {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        };
        match self {
            Self::RunScript { point, number, script } => {
                add(b"script");
                add(point.key().as_bytes());
                add(number.to_string().as_bytes());
                add(script.as_bytes());
            }
            Self::RunCommand { variable, command: SecretCommand { program, arguments } } => {
                add(b"command");
                add(variable.as_str().as_bytes());
                add(program.as_bytes());
                arguments.iter().for_each(|argument| add(argument.expose()));
            }
            Self::ReadVariable { variable, name } => {
                add(b"variable");
                add(variable.as_str().as_bytes());
                add(name.as_str().as_bytes());
            }
            Self::ReadFile { purpose, path } => {
                add(b"file");
                add(purpose.as_bytes());
                add(path.as_os_str().as_encoded_bytes());
            }
            Self::Share { path, readonly } => {
                add(b"share");
                add(path.as_os_str().as_encoded_bytes());
                add(&[u8::from(*readonly)]);
            }
            Self::Unprotected { path, within } => {
                add(b"unprotected");
                add(path.as_os_str().as_encoded_bytes());
                add(within.as_str().as_bytes());
            }
            Self::GiveOwnKey => add(b"own key"),
            Self::Simulate => add(b"simulate"),
            Self::UseGuestFile { key, command, path, content } => {
                add(b"file of the guest");
                add(key.as_bytes());
                add(command.as_bytes());
                add(path.as_os_str().as_encoded_bytes());
                add(content.as_ref().map_or(&[], |hash| hash));
            }
        }
        ActionHash(*hasher.finalize().as_bytes())
    }

    /// Whether a guest decides a part of the action, so that it is confirmed wherever the configuration is from.
    #[must_use]
    pub fn is_guests(&self) -> bool {
        matches!(self, Self::UseGuestFile { .. })
    }

    /// The action as a clause on one line, which begins with a verb.
    #[must_use]
    pub fn sentence(&self, arguments: ShownArguments) -> String {
        match self {
            Self::RunScript { point, number, script } => {
                format!("runs on the host, as script {number} of {}: {}", point.key(), one_line(script))
            }
            Self::RunCommand { variable, command } => {
                format!("runs on the host, for env.{variable}: {}", command_line(command, arguments))
            }
            Self::ReadVariable { variable, name } => {
                format!("gives the guest the host's environment variable {name}, for env.{variable}")
            }
            Self::ReadFile { purpose, path } => format!("reads {path:?}, for {purpose}"),
            Self::Share { path, readonly: true } => {
                format!("lets the guest read {path:?}, which is not in the workspace")
            }
            Self::Share { path, readonly: false } => {
                format!("lets the guest read and write {path:?}, which is not in the workspace")
            }
            Self::Unprotected { path, within } => {
                format!("lets the guest write {within} in {path:?}, which makes git on the host run programs")
            }
            Self::GiveOwnKey => "gives the guest the SSH key of the workspace".to_owned(),
            Self::Simulate => {
                "runs what \"the guest\" runs on the host, as you: the simulator is no sandbox".to_owned()
            }
            Self::UseGuestFile { key, command, path, content: _ } => format!(
                "uses {path:?}, which the guest can write, as it is now, on the host, for {key}: {}",
                one_line(command)
            ),
        }
    }
}

fn command_line(command: &SecretCommand, shown: ShownArguments) -> String {
    let SecretCommand { program, arguments } = command;
    let argument = |argument: &Secret| match shown {
        ShownArguments::Plain => one_line(&String::from_utf8_lossy(argument.expose())),
        ShownArguments::Masked => crate::world::MASK.to_owned(),
    };
    let words = std::iter::once(one_line(program)).chain(arguments.iter().map(argument));
    let quoted = |word: String| if word.contains(' ') { format!("'{word}'") } else { word };
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

/// The text without line ends, which could make a part of it look like another action.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|one| if one.is_control() { one.escape_default().to_string() } else { one.into() })
        .collect()
}

impl Config {
    /// What this configuration makes nixbox do on the host. `own` are the directories of the workspace and of its keys, and
    /// `real` says where a path leads when links are followed. A file below `own` that only a VM uses is not listed.
    ///
    /// Each table is taken apart here without `..`, so that a new key does not compile until this function says whether it
    /// acts on the host. What is bound to `_` decides about the guest alone, or about what nixbox itself made.
    #[must_use]
    pub fn host_actions(&self, own: &[&Path], real: &dyn Fn(&Path) -> PathBuf) -> Vec<HostAction> {
        let Self {
            name: _,
            vmm,
            vm,
            disks,
            mounts,
            network: _,
            guest,
            env,
            credentials,
            hooks,
            snapshot,
            defaulted: _,
        } = self;
        let VmTable { vcpus: _, memory: _, kernel, initramfs, cmdline: _, backing: _ } = vm;
        // The scripts run in the guest, as its user, who can run them there without nixbox.
        let ConfiguredGuest { system, scripts: _ } = guest;
        let GuestTable { user: _, uid: _, gid: _, ssh_key, require_entropy: _, ready_timeout: _ } = system;
        let CredentialsTable { files, wipe: _, overwrite: _, outbound_key } = credentials;
        let SnapshotTable { keep: _, keep_for: _, keep_size: _, keep_disks: _, on_leak: _ } = snapshot;
        let inside = |path: &Path| own.iter().any(|own| path.starts_with(own));
        let mut actions = Vec::new();
        for (point, scripts) in hooks.by_point() {
            let numbered = scripts.into_iter().enumerate();
            actions.extend(numbered.map(|(index, script)| HostAction::RunScript {
                point,
                number: index + 1,
                script,
            }));
        }
        for (variable, source) in env {
            let variable = variable.clone();
            actions.extend(match source {
                SecretSource::Plain(_) => None,
                SecretSource::FromEnv(name) => {
                    Some(HostAction::ReadVariable { variable, name: name.clone() })
                }
                SecretSource::File(path) => Some(HostAction::ReadFile {
                    purpose: format!("env.{variable}"),
                    path: real(path.as_path()),
                }),
                SecretSource::Command(command) => {
                    Some(HostAction::RunCommand { variable, command: command.clone() })
                }
            });
        }
        for CredentialFile { source, target } in files {
            let purpose = format!("the guest's {target}");
            actions.push(HostAction::ReadFile { purpose, path: real(source.as_path()) });
        }
        let images = disks.iter().filter_map(|DiskSpec { image, size: _ }| image.as_ref());
        let used = [("vm.kernel", kernel), ("guest.ssh-key", ssh_key)].into_iter();
        let used = used.chain(initramfs.iter().map(|path| ("vm.initramfs", path)));
        for (key, path) in used.chain(images.map(|path| ("disks.image", path))) {
            let path = real(path.as_path());
            if !inside(&path) {
                actions.push(HostAction::ReadFile { purpose: key.to_owned(), path });
            }
        }
        for MountTable { source, target: _, readonly, protect } in mounts {
            let path = real(source.as_path());
            if !readonly {
                let left = PathInShare::DEFAULT.into_iter().filter(|within| !protect.contains(within));
                actions.extend(left.map(|within| HostAction::Unprotected { path: path.clone(), within }));
            }
            if !inside(&path) {
                actions.push(HostAction::Share { path, readonly: *readonly });
            }
        }
        actions.extend(outbound_key.then_some(HostAction::GiveOwnKey));
        actions.extend(match vmm {
            VmmChoice::CloudHypervisor => None,
            VmmChoice::Simulator(_) => Some(HostAction::Simulate),
        });
        actions
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::HostFacts;

    fn actions(text: &str) -> Vec<HostAction> {
        let host = HostFacts { vcpus: 4, memory: 8 << 30, home: Some("/home/me".into()) };
        let text = format!("{text}\n[vm]\nkernel = \"vmlinuz\"\n");
        let config =
            Config::parse(&text, Path::new("c"), Path::new("/w"), Path::new("/keys"), &host).unwrap();
        config.host_actions(&["/w".as_ref(), "/keys".as_ref()], &|path| match path.to_str() {
            Some("/w/link") => "/etc/shadow".into(),
            _ => path.to_owned(),
        })
    }

    fn sentences(text: &str) -> Vec<String> {
        actions(text).iter().map(|action| action.sentence(ShownArguments::Plain)).collect()
    }

    #[test]
    fn a_configuration_that_stays_in_its_vm_does_nothing_on_the_host() {
        assert_eq!(sentences(""), [""; 0]);
        let rest = "env = { A = \"plain\" }\ndisks = [{ image = \"a.img\" }, { size = \"64MiB\" }]\nguest.ssh-key = \"key\"";
        assert_eq!(sentences(rest), [""; 0]);
    }

    #[test]
    #[rustfmt::skip]
    fn every_action_has_a_sentence_and_a_hash_of_its_own() {
        let cases = [
            ("hooks.pre-up = [\"echo a\", \"b\\nc\"]", &[
                "runs on the host, as script 1 of hooks.pre-up: echo a",
                "runs on the host, as script 2 of hooks.pre-up: b\\nc",
            ][..]),
            ("hooks.post-up = [\"echo a\"]", &["runs on the host, as script 1 of hooks.post-up: echo a"]),
            ("env.A = { command = [\"sh\", \"-c\", \"steal it\"] }", &["runs on the host, for env.A: sh -c 'steal it'"]),
            ("env.B = { command = [\"sh\", \"-c\", \"steal it\"] }", &["runs on the host, for env.B: sh -c 'steal it'"]),
            ("env.A = { from-env = \"B\" }", &["gives the guest the host's environment variable B, for env.A"]),
            ("env.A = { file = \"f\" }", &["reads \"/w/f\", for env.A"]),
            ("credentials.files = [{ source = \"f\", target = \"~/f\" }]", &["reads \"/w/f\", for the guest's ~/f"]),
            ("disks = [{ image = \"link\" }]", &["reads \"/etc/shadow\", for disks.image"]),
            ("guest.ssh-key = \"~/.ssh/id\"", &["reads \"/home/me/.ssh/id\", for guest.ssh-key"]),
            ("mounts = [{ source = \"/etc\", target = \"/e\", readonly = true }]",
                &["lets the guest read \"/etc\", which is not in the workspace"]),
            ("mounts = [{ source = \"/etc\", target = \"/e\" }]",
                &["lets the guest read and write \"/etc\", which is not in the workspace"]),
            ("mounts = [{ source = \".\", target = \"/w\", protect = [\".git/hooks\"] }]",
                &["lets the guest write .git/config in \"/w\", which makes git on the host run programs"]),
            ("credentials.outbound-key = true", &["gives the guest the SSH key of the workspace"]),
            ("vmm = \"simulator\"",
                &["runs what \"the guest\" runs on the host, as you: the simulator is no sandbox"]),
        ];
        let mut hashes = BTreeSet::new();
        for (text, expected) in cases {
            assert_eq!(sentences(text), expected, "{text}");
            for action in actions(text) {
                assert!(hashes.insert(action.hash()), "{text}: the hash of {action:?} is another's");
                assert_eq!(ActionHash::from_hex(&action.hash().to_hex()), Some(action.hash()));
            }
        }
    }

    #[test]
    fn arguments_are_part_of_the_hash_and_are_shown_only_to_be_judged() {
        let with = |words: &str| actions(&format!("env.A = {{ command = [{words}] }}")).remove(0);
        let (one, two) = (with("\"op\", \"a\", \"b\""), with("\"op\", \"ab\""));
        assert_ne!(one.hash(), two.hash());
        assert_eq!(one.sentence(ShownArguments::Masked), "runs on the host, for env.A: op *** ***");
        assert_eq!(two.sentence(ShownArguments::Plain), "runs on the host, for env.A: op ab");
    }
}
