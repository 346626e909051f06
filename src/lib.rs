//! nixbox runs a developer's sandbox as one Cloud Hypervisor microVM per workspace. `nixbox snapshot` freezes the VM after
//! the slow part of the day, and `nixbox up --snapshot` brings it back in seconds, as often as needed. A snapshot holds no
//! credential that nixbox gave to the guest. If nixbox, the VMM or a daemon is killed at any point, the next run completes
//! or undoes the interrupted operation.
//!
//! The [`engine`] makes the last promise: every change of the world is a transition, which is written to a journal before
//! it acts, so that the next run can tell what was in progress. The [`operations`] are tables of such transitions;
//! [`operations::snapshot`] is the largest. An operation acts through the seams in [`world`], which are traits, and never
//! on a process, a file or a socket directly.
//!
//! # Map
//!
//! Each module may use the modules below it in this list, and none above it. `tests/all/architecture.rs` holds the crate
//! to this order, and to files that never use each other in a circle.
//!
//! ```text
//! cli/          the command line: one file per command; the only code that prints errors and chooses exit codes
//! fakes/        the whole world in memory: it crashes at any point, and keeps only what was durable
//! operations/   up, down, snapshot, restore, equip, delete: the table of stages first, then one struct per transition;
//!               uses the engine and the seams of world, and nothing else
//! simulator/    a stand-in for Cloud Hypervisor and its guest, for machines without KVM
//! workspace.rs  the directory .nixbox, the state of a workspace, its lock, the configuration that init writes, the registry,
//!               and what was confirmed of configurations
//! image/        images: container images and root file systems made into what a VM boots from, and kept once per user
//! vmm/          Cloud Hypervisor: its processes, its API, the configuration and the saved state of a VM
//! guest/        the system in the VM, spoken to over SSH: credentials, entropy, clock, mounts
//! host/         this machine: processes, network, share daemons, disks, RAM files, hooks
//! store/        the journal's files, and snapshots on disk
//! config/       config.toml, read strictly into the values of world
//! files/        directories opened without following links, copies of large files, their holes and hashes
//! world/        the seams (VMM, network, shares, disk, memory, guest, catalog, …) and the values that cross them
//! engine/       the state machine and its journal, generic over the world
//!   ids.rs          workspaces, generations, and the ids of operations and transitions
//!   record.rs       the records of a journal and their bytes, as journal-format.md specifies them
//!   reader.rs       any bytes → records, the valid length, and a verdict on the rest
//!   journal.rs      appends, syncs and rotates over a storage seam, and refuses everything after an I/O error
//!   history.rs      records → the status of every transition; a sequence that cannot occur is an error
//!   planner.rs      the recovery decision table
//!   transition.rs   transitions, stages, operations, and how a transition fails
//!   executor.rs     the one loop that runs transitions, both for new operations and for recovery
//! ```
//!
//! # Words
//!
//! | word | meaning | type |
//! |---|---|---|
//! | workspace | a directory with `.nixbox/` in it, which has one VM | [`workspace::Workspace`] |
//! | state directory | where everything of a workspace is that a guest must not reach | [`workspace::places`] |
//! | operation | one run of a state machine: `up`, `down`, `snapshot`, `restore`, `equip`, `delete` | [`engine::transition::Operation`] |
//! | stage | transitions of one operation that may run at the same time; the next stage waits for all of them | [`engine::transition::Stage`] |
//! | transition | one journaled change of the world: prepare, then apply; probe and undo after a crash | [`engine::transition::Transition`] |
//! | intent | what a transition is about to do, on disk before it acts | `Transition::Intent` |
//! | outcome | what a transition did; `probe` finds it again if a crash loses it | `Transition::Outcome` |
//! | commit point | the one transition of an operation after which recovery rolls forward; before it, recovery rolls back | [`engine::planner::CommitSide`] |
//! | roll back, roll forward | undo what an interrupted operation did; complete the operation | [`engine::planner::Direction`] |
//! | lost | the VM that an operation is about is gone; recovery clears away what is left of it | [`engine::transition::Failure::Lost`] |
//! | stuck | an undo failed or a probe cannot tell: nixbox waits for a person and does not guess | [`engine::executor::Ending::Stuck`] |
//! | built record | what a VM was built from, written down before it is built; it describes the VM as long as the VM lives | [`store::built::BuiltRecord`] |
//! | piece | 64 KiB of a file, hashed by themselves; a manifest has the root over the pieces of each file of a snapshot | [`files::hash::pieces`] |
//! | registry | which directory each workspace of a user is on this host, so that a copy can be told from the original | [`workspace::registry::Registry`] |
//! | confirmation | a person's word that nixbox may do on the host what a configuration from elsewhere says | [`workspace::confirmations::Confirmations`] |
//! | generation | a number that grows with every operation of a workspace; what an operation makes carries it | [`engine::ids::Generation`] |
//! | torn tail | an incomplete end of a journal after a crash, which is cut off; damage elsewhere is corruption | [`engine::reader::Tail`] |
//! | poisoned | a journal that had an I/O error, and accepts nothing more in this process | [`engine::journal::Journal`] |
//! | SSH-ready | an authenticated command has run in the guest; "ready" means nothing else | [`world::Guest::ready`] |
//! | VMM state | Cloud Hypervisor's own snapshot files; a snapshot is disk, RAM, VMM state and a manifest | [`world::Manifest`] |
//! | backup | what a wipe takes from a guest that runs on, kept beside its RAM until the guest has it back | [`world::Backups`] |
//! | audit | what a guest holds that no wipe reaches, found before a wipe and named in the receipt of the snapshot | [`world::GuestAudit`] |
//! | share | a directory of the host that the guest mounts, served by one daemon (virtiofsd) | [`world::Shares`] |
//! | supervisor | the process of nixbox's that owns the socket of a share, and starts a virtiofsd for each connection of the VMM | `host/share_view/supervisor.rs` |
//! | slot | a number that decides a VM's TAP, addresses and MAC; VMs in the host's network have one each | [`world::Slot`] |
//! | image | a disk, a kernel and an initramfs that a VM boots from, kept once per user by what is in them | [`image::store::StoredImage`] |
//! | layer | an archive of changes of a root file system; a container image is a list of them | [`image::layer`] |
//! | uplink | the pair of devices between a VM's network namespace and the host | `host/network/uplink.rs` |
//! | keeper | the process of nixbox's that stays with a VM's network namespace: DNS, and sockets for nixbox | `host/network/keeper.rs` |
//! | follower | the process of nixbox's that keeps a VM's uplink and the addresses it refuses in step with the host's networks | `host/network/follow.rs` |
//! | roll over | to move a running guest to a new VMM and new daemons on the same RAM file | `operations/roll_over.rs` |
//!
//! # Where to change what
//!
//! **A transition.** Give it the next free number in `operations/ids.rs`. Write it in the file of its operation, beginning
//! with its [`engine::transition::TransitionSpec`] (id, label, undo policy, time limit), and put it into a stage of the
//! operation's table. Add a line to `ON_DISK` in `operations/tests.rs`. `cargo test --test all pictures` prints the picture
//! that goes into the module head. The crash and fault tests enumerate the new transition without a change.
//!
//! **A version of the VMM.** Add a row to the table in [`world::capability`] if the version differs from the newest row,
//! and the answers of the real program as a file in `tests/simulator/conformance`. The head of that module has the steps.
//!
//! **A configuration key.** Add the key to `config/keys.rs`, the field to `config/types.rs`, the reading of it to
//! `config/tables.rs`, and its comment to `workspace/template.rs`; tests compare the four. `VmSpec::shape` does not compile
//! until it says whether the key shapes a VM, nor `Config::host_actions` until it says whether the key acts on the host. `cli/wiring.rs` hands the value to the layer that acts on it. A table that a VM
//! is built from belongs into `VmSpec`, so that an edit of it waits for the next VM.
//!
//! **A command.** Add a file to `cli/` with its arguments, whose comments are the help text, and with its `run`; name it in
//! `NixboxCommand` in `cli/mod.rs`. A command that changes something opens the workspace with `LockedWorkspace::open`,
//! which takes the lock, reads the configuration and checks the host.

pub mod cli;
pub mod config;
pub mod engine;
#[doc(hidden)]
pub mod fakes;
pub mod files;
pub mod guest;
pub mod host;
pub mod image;
pub mod operations;
pub mod simulator;
pub mod store;
#[cfg(test)]
mod testing;
pub mod vmm;
pub mod workspace;
pub mod world;
