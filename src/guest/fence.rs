//! The end of what an earlier nixbox left running in the guest, before a later one does anything there.
//!
//! A nixbox that is killed, or that gives up waiting, leaves its script behind: an SSH server does not end a command with
//! its connection. A wipe that goes on would take away what the next run puts there; an injection that goes on would put a
//! credential into a guest that is about to be captured. So every script runs under the [`Mark`] of its connection, and
//! whoever makes a connection ends all that bears another. The state of the guest is then that of a script which was
//! stopped somewhere, as [`crate::fakes`] has it.
//!
//! Nothing can slip through by starting late, for a script is sent only once its shell runs ([`super::shell`]).

use std::fmt;
use std::io;
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};
use zeroize::Zeroizing;

use super::shell::{Rights, ScriptError, Shell};

/// Names the scripts of one connection among the guest's processes. No two connections have the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark(String);

impl Mark {
    /// What all marks begin with.
    const ALL: &str = "nixbox-script:";

    /// A mark that nobody has.
    ///
    /// # Errors
    /// If the host has no random bytes.
    pub(super) fn new() -> io::Result<Self> {
        let mut random = [0; 16];
        getrandom(&mut random, GetRandomFlags::empty())?;
        Ok(Self(format!("{}{:032x}", Self::ALL, u128::from_be_bytes(random))))
    }

    /// As it stands in the command line of a script's shell, and in the environment of what that starts.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Time for all of it. The script gives up earlier by itself.
const LIMIT: Duration = Duration::from_secs(60);

/// Kills what bears a mark but those of `mine`, an argument list for grep, until nothing does. What is killed at its end in
/// the kernel, above all in one that waits for a disk, takes its time: twenty seconds.
const END: &str = r#"
i=0
while :; do
  left=
  for f in $(grep -ls 'nixbox-scrip[t]:' /proc/[0-9]*/cmdline /proc/[0-9]*/environ); do
    ! grep -qs $mine "$f" || continue
    p=${f%/*}; p=${p##*/}
    kill -9 "$p" 2> /dev/null
    # One that has ended meanwhile has neither arguments nor an environment.
    ! grep -qs 'nixbox-scrip[t]:' "$f" || left="$left $p ($(cat "/proc/$p/comm" 2> /dev/null))"
  done
  [ -n "$left" ] || exit 0
  i=$((i + 1))
  [ "$i" -lt 70 ] || { printf 'process%s\n' "$left" >&2; exit 1; }
  [ "$i" -lt 50 ] || sleep 1
done
"#;

/// End every script that runs in the guest, but those of this connection and of the `spared`.
///
/// # Errors
/// [`ScriptError::Failed`] with the processes that cannot be ended, and the others of [`ScriptError`].
pub async fn end_others(shell: &Shell, spared: &[&Mark]) -> Result<(), ScriptError> {
    if !shell.others {
        return Ok(());
    }
    let mine: String =
        spared.iter().copied().chain([&shell.mark]).map(|mark| format!(" -e {mark}")).collect();
    let script = format!("mine='{mine}'\n{END}");
    let run = async |rights| {
        let what = "end what an earlier nixbox left running in the guest";
        shell.script(what, rights, &script, Zeroizing::new(Vec::new()), LIMIT).await.map(drop)
    };
    match run(Rights::Root).await {
        // Where nixbox cannot become root, root runs nothing of nixbox's.
        Err(ScriptError::NoRights { .. }) => run(Rights::User).await,
        done => done,
    }
}
