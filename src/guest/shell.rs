//! Scripts for any guest with a POSIX `sh`: busybox ash and dash are what they are written for.
//!
//! Every script runs under the same short command line, reads itself line by line from stdin (`read` is the one thing that
//! takes no byte more than it needs from a pipe; `sh -s` reads in blocks), and leaves what follows on stdin to the
//! programs it starts. So neither a script nor its input is ever in an argument list, login shells with another syntax do
//! no harm, and input may be any bytes.
//!
//! A script is sent only once its shell has said that it runs. So whatever may still act after its nixbox is gone is among
//! the guest's processes by then, under the [`ScriptMark`] of the connection; [`super::stale_scripts`] ends it.

use std::time::Duration;

use zeroize::Zeroizing;

use super::channel::{Capture, ChannelError, CommandExit, Finished, GuestCommand, Said, SshSession};
use super::names::{BadGuestPath, Home};
use super::ready::Attempt;
use super::stale_scripts::ScriptMark;
use crate::world::BootId;

/// With whose rights a script runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// The user's that one logged in as.
    User,
    /// Root's: the user's own if it is root, else by `sudo -n`.
    Root,
}

/// What every guest is asked first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The user's number.
    pub uid: u32,
    /// The user's home.
    pub home: Home,
    /// The processor, as `uname -m` has it.
    pub processor: String,
    /// This boot.
    pub boot: BootId,
}

/// Why a script did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// Talking to the guest failed.
    #[error("cannot {what}")]
    Channel {
        /// What it should have done.
        what: &'static str,
        /// Why not.
        source: ChannelError,
    },
    /// It never began.
    #[error(
        "cannot {what}: the guest's user is not root and has no `sudo` without a password{}",
        said(stderr)
    )]
    NoRights {
        /// What it should have done.
        what: &'static str,
        /// The last that the guest said.
        stderr: String,
    },
    /// It failed.
    #[error("cannot {what}: the guest's shell ended with {exit:?}{}", said(stderr))]
    Failed {
        /// What it should have done.
        what: &'static str,
        /// How it ended.
        exit: CommandExit,
        /// The last that the guest said.
        stderr: String,
    },
    /// What it wrote is not what such a script writes.
    #[error("cannot {what}: the guest's answer makes no sense")]
    Senseless {
        /// What it should have done.
        what: &'static str,
    },
    /// The host has no random bytes to name a connection by.
    #[error("cannot name a connection to the guest")]
    Unnamed(#[source] std::io::Error),
    /// The guest's own idea of a path cannot be used.
    #[error("the guest's user has a home that cannot be used")]
    Home(#[from] BadGuestPath),
}

impl From<ScriptError> for Attempt {
    fn from(error: ScriptError) -> Self {
        match error {
            ScriptError::Channel { source, .. } => source.into(),
            // Early in a boot the guest may have neither /proc nor a home.
            other => Self::Again(Box::new(other)),
        }
    }
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(" ({stderr})") }
}

/// The command line under which every script runs. It takes its mark on, which its children inherit, says that it runs,
/// gathers the lines up to the last one, and becomes them. A script that was cut short is not run. Nothing in it is special
/// between single quotes in sh, zsh or fish.
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

const PREAMBLE: &str = "umask 077; LC_ALL=C; PATH=${PATH:-/usr/bin:/bin}:/usr/local/sbin:/usr/sbin:/sbin
export LC_ALL PATH
";

const BEGIN: &[u8] = b"nixbox:begin\n";
/// The line that ends a script on the stdin of the command that runs it.
pub const END: &str = "nixbox:end";

/// Output of ours is small; complaints may be longer than one thinks.
const MOST: usize = 1 << 20;

/// A word that the shell takes as it is. Nothing but NUL is special in it, which no name here can hold.
#[must_use]
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The command line of a program with its arguments, for `nixbox run`: with the workspace's environment, though no login
/// shell runs.
#[must_use]
pub fn run_command(arguments: &[String]) -> String {
    let words: Vec<_> = arguments.iter().map(|argument| quoted(argument)).collect();
    let shell = r#"[ ! -r "$HOME/.env" ] || . "$HOME/.env"; exec "$@""#;
    format!("exec sh -c {} nixbox {}", quoted(shell), words.join(" "))
}

/// A connection and what is known of the guest at its other end.
pub struct Shell {
    /// The connection.
    pub session: SshSession,
    /// What is known.
    pub facts: Facts,
    /// What its scripts can be told by.
    pub mark: ScriptMark,
    /// Whether there may have been scripts of other connections when this one was made.
    pub others: bool,
}

