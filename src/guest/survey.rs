//! Looks at the places of the injected files in the guest: one script for all places that the user may see, and one for
//! those that root has to look at. Every script is a round trip to the guest, and several programs in it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::shell::{Rights, ScriptError, Shell, quoted};
use crate::world::GuestPath;

/// The file below the user's home that lists the injected files, one name a line. It contains no credential.
pub(super) const LEDGER: &str = ".nixbox-injected";

/// The time limit of one script.
const LIMIT: Duration = Duration::from_secs(30);

/// The shell function `look INDEX PATH` prints a line about the file at PATH. It prints nothing, and succeeds, if no file is
/// there, because a program of the guest may remove the file between two commands.
const LOOK: &str = r#"
look() {
  if [ -L "$2" ]; then echo "file $1 other"
  elif [ -d "$2" ]; then echo "file $1 directory"
  elif [ -f "$2" ]; then
    if s=$(stat -c '%a %u %U:%G' "$2") && d=$(sha256sum < "$2"); then echo "file $1 plain $s ${d%% *}"
    else [ ! -e "$2" ]
    fi
  elif [ -e "$2" ]; then echo "file $1 other"
  fi
}
"#;

/// What the guest says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum GuestFileStatus {
    /// A directory, and no symbolic link to one.
    Directory,
    /// A regular file: the output of `stat` and `sha256sum`, as text.
    Plain { mode: String, uid: String, owner: String, digest: String },
    /// A symbolic link, or a file of another kind.
    Other,
}

/// What is at the places that were looked at.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// The paths in the ledger. Lines that nixbox cannot have written are ignored.
    pub(super) noted: BTreeSet<GuestPath>,
    files: BTreeMap<String, GuestFileStatus>,
    existing: BTreeSet<String>,
}

impl Survey {
    /// What is at this place; `None` if nothing is.
    pub(super) fn at(&self, path: &str) -> Option<&GuestFileStatus> {
        self.files.get(path)
    }

    /// Whether this file, of which only that was asked, exists.
    pub(super) fn exists(&self, path: &str) -> bool {
        self.existing.contains(path)
    }

    fn hear(&mut self, told: &str, files: &[(String, Rights)], existence: &[&str]) {
        for line in told.lines() {
            let mut words = line.split(' ');
            let index = |word: Option<&str>| word.and_then(|word| word.parse::<usize>().ok());
            match words.next() {
                Some("noted") => {
                    self.noted.extend(line.strip_prefix("noted ").and_then(|path| path.parse().ok()))
                }
                Some("there") => {
                    let path = index(words.next()).and_then(|index| existence.get(index));
                    self.existing.extend(path.map(|path| (*path).to_owned()));
                }
                Some("file") => {
                    let Some((path, _)) = index(words.next()).and_then(|index| files.get(index)) else {
                        continue;
                    };
                    let kind = words.next();
                    let mut word = || words.next().unwrap_or_default().to_owned();
                    let status = match kind {
                        Some("directory") => GuestFileStatus::Directory,
                        Some("plain") => GuestFileStatus::Plain {
                            mode: word(),
                            uid: word(),
                            owner: word(),
                            digest: word(),
                        },
                        _ => GuestFileStatus::Other,
                    };
                    self.files.insert(path.clone(), status);
                }
                _ => {}
            }
        }
    }
}

