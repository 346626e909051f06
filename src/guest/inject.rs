//! Writes credentials into the guest, and checks whether the guest has them.
//!
//! nixbox sends the contents of the files over a command's stdin, from which `dd` writes them, one after the other. A content is
//! therefore never in an argument list, in a shell's variable or in a shell's temporary file. All files that the user may write
//! are written by one script, and all others by one that runs as root, because each script costs a round trip and several
//! programs.
//!
//! Before a file is written, its name is added to [`LEDGER`] in the guest. The ledger lies on the guest's disk and is captured
//! with it, so the ledger always matches the files: [`super::wipe`] finds every file that was ever injected, even if the
//! configuration has changed since.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;
use zeroize::Zeroizing;

use super::credentials::{Credential, Digest};
use super::shell::{Rights, ScriptError, Shell, quoted};
use super::survey::{self, GuestFileStatus, LEDGER, Survey};
use crate::world::{FileOwner, GuestHome, GuestPath, Presence};

/// The SHA-256 of an empty file.
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// The suffix of a file's name while the file is written. [`super::wipe`] removes such files too.
pub(super) const UNFINISHED: &str = ".nixbox-new";

/// The time limit of one script that writes or reads a handful of files.
const LIMIT: Duration = Duration::from_secs(30);

/// Shell functions that the scripts of this module and of [`super::wipe`] share:
/// - `plain TEXT` prints a path of `/proc/mounts` without its escapes: the kernel writes a space as `\040`, and `%b`
///   needs `\0040`;
/// - `has_shares` says whether any virtiofs share is mounted;
/// - `shared PATH` says whether an absolute path without symbolic links lies on a virtiofs share;
/// - `overwrite FILE…` writes zeros over the whole file and syncs it. If the file system writes the zeros to other
///   blocks, fstrim discards the old content later.
pub(super) const FUNCTIONS: &str = r#"
plain() { printf '%b' "$(printf '%s\n' "$1" | sed 's/\\\([0-7]\)/\\0\1/g')"; }
has_shares() {
  while read -r _ m f _; do [ "$f" != virtiofs ] || return 0; done < /proc/mounts
  return 1
}
shared() {
  while read -r _ m f _; do
    [ "$f" = virtiofs ] || continue
    m=$(plain "$m")
    case "$1/" in "$m"/*) return 0 ;; esac
  done < /proc/mounts
  return 1
}
real_parent() { p=${1%/*}; readlink -f "${p:-/}"; }
OVERWRITE='overwrite() {
  for f; do
    [ -s "$f" ] || continue
    [ -r "$f" ] && [ -w "$f" ] || chmod 600 "$f" || return 1
    s=$(wc -c < "$f") || return 1
    e=$(dd if=/dev/zero of="$f" bs=4096 count=$(( (s + 4095) / 4096 )) conv=notrunc,fsync 2>&1) || {
      printf "%s\n" "$e" >&2; return 1
    }
  done
}'
eval "$OVERWRITE"
"#;

/// The shell function `put TARGET OWNER MODE SIZE` writes the next SIZE bytes of stdin to the file TARGET atomically. It makes
/// missing directories above the file, with mode 0700 and the owner of the file. A `dd` with `count=1` reads once, and takes no
/// byte of the next file from a pipe.
const PUT: &str = r#"
fail() { printf '%s\n' "$1" >&2; exit 1; }
own() { [ -z "$owner" ] || chown -h "$owner" "$1"; }
parents() {
  p=${1%/*}
  while [ -n "$p" ] && [ ! -d "$p" ]; do set -- "$p" "$@"; p=${p%/*}; done
  while [ $# -gt 1 ]; do
    mkdir -m 700 "$1" 2>/dev/null && own "$1" || [ -d "$1" ] || fail "cannot make the directory $1"
    shift
  done
}
take() {
  got=0
  while [ "$got" -lt "$size" ]; do
    e=$(dd bs=$((size - got)) count=1 2>&1 >&3) || { printf '%s\n' "$e" >&2; return 1; }
    now=$(wc -c < "$n") || return 1
    [ "$now" -gt "$got" ] || break
    got=$now
  done
}
put() (
  t=$1; owner=$2; mode=$3; size=$4
  [ -L "$t" ] || [ ! -d "$t" ] || fail "$t is a directory"
  parents "$t"
  ! has_shares || ! shared "$(real_parent "$t")" || fail "$t lies on a share: it would be written to the host"
  n=$t.nixbox-new
  if [ -e "$n" ] || [ -L "$n" ]; then rm -f "$n" || fail "cannot remove $n"; fi
  set -C; take 3> "$n" || fail "cannot write $n"
  set +C
  if [ "$got" -ne "$size" ]; then overwrite "$n"; rm -f "$n"; fail "$t arrived cut short"; fi
  chmod "$mode" "$n" && own "$n" || fail "cannot give $n its mode and owner"
  if [ -L "$t" ]; then rm -f "$t"
  elif [ -f "$t" ]; then overwrite "$t" || fail "cannot overwrite what $t held before"
  fi
  mv -f "$n" "$t" || fail "cannot rename $n"
)
"#;

/// The shell function `each_login_file FUNCTION` calls FUNCTION with each file that login shells read and that lacks the
/// line which sources `~/.env`. bash reads `.profile` only if `.bash_profile` and `.bash_login` do not exist.
pub(super) const LOGIN_FILES: &str = r#"
line='[ ! -r "$HOME/.env" ] || . "$HOME/.env" # nixbox: the environment of the workspace'
each_login_file() {
  for f in .profile .bash_profile .bash_login .zprofile; do
    case $f in
      .profile) ;;
      .zprofile) case ${SHELL:-} in */zsh) ;; *) [ -f "$HOME/$f" ] || continue ;; esac ;;
      *) [ -f "$HOME/$f" ] || continue ;;
    esac
    grep -qxF -- "$line" "$HOME/$f" 2>/dev/null || "$1" "$HOME/$f"
  done
}
"#;

