//! What the configuration's values become: types that cannot hold a wrong one.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::sync::LazyLock;

use serde::{Serialize, Serializer};

use crate::world::capability::{self, Capability};

/// Why a text is not what it should be. Values of `[env]` never get here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not a size.
    #[error("{0:?} is not a size: a whole number and one of B, KiB, MiB, GiB, TiB, as in \"4GiB\"")]
    Size(String),
    /// A size of more than 8 EiB.
    #[error("{0:?} is more than any file can have")]
    HugeSize(String),
    /// Not a name.
    #[error("{0:?} cannot be a name: 1 to 64 of a-z A-Z 0-9 . _ -, beginning with a letter or a digit")]
    Name(String),
    /// Not a domain.
    #[error("{0:?} is not a domain such as github.com, which stands for itself and everything below it{1}")]
    Domain(String, &'static str),
    /// Not a path in the guest.
    #[error("{0:?} is not a path in the guest: absolute, or beginning with ~/, and without ..")]
    GuestPath(String),
    /// Empty, or with a NUL in it.
    #[error("{0:?} is not a path")]
    HostPath(String),
    /// `~` where the user has no home.
    #[error("{0:?} begins with ~, and HOME is not set to an absolute path")]
    NoHome(String),
    /// Not a user.
    #[error("{0:?} cannot be a user: 1 to 32 of a-z 0-9 _ -, beginning with a letter or _")]
    User(String),
    /// Not an environment variable.
    #[error("{0:?} cannot be an environment variable: letters, digits and _, not beginning with a digit")]
    Variable(String),
    /// Not one of the words.
    #[error("{0:?} is none of {1}")]
    Word(String, &'static str),
    /// Not a kernel command line.
    #[error("a kernel command line is one line of at most 2047 printable characters")]
    CommandLine,
    /// Out of its range.
    #[error("{0} is not from {1} to {2}")]
    Range(i64, i64, i64),
    /// An empty text, or one with a NUL in it.
    #[error("it is empty, or has a NUL in it")]
    Command,
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

impl ByteSize {
    /// So many bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// As a number.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bad = || ValueError::Size(text.to_owned());
        let (digits, shift) = UNITS
            .iter()
            .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?.trim_end_matches(' '), shift)))
            .ok_or_else(bad)?;
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad());
        }
        let huge = || ValueError::HugeSize(text.to_owned());
        let bytes: u64 =
            digits.parse::<u64>().map_err(|_| huge())?.checked_mul(1 << shift).ok_or_else(huge)?;
        if bytes > i64::MAX as u64 { Err(huge()) } else { Ok(Self(bytes)) }
    }
}

/// In the largest unit that needs no fraction, as [`ByteSize::from_str`] reads it.
impl fmt::Display for ByteSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |&&(_, shift): &&(&str, u32)| self.0 != 0 && self.0.trailing_zeros() >= shift;
        let (unit, shift) = UNITS.iter().find(whole).unwrap_or(&("B", 0));
        write!(formatter, "{}{unit}", self.0 >> shift)
    }
}

/// In bytes, as a number: for programs.
impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

/// Makes a type whose texts all satisfy one test.
macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $error:path, $test:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// As text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ValueError;

            fn from_str(text: &str) -> Result<Self, ValueError> {
                let test: fn(&str) -> bool = $test;
                if test(text) { Ok(Self(text.to_owned())) } else { Err($error(text.to_owned())) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

text!(
    /// A workspace's name.
    Name,
    ValueError::Name,
    |text| (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && text.as_bytes()[0].is_ascii_alphanumeric()
);

text!(
    /// A user of the guest.
    UserName,
    ValueError::User,
    |text| (1..=32).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte))
        && !text.as_bytes()[0].is_ascii_digit()
        && !text.starts_with('-')
);

text!(
    /// An environment variable.
    VariableName,
    ValueError::Variable,
    |text| (1..=256).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !text.as_bytes()[0].is_ascii_digit()
);

impl Name {
    /// The nearest name to a directory's, whatever that is made of.
    #[must_use]
    pub fn of_directory(path: &Path) -> Self {
        let text = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let plain = |letter: char| {
            if letter.is_ascii_alphanumeric() || "._-".contains(letter) { letter } else { '-' }
        };
        let text: String =
            text.chars().map(plain).skip_while(|letter| !letter.is_ascii_alphanumeric()).take(64).collect();
        text.parse().unwrap_or_else(|_| Self("workspace".to_owned()))
    }
}

/// A domain: itself and everything below it. Lower case, without the dot at its end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Domain(String);

impl Domain {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Domain {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bad = |hint| ValueError::Domain(text.to_owned(), hint);
        if text.starts_with("*.") {
            return Err(bad(": leave out the \"*.\""));
        }
        if text.contains("://") || text.contains('/') || text.contains(':') {
            return Err(bad(": only the host's name, without scheme, port or path"));
        }
        if !text.is_ascii() {
            return Err(bad(": write it in its xn-- form"));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() > 253 || !name.split('.').all(label) {
            return Err(bad(""));
        }
        // No top-level domain is a number, so this would be an address.
        if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit())) {
            return Err(bad(": addresses cannot be allowed by name"));
        }
        Ok(Self(name))
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A path in the guest: absolute, or below its user's home. Without `.`, `..`, empty parts or control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(into = "String")]
pub struct GuestPath {
    in_home: bool,
    /// What follows `/` or `~/`.
    rest: String,
}

impl GuestPath {
    /// Where it is for a user. Users other than root live in `/home`.
    #[must_use]
    pub fn absolute(&self, user: &UserName) -> String {
        let home = match user.as_str() {
            "root" => "/root".to_owned(),
            user => format!("/home/{user}"),
        };
        match (self.in_home, self.rest.as_str()) {
            (true, "") => home,
            (true, rest) => format!("{home}/{rest}"),
            (false, rest) => format!("/{rest}"),
        }
    }

    /// What follows `~/`, if it is written so: for those who ask the guest itself where the home is.
    #[must_use]
    pub fn below_home(&self) -> Option<&str> {
        self.in_home.then_some(self.rest.as_str())
    }
}

impl FromStr for GuestPath {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bad = || ValueError::GuestPath(text.to_owned());
        let (in_home, rest) = match (text, text.strip_prefix("~/"), text.strip_prefix('/')) {
            ("~", ..) => (true, ""),
            (_, Some(rest), _) => (true, rest),
            (_, _, Some(rest)) => (false, rest),
            _ => return Err(bad()),
        };
        let parts: Vec<&str> = rest.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        // 4096 is PATH_MAX, 255 NAME_MAX.
        let wrong = |part: &&str| *part == ".." || part.len() > 255;
        if text.len() > 2048 || text.chars().any(char::is_control) || parts.iter().any(wrong) {
            return Err(bad());
        }
        Ok(Self { in_home, rest: parts.join("/") })
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.in_home, self.rest.as_str()) {
            (true, "") => formatter.write_str("~"),
            (true, rest) => write!(formatter, "~/{rest}"),
            (false, rest) => write!(formatter, "/{rest}"),
        }
    }
}

