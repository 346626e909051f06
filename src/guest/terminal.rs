//! Finds a type of terminal that the guest knows. Programs of a guest that does not know the type in `TERM` refuse to draw,
//! and guests know few types: a Debian without `ncurses-term` knows `xterm-256color` and not `xterm-kitty`.

use std::time::Duration;

use zeroize::Zeroizing;

use super::channel::{Capture, SshSession};
use super::shell::quoted;

/// The types that are tried after the person's own, best first. All terminals of today understand the first two.
const FALLBACKS: [&str; 4] = ["xterm-256color", "xterm", "vt100", "linux"];

/// The type of a terminal that can do the least.
pub const PLAINEST: &str = "dumb";

/// What a person is told whose terminal has another type than the guest is told.
#[must_use]
pub fn told_otherwise(own: &str, told: &str) -> String {
    format!("nixbox: the guest does not know the terminal {own}, and is told that it is {told}\n")
}

/// The directories of terminfo that Linux distributions use.
const DIRECTORIES: &str =
    r#""$HOME/.terminfo" /etc/terminfo /lib/terminfo /usr/share/terminfo /usr/lib/terminfo"#;

/// Prints the first of its arguments that the guest has a description of.
const FIRST_KNOWN: &str = r#"for t in "$@"; do
  infocmp "$t" > /dev/null 2>&1 && { echo "$t"; exit; }
  for d in DIRECTORIES; do
    [ ! -e "$d/${t%"${t#?}"}/$t" ] || { echo "$t"; exit; }
  done
done"#;

/// How long the guest may take. A shell can be used without an answer.
const LIMIT: Duration = Duration::from_secs(5);

/// The type of terminal to tell the guest in place of `wanted`, if the guest does not know that and knows another. This is
/// one command in the guest.
pub async fn substitute(session: &SshSession, wanted: &str) -> Option<&'static str> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "+-._".contains(letter);
    if wanted.is_empty() || !wanted.chars().all(plain) {
        return None;
    }
    let capture = Capture { most: 1024, within: LIMIT, prompt: None };
    let answer = session.exec(command(DIRECTORIES, wanted).as_bytes(), Zeroizing::default(), capture).await;
    // Without an answer the person's own type is as good as any other.
    let answer = String::from_utf8(answer.ok()?.stdout).ok()?;
    let known = answer.lines().next_back()?;
    FALLBACKS.into_iter().find(|fallback| *fallback == known && known != wanted)
}

fn command(directories: &str, wanted: &str) -> String {
    let script = FIRST_KNOWN.replace("DIRECTORIES", directories);
    format!("exec sh -c {} nixbox {} {}", quoted(&script), quoted(wanted), FALLBACKS.join(" "))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_first_type_that_the_guest_has_a_description_of_is_chosen() {
        let home = tempfile::tempdir().unwrap();
        let ask = |wanted: &str| {
            let command = command("\"$HOME/.terminfo\" /nowhere", wanted);
            let mut shell = Command::new("/bin/sh");
            // Nothing is on this PATH, so there is no infocmp.
            let output = shell
                .arg("-c")
                .arg(command.replace("sh -c", "/bin/sh -c"))
                .env("HOME", home.path())
                .env("PATH", "/nowhere");
            String::from_utf8(output.output().unwrap().stdout).unwrap()
        };
        assert_eq!(ask("xterm-kitty"), "");
        for (name, expected) in [("linux", "linux\n"), ("xterm", "xterm\n"), ("xterm-kitty", "xterm-kitty\n")]
        {
            let directory = home.path().join(".terminfo").join(&name[..1]);
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(directory.join(name), "").unwrap();
            assert_eq!(ask("xterm-kitty"), expected);
        }
    }
}
