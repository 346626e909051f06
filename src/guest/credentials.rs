//! What the guest is to be given: secret values, where they come from, and the files that they become.
//!
//! Nothing here can be printed with its value, and every value is overwritten in memory when it is dropped. Nothing here
//! talks to a guest.

use std::fmt;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::PrivateKey;
use rustix::fs::OFlags;
use secrecy::{ExposeSecret, SecretBox};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::key::{self, KeyError};
use super::names::{BadGuestPath, GuestPath, Owner, VariableName};

/// A value that is never printed and is overwritten when dropped.
pub type Secret = SecretBox<Vec<u8>>;

/// SHA-256 of a file's content.
pub type Digest = [u8; 32];

/// No value is longer, in bytes.
pub const LONGEST: usize = 1 << 20;

/// How long a command that gives a value may take: it may have to ask a person.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);

/// Where a secret value comes from.
pub enum Source {
    /// The configuration itself.
    Plain(Secret),
    /// A variable of nixbox's own environment.
    FromEnv(VariableName),
    /// A file of the host.
    File(PathBuf),
    /// What a program of the host writes to its stdout: the program and its arguments.
    Command(Vec<String>),
}

impl fmt::Debug for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(_) => formatter.write_str("Plain(…)"),
            Self::FromEnv(name) => formatter.debug_tuple("FromEnv").field(name).finish(),
            Self::File(path) => formatter.debug_tuple("File").field(path).finish(),
            Self::Command(words) => formatter.debug_tuple("Command").field(&words.first()).finish(),
        }
    }
}

/// Why a value cannot be had. No message holds any part of one.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The variable is not set.
    #[error("the environment variable {0}, which a credential is to come from, is not set")]
    NoVariable(VariableName),
    /// The file cannot be read.
    #[error("cannot read the credential file {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The command is empty.
    #[error("a command that is to give a credential has no words")]
    NoCommand,
    /// The program cannot be run.
    #[error("cannot run {program:?}, which is to give a credential")]
    Run {
        /// The program.
        program: String,
        /// What the system says.
        source: io::Error,
    },
    /// The program failed.
    #[error("{program:?}, which is to give a credential, ended with {status}")]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// The program took too long.
    #[error("{program:?}, which is to give a credential, did not end within {limit:?}")]
    Slow {
        /// The program.
        program: String,
        /// The limit.
        limit: Duration,
    },
    /// The value is too long.
    #[error("a credential from {from} is longer than {LONGEST} bytes")]
    TooLong {
        /// Where it comes from.
        from: String,
    },
    /// An environment variable cannot hold NUL.
    #[error("the value for the environment variable {0} has a NUL byte in it")]
    Nul(VariableName),
    /// The workspace's key cannot be encoded.
    #[error("cannot prepare the workspace's SSH key")]
    Key(#[from] KeyError),
    /// A target cannot be used.
    #[error("a credential has a target that cannot be used")]
    Target(#[from] BadGuestPath),
}

impl Source {
    /// The value, byte for byte.
    ///
    /// # Errors
    /// Those of [`SourceError`].
    pub async fn resolve(&self) -> Result<Secret, SourceError> {
        match self {
            Self::Plain(value) => Ok(secret(value.expose_secret().clone())),
            Self::FromEnv(name) => {
                let value =
                    std::env::var_os(name.as_str()).ok_or_else(|| SourceError::NoVariable(name.clone()))?;
                let value = Zeroizing::new(value.into_encoded_bytes());
                bounded(&value, || format!("the environment variable {name}"))
            }
            Self::File(path) => read_file(path),
            Self::Command(words) => run_command(words).await,
        }
    }
}

fn secret(bytes: Vec<u8>) -> Secret {
    SecretBox::new(Box::new(bytes))
}

fn bounded(bytes: &[u8], from: impl Fn() -> String) -> Result<Secret, SourceError> {
    if bytes.len() > LONGEST {
        Err(SourceError::TooLong { from: from() })
    } else {
        Ok(secret(bytes.to_vec()))
    }
}

fn read_file(path: &Path) -> Result<Secret, SourceError> {
    let failed = |source| SourceError::File { path: path.to_owned(), source };
    // A pipe without a writer must not hold us up; what is no file is refused before it is read.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if !about.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")));
    }
    // Room for all of it at once: a vector that grows leaves copies of its content behind.
    let room = usize::try_from(about.len()).unwrap_or(LONGEST).min(LONGEST) + 1;
    let mut bytes = Zeroizing::new(vec![0; room]);
    let mut filled = 0;
    let mut file = file;
    while filled < room {
        match file.read(&mut bytes[filled..]).map_err(failed)? {
            0 => return bounded(&bytes[..filled], || path.display().to_string()),
            read => filled += read,
        }
    }
    Err(SourceError::TooLong { from: path.display().to_string() })
}

