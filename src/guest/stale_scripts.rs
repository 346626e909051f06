//! Ends the scripts that an earlier nixbox left running in the guest, before a new connection is used.
//!
//! When nixbox is killed or gives up waiting, its script continues, because an SSH server does not end a command when
//! the connection ends. A stale wipe could remove what the next run injects, and a stale injection could put a
//! credential into a guest that is about to be captured. So every script runs under the [`ScriptMark`] of its
//! connection, and each new connection first kills all processes with another mark. The guest is then as if the script
//! had been stopped at some point, a case that [`crate::fakes`] simulates.
//!
//! No stale script can start after that, because nixbox sends a script only once its shell runs ([`super::shell`]).

use std::time::Duration;

use super::shell::{Rights, ScriptError, ScriptMark, Shell};

/// The time limit of the whole script. The script itself gives up earlier.
const LIMIT: Duration = Duration::from_secs(60);

/// Kills every process that has a mark, except those that match `mine` (an argument list for grep), and repeats this
/// until no such process is left. A process that is killed inside a system call ends when the call returns. If the call
/// never returns, the script leaves the process alone, which is safe because the process does nothing after the call.
/// `sync` hangs like this when a share's daemon has died (virtiofs, seen in Linux 6.1 with Cloud Hypervisor v53.0).
const END: &str = r#"
i=0
while :; do
  left= stays=
  for f in $(grep -ls 'nixbox-scrip[t]:' /proc/[0-9]*/cmdline /proc/[0-9]*/environ); do
    ! grep -qs $mine "$f" || continue
    p=${f%/*}; p=${p##*/}
    kill -9 "$p" 2> /dev/null
    # A process that has ended meanwhile has neither arguments nor an environment.
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

/// Ends every script that runs in the guest, except those of this connection and those with a mark in `spared`.
///
/// # Errors
/// [`ScriptError::Failed`] names the processes that cannot be ended. The other variants of [`ScriptError`] occur too.
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
        // A nixbox that cannot become root has never started a script as root.
        Err(ScriptError::NoRights { .. }) => run(Rights::User).await,
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::testing::{Need, have};

    /// Runs the script in a `/proc` with one process of another connection that does not end after SIGKILL.
    fn run_against_unkillable(shell: &[&str], state: &str) -> (Option<i32>, String) {
        let proc = tempfile::tempdir().unwrap();
        // No process has this number (PID_MAX_LIMIT is lower).
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
    fn a_killed_process_that_hangs_in_a_system_call_is_not_waited_for() {
        for shell in [&["sh", "-c"][..], &["busybox", "ash", "-c"]] {
            if !have(&[Need::Program(shell[0])]) {
                continue;
            }
            assert_eq!(
                run_against_unkillable(shell, "D (disk sleep)"),
                (Some(0), String::new()),
                "{shell:?}"
            );
            let (code, said) = run_against_unkillable(shell, "S (sleeping)");
            assert_eq!(code, Some(1), "{shell:?}: {said}");
            assert!(said.contains("99999999 (sync)"), "{shell:?}: {said}");
        }
    }
}
