//! The credentials in the files that a wipe takes from the guest.
//!
//! nixbox did not put these values into the guest, and a program of the guest may keep one as well as those that it did. So
//! they become known values of the workspace before the files are removed: their fingerprints are kept, and the snapshot is
//! searched for them. A text is a credential if it looks like a token, if it follows a word such as "password" or "token",
//! or if it is the password in a URL; what `docker login` keeps is decoded. Histories are left out, because most of what
//! is in them is no credential.
//!
//! Everything is bounded, because the guest decides what is in these files. What is beyond the bounds is named.

use std::collections::BTreeSet;
use std::io::Read as _;

use data_encoding::BASE64_NOPAD;
use zeroize::Zeroizing;

use super::backup::{self, BackupError};
use crate::files::Folder;
use crate::files::search::known::{KnownValues, KnownValuesError};
use crate::files::search::value::{NamedValue, PART, Treatment, ValueKind};
use crate::world::{Secret, UnprovenPlace};

/// The largest file that is looked into, in bytes.
const MOST_OF_FILE: usize = 256 << 10;
/// The most files of one entry that are looked into.
const MOST_FILES: usize = 64;
/// The most credentials of one entry.
const MOST_VALUES: usize = 64;
/// The most values that a workspace may know for these to be added. An injection may add ten times as many, and must not
/// be refused because of a file that the guest writes.
const MOST_KNOWN: usize = 1000;
/// The length of the shortest text that is searched for.
const SHORTEST: usize = 8;
/// The length of the shortest text that counts as a credential for its looks alone.
const SHORTEST_TOKEN: usize = 20;
/// How the words end that name a credential.
const NAMES: [&[u8]; 6] = [b"password", b"passwd", b"secret", b"token", b"auth", b"key"];

/// Why what a wipe takes cannot be searched for.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum WipedValuesError {
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error(transparent)]
    Known(#[from] KnownValuesError),
}

/// Makes known what the files of a backup hold. The values are on the medium when this returns. The answer names what was
/// not looked into.
///
/// # Errors
/// If the backup is not one, or the values cannot be written down.
pub(super) fn remember(state: &Folder, backup: &Secret) -> Result<Vec<UnprovenPlace>, WipedValuesError> {
    let mut unproven = Vec::new();
    let mut values = Vec::new();
    for (path, archive) in backup::archives(backup)? {
        if backup::is_history(&path) {
            continue;
        }
        let name: String = path.chars().filter(|letter| !letter.is_control()).take(200).collect();
        let name = format!("{name} of the guest");
        match values_of(archive, &name) {
            (found, None) => values.extend(found),
            (found, Some(reason)) => {
                values.extend(found);
                unproven.push(UnprovenPlace { place: name, reason });
            }
        }
    }
    if values.is_empty() {
        return Ok(unproven);
    }
    let known = KnownValues::read(state)?;
    let before = known.as_ref().map_or(0, |known| known.values().len());
    let after = KnownValues::with(known, &values)?.values().len();
    if after > before && after > MOST_KNOWN {
        let names: BTreeSet<String> = values.into_iter().map(|value| value.name).collect();
        let reason = format!("{before} values are searched for already, and these were not added");
        unproven.extend(names.into_iter().map(|place| UnprovenPlace { place, reason: reason.clone() }));
    } else {
        KnownValues::remember(state, &values)?;
    }
    Ok(unproven)
}

