//! A command that a person runs in the guest, and the guard that signals it and ends it.
//!
//! A guest may have any login shell, and a value in an argument list is seen by all users of the guest. So what is to run,
//! with the values of its variables, is a file in the guest's memory, in a directory that only the user may enter. The
//! SSH server starts `sh` with this file, which the file's first line removes.
//!
//! A *guard* makes the directory, over a channel of its own. When nixbox gets a signal, the guard sends it to the process
//! group that the SSH server has made for the command. That works with every server, whereas OpenSSH and dropbear differ
//! in what they do with a signal request. When the guard's stdin ends before nixbox has dismissed it, nixbox was killed or
//! the connection is cut. The guard then ends the command: first by a hang-up, as a terminal does, and after two seconds
//! by a kill. What the command has left in the background when it ended by itself stays.

use zeroize::Zeroizing;

use super::channel::{GuestCommand, GuestTerminal};
use super::shell::{Dialogue, Rights, ScriptError, Shell, quoted};
use crate::world::{Secret, UserName, VariableName};

/// What is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandLine {
    /// A line for `sh`.
    Shell(String),
    /// A program and its arguments.
    Program(Vec<String>),
}

impl CommandLine {
    /// One word is a line for the shell, and several are a program and its arguments.
    #[must_use]
    pub fn of_words(words: &[String]) -> Self {
        match words {
            [line] => Self::Shell(line.clone()),
            words => Self::Program(words.to_vec()),
        }
    }

    /// The words that come after `exec`. A shell that finds no program speaks as `nixbox`.
    fn words(&self) -> String {
        match self {
            Self::Shell(line) => format!("sh -c {} nixbox", quoted(line)),
            Self::Program(words) => {
                let words: Vec<_> = words.iter().map(|word| quoted(word)).collect();
                format!("sh -c 'exec \"$@\"' nixbox {}", words.join(" "))
            }
        }
    }
}

/// A command of a person.
#[derive(Debug, Clone)]
pub struct PersonCommand {
    /// What is to run.
    pub line: CommandLine,
    /// Variables beside those of the workspace. No value has a zero byte.
    pub variables: Vec<(VariableName, Secret)>,
    /// Where it runs; in the home of the user otherwise. `~` is the home of the user that nixbox logs in as.
    pub directory: Option<String>,
    /// Who runs it; the user that nixbox logs in as otherwise.
    pub user: Option<UserName>,
    /// Its terminal, if it has one.
    pub terminal: Option<GuestTerminal>,
}

impl PersonCommand {
    /// Starts the command and its guard.
    ///
    /// # Errors
    /// Any [`ScriptError`].
    pub async fn start(&self, shell: &Shell) -> Result<(CommandGuard, GuestCommand), ScriptError> {
        let file = self.file(shell);
        let rights = if self.user.is_some() { Rights::Root } else { Rights::User };
        let ids = shell.facts.ids;
        let script = GUARD
            .replace("LENGTH", &file.len().to_string())
            .replace("OWNER", &format!("{}:{}", ids.uid, ids.gid));
        let mut dialogue = shell.converse_unmarked(WHAT, rights, &script).await?;
        dialogue.send(file).await?;
        let line = dialogue.line().await?;
        let Some(directory) = directory_of(&line) else {
            return Err(ScriptError::Senseless { what: WHAT });
        };
        let command = format!("{START}{directory}{FILE}");
        let started = shell.session.start_beside(command.as_bytes(), self.terminal.as_ref()).await;
        let command = started.map_err(|source| ScriptError::Channel { what: WHAT, source })?;
        Ok((CommandGuard { dialogue }, command))
    }

    /// The file that `sh` runs.
    fn file(&self, shell: &Shell) -> Zeroizing<Vec<u8>> {
        let directory = self.directory.as_deref().map(|directory| match directory.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => {
                shell.facts.home.join(rest.trim_start_matches('/'))
            }
            _ => directory.to_owned(),
        });
        // A directory that begins with a hyphen is no option.
        let enter = directory.map_or(String::new(), |directory| {
            let plain = if directory.starts_with('-') { format!("./{directory}") } else { directory };
            let complaint = quoted(&format!("nixbox: the guest's directory {plain} cannot be entered"));
            format!("cd {} 2> /dev/null || {{ printf '%s\\n' {complaint} >&2; exit 127; }}\n", quoted(&plain))
        });
        let words = self.line.words();
        let last = match &self.user {
            None => format!("{enter}exec {words}\n"),
            Some(user) => self.as_user(user, &format!("{enter}exec {words}")),
        };
        // Enough that no value is moved, and left behind where it was.
        let of_variable = |(name, value): &(VariableName, Secret)| {
            2 * name.as_str().len() + QUOTED_QUOTE.len() * value.expose().len() + 16
        };
        let room = BEGINNING.len()
            + ENVIRONMENT.len()
            + last.len()
            + self.variables.iter().map(of_variable).sum::<usize>();
        let mut file = Zeroizing::new(Vec::with_capacity(room));
        file.extend_from_slice(BEGINNING.as_bytes());
        if self.user.is_none() {
            file.extend_from_slice(ENVIRONMENT.as_bytes());
        }
        for (name, value) in &self.variables {
            file.extend_from_slice(format!("{name}='").as_bytes());
            for byte in value.expose() {
                file.extend_from_slice(if *byte == b'\'' {
                    QUOTED_QUOTE
                } else {
                    std::slice::from_ref(byte)
                });
            }
            file.extend_from_slice(format!("'\nexport {name}\n").as_bytes());
        }
        file.extend_from_slice(last.as_bytes());
        file
    }

    /// The lines by which the user that nixbox logs in as becomes another one for `line`.
    fn as_user(&self, user: &UserName, line: &str) -> String {
        let names: Vec<&str> = self.variables.iter().map(|(name, _)| name.as_str()).collect();
        let keep =
            if names.is_empty() { String::new() } else { format!("--preserve-env={} ", names.join(",")) };
        let (user, line) = (quoted(user.as_str()), quoted(line));
        // busybox has su and no sudo. su of another implementation has the same options in this order.
        format!(
            "if [ \"$(id -u)\" = 0 ]; then exec su -s /bin/sh {user} -c {line}; fi\n\
             exec sudo -n -H {keep}-u {user} -- sh -c {line}\n"
        )
    }
}

