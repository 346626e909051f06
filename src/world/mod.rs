//! The seams between what nixbox does and the things that it acts upon, and the one vocabulary of values that cross
//! them.
//!
//! `operations` sees the world through the traits of `seams.rs` only. `host`, `vmm`, `guest` and `store` implement them
//! on a real machine, and `fakes` in memory. A [`World`] belongs to one workspace. Everything that a seam makes carries
//! a generation, so that the things of one operation can be distinguished from those of another.
//!
//! `config` parses its file straight into the values (names, paths, domains, ports, secrets, sizes), so each is checked
//! once, and every layer takes it as it is. A value that breaks the rule of its type is an [`InvalidValue`]. To add a
//! value, give it a type in the file of its subject; this module uses nothing of nixbox but `engine`.
//!
//! What all seams promise:
//! - every call is idempotent: its work may be done, half done or not begun when it is called;
//! - `find`-like calls change nothing, and report what is there rather than what should be;
//! - removing what is not there succeeds; removing what belongs to another workspace is an error and removes nothing;
//! - a call that takes long checks its [`Interrupt`] at least every 100 ms. When it is interrupted it leaves what it
//!   has made; the call that removes such things removes it.

pub mod capability;
mod cpuid;
mod error_chain;
mod guest_scripts;
mod machine;
mod names;
mod network;
mod network_fault;
mod paths;
mod private_network;
mod receipts;
mod refused;
mod seams;
mod secrets;
mod sizes;
mod slots;
mod snapshots;
mod timeouts;
mod value;
mod vmm_choice;

pub use self::capability::{Ability, VmmVersion};
pub use self::cpuid::{Cpuid, CpuidLeaf, HostCpu};
pub use self::error_chain::{error_chain, messages};
pub use self::guest_scripts::{GuestScriptPoint, GuestScriptsOutcome};
pub use self::machine::{
    BootId, DiskSpec, Equipment, KeptDisk, KeptDiskId, Machine, Presence, Settlement, UserIds, VmmState,
};
pub use self::names::{
    FileOwner, ImageName, ReferencedSnapshot, ShareTag, SnapshotId, SnapshotName, SnapshotNote,
    SnapshotReference, UserName, VariableName, WorkspaceName,
};
pub use self::network::{Domain, NamespaceKeeping, NetworkMode, NetworkPolicy, Port, UplinkPool};
pub use self::network_fault::NetworkFault;
pub use self::paths::{GuestHome, GuestPath, HostPath, PathInShare, is_within};
pub use self::private_network::PrivateNetwork;
pub use self::receipts::{
    FoundValue, GuestAudit, HoldingProcess, OnLeak, Receipt, TokenWarning, UnprovenPlace, UnprovenValue,
    zeroes_freed_memory,
};
pub use self::refused::{RefusedDestination, RefusedName, RefusedTraffic, Transport};
pub use self::seams::{
    Backups, BuiltRecords, Catalog, Clock, CpuFeatures, Disk, Guest, HookPoint, Hooks, Leftovers, Memory,
    Network, Shares, Slots, SourceFiles, Vmm, WaitObserver, World,
};
pub use self::secrets::{MASK, Secret, SecretCommand, SecretSource};
pub use self::sizes::{Backing, ByteSize};
pub use self::slots::Slot;
pub use self::snapshots::{
    Depth, FileRecord, Given, HashMethod, ListedSnapshot, Manifest, Origin, SnapshotLabel, SnapshotState,
};
pub use self::timeouts::{ReadyTimeout, RetentionTime};
pub use self::value::InvalidValue;
pub use self::vmm_choice::VmmChoice;
pub use crate::engine::record::WorkspaceId;
pub use crate::engine::transition::{Failure, Generation, Interrupt};

/// The result of a call to a seam.
pub type Result<T, E = Failure> = std::result::Result<T, E>;
