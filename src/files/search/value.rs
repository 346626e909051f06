//! Which parts of a value are searched for, and what happens where they are found.
//!
//! A value is searched for as a whole, without the line ends at its end. A long one is searched for by parts of [`PART`]
//! bytes, so that one of them is enough. A private key is searched for by the lines that are its own. A file may hold a
//! token among other text; a program then keeps the token alone, so that every part of it that looks like a token is
//! searched for too.
//!
//! Not everything that nixbox injects is a secret: `[env]` may hold the name of an editor, which is everywhere in the guest.
//! Overwriting it would ruin the snapshot. So a value that looks like words is treated otherwise than a token
//! ([`Treatment`]).

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::fingerprint::SHORTEST;
use crate::world::Secret;

/// The longest part of a value that is searched for as one, in bytes.
pub const PART: usize = 256;
/// The most such parts of one value. The parts of a longer value are spread over it.
const MOST_PARTS: usize = 64;
/// The most tokens that are searched for in one file.
const MOST_TOKENS: usize = 256;
/// The length of the shortest token that is searched for in a file besides the file as a whole.
const SHORTEST_TOKEN: usize = 20;
/// The length from which on a text that has the letters of base64 may be a token for that reason.
const LIKE_BASE64: usize = 24;
/// The first characters of every private key in the format of OpenSSH that has no passphrase.
const OPENSSH_HEADER: &str = "b3BlbnNzaC1rZXktdjE";
/// How often a value that looks like words may occur in a file and be overwritten there.
pub const RARE: u64 = 64;

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// A text of the configuration itself.
    Written,
    /// A variable, a file or a command of the host, for a variable of the guest.
    Read,
    /// The content of a file.
    File,
}

/// A value that the guest is given.
#[derive(Debug, Clone)]
pub struct NamedValue {
    /// Its name for people: that of its variable, or of its file.
    pub name: String,
    /// Where it comes from.
    pub kind: ValueKind,
    /// The value.
    pub content: Secret,
}

/// What happens where a value is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Treatment {
    /// It looks like a token, and must not be in a snapshot.
    Token,
    /// It looks like words, and comes from where secrets come from: it must not be in a snapshot unless it occurs so often
    /// that it is no secret ([`RARE`]).
    Words,
    /// It looks like words, and is written in the configuration: it is counted.
    Ordinary,
}

impl NamedValue {
    fn trimmed(&self) -> &[u8] {
        let content = self.content.expose();
        let end = content.iter().rposition(|byte| !byte.is_ascii_whitespace()).map_or(0, |last| last + 1);
        &content[..end]
    }

    /// What happens where it is found.
    #[must_use]
    pub fn treatment(&self) -> Treatment {
        let random =
            looks_random(self.trimmed()) || !tokens(self.trimmed()).is_empty() || is_key(self.trimmed());
        match self.kind {
            _ if random => Treatment::Token,
            ValueKind::Written => Treatment::Ordinary,
            ValueKind::Read | ValueKind::File => Treatment::Words,
        }
    }

    /// The runs of bytes that are searched for, in all their forms; none if the value is too short.
    #[must_use]
    pub fn parts(&self) -> Vec<Zeroizing<Vec<u8>>> {
        let whole = self.trimmed();
        let mut parts: Vec<&[u8]> = if is_key(whole) { key_lines(whole) } else { pieces(whole) };
        if self.kind == ValueKind::File {
            parts.extend(tokens(whole));
        }
        parts.retain(|part| part.iter().skip_while(|byte| **byte == 0).count() >= SHORTEST);
        parts.sort_unstable();
        parts.dedup();
        parts.into_iter().map(|part| Zeroizing::new(part.to_vec())).collect()
    }
}

/// A value in parts of [`PART`] bytes; the last may overlap the one before it.
fn pieces(value: &[u8]) -> Vec<&[u8]> {
    if value.len() <= PART {
        return vec![value];
    }
    let last = value.len() - PART;
    let count = value.len().div_ceil(PART).min(MOST_PARTS);
    (0..count).map(|number| last * number / (count - 1)).map(|at| &value[at..at + PART]).collect()
}