/// Adds the line to those files.
const PROFILE: &str = r#"
umask 022
add() {
  [ ! -s "$1" ] || [ -z "$(tail -c 1 "$1")" ] || echo >> "$1" || exit 1
  printf '%s\n' "$line" >> "$1" || exit 1
}
each_login_file add
"#;

/// The rights with which a file is written or removed: the user's rights in the user's home, and root's rights
/// elsewhere.
pub(super) fn rights(home: &GuestHome, path: &str, owner: Option<&FileOwner>) -> Rights {
    if home.holds(path) && owner.is_none() { Rights::User } else { Rights::Root }
}

/// A script that adds names to the ledger. New names are on the guest's disk before a file is written, because a VM that is
/// killed may keep the files and lose the ledger, and then nixbox would not know its own files again.
fn add_to_ledger(home: &GuestHome, paths: &[String]) -> String {
    let names: Vec<_> = paths.iter().map(|path| quoted(path)).collect();
    format!(
        "list={}; new=; [ ! -L \"$list\" ] || rm -f \"$list\" || exit 1\nfor t in {}; do\n  \
         grep -qxF -- \"$t\" \"$list\" 2>/dev/null && continue\n  \
         printf '%s\\n' \"$t\" >> \"$list\" || exit 1\n  new=1\ndone\n\
         if [ -n \"$new\" ]; then sync \"$list\" 2>/dev/null || sync || exit 1; fi\n",
        quoted(&home.join(LEDGER)),
        names.join(" ")
    )
}

/// Why a guest has not all of its credentials.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum InjectError {
    #[error(
        "nixbox did not write {} in the guest, and leaves it as it is: move it away, or name it in \
         credentials.overwrite in the configuration", list(.0)
    )]
    Foreign(Vec<GuestPath>),
    #[error(transparent)]
    Script(#[from] ScriptError),
}

/// Paths as a person writes them in the configuration.
pub(super) fn list(paths: &[GuestPath]) -> String {
    paths.iter().map(GuestPath::to_string).collect::<Vec<_>>().join(", ")
}