/// How a single quote is written within single quotes.
const QUOTED_QUOTE: &[u8] = br"'\''";

/// The command line is this, the directory, and [`FILE`].
const START: &str = "exec sh ";
/// The file in the directory.
const FILE: &str = "/command";

/// The file that a command line starts, if it is one of [`PersonCommand::start`].
pub(crate) fn file_of(command: &str) -> Option<&str> {
    command.strip_prefix(START).filter(|file| file.ends_with(FILE) && directory_of(file.as_bytes()).is_some())
}

/// For messages.
const WHAT: &str = "start the command";

/// The first lines of the file. If the guard has moved the directory, nixbox has gone, and nothing is to run.
const BEGINNING: &str = r#"d=${0%/*}
rm -f "$0"
echo $$ > "$d/leader" || exit 129
unset d
"#;

/// The line that sets the variables of the workspace.
const ENVIRONMENT: &str = "[ ! -r \"$HOME/.env\" ] || . \"$HOME/.env\"\n";

/// The guard. It renames the directory before it looks for the leader of the process group, so that a command which has not
/// begun yet finds that it must not run.
const GUARD: &str = r#"
d=
for b in "${XDG_RUNTIME_DIR:-}" /dev/shm /run /tmp; do
  [ -n "$b" ] && [ -d "$b" ] && [ -w "$b" ] && d=$(mktemp -d "$b/nixbox-run.XXXXXX" 2> /dev/null) && break
  d=
done
[ -n "$d" ] || { echo 'no directory of the guest can be written: /dev/shm, /run, /tmp' >&2; exit 1; }
if ! head -c LENGTH > "$d/command" || [ "$(wc -c < "$d/command")" -ne LENGTH ]; then rm -rf "$d"; exit 1; fi
[ "$(id -u)" != 0 ] || chown -R OWNER "$d"
signal() {
  p=$(cat "$2/leader" 2> /dev/null) || return 0
  [ -d "/proc/$p" ] || return 0
  kill "-$1" "-$p" 2> /dev/null || kill "-$1" "$p" 2> /dev/null ||
    sudo -n kill -s "$1" -- "-$p" 2> /dev/null || sudo -n kill -s "$1" -- "$p" 2> /dev/null
}
printf '%s\n' "$d"
while read -r word; do
  case $word in
    dismissed) rm -rf "$d"; exit 0 ;;
    HUP | INT | QUIT | TERM) signal "$word" "$d" ;;
  esac
done
mv "$d" "$d.ended"
signal HUP "$d.ended"
i=0
while [ "$i" -lt 2 ] && p=$(cat "$d.ended/leader" 2> /dev/null) && [ -d "/proc/$p" ]; do i=$((i + 1)); sleep 1; done
signal KILL "$d.ended"
rm -rf "$d.ended"
"#;

/// The directory that the guard names, if no shell can take a character of it for anything else.
fn directory_of(line: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(line).ok()?;
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-".contains(letter);
    (text.starts_with('/') && text.len() < 256 && text.chars().all(plain)).then_some(text)
}

/// The guard of a command that runs.
pub struct CommandGuard {
    dialogue: Dialogue,
}

impl CommandGuard {
    /// Sends a signal, named without `SIG`, to the command: `HUP`, `INT`, `QUIT` or `TERM`.
    ///
    /// # Errors
    /// [`ScriptError::Channel`] when the connection has ended.
    pub async fn signal(&self, name: &str) -> Result<(), ScriptError> {
        self.dialogue.send(Zeroizing::new(format!("{name}\n").into_bytes())).await
    }

    /// Lets the guard go after the command has ended. Nothing of both is left in the guest when this returns.
    ///
    /// # Errors
    /// [`ScriptError::Channel`] when the connection has ended, and [`ScriptError::Failed`].
    pub async fn dismiss(self) -> Result<(), ScriptError> {
        self.signal("dismissed").await?;
        self.dialogue.finish().await
    }
}

#[cfg(test)]
mod tests;
