//! Mounts and unmounts the shares in the guest. The guest's `/proc/mounts` says what is mounted; it is parsed on the
//! host, because a shell cannot do that reliably.

use std::time::Duration;

use super::inject::rights;
use super::last_words::last_words;
use super::shell::{Rights, ScriptError, Shell, quoted};
use crate::world::{GuestPath, Presence, ShareTag};

/// The time limit of one script.
const LIMIT: Duration = Duration::from_secs(30);

/// A mount of the configuration, as the guest is to have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The tag of the share's virtiofs device.
    pub tag: ShareTag,
    /// The directory in the guest on which the share is mounted.
    pub target: GuestPath,
    /// Whether the guest may only read it.
    pub readonly: bool,
}

/// Why shares cannot be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum MountError {
    #[error(transparent)]
    Script(#[from] ScriptError),
    #[error("cannot mount the share {tag} at {target}: {source_name} ({kind}) is mounted there already")]
    Taken { tag: ShareTag, target: String, source_name: String, kind: String },
    #[error(
        "cannot mount the share {tag} at {target} in the guest: {stderr}. Does its kernel have virtiofs?"
    )]
    Mount { tag: ShareTag, target: String, stderr: String },
    #[error("cannot unmount {target} in the guest: {stderr}{}", users(.holders))]
    Busy { target: String, stderr: String, holders: Vec<String> },
}

fn users(holders: &[String]) -> String {
    if holders.is_empty() { String::new() } else { format!(". It is used by {}", holders.join(", ")) }
}

/// A line of `/proc/mounts`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mounted {
    source: String,
    target: String,
    kind: String,
    readonly: bool,
}

impl Mounted {
    /// Whether this is a mount of the share with this tag, with any options.
    fn is_of(&self, tag: &ShareTag) -> bool {
        self.kind == "virtiofs" && self.source == tag.as_str()
    }
}

/// Parses the lines with four fields or more. The kernel writes no shorter lines.
fn parse(table: &str) -> Vec<Mounted> {
    let line = |line: &str| {
        let mut fields = line.split(' ');
        let (source, target) = (unescape(fields.next()?), unescape(fields.next()?));
        let (kind, options) = (fields.next()?.to_owned(), fields.next()?);
        Some(Mounted { source, target, kind, readonly: options.split(',').any(|option| option == "ro") })
    };
    table.lines().filter_map(line).collect()
}

/// Undoes the escapes of the kernel, which writes space, tab, line end, backslash and `#` as a backslash and three
/// octal digits (`fs/proc_namespace.c`).
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) if bytes[at] == b'\\' => {
                plain.push(code);
                at += 4;
            }
            _ => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

async fn run(shell: &Shell, what: &'static str, with: Rights, script: &str) -> Result<String, ScriptError> {
    shell.script(what, with, script, &[], LIMIT).await
}

async fn table(shell: &Shell) -> Result<Vec<Mounted>, ScriptError> {
    Ok(parse(&run(shell, "list what is mounted in the guest", Rights::User, "cat /proc/mounts").await?))
}

/// The mounts of these shares.
async fn table_of(shell: &Shell, mounts: &[Mount]) -> Result<Vec<Mounted>, ScriptError> {
    let mut table = table(shell).await?;
    table.retain(|there| mounts.iter().any(|mount| there.is_of(&mount.tag)));
    Ok(table)
}

/// A script that prints the real path of each target, with symbolic links followed. For a target that does not exist, it is
/// the path that the directory will have.
fn print_real_paths(targets: &[String]) -> String {
    if targets.is_empty() {
        return String::new();
    }
    let targets: Vec<_> = targets.iter().map(|target| quoted(target)).collect();
    format!("for t in {}; do readlink -f \"$t\" || printf '%s\\n' \"$t\"; done\n", targets.join(" "))
}

