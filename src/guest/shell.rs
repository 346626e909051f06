//! Runs scripts in any guest that has a POSIX `sh`. The scripts are written for busybox ash and dash.
//!
//! Every script runs under the same short command line. That command reads the script line by line from stdin, up to
//! the line [`END`], and leaves the bytes that follow to the programs that the script starts. The command uses `read`,
//! because `read` takes no byte more than it needs from a pipe, whereas `sh -s` reads in blocks. As a result, neither a
//! script nor its input is ever in an argument list, a login shell with another syntax does no harm, and input may be
//! any bytes.
//!
//! nixbox sends a script only after the script's shell has reported that it runs. If nixbox is killed, every script
//! that may continue is therefore already a process of the guest with the [`ScriptMark`] of its connection, and
//! [`super::stale_scripts`] can end that process.

use std::time::Duration;

use tracing::{Instrument as _, debug_span};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::channel::{Capture, ChannelError, CommandExit, Finished, SshSession};
use super::clock_gap;
use super::last_words::last_words;
use super::ready::Attempt;
use crate::world::{BootId, GuestHome, InvalidValue, UserIds};

mod dialogue;

pub use dialogue::Dialogue;

/// The rights with which a script runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// The rights of the user that nixbox logs in as.
    User,
    /// The rights of root, obtained by `sudo -n` unless that user is root.
    Root,
}

/// Marks the processes of one connection's scripts. No two connections have the same mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptMark(String);

impl ScriptMark {
    /// The prefix of all marks.
    const ALL: &str = "nixbox-script:";

    /// Creates a mark that no other connection has.
    ///
    /// # Errors
    /// If the host has no random bytes.
    pub(super) fn new() -> Result<Self, getrandom::Error> {
        let mut random = [0; 16];
        getrandom::fill(&mut random)?;
        Ok(Self(format!("{}{}", Self::ALL, hex::encode(random))))
    }

    /// The mark as it stands in the command line of a script's shell and in the environment of the shell's children.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The facts about a guest that nixbox asks for before anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The numbers of the user that nixbox logs in as.
    pub ids: UserIds,
    /// The home of that user.
    pub home: GuestHome,
    /// The home of root.
    pub root_home: GuestHome,
    /// The output of `uname -m`.
    pub processor: String,
    /// The guest's current boot.
    pub boot: BootId,
    /// How far the guest's clock was off when the connection was made; `None` if the guest cannot tell the time.
    pub clock_off_by: Option<Duration>,
}