/// Who it is; and whether any script runs that bears a mark, or may run: a `/proc` can hide the processes of others.
const GREETING: &str = r#"
printf 'fact=%s\n' "$(id -u)" "$HOME" "$(uname -m)" "$(cat /proc/sys/kernel/random/boot_id)"
if grep -qs 'nixbox-scrip[t]:' /proc/[0-9]*/cmdline || [ ! -r /proc/1/cmdline ]; then echo fact=others; fi
"#;

impl Shell {
    /// Ask the guest what must be known of it. That this works is what "ready" means.
    ///
    /// # Errors
    /// Those of [`ScriptError`].
    pub async fn greet(session: SshSession, within: Duration) -> Result<Self, ScriptError> {
        let what = "ask the guest who it is";
        let input = Zeroizing::new(format!("{PREAMBLE}{GREETING}\n{END}\n").into_bytes());
        let capture = Capture { most: MOST, within, prompt: None };
        let finished = session.exec(loader(None).as_bytes(), input, capture).await;
        let finished = finished.map_err(|source| ScriptError::Channel { what, source })?;
        let output = judge(what, Rights::User, finished)?;
        let told: Vec<_> = output.lines().filter_map(|line| line.strip_prefix("fact=")).collect();
        let [uid, home, processor, boot, ref others @ ..] = told[..] else {
            return Err(ScriptError::Senseless { what });
        };
        let (Ok(uid), Some(boot)) = (uid.parse(), parse_boot(boot)) else {
            return Err(ScriptError::Senseless { what });
        };
        let facts =
            Facts { uid, home: Home::try_from(home.to_owned())?, processor: processor.to_owned(), boot };
        let mark = ScriptMark::new().map_err(ScriptError::Unnamed)?;
        Ok(Self { session, facts, mark, others: !others.is_empty() })
    }

    /// Run a script to its end and give what it wrote. `what` says what it does, for the error.
    ///
    /// # Errors
    /// Those of [`ScriptError`].
    pub async fn script(
        &self,
        what: &'static str,
        rights: Rights,
        script: &str,
        input: Zeroizing<Vec<u8>>,
        within: Duration,
    ) -> Result<String, ScriptError> {
        let command = self.command(rights);
        let text = format!("{PREAMBLE}{script}\n{END}\n");
        let mut whole = Zeroizing::new(Vec::with_capacity(text.len() + input.len()));
        whole.extend_from_slice(text.as_bytes());
        whole.extend_from_slice(&input);
        drop(input);
        let capture = Capture { most: MOST, within, prompt: Some(BEGIN) };
        let finished = self.session.exec(command.as_bytes(), whole, capture).await;
        judge(what, rights, finished.map_err(|source| ScriptError::Channel { what, source })?)
    }

    /// Start a script that is talked to while it runs. What it says before it begins is passed over.
    ///
    /// # Errors
    /// Those of [`ScriptError`].
    pub async fn converse(
        &self,
        what: &'static str,
        rights: Rights,
        script: &str,
    ) -> Result<Dialogue, ScriptError> {
        let channel = |source| ScriptError::Channel { what, source };
        let command = self.session.start(self.command(rights).as_bytes()).await.map_err(channel)?;
        let mut dialogue = Dialogue { what, rights, command, pending: Vec::new(), stderr: Vec::new() };
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

    fn command(&self, rights: Rights) -> String {
        let loader = loader(Some(&self.mark));
        match rights {
            Rights::Root if self.facts.uid != 0 => format!("sudo -n {loader}"),
            _ => loader,
        }
    }
}

/// A script that runs and is talked to.
pub struct Dialogue {
    what: &'static str,
    rights: Rights,
    command: GuestCommand,
    pending: Vec<u8>,
    stderr: Vec<u8>,
}

impl Dialogue {
    /// Send to the programs that the script started.
    ///
    /// # Errors
    /// [`ScriptError::Channel`].
    pub async fn send(&self, input: Zeroizing<Vec<u8>>) -> Result<(), ScriptError> {
        self.command.send(input).await.map_err(|source| ScriptError::Channel { what: self.what, source })
    }

    /// Exactly so many bytes of what it says.
    ///
    /// # Errors
    /// [`ScriptError::Failed`] if it ends instead; [`ScriptError::Channel`].
    pub async fn receive<const N: usize>(&mut self) -> Result<[u8; N], ScriptError> {
        loop {
            if let Some(chunk) = self.pending.first_chunk::<N>() {
                let chunk = *chunk;
                self.pending.drain(..N);
                return Ok(chunk);
            }
            self.listen(true).await?;
        }
    }

