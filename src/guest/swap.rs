//! Switches off the guest's swap before a snapshot, and on again in a guest that goes on.
//!
//! What was swapped out comes back into RAM, where a snapshot is searched for credentials: a kernel may compress what it
//! swaps (zram, zswap), and then no search finds it. What is left on a disk from earlier is not overwritten with zeros,
//! because it is searched like all that is on the disk, and zeros would take that much of the host's disk.
//!
//! Which swap was on is noted in [`LIST`], before it is switched off. The list lies in the guest's RAM: it is captured with
//! the guest, so that a restored guest switches its swap on as well, and it is gone after a reboot, when the guest does so
//! itself.

use std::time::Duration;

use super::inject::FUNCTIONS;
use super::script_items::printable;
use super::shell::{Rights, ScriptError, Shell};
use crate::world::UnprovenPlace;

/// The swap that nixbox has switched off and not switched on again: a priority and a path in each line, as in
/// `/proc/swaps`.
pub(super) const LIST: &str = "/run/nixbox-swaps";
/// The time limit for reading back what was swapped out.
const OFF_LIMIT: Duration = Duration::from_secs(90);
/// The time limit of the scripts that read nothing back.
const LIMIT: Duration = Duration::from_secs(30);
/// What the guest's swap is called where it cannot be examined.
pub(super) const ALL: &str = "the swap of the guest";

/// Switches off what is listed in `/proc/swaps`, unless the guest has not the memory for it (64 MiB are left to it). Prints
/// what stays on, and why.
const OFF: &str = r#"
left() { printf 'swap %s\n' "$1"; printf '%s\n' "$2" | sed 's/^/why /'; }
free() {
  while read -r k v _; do
    if [ "$k" = MemAvailable: ]; then echo "$v"; return; fi
  done < /proc/meminfo
}
s=$(cat /proc/swaps 2>/dev/null) || exit 0
printf '%s\n' "$s" | while read -r f _ _ u p; do
  case $f in Filename|'') continue ;; esac
  a=$(free)
  if [ "$((${a:-0} - 65536))" -lt "$u" ]; then
    left "$f" "the guest has no free memory for the $u KiB that are swapped out"
  elif ! { mkdir -p "${l%/*}" && printf '%s %s\n' "$p" "$f" >> "$l"; } 2>/dev/null; then
    left "$f" "$l cannot be written"
  else
    e=$(swapoff "$(plain "$f")" 2>&1) || left "$f" "$e"
  fi
done
"#;

/// Switches on what is in the list, and removes the list. If something stays off, its reason is printed and the list stays.
const ON: &str = r#"
is_on() {
  while read -r o _; do
    [ "$o" != "$1" ] || return 0
  done < /proc/swaps
  return 1
}
failed=
while read -r p f; do
  ! is_on "$f" || continue
  # The kernel gives negative priorities itself.
  case $p in
    -*) e=$(swapon "$(plain "$f")" 2>&1) ;;
    *) e=$(swapon -p "$p" "$(plain "$f")" 2>&1) ;;
  esac || { failed=1; printf '%s: %s\n' "$f" "$e"; }
done < "$l"
[ -n "$failed" ] || rm -f "$l"
"#;

fn script(script: &str) -> String {
    format!("{FUNCTIONS}l={LIST}\n{script}")
}

/// Switches off the guest's swap. The answer names what stays on.
///
/// # Errors
/// Any [`ScriptError`].
pub(super) async fn switch_off(shell: &Shell) -> Result<Vec<UnprovenPlace>, ScriptError> {
    let told =
        shell.script("switch off the guest's swap", Rights::Root, &script(OFF), &[], OFF_LIMIT).await?;
    Ok(stays_on(&told))
}

/// Switches on what nixbox has switched off, if [`LIST`] exists. The answer says what stays off, and why; it is empty if nothing does.
///
/// # Errors
/// Any [`ScriptError`].
pub(super) async fn switch_on(shell: &Shell) -> Result<String, ScriptError> {
    let told = shell.script("switch on the guest's swap", Rights::Root, &script(ON), &[], LIMIT).await?;
    Ok(printable(&told.trim().replace('\n', "; "), 400))
}

