//! What the VMM of a workspace is started with, and where it finds the files of its VM. May use `host` and `world`.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;

use super::confined::OwnPlaces;
use crate::host::network::NetworkPlace;
use crate::host::spawn::Invoker;
use crate::world::{Generation, Result, ShareTag, SnapshotId, WorkspaceId};

/// Finds the path at which another seam keeps something, or fails if it does not exist. Paths are absolute and UTF-8.
pub type Find<Key, Found> = Arc<dyn Fn(Key) -> Result<Found> + Send + Sync>;

/// The settings that all generations of a workspace's VM have in common.
#[derive(Clone)]
pub struct VmmSettings {
    /// The existing directory for sockets, records and logs: absolute, short, and writable by the invoking user.
    pub runtime: PathBuf,
    /// The workspace that the VM belongs to.
    pub workspace: WorkspaceId,
    /// The user that the VMM runs as.
    pub invoker: Invoker,
    /// The number of virtual CPUs.
    pub vcpus: NonZeroU32,
    /// RAM in bytes.
    pub memory: u64,
    /// The kernel, a bzImage or vmlinux.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Where the VM's network is. The VMM runs there.
    pub place: NetworkPlace,
    /// Whether the VM has a network device.
    pub network: bool,
    /// The tags of the shares, in the order of `ShareSettings::shares`.
    pub shares: Vec<ShareTag>,
    /// The disk images of a generation, in the order in which the guest sees them. An error if one of them is missing.
    pub disks: Find<Generation, Vec<PathBuf>>,
    /// The RAM file of a generation, `None` for memory that the VMM allocates itself. An error if the file is missing
    /// or not whole.
    pub memory_file: Find<Generation, Option<PathBuf>>,
    /// Whether blocks are reserved for that file.
    pub memory_reserved: Find<Generation, bool>,
    /// The directory for the VMM state of a snapshot, staged or listed. The directory exists, or its parent does.
    pub snapshot: Find<SnapshotId, PathBuf>,
    /// Where the VMM's files are, to which it is confined. A stand-in has none, and is not confined.
    pub places: Option<OwnPlaces>,
}
