//! Prepares the files that are injected into the guest: reads secret values from their sources, and puts them into
//! files.
//!
//! This module prints no value, and overwrites every value in memory when it drops it. This module does not talk to a
//! guest.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::PrivateKey;
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::key::{self, KeyError};
use crate::world::{FileOwner, GuestPath, Secret, SecretCommand, SecretSource, VariableName};

/// SHA-256 of a file's content.
pub type Digest = [u8; 32];

/// The most bytes that a value may have.
pub const LONGEST: usize = 1 << 20;

/// The time limit of a command that prints a value. It is long because the command may ask a person.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);

/// Why a value could not be read. No message contains any part of a value.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SourceError {
    #[error("the environment variable {0}, which a credential is read from, is not set")]
    NoVariable(VariableName),
    #[error("cannot read the credential file {path}")]
    File { path: PathBuf, source: io::Error },
    #[error("cannot run {program:?}, which prints a credential")]
    Run { program: String, source: io::Error },
    #[error("{program:?}, which prints a credential, ended with {status}")]
    Failed { program: String, status: std::process::ExitStatus },
    #[error("{program:?}, which prints a credential, did not end within {limit:?}")]
    Slow { program: String, limit: Duration },
    #[error("a credential from {from} is longer than {LONGEST} bytes")]
    TooLong { from: String },
    #[error("the value for the environment variable {0} has a NUL byte in it")]
    Nul(VariableName),
    #[error("cannot prepare the workspace's SSH key")]
    Key(#[from] KeyError),
}

/// Reads the value of a source, byte for byte.
///
/// # Errors
/// Any [`SourceError`].
pub async fn resolve(source: &SecretSource) -> Result<Secret, SourceError> {
    match source {
        SecretSource::Plain(value) => Ok(value.clone()),
        SecretSource::FromEnv(name) => {
            let value =
                std::env::var_os(name.as_str()).ok_or_else(|| SourceError::NoVariable(name.clone()))?;
            let value = Secret::new(value.into_encoded_bytes());
            if value.expose().len() > LONGEST {
                return Err(SourceError::TooLong { from: format!("the environment variable {name}") });
            }
            Ok(value)
        }
        SecretSource::File(path) => read_file(path.as_path()),
        SecretSource::Command(command) => run_command(command).await,
    }
}

/// The first `filled` bytes of a buffer, without a copy of the buffer.
fn first(mut buffer: Zeroizing<Vec<u8>>, filled: usize) -> Secret {
    let mut bytes = std::mem::take(&mut *buffer);
    bytes.truncate(filled);
    Secret::new(bytes)
}

fn read_file(path: &Path) -> Result<Secret, SourceError> {
    let failed = |source| SourceError::File { path: path.to_owned(), source };
    // Opening a pipe that has no writer must not block. A path that is not a regular file is refused before anything is
    // read.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let mut file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if !about.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")));
    }
    // The vector has room for the whole file, because a vector that grows leaves copies of its content behind.
    let room = usize::try_from(about.len()).unwrap_or(LONGEST).min(LONGEST) + 1;
    let mut bytes = Zeroizing::new(vec![0; room]);
    let mut filled = 0;
    while filled < room {
        match file.read(&mut bytes[filled..]).map_err(failed)? {
            0 => return Ok(first(bytes, filled)),
            read => filled += read,
        }
    }
    Err(SourceError::TooLong { from: path.display().to_string() })
}

async fn run_command(secret: &SecretCommand) -> Result<Secret, SourceError> {
    let program = &secret.program;
    let failed = |source| SourceError::Run { program: program.clone(), source };
    let mut command = Command::new(program);
    // The kernel takes arguments as C strings, so `Command` holds a copy of the arguments for as long as it lives.
    command.args(secret.arguments.iter().map(|argument| OsStr::from_bytes(argument.expose())));
    // The program inherits stderr, because it may ask the user there.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
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
        Ok(first(bytes, filled))
    };
    let slow = |_| SourceError::Slow { program: program.clone(), limit: COMMAND_LIMIT };
    timeout(COMMAND_LIMIT, run).await.map_err(slow)?
}

