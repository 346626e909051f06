//! Text for the user's terminal, in which nothing acts on the terminal.
//!
//! A guest chooses the names of its processes, the lines of its log and what its commands write, and any of these may be
//! part of a message. A terminal would obey control characters in them: move the cursor, change what was printed, or
//! answer as if the user had typed. So every text that nixbox prints passes through here. Only `nixbox run`,
//! `nixbox shell` and `nixbox cp vm:FILE -` pass on what the guest writes as it is.

use std::fmt::Write as _;

/// Whether a terminal acts on the character instead of showing it: controls, and what changes the direction or the end of
/// a line. Line ends and tabs are kept.
fn acts(character: char) -> bool {
    match character {
        '\n' | '\t' => false,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        character => character.is_control(),
    }
}

/// The text with each character that acts on a terminal as an escape that can be read: `\x1b`, `\u{202e}`.
pub(super) fn visible(text: &str) -> String {
    escaped(text, |shown, character| match u32::from(character) {
        code @ ..0x80 => write!(shown, "\\x{code:02x}"),
        code => write!(shown, "\\u{{{code:x}}}"),
    })
}

/// The same for the text of a JSON value, which means the same afterwards.
pub(super) fn visible_json(text: &str) -> String {
    escaped(text, |shown, character| write!(shown, "\\u{:04x}", u32::from(character)))
}

fn escaped(text: &str, escape: impl Fn(&mut String, char) -> std::fmt::Result) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if acts(character) {
            // A String takes all that is written.
            escape(&mut shown, character).unwrap_or_default();
        } else {
            shown.push(character);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_becomes_an_escape() {
        let hostile = "a\x1b]0;title\x07b\rc\x7fd\u{9b}2Je\u{202e}f\u{2066}g\0";
        let expected = "a\\x1b]0;title\\x07b\\x0dc\\x7fd\\u{9b}2Je\\u{202e}f\\u{2066}g\\x00";
        assert_eq!(visible(hostile), expected);
        let kept = "two\nlines\tand \u{e4}\u{2019}\u{1f980} \u{5d0}";
        assert_eq!(visible(kept), kept);
    }

    #[test]
    fn json_keeps_its_meaning() {
        let value = serde_json::json!({ "name": "a\x1b[31m\u{9b}\u{7f}\u{202e}\nb" });
        let shown = visible_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!shown.chars().any(acts), "{shown:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
