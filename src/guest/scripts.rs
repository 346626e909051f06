//! Runs the scripts of a person in the guest, as `nixbox run` runs a command: as the user, in the user's home, with the
//! workspace's environment.
//!
//! A script is no part of nixbox, so it runs without a [`ScriptMark`](super::shell::ScriptMark): a program that it leaves
//! in the background stays. A script that is still running must not outlive nixbox, because the next run starts it again.
//! So a guard in the guest waits for the end of the script's stdin, and then ends the process group that the SSH server has
//! made for the script. Stdin ends when nixbox gives up waiting, and when the connection is closed, as it is when nixbox is
//! killed.
//!
//! What a script prints comes from the guest, which may be hostile. Only its last lines are kept, in one line that acts on
//! no terminal, and only to be shown to a person.

use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::channel::{ChannelError, CommandEvent, CommandExit, GuestCommand, SshSession};
use super::last_words::last_words;
use super::shell::quoted;
use crate::world::{Failure, GuestScriptPoint, GuestScriptsOutcome, Interrupt};

/// How much of a script's output is kept, in bytes: its end.
const KEPT: usize = 4096;

/// How long the output of a script may come after its end. A program in the background may keep the output open.
const AFTER_END: Duration = Duration::from_millis(500);

/// How long the guest may take to end a script: two seconds after TERM it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the script in `$1` under its guard. A shell that is not interactive gives `/dev/null` to what it starts in the
/// background, so the guard reads a copy of stdin. The guard ignores the signal that it sends.
const GUARDED: &str = r#"exec 3<&0 < /dev/null
( trap '' TERM; read -r line <&3; kill -TERM 0; sleep 2; kill -KILL 0 ) > /dev/null 2>&1 &
guard=$!
exec 3<&-
[ ! -r "$HOME/.env" ] || . "$HOME/.env"
sh -c "$1"
status=$?
kill -KILL "$guard" 2> /dev/null
exit "$status""#;

/// What a person is told about the scripts of a point.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum GuestScriptNotice {
    #[error("script {number} of {point} ended in the guest with {exit}{}", in_parentheses(output))]
    Failed { point: &'static str, number: usize, exit: CommandExit, output: String },
    #[error(
        "script {number} of {point} did not end in the guest in time, and was ended{}: the scripts of a point have {} s \
         together, and what takes longer can go on in the background",
        in_parentheses(output), limit.as_secs()
    )]
    Slow { point: &'static str, number: usize, limit: Duration, output: String },
    #[error(
        "whether script {number} of {point} has ended in the guest is not known{}",
        in_parentheses(output)
    )]
    Unknown { point: &'static str, number: usize, output: String, source: ChannelError },
    #[error("the scripts of {point} were not run, because the guest cannot be reached")]
    Unreachable { point: &'static str, source: Failure },
    #[error("the scripts of {point} may have run in the guest already, and are run again")]
    Again { point: &'static str },
}

fn in_parentheses(output: &str) -> String {
    if output.is_empty() { String::new() } else { format!(" (it said last: {output})") }
}

/// How a wait for a script ended.
enum ScriptEnd {
    Exit(CommandExit),
    TimeIsOver,
    Interrupted,
    Broken(ChannelError),
}

/// Runs the scripts of a point in order, for `limit` at most, and tells `notice` of each that does not succeed. The next
/// script runs also after one that has failed, because the operation goes on without it too.
///
/// # Errors
/// [`Failure::Interrupted`].
pub async fn run_all(
    session: &SshSession,
    (point, scripts): (GuestScriptPoint, &[String]),
    limit: Duration,
    interrupt: &Interrupt,
    notice: &(dyn Fn(&GuestScriptNotice) + Send + Sync),
) -> Result<GuestScriptsOutcome, Failure> {
    let (point, deadline) = (point.key(), Instant::now() + limit);
    let mut outcome = GuestScriptsOutcome::Succeeded;
    for (number, script) in (1..).zip(scripts) {
        interrupt.check()?;
        let mut output = Vec::new();
        let ended = run(session, script, deadline, interrupt, &mut output).await;
        let output = last_words(&output);
        match ended {
            ScriptEnd::Exit(CommandExit::Status(0)) => {}
            ScriptEnd::Exit(exit) => {
                notice(&GuestScriptNotice::Failed { point, number, exit, output });
                outcome = GuestScriptsOutcome::Failed;
            }
            ScriptEnd::TimeIsOver => {
                notice(&GuestScriptNotice::Slow { point, number, limit, output });
                return Ok(GuestScriptsOutcome::Unfinished);
            }
            ScriptEnd::Interrupted => return Err(Failure::Interrupted),
            ScriptEnd::Broken(source) => {
                notice(&GuestScriptNotice::Unknown { point, number, output, source });
                return Ok(GuestScriptsOutcome::Unfinished);
            }
        }
    }
    Ok(outcome)
}

/// Runs one script, and leaves the end of what it printed in `output`.
async fn run(
    session: &SshSession,
    script: &str,
    deadline: Instant,
    interrupt: &Interrupt,
    output: &mut Vec<u8>,
) -> ScriptEnd {
    let line = format!("exec sh -c {} nixbox {}", quoted(GUARDED), quoted(script));
    let mut command = match timeout_at(deadline, session.start(line.as_bytes())).await {
        Ok(Ok(command)) => command,
        Ok(Err(error)) => return ScriptEnd::Broken(error),
        Err(_elapsed) => return ScriptEnd::TimeIsOver,
    };
    let ended = tokio::select! {
        ended = timeout_at(deadline, until_end(&mut command, output)) => ended,
        () = interrupt.wait() => {
            end(&mut command, output).await;
            return ScriptEnd::Interrupted;
        }
    };
    match ended {
        Ok(Ok(exit)) => {
            // What the script printed last may come after the message of its end.
            timeout(AFTER_END, until_closed(&mut command, output)).await.ok();
            ScriptEnd::Exit(exit)
        }
        Ok(Err(error)) => ScriptEnd::Broken(error),
        Err(_elapsed) => {
            end(&mut command, output).await;
            ScriptEnd::TimeIsOver
        }
    }
}

/// Makes the guard end the script, and waits until no process of it holds its output.
async fn end(command: &mut GuestCommand, output: &mut Vec<u8>) {
    // If this fails, the connection has ended, and stdin with it.
    command.send_no_more().await.ok();
    timeout(GRACE, until_closed(command, output)).await.ok();
}

async fn until_end(command: &mut GuestCommand, output: &mut Vec<u8>) -> Result<CommandExit, ChannelError> {
    loop {
        if let CommandEvent::Ended(exit) = take(command.next().await?, output) {
            return Ok(exit);
        }
    }
}

/// Takes what the command prints until there is no more, or the channel is closed.
async fn until_closed(command: &mut GuestCommand, output: &mut Vec<u8>) {
    while let Ok(event) = command.next().await {
        if matches!(take(event, output), CommandEvent::NoMore) {
            return;
        }
    }
}

/// Adds what the command printed to the end that is kept.
fn take(event: CommandEvent, output: &mut Vec<u8>) -> CommandEvent {
    if let CommandEvent::Out(data) | CommandEvent::Err(data) = &event {
        output.extend_from_slice(data);
        output.drain(..output.len().saturating_sub(KEPT));
    }
    event
}
