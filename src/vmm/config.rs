//! The body of `vm.create`: the machine that nixbox asks for.
//!
//! nixbox chooses the ids of devices, so that it can identify a device in `vm.info` and in a snapshot. A row of
//! [`crate::world::capability`] decides about keys that only some versions have.

use std::num::NonZeroU32;

use serde::Serialize;

use crate::world::Slot;
use crate::world::capability::Capability;

/// The source of entropy of every VM.
pub(super) const RNG_SOURCE: &str = "/dev/urandom";

/// The devices and files of a VM. Paths are in the form that the VMM uses: absolute, and UTF-8 because they are sent as
/// JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineDescription {
    /// The number of virtual CPUs.
    pub vcpus: NonZeroU32,
    /// RAM in bytes.
    pub memory: u64,
    /// The file that the VMM maps (shared) as the guest's RAM; `None` if the VMM allocates the RAM itself.
    pub memory_file: Option<String>,
    /// Whether blocks are reserved for that file, which a hole in it would give away.
    pub memory_reserved: bool,
    /// The kernel, a bzImage or vmlinux.
    pub kernel: String,
    /// The initramfs.
    pub initramfs: Option<String>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Raw disk images, in the order in which the guest sees them.
    pub disks: Vec<String>,
    /// The VM's slot, which decides TAP and MAC; `None` for no network device.
    pub slot: Option<Slot>,
    /// The shares that are devices when the VM boots.
    pub shares: Vec<FsConfig>,
    /// The file for the output of the serial console. The VMM truncates it, so every generation has a file of its own.
    pub serial: String,
}

/// The keys of the body of `vm.create` that nixbox sets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmConfig {
    cpus: CpusConfig,
    memory: MemoryConfig,
    payload: PayloadConfig,
    disks: Vec<DiskConfig>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    net: Vec<NetConfig>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fs: Vec<FsConfig>,
    rng: RngConfig,
    balloon: BalloonConfig,
    serial: ConsoleConfig,
    console: ConsoleConfig,
}

/// A share as a virtio-fs device; also the body of `vm.add-fs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FsConfig {
    id: String,
    tag: String,
    socket: String,
    num_queues: usize,
    queue_size: u16,
}

impl FsConfig {
    /// The virtio-fs device of the share that the guest mounts by `tag`. The daemon of the share listens on `socket`.
    #[must_use]
    pub fn new(tag: &str, socket: &str) -> Self {
        Self {
            id: Self::id_of(tag),
            tag: tag.to_owned(),
            socket: socket.to_owned(),
            num_queues: 1,
            queue_size: 1024,
        }
    }

    /// The tag by which the guest mounts the share.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The device id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The socket on which the daemon of the share listens.
    #[must_use]
    pub fn socket(&self) -> &str {
        &self.socket
    }

