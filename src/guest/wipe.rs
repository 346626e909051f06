//! Removes credentials from the guest's files and from its kernel's page cache.
//!
//! nixbox overwrites and removes these files: every file in the ledger, every file that the configuration wants injected,
//! the configuration's wipe list, the histories of shells and other programs, what `docker login` keeps, and the credential
//! files that hold a known value. Then the page cache is dropped and free blocks are trimmed. nixbox cannot reach memory
//! that processes have freed: the guest's kernel has to zero that memory (`init_on_free=1`).

use std::collections::BTreeSet;
use std::time::Duration;

use super::backup::{self, BackedUp, BackupError, UNPACKED, WipeTargets};
use super::inject::{FUNCTIONS, UNFINISHED, rights};
use super::script_items::printable;
use super::shell::{Rights, ScriptError, Shell, quoted};
use super::survey::{LEDGER, ledger};
use crate::world::{GuestPath, Secret};

/// The time limit for removing files, which may include large directories.
const REMOVE_LIMIT: Duration = Duration::from_secs(60);

/// The time limit for sync and fstrim.
const FLUSH_LIMIT: Duration = Duration::from_secs(120);

/// Why a guest may still contain credentials.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum WipeError {
    #[error("not removed from the guest: {}{}", .left.join(", "), reasons(.why))]
    Left { left: Vec<String>, why: String },
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error(transparent)]
    Script(#[from] ScriptError),
}

fn reasons(why: &str) -> String {
    if why.is_empty() { String::new() } else { format!(" ({why})") }
}

