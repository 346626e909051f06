//! Copies what a wipe takes from a running guest, and gives it back.
//!
//! Histories, what `docker login` keeps, credential files that hold a known value, and what `credentials.wipe` lists belong
//! to the guest. Each of these *entries* is copied by the guest's own `tar`, so that a directory comes back with its links,
//! owners and modes, and nixbox unpacks no archive on the host: it hands to a guest what the same guest has made. An entry
//! that is a symbolic link counts for two, because the file that it leads to is removed as well.
//!
//! What the guest has written to the same place since stays: the content of the backup comes before it. Links are never
//! followed on the way back, and nothing is put onto a share. Sockets are removed by a wipe and do not come back, because no
//! archive can hold one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::channel::ChannelError;
use super::inject::{FUNCTIONS, rights};
use super::script_items::printable;
use super::shell::{Rights, ScriptError, Shell, quoted};
use super::survey::ledger;
use crate::world::{GuestPath, Secret};

/// The most bytes of a backup. It is held in memory, and beside the RAM of the VM.
pub const MOST: usize = 32 << 20;

/// How much an entry may grow between a look at its size and its copy.
const SLACK: usize = 1 << 20;

/// The time limit of one script, which copies an entry or looks at all of them.
const LIMIT: Duration = Duration::from_secs(60);

/// The suffix of the directory beside an entry in which its copy is unpacked.
pub(super) const UNPACKED: &str = ".nixbox-back";

/// Files below a home in which shells and other programs record typed input.
pub(super) const HISTORIES: [&str; 31] = [
    ".ash_history",
    ".bash_history",
    ".sh_history",
    ".zsh_history",
    ".histfile",
    ".python_history",
    ".node_repl_history",
    ".lesshst",
    ".viminfo",
    ".psql_history",
    ".mysql_history",
    ".mariadb_history",
    ".sqlite_history",
    ".rediscli_history",
    ".config/nushell/history.sqlite3",
    ".config/nushell/history.sqlite3-wal",
    ".config/nushell/history.txt",
    ".local/share/atuin/history.db",
    ".local/share/atuin/history.db-wal",
    ".local/share/fish/fish_history",
    ".local/state/bash/history",
    ".local/state/less/history",
    ".local/state/lesshst",
    ".local/state/mysql_history",
    ".local/state/node_repl_history",
    ".local/state/nvim/shada/main.shada",
    ".local/state/psql_history",
    ".local/state/python_history",
    ".local/state/sqlite_history",
    ".local/state/zsh/history",
    ".local/state/zsh_history",
];

/// Files below a home in which `docker login` and `podman login` keep what they were given.
const LOGINS: [&str; 2] = [".docker/config.json", ".config/containers/auth.json"];

/// Why the guest's files cannot be backed up or given back.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum BackupError {
    #[error(
        "{path} has {size} bytes, and what a snapshot removes from the running guest and gives back may have {MOST} bytes in \
         all: take it out of credentials.wipe, or remove from it what is no credential"
    )]
    TooLarge { path: String, size: usize },
    #[error("a snapshot would remove from the guest what it could not give back: {}", .0.join("; "))]
    NotCopied(Vec<String>),
    #[error("the backup of the guest's files is not one that nixbox wrote")]
    Senseless,
    #[error(transparent)]
    Script(#[from] ScriptError),
}

/// The shell function `archive PATH` writes an archive of a file or directory to stdout. The archive is the same as long as
/// the file is. GNU tar ends with 1 if a file was written to meanwhile; a comparison finds that out later.
const ARCHIVE: &str = r#"
case $(tar --version 2>/dev/null) in *GNU*) gnu=1 ;; *) gnu= ;; esac
archive() {
  tar -C "${1%/*}/" -cf - "./${1##*/}"
  s=$?
  [ "$s" -eq 0 ] || { [ "$s" -eq 1 ] && [ -n "$gnu" ]; }
}
is_there() { [ -e "$1" ] || [ -L "$1" ]; }
"#;

