//! The seams between what nixbox does and what it does it with, and the values that cross them.
//!
//! `operations` sees the world through these traits alone. `host`, `vmm`, `guest` and `store` implement them on a real
//! machine, `fakes` in memory. A [`World`] belongs to one workspace; whatever a seam makes carries a generation, so
//! that things of this operation are told from things of another.
//!
//! What all seams promise:
//! - every call is idempotent: its work may be done, half done or not begun when it is called;
//! - `find`-like calls change nothing, and report what is there rather than what should be;
//! - removing what is not there succeeds; removing what is another's is an error and removes nothing;
//! - a call that takes long looks at its [`Interrupt`] at least every 100 ms, and leaves what it began to its remover.

pub mod capability;
mod machine;
mod names;
mod network;
mod paths;
mod seams;
mod secrets;
mod sizes;
mod slots;
mod snapshots;
mod value;
mod versions;

pub use self::machine::{BootId, DiskSpec, Equipment, Machine, Presence, VmmState};
pub use self::names::{
    FileOwner, ShareTag, SnapshotId, SnapshotName, SnapshotReference, UserName, VariableName, WorkspaceName,
};
pub use self::network::{Domain, NetworkMode, NetworkPolicy, Port};
pub use self::paths::{GuestHome, GuestPath, HostPath, is_within};
pub use self::seams::{
    Catalog, Clock, CpuFeatures, Disk, Guest, HookPoint, Hooks, Leftovers, Memory, Network, Shares, Slots,
    Vmm, World,
};
pub use self::secrets::{MASK, Secret, SecretCommand, SecretSource};
pub use self::sizes::{Backing, ByteSize};
pub use self::slots::Slot;
pub use self::snapshots::{Depth, FileRecord, ListedSnapshot, Manifest, Origin, SnapshotState};
pub use self::value::InvalidValue;
pub use self::versions::{Ability, VmmChoice, VmmVersion};
pub use crate::engine::record::WorkspaceId;
pub use crate::engine::transition::{Failure, Generation, Interrupt};

/// The result of a call to a seam.
pub type Result<T, E = Failure> = std::result::Result<T, E>;
