//! What the follower is told when it is started, as JSON on its stdin.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::world::{Generation, NetworkPolicy, Slot, WorkspaceId};

/// The file in the runtime directory that says why the follower has cut the uplink.
pub(super) const PROBLEM: &str = "follower.problem";

/// The network that a follower is for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FollowerWords {
    pub(super) workspace: WorkspaceId,
    pub(super) slot: Slot,
    pub(super) generation: Generation,
    pub(super) owner: u32,
    pub(super) runtime: PathBuf,
    pub(super) policy: NetworkPolicy,
    /// Whether an ordinary user makes the namespace.
    pub(super) of_user: bool,
}