/// The shell function `look PATH` prints `size BYTES PATH` for each entry that PATH makes, and `why TEXT` if it cannot be
/// copied. An archive has a multiple of 512 bytes, and one byte more says here that it is whole.
const LOOK: &str = r#"
why() { printf 'why %s\n' "$1"; }
size() {
  n=$( (archive "$1" 2>/dev/null && printf x) | wc -c)
  [ "$((n % 512))" -eq 1 ] || { why "$1 cannot be copied by tar"; return; }
  printf 'size %s %s\n' "$((n - 1))" "$1"
}
look() {
  is_there "$1" || return 0
  command -v tar > /dev/null || { why "$1: the guest has no tar"; return; }
  ! shared "$(real_parent "$1")" || { why "$1 lies on a share and is the host's"; return; }
  if [ -L "$1" ]; then
    d=$(readlink -f "$1") || d=
    [ ! -f "$d" ] || shared "${d%/*}" || size "$d"
  elif [ -d "$1" ]; then
    r=$(readlink -f "$1")
    while read -r _ m _; do
      m=$(plain "$m")
      case $m/ in "$r"/*) why "$1: $m is mounted there"; return ;; esac
    done < /proc/mounts
  fi
  size "$1"
}
# A file that a person did not name is the host's where it lies on a share, and no part of a snapshot.
look_unless_shared() { ! is_there "$1" || shared "$(real_parent "$1")" || look "$1"; }
"#;

/// Unpacks the archive on stdin beside the entry `t` and merges it into its place. `ours` is a list of words: the files that
/// nixbox has injected, which are not given back.
const GIVE_BACK: &str = r#"
fail() { printf '%s\n' "$1" >&2; exit 1; }
begins_with() {
  n=$(wc -c < "$2")
  [ "$(head -c "$n" "$1" | sha256sum)" = "$(sha256sum < "$2")" ]
}
prepend() {
  m=$(stat -c %a "$1") && n=$(wc -c < "$2") && chmod 600 "$1" && head -c "$n" "$2" >> "$1" && chmod "$m" "$1" ||
    fail "cannot copy what was written to $2 since"
  rm -f "$w/since"
  ln "$2" "$w/since" 2>/dev/null
  mv -f "$1" "$2" || fail "cannot rename $1"
  # What a program has written to the file before it was replaced.
  [ ! -f "$w/since" ] || [ "$(wc -c < "$w/since")" -eq "$n" ] || tail -c "+$((n + 1))" "$w/since" >> "$2"
}
merge() {
  if ! is_there "$2"; then
    mv "$1" "$2" || fail "cannot rename $1"
  elif [ -L "$1" ] && [ -L "$2" ] && [ "$(readlink "$1")" = "$(readlink "$2")" ]; then
    :
  elif [ ! -L "$1" ] && [ ! -L "$2" ] && [ -d "$1" ] && [ -d "$2" ]; then
    for c in "$1"/* "$1"/.[!.]* "$1"/..?*; do
      ! is_there "$c" || merge "$c" "$2/${c##*/}"
    done
  elif [ ! -L "$1" ] && [ ! -L "$2" ] && [ -f "$1" ] && [ -f "$2" ]; then
    begins_with "$2" "$1" || prepend "$1" "$2"
  else
    # The guest has made something of another kind there. Both stay.
    rm -rf "$2.before-snapshot" && mv "$1" "$2.before-snapshot" || fail "cannot rename $1"
  fi
}
give_back() {
  p=${t%/*}
  while [ -n "$p" ] && [ ! -d "$p" ]; do p=${p%/*}; done
  ! shared "$(readlink -f "${p:-/}")" || fail "$t lies on a share: it would be written to the host"
  mkdir -p "${t%/*}/" || fail "cannot make the directory of $t"
  # The directory is the user's alone. The tar of busybox applies the umask to the modes in an archive.
  rm -rf "$w" && mkdir "$w" && (umask 0; tar -C "$w" -xpf -) || fail "cannot unpack $t"
  for o; do
    case $o in "$t"/*) rm -rf "$w/${t##*/}${o#"$t"}" ;; esac
  done
  ! is_there "$w/${t##*/}" || merge "$w/${t##*/}" "$t"
  rm -rf "$w"
}
"#;

/// What is in front of the archives, as one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BackupHeader {
    /// The files that nixbox had injected, some of which may be in a directory of the backup.
    ours: BTreeSet<String>,
    entries: Vec<BackupEntry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BackupEntry {
    path: String,
    /// Whether root copies and removes it.
    root: bool,
    /// The size of its archive.
    size: usize,
}

/// An entry of a backup, as a wipe needs it: where it is, and what its archive has to be.
#[derive(Debug)]
pub(super) struct BackedUp {
    pub(super) path: String,
    pub(super) rights: Rights,
    pub(super) digest: String,
}

/// What nixbox has injected into a guest, and what a wipe removes besides.
#[derive(Debug)]
pub(super) struct WipeTargets {
    pub(super) ours: BTreeSet<String>,
    pub(super) theirs: BTreeSet<String>,
    /// Those of `theirs` that a person has named.
    named: BTreeSet<String>,
}

impl WipeTargets {
    /// What is to be removed from this guest, where these files are `wanted` to be injected and `list` is to be wiped. A path
    /// that nixbox injects is only nixbox's own.
    ///
    /// # Errors
    /// Any [`ScriptError`].
    pub(super) async fn of(
        shell: &Shell,
        wanted: &[GuestPath],
        list: &[GuestPath],
    ) -> Result<Self, ScriptError> {
        let home = &shell.facts.home;
        let mut ours: BTreeSet<String> = ledger(shell).await?.iter().map(|path| path.expand(home)).collect();
        ours.extend(wanted.iter().map(|path| path.expand(home)));
        let named: BTreeSet<String> = list.iter().map(|path| path.expand(home)).collect();
        let of_root = HISTORIES.iter().map(|name| shell.facts.root_home.join(name));
        let known = HISTORIES.iter().chain(&LOGINS).map(|name| home.join(name)).chain(of_root);
        let theirs = named.iter().cloned().chain(known).filter(|path| !ours.contains(path)).collect();
        Ok(Self { ours, theirs, named })
    }
}

/// Finds the entries that are there, with the sizes of their archives.
async fn look(shell: &Shell, targets: &WipeTargets) -> Result<Vec<BackupEntry>, BackupError> {
    let mut entries = BTreeMap::new();
    let mut reasons = Vec::new();
    for with in [Rights::User, Rights::Root] {
        let is = |path: &&String| rights(&shell.facts.home, path, None) == with;
        let look = |path: &String| {
            let function = if targets.named.contains(path) { "look" } else { "look_unless_shared" };
            format!("{function} {}\n", quoted(path))
        };
        let calls: String = targets.theirs.iter().filter(is).map(look).collect();
        if calls.is_empty() {
            continue;
        }
        let script = format!("{FUNCTIONS}{ARCHIVE}{LOOK}{calls}");
        let told = shell.script("look at what a wipe removes", with, &script, &[], LIMIT).await;
        let told = match told {
            // Nobody has asked for what only root can see. The wipe says that it needs root.
            Err(ScriptError::NoRights { .. }) if !targets.named.iter().any(|path| is(&path)) => continue,
            told => told?,
        };
        for line in told.lines() {
            if let Some(reason) = line.strip_prefix("why ") {
                reasons.push(printable(reason, 300));
                continue;
            }
            let size = line.strip_prefix("size ").and_then(|rest| rest.split_once(' '));
            let (size, path) = size.ok_or(BackupError::Senseless)?;
            let size = size.parse().map_err(|_| BackupError::Senseless)?;
            if !targets.ours.contains(path) {
                let entry = BackupEntry { path: path.to_owned(), root: with == Rights::Root, size };
                entries.entry(path.to_owned()).or_insert(entry);
            }
        }
    }
    if !reasons.is_empty() {
        return Err(BackupError::NotCopied(reasons));
    }
    let entries: Vec<_> = entries.into_values().collect();
    let all = entries.iter().fold(0_usize, |sum, entry| sum.saturating_add(entry.size));
    match entries.iter().max_by_key(|entry| entry.size) {
        Some(largest) if all > MOST => {
            Err(BackupError::TooLarge { path: largest.path.clone(), size: largest.size })
        }
        _ => Ok(entries),
    }
}

/// How many bytes a backup would have now.
///
/// # Errors
/// [`BackupError`] says what cannot be backed up, and why.
pub async fn measure(shell: &Shell, wanted: &[GuestPath], list: &[GuestPath]) -> Result<u64, BackupError> {
    let targets = WipeTargets::of(shell, wanted, list).await?;
    Ok(look(shell, &targets).await?.iter().map(|entry| entry.size as u64).sum())
}

/// Copies what a wipe would remove and nixbox did not write; `None` if there is nothing.
///
/// # Errors
/// The errors of [`measure`].
pub async fn back_up(
    shell: &Shell,
    wanted: &[GuestPath],
    list: &[GuestPath],
) -> Result<Option<Secret>, BackupError> {
    let targets = WipeTargets::of(shell, wanted, list).await?;
    let mut entries = look(shell, &targets).await?;
    if entries.is_empty() {
        return Ok(None);
    }
    let mut archives = Vec::with_capacity(entries.len());
    for entry in &mut entries {
        let most = MOST.min(entry.size.saturating_add(SLACK));
        let archive = archive(shell, entry, most).await?;
        entry.size = archive.len();
        archives.push(archive);
    }
    let header = serde_json::to_vec(&BackupHeader { ours: targets.ours, entries });
    let header = header.map_err(|_| BackupError::Senseless)?;
    let size = archives.iter().fold(header.len() + 1, |sum, archive| sum + archive.len());
    // With its capacity from the start the content is never moved, which would leave a copy behind.
    let mut whole = Vec::with_capacity(size);
    whole.extend_from_slice(&header);
    whole.push(b'\n');
    archives.iter().for_each(|archive| whole.extend_from_slice(archive));
    Ok(Some(Secret::new(whole)))
}

async fn archive(shell: &Shell, entry: &BackupEntry, most: usize) -> Result<Zeroizing<Vec<u8>>, ScriptError> {
    let what = "copy what a wipe removes";
    let script = format!("{ARCHIVE}archive {}", quoted(&entry.path));
    let copied = async { shell.converse(what, entry.rights(), &script).await?.read_to_end(most).await };
    let silent = ChannelError::Silent { doing: "running a command", limit: LIMIT };
    timeout(LIMIT, copied).await.unwrap_or(Err(ScriptError::Channel { what, source: silent }))
}

impl BackupEntry {
    fn rights(&self) -> Rights {
        if self.root { Rights::Root } else { Rights::User }
    }
}

/// A backup that was parsed.
struct ParsedBackup<'a> {
    ours: BTreeSet<String>,
    /// Each entry with its archive.
    entries: Vec<(BackupEntry, &'a [u8])>,
}

fn parse(backup: &Secret) -> Result<ParsedBackup<'_>, BackupError> {
    let bytes = backup.expose();
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(BackupError::Senseless)?;
    let header: BackupHeader = serde_json::from_slice(&bytes[..end]).map_err(|_| BackupError::Senseless)?;
    let mut rest = &bytes[end + 1..];
    let mut entries = Vec::with_capacity(header.entries.len());
    for entry in header.entries {
        let (archive, after) = rest.split_at_checked(entry.size).ok_or(BackupError::Senseless)?;
        rest = after;
        entries.push((entry, archive));
    }
    let parsed = ParsedBackup { ours: header.ours, entries };
    if rest.is_empty() { Ok(parsed) } else { Err(BackupError::Senseless) }
}

