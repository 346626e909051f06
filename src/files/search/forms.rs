//! The forms in which a program may keep a value: as it is, or encoded.
//!
//! A form is a run of bytes that is in memory wherever the encoded value is, whatever surrounds it. base64 has three such
//! runs for each alphabet, one for each place that the value may have among groups of three bytes; the characters that
//! depend on the neighbours of the value are left out.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// How a value is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// As it is.
    Plain,
    /// base64, in the standard alphabet or in that for URLs.
    Base64,
    /// Percent signs, as in a URL or a form of HTML.
    Percent,
    /// Hexadecimal digits.
    Hexadecimal,
    /// UTF-16, the lower byte first.
    Utf16,
    /// The escapes of a JSON text, which are those of Java and JavaScript too.
    Json,
    /// Single quotes of a shell.
    Shell,
}

impl Form {
    /// Its name for people, as in "found as base64".
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain bytes",
            Self::Base64 => "base64",
            Self::Percent => "percent-encoded text",
            Self::Hexadecimal => "hexadecimal digits",
            Self::Utf16 => "UTF-16",
            Self::Json => "JSON escapes",
            Self::Shell => "shell quotes",
        }
    }
}

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const FOR_URLS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const LOWER: &[u8; 16] = b"0123456789abcdef";
const UPPER: &[u8; 16] = b"0123456789ABCDEF";

/// The forms of a value, each with its bytes, and none of them twice.
#[must_use]
pub fn forms_of(value: &[u8]) -> Vec<(Form, Zeroizing<Vec<u8>>)> {
    let mut forms = Vec::new();
    let mut add = |form, bytes: Vec<u8>| {
        let bytes = Zeroizing::new(bytes);
        if !forms.iter().any(|(_, other): &(Form, Zeroizing<Vec<u8>>)| **other == *bytes) {
            forms.push((form, bytes));
        }
    };
    add(Form::Plain, value.to_vec());
    for alphabet in [STANDARD, FOR_URLS] {
        for before in 0..3 {
            add(Form::Base64, base64(value, before, alphabet));
        }
    }
    for digits in [LOWER, UPPER] {
        add(Form::Hexadecimal, value.iter().flat_map(|byte| two_digits(*byte, digits)).collect());
        add(Form::Percent, percent(value, digits, b"-._~", false));
        // encodeURIComponent of JavaScript leaves more as it is.
        add(Form::Percent, percent(value, digits, b"-._~!'()*", false));
        add(Form::Percent, percent(value, digits, b"-._*", true));
    }
    if value.contains(&b'\'') {
        let quoted = |byte: &u8| if *byte == b'\'' { br"'\''".to_vec() } else { vec![*byte] };
        add(Form::Shell, value.iter().flat_map(quoted).collect());
    }
    if let Ok(text) = std::str::from_utf8(value) {
        add(Form::Utf16, text.encode_utf16().flat_map(u16::to_le_bytes).collect());
        for digits in [LOWER, UPPER] {
            // What must be escaped; what some writers escape besides; and all that is not ASCII.
            add(Form::Json, json(text, digits, "", false));
            add(Form::Json, json(text, digits, "/", false));
            add(Form::Json, json(text, digits, "<>&", false));
            add(Form::Json, json(text, digits, "", true));
            add(Form::Json, json(text, digits, "<>&", true));
        }
    }
    forms
}

/// The characters of base64 that depend on the value alone if so many bytes precede it in its group of three.
fn base64(value: &[u8], before: usize, alphabet: &[u8; 64]) -> Vec<u8> {
    let (from, to) = (before * 8, (before + value.len()) * 8);
    let bit = |at: usize| value[(at - from) / 8] >> (7 - at % 8) & 1;
    let character = |number: usize| {
        let six = (number * 6..number * 6 + 6).fold(0, |six, at| six << 1 | bit(at));
        alphabet[usize::from(six)]
    };
    (from.div_ceil(6)..to / 6).map(character).collect()
}

fn two_digits(byte: u8, digits: &[u8; 16]) -> [u8; 2] {
    [digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]]
}