/// The credentials in the files of an archive, and why there may be more.
fn values_of(archive: &[u8], name: &str) -> (Vec<NamedValue>, Option<String>) {
    let mut values: Vec<NamedValue> = Vec::new();
    let mut reason = None;
    let mut files = 0;
    let mut archive = tar::Archive::new(archive);
    let unreadable = || Some("its archive cannot be read".to_owned());
    let Ok(entries) = archive.entries() else { return (values, unreadable()) };
    for entry in entries {
        let Ok(entry) = entry else { return (values, unreadable()) };
        if !entry.header().entry_type().is_file() {
            continue;
        }
        files += 1;
        if files > MOST_FILES {
            return (values, Some(format!("only the first {MOST_FILES} of its files were looked into")));
        }
        if entry.size() > MOST_OF_FILE as u64 {
            reason = Some(format!("a file of more than {} KiB was not looked into", MOST_OF_FILE >> 10));
            continue;
        }
        // With its capacity from the start the content is never moved, which would leave a copy behind.
        let mut content = Zeroizing::new(Vec::with_capacity(MOST_OF_FILE));
        if entry.take(MOST_OF_FILE as u64).read_to_end(&mut content).is_err() {
            return (values, unreadable());
        }
        for credential in credentials_in(&content) {
            if values.iter().any(|value| value.content.expose() == credential.expose()) {
                continue;
            }
            if values.len() == MOST_VALUES {
                return (values, Some(format!("only the first {MOST_VALUES} of its credentials are known")));
            }
            values.push(NamedValue { name: name.to_owned(), kind: ValueKind::Read, content: credential });
        }
    }
    (values, reason)
}

/// The parts of a text that are credentials.
fn credentials_in(text: &[u8]) -> Vec<Secret> {
    let mut found = Vec::new();
    let mut former: &[u8] = b"";
    let mut start = 0;
    for word in text.split(|byte| delimits(*byte)) {
        let end = start + word.len();
        let in_url = start > 0 && text[start - 1] == b':' && text.get(end) == Some(&b'@');
        start = end + 1;
        if word.is_empty() {
            continue;
        }
        let name = former.to_ascii_lowercase();
        former = word;
        let named = NAMES.iter().any(|ending| name.ends_with(ending));
        if !(SHORTEST..=PART).contains(&word.len()) || !(named || in_url || word.len() >= SHORTEST_TOKEN) {
            continue;
        }
        let content = Secret::new(word.to_vec());
        let value = NamedValue { name: String::new(), kind: ValueKind::Read, content: content.clone() };
        // Much is called a key that is no secret.
        let trusted = in_url || named && !name.ends_with(b"key");
        if trusted || value.treatment() == Treatment::Token {
            found.push(content);
        }
        if name.ends_with(b"auth") {
            found.extend(password_of(word));
        }
    }
    found
}

fn delimits(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0 || b"\"'`,;{}[]()<>=:@".contains(&byte)
}

