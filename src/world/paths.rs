//! Paths of the guest and of the host.

use std::borrow::Cow;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::UserName;
use super::value::{InvalidValue, text_value};

text_value!(
    /// A path in the guest: absolute, or below its user's home when it begins with `~/`.
    ///
    /// It names something below `/` or `~`, and has no empty part, no `.`, no `..` and no control character. It has at
    /// most 1024 bytes and each part at most 240, so that a suffix still fits into a file name (`NAME_MAX` is 255).
    GuestPath,
    parse_guest_path
);

/// The rule of every path that goes to a guest or comes from one which this text, with these parts, breaks.
fn broken_rule(text: &str, parts: &[&str]) -> Option<&'static str> {
    if parts.contains(&"..") {
        Some("it may not contain ..")
    } else if text.chars().any(char::is_control) {
        Some("it has a control character in it")
    } else if text.len() > 1024 {
        Some("it is longer than 1024 bytes")
    } else {
        None
    }
}

fn parse_guest_path(text: &str) -> Result<String, InvalidValue> {
    let refuse = |reason| Err(InvalidValue::new(text, "is not a path in the guest").because(reason));
    let Some((root @ ("" | "~"), rest)) = text.split_once('/').or((text == "~").then_some(("~", ""))) else {
        return refuse("it has to begin with / or ~/");
    };
    let parts: Vec<&str> = rest.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.is_empty() {
        return refuse("it has to name something below / or ~/");
    }
    if let Some(reason) = broken_rule(text, &parts) {
        return refuse(reason);
    }
    if parts.iter().any(|part| part.len() > 240) {
        return refuse("a part of it is longer than 240 bytes");
    }
    Ok(format!("{root}/{}", parts.join("/")))
}

impl GuestPath {
    /// Where the workspace is mounted unless the configuration says otherwise.
    pub const WORKSPACE: Self = Self(Cow::Borrowed("~/workspace"));
    /// The file that holds the environment of the workspace.
    pub const ENVIRONMENT: Self = Self(Cow::Borrowed("~/.env"));
    /// The workspace's private SSH key.
    pub const PRIVATE_KEY: Self = Self(Cow::Borrowed("~/.ssh/id_ed25519"));
    /// The public half of that key.
    pub const PUBLIC_KEY: Self = Self(Cow::Borrowed("~/.ssh/id_ed25519.pub"));

    /// The absolute path, in a guest whose user's home is `home`.
    #[must_use]
    pub fn expand(&self, home: &GuestHome) -> String {
        match self.0.strip_prefix('~') {
            Some(rest) => format!("{}{rest}", home.0),
            None => self.as_str().to_owned(),
        }
    }
}

/// Whether an absolute, normalised path is `directory` or lies below it.
#[must_use]
pub fn is_within(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The home of the guest's user: an absolute path other than `/` alone, without a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestHome(String);

impl GuestHome {
    /// The home that a user has by the custom of every distribution. Only the guest knows where the home really is.
    #[must_use]
    pub fn usual(user: &UserName) -> Self {
        Self(if user.is_root() { "/root".to_owned() } else { format!("/home/{user}") })
    }

    /// Whether an absolute path is below it.
    #[must_use]
    pub fn holds(&self, path: &str) -> bool {
        is_within(path, &self.0) && path != self.0
    }

    /// A path in it.
    #[must_use]
    pub fn join(&self, name: &str) -> String {
        format!("{}/{name}", self.0)
    }
}

impl std::str::FromStr for GuestHome {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        if text.starts_with('~') {
            return Err(InvalidValue::new(text, "is not an absolute path, which a home has to be"));
        }
        text.parse().map(|path: GuestPath| Self(path.0.into_owned()))
    }
}

text_value!(
    /// A path below the source of a share: relative, of parts that are names. It has no `..` and no control character,
    /// and at most 1024 bytes.
    PathInShare,
    parse_path_in_share
);