fn is_key(value: &[u8]) -> bool {
    let text = String::from_utf8_lossy(value);
    text.contains("-----BEGIN ") && text.contains("PRIVATE KEY-----")
}

/// The lines of private keys that other keys do not have.
fn key_lines(value: &[u8]) -> Vec<&[u8]> {
    let lines = value.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let own = |line: &&[u8]| {
        line.len() >= 16 && !line.starts_with(b"-----") && !line.starts_with(OPENSSH_HEADER.as_bytes())
    };
    lines.filter(own).take(MOST_TOKENS).collect()
}

/// The parts of a text that look like tokens.
fn tokens(value: &[u8]) -> Vec<&[u8]> {
    let of_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/_-~".contains(byte);
    let runs = value.split(|byte| !of_token(byte));
    runs.filter(|run| run.len() >= SHORTEST_TOKEN && run.len() <= PART && looks_random(run))
        .filter(|run| !run.starts_with(OPENSSH_HEADER.as_bytes()))
        .take(MOST_TOKENS)
        .collect()
}

/// Whether these bytes look as if nobody chose them for their meaning.
fn looks_random(value: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(value) else { return true };
    let is_word = |part: &&str| part.len() >= 3 && part.bytes().all(|byte| byte.is_ascii_lowercase());
    let runs = text.split(|character: char| !character.is_ascii_alphanumeric());
    let digits = |run: &str| run.bytes().filter(u8::is_ascii_digit).count();
    let mixed = |run: &str| run.len() >= 12 && digits(run) >= 2 && run.len() - digits(run) >= 2;
    // A path may have a part that looks like a token, but has words besides.
    if runs.clone().any(mixed) && !text.split('/').any(|part| is_word(&part)) {
        return true;
    }
    let hexadecimal = value.len() >= 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if hexadecimal && digits(text) >= 2 || value.len() >= LIKE_BASE64 && is_like_base64(text) {
        return true;
    }
    // Passwords have such letters; names of programs and platforms have few of them in upper case.
    let has = |kind: fn(&u8) -> bool| text.as_bytes().iter().any(kind);
    let other = has(u8::is_ascii_digit) || has(|byte| !byte.is_ascii_alphanumeric());
    has(u8::is_ascii_lowercase)
        && has(u8::is_ascii_uppercase)
        && other
        && !text.contains([' ', '/', '.', ':', '@', ',', '='])
}