/// Looks at the ledger and at the place of each credential, and at the existence of other files.
///
/// # Errors
/// Any [`ScriptError`].
pub(super) async fn survey(
    shell: &Shell,
    credentials: &[Credential],
    existence: &[&str],
) -> Result<Survey, ScriptError> {
    let place = |credential: &Credential| {
        let path = credential.target.expand(&shell.facts.home);
        let rights = rights(&shell.facts.home, &path, credential.owner.as_ref());
        (path, rights)
    };
    let places: Vec<_> = credentials.iter().map(place).collect();
    survey::survey(shell, &places, existence).await
}

/// Whether nixbox has written files to this guest that are not wanted any more.
pub(super) fn has_strays(survey: &Survey, home: &GuestHome, wanted: &[GuestPath]) -> bool {
    let wanted: BTreeSet<_> = wanted.iter().map(|path| path.expand(home)).collect();
    survey.noted.iter().any(|noted| !wanted.contains(&noted.expand(home)))
}

/// The credentials whose place in the guest holds something that nixbox did not write and that may not be overwritten.
/// nixbox wrote what is in the ledger, and nobody loses anything of a file that is empty or has the content of the
/// credential. Directories are left out, because no injection replaces them.
pub(super) fn foreign(
    survey: &Survey,
    home: &GuestHome,
    credentials: &[Credential],
    overwrite: &[GuestPath],
) -> Vec<GuestPath> {
    let noted: BTreeSet<_> = survey.noted.iter().map(|path| path.expand(home)).collect();
    let allowed: BTreeSet<_> = overwrite.iter().map(|path| path.expand(home)).collect();
    let is_foreign = |credential: &&Credential| {
        let path = credential.target.expand(home);
        let loses = match survey.at(&path) {
            None | Some(GuestFileStatus::Directory) => false,
            Some(GuestFileStatus::Other) => true,
            Some(GuestFileStatus::Plain { digest, .. }) => {
                *digest != hex::encode(credential.digest()) && digest != EMPTY
            }
        };
        loses && !noted.contains(&path) && !allowed.contains(&path)
    };
    credentials.iter().filter(is_foreign).map(|credential| credential.target.clone()).collect()
}

/// Writes every credential to its file atomically. A file that nixbox wrote, by the `survey` of the guest, is overwritten, and so
/// is a file that `overwrite` names; any other file is left as it is.
///
/// # Errors
/// [`InjectError::Foreign`] names the files that were left as they are; all others were written. Any [`ScriptError`]:
/// files that were written before the error stay. They are in the ledger, and the next injection writes them again.
pub(super) async fn inject(
    shell: &Shell,
    survey: &Survey,
    credentials: &[Credential],
    overwrite: &[GuestPath],
) -> Result<(), InjectError> {
    let foreign = foreign(survey, &shell.facts.home, credentials, overwrite);
    let credentials: Vec<_> = credentials.iter().filter(|one| !foreign.contains(&one.target)).collect();
    write(shell, &credentials).await?;
    if foreign.is_empty() { Ok(()) } else { Err(InjectError::Foreign(foreign)) }
}

async fn write(shell: &Shell, credentials: &[&Credential]) -> Result<(), ScriptError> {
    if credentials.is_empty() {
        return Ok(());
    }
    let home = &shell.facts.home;
    let paths: Vec<_> = credentials.iter().map(|credential| credential.target.expand(home)).collect();
    let files = || credentials.iter().zip(&paths);
    for with in [Rights::User, Rights::Root] {
        let files = files().filter(|(one, path)| rights(home, path, one.owner.as_ref()) == with);
        let files: Vec<_> = files.collect();
        let puts: String =
            files.iter().map(|(one, path)| put(one, path, with, shell.facts.ids.uid)).collect();
        let mut script = format!("{FUNCTIONS}{PUT}{puts}");
        if with == Rights::User {
            script = add_to_ledger(home, &paths) + &script;
            if paths.contains(&GuestPath::ENVIRONMENT.expand(home)) {
                script += &format!("{LOGIN_FILES}{PROFILE}");
            }
        } else if files.is_empty() {
            continue;
        }
        // A buffer that grew would leave copies of credentials behind.
        let size = files.iter().map(|(one, _)| one.content.expose().len()).sum();
        let mut contents = Zeroizing::new(Vec::with_capacity(size));
        files.iter().for_each(|(one, _)| contents.extend_from_slice(one.content.expose()));
        let limit = LIMIT.saturating_mul(1 + u32::try_from(files.len()).unwrap_or(u32::MAX));
        shell.script("put credentials into the guest", with, &script, &contents, limit).await?;
    }
    Ok(())
}