fn parse_path_in_share(text: &str) -> Result<String, InvalidValue> {
    let refuse = |reason| Err(InvalidValue::new(text, "is not a path in a share").because(reason));
    if text.starts_with(['/', '~']) {
        return refuse("it has to be relative to the source");
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.is_empty() {
        return refuse("it has to name something below the source; `readonly = true` protects all of it");
    }
    if let Some(reason) = broken_rule(text, &parts) {
        return refuse(reason);
    }
    Ok(parts.join("/"))
}

impl PathInShare {
    /// What is protected unless the configuration says otherwise: with these a guest could make the user's next git
    /// command on the host run a program.
    pub const DEFAULT: [Self; 2] = [Self(Cow::Borrowed(".git/hooks")), Self(Cow::Borrowed(".git/config"))];
}

/// An absolute path on the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPath(PathBuf);

impl HostPath {
    /// The path that a text of the workspace at `root` stands for: `~` is the user's home, and a relative path is
    /// relative to the workspace.
    ///
    /// # Errors
    /// If it is empty, has a NUL in it, or begins with `~` where there is no home.
    pub fn resolve(text: &str, root: &Path, home: Option<&Path>) -> Result<Self, InvalidValue> {
        if text.is_empty() || text.contains('\0') {
            return Err(InvalidValue::new(text, "is not a path"));
        }
        let below_home = if text == "~" { Some("") } else { text.strip_prefix("~/") };
        match below_home {
            Some(rest) => {
                let rule = "begins with ~, and HOME is not set to an absolute path";
                home.map(|home| Self::below(home, rest)).ok_or_else(|| InvalidValue::new(text, rule))
            }
            None => Ok(Self::below(root, text)),
        }
    }

    /// The path `name` below an absolute directory.
    #[must_use]
    pub fn below(directory: &Path, name: &str) -> Self {
        // Without the "." that `join(".")` would leave in it.
        Self(directory.join(name).components().filter(|part| *part != Component::CurDir).collect())
    }

    /// Follows a directory from one path to another, if this path leads to it or below it.
    pub fn follow(&mut self, from: &Path, to: &Path) {
        if let Ok(below) = self.0.strip_prefix(from) {
            self.0 = to.join(below).components().collect();
        }
    }

    /// The path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for HostPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Serialize for HostPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_string_lossy())
    }
}

impl<'de> Deserialize<'de> for HostPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let absolute = text.starts_with('/') && !text.contains('\0');
        if !absolute {
            let rule = "is not an absolute path of the host";
            return Err(serde::de::Error::custom(InvalidValue::new(&text, rule)));
        }
        Ok(Self::below(Path::new("/"), &text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_paths_are_refused() {
        let (long, part) = (format!("/{}", "a/".repeat(600)), format!("/{}", "a".repeat(241)));
        let hostile = [
            "", "~", "/", "~/", "//", "/./", "a", "a/b", "./a", "~user/x", "../x", "/..", "/a/../b",
            "~/../x", "~/a/..", "~/a\nb", "/a\0b", "/a\tb", "/a\u{7f}", &long, &part,
        ];
        for text in hostile {
            assert!(text.parse::<GuestPath>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn paths_are_normalised_and_expand() {
        let home: GuestHome = "/home/u".parse().unwrap();
        for (text, expanded) in [
            ("~/.aws//credentials", "/home/u/.aws/credentials"),
            ("//etc/x", "/etc/x"),
            ("/srv/./src//", "/srv/src"),
            ("~/a b'c\"$(d)", "/home/u/a b'c\"$(d)"),
            ("/a/..b/c..", "/a/..b/c.."),
        ] {
            assert_eq!(text.parse::<GuestPath>().unwrap().expand(&home), expanded);
        }
        assert!("/".parse::<GuestHome>().is_err() && "~/a".parse::<GuestHome>().is_err());
    }

    #[test]
    fn paths_in_shares_stay_in_the_share() {
        let long = "a/".repeat(600);
        for text in
            ["", ".", "/", "./", "/a", "~", "~/a", "..", "../a", "a/../../b", "a/..", "a\nb", "a\0", &long]
        {
            assert!(text.parse::<PathInShare>().is_err(), "{text:?} was taken");
        }
        for (text, parsed) in [("a", "a"), ("./a//b/", "a/b"), (".git/hooks", ".git/hooks"), ("a b", "a b")] {
            assert_eq!(text.parse::<PathInShare>().unwrap().as_str(), parsed);
        }
        for path in PathInShare::DEFAULT {
            assert_eq!(path.as_str().parse(), Ok(path));
        }
    }

    #[test]
    fn within_goes_by_components() {
        assert!(is_within("/w/a", "/w") && is_within("/w", "/w"));
        assert!(!is_within("/ws", "/w") && !is_within("/", "/w"));
        let home: GuestHome = "/home/u".parse().unwrap();
        assert!(home.holds("/home/u/x") && !home.holds("/home/user/x") && !home.holds("/home/u"));
    }

    #[test]
    fn fixed_paths_would_parse() {
        for path in
            [GuestPath::WORKSPACE, GuestPath::ENVIRONMENT, GuestPath::PRIVATE_KEY, GuestPath::PUBLIC_KEY]
        {
            assert_eq!(path.as_str().parse(), Ok(path));
        }
    }
}