/// Why a script did not do its work.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ScriptError {
    #[error("cannot {what}")]
    Channel { what: &'static str, source: ChannelError },
    #[error(
        "cannot {what}: the guest's user is not root and has no `sudo` without a password{}",
        in_parentheses(stderr)
    )]
    NoRights { what: &'static str, stderr: String },
    #[error("cannot {what}: the guest's shell ended with {exit}{}", in_parentheses(stderr))]
    Failed { what: &'static str, exit: CommandExit, stderr: String },
    #[error("cannot {what}: the guest's answer is not what the script prints")]
    Senseless { what: &'static str },
    #[error("cannot get random bytes to mark a connection to the guest with")]
    Unnamed(#[source] getrandom::Error),
    #[error("the guest says that its user has a home that cannot be used")]
    Home(#[from] InvalidValue),
}

impl From<ScriptError> for Attempt {
    fn from(error: ScriptError) -> Self {
        match error {
            ScriptError::Channel { source, .. } => source.into(),
            // Early in a boot the guest may not have /proc or the home yet.
            other => Self::Again(Box::new(other)),
        }
    }
}

fn in_parentheses(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(" ({stderr})") }
}

/// The command line under which every script runs. The command line exports its mark to its children, reports that it
/// runs, reads lines up to [`END`], and evaluates them. A script that was cut short is not run. The command line
/// contains no character that is special between single quotes in sh, zsh or fish.
fn loader(mark: Option<&ScriptMark>) -> String {
    let mark = mark.map_or("sh", ScriptMark::as_str);
    format!(
        "sh -c 'NIXBOX_SCRIPT=$0
export NIXBOX_SCRIPT
echo nixbox:begin
s=
while IFS= read -r l
do if [ \"$l\" = {END} ]
then eval \"$s\"
exit
fi
s=\"$s$l
\"
done
exit 125' {mark}"
    )
}

/// What every script begins with. The last directory of PATH is that of `image/runtime.rs`: a guest that boots an image of
/// nixbox's has there what its image lacks.
const PREAMBLE: &str =
    "umask 077; LC_ALL=C; PATH=${PATH:-/usr/bin:/bin}:/usr/local/sbin:/usr/sbin:/sbin:/run/nixbox/guest/bin
export LC_ALL PATH
";

const BEGIN: &[u8] = b"nixbox:begin\n";
/// The line that ends a script. The bytes after it on stdin are input for the programs that the script starts.
pub const END: &str = "nixbox:end";

/// The most bytes that are kept of a script's stdout and of its stderr. The scripts print little, but a failing program
/// may print much.
const MOST: usize = 1 << 20;

/// Quotes `text` so that the shell takes it literally. `text` must not contain NUL, which no path or name here can
/// contain.
#[must_use]
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The command line of a script whose output is bytes, with the arguments of the script. The output begins after the line
/// [`STREAM_BEGIN`], which the script has to print, because the login shell may print something before.
#[must_use]
pub fn stream_command(script: &str, arguments: &[&[u8]]) -> Vec<u8> {
    let mut command =
        format!("exec sh -c {} nixbox", quoted(&format!("{PREAMBLE}umask 022\n{script}"))).into_bytes();
    for argument in arguments {
        command.extend_from_slice(b" '");
        for byte in *argument {
            match byte {
                b'\'' => command.extend_from_slice(br"'\''"),
                byte => command.push(*byte),
            }
        }
        command.push(b'\'');
    }
    command
}

/// The line before the output of a script of [`stream_command`].
pub const STREAM_BEGIN: &[u8] = b"nixbox:stream\n";

/// A connection, and the facts about the guest at its other end.
pub struct Shell {
    /// The connection that scripts run over.
    pub session: SshSession,
    /// The facts that the guest reported when the connection was made.
    pub facts: Facts,
    /// The mark of this connection's scripts.
    pub mark: ScriptMark,
    /// Whether scripts of other connections may have been running when this connection was made.
    pub others: bool,
}

/// Prints the [`Facts`], and `others` if a script with a mark runs or if such a script could run unseen, because a
/// `/proc` that is mounted with `hidepid` hides the processes of other users.
const GREETING: &str = r#"
r=~root
printf 'fact=%s\n' "$(id -u)" "$(id -g)" "$HOME" "$r" "$(uname -m)" "$(cat /proc/sys/kernel/random/boot_id)" "$(date +%s)"
if grep -qs 'nixbox-scrip[t]:' /proc/[0-9]*/cmdline || [ ! -r /proc/1/cmdline ]; then echo fact=others; fi
"#;

impl Shell {
    /// Asks the guest for its [`Facts`]. A guest counts as ready when this succeeds.
    ///
    /// # Errors
    /// Any [`ScriptError`].
    pub async fn greet(session: SshSession, within: Duration) -> Result<Self, ScriptError> {
        let what = "ask the guest who it is";
        let input = Zeroizing::new(format!("{PREAMBLE}{GREETING}\n{END}\n").into_bytes());
        let capture = Capture { most: MOST, within, prompt: None };
        let asked = clock_gap::now();
        let span = debug_span!("script", what);
        let finished = session.exec(loader(None).as_bytes(), input, capture).instrument(span).await;
        let answered = clock_gap::now();
        let finished = finished.map_err(|source| ScriptError::Channel { what, source })?;
        let output = output_of(what, Rights::User, finished)?;
        let told: Vec<_> = output.lines().filter_map(|line| line.strip_prefix("fact=")).collect();
        let [uid, gid, home, root_home, processor, boot, clock, ref others @ ..] = told[..] else {
            return Err(ScriptError::Senseless { what });
        };
        let (Ok(uid), Ok(gid), Ok(boot)) = (uid.parse(), gid.parse(), Uuid::try_parse(boot)) else {
            return Err(ScriptError::Senseless { what });
        };
        let facts = Facts {
            ids: UserIds { uid, gid },
            home: home.parse()?,
            // A shell leaves the text as it is if the guest has no user of that name.
            root_home: root_home.parse().or_else(|_| "/root".parse())?,
            processor: processor.to_owned(),
            boot: BootId(boot.into_bytes()),
            clock_off_by: asked
                .zip(answered)
                .and_then(|(asked, answered)| Some(clock_gap::off_by(asked, clock.parse().ok()?, answered))),
        };
        let mark = ScriptMark::new().map_err(ScriptError::Unnamed)?;
        Ok(Self { session, facts, mark, others: !others.is_empty() })
    }

    /// Runs a script to its end and returns what it wrote to stdout. `what` names the work of the script in error
    /// messages.
    ///
    /// # Errors
    /// Any [`ScriptError`].
    pub async fn script(
        &self,
        what: &'static str,
        rights: Rights,
        script: &str,
        input: &[u8],
        within: Duration,
    ) -> Result<String, ScriptError> {
        let command = self.command(Some(&self.mark), rights);
        let text = format!("{PREAMBLE}{script}\n{END}\n");
        let mut whole = Zeroizing::new(Vec::with_capacity(text.len() + input.len()));
        whole.extend_from_slice(text.as_bytes());
        whole.extend_from_slice(input);
        let capture = Capture { most: MOST, within, prompt: Some(BEGIN) };
        let span = debug_span!("script", what, ?rights);
        let finished = self.session.exec(command.as_bytes(), whole, capture).instrument(span).await;
        output_of(what, rights, finished.map_err(|source| ScriptError::Channel { what, source })?)
    }

    /// Starts a script that nixbox talks to while the script runs. Output that a login shell prints before the script
    /// begins is dropped.
    ///
    /// # Errors
    /// Any [`ScriptError`].
    pub async fn converse(
        &self,
        what: &'static str,
        rights: Rights,
        script: &str,
    ) -> Result<Dialogue, ScriptError> {
        self.converse_under(Some(&self.mark), what, rights, script).await
    }

    /// Does the same with a script that other connections leave alone ([`super::stale_scripts`]), and beside which other
    /// commands run. Such a script has to end by itself when nixbox has gone, which it notices by the end of its stdin.
    ///
    /// # Errors
    /// Any [`ScriptError`].
    pub async fn converse_unmarked(
        &self,
        what: &'static str,
        rights: Rights,
        script: &str,
    ) -> Result<Dialogue, ScriptError> {
        self.converse_under(None, what, rights, script).await
    }

    async fn converse_under(
        &self,
        mark: Option<&ScriptMark>,
        what: &'static str,
        rights: Rights,
        script: &str,
    ) -> Result<Dialogue, ScriptError> {
        let channel = |source| ScriptError::Channel { what, source };
        let line = self.command(mark, rights);
        let started = match mark {
            Some(_) => self.session.start(line.as_bytes()).await,
            None => self.session.start_beside(line.as_bytes(), None).await,
        };
        let command = started.map_err(channel)?;
        let pending = Zeroizing::default();
        let mut dialogue = Dialogue { what, rights, command, pending, stderr: Vec::new() };
        let begun = loop {
            if let Some(at) = find(&dialogue.pending, BEGIN) {
                break at + BEGIN.len();
            }
            dialogue.listen(false).await?;
        };
        dialogue.pending.drain(..begun);
        dialogue.send(Zeroizing::new(format!("{PREAMBLE}{script}\n{END}\n").into_bytes())).await?;
        Ok(dialogue)
    }

    fn command(&self, mark: Option<&ScriptMark>, rights: Rights) -> String {
        let loader = loader(mark);
        match rights {
            Rights::Root if self.facts.ids.uid != 0 => format!("sudo -n {loader}"),
            _ => loader,
        }
    }
}

/// The stdout of a script from its beginning on, if the script ended successfully.
fn output_of(what: &'static str, rights: Rights, finished: Finished) -> Result<String, ScriptError> {
    let begun = find(&finished.stdout, BEGIN).map(|at| at + BEGIN.len());
    match begun {
        Some(at) if finished.exit == CommandExit::Status(0) => {
            String::from_utf8(finished.stdout[at..].to_vec()).map_err(|_| ScriptError::Senseless { what })
        }
        _ => Err(script_error(what, rights, begun.is_some(), finished.exit, &finished.stderr)),
    }
}

fn script_error(
    what: &'static str,
    rights: Rights,
    begun: bool,
    exit: CommandExit,
    stderr: &[u8],
) -> ScriptError {
    let stderr = last_words(stderr);
    if rights == Rights::Root && !begun {
        ScriptError::NoRights { what, stderr }
    } else {
        ScriptError::Failed { what, exit, stderr }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::io::Write;
    use std::os::unix::ffi::OsStrExt;
    use std::process::{Command as Process, Stdio};

    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Need, have};

    #[test]
    fn boot_ids_are_parsed_strictly() {
        let text = "01234567-89ab-cdef-0123-456789abcdef";
        assert_eq!(Uuid::try_parse(text).unwrap().into_bytes()[..3], [0x01, 0x23, 0x45]);
        for bad in ["", "0123", &text[1..], &format!("{text}0"), "+1234567-89ab-cdef-0123-456789abcdef"] {
            assert!(Uuid::try_parse(bad).is_err(), "{bad}");
        }
    }

    /// Runs the loader under every shell that this machine has.
    #[test]
    fn a_script_that_is_cut_short_does_not_run_and_input_is_passed_on() {
        for shell in [
            &["sh", "-c"][..],
            &["dash", "-c"],
            &["busybox", "ash", "-c"],
            &["bash", "-c"],
            &["bash", "--posix", "-c"],
        ] {
            if !have(&[Need::Program(shell[0])]) {
                continue;
            }
            let run = |input: &[u8]| {
                let mut process = Process::new(shell[0]);
                process.args(&shell[1..]).arg(loader(None)).stdin(Stdio::piped()).stdout(Stdio::piped());
                let mut process = process.spawn().unwrap();
                process.stdin.take().unwrap().write_all(input).unwrap();
                process.wait_with_output().unwrap()
            };
            let cut = run(b"echo ran\nnixbox:en");
            assert_eq!((cut.status.code(), cut.stdout.as_slice()), (Some(125), BEGIN), "{shell:?}");
            let whole = run(b"printf '%s\\n' '\\ran'\ncat\nexit 3\nnixbox:end\n\0\xff\nnixbox:end\n");
            assert_eq!(whole.status.code(), Some(3), "{shell:?}");
            let rest = &whole.stdout[BEGIN.len()..];
            assert!(rest.ends_with(b"\\ran\n\0\xff\nnixbox:end\n"), "{shell:?}: {rest:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn quoted_words_arrive_unchanged(text in "[^\0]{0,40}") {
            let output = Process::new("sh").arg("-c").arg(format!("printf %s {}", quoted(&text))).output().unwrap();
            prop_assert_eq!(output.stdout, text.as_bytes());
        }
    }

    #[test]
    fn a_stream_begins_after_its_line_and_arguments_are_any_bytes() {
        let script = "echo nixbox:stream; printf '%s|' \"$@\"";
        let command = stream_command(script, &[b"it's", b"", b"a\nb \xff", b"$HOME"]);
        let output = Process::new("sh").arg("-c").arg(OsStr::from_bytes(&command)).output().unwrap();
        let expected = [STREAM_BEGIN, b"it's||a\nb \xff|$HOME|"].concat();
        assert_eq!(output.stdout, expected);
    }
}