/// What the script that switches off has printed.
fn stays_on(told: &str) -> Vec<UnprovenPlace> {
    let mut places: Vec<UnprovenPlace> = Vec::new();
    for line in told.lines() {
        if let Some(path) = line.strip_prefix("swap ") {
            let place = format!("{ALL} on {}", printable(path, 100));
            places.push(UnprovenPlace { place, reason: "it stays on".to_owned() });
        } else if let (Some(reason), Some(last)) = (line.strip_prefix("why "), places.last_mut()) {
            last.reason += &format!(": {}", printable(reason, 200));
        }
    }
    places.truncate(32);
    places
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;
    use crate::testing::{Need, have};

    #[test]
    fn what_stays_on_is_named_with_every_line_of_the_reason() {
        let told = "swap /dev/vdb\nwhy one\nwhy two\x1b\nodd\nswap /swap\\040file\nwhy three\n";
        let place =
            |place: &str, reason: &str| UnprovenPlace { place: place.to_owned(), reason: reason.to_owned() };
        assert_eq!(
            stays_on(told),
            [
                place("the swap of the guest on /dev/vdb", "it stays on: one: two"),
                place("the swap of the guest on /swap\\040file", "it stays on: three"),
            ]
        );
    }

    /// Runs a script in a shell, with a file in place of the kernel's list and functions in place of the programs.
    fn run(shell: &[&str], text: &str, directory: &Path) -> String {
        let stand_ins = r#"
swapoff() {
  [ "$1" != /busy ] || { echo 'it is busy' >&2; return 1; }
  l=$(grep -v "^$1 " SWAPS)
  printf '%s\n' "$l" > SWAPS
}
swapon() {
  p=-2
  [ "$1" != -p ] || { p=$2; shift 2; }
  [ "$1" != /gone ] || { echo 'it is gone' >&2; return 1; }
  printf '%s partition 1024 0 %s\n' "$1" "$p" >> SWAPS
}
"#;
        let text = format!("{stand_ins}{}", script(text)).replace("/proc/swaps", "SWAPS");
        let list = directory.join("run/list");
        let text = text
            .replace(LIST, &list.display().to_string())
            .replace("SWAPS", &directory.join("swaps").display().to_string());
        let output = Command::new(shell[0]).args(&shell[1..]).arg("-c").arg(text).output().unwrap();
        assert!(output.status.success(), "{shell:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn swap_is_switched_off_and_on_again_by_every_shell() {
        const HEAD: &str = "Filename Type Size Used Priority\n";
        for shell in [&["sh"][..], &["dash"], &["busybox", "ash"], &["bash"]] {
            if !have(&[Need::Program(shell[0])]) {
                continue;
            }
            let directory = tempfile::tempdir().unwrap();
            let swaps = |lines: &str| {
                std::fs::write(directory.path().join("swaps"), format!("{HEAD}{lines}")).unwrap()
            };
            let now = || std::fs::read_to_string(directory.path().join("swaps")).unwrap();
            assert_eq!(run(shell, OFF, directory.path()), "", "without a list there is no swap");
            swaps("/zram0 partition 1024 8 100\n/busy file 9 0 -3\n/large file 99999999999 99999999999 -4\n");
            let stays = stays_on(&run(shell, OFF, directory.path()));
            assert_eq!(stays.len(), 2, "{shell:?} {stays:?}");
            assert_eq!(stays[0].reason, "it stays on: it is busy", "{shell:?}");
            assert!(
                stays[1].reason.contains("no free memory for the 99999999999 KiB"),
                "{shell:?} {stays:?}"
            );
            assert!(!now().contains("zram0"), "{shell:?}");
            assert_eq!(run(shell, ON, directory.path()), "", "{shell:?}");
            assert!(now().contains("/zram0 partition 1024 0 100\n") && now().matches("/busy").count() == 1);
            let list = directory.path().join("run/list");
            assert!(!list.exists(), "{shell:?}");

            // What cannot be switched on stays in the list.
            swaps("/gone partition 1024 0 5\n/file file 1024 0 -2\n");
            assert_eq!(run(shell, OFF, directory.path()), "");
            for _ in 0..2 {
                assert_eq!(run(shell, ON, directory.path()), "/gone: it is gone\n", "{shell:?}");
                assert!(list.exists() && now().matches("/file").count() == 1, "{shell:?} {}", now());
            }
        }
    }
}