/// The line of a script that takes the content of this credential from stdin. A file that root writes belongs to the user
/// unless the configuration names another owner.
fn put(credential: &Credential, path: &str, with: Rights, user: u32) -> String {
    let owner = match (&credential.owner, with) {
        (Some(owner), _) => owner.as_str().to_owned(),
        (None, Rights::Root) => user.to_string(),
        (None, Rights::User) => String::new(),
    };
    let size = credential.content.expose().len();
    format!("put {} {} {:o} {size} || exit 1\n", quoted(path), quoted(&owner), credential.mode)
}

/// The expected state of an injected file.
#[derive(Debug, Clone)]
pub struct Expected {
    /// The path in the guest.
    pub target: GuestPath,
    /// The owner; the guest's user if `None`.
    pub owner: Option<FileOwner>,
    /// The file mode.
    pub mode: u32,
    /// The digest of the content.
    pub digest: Digest,
}

impl From<&Credential> for Expected {
    fn from(credential: &Credential) -> Self {
        let Credential { target, owner, mode, .. } = credential;
        Self { target: target.clone(), owner: owner.clone(), mode: *mode, digest: credential.digest() }
    }
}

/// Whether all, some or none of the expected files exist with the expected owner, mode and content. A file in the
/// ledger that is not expected makes the answer `Partial`; if no file is expected and none is in the ledger, the answer
/// is `Whole`.
pub(super) fn presence(survey: &Survey, home: &GuestHome, user: u32, expected: &[Expected]) -> Presence {
    let mut seen = BTreeSet::new();
    let (mut there, mut right) = (0, 0);
    for file in expected {
        let path = file.target.expand(home);
        let status = survey.at(&path);
        there += usize::from(status.is_some());
        right += usize::from(status.is_some_and(|status| file.is(status, user)));
        seen.insert(path);
    }
    let stray = survey.noted.iter().any(|path| !seen.contains(&path.expand(home)));
    if right == expected.len() && !stray {
        Presence::Whole
    } else if there == 0 && survey.noted.is_empty() {
        Presence::Absent
    } else {
        Presence::Partial
    }
}

impl Expected {
    fn is(&self, status: &GuestFileStatus, user: u32) -> bool {
        let GuestFileStatus::Plain { mode, uid, owner, digest } = status else { return false };
        let is_owner = match &self.owner {
            Some(expected) if expected.as_str().contains(':') => owner == expected.as_str(),
            Some(expected) => owner.split(':').next() == Some(expected.as_str()),
            None => *uid == user.to_string(),
        };
        is_owner && *mode == format!("{:o}", self.mode) && *digest == hex::encode(self.digest)
    }
}

/// How the file of a credential is in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CredentialState {
    /// The guest has the credential as it is today.
    Given,
    /// nixbox wrote the file, and its content, mode or owner is another one: the credential was renewed since, or the guest
    /// has changed the file.
    Outdated,
    /// The file is there, and nixbox did not write it.
    Foreign,
    /// There is no such file.
    Absent,
    /// nixbox wrote the file. Whether it is as it should be today is not known.
    Unchecked,
}

/// The state of this file, of which the expected content may be unknown.
pub(super) fn state(
    survey: &Survey,
    home: &GuestHome,
    user: u32,
    (target, expected): (&GuestPath, Option<&Expected>),
) -> CredentialState {
    let path = target.expand(home);
    let is_noted = survey.noted.iter().any(|noted| noted.expand(home) == path);
    match (survey.at(&path), expected) {
        (None, _) => CredentialState::Absent,
        (Some(status), Some(expected)) if expected.is(status, user) => CredentialState::Given,
        (Some(_), _) if !is_noted => CredentialState::Foreign,
        (Some(_), Some(_)) => CredentialState::Outdated,
        (Some(_), None) => CredentialState::Unchecked,
    }
}
