//! Writes credentials into the guest, and checks whether the guest has them.
//!
//! nixbox sends the content of a file over a command's stdin, from which `cat` writes it. The content is therefore
//! never in an argument list, in a shell's variable or in a shell's temporary file. Before a file is written, its name
//! is added to [`LEDGER`] in the guest. The ledger lies on the guest's disk and is captured with it, so the ledger
//! always matches the files: [`super::wipe`] finds every file that was ever injected, even if the configuration has
//! changed since.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;

use super::credentials::{Credential, Digest};
use super::shell::{Rights, ScriptError, Shell, quoted};
use crate::world::{FileOwner, GuestHome, GuestPath, Presence};

/// The file below the user's home that lists the injected files, one name a line. It contains no credential.
pub const LEDGER: &str = ".nixbox-injected";
/// The SHA-256 of an empty file.
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// The suffix of a file's name while the file is written. [`super::wipe`] removes such files too.
pub(super) const UNFINISHED: &str = ".nixbox-new";

/// The time limit of one script that writes or reads a handful of files.
const LIMIT: Duration = Duration::from_secs(30);

/// Shell functions that the scripts of this module and of [`super::wipe`] share:
/// - `plain TEXT` prints a path of `/proc/mounts` without its escapes: the kernel writes a space as `\040`, and `%b`
///   needs `\0040`;
/// - `shared PATH` says whether an absolute path without symbolic links lies on a virtiofs share;
/// - `overwrite FILE…` writes zeros over the whole file and syncs it. If the file system writes the zeros to other
///   blocks, fstrim discards the old content later.
pub(super) const FUNCTIONS: &str = r#"
plain() { printf '%b' "$(printf '%s\n' "$1" | sed 's/\\\([0-7]\)/\\0\1/g')"; }
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
    chmod 600 "$f" || return 1
    s=$(wc -c < "$f") || return 1
    [ "$s" -eq 0 ] || e=$(dd if=/dev/zero of="$f" bs=4096 count=$(( (s + 4095) / 4096 )) conv=notrunc,fsync 2>&1) || {
      printf "%s\n" "$e" >&2; return 1
    }
  done
}'
eval "$OVERWRITE"
"#;

/// Writes stdin to the file `t` atomically. The script needs `t`, `owner`, `mode` and `size` to be set. It makes
/// missing directories above the file, with mode 0700 and the owner of the file.
const PLACE: &str = r#"
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
[ -L "$t" ] || [ ! -d "$t" ] || fail "$t is a directory"
parents "$t"
! shared "$(real_parent "$t")" || fail "$t lies on a share: it would be written to the host"
n=$t.nixbox-new
rm -f "$n" && set -C && cat > "$n" || fail "cannot write $n"
set +C
if [ "$(wc -c < "$n")" -ne "$size" ]; then overwrite "$n"; rm -f "$n"; fail "$t arrived cut short"; fi
chmod "$mode" "$n" && own "$n" || fail "cannot give $n its mode and owner"
if [ -L "$t" ]; then rm -f "$t"
elif [ -f "$t" ]; then overwrite "$t" || fail "cannot overwrite what $t held before"
fi
mv -f "$n" "$t" || fail "cannot rename $n"
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

