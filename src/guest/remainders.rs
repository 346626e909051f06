//! What a guest holds on its disks that a wipe leaves, and in which credentials may be that nixbox never knew.
//!
//! - The histories of the guest's other users. They are not nixbox's to take: nixbox acts for one user, and for root.
//! - Files that a wipe overwrites and that have a second name (a hard link). What they held is gone under both names, and is
//!   given back under one.
//! - File systems whose free blocks the guest does not give back to the host. What was deleted there stays in the snapshot.
//!
//! The snapshot is searched for every known value in all of these places. The receipt names them, because nixbox cannot
//! search for a value that it does not know.

use std::collections::BTreeMap;
use std::time::Duration;

use super::backup::HISTORIES;
use super::inject::FUNCTIONS;
use super::script_items::{ScriptItems, are_whole, printable};
use super::shell::{Rights, ScriptError, Shell, quoted};
use crate::world::UnprovenPlace;

/// The time limit.
const LIMIT: Duration = Duration::from_secs(30);
/// The most bytes that the guest sends.
const MOST: usize = 256 << 10;
/// The most places of one kind that are named.
const MOST_NAMED: usize = 16;

/// What the places are called where they cannot be examined.
pub(super) const ALL: &str = "the histories of the guest's other users, hard links and free blocks";

/// Tells `history PATH`, `linked PATH` and `untrimmed PATH`.
const LOOK: &str = r#"
while IFS=: read -r _ _ u _ _ h _; do
  case $u in ''|*[!0-9]*) continue ;; esac
  [ "$u" -ge 1000 ] && [ "$h" != "$home" ] && [ -d "$h" ] && ! shared "$(readlink -f "$h")" || continue
  for f in $histories; do
    [ ! -f "$h/$f" ] || [ ! -s "$h/$f" ] || item history "$h/$f"
  done
done < /etc/passwd
linked() {
  [ -e "$1" ] && [ ! -L "$1" ] && ! shared "$(real_parent "$1")" || return 0
  [ -z "$(find "$1" -xdev -type f -links +1 2>/dev/null | head -n 1)" ] || item linked "$1"
}
discards() {
  d=/sys/class/block/$(basename "$(readlink -f "$1")")
  for q in "$d/queue" "$d/../queue"; do
    [ ! -r "$q/discard_max_bytes" ] || { [ "$(cat "$q/discard_max_bytes")" -gt 0 ]; return; }
  done
}
while read -r d m f o _; do
  case $f in ext[234]|xfs|btrfs|f2fs) ;; *) continue ;; esac
  case ,$o, in *,ro,*) continue ;; esac
  { command -v fstrim > /dev/null && discards "$(plain "$d")"; } || item untrimmed "$(plain "$m")"
done < /proc/mounts
"#;

/// Finds what a wipe of `wiped` leaves.
///
/// # Errors
/// Any [`ScriptError`].
pub(super) async fn find(
    shell: &Shell,
    wiped: impl Iterator<Item = &String> + Send,
) -> Result<Vec<UnprovenPlace>, ScriptError> {
    let calls: String = wiped.map(|path| format!("linked {}\n", quoted(path))).collect();
    let (home, histories) = (quoted(&shell.facts.home.join("")), quoted(&HISTORIES.join(" ")));
    let script = format!("{FUNCTIONS}home={home}\nhome=${{home%/}}\nhistories={histories}\n{LOOK}{calls}");
    let what = "look for what a wipe leaves";
    let told = ScriptItems::of(shell, what, Rights::Root, &script, MOST, LIMIT).await?;
    let items = told.items();
    let mut paths: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    for item in &items {
        let header = String::from_utf8_lossy(item.header);
        let (kind, path) = header.split_once(' ').unwrap_or((&header, ""));
        if let Some((kind, _)) = KINDS.iter().find(|(known, _)| *known == kind) {
            paths.entry(kind).or_default().push(printable(path, 200));
        }
    }
    let mut places = Vec::new();
    for (kind, reason) in KINDS {
        let found = paths.remove(kind).unwrap_or_default();
        let more = found.len().saturating_sub(MOST_NAMED);
        places.extend(
            found.into_iter().take(MOST_NAMED).map(|path| UnprovenPlace {
                place: format!("{path} of the guest"),
                reason: reason.to_owned(),
            }),
        );
        if more > 0 {
            places.push(UnprovenPlace {
                place: format!("{more} more of the guest"),
                reason: reason.to_owned(),
            });
        }
    }
    if !are_whole(&items) {
        let reason = format!("the guest has more than {} KiB of their names", MOST >> 10);
        places.push(UnprovenPlace { place: ALL.to_owned(), reason });
    }
    Ok(places)
}

/// The kinds of places, each with what the receipt says of it.
const KINDS: [(&str, &str); 3] = [
    ("history", "it is of another user, and nixbox left it in the snapshot"),
    ("linked", "it has a hard link, whose content the wipe has overwritten too"),
    (
        "untrimmed",
        "the guest cannot give its free blocks back, so what was deleted there before is in the snapshot",
    ),
];