async fn run_command(words: &[String]) -> Result<Secret, SourceError> {
    let (program, arguments) = words.split_first().ok_or(SourceError::NoCommand)?;
    let failed = |source| SourceError::Run { program: program.clone(), source };
    let mut command = Command::new(program);
    // Its stderr is the user's: it may ask there.
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let run = async {
        let mut child = command.spawn().map_err(failed)?;
        let mut bytes = Zeroizing::new(vec![0; LONGEST + 1]);
        let mut filled = 0;
        if let Some(mut stdout) = child.stdout.take() {
            loop {
                let read = stdout.read(&mut bytes[filled..]).await.map_err(failed)?;
                filled += read;
                if filled > LONGEST {
                    return Err(SourceError::TooLong { from: format!("{program:?}") });
                }
                if read == 0 {
                    break;
                }
            }
        }
        let status = child.wait().await.map_err(failed)?;
        if !status.success() {
            return Err(SourceError::Failed { program: program.clone(), status });
        }
        Ok(secret(bytes[..filled].to_vec()))
    };
    let slow = |_| SourceError::Slow { program: program.clone(), limit: COMMAND_LIMIT };
    timeout(COMMAND_LIMIT, run).await.map_err(slow)?
}

/// A file that the guest is to have.
#[derive(Debug)]
pub struct FileRule {
    /// Where its content comes from.
    pub source: Source,
    /// Where it goes.
    pub target: GuestPath,
    /// Whom it belongs to; the guest's user if nobody is named.
    pub owner: Option<Owner>,
}

/// Everything that the configuration wants the guest to have, and to have no more in a snapshot.
#[derive(Default)]
pub struct Wanted {
    /// Variables for `~/.env`. Line ends at the end of a value are dropped, as a shell's `$(…)` does.
    pub environment: Vec<(VariableName, Source)>,
    /// Files.
    pub files: Vec<FileRule>,
    /// The key that becomes `~/.ssh/id_ed25519`, with its public half.
    pub key: Option<Arc<PrivateKey>>,
    /// What else is removed before a snapshot: files, or directories with all that is in them.
    pub wipe: Vec<GuestPath>,
}

impl fmt::Debug for Wanted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = formatter.debug_struct("Wanted");
        parts.field("environment", &self.environment).field("files", &self.files).field("wipe", &self.wipe);
        parts.finish_non_exhaustive()
    }
}

/// One file for the guest, with its content.
#[derive(Debug)]
pub struct Credential {
    /// Where it goes.
    pub target: GuestPath,
    /// Whom it belongs to; the guest's user if nobody is named.
    pub owner: Option<Owner>,
    /// Its mode: 0600, and 0644 for a public key.
    pub mode: u32,
    /// What is in it.
    pub content: Secret,
}

impl Credential {
    /// What `sha256sum` in the guest must say of it.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Sha256::digest(self.content.expose_secret()).into()
    }
}

impl Wanted {
    /// Where the environment goes, below the user's home.
    pub const ENVIRONMENT: &str = "~/.env";
    /// Where the workspace's key goes.
    pub const KEY: &str = "~/.ssh/id_ed25519";

