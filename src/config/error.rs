//! Why a configuration is refused, and at which place in its file.

use std::fmt;
use std::path::PathBuf;

use crate::files::FileError;
use crate::world::InvalidValue;

/// A place in a file. Lines and columns begin with 1; columns count characters.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Position {
    pub path: PathBuf,
    pub line: usize,
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}:{}", self.path.display(), self.line, self.column)
    }
}

/// Why a configuration is not accepted. No message quotes a value that may be secret.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ConfigError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("there is no {}: `nixbox init` writes one", path.display())]
    Absent { path: PathBuf },
    #[error("{} is not UTF-8 text", path.display())]
    NotText { path: PathBuf },
    #[error("{at}: {message}")]
    Syntax { at: Position, message: String },
    #[error("{at}: there is no key {key}{}", hint(nearest.as_deref(), known))]
    UnknownKey {
        at: Position,
        key: String,
        /// The known key that is most similar, if any is similar enough.
        nearest: Option<String>,
        /// All keys that are allowed at this place.
        known: &'static [&'static str],
    },
    #[error("{at}: {key} has to be of type {wanted}, and is of type {found}")]
    Type { at: Position, key: String, found: &'static str, wanted: &'static str },
    /// The value has the right type, but the key does not allow it.
    #[error("{at}: {key} is wrong")]
    Value { at: Position, key: String, source: InvalidValue },
    #[error("{at}: {key} is missing")]
    Missing {
        /// The place where the table of the missing key begins.
        at: Position,
        key: String,
    },
    /// The value conflicts with another value, or with this host.
    #[error("{at}: {key}: {problem}")]
    Conflict { at: Position, key: String, problem: String },
    #[error("what was decided for the workspace cannot be read or written")]
    State(#[source] FileError),
    #[error("{}, which nixbox wrote, is not as nixbox writes it: if it is removed, the defaults are decided anew", path.display())]
    Decided { path: PathBuf, source: serde_json::Error },
    #[error("{key} is {}, and there is no {wanted} there", path.display())]
    NotThere { key: &'static str, path: PathBuf, wanted: &'static str },
}

fn hint(nearest: Option<&str>, known: &[&str]) -> String {
    match nearest {
        Some(nearest) => format!("; did you mean {nearest}?"),
        None => format!("; there are {}", known.join(", ")),
    }
}

pub(super) type Result<T, E = ConfigError> = std::result::Result<T, E>;