/// The entries of a backup, each with the digest that `sha256sum` in the guest prints for its archive.
///
/// # Errors
/// [`BackupError::Senseless`].
pub(super) fn entries(backup: Option<&Secret>) -> Result<Vec<BackedUp>, BackupError> {
    let Some(backup) = backup else {
        return Ok(Vec::new());
    };
    let ParsedBackup { entries, .. } = parse(backup)?;
    let backed_up = |(entry, archive): (BackupEntry, &[u8])| BackedUp {
        rights: entry.rights(),
        path: entry.path,
        digest: hex::encode(Sha256::digest(archive)),
    };
    Ok(entries.into_iter().map(backed_up).collect())
}

/// Each entry of a backup: its path in the guest, and its archive.
///
/// # Errors
/// [`BackupError::Senseless`].
pub(super) fn archives(backup: &Secret) -> Result<Vec<(String, &[u8])>, BackupError> {
    let ParsedBackup { entries, .. } = parse(backup)?;
    Ok(entries.into_iter().map(|(entry, archive)| (entry.path, archive)).collect())
}

/// Whether a path of the guest is that of a history.
pub(super) fn is_history(path: &str) -> bool {
    HISTORIES.iter().any(|name| path.strip_suffix(name).is_some_and(|home| home.ends_with('/')))
}