/// The paths in the ledger of this guest. Lines that nixbox cannot have written are ignored.
///
/// # Errors
/// Any [`ScriptError`].
pub async fn ledger(shell: &Shell) -> Result<BTreeSet<GuestPath>, ScriptError> {
    let list = quoted(&shell.facts.home.join(LEDGER));
    let script = format!("[ ! -e {list} ] || cat {list}");
    let text = shell.script("read the list of injected files", Rights::User, &script, &[], LIMIT).await?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

/// Adds names to the ledger, before the files are written. New names are on the guest's disk when this returns, because a
/// VM that is killed may keep the files and lose the ledger, and then nixbox would not know its own files again.
async fn add_to_ledger(shell: &Shell, paths: &[String]) -> Result<(), ScriptError> {
    let list = quoted(&shell.facts.home.join(LEDGER));
    let names: Vec<_> = paths.iter().map(|path| quoted(path)).collect();
    let script = format!(
        "list={list}; new=; [ ! -L \"$list\" ] || rm -f \"$list\" || exit 1\nfor t in {}; do\n  \
         grep -qxF -- \"$t\" \"$list\" 2>/dev/null && continue\n  \
         printf '%s\\n' \"$t\" >> \"$list\" || exit 1\n  new=1\ndone\n\
         [ -z \"$new\" ] || sync \"$list\" 2>/dev/null || sync",
        names.join(" ")
    );
    shell.script("note what is injected", Rights::User, &script, &[], LIMIT).await.map(drop)
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

/// The credentials whose place in the guest holds something that nixbox did not write and that may not be overwritten.
/// nixbox wrote what is in the ledger, and nobody loses anything of a file that is empty or has the content of the
/// credential. Directories are left out, because no injection replaces them.
///
/// # Errors
/// Any [`ScriptError`].
pub async fn foreign(
    shell: &Shell,
    credentials: &[Credential],
    overwrite: &[GuestPath],
) -> Result<Vec<GuestPath>, ScriptError> {
    let home = &shell.facts.home;
    let noted: BTreeSet<_> = ledger(shell).await?.iter().map(|path| path.expand(home)).collect();
    let allowed: BTreeSet<_> = overwrite.iter().map(|path| path.expand(home)).collect();
    let mut foreign = Vec::new();
    for credential in credentials {
        let path = credential.target.expand(home);
        if noted.contains(&path) || allowed.contains(&path) {
            continue;
        }
        let status = file_status(shell, &path, rights(home, &path, credential.owner.as_ref())).await?;
        let is_foreign = |status: &GuestFileStatus| {
            let nothing_to_lose = [hex::encode(credential.digest()), EMPTY.to_owned()];
            !status.is_directory && !nothing_to_lose.contains(&status.digest)
        };
        if status.as_ref().is_some_and(is_foreign) {
            foreign.push(credential.target.clone());
        }
    }
    Ok(foreign)
}

/// Writes every credential to its file atomically. A file that nixbox wrote is overwritten, and so is a file that
/// `overwrite` names; any other file is left as it is.
///
/// # Errors
/// [`InjectError::Foreign`] names the files that were left as they are; all others were written. Any [`ScriptError`]:
/// files that were written before the error stay. They are in the ledger, and the next injection writes them again.
pub async fn inject(
    shell: &Shell,
    credentials: &[Credential],
    overwrite: &[GuestPath],
) -> Result<(), InjectError> {
    let foreign = foreign(shell, credentials, overwrite).await?;
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
    add_to_ledger(shell, &paths).await?;
    for (credential, path) in credentials.iter().zip(&paths) {
        let owner = credential.owner.as_ref();
        let rights = rights(home, path, owner);
        // A file that root writes belongs to the user unless the configuration names another owner.
        let owner = match (owner, rights) {
            (Some(owner), _) => owner.as_str().to_owned(),
            (None, Rights::Root) => shell.facts.ids.uid.to_string(),
            (None, Rights::User) => String::new(),
        };
        let content = credential.content.expose();
        let script = format!(
            "{FUNCTIONS}t={}; owner={}; mode={:o}; size={}\n{PLACE}",
            quoted(path),
            quoted(&owner),
            credential.mode,
            content.len(),
        );
        shell.script("put a credential into the guest", rights, &script, content, LIMIT).await?;
    }
    if paths.contains(&GuestPath::ENVIRONMENT.expand(home)) {
        shell
            .script(
                "have login shells read ~/.env",
                Rights::User,
                &format!("{LOGIN_FILES}{PROFILE}"),
                &[],
                LIMIT,
            )
            .await?;
    }
    Ok(())
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
///
/// # Errors
/// Any [`ScriptError`].
pub async fn presence(shell: &Shell, expected: &[Expected]) -> Result<Presence, ScriptError> {
    let home = &shell.facts.home;
    let mut seen = BTreeSet::new();
    let (mut there, mut right) = (0, 0);
    for file in expected {
        let path = file.target.expand(home);
        let answer = file_status(shell, &path, rights(home, &path, file.owner.as_ref())).await?;
        there += usize::from(answer.is_some());
        right += usize::from(answer.is_some_and(|answer| answer.is(file, shell.facts.ids.uid)));
        seen.insert(path);
    }
    let noted = ledger(shell).await?;
    let stray = noted.iter().any(|path| !seen.contains(path.as_str()));
    Ok(if right == expected.len() && !stray {
        Presence::Whole
    } else if there == 0 && noted.is_empty() {
        Presence::Absent
    } else {
        Presence::Partial
    })
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

/// The state of each of these files, of which the expected content may be unknown, and the files that nixbox has written besides.
///
/// # Errors
/// Any [`ScriptError`].
pub async fn states(
    shell: &Shell,
    files: &[(GuestPath, Option<Expected>)],
) -> Result<(Vec<CredentialState>, BTreeSet<GuestPath>), ScriptError> {
    let home = &shell.facts.home;
    let mut others = ledger(shell).await?;
    let mut states = Vec::new();
    for (target, expected) in files {
        let path = target.expand(home);
        let owner = expected.as_ref().and_then(|expected| expected.owner.as_ref());
        let status = file_status(shell, &path, rights(home, &path, owner)).await?;
        let is_target = |noted: &GuestPath| noted.expand(home) == path;
        let is_noted = others.iter().any(is_target);
        others.retain(|noted| !is_target(noted));
        states.push(match (status, expected) {
            (None, _) => CredentialState::Absent,
            (Some(status), Some(expected)) if status.is(expected, shell.facts.ids.uid) => {
                CredentialState::Given
            }
            (Some(_), _) if !is_noted => CredentialState::Foreign,
            (Some(_), Some(_)) => CredentialState::Outdated,
            (Some(_), None) => CredentialState::Unchecked,
        });
    }
    Ok((states, others))
}

/// The output of the guest's `stat` and `sha256sum` for a file, as text.
struct GuestFileStatus {
    is_directory: bool,
    mode: String,
    uid: String,
    owner: String,
    digest: String,
}

impl GuestFileStatus {
    fn is(&self, expected: &Expected, user: u32) -> bool {
        let owner = match &expected.owner {
            Some(owner) if owner.as_str().contains(':') => self.owner == owner.as_str(),
            Some(owner) => self.owner.split(':').next() == Some(owner.as_str()),
            None => self.uid == user.to_string(),
        };
        owner && self.mode == format!("{:o}", expected.mode) && self.digest == hex::encode(expected.digest)
    }
}

async fn file_status(
    shell: &Shell,
    path: &str,
    rights: Rights,
) -> Result<Option<GuestFileStatus>, ScriptError> {
    let what = "look at an injected file";
    // A program of the guest may remove the file between two commands.
    let script = format!(
        "t={}\n[ -e \"$t\" ] || [ -L \"$t\" ] || exit 0\nif [ -d \"$t\" ] && [ ! -L \"$t\" ]; then echo directory; else echo there; fi\nif [ -f \"$t\" ] && [ ! -L \"$t\" ]; then\n  \
         {{ stat -c '%a %u %U:%G' \"$t\" && sha256sum < \"$t\"; }} || [ ! -e \"$t\" ]\nfi",
        quoted(path)
    );
    let answer = shell.script(what, rights, &script, &[], LIMIT).await?;
    let mut words = answer.split_whitespace().map(str::to_owned);
    let Some(kind) = words.next() else {
        return Ok(None);
    };
    let is_directory = kind == "directory";
    let mut word = || words.next().unwrap_or_default();
    Ok(Some(GuestFileStatus { is_directory, mode: word(), uid: word(), owner: word(), digest: word() }))
}