impl From<GuestPath> for String {
    fn from(path: GuestPath) -> Self {
        path.to_string()
    }
}

/// An absolute path on the host. Relative ones are relative to the workspace, `~` is the user's home.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPath(PathBuf);

impl HostPath {
    /// The path that a text stands for.
    ///
    /// # Errors
    /// If it is empty, has a NUL in it, or begins with `~` where there is no home.
    pub fn resolve(text: &str, root: &Path, home: Option<&Path>) -> Result<Self, ValueError> {
        if text.is_empty() || text.contains('\0') {
            return Err(ValueError::HostPath(text.to_owned()));
        }
        let below_home = if text == "~" { Some("") } else { text.strip_prefix("~/") };
        let joined = match below_home {
            Some(rest) => home.ok_or_else(|| ValueError::NoHome(text.to_owned()))?.join(rest),
            None => root.join(text),
        };
        // Without "." in it, which `root.join(".")` has.
        Ok(Self(joined.components().filter(|part| *part != Component::CurDir).collect()))
    }

    /// The path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl Serialize for HostPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_string_lossy())
    }
}

/// Makes an enumeration of words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $list:literal, $($(#[$word_doc:meta])* $word:ident = $text:literal),+) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
        pub enum $name {
            $($(#[$word_doc])* #[serde(rename = $text)] $word),+
        }

        impl FromStr for $name {
            type Err = ValueError;

            fn from_str(text: &str) -> Result<Self, ValueError> {
                match text {
                    $($text => Ok(Self::$word),)+
                    _ => Err(ValueError::Word(text.to_owned(), $list)),
                }
            }
        }
    };
}

words!(
    /// Where guest RAM is.
    Backing,
    "auto, tmpfs, disk, vmm",
    /// On tmpfs where it fits, else in the VMM.
    Auto = "auto",
    /// A file on tmpfs.
    Tmpfs = "tmpfs",
    /// A file in the workspace.
    Disk = "disk",
    /// The VMM's own.
    Vmm = "vmm"
);

words!(
    /// What the guest may reach.
    NetworkMode,
    "off, filtered, open",
    /// Nothing but what nixbox itself needs.
    Off = "off",
    /// The domains and ports of the configuration.
    Filtered = "filtered",
    /// Everything.
    Open = "open"
);

/// What runs the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmmChoice {
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// The simulator, behaving like this version; `None` for the one that it is where none is named.
    Simulator(Option<&'static Capability>),
}

/// The words for [`VmmChoice`], for a message.
static VMM_WORDS: LazyLock<String> = LazyLock::new(|| {
    let versions = capability::simulated_numbers().into_iter().map(|number| format!("simulator-v{number}"));
    ["cloud-hypervisor".to_owned(), "simulator".to_owned()]
        .into_iter()
        .chain(versions)
        .collect::<Vec<_>>()
        .join(", ")
});

impl FromStr for VmmChoice {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match (text, text.strip_prefix("simulator-v").map(capability::simulated)) {
            ("cloud-hypervisor", _) => Ok(Self::CloudHypervisor),
            ("simulator", _) => Ok(Self::Simulator(None)),
            (_, Some(Ok(version))) => Ok(Self::Simulator(Some(version))),
            _ => Err(ValueError::Word(text.to_owned(), &VMM_WORDS)),
        }
    }
}

impl Serialize for VmmChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::CloudHypervisor => serializer.serialize_str("cloud-hypervisor"),
            Self::Simulator(None) => serializer.serialize_str("simulator"),
            Self::Simulator(Some(version)) => serializer.collect_str(&format_args!("simulator-v{version}")),
        }
    }
}
