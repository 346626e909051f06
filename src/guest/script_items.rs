//! What a script tells about several things of the guest, each of which may consist of any bytes.
//!
//! The script calls the shell function `item WORDS` before each of them. What stands between two of these headers is the
//! body of the first. A header begins with random digits that no other script has, so that nothing which is told can be
//! mistaken for a header. The script's output is cut off after a number of bytes that the caller chooses, and held in
//! memory that is overwritten when it is dropped.

use std::time::Duration;

use tokio::time::timeout;
use zeroize::Zeroizing;

use super::channel::ChannelError;
use super::shell::{Rights, ScriptError, Shell};

/// What a script has told.
pub(super) struct ScriptItems {
    mark: String,
    output: Zeroizing<Vec<u8>>,
}

/// One thing that was told about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ScriptItem<'a> {
    /// The words of its header.
    pub(super) header: &'a [u8],
    /// What the script has told.
    pub(super) body: &'a [u8],
}

/// The header of the item by which a script says that it has told everything.
const END: &[u8] = b"end";

impl ScriptItems {
    /// Runs a script, and keeps at most `most` bytes of what it tells.
    ///
    /// # Errors
    /// Any [`ScriptError`].
    pub(super) async fn of(
        shell: &Shell,
        what: &'static str,
        rights: Rights,
        script: &str,
        most: usize,
        within: Duration,
    ) -> Result<Self, ScriptError> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(ScriptError::Unnamed)?;
        let mark = hex::encode(random);
        let script = format!(
            "item() {{ printf '\\n%s %s\\n' {mark} \"$*\"; }}\n{{\n{script}\nitem end\n}} | head -c {most}"
        );
        let told = async { shell.converse(what, rights, &script).await?.read_to_end(most).await };
        let silent = ChannelError::Silent { doing: "running a command", limit: within };
        let told = timeout(within, told).await;
        let output = told.unwrap_or(Err(ScriptError::Channel { what, source: silent }))?;
        Ok(Self { mark, output })
    }

    /// The items in the order in which they were told. A last one that was cut off is among them.
    pub(super) fn items(&self) -> Vec<ScriptItem<'_>> {
        let start = format!("\n{} ", self.mark).into_bytes();
        let mut rest = self.output.as_slice();
        let mut items = Vec::new();
        let mut header_at = find(rest, &start);
        while let Some(at) = header_at {
            rest = &rest[at + start.len()..];
            header_at = find(rest, &start);
            let told = &rest[..header_at.unwrap_or(rest.len())];
            let header_end = told.iter().position(|byte| *byte == b'\n').unwrap_or(told.len());
            items.push(ScriptItem {
                header: &told[..header_end],
                body: told.get(header_end + 1..).unwrap_or_default(),
            });
        }
        items
    }
}

/// What a guest tells, for people: without control characters, and so many characters at most.
pub(super) fn printable(text: &str, most: usize) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(most).collect()
}

/// Whether the script has told everything.
pub(super) fn are_whole(items: &[ScriptItem<'_>]) -> bool {
    items.last().is_some_and(|item| item.header == END)
}

fn find(bytes: &[u8], start: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        // A header begins with a line end, and few bytes are one.
        from += bytes[from..].iter().position(|byte| *byte == start[0])?;
        if bytes[from..].starts_with(start) {
            return Some(from);
        }
        from += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(output: &[u8]) -> ScriptItems {
        ScriptItems { mark: "0f".to_owned(), output: Zeroizing::new(output.to_vec()) }
    }

    #[test]
    fn bodies_are_any_bytes_and_a_header_without_the_mark_is_one_of_them() {
        let told = items(b"login banner\n0f one 1\n\0\xff\n\n00 end\n\n0f two\n\n0f end\n");
        let told = told.items();
        let item = |header: &'static [u8], body: &'static [u8]| ScriptItem { header, body };
        assert_eq!(told, [item(b"one 1", b"\0\xff\n\n00 end\n"), item(b"two", b""), item(b"end", b"")]);
        assert!(are_whole(&told));
    }

    #[test]
    fn what_is_cut_off_is_not_whole() {
        let whole = b"\n0f one\nbody\n0f end\n";
        for length in 0..whole.len() - 1 {
            let cut = items(&whole[..length]);
            let told = cut.items();
            assert!(!are_whole(&told), "{length}: {told:?}");
            assert!(told.len() <= 2, "{length}: {told:?}");
        }
    }
}