    /// Send nothing more, and wait until the script ends well.
    ///
    /// # Errors
    /// [`ScriptError::Failed`], [`ScriptError::Channel`].
    pub async fn finish(mut self) -> Result<(), ScriptError> {
        let channel = |source| ScriptError::Channel { what: self.what, source };
        self.command.send_no_more().await.map_err(channel)?;
        loop {
            match self.listen(true).await {
                Ok(()) => {}
                Err(ScriptError::Failed { exit: CommandExit::Status(0), .. }) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Hear one thing; an end is an error, for more was expected.
    async fn listen(&mut self, begun: bool) -> Result<(), ScriptError> {
        let channel = |source| ScriptError::Channel { what: self.what, source };
        if self.pending.len() > MOST || self.stderr.len() > MOST {
            return Err(channel(ChannelError::TooMuch { limit: MOST }));
        }
        match self.command.next().await.map_err(channel)? {
            Said::Out(data) => self.pending.extend_from_slice(&data),
            Said::Err(data) => self.stderr.extend_from_slice(&data),
            Said::Ended(exit) => {
                return Err(blame(self.what, self.rights, begun, exit, &self.stderr));
            }
            Said::NoMore => {}
        }
        Ok(())
    }
}

/// What a script wrote after it began, if it ended well.
fn judge(what: &'static str, rights: Rights, finished: Finished) -> Result<String, ScriptError> {
    let begun = find(&finished.stdout, BEGIN).map(|at| at + BEGIN.len());
    match begun {
        Some(at) if finished.exit == CommandExit::Status(0) => {
            String::from_utf8(finished.stdout[at..].to_vec()).map_err(|_| ScriptError::Senseless { what })
        }
        _ => Err(blame(what, rights, begun.is_some(), finished.exit, &finished.stderr)),
    }
}

fn blame(what: &'static str, rights: Rights, begun: bool, exit: CommandExit, stderr: &[u8]) -> ScriptError {
    let stderr = last_words(stderr);
    if rights == Rights::Root && !begun {
        ScriptError::NoRights { what, stderr }
    } else {
        ScriptError::Failed { what, exit, stderr }
    }
}

/// The end of what a program complained of, in one line that is safe to print.
fn last_words(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let end = lines[lines.len().saturating_sub(3)..].join("; ");
    end.chars().filter(|letter| !letter.is_control()).take(400).collect()
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// `01234567-89ab-…`, as the kernel writes it.
fn parse_boot(text: &str) -> Option<BootId> {
    let hex: String = text.split('-').collect();
    let digits = hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = digits.then(|| u128::from_str_radix(&hex, 16).ok())??;
    Some(BootId(number.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command as Process, Stdio};

    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Need, have};

    #[test]
    fn boot_ids_are_parsed_strictly() {
        let text = "01234567-89ab-cdef-0123-456789abcdef";
        assert_eq!(parse_boot(text).unwrap().0[..3], [0x01, 0x23, 0x45]);
        for bad in ["", "0123", &text[1..], &format!("{text}0"), "+1234567-89ab-cdef-0123-456789abcdef"] {
            assert!(parse_boot(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn complaints_are_safe_to_print() {
        assert_eq!(last_words(b"a\nb\n\n c\x1b[2J\nd\n"), "b; c[2J; d");
        assert!(last_words(&[b'x'; 9000]).len() <= 400);
    }

    /// Every shell that is here runs the loader as a guest's would.
    #[test]
    fn a_script_cut_short_is_not_run_and_input_is_left_alone() {
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
        fn quoted_words_arrive(text in "[^\0]{0,40}") {
            let output = Process::new("sh").arg("-c").arg(format!("printf %s {}", quoted(&text))).output().unwrap();
            prop_assert_eq!(output.stdout, text.as_bytes());
        }
    }

    #[test]
    fn run_has_the_environment_and_the_arguments() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join(".env"), "export GREETING='a b'\n").unwrap();
        let arguments = ["sh", "-c", "printf '%s|' \"$GREETING\" \"$@\"; exit 7", "x", "it's", "", "a\nb"]
            .map(String::from);
        let output = Process::new("sh")
            .arg("-c")
            .arg(run_command(&arguments))
            .env("HOME", home.path())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "a b|it's||a\nb|");
        assert_eq!(output.status.code(), Some(7));
    }
}