/// A file that the configuration wants in the guest.
#[derive(Debug)]
pub struct FileRule {
    /// The source of the content.
    pub source: SecretSource,
    /// The path in the guest.
    pub target: GuestPath,
    /// The owner; the guest's user if `None`.
    pub owner: Option<FileOwner>,
}

/// The credentials that the configuration wants in the guest, and the files that a snapshot must not contain.
#[derive(Default)]
pub struct Wanted {
    /// The variables for `~/.env`. Line ends at the end of a value are dropped, as a shell's `$(…)` does.
    pub environment: Vec<(VariableName, SecretSource)>,
    /// Files.
    pub files: Vec<FileRule>,
    /// The private key that is written to `~/.ssh/id_ed25519`, with its public half beside it.
    pub key: Option<Arc<PrivateKey>>,
    /// The files, and the directories with their content, that are removed before a snapshot.
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
    /// The path in the guest.
    pub target: GuestPath,
    /// The owner; the guest's user if `None`.
    pub owner: Option<FileOwner>,
    /// The file mode: 0600, or 0644 for a public key.
    pub mode: u32,
    /// The content.
    pub content: Secret,
}

impl Credential {
    /// The digest that `sha256sum` in the guest prints for the file.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Sha256::digest(self.content.expose()).into()
    }
}

impl Wanted {
    /// The path of every file that is to be injected.
    #[must_use]
    pub fn targets(&self) -> Vec<GuestPath> {
        let environment = (!self.environment.is_empty()).then_some(GuestPath::ENVIRONMENT);
        let keys = self.key.is_some().then_some([GuestPath::PRIVATE_KEY, GuestPath::PUBLIC_KEY]);
        let files = self.files.iter().map(|file| file.target.clone());
        environment.into_iter().chain(files).chain(keys.into_iter().flatten()).collect()
    }

    /// Reads the content of every file that is to be injected. Commands that print values run one after the other,
    /// because each may ask a person.
    ///
    /// # Errors
    /// Any [`SourceError`].
    pub async fn resolve(&self) -> Result<Vec<Credential>, SourceError> {
        let credential = |target, mode, content| Credential { target, owner: None, mode, content };
        let mut credentials = Vec::new();
        if !self.environment.is_empty() {
            let content = self.environment_file().await?;
            credentials.push(credential(GuestPath::ENVIRONMENT, 0o600, content));
        }
        for FileRule { source, target, owner } in &self.files {
            let content = resolve(source).await?;
            let file = credential(target.clone(), 0o600, content);
            credentials.push(Credential { owner: owner.clone(), ..file });
        }
        if let Some(key) = &self.key {
            let private = Secret::new(std::mem::take(&mut *key::private_text(key)?).into_bytes());
            credentials.push(credential(GuestPath::PRIVATE_KEY, 0o600, private));
            let public = Secret::new(key::public_text(key)?.into_bytes());
            credentials.push(credential(GuestPath::PUBLIC_KEY, 0o644, public));
        }
        Ok(credentials)
    }