fn percent(value: &[u8], digits: &[u8; 16], kept: &[u8], plus: bool) -> Vec<u8> {
    let one = |byte: &u8| match *byte {
        b' ' if plus => vec![b'+'],
        byte if byte.is_ascii_alphanumeric() || kept.contains(&byte) => vec![byte],
        byte => [&b"%"[..], &two_digits(byte, digits)].concat(),
    };
    value.iter().flat_map(one).collect()
}

/// A JSON text without its quotes. Besides what must be escaped, the characters in `also` are, and all that is not ASCII
/// if `ascii` says so. A solidus has an escape of its own.
fn json(text: &str, digits: &[u8; 16], also: &str, ascii: bool) -> Vec<u8> {
    let mut written = Vec::new();
    for character in text.chars() {
        match character {
            '"' | '\\' => written.extend([b'\\', character as u8]),
            '/' if also.contains('/') => written.extend(b"\\/"),
            '\n' => written.extend(b"\\n"),
            '\r' => written.extend(b"\\r"),
            '\t' => written.extend(b"\\t"),
            _ if character < ' ' || also.contains(character) || (ascii && !character.is_ascii()) => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let [high, low] = unit.to_be_bytes();
                    written.extend(b"\\u");
                    written.extend(two_digits(high, digits));
                    written.extend(two_digits(low, digits));
                }
            }
            _ => written.extend(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(value: &str, form: Form) -> Vec<String> {
        let forms = forms_of(value.as_bytes()).into_iter().filter(|(of, _)| *of == form);
        forms.map(|(_, bytes)| String::from_utf8_lossy(&bytes).into_owned()).collect()
    }

    #[test]
    fn base64_is_found_at_every_place_among_other_bytes() {
        // As `printf 'aahunter2-secret??zz' | base64` prints it, with 0 to 2 bytes before the value.
        for whole in
            ["aHVudGVyMi1zZWNyZXQ/P3p6", "YWh1bnRlcjItc2VjcmV0Pz96eg==", "YWFodW50ZXIyLXNlY3JldD8/eno="]
        {
            let found = texts("hunter2-secret??", Form::Base64);
            assert!(found.iter().any(|form| whole.contains(form.as_str())), "{whole} {found:?}");
            let for_url = whole.replace('/', "_");
            assert!(found.iter().any(|form| for_url.contains(form.as_str())), "{for_url} {found:?}");
        }
    }

    #[test]
    fn the_other_forms_are_those_of_the_programs_that_write_them() {
        let value = "pä ss/\"w'o<rd";
        assert_eq!(texts(value, Form::Plain), [value]);
        assert!(texts(value, Form::Percent).contains(&"p%C3%A4%20ss%2F%22w%27o%3Crd".to_owned()));
        assert!(texts(value, Form::Percent).contains(&"p%c3%a4%20ss%2f%22w'o%3crd".to_owned()));
        assert!(texts(value, Form::Percent).contains(&"p%C3%A4+ss%2F%22w%27o%3Crd".to_owned()));
        assert!(texts(value, Form::Json).contains(&r#"p\u00e4 ss/\"w'o<rd"#.to_owned()));
        assert!(texts(value, Form::Json).contains(&r#"pä ss\/\"w'o<rd"#.to_owned()));
        assert!(texts(value, Form::Json).contains(&r#"pä ss/\"w'o\u003crd"#.to_owned()));
        assert_eq!(texts(value, Form::Shell), [r#"pä ss/"w'\''o<rd"#]);
        assert_eq!(texts("hunter2!", Form::Hexadecimal), ["68756e7465723221", "68756E7465723221"]);
        assert_eq!(texts("hunter2!", Form::Utf16), ["h\0u\0n\0t\0e\0r\x002\0!\0"]);
    }

    #[test]
    fn no_form_occurs_twice() {
        for value in [&b"abcdefgh"[..], b"\xff\xfe\x00\x01\x02\x03\x04\x05", "ä<>&\"\\/+ 'ü".as_bytes()] {
            let forms = forms_of(value);
            for (at, (_, bytes)) in forms.iter().enumerate() {
                assert!(bytes.len() >= value.len() && !forms[..at].iter().any(|(_, other)| other == bytes));
            }
        }
    }
}
