//! Prepares the files that are injected into the guest: puts the values that [`super::sources`] reads into files.
//!
//! This module prints no value, and overwrites every value in memory when it drops it. This module does not talk to a
//! guest.

use std::fmt;
use std::sync::Arc;

use futures_util::future::{try_join, try_join_all};
use russh::keys::PrivateKey;
use sha2::{Digest as _, Sha256};

use super::key;
use super::sources::{PendingSources, SourceError};
use crate::files::search::value::{NamedValue, ValueKind};
use crate::files::shared_paths::SharedPaths;
use crate::world::{FileOwner, GuestPath, Secret, SecretSource, VariableName, WaitObserver};

/// SHA-256 of a file's content.
pub type Digest = [u8; 32];

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
    /// The files that an injection may overwrite although nixbox did not write them.
    pub overwrite: Vec<GuestPath>,
    /// Where a guest can replace files that credentials are read from.
    pub shared: SharedPaths,
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
    /// The secret values in it, each with the name that a person knows it by. A snapshot is searched for them.
    pub values: Vec<NamedValue>,
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

    /// The names of the variables in the file with this path; none for a file that holds no variables.
    #[must_use]
    pub fn variables_in(&self, target: &GuestPath) -> Vec<VariableName> {
        let of_file = self.environment.iter().filter(|_| *target == GuestPath::ENVIRONMENT);
        of_file.map(|(name, _)| name.clone()).collect()
    }

    /// Reads the content of every file that is to be injected. All sources are read at the same time; `waits` is told
    /// which of them take long.
    ///
    /// # Errors
    /// Any [`SourceError`]: that of the first source that fails. The others are given up.
    pub async fn resolve(&self, waits: &WaitObserver<'_>) -> Result<Vec<Credential>, SourceError> {
        let pending = PendingSources::new(self.shared.clone());
        let environment = try_join_all(self.environment.iter().map(|(_, source)| pending.resolve(source)));
        let files = try_join_all(self.files.iter().map(|file| pending.resolve(&file.source)));
        let all = try_join(environment, files);
        let (environment, files) = pending.report_while(waits, all).await?;
        self.credentials(&environment, files)
    }

    fn credentials(
        &self,
        environment: &[Secret],
        files: Vec<Secret>,
    ) -> Result<Vec<Credential>, SourceError> {
        let credential = |target: GuestPath, mode, content: Secret| {
            let value =
                NamedValue { name: target.to_string(), kind: ValueKind::File, content: content.clone() };
            Credential { target, owner: None, mode, content, values: vec![value] }
        };
        let mut credentials = Vec::new();
        if !environment.is_empty() {
            let content = self.environment_file(environment)?;
            let values = self.environment.iter().zip(environment).map(variable_value).collect();
            credentials.push(Credential { values, ..credential(GuestPath::ENVIRONMENT, 0o600, content) });
        }
        for (FileRule { target, owner, .. }, content) in self.files.iter().zip(files) {
            let file = credential(target.clone(), 0o600, content);
            credentials.push(Credential { owner: owner.clone(), ..file });
        }
        if let Some(key) = &self.key {
            let private = Secret::new(std::mem::take(&mut *key::private_text(key)?).into_bytes());
            credentials.push(credential(GuestPath::PRIVATE_KEY, 0o600, private));
            let public = Secret::new(key::public_text(key)?.into_bytes());
            credentials
                .push(Credential { values: vec![], ..credential(GuestPath::PUBLIC_KEY, 0o644, public) });
        }
        Ok(credentials)
    }

    /// Builds the content of `~/.env`, which any POSIX shell can source, even if values contain unusual bytes, and which programs
    /// that read `.env` files by themselves can read, as `docker compose` does in the user's home. `values` are those of the
    /// variables, in their order.
    fn environment_file(&self, values: &[Secret]) -> Result<Secret, SourceError> {
        let values: Vec<_> = self.environment.iter().map(|(name, _)| name).zip(values).collect();
        if let Some((name, _)) = values.iter().find(|(_, value)| value.expose().contains(&0)) {
            return Err(SourceError::Nul((*name).clone()));
        }
        let length =
            |(name, value): &(&VariableName, &Secret)| name.as_str().len() + 16 + 4 * value.expose().len();
        let mut text = Vec::with_capacity(values.iter().map(length).sum());
        for (name, value) in &values {
            let value = value.expose();
            let end = value.iter().rposition(|byte| *byte != b'\n').map_or(0, |last| last + 1);
            text.extend_from_slice(format!("export {name}=").as_bytes());
            quote(&value[..end], &mut text);
            text.push(b'\n');
        }
        Ok(Secret::new(text))
    }
}

