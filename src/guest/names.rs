//! Names that come from a configuration or from a guest, and are safe to use once parsed. Pure.

use std::fmt;

use serde::Deserialize;

/// A path in the guest: absolute, or below the guest user's home when it begins with `~/`.
///
/// Normalised: no empty component, no `.`, no `..`, no control character, at most 1024 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct GuestPath(String);

/// Why a text is no [`GuestPath`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} cannot be a path in the guest: {why}")]
pub struct BadGuestPath {
    text: String,
    why: &'static str,
}

impl GuestPath {
    const LONGEST: usize = 1024;

    /// The absolute path, in a guest whose user's home is `home`.
    #[must_use]
    pub fn expand(&self, home: &Home) -> String {
        match self.0.strip_prefix('~') {
            Some(rest) => format!("{}{rest}", home.0),
            None => self.0.clone(),
        }
    }

    /// Whether it is `other` or below it, by the text of both. `~` and an absolute path are told apart only in the
    /// guest.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.strip_prefix(&other.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// As it was written, but normalised.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for GuestPath {
    type Error = BadGuestPath;

    fn try_from(text: String) -> Result<Self, BadGuestPath> {
        match why_not(&text) {
            Some(why) => Err(BadGuestPath { text, why }),
            None => {
                let parts: Vec<_> = text.split('/').skip(1).filter(|part| !part.is_empty()).collect();
                let root = if text.starts_with('~') { "~/" } else { "/" };
                Ok(Self(format!("{root}{}", parts.join("/"))))
            }
        }
    }
}

fn why_not(text: &str) -> Option<&'static str> {
    let (first, rest) = text.split_once('/').unwrap_or((text, ""));
    if text.is_empty() {
        Some("it is empty")
    } else if text.len() > GuestPath::LONGEST {
        Some("it is longer than 1024 bytes")
    } else if text.chars().any(char::is_control) {
        Some("it has a control character in it")
    } else if !matches!(first, "" | "~") {
        Some("it must begin with / or ~/")
    } else if rest.is_empty() || rest.ends_with('/') {
        Some("it must name something below a directory")
    } else if rest.split('/').any(|part| part == "." || part == "..") {
        Some("`.` and `..` are not allowed in it")
    } else if rest.split('/').any(|part| part.len() > 240) {
        Some("a part of it is longer than 240 bytes")
    } else {
        None
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The guest user's home, as the guest says: an absolute path other than `/` alone, without a trailing slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home(String);

impl Home {
    /// Whether an absolute path is below it.
    #[must_use]
    pub fn holds(&self, path: &str) -> bool {
        path.strip_prefix(&self.0).is_some_and(|rest| rest.starts_with('/'))
    }

    /// A path in it.
    #[must_use]
    pub fn join(&self, name: &str) -> String {
        format!("{}/{name}", self.0)
    }
}

impl TryFrom<String> for Home {
    type Error = BadGuestPath;

    fn try_from(text: String) -> Result<Self, BadGuestPath> {
        let parsed = GuestPath::try_from(text)?.0;
        if parsed.starts_with('~') {
            return Err(BadGuestPath { text: parsed, why: "a home must be absolute" });
        }
        Ok(Self(parsed))
    }
}

macro_rules! plain_text {
    ($(#[$doc:meta])* $name:ident, $bad:ident, $rule:literal, $test:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        #[doc = concat!("A text that is no [`", stringify!($name), "`].")]
        #[derive(Debug, PartialEq, Eq, thiserror::Error)]
        #[error("{0:?} is not {rule}", rule = $rule)]
        pub struct $bad(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = $bad;

            fn try_from(text: String) -> Result<Self, $bad> {
                let test: fn(&str) -> bool = $test;
                if test(&text) { Ok(Self(text)) } else { Err($bad(text)) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

plain_text!(
    /// A user of the guest.
    UserName,
    BadUserName,
    "a user's name: 1 to 32 of a-z A-Z 0-9 . _ -, beginning with a letter or _",
    is_user
);

plain_text!(
    /// Whom a file in the guest shall belong to: `user` or `user:group`.
    Owner,
    BadOwner,
    "an owner: `user` or `user:group`",
    |text| match text.split_once(':') {
        Some((user, group)) => is_user(user) && is_user(group),
        None => is_user(text),
    }
);

plain_text!(
    /// The name of an environment variable.
    VariableName,
    BadVariableName,
    "the name of an environment variable: a-z A-Z 0-9 _, not beginning with a digit",
    |text| {
        (1..=256).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && !text.as_bytes()[0].is_ascii_digit()
    }
);

plain_text!(
    /// The tag of a share: what the guest mounts it by. A virtiofs tag has at most 36 bytes (virtio 1.2, 5.11.4).
    Tag,
    BadTag,
    "the tag of a share: 1 to 36 of a-z A-Z 0-9 . _ -, beginning with a letter or a digit",
    |text| {
        (1..=36).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            && text.as_bytes()[0].is_ascii_alphanumeric()
    }
);

fn is_user(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && (text.as_bytes()[0].is_ascii_alphabetic() || text.as_bytes()[0] == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Result<GuestPath, BadGuestPath> {
        GuestPath::try_from(text.to_owned())
    }

    #[test]
    fn hostile_paths_are_refused() {
        let long = format!("/{}", "a/".repeat(600));
        let hostile = [
            "", "~", "/", "~/", "a", "a/b", "~user/x", "../x", "/..", "/a/../b", "~/../x", "~/a/..", "/./a",
            "/a/", "~/a\nb", "/a\0b", "/a\tb", "/a\u{7f}", &long,
        ];
        for text in hostile {
            assert!(path(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn paths_are_normalised_and_expand() {
        let home = Home::try_from("/home/u".to_owned()).unwrap();
        for (text, expanded) in [
            ("~/.aws//credentials", "/home/u/.aws/credentials"),
            ("//etc/x", "/etc/x"),
            ("~/a b'c\"$(d)", "/home/u/a b'c\"$(d)"),
            ("/a/..b/c..", "/a/..b/c.."),
        ] {
            assert_eq!(path(text).unwrap().expand(&home), expanded);
        }
        assert!(home.holds("/home/u/x") && !home.holds("/home/user/x") && !home.holds("/home/u"));
        assert!(Home::try_from("/".to_owned()).is_err() && Home::try_from("~/a".to_owned()).is_err());
    }

    #[test]
    fn within_goes_by_components() {
        let share = path("~/workspace").unwrap();
        assert!(path("~/workspace/a").unwrap().is_within(&share) && share.is_within(&share));
        assert!(
            !path("~/workspaces").unwrap().is_within(&share)
                && !path("/workspace/a").unwrap().is_within(&share)
        );
    }

    #[test]
    fn names_are_plain() {
        for bad in ["", "-x", "a b", "a\n", "a/b", "a:b:c", ":", "a:", &"x".repeat(40)] {
            assert!(Owner::try_from(bad.to_owned()).is_err(), "{bad:?}");
            assert!(UserName::try_from(bad.to_owned()).is_err(), "{bad:?}");
            assert!(Tag::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
        for bad in ["", "1A", "A-B", "A=B", "A\0", "Ä"] {
            assert!(VariableName::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
        assert!(Owner::try_from("root:wheel".to_owned()).is_ok());
        assert!(VariableName::try_from("_x9".to_owned()).is_ok());
    }
}