/// The shell function `forget PATH` overwrites and removes a file or a directory, and succeeds if PATH does not exist. A
/// symbolic link is removed and not followed. `forget` never touches a share and never crosses a mount.
const FORGET: &str = r#"
no() { printf '%s: %s\n' "$1" "$2"; return 1; }
forget() {
  [ -e "$1" ] || [ -L "$1" ] || return 0
  ! shared "$(real_parent "$1")" || no "$1" 'lies on a share and is the host'\''s' || return 1
  if [ -L "$1" ]; then
    rm -f "$1"
  elif [ -d "$1" ]; then
    r=$(readlink -f "$1") || return 1
    while read -r _ m _; do
      m=$(plain "$m")
      case $m/ in "$r"/*) no "$1" "$m is mounted there" || return 1 ;; esac
    done < /proc/mounts
    e=$(find "$1" -xdev -type f -exec sh -c "$OVERWRITE"'
overwrite "$@"' sh {} + 2>&1 && rm -rf "$1" 2>&1) || no "$1" "$e" || return 1
  elif [ -f "$1" ]; then
    e=$(overwrite "$1" 2>&1 && rm -f "$1" 2>&1) || no "$1" "$e" || return 1
  else
    rm -f "$1"
  fi
  [ ! -e "$1" ] && [ ! -L "$1" ]
}
# Each line of an answer begins with a word of its own, so that no path can be mistaken for another answer.
left() { printf 'left %s\n' "$1"; printf '%s\n' "$2" | sed 's/^/why /'; }
try() { w=$(forget "$1" 2>&1) || left "$1" "$w"; }
# The guest may write to its own file at any time: it is looked at once more just before it is removed.
try_same() {
  # What lies in another entry has gone with it.
  is_there "$1" || return 0
  if is_same "$1" "$2"; then try "$1"; else left "$1" "$1: the guest has just written to it"; fi
}
"#;

/// Drops caches and trims the file systems. A device that cannot discard blocks is no error.
const FLUSH: &str = r#"
sync || exit 1
echo 3 > /proc/sys/vm/drop_caches || exit 1
command -v fstrim > /dev/null || exit 0
while read -r _ m f o _; do
  case $f in ext[234]|xfs|btrfs|f2fs) ;; *) continue ;; esac
  case ,$o, in *,ro,*) continue ;; esac
  e=$(fstrim "$(plain "$m")" 2>&1) && continue
  case $e in *'ot supported'*|*'nappropriate ioctl'*) ;; *) printf '%s\n' "$e" >&2; exit 1 ;; esac
done < /proc/mounts
"#;

/// Removes every injected file, every file that is `wanted` to be injected, the histories of shells, and everything in
/// `list`. Then drops caches and trims the file systems. Returns `false`, and has removed nothing, if what nixbox did not
/// write is not as in the backup.
///
/// # Errors
/// [`WipeError::Left`] names every file that could not be removed; all others are removed.
pub async fn wipe(
    shell: &Shell,
    wanted: &[GuestPath],
    list: &[GuestPath],
    backup: Option<&Secret>,
) -> Result<bool, WipeError> {
    let targets = WipeTargets::of(shell, wanted, list).await?;
    let theirs = backup::entries(backup)?;
    if !backup::is_current(shell, &targets, &theirs).await? {
        return Ok(false);
    }
    let WipeTargets { mut ours, theirs: places, .. } = targets;
    // A VM that was lost may have left an entry half given back.
    ours.extend(places.into_iter().map(|path| path + UNPACKED));
    remove(shell, &ours, &theirs).await?;
    let list = format!("rm -f {}", quoted(&shell.facts.home.join(LEDGER)));
    shell.script("remove the list of injected files", Rights::User, &list, &[], REMOVE_LIMIT).await?;
    shell
        .script("drop the guest's caches", Rights::Root, &format!("{FUNCTIONS}{FLUSH}"), &[], FLUSH_LIMIT)
        .await?;
    Ok(true)
}

/// Removes every injected file that is no longer `wanted`.
///
/// # Errors
/// The errors of [`wipe`].
pub async fn remove_strays(shell: &Shell, wanted: &[GuestPath]) -> Result<(), WipeError> {
    let home = &shell.facts.home;
    let wanted: BTreeSet<_> = wanted.iter().map(|path| path.expand(home)).collect();
    let noted: BTreeSet<_> = ledger(shell).await?.iter().map(|path| path.expand(home)).collect();
    let strays: BTreeSet<_> = noted.difference(&wanted).cloned().collect();
    if strays.is_empty() {
        return Ok(());
    }
    remove(shell, &strays, &[]).await?;
    let kept: String = noted.intersection(&wanted).map(|path| format!("{path}\n")).collect();
    let list = quoted(&home.join(LEDGER));
    let script = format!("list={list}; cat > \"$list.new\" && mv -f \"$list.new\" \"$list\"");
    shell
        .script("note what is injected no more", Rights::User, &script, kept.as_bytes(), REMOVE_LIMIT)
        .await?;
    Ok(())
}

/// Overwrites and removes each path with the rights that its place needs. A path of `ours` (files that nixbox injects)
/// that the user cannot remove is removed by root. What is `theirs` (the guest's) is removed if it is as in the backup.
async fn remove(shell: &Shell, ours: &BTreeSet<String>, theirs: &[BackedUp]) -> Result<(), WipeError> {
    let home = &shell.facts.home;
    let mine = |path: &&String| rights(home, path, None) == Rights::User;
    let (user_ours, mut root_ours): (Vec<_>, Vec<_>) = ours.iter().partition(mine);
    let (user_theirs, root_theirs): (Vec<_>, Vec<_>) =
        theirs.iter().partition(|entry| entry.rights == Rights::User);

    let mut left = attempt(shell, Rights::User, &user_ours, &user_theirs).await?;
    let resisting: Vec<_> = user_ours.into_iter().filter(|path| left.holds(path)).collect();
    root_ours.extend(&resisting);
    let is_left_over = |path: &&String| path.ends_with(UNPACKED);
    let needs_root = !root_theirs.is_empty() || !root_ours.iter().all(is_left_over);
    match attempt(shell, Rights::Root, &root_ours, &root_theirs).await {
        // Nothing is known to be there that root alone can remove.
        Err(ScriptError::NoRights { .. }) if !needs_root && left.paths.is_empty() => {}
        Ok(rest) => {
            left.paths.retain(|path| !resisting.iter().any(|ours| is_of(path, ours)));
            left.paths.extend(rest.paths);
            left.why.extend(rest.why);
        }
        // Root's rights cannot be obtained. The names of the files that are left are more useful than that error.
        Err(ScriptError::NoRights { .. }) if !left.paths.is_empty() => {
            let wanted = root_ours.iter().filter(|path| !is_left_over(path));
            left.paths.extend(wanted.map(|path| (*path).clone()));
            left.paths.extend(root_theirs.iter().map(|entry| entry.path.clone()));
            left.paths.sort();
            left.paths.dedup();
            left.why.push("the guest's user has no `sudo` without a password".to_owned());
        }
        Err(error) => return Err(error.into()),
    }
    if left.paths.is_empty() {
        Ok(())
    } else {
        Err(WipeError::Left { left: left.paths, why: left.why.join("; ") })
    }
}

/// Whether the path `left` is `path`, or the name that the file at `path` has while it is written.
fn is_of(left: &str, path: &str) -> bool {
    left.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest == UNFINISHED)
}

struct Left {
    paths: Vec<String>,
    why: Vec<String>,
}

impl Left {
    fn holds(&self, path: &str) -> bool {
        self.paths.iter().any(|left| is_of(left, path))
    }
}

async fn attempt(
    shell: &Shell,
    with: Rights,
    ours: &[&String],
    theirs: &[&BackedUp],
) -> Result<Left, ScriptError> {
    if ours.is_empty() && theirs.is_empty() {
        return Ok(Left { paths: Vec::new(), why: Vec::new() });
    }
    let mut script = format!("{FUNCTIONS}{}{FORGET}", backup::comparison());
    // What is nixbox's own may lie in a directory that is the guest's, which would no longer be as in the backup.
    for entry in theirs {
        script += &format!("try_same {} {}\n", quoted(&entry.path), entry.digest);
    }
    for path in ours {
        script += &format!("try {}\ntry {}\n", quoted(path), quoted(&format!("{path}{UNFINISHED}")));
    }
    let told = shell.script("remove credentials from the guest", with, &script, &[], REMOVE_LIMIT).await?;
    Ok(Left {
        paths: told.lines().filter_map(|line| line.strip_prefix("left ")).map(str::to_owned).collect(),
        why: told
            .lines()
            .filter_map(|line| line.strip_prefix("why "))
            .map(|line| printable(line, 300))
            .collect(),
    })
}
