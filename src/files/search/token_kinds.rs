//! Counts what looks like a well-known kind of token.
//!
//! The guest may hold credentials that nixbox never saw, such as that of a program which a person logged in with there.
//! They cannot be told from what a test or a manual has, so they are counted, for a warning, and never overwritten or
//! printed.
//!
//! Each kind is found by the literal text that it begins with, or that it has within it; what surrounds the text decides.

use std::collections::BTreeMap;
use std::ops::Range;

use aho_corasick::{AhoCorasick, BuildError, MatchKind};

/// A well-known kind of token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TokenKind {
    /// An access token of GitHub.
    GitHub,
    /// An access token of GitLab.
    GitLab,
    /// The identifier of an access key of AWS.
    Aws,
    /// A key of Anthropic's API.
    Anthropic,
    /// A key of OpenAI's API.
    OpenAi,
    /// A token of Slack.
    Slack,
    /// An access token of npm.
    Npm,
    /// An access token of Docker Hub.
    Docker,
    /// A private key in PEM, with content.
    PrivateKey,
}

/// The literal texts, each with the kind that it is a part of.
const LITERALS: [(&str, TokenKind); 19] = [
    ("ghp_", TokenKind::GitHub),
    ("gho_", TokenKind::GitHub),
    ("ghu_", TokenKind::GitHub),
    ("ghs_", TokenKind::GitHub),
    ("ghr_", TokenKind::GitHub),
    ("github_pat_", TokenKind::GitHub),
    ("glpat-", TokenKind::GitLab),
    ("AKIA", TokenKind::Aws),
    ("ASIA", TokenKind::Aws),
    ("sk-ant-", TokenKind::Anthropic),
    // All keys of OpenAI have this in the middle: base64 of its name.
    ("T3BlbkFJ", TokenKind::OpenAi),
    ("xoxb-", TokenKind::Slack),
    ("xoxp-", TokenKind::Slack),
    ("xoxa-", TokenKind::Slack),
    ("xoxr-", TokenKind::Slack),
    ("xoxs-", TokenKind::Slack),
    ("npm_", TokenKind::Npm),
    ("dckr_pat_", TokenKind::Docker),
    ("PRIVATE KEY-----", TokenKind::PrivateKey),
];

/// How many bytes before and after a literal text decide at most.
pub const REACH: usize = 192;

impl TokenKind {
    /// Its name for people, in the plural.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::GitHub => "tokens of GitHub",
            Self::GitLab => "tokens of GitLab",
            Self::Aws => "access keys of AWS",
            Self::Anthropic => "keys of Anthropic",
            Self::OpenAi => "keys of OpenAI",
            Self::Slack => "tokens of Slack",
            Self::Npm => "tokens of npm",
            Self::Docker => "tokens of Docker",
            Self::PrivateKey => "private keys (PEM)",
        }
    }

    /// Whether a token of this kind is around a literal text, given what is before it and after it.
    fn fits(self, before: &[u8], after: &[u8]) -> bool {
        let before = &before[before.len().saturating_sub(REACH)..];
        let after = &after[..after.len().min(REACH)];
        let alone = before.last().is_none_or(|byte| !byte.is_ascii_alphanumeric());
        match self {
            Self::GitHub => alone && looks_random(run(after, b"_"), 36),
            Self::GitLab => alone && looks_random(run(after, b"_-"), 20),
            Self::Aws => {
                let digits = run(after, b"");
                let base32 = |byte: &u8| byte.is_ascii_uppercase() || (b'2'..=b'7').contains(byte);
                alone && digits.len() == 16 && digits.iter().all(base32) && looks_random(digits, 16)
            }
            Self::Anthropic => alone && looks_random(run(after, b"_-"), 40),
            Self::OpenAi => {
                let start = before.iter().rposition(|byte| !is_of_token(*byte, b"_-")).map_or(0, |at| at + 1);
                before[start..].starts_with(b"sk-") && looks_random(run(after, b"_-"), 20)
            }
            Self::Slack => alone && looks_random(run(after, b"-"), 32),
            Self::Npm => alone && run(after, b"").len() == 36 && looks_random(run(after, b""), 36),
            Self::Docker => alone && looks_random(run(after, b"_-"), 27),
            Self::PrivateKey => {
                let line_ends = after.iter().take_while(|byte| b"\r\n\\".contains(byte)).count();
                // An escaped line end, as in JSON, is followed by its letter.
                let escaped = usize::from(after.first() == Some(&b'\\'));
                let body = after.get(line_ends + escaped..).unwrap_or_default();
                let begins = before.windows(10).rposition(|window| window == b"-----BEGIN");
                begins.is_some_and(|at| before.len() - at <= 32)
                    && line_ends > 0
                    && looks_random(run(body, b"+/"), 40)
            }
        }
    }
}

fn is_of_token(byte: u8, besides: &[u8]) -> bool {
    byte.is_ascii_alphanumeric() || besides.contains(&byte)
}

