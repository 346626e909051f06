//! The end of what an earlier nixbox left running in the guest, before a later one does anything there.
//!
//! A nixbox that is killed, or that gives up waiting, leaves its script behind: an SSH server does not end a command with
//! its connection. A wipe that goes on would take away what the next run puts there; an injection that goes on would put a
//! credential into a guest that is about to be captured. So every script runs under the [`ScriptMark`] of its connection, and
//! whoever makes a connection ends all that bears another. The state of the guest is then that of a script which was
//! stopped somewhere, as [`crate::fakes`] has it.
//!
//! Nothing can slip through by starting late, for a script is sent only once its shell runs ([`super::shell`]).

use std::time::Duration;

use super::shell::{Rights, ScriptError, ScriptMark, Shell};

/// Time for all of it. The script gives up earlier by itself.
const LIMIT: Duration = Duration::from_secs(60);

/// Kills what bears a mark but those of `mine`, an argument list for grep, until nothing does. What is killed inside of a
/// system call ends when that does. One that never will is left: it does nothing after that call. `sync` is such a one
/// when a share's daemon has died (virtiofs, seen in Linux 6.1 with Cloud Hypervisor v53.0).
const END: &str = r#"
i=0
while :; do
  left= stays=
  for f in $(grep -ls 'nixbox-scrip[t]:' /proc/[0-9]*/cmdline /proc/[0-9]*/environ); do
    ! grep -qs $mine "$f" || continue
    p=${f%/*}; p=${p##*/}
    kill -9 "$p" 2> /dev/null
    # One that has ended meanwhile has neither arguments nor an environment.
    grep -qs 'nixbox-scrip[t]:' "$f" || continue
    left="$left $p ($(cat "/proc/$p/comm" 2> /dev/null))"
    grep -qs '^State:.D' "/proc/$p/status" || stays=1
  done
  [ -n "$left" ] || exit 0
  i=$((i + 1))
  [ "$i" -lt 50 ] || sleep 1
  [ "$i" -lt 55 ] || [ -n "$stays" ] || exit 0
  [ "$i" -lt 70 ] || { printf 'process%s\n' "$left" >&2; exit 1; }
done
"#;

/// End every script that runs in the guest, but those of this connection and of the `spared`.
///
/// # Errors
/// [`ScriptError::Failed`] with the processes that cannot be ended, and the others of [`ScriptError`].
pub async fn end_others(shell: &Shell, spared: &[&ScriptMark]) -> Result<(), ScriptError> {
    if !shell.others {
        return Ok(());
    }
    let mine: String =
        spared.iter().copied().chain([&shell.mark]).map(|mark| format!(" -e {}", mark.as_str())).collect();
    let script = format!("mine='{mine}'\n{END}");
    let run = async |rights| {
        let what = "end what an earlier nixbox left running in the guest";
        shell.script(what, rights, &script, &[], LIMIT).await.map(drop)
    };
    match run(Rights::Root).await {
        // Where nixbox cannot become root, root runs nothing of nixbox's.
        Err(ScriptError::NoRights { .. }) => run(Rights::User).await,
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::testing::{Need, have};

    /// What the script makes of one process of another connection that SIGKILL does not end.
    fn sentenced(shell: &[&str], state: &str) -> (Option<i32>, String) {
        let proc = tempfile::tempdir().unwrap();
        // More than any kernel counts to (PID_MAX_LIMIT).
        let process = proc.path().join("99999999");
        std::fs::create_dir(&process).unwrap();
        std::fs::write(
            process.join("cmdline"),
            format!("sh\0-c\0…\0{}\0", ScriptMark::new().unwrap().as_str()),
        )
        .unwrap();
        std::fs::write(process.join("comm"), "sync\n").unwrap();
        std::fs::write(process.join("status"), format!("Name:\tsync\nState:\t{state}\n")).unwrap();
        let script = END.replace("/proc", proc.path().to_str().unwrap());
        let script =
            format!("sleep() {{ :; }}\nmine=' -e {}'\n{script}", ScriptMark::new().unwrap().as_str());
        let ended = Command::new(shell[0]).args(&shell[1..]).arg(script).output().unwrap();
        (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
    }

    #[test]
    fn what_is_killed_in_a_call_that_never_ends_holds_nobody_up_and_what_runs_does() {
        for shell in [&["sh", "-c"][..], &["busybox", "ash", "-c"]] {
            if !have(&[Need::Program(shell[0])]) {
                continue;
            }
            assert_eq!(sentenced(shell, "D (disk sleep)"), (Some(0), String::new()), "{shell:?}");
            let (code, said) = sentenced(shell, "S (sleeping)");
            assert_eq!(code, Some(1), "{shell:?}: {said}");
            assert!(said.contains("99999999 (sync)"), "{shell:?}: {said}");
        }
    }
}