    /// Every file that there is to be, without its content.
    ///
    /// # Errors
    /// [`SourceError::Target`], which a test shows not to happen.
    pub fn targets(&self) -> Result<Vec<GuestPath>, SourceError> {
        let mut targets = Vec::new();
        if !self.environment.is_empty() {
            targets.push(fixed(Self::ENVIRONMENT)?);
        }
        targets.extend(self.files.iter().map(|file| file.target.clone()));
        if self.key.is_some() {
            targets.push(fixed(Self::KEY)?);
            targets.push(fixed(&format!("{}.pub", Self::KEY))?);
        }
        Ok(targets)
    }

    /// Every file that there is to be. Runs the commands that give values, one after the other, for each may ask.
    ///
    /// # Errors
    /// Those of [`SourceError`].
    pub async fn resolve(&self) -> Result<Vec<Credential>, SourceError> {
        let mut credentials = Vec::new();
        if !self.environment.is_empty() {
            let content = self.environment_file().await?;
            credentials.push(Credential {
                target: fixed(Self::ENVIRONMENT)?,
                owner: None,
                mode: 0o600,
                content,
            });
        }
        for FileRule { source, target, owner } in &self.files {
            let content = source.resolve().await?;
            credentials.push(Credential {
                target: target.clone(),
                owner: owner.clone(),
                mode: 0o600,
                content,
            });
        }
        if let Some(key) = &self.key {
            let private = secret(key::private_text(key)?.as_bytes().to_vec());
            credentials.push(Credential {
                target: fixed(Self::KEY)?,
                owner: None,
                mode: 0o600,
                content: private,
            });
            let public = secret(key::public_text(key)?.into_bytes());
            let target = fixed(&format!("{}.pub", Self::KEY))?;
            credentials.push(Credential { target, owner: None, mode: 0o644, content: public });
        }
        Ok(credentials)
    }

    /// A file that any POSIX shell can source, whatever the values.
    async fn environment_file(&self) -> Result<Secret, SourceError> {
        let mut values = Vec::with_capacity(self.environment.len());
        for (name, source) in &self.environment {
            let value = source.resolve().await?;
            if value.expose_secret().contains(&0) {
                return Err(SourceError::Nul(name.clone()));
            }
            values.push((name, value));
        }
        let length = |(name, value): &(&VariableName, Secret)| {
            name.as_str().len() + 16 + 4 * value.expose_secret().len()
        };
        let mut text = Vec::with_capacity(values.iter().map(length).sum());
        for (name, value) in &values {
            let value = value.expose_secret();
            let end = value.iter().rposition(|byte| *byte != b'\n').map_or(0, |last| last + 1);
            text.extend_from_slice(format!("export {name}='").as_bytes());
            for byte in &value[..end] {
                match byte {
                    b'\'' => text.extend_from_slice(br"'\''"),
                    byte => text.push(*byte),
                }
            }
            text.extend_from_slice(b"'\n");
        }
        Ok(secret(text))
    }
}

fn fixed(path: &str) -> Result<GuestPath, BadGuestPath> {
    GuestPath::try_from(path.to_owned())
}

/// A plain value.
#[must_use]
pub fn plain(value: String) -> Source {
    Source::Plain(secret(value.into_bytes()))
}

#[cfg(test)]
mod tests {
    use std::process::Command as Process;

    use proptest::prelude::*;

    use super::*;
    use crate::testing::Need;

    fn name(text: &str) -> VariableName {
        VariableName::try_from(text.to_owned()).unwrap()
    }

    async fn value(source: Source) -> Vec<u8> {
        source.resolve().await.unwrap().expose_secret().clone()
    }

    fn command(words: &[&str]) -> Source {
        Source::Command(words.iter().map(|word| (*word).to_owned()).collect())
    }

