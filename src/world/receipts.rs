//! The receipt of a snapshot: what was searched for credentials, and what came of it.

use serde::{Deserialize, Serialize};

use super::value::words;

/// What happens to a snapshot in which a credential was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OnLeak {
    /// The credential is overwritten in the snapshot.
    #[default]
    Redact,
    /// The snapshot is not made.
    Fail,
}

words!(OnLeak, "redact" => Self::Redact, "fail" => Self::Fail);

/// Whether a kernel with this command line zeroes the memory that it frees. The last word about it counts.
#[must_use]
pub fn zeroes_freed_memory(cmdline: &str) -> bool {
    let last = cmdline.split_ascii_whitespace().rfind(|word| word.starts_with("init_on_free="));
    last == Some("init_on_free=1")
}

/// A credential that was found and overwritten.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FoundValue {
    /// The name of the value: that of its variable, or of its file.
    pub value: String,
    /// Where it was: "RAM", "disk 0", or a file of the snapshot.
    pub place: String,
    /// The encoding that it had, for people.
    pub form: String,
    /// How often it was there.
    pub count: u64,
}

/// A value of which nobody can say that the snapshot does not hold it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UnprovenValue {
    /// The name of the value.
    pub value: String,
    /// Why.
    pub reason: String,
}

/// Something of which nobody can say that it holds no credential.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UnprovenPlace {
    /// What it is, for people: a file of the guest, or a group of its processes.
    pub place: String,
    /// Why.
    pub reason: String,
}

/// A process of the guest that had a known value in its environment or its arguments shortly before the snapshot. After a
/// restore it has the overwritten value, and has to be started again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HoldingProcess {
    /// Its number in the guest.
    pub pid: u32,
    /// The name of its program, as the guest's kernel keeps it: at most 15 bytes.
    pub program: String,
    /// The names of the values.
    pub values: Vec<String>,
}

/// How often something in a snapshot looks like a well-known kind of token. It is a warning: nixbox did not give it to the
/// guest, and left it where it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TokenWarning {
    /// The kind, for people.
    pub kind: String,
    /// Where: "RAM", "disk 0", or a file of the snapshot.
    pub place: String,
    /// How often.
    pub count: u64,
}

/// What a guest that runs was found to hold before a wipe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestAudit {
    /// The processes that held a known value.
    pub processes: Vec<HoldingProcess>,
    /// What could not be examined.
    pub unproven: Vec<UnprovenPlace>,
}

/// What was searched for credentials when a snapshot was made, and what was found. An older nixbox wrote fewer fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// What was to happen if a credential was found.
    pub on_leak: OnLeak,
    /// Whether the guest's kernel was told to zero the memory that it frees.
    pub zeroes_freed_memory: bool,
    /// The names of the values that were searched for.
    pub values: Vec<String>,
    /// How many bytes of data were searched.
    pub bytes: u64,
    /// What was found. All of it was overwritten.
    pub found: Vec<FoundValue>,
    /// What could not be proven.
    pub unproven: Vec<UnprovenValue>,
    /// The processes of the guest that held a value before it was wiped.
    #[serde(default)]
    pub processes: Vec<HoldingProcess>,
    /// The places of the guest that could not be examined.
    #[serde(default)]
    pub unproven_places: Vec<UnprovenPlace>,
    /// What looks like tokens that nixbox does not know.
    #[serde(default)]
    pub warnings: Vec<TokenWarning>,
}