/// The letters, digits and other characters of a token at the beginning.
fn run<'a>(bytes: &'a [u8], besides: &[u8]) -> &'a [u8] {
    let end = bytes.iter().position(|byte| !is_of_token(*byte, besides)).unwrap_or(bytes.len());
    &bytes[..end]
}

/// Whether a text is long enough, and no placeholder such as `xxxx`.
fn looks_random(text: &[u8], shortest: usize) -> bool {
    const DIFFERENT: u32 = 8;
    let different = text.iter().fold(0_u128, |seen, byte| seen | 1 << (byte & 127)).count_ones();
    text.len() >= shortest && different >= DIFFERENT
}

/// A search for all kinds.
pub struct TokenKindSearch(AhoCorasick);

impl TokenKindSearch {
    /// A search.
    ///
    /// # Errors
    /// If the literal texts were more than a search can have.
    pub fn new() -> Result<Self, BuildError> {
        let texts = LITERALS.map(|(text, _)| text);
        AhoCorasick::builder().match_kind(MatchKind::LeftmostFirst).build(texts).map(Self)
    }

    /// Counts the tokens whose literal text begins in a part of these bytes. What is around the part is looked at.
    pub fn count(&self, bytes: &[u8], part: Range<usize>, counts: &mut BTreeMap<TokenKind, u64>) {
        const LONGEST: usize = 16;
        let end = (part.end + LONGEST).min(bytes.len());
        for found in self.0.find_iter(&bytes[part.start..end]) {
            let (from, to) = (part.start + found.start(), part.start + found.end());
            let (_, kind) = LITERALS[found.pattern().as_usize()];
            if from < part.end && kind.fits(&bytes[..from], &bytes[to..]) {
                *counts.entry(kind).or_default() += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(text: &[u8]) -> Vec<(TokenKind, u64)> {
        let mut counts = BTreeMap::new();
        TokenKindSearch::new().unwrap().count(text, 0..text.len(), &mut counts);
        counts.into_iter().collect()
    }

    const RANDOM: &str = "16C7e42F292c6912E7710c838347Ae178B4aZq3vT9wX0yK5mN2pR7sU4h";

    #[test]
    fn each_kind_is_counted_and_a_placeholder_is_not() {
        let of = |length: usize| &RANDOM[..length];
        let examples = [
            (format!("ghp_{}", of(36)), TokenKind::GitHub),
            (format!("github_pat_{}", of(50)), TokenKind::GitHub),
            (format!("glpat-{}", of(20)), TokenKind::GitLab),
            ("AKIAQX4BIPW3AHOV29GN".replace('9', "7"), TokenKind::Aws),
            (format!("sk-ant-api03-{}", of(50)), TokenKind::Anthropic),
            (format!("sk-{}T3BlbkFJ{}", of(20), of(20)), TokenKind::OpenAi),
            (format!("xoxb-1234567890-{}", of(24)), TokenKind::Slack),
            (format!("npm_{}", of(36)), TokenKind::Npm),
            (format!("dckr_pat_{}", of(27)), TokenKind::Docker),
            (format!("-----BEGIN RSA PRIVATE KEY-----\n{}", of(58)), TokenKind::PrivateKey),
            (format!("\"-----BEGIN PRIVATE KEY-----\\n{}", of(58)), TokenKind::PrivateKey),
        ];
        for (text, kind) in &examples {
            assert_eq!(counts(text.as_bytes()), [(*kind, 1)], "{text}");
            assert_eq!(counts(format!("TOKEN={text}\n{text}").as_bytes()), [(*kind, 2)], "{text}");
            let cut = &text[..text.len() * 2 / 3];
            assert_eq!(counts(cut.as_bytes()), [], "{cut}");
        }
        for text in [
            "ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            "npm_config_registry",
            "FAKIAQX4BIPW3AHOV27GN",
            "-----BEGIN RSA PRIVATE KEY-----\0-----END",
            "PRIVATE KEY-----\nMIIEowIBAAKCAQEA16C7e42F292c6912E7710c838347Ae178B4a",
            "T3BlbkFJ16C7e42F292c6912E771",
        ] {
            assert_eq!(counts(text.as_bytes()), [], "{text}");
        }
        let all: Vec<&str> = examples.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(counts(all.join(" ").as_bytes()).len(), 9);
    }

    #[test]
    fn a_token_belongs_to_the_part_in_which_its_literal_text_begins() {
        let text = format!("....ghp_{}....", &RANDOM[..36]);
        let search = TokenKindSearch::new().unwrap();
        for cut in 0..=text.len() {
            let mut counts = BTreeMap::new();
            for part in [0..cut, cut..text.len()] {
                search.count(text.as_bytes(), part, &mut counts);
            }
            assert_eq!(counts, BTreeMap::from([(TokenKind::GitHub, 1)]), "{cut}");
        }
    }
}