/// Writes a value in single quotes, between which every byte stands for itself. A value with a single quote is written in double
/// quotes: the word that ends and begins single quotes around it, `'\''`, means nothing to programs that are no shells.
fn quote(value: &[u8], text: &mut Vec<u8>) {
    if !value.contains(&b'\'') {
        text.push(b'\'');
        text.extend_from_slice(value);
        text.push(b'\'');
        return;
    }
    text.push(b'"');
    for byte in value {
        if b"\"\\$`".contains(byte) {
            text.push(b'\\');
        }
        text.push(*byte);
    }
    text.push(b'"');
}

/// What a snapshot is searched for because of a variable.
fn variable_value(((name, source), value): (&(VariableName, SecretSource), &Secret)) -> NamedValue {
    let kind = match source {
        SecretSource::Plain(_) => ValueKind::Written,
        SecretSource::FromEnv(_) | SecretSource::File(_) | SecretSource::Command(_) => ValueKind::Read,
    };
    NamedValue { name: name.to_string(), kind, content: value.clone() }
}

#[cfg(test)]
mod tests {
    use std::process::Command as Process;

    use proptest::prelude::*;

    use super::*;
    use crate::testing::Need;
    use crate::world::SecretCommand;

    fn name(text: &str) -> VariableName {
        text.parse().unwrap()
    }

    fn plain(text: &str) -> SecretSource {
        SecretSource::Plain(Secret::new(text.as_bytes().to_vec()))
    }

    fn command(words: &[&str]) -> SecretSource {
        let (program, arguments) = words.split_first().unwrap();
        let arguments = arguments.iter().map(|word| Secret::new(word.as_bytes().to_vec())).collect();
        SecretSource::Command(SecretCommand { program: (*program).to_owned(), arguments })
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
            ..Wanted::default()
        };
        let credentials = wanted.resolve(&|_| ()).await.unwrap();
        let told = format!("{wanted:?} {credentials:?}");
        assert!(told.contains("TOKEN") && told.contains(".aws") && !told.contains("hunter2"), "{told}");
        let private = credentials[2].content.expose();
        assert!(private.starts_with(b"-----BEGIN OPENSSH PRIVATE KEY-----"));
        assert!(!told.contains("PRIVATE KEY"), "{told}");
        let targets: Vec<_> = credentials.iter().map(|credential| credential.target.clone()).collect();
        assert_eq!(targets, wanted.targets());
    }

    /// The first command ends only when the second one runs.
    #[tokio::test]
    async fn sources_are_read_at_the_same_time() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        assert!(Process::new("mkfifo").arg(&fifo).status().unwrap().success());
        let fifo = fifo.to_str().unwrap();
        let reader = command(&["cat", fifo]);
        let writer = command(&["sh", "-c", "echo met > \"$1\"; echo done", "sh", fifo]);
        let environment = vec![(name("READER"), reader), (name("WRITER"), writer)];
        let credentials = Wanted { environment, ..Wanted::default() }.resolve(&|_| ()).await.unwrap();
        assert_eq!(credentials[0].content.expose(), b"export READER='met'\nexport WRITER='done'\n");
    }

    #[tokio::test]
    async fn programs_that_are_no_shells_can_read_the_variables() {
        let environment =
            vec![(name("A"), plain("a $HOME `b` \\ \"c\"")), (name("B"), plain("it's $HOME `b` \\ \"c\""))];
        let credentials = Wanted { environment, ..Wanted::default() }.resolve(&|_| ()).await.unwrap();
        let wanted: &[u8] = br#"export A='a $HOME `b` \ "c"'
export B="it's \$HOME \`b\` \\ \"c\""
"#;
        assert_eq!(credentials[0].content.expose(), wanted);
    }

    #[tokio::test]
    async fn a_variable_cannot_hold_nul() {
        let environment = vec![(name("A"), command(&["printf", "a\\0b"]))];
        let error = Wanted { environment, ..Wanted::default() }.resolve(&|_| ()).await.unwrap_err();
        assert!(matches!(error, SourceError::Nul(_)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_value_survives_the_shell(bytes in proptest::collection::vec(prop_oneof![
            1_u8..,
            proptest::sample::select(&b"'\"$`\\\n!"[..]),
        ], 0..60)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let environment = vec![
                (name("A"), SecretSource::Plain(Secret::new(bytes.clone()))),
                (name("B"), plain("last\n\n")),
            ];
            let wanted = Wanted { environment, ..Wanted::default() };
            let file = runtime.block_on(wanted.resolve(&|_| ())).unwrap();
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