    /// Builds the content of `~/.env`, which any POSIX shell can source, even if values contain unusual bytes.
    async fn environment_file(&self) -> Result<Secret, SourceError> {
        let mut values = Vec::with_capacity(self.environment.len());
        for (name, source) in &self.environment {
            let value = resolve(source).await?;
            if value.expose().contains(&0) {
                return Err(SourceError::Nul(name.clone()));
            }
            values.push((name, value));
        }
        let length =
            |(name, value): &(&VariableName, Secret)| name.as_str().len() + 16 + 4 * value.expose().len();
        let mut text = Vec::with_capacity(values.iter().map(length).sum());
        for (name, value) in &values {
            let value = value.expose();
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
        Ok(Secret::new(text))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command as Process;

    use proptest::prelude::*;

    use super::*;
    use crate::testing::Need;
    use crate::world::HostPath;

    fn name(text: &str) -> VariableName {
        text.parse().unwrap()
    }

    fn plain(text: &str) -> SecretSource {
        SecretSource::Plain(Secret::new(text.as_bytes().to_vec()))
    }

    fn file(path: &Path) -> SecretSource {
        SecretSource::File(HostPath::below(path, "."))
    }

    fn command(words: &[&str]) -> SecretSource {
        let (program, arguments) = words.split_first().unwrap();
        let arguments = arguments.iter().map(|word| Secret::new(word.as_bytes().to_vec())).collect();
        SecretSource::Command(SecretCommand { program: (*program).to_owned(), arguments })
    }

    async fn value(source: SecretSource) -> Vec<u8> {
        resolve(&source).await.unwrap().expose().to_vec()
    }

    #[tokio::test]
    async fn each_kind_of_source_gives_its_value() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        std::fs::write(&path, b"\0\xff\n").unwrap();
        assert_eq!(value(plain("p")).await, b"p");
        assert_eq!(value(file(&path)).await, b"\0\xff\n");
        assert_eq!(value(command(&["printf", "a\\nb\\n"])).await, b"a\nb\n");
        let path_variable = std::env::var("PATH").unwrap();
        assert_eq!(value(SecretSource::FromEnv(name("PATH"))).await, path_variable.as_bytes());
    }

    #[tokio::test]
    async fn errors_of_sources_do_not_contain_the_value() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        assert!(Process::new("mkfifo").arg(&fifo).status().unwrap().success());
        let big = directory.path().join("big");
        std::fs::write(&big, vec![b'x'; LONGEST]).unwrap();
        resolve(&file(&big)).await.unwrap();
        std::fs::write(&big, vec![b'x'; LONGEST + 1]).unwrap();
        for (source, part) in [
            (SecretSource::FromEnv(name("NIXBOX_NOT_SET")), "NIXBOX_NOT_SET"),
            (file(&directory.path().join("none")), "none"),
            (file(directory.path()), "cannot read"),
            (file(&fifo), "fifo"),
            (file(&big), "longer"),
            (command(&[""]), "cannot run"),
            (command(&["/no/such/program", "hunter2"]), "/no/such/program"),
            (command(&["sh", "-c", "echo hunter2; exit 3"]), "exit status: 3"),
            (command(&["sh", "-c", "yes hunter2"]), "longer"),
        ] {
            let told = format!("{source:?}");
            let error = resolve(&source).await.unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
            for text in [told, error.to_string(), format!("{error:?}")] {
                assert!(!text.contains("hunter2"), "{text}");
            }
        }
    }

    #[tokio::test]
    async fn debug_output_contains_no_value() {
        let wanted = Wanted {
            environment: vec![(name("TOKEN"), plain("hunter2"))],
            files: vec![FileRule {
                source: plain("hunter2"),
                target: "~/.aws/credentials".parse().unwrap(),
                owner: None,
            }],
            key: Some(Arc::new(key::generate().unwrap())),
            wipe: Vec::new(),
        };
        let credentials = wanted.resolve().await.unwrap();
        let told = format!("{wanted:?} {credentials:?}");
        assert!(told.contains("TOKEN") && told.contains(".aws") && !told.contains("hunter2"), "{told}");
        let private = credentials[2].content.expose();
        assert!(private.starts_with(b"-----BEGIN OPENSSH PRIVATE KEY-----"));
        assert!(!told.contains("PRIVATE KEY"), "{told}");
        let targets: Vec<_> = credentials.iter().map(|credential| credential.target.clone()).collect();
        assert_eq!(targets, wanted.targets());
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
                (name("A"), SecretSource::Plain(Secret::new(bytes.clone()))),
                (name("B"), plain("last\n\n")),
            ];
            let wanted = Wanted { environment, ..Wanted::default() };
            let file = runtime.block_on(wanted.resolve()).unwrap();
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("env");
            std::fs::write(&path, file[0].content.expose()).unwrap();
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