/// Makes the directories, and mounts every share that is not mounted as it should be. Returns whether there were mounts of
/// shares that were gone: what the guest's processes had open there is lost to them.
///
/// # Errors
/// Any [`MountError`].
pub async fn mount(shell: &Shell, mounts: &[Mount]) -> Result<bool, MountError> {
    let (mut prepared, mut forgotten) = (prepare(shell, mounts, UNLESS_FORGOTTEN).await?, false);
    if prepared.is_none() {
        forgotten = !table_of(shell, mounts).await?.is_empty() && finish_forgetting(shell, mounts).await?;
        prepared = prepare(shell, mounts, "").await?;
    }
    let (before, places) = prepared.ok_or(ScriptError::Senseless { what: PREPARE })?;
    let mut missing = Vec::new();
    for (mount, place) in mounts.iter().zip(places) {
        // If several file systems are mounted at one place, the last line is the visible one.
        match before.iter().rfind(|mounted| mounted.target == place) {
            Some(there) if !there.is_of(&mount.tag) => {
                return Err(MountError::Taken {
                    tag: mount.tag.clone(),
                    target: place,
                    source_name: there.source.clone(),
                    kind: there.kind.clone(),
                });
            }
            Some(there) if there.readonly == mount.readonly => continue,
            Some(_) => unmount_one(shell, &place).await?,
            None => {}
        }
        missing.push((mount, place));
    }
    mount_all(shell, &missing).await?;
    Ok(forgotten)
}

/// What the scripts of [`prepare`] do.
const PREPARE: &str = "make the directories for the shares";

/// Makes the directories that shares are mounted on, and returns what is mounted, and the real path of each directory. Below
/// the home the user makes it; elsewhere root makes it and gives it to the user. Returns `None` if `unless` has printed
/// [`GONE`] and ended the script.
async fn prepare(
    shell: &Shell,
    mounts: &[Mount],
    unless: &str,
) -> Result<Option<(Vec<Mounted>, Vec<String>)>, ScriptError> {
    let home = &shell.facts.home;
    let targets: Vec<_> = mounts.iter().map(|mount| mount.target.expand(home)).collect();
    let make = |with: Rights| -> String {
        let targets = targets.iter().filter(|target| rights(home, target, None) == with);
        targets.map(|target| format!("make {} {} || exit 1\n", quoted(target), shell.facts.ids.uid)).collect()
    };
    let of_root = make(Rights::Root);
    if !of_root.is_empty() {
        let script = format!("{unless}{MAKE_DIRECTORY}{of_root}");
        if run(shell, PREPARE, Rights::Root, &script).await? == GONE {
            return Ok(None);
        }
    }
    let (of_user, real_paths) = (make(Rights::User), print_real_paths(&targets));
    let script = format!("{unless}{MAKE_DIRECTORY}{of_user}{real_paths}cat /proc/mounts");
    let told = run(shell, PREPARE, Rights::User, &script).await?;
    if told == GONE {
        return Ok(None);
    }
    let (places, rest) = first_lines(&told, targets.len()).ok_or(ScriptError::Senseless { what: PREPARE })?;
    Ok(Some((parse(rest), places)))
}

/// The first lines of a text, and the rest of it.
fn first_lines(text: &str, count: usize) -> Option<(Vec<String>, &str)> {
    let (mut lines, mut rest) = (Vec::new(), text);
    for _ in 0..count {
        let (line, after) = rest.split_once('\n')?;
        lines.push(line.to_owned());
        rest = after;
    }
    Some((lines, rest))
}