/// A backup of one entry.
#[cfg(test)]
pub(super) fn test_backup(path: &str, archive: &[u8]) -> Secret {
    let entry = BackupEntry { path: path.to_owned(), root: false, size: archive.len() };
    let header = BackupHeader { ours: BTreeSet::new(), entries: vec![entry] };
    let header = serde_json::to_vec(&header).unwrap_or_default();
    Secret::new([&header, &b"\n"[..], archive].concat())
}

/// The shell functions of a comparison. `is_same PATH DIGEST` says whether the archive of PATH has that digest; with an
/// empty DIGEST, whether there is nothing.
pub(super) fn comparison() -> String {
    let is_same = r#"
is_same() {
  if ! is_there "$1"; then [ -z "$2" ]; return; fi
  [ -n "$2" ] && [ "$(archive "$1" 2>/dev/null | sha256sum)" = "$2  -" ]
}
"#;
    format!("{ARCHIVE}{is_same}")
}

/// Whether all that a wipe would remove and nixbox did not write is as in the backup.
///
/// # Errors
/// Any [`ScriptError`].
pub(super) async fn is_current(
    shell: &Shell,
    targets: &WipeTargets,
    entries: &[BackedUp],
) -> Result<bool, ScriptError> {
    let absent = targets.theirs.iter().filter(|path| !entries.iter().any(|entry| entry.path == **path));
    let absent = absent.map(|path| (path, rights(&shell.facts.home, path, None), ""));
    // What is not in the backup and lies on a share is left there.
    let call = |path: &str, digest: &str| match digest {
        "" => format!("! is_there {0} || shared \"$(real_parent {0})\"", quoted(path)),
        digest => format!("is_same {} {digest}", quoted(path)),
    };
    let there = entries.iter().map(|entry| (&entry.path, entry.rights, entry.digest.as_str()));
    let all: Vec<_> = absent.chain(there).collect();
    for with in [Rights::User, Rights::Root] {
        let calls: String = all
            .iter()
            .filter(|(_, rights, _)| *rights == with)
            .map(|(path, _, digest)| format!("{} || {{ echo changed; exit; }}\n", call(path, digest)))
            .collect();
        if calls.is_empty() {
            continue;
        }
        let script = format!("{FUNCTIONS}{}{calls}", comparison());
        let told = shell.script("compare what a wipe removes", with, &script, &[], LIMIT).await;
        let seen = |(path, rights, digest): &(&String, Rights, &str)| {
            *rights == with && (!digest.is_empty() || targets.named.contains(*path))
        };
        let told = match told {
            Err(ScriptError::NoRights { .. }) if !all.iter().any(seen) => continue,
            told => told?,
        };
        if !told.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Gives back what is in the backup, before what was written to the same files since. What was injected is not given back.
/// All is on the guest's disk when this returns.
///
/// # Errors
/// [`BackupError::Senseless`] or a [`ScriptError`]; what was given back before stays.
pub async fn give_back(shell: &Shell, backup: &Secret) -> Result<(), BackupError> {
    let ParsedBackup { ours, entries } = parse(backup)?;
    let ours: Vec<_> = ours.iter().map(|path| quoted(path)).collect();
    for (entry, archive) in entries {
        let script = format!(
            "{FUNCTIONS}{ARCHIVE}{GIVE_BACK}t={}; w=$t{UNPACKED}\ngive_back {}\n",
            quoted(&entry.path),
            ours.join(" ")
        );
        shell.script("give back what a wipe has removed", entry.rights(), &script, archive, LIMIT).await?;
    }
    shell.script("write to disk what was given back", Rights::User, "sync", &[], LIMIT).await?;
    Ok(())
}