/// Looks at the ledger, at these files, each with the rights that its place takes, and at the existence of others.
///
/// # Errors
/// Any [`ScriptError`].
pub(super) async fn survey(
    shell: &Shell,
    files: &[(String, Rights)],
    existence: &[&str],
) -> Result<Survey, ScriptError> {
    let what = "look at the injected files";
    let list = quoted(&shell.facts.home.join(LEDGER));
    let looks = |with: Rights| -> String {
        let files = files.iter().enumerate().filter(|(_, (_, rights))| *rights == with);
        files.map(|(index, (path, _))| format!("look {index} {} || exit 1\n", quoted(path))).collect()
    };
    let exists = existence.iter().enumerate();
    let exists: String =
        exists.map(|(index, path)| format!("[ ! -e {} ] || echo there {index}\n", quoted(path))).collect();
    let script = format!(
        "{LOOK}[ ! -e {list} ] || sed 's/^/noted /' {list} || exit 1\n{exists}{}",
        looks(Rights::User)
    );
    let mut survey = Survey::default();
    let told = shell.script(what, Rights::User, &script, &[], LIMIT).await?;
    survey.hear(&told, files, existence);
    let of_root = looks(Rights::Root);
    if !of_root.is_empty() {
        let told = shell.script(what, Rights::Root, &format!("{LOOK}{of_root}"), &[], LIMIT).await?;
        survey.hear(&told, files, existence);
    }
    Ok(survey)
}

/// The paths in the ledger of this guest. Lines that nixbox cannot have written are ignored.
///
/// # Errors
/// Any [`ScriptError`].
pub(super) async fn ledger(shell: &Shell) -> Result<BTreeSet<GuestPath>, ScriptError> {
    Ok(survey(shell, &[], &[]).await?.noted)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::Command;

    use super::*;
    use crate::testing::Need;

    #[test]
    fn lines_that_no_survey_prints_are_ignored() {
        let files = [("/a".to_owned(), Rights::User), ("/b c".to_owned(), Rights::Root)];
        let mut survey = Survey::default();
        let told = "noted ~/.env\nnoted relative\nnoted\nfile 1 plain 600 0 root:root ab\nfile 2 directory\nfile x other\n\
            file 0\nthere 0\nthere 7\nmotd of the guest\n";
        survey.hear(told, &files, &["/run/mark"]);
        assert_eq!(survey.noted.iter().map(ToString::to_string).collect::<Vec<_>>(), ["~/.env"]);
        let word = str::to_owned;
        assert_eq!(
            survey.at("/b c"),
            Some(&GuestFileStatus::Plain {
                mode: word("600"),
                uid: word("0"),
                owner: word("root:root"),
                digest: word("ab")
            })
        );
        assert_eq!(survey.at("/a"), Some(&GuestFileStatus::Other));
        assert!(survey.exists("/run/mark") && !survey.exists("/a"));
    }

    #[test]
    fn each_kind_of_file_is_told_in_each_shell() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("plain"), "text").unwrap();
        std::fs::set_permissions(path("plain"), std::fs::Permissions::from_mode(0o640)).unwrap();
        std::fs::create_dir(path("folder")).unwrap();
        symlink("plain", path("link")).unwrap();
        symlink("nowhere", path("dangling")).unwrap();
        let names = ["plain", "folder", "link", "dangling", "missing"];
        let files: Vec<_> = names.iter().map(|name| (path(name), Rights::User)).collect();
        let looks: String =
            (0..).zip(&files).map(|(index, (path, _))| format!("look {index} {}\n", quoted(path))).collect();
        for shell in [&["sh", "-c"][..], &["dash", "-c"], &["busybox", "ash", "-c"], &["bash", "-c"]] {
            if !Need::Program(shell[0]).is_there() {
                continue;
            }
            let mut process = Command::new(shell[0]);
            let output = process.args(&shell[1..]).arg(format!("{LOOK}{looks}")).output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{shell:?}: {output:?}");
            let mut survey = Survey::default();
            survey.hear(&String::from_utf8(output.stdout).unwrap(), &files, &[]);
            let Some(GuestFileStatus::Plain { mode, digest, .. }) = survey.at(&files[0].0) else {
                panic!("{shell:?}: {survey:?}")
            };
            assert_eq!((mode.as_str(), &digest[..8]), ("640", "982d9e3e"), "{shell:?}");
            assert_eq!(survey.at(&files[1].0), Some(&GuestFileStatus::Directory), "{shell:?}");
            for link in [&files[2], &files[3]] {
                assert_eq!(survey.at(&link.0), Some(&GuestFileStatus::Other), "{shell:?}");
            }
            assert_eq!(survey.at(&files[4].0), None, "{shell:?}");
        }
    }
}