/// The shell function `make DIRECTORY UID` makes a directory for the user with this number, and those above it.
const MAKE_DIRECTORY: &str = r#"
umask 022
make() {
  uid=$2
  [ ! -d "$1" ] || return 0
  set -- "$1"; p=${1%/*}
  while [ -n "$p" ] && [ ! -d "$p" ]; do set -- "$p" "$@"; p=${p%/*}; done
  for d; do
    mkdir "$d" || [ -d "$d" ] || return 1
    [ "$(id -u)" = "$uid" ] || chown "$uid" "$d" || return 1
  done
}
"#;

/// Mounts shares on their directories, in order, and ends with the first one that fails.
async fn mount_all(shell: &Shell, missing: &[(&Mount, String)]) -> Result<(), MountError> {
    const FAILED: &str = "failed ";
    if missing.is_empty() {
        return Ok(());
    }
    let what = "mount the shares in the guest";
    let line = |(index, (mount, place)): (usize, &(&Mount, String))| {
        let how = if mount.readonly { "-o ro " } else { "" };
        let (tag, at) = (quoted(mount.tag.as_str()), quoted(place));
        format!(
            "e=$(mount -t virtiofs {how}{tag} {at} 2>&1) || {{ printf '{FAILED}%s %s\n' {index} \"$e\"; exit 0; }}\n"
        )
    };
    let script: String = missing.iter().enumerate().map(line).collect();
    let told = run(shell, what, Rights::Root, &script).await?;
    let Some((_, failed)) = told.split_once(FAILED) else { return Ok(()) };
    let (index, words) = failed.split_once(' ').ok_or(ScriptError::Senseless { what })?;
    let index = index.parse().ok().and_then(|index: usize| missing.get(index));
    let (mount, place) = index.ok_or(ScriptError::Senseless { what })?;
    let stderr = last_words(words.as_bytes());
    Err(MountError::Mount { tag: mount.tag.clone(), target: place.clone(), stderr })
}

/// Unmounts every mount of the shares at any place, the last mount first.
///
/// # Errors
/// [`MountError::Busy`] with the processes that use the mount; [`MountError::Script`].
pub async fn unmount(shell: &Shell, mounts: &[Mount]) -> Result<(), MountError> {
    for there in table_of(shell, mounts).await?.iter().rev() {
        unmount_one(shell, &there.target).await?;
    }
    Ok(())
}

/// A directory in the guest that is there while its shares are forgotten: from [`forget`] to the next [`mount`]. It has a
/// file for each device that the kernel has not removed yet.
const FORGOTTEN: &str = "/run/nixbox-forgotten-shares";

/// The line that says that there are such shares.
const GONE: &str = "nixbox: shares are gone\n";
/// Prints it.
const PRINT_GONE: &str = "echo 'nixbox: shares are gone'";
/// Ends a script with that line. Whatever looks at the place of such a share waits for an answer of its device.
const UNLESS_FORGOTTEN: &str =
    "[ ! -d /run/nixbox-forgotten-shares ] || { echo 'nixbox: shares are gone'; exit 0; }\n";

/// Begins to remove the devices of shares that answer no more. The configuration space of a PCI device that is gone reads
/// as ones, and the kernel keeps the device until it is told to remove it. The kernel then waits for the device to say that it
/// was reset, which the device says that takes its place, and removes the next one afterwards (seen with Linux 6.1 and
/// v53.0). Hence the removals go on in the background. The script ends when the first of them has begun, because a device
/// that is attached before then would be taken for the one whose place it has.
const REMOVE_DEAD_DEVICES: &str = r#"first=
for v in /sys/bus/virtio/drivers/virtiofs/virtio*; do
  [ -e "$v" ] || continue
  p=$(readlink -f "$v/..") || continue
  [ "$(od -An -tx2 -N2 "$p/config" | tr -d ' ')" = ffff ] || continue
  mark=$forgotten/${v##*/}
  [ ! -e "$mark" ] || continue
  d=$(readlink -f "$v")
  mkdir -p "$forgotten" && : > "$mark" || exit 1
  (echo 1 > "$p/remove"; rm -f "$mark") </dev/null >/dev/null 2>&1 &
  first=${first:-$d}
done
i=0
while [ -n "$first" ] && [ -e "$first/driver" ] && [ $i -lt 20 ]; do sleep 1; i=$((i + 1)); done"#;

/// Waits until the devices are removed whose removal was begun, and looks for devices that the kernel has not seen
/// because of that. Prints a word if shares were forgotten.
const AWAIT_REMOVALS: &str = r#"[ -d "$forgotten" ] || exit 0
i=0
while set -- "$forgotten"/*; [ -e "$1" ]; do
  [ $i -lt 20 ] || { echo 'its kernel still waits for an answer of the device' >&2; exit 1; }
  sleep 1; i=$((i + 1))
done
echo 1 > /sys/bus/pci/rescan
echo forgotten"#;

fn with_forgotten(script: &str) -> String {
    format!("forgotten={FORGOTTEN}\n{script}")
}

/// Begins to make the guest forget the shares whose devices are gone. Their mounts stay until the next [`mount`], because
/// the kernel would send the devices a last request and wait for the answer.
///
/// # Errors
/// Any [`ScriptError`].
pub async fn forget(shell: &Shell) -> Result<(), ScriptError> {
    let script = with_forgotten(REMOVE_DEAD_DEVICES);
    run(shell, "remove the devices of shares that are gone", Rights::Root, &script).await.map(drop)
}

/// Removes the mounts of shares that were forgotten. A mount that a process uses is detached from the tree; the process
/// keeps what it has open, and every use of it fails. Returns whether shares were forgotten.
async fn finish_forgetting(shell: &Shell, mounts: &[Mount]) -> Result<bool, ScriptError> {
    let script = with_forgotten(AWAIT_REMOVALS);
    let told = run(shell, "await the removal of shares that are gone", Rights::Root, &script).await?;
    if told.trim().is_empty() {
        return Ok(false);
    }
    for there in table_of(shell, mounts).await?.iter().rev() {
        let script = format!("umount -l {}", quoted(&there.target));
        run(shell, "remove the mount of a share that is gone", Rights::Root, &script).await?;
    }
    let script = format!("rmdir {FORGOTTEN}");
    run(shell, "note that no share is gone any more", Rights::Root, &script).await?;
    Ok(true)
}

async fn unmount_one(shell: &Shell, place: &str) -> Result<(), MountError> {
    let script = format!("umount {}", quoted(place));
    let error = match run(shell, "unmount a share in the guest", Rights::Root, &script).await {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    let ScriptError::Failed { stderr, .. } = error else {
        return Err(error.into());
    };
    // A process of the guest may have unmounted the share meanwhile.
    if !table(shell).await?.iter().any(|there| there.target == place) {
        return Ok(());
    }
    let holders = holders(shell, place).await?;
    Err(MountError::Busy { target: place.to_owned(), stderr, holders })
}

/// Every process that keeps one of the shares from being unmounted, as `number (name)`.
///
/// # Errors
/// Any [`ScriptError`].
pub async fn users_of(shell: &Shell, mounts: &[Mount]) -> Result<Vec<String>, ScriptError> {
    let mut users = Vec::new();
    for there in table_of(shell, mounts).await? {
        users.extend(holders(shell, &there.target).await?);
    }
    users.sort();
    users.dedup();
    Ok(users)
}

async fn holders(shell: &Shell, place: &str) -> Result<Vec<String>, ScriptError> {
    let told = run(shell, "find who uses a share", Rights::Root, &holders_script(place)).await?;
    let printable = |line: &str| line.chars().filter(|letter| !letter.is_control()).take(80).collect();
    Ok(told.lines().map(printable).collect())
}

/// A script that prints every process that has its working directory, root, program, or an open or mapped file below
/// `place`.
fn holders_script(place: &str) -> String {
    format!(
        r#"t={}
for p in /proc/[0-9]*; do
  u=
  for l in "$p/cwd" "$p/root" "$p/exe" "$p"/fd/*; do
    d=$(readlink "$l" 2>/dev/null) || continue
    case $d/ in "$t"/*) u=1; break ;; esac
  done
  [ -n "$u" ] || ! grep -qF " $t/" "$p/maps" 2>/dev/null || u=1
  [ -z "$u" ] || ! c=$(cat "$p/comm" 2>/dev/null) || printf '%s (%s)\n' "${{p#/proc/}}" "$c"
done
true"#,
        quoted(place)
    )
}

/// Whether all, some or none of the shares are mounted at the right place with the right access. Without shares, the
/// answer is `Whole`. A mount of a share that was forgotten does not count as right.
///
/// # Errors
/// Any [`ScriptError`].
pub async fn presence(shell: &Shell, mounts: &[Mount]) -> Result<Presence, ScriptError> {
    let what = "list what is mounted in the guest";
    let targets: Vec<_> = mounts.iter().map(|mount| mount.target.expand(&shell.facts.home)).collect();
    let script =
        format!("{}[ ! -d {FORGOTTEN} ] || {PRINT_GONE}\ncat /proc/mounts", print_real_paths(&targets));
    let told = run(shell, what, Rights::User, &script).await?;
    let (places, rest) = first_lines(&told, targets.len()).ok_or(ScriptError::Senseless { what })?;
    let table = rest.strip_prefix(GONE);
    Ok(match presence_in(mounts, &places, &parse(table.unwrap_or(rest))) {
        Presence::Whole if !mounts.is_empty() && table.is_some() => Presence::Partial,
        presence => presence,
    })
}

fn presence_in(mounts: &[Mount], places: &[String], table: &[Mounted]) -> Presence {
    let right = |(mount, place): &(&Mount, &String)| {
        let there = table.iter().rfind(|mounted| mounted.target == **place);
        there.is_some_and(|there| there.is_of(&mount.tag) && there.readonly == mount.readonly)
    };
    if mounts.iter().zip(places).all(|pair| right(&pair)) {
        Presence::Whole
    } else if table.iter().any(|there| mounts.iter().any(|mount| there.is_of(&mount.tag))) {
        Presence::Partial
    } else {
        Presence::Absent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_print_the_line_that_is_looked_for_where_the_directory_is() {
        assert_eq!(PRINT_GONE, format!("echo '{}'", GONE.trim_end()));
        assert!(UNLESS_FORGOTTEN.starts_with(&format!("[ ! -d {FORGOTTEN} ] || {{ {PRINT_GONE};")));
    }

    #[test]
    fn the_first_lines_are_taken_off_and_too_few_are_none() {
        assert_eq!(first_lines("a\nb\nc\n", 2), Some((vec!["a".to_owned(), "b".to_owned()], "c\n")));
        assert_eq!(first_lines("a\n", 1), Some((vec!["a".to_owned()], "")));
        assert_eq!(first_lines("a", 1), None);
        assert_eq!(first_lines("x", 0), Some((Vec::new(), "x")));
    }

    const TABLE: &str = "proc /proc proc rw,relatime 0 0\n\
        work /home/u/my\\040work virtiofs rw,relatime 0 0\n\
        data /data virtiofs ro,relatime 0 0\n\
        tmpfs /data\\134x\\011y tmpfs rw,errors=remount-ro 0 0\nbroken line\n";

    fn share(tag: &str, target: &str, readonly: bool) -> Mount {
        Mount { tag: tag.parse().unwrap(), target: target.parse().unwrap(), readonly }
    }

    #[test]
    fn escapes_of_the_kernel_are_undone() {
        let table = parse(TABLE);
        assert_eq!(table.len(), 4);
        assert_eq!(table[1].target, "/home/u/my work");
        assert_eq!((table[3].target.as_str(), table[3].readonly), ("/data\\x\ty", false));
        assert!(table[2].readonly);
        for odd in ["\\", "\\0", "\\04", "\\999", "\\040", "é\\", "\\é0"] {
            unescape(odd);
        }
        assert_eq!(unescape("\\é0"), "\\é0");
    }

    #[test]
    fn presence_depends_on_tag_place_and_access() {
        let table = parse(TABLE);
        let presence = |mounts: &[Mount]| {
            let places: Vec<_> = mounts.iter().map(|mount| mount.target.as_str().to_owned()).collect();
            presence_in(mounts, &places, &table)
        };
        let (work, data) = (share("work", "/home/u/my work", false), share("data", "/data", true));
        assert_eq!(presence(&[work.clone(), data.clone()]), Presence::Whole);
        assert_eq!(presence(&[work.clone(), share("data", "/data", false)]), Presence::Partial);
        assert_eq!(presence(&[share("work", "/elsewhere", false)]), Presence::Partial);
        assert_eq!(presence(&[share("none", "/data", true)]), Presence::Absent);
        assert_eq!(presence(&[]), Presence::Whole);
    }
}