/// The password in the base64 of `USER:PASSWORD`, without the padding.
fn password_of(encoded: &[u8]) -> Option<Secret> {
    let decoded = Zeroizing::new(BASE64_NOPAD.decode(encoded).ok()?);
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let password = &decoded[colon + 1..];
    (SHORTEST..=PART).contains(&password.len()).then(|| Secret::new(password.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<String> {
        let found = credentials_in(text.as_bytes());
        found.iter().map(|secret| String::from_utf8(secret.expose().to_vec()).unwrap()).collect()
    }

    #[test]
    fn credentials_are_found_in_the_files_of_usual_programs() {
        let docker = r#"{"auths": {"registry.example.com": {"auth": "dXNlcjpodW50ZXIyaHVudGVy"}}, "credsStore": "pass"}"#;
        assert_eq!(texts(docker), ["dXNlcjpodW50ZXIyaHVudGVy", "hunter2hunter"]);
        for (text, found) in [
            ("https://user:hunter2hunter@github.com\n", vec!["hunter2hunter"]),
            ("machine github.com login somebody password hunter2hunter\n", vec!["hunter2hunter"]),
            ("//registry.npmjs.org/:_authToken=npm_hunterhunter\n", vec!["npm_hunterhunter"]),
            ("realm=Artifactory\nhost=example.com\nuser=me\npassword=hunter2hunter\n", vec!["hunter2hunter"]),
            (
                "github.com:\n  user: me\n  oauth_token: gho_16C7e42F292c6912E7710c838347Ae178B4a\n",
                vec!["gho_16C7e42F292c6912E7710c838347Ae178B4a"],
            ),
            (
                "aws_secret_access_key = wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY\n",
                vec!["wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"],
            ),
            // A short one, a name of a key that is no secret, and a long text of words.
            (
                "password=hunter2 publicKey: control-shift key: control-shift-page a-long-text-of-words-alone\n",
                vec![],
            ),
        ] {
            assert_eq!(texts(text), found, "{text}");
        }
    }

    /// A backup of one entry.
    fn backup_of(path: &str, files: &[(&str, &[u8])]) -> Secret {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o600);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        backup::test_backup(path, &builder.into_inner().unwrap())
    }

    fn known_names(state: &Folder) -> Vec<String> {
        let known = KnownValues::read(state).unwrap();
        known.map_or_else(Vec::new, |known| known.values().iter().map(|value| value.name.clone()).collect())
    }

    #[test]
    fn what_a_wipe_takes_becomes_known_once_and_histories_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let state = Folder::open(directory.path()).unwrap();
        let content = b"oauth_token: gho_16C7e42F292c6912E7710c838347Ae178B4a\n";
        let history = backup_of("/home/user/.bash_history", &[(".bash_history", content)]);
        assert_eq!(remember(&state, &history).unwrap(), []);
        assert_eq!(known_names(&state), [""; 0]);
        let backup =
            backup_of("/home/user/.config/gh", &[("gh/hosts.yml", content), ("gh/again.yml", content)]);
        for _ in 0..2 {
            assert_eq!(remember(&state, &backup).unwrap(), []);
            assert_eq!(known_names(&state), ["/home/user/.config/gh of the guest"]);
        }
        let written = std::fs::read(directory.path().join(crate::files::search::known::FILE)).unwrap();
        assert!(!String::from_utf8(written).unwrap().contains("gho_"));
    }

    #[test]
    fn what_is_too_large_or_too_much_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let state = Folder::open(directory.path()).unwrap();
        let reason = |backup: &Secret| match &remember(&state, backup).unwrap()[..] {
            [UnprovenPlace { place, reason }] => {
                assert_eq!(place, "/root/.x of the guest");
                reason.clone()
            }
            other => panic!("{other:?}"),
        };
        let large = vec![b'x'; MOST_OF_FILE + 1];
        assert!(reason(&backup_of("/root/.x", &[(".x", &large)])).contains("more than 256 KiB"));
        let many: Vec<(String, Vec<u8>)> = (0..100).map(|number| (format!("{number}"), vec![])).collect();
        let many: Vec<(&str, &[u8])> =
            many.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
        assert!(reason(&backup_of("/root/.x", &many)).contains("first 64 of its files"));
        let tokens: String = (0..100).map(|number| format!("token=hunter2hunter{number}\n")).collect();
        let crowded = backup_of("/root/.x", &[(".x", tokens.as_bytes())]);
        assert!(reason(&crowded).contains("first 64 of its credentials"));
        assert_eq!(known_names(&state).len(), MOST_VALUES);
        assert!(reason(&backup::test_backup("/root/.x", &[b'x'; 1024])).contains("cannot be read"));
    }

    #[test]
    fn a_guest_cannot_fill_the_list_of_known_values() {
        let directory = tempfile::tempdir().unwrap();
        let state = Folder::open(directory.path()).unwrap();
        let short = |number| NamedValue {
            name: format!("V{number}"),
            kind: ValueKind::Read,
            content: Secret::new(b"short".to_vec()),
        };
        KnownValues::remember(&state, &(0..MOST_KNOWN).map(short).collect::<Vec<_>>()).unwrap();
        let backup = backup_of("/root/.x", &[(".x", b"token=hunter2hunter2")]);
        let unproven = remember(&state, &backup).unwrap();
        assert!(unproven[0].reason.contains("1000 values are searched for already"), "{unproven:?}");
        assert_eq!(known_names(&state).len(), MOST_KNOWN);
    }
}