    /// The device id of the share `tag`.
    #[must_use]
    pub fn id_of(tag: &str) -> String {
        format!("share-{tag}")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct CpusConfig {
    boot_vcpus: u32,
    max_vcpus: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct MemoryConfig {
    size: u64,
    /// Needed by virtio-fs: the daemon of a share maps the guest's RAM.
    shared: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    zones: Vec<MemoryZoneConfig>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct MemoryZoneConfig {
    id: &'static str,
    size: u64,
    file: String,
    /// `vm.snapshot` omits the RAM of a zone only if that RAM is a shared file.
    shared: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct PayloadConfig {
    kernel: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    initramfs: Option<String>,
    cmdline: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct DiskConfig {
    id: String,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_type: Option<&'static str>,
    /// Without io_uring and AIO, block I/O is synchronous: a vCPU's request is done before `vm.pause` returns.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    disable_io_uring: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    disable_aio: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct NetConfig {
    id: &'static str,
    tap: String,
    mac: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct RngConfig {
    src: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct BalloonConfig {
    size: u64,
    deflate_on_oom: bool,
    /// Pages that the guest frees become holes in the RAM file, so that snapshots are smaller. A file system that is full
    /// when the guest uses such a page again has no block for it, so a file whose blocks are reserved keeps them.
    free_page_reporting: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct ConsoleConfig {
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
}

impl VmConfig {
    /// The body for this machine, for a VMM of this version.
    #[must_use]
    pub fn new(machine: &MachineDescription, capability: &Capability) -> Self {
        let vcpus = machine.vcpus.get();
        let disk = |(index, path): (usize, &String)| DiskConfig {
            id: format!("disk-{index}"),
            path: path.clone(),
            image_type: capability.knows_image_type.then_some("Raw"),
            disable_io_uring: !capability.pause_waits_for_block_io,
            disable_aio: !capability.pause_waits_for_block_io,
        };
        Self {
            cpus: CpusConfig { boot_vcpus: vcpus, max_vcpus: vcpus },
            memory: memory(machine),
            payload: PayloadConfig {
                kernel: machine.kernel.clone(),
                initramfs: machine.initramfs.clone(),
                cmdline: machine.cmdline.clone(),
            },
            disks: machine.disks.iter().enumerate().map(disk).collect(),
            net: machine
                .slot
                .iter()
                .map(|slot| NetConfig { id: "net", tap: slot.tap(), mac: slot.mac() })
                .collect(),
            fs: machine.shares.clone(),
            rng: RngConfig { src: RNG_SOURCE },
            balloon: BalloonConfig {
                size: 0,
                deflate_on_oom: true,
                free_page_reporting: !machine.memory_reserved,
            },
            serial: ConsoleConfig { mode: "File", file: Some(machine.serial.clone()) },
            console: ConsoleConfig { mode: "Off", file: None },
        }
    }
}

/// If there are zones, they contain all the memory, and the `size` beside them has to be 0.
fn memory(machine: &MachineDescription) -> MemoryConfig {
    match &machine.memory_file {
        None => MemoryConfig { size: machine.memory, shared: true, zones: Vec::new() },
        Some(file) => MemoryConfig {
            size: 0,
            shared: false,
            zones: vec![MemoryZoneConfig {
                id: "ram",
                size: machine.memory,
                file: file.clone(),
                shared: true,
            }],
        },
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::world::capability;

    pub(in crate::vmm) fn description() -> MachineDescription {
        MachineDescription {
            vcpus: NonZeroU32::new(2).unwrap(),
            memory: 256 << 20,
            memory_file: Some("/run/m/ram-3".into()),
            memory_reserved: false,
            kernel: "/k/vmlinuz".into(),
            initramfs: Some("/k/initramfs".into()),
            cmdline: "console=ttyS0".into(),
            disks: vec!["/d/root-3".into(), "/d/data-3".into()],
            slot: Some(Slot::try_from(9).unwrap()),
            shares: vec![FsConfig::new("work", "/run/m/fs-3-0.sock")],
            serial: "/run/m/serial-3.log".into(),
        }
    }

    fn json(machine: &MachineDescription, version: &str) -> serde_json::Value {
        serde_json::to_value(VmConfig::new(machine, capability::of(version).unwrap())).unwrap()
    }

    #[test]
    fn a_guest_gives_no_page_back_that_is_reserved() {
        let reserved = MachineDescription { memory_reserved: true, ..description() };
        assert_eq!(json(&reserved, "v53.0")["balloon"]["free_page_reporting"], false);
        assert_eq!(json(&description(), "v53.0")["balloon"]["free_page_reporting"], true);
    }

    #[test]
    fn the_body_holds_the_whole_description() {
        let expected = serde_json::json!({
            "cpus": {"boot_vcpus": 2, "max_vcpus": 2},
            "memory": {"size": 0, "shared": false,
                "zones": [{"id": "ram", "size": 268_435_456, "file": "/run/m/ram-3", "shared": true}]},
            "payload": {"kernel": "/k/vmlinuz", "initramfs": "/k/initramfs", "cmdline": "console=ttyS0"},
            "disks": [{"id": "disk-0", "path": "/d/root-3", "image_type": "Raw"},
                {"id": "disk-1", "path": "/d/data-3", "image_type": "Raw"}],
            "net": [{"id": "net", "tap": "vm9", "mac": "02:00:00:00:00:0a"}],
            "fs": [{"id": "share-work", "tag": "work", "socket": "/run/m/fs-3-0.sock", "num_queues": 1,
                "queue_size": 1024}],
            "rng": {"src": "/dev/urandom"},
            "balloon": {"size": 0, "deflate_on_oom": true, "free_page_reporting": true},
            "serial": {"mode": "File", "file": "/run/m/serial-3.log"},
            "console": {"mode": "Off"},
        });
        assert_eq!(json(&description(), "v53.0"), expected);
    }

    #[test]
    fn the_image_type_is_left_out_for_v51() {
        assert!(json(&description(), "v51.1")["disks"][0].get("image_type").is_none());
    }

    #[test]
    fn block_io_is_synchronous_where_a_pause_does_not_wait_for_it() {
        for (version, synchronous) in [("v51.1", true), ("v52.0", true), ("v53.0", false)] {
            let json = json(&description(), version);
            for (number, key) in [(0, "disable_io_uring"), (0, "disable_aio"), (1, "disable_aio")] {
                let disk = &json["disks"][number];
                assert_eq!(disk.get(key).is_some_and(|value| value == true), synchronous, "{version}");
            }
        }
    }

    #[test]
    fn memory_without_a_file_is_shared_and_has_no_zone() {
        let machine =
            MachineDescription { memory_file: None, slot: None, shares: Vec::new(), ..description() };
        let json = json(&machine, "v53.0");
        assert_eq!(json["memory"], serde_json::json!({"size": 268_435_456, "shared": true}));
        assert!(json.get("net").is_none() && json.get("fs").is_none());
    }
}
