//! The ids and numbers by which a journal names things: workspaces, generations, operations and transitions.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The id of a workspace: 16 random bytes, chosen by `nixbox init`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkspaceId(pub [u8; 16]);

impl fmt::Display for WorkspaceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// The text is not the id of a workspace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the id of a workspace has 32 hexadecimal digits in lower case")]
pub struct InvalidWorkspaceId;

impl std::str::FromStr for WorkspaceId {
    type Err = InvalidWorkspaceId;

    fn from_str(text: &str) -> Result<Self, InvalidWorkspaceId> {
        let number = u128::from_str_radix(text, 16).map_err(|_| InvalidWorkspaceId)?;
        let id = Self(number.to_be_bytes());
        // This refuses what the number may have too: a sign, capital letters, fewer digits.
        if id.to_string() == text { Ok(id) } else { Err(InvalidWorkspaceId) }
    }
}

/// The id of a transition on disk. An id is never used again for another transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransitionId(pub u16);

/// The id of a kind of operation on disk. An id is never used again for another operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(pub u16);

/// A number that grows with every operation of a workspace. What an operation makes carries its generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}