/// Whether a text has the letters of base64 and no word among them.
fn is_like_base64(text: &str) -> bool {
    let letters = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/_-=".contains(&byte));
    let has = |kind: fn(&u8) -> bool| text.as_bytes().iter().any(kind);
    let all = has(u8::is_ascii_digit) && has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase);
    let is_word = |part: &str| {
        let rest = part.get(1..).unwrap_or_default();
        part.len() >= 3 && part.is_ascii() && rest.bytes().all(|byte| byte.is_ascii_lowercase())
    };
    letters && all && !text.split(['/', '_', '-', '+', '=']).any(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(kind: ValueKind, content: &[u8]) -> NamedValue {
        NamedValue { name: "V".to_owned(), kind, content: Secret::new(content.to_vec()) }
    }

    #[test]
    fn tokens_and_words_are_told_apart() {
        let cases: [(&[u8], Treatment); 17] = [
            (b"ghp_16C7e42F292c6912E7710c838347Ae178B4a", Treatment::Token),
            (b"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY1", Treatment::Token),
            (b"550e8400-e29b-41d4-a716-446655440000", Treatment::Token),
            (b"Tr0ub4dor&3", Treatment::Token),
            (b"nested-5f1c2d3e4b5a6978", Treatment::Token),
            (b"https://user:0123456789abcdef@example.org", Treatment::Token),
            (b"\xff\x01\x02\x03\x04\x05\x06\x07", Treatment::Token),
            (b"/usr/lib/jvm/java-21-openjdk-amd64", Treatment::Ordinary),
            (b"-Xmx2g -XX:+UseG1GC", Treatment::Ordinary),
            (b"production", Treatment::Ordinary),
            (b"en_US.UTF-8", Treatment::Ordinary),
            (b"x86_64-linux-gnu", Treatment::Ordinary),
            (b"jane.doe@example.com", Treatment::Ordinary),
            (b"https://registry.npmjs.org/", Treatment::Ordinary),
            (b"vi", Treatment::Ordinary),
            (b"aaaaaaaaaaaaaaaaaaaaaaaa", Treatment::Ordinary),
            (b"", Treatment::Ordinary),
        ];
        for (content, treatment) in cases {
            let text = String::from_utf8_lossy(content);
            assert_eq!(value(ValueKind::Written, content).treatment(), treatment, "{text}");
            let read = if treatment == Treatment::Ordinary { Treatment::Words } else { treatment };
            assert_eq!(value(ValueKind::Read, content).treatment(), read, "{text}");
        }
    }

    #[test]
    fn a_token_in_a_file_is_searched_for_by_itself() {
        let files: [(&[u8], &[u8]); 4] = [
            (b"//registry.npmjs.org/:_authToken=npm_0123456789abcdefGHIJ\n", b"npm_0123456789abcdefGHIJ"),
            (b"https://me:ghp_16C7e42F292c6912E771@github.com\n", b"ghp_16C7e42F292c6912E771"),
            (br#"{"auths":{"ghcr.io":{"auth":"bWU6Z2hwXzE2QzdlNDJGMjky"}}}"#, b"bWU6Z2hwXzE2QzdlNDJGMjky"),
            (
                b"[default]\naws_secret_access_key = wJalrXUtnFEMI/K7MDENG12/bPxRfi\n",
                b"wJalrXUtnFEMI/K7MDENG12/bPxRfi",
            ),
        ];
        for (content, token) in files {
            let parts = value(ValueKind::File, content).parts();
            assert!(parts.iter().any(|part| ***part == *token), "{}", String::from_utf8_lossy(token));
            assert!(parts.iter().any(|part| ***part == *content.trim_ascii_end()));
            assert_eq!(parts.len(), 2);
            assert_eq!(value(ValueKind::File, content).treatment(), Treatment::Token);
        }
    }

    #[test]
    fn a_long_value_is_searched_for_by_parts_that_reach_from_its_first_byte_to_its_last() {
        for length in [257, 512, 1000, 1 << 20] {
            let content: Vec<u8> = (0..length).map(|at: usize| (at * 7 % 251) as u8 | 1).collect();
            let parts = pieces(&content);
            assert_eq!(parts.len(), length.div_ceil(PART).min(MOST_PARTS), "{length}");
            assert!(parts.iter().all(|part| part.len() == PART));
            assert!(content.starts_with(parts[0]) && content.ends_with(parts[parts.len() - 1]));
        }
    }

    #[test]
    fn a_private_key_is_searched_for_by_the_lines_that_are_its_own() {
        let key = b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\nQyNTUxOQAAACDxK1\r\nshort\n-----END OPENSSH PRIVATE KEY-----\n";
        let parts = value(ValueKind::File, key).parts();
        assert_eq!(parts, [Zeroizing::new(b"QyNTUxOQAAACDxK1".to_vec())]);
    }

    #[test]
    fn short_values_have_no_parts() {
        for short in [&b""[..], b"vi", b"1234567", b"1234567\n\n", b"\0\0\0\0\x001234567"] {
            assert!(value(ValueKind::Read, short).parts().is_empty());
        }
        assert_eq!(value(ValueKind::Read, b"12345678\n").parts(), [Zeroizing::new(b"12345678".to_vec())]);
    }
}