    #[tokio::test]
    async fn values_come_from_where_they_are_said_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        std::fs::write(&path, b"\0\xff\n").unwrap();
        assert_eq!(value(plain("p".into())).await, b"p");
        assert_eq!(value(Source::File(path.clone())).await, b"\0\xff\n");
        assert_eq!(value(command(&["printf", "a\\nb\\n"])).await, b"a\nb\n");
        let path_variable = std::env::var("PATH").unwrap();
        assert_eq!(value(Source::FromEnv(name("PATH"))).await, path_variable.as_bytes());
    }

    #[tokio::test]
    async fn what_cannot_be_had_is_told_without_its_value() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        assert!(Process::new("mkfifo").arg(&fifo).status().unwrap().success());
        let big = directory.path().join("big");
        std::fs::write(&big, vec![b'x'; LONGEST]).unwrap();
        Source::File(big.clone()).resolve().await.unwrap();
        std::fs::write(&big, vec![b'x'; LONGEST + 1]).unwrap();
        for (source, part) in [
            (Source::FromEnv(name("NIXBOX_NOT_SET")), "NIXBOX_NOT_SET"),
            (Source::File(directory.path().join("none")), "none"),
            (Source::File(directory.path().to_owned()), "cannot read"),
            (Source::File(fifo), "fifo"),
            (Source::File(big), "longer"),
            (command(&[]), "no words"),
            (command(&["/no/such/program", "hunter2"]), "/no/such/program"),
            (command(&["sh", "-c", "echo hunter2; exit 3"]), "exit status: 3"),
            (command(&["sh", "-c", "yes hunter2"]), "longer"),
        ] {
            let told = format!("{source:?}");
            let error = source.resolve().await.unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
            for text in [told, error.to_string(), format!("{error:?}")] {
                assert!(!text.contains("hunter2"), "{text}");
            }
        }
    }

    #[tokio::test]
    async fn debug_output_holds_no_value() {
        let wanted = Wanted {
            environment: vec![(name("TOKEN"), plain("hunter2".into()))],
            files: vec![FileRule {
                source: plain("hunter2".into()),
                target: fixed("~/.aws/credentials").unwrap(),
                owner: None,
            }],
            key: Some(Arc::new(key::generate().unwrap())),
            wipe: Vec::new(),
        };
        let credentials = wanted.resolve().await.unwrap();
        let told = format!("{wanted:?} {credentials:?}");
        assert!(told.contains("TOKEN") && told.contains(".aws") && !told.contains("hunter2"), "{told}");
        let private = credentials[2].content.expose_secret();
        assert!(private.starts_with(b"-----BEGIN OPENSSH PRIVATE KEY-----"));
        assert!(!told.contains("PRIVATE KEY"), "{told}");
        let targets: Vec<_> = credentials.iter().map(|credential| credential.target.clone()).collect();
        assert_eq!(targets, wanted.targets().unwrap());
    }

    #[tokio::test]
    async fn a_variable_cannot_hold_nul() {
        let environment = vec![(name("A"), command(&["printf", "a\\0b"]))];
        let error = Wanted { environment, ..Wanted::default() }.resolve().await.unwrap_err();
        assert!(matches!(error, SourceError::Nul(_)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_value_survives_the_shell(bytes in proptest::collection::vec(1_u8.., 0..60)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let environment = vec![
                (name("A"), Source::Plain(secret(bytes.clone()))),
                (name("B"), plain("last\n\n".into())),
            ];
            let wanted = Wanted { environment, ..Wanted::default() };
            let file = runtime.block_on(wanted.resolve()).unwrap();
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("env");
            std::fs::write(&path, file[0].content.expose_secret()).unwrap();
            let end = bytes.iter().rposition(|byte| *byte != b'\n').map_or(0, |last| last + 1);
            let shells = [&["sh"][..], &["dash"], &["busybox", "ash"], &["bash"]];
            for shell in shells.into_iter().filter(|shell| Need::Program(shell[0]).is_there()) {
                let mut process = Process::new(shell[0]);
                process.args(&shell[1..]).args(["-c", ". \"$1\"; env -0", "sh"]).arg(&path);
                let seen = process.output().unwrap().stdout;
                let seen: Vec<_> = seen.split(|byte| *byte == 0).collect();
                let mut line = b"A=".to_vec();
                line.extend_from_slice(&bytes[..end]);
                prop_assert!(seen.contains(&line.as_slice()), "{shell:?}");
                prop_assert!(seen.contains(&&b"B=last"[..]));
            }
        }
    }
}
