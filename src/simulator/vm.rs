//! The simulated VM: what Cloud Hypervisor knows of one, and what becomes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;

use super::disk::SimulatedDisk;
use super::guest::{AttachedShare, Power, SimulatedGuest};
use super::kernel::Kernel;
use super::network;
use super::programs;
use super::ram::SimulatedRam;
use super::refusal::ApiRefusal;
use super::share;
use super::sshd;
use super::syscalls::{self, now};
use crate::world::capability::Capability;

type Result<T, E = ApiRefusal> = std::result::Result<T, E>;

/// A VM that has been booted or restored.
pub(super) struct SimulatedVm {
    pub(super) guest: Arc<SimulatedGuest>,
    pub(super) paused: bool,
    /// At which instant it stands still.
    instant: [u8; 16],
    /// The shares that are devices: id, and tag and connection of each.
    shares: BTreeMap<String, (String, UnixStream)>,
    /// Shares whose daemons were left behind by `vm.snapshot`.
    left_behind: bool,
    /// What it holds for as long as it lives: its TAP, and disks that are not its root.
    _held: Vec<File>,
}

/// What `vm.snapshot` writes besides the configuration.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    /// As Cloud Hypervisor's has; devices of a simulator have nothing to say.
    snapshots: Value,
    simulator: String,
    instant: [u8; 16],
    /// The host's time, in nanoseconds since 1970.
    time: i64,
}

/// Where a VM's surroundings are, and what it is to behave like.
#[derive(Clone)]
pub(super) struct VmmContext {
    pub(super) runtime: PathBuf,
    pub(super) version: &'static Capability,
    pub(super) power: UnboundedSender<Power>,
}

/// Parts of a machine, before there is a guest in it.
struct Parts {
    ram: SimulatedRam,
    disk: (SimulatedDisk, super::disk::Files),
    serial: File,
    ssh: Option<TcpListener>,
    held: Vec<File>,
    shares: BTreeMap<String, (String, UnixStream)>,
    seen: BTreeMap<String, AttachedShare>,
    zero_freed: bool,
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// RAM: the file of the zone, or memory of the VMM's own, filled from `saved` if there is some.
fn ram(config: &Value, saved: Option<&Path>, version: &Capability) -> Result<SimulatedRam> {
    let failed =
        |what: &'static str| move |error: io::Error| ApiRefusal::of(&["Memory manager error", what], &error);
    let memory = config.get("memory").unwrap_or(&Value::Null);
    let zone = items(memory, "zones").next();
    let size = |value: &Value| value.get("size").and_then(Value::as_u64).unwrap_or_default();
    let Some(zone) = zone else {
        let own = rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::CLOEXEC);
        let own = File::from(own.map_err(|error| failed("Failed to create shared file")(error.into()))?);
        own.set_len(size(memory)).map_err(failed("Failed to create shared file"))?;
        if let Some(saved) = saved {
            let saved =
                File::open(saved.join("memory-ranges")).map_err(failed("Error opening snapshot file"))?;
            io::copy(&mut &saved, &mut &own).map_err(failed("Error copying snapshot into region"))?;
        }
        return Ok(SimulatedRam::new(own, size(memory)));
    };
    let path = Path::new(text(zone, "file"));
    if saved.is_none() || version.restore_stats_ram_file {
        fs::metadata(path).map_err(failed("Failed to stat filesystem"))?;
    }
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.map_err(failed("Failed to create shared file"))?;
    let there = file.metadata().map_err(failed("Failed to stat filesystem"))?.len();
    if there < size(zone) {
        file.set_len(size(zone)).map_err(failed("Failed to create shared file"))?;
    }
    Ok(SimulatedRam::new(file, size(zone)))
}

/// Connects to everything that a configuration names. Nothing is changed if something of it is not there.
fn parts(config: &Value, place: &VmmContext, saved: Option<&Path>) -> Result<Parts> {
    let device = |what: &'static str| {
        move |error: io::Error| ApiRefusal::of(&["Error from device manager", what], &error)
    };
    let ram = ram(config, saved, place.version)?;
    let payload = config.get("payload").unwrap_or(&Value::Null);
    if saved.is_none() {
        File::open(text(payload, "kernel"))
            .map_err(|error| ApiRefusal::of(&["Cannot open kernel file"], &error))?;
    }
    let serial = if saved.is_some() { console(config)? } else { console_again(config).map_err(io_error)? };
    let mut disks = items(config, "disks");
    let Some(root) = disks.next() else {
        return Err(ApiRefusal::new(
            500,
            &["Simulator", "a simulated guest boots from a disk, and there is none"],
        ));
    };
    let raw = !place.version.knows_image_type || text(root, "image_type") == "Raw";
    let disk = SimulatedDisk::open(Path::new(text(root, "path")), raw).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => ApiRefusal::new(
            500,
            &[
                "Simulator",
                "the first disk is none of a simulated guest: `nixbox simulator disk` makes such an image",
            ],
        ),
        _ => {
            let words = ["Error from device manager", "Cannot open disk path"];
            let opening = format!("I/O error (path={} op=open)", text(root, "path"));
            if place.version.disk_errors_name_the_path {
                ApiRefusal::of(&[words[0], words[1], &opening], &error)
            } else {
                ApiRefusal::of(&words, &error)
            }
        }
    })?;
    let mut held = Vec::new();
    for disk in disks {
        let file = OpenOptions::new().read(true).write(true).open(text(disk, "path"));
        let file = file.map_err(device("Cannot open disk path"))?;
        file.try_lock().map_err(|_| {
            device("Cannot lock images of all block devices")(io::ErrorKind::ResourceBusy.into())
        })?;
        held.push(file);
    }
    let mut ssh = None;
    for net in items(config, "net") {
        let (tap, listener) = network::attach(&place.runtime, text(net, "tap")).map_err(|error| {
            ApiRefusal::of(
                &[
                    "Error from device manager",
                    "Cannot create virtio-net device",
                    "Failed to open taps",
                    "Open tap device failed",
                    "Unable to configure tap interface",
                ],
                &error,
            )
        })?;
        held.push(tap);
        ssh = Some(listener);
    }
    let (mut shares, mut seen) = (BTreeMap::new(), BTreeMap::new());
    for fs in items(config, "fs") {
        let (stream, source) = connect(fs)?;
        shares.insert(text(fs, "id").to_owned(), (text(fs, "tag").to_owned(), stream));
        seen.insert(text(fs, "tag").to_owned(), AttachedShare { source, hung: false });
    }
    let zero_freed = text(payload, "cmdline").split_whitespace().any(|word| word == "init_on_free=1");
    Ok(Parts { ram, disk, serial, ssh, held, shares, seen, zero_freed })
}

/// The serial console, emptied: by `vm.create` and by `vm.restore`.
pub(super) fn console(config: &Value) -> Result<File> {
    File::create(console_path(config)).map_err(|error| {
        ApiRefusal::of(&["Error creating console devices", "Error creating console device"], &error)
    })
}

fn console_again(config: &Value) -> io::Result<File> {
    OpenOptions::new().append(true).open(console_path(config))
}

fn console_path(config: &Value) -> &Path {
    match config.get("serial").map(|serial| text(serial, "file")) {
        None | Some("") => Path::new("/dev/null"),
        Some(path) => Path::new(path),
    }
}

fn connect(fs: &Value) -> Result<(UnixStream, PathBuf)> {
    share::connect(Path::new(text(fs, "socket"))).map_err(|error| {
        let peer = format!("vhost-user: can't connect to peer: {error}");
        let words = [
            "Error from device manager",
            "Cannot create virtio-fs device",
            "Connection to socket failed",
            &peer,
        ];
        ApiRefusal::new(500, &words)
    })
}

/// The guest that belongs to a kernel, with its programs, its system calls and its SSH server. It does not run yet.
fn guest(
    kernel: Kernel,
    shares: BTreeMap<String, AttachedShare>,
    ssh: Option<TcpListener>,
    place: &VmmContext,
) -> io::Result<Arc<SimulatedGuest>> {
    programs::install(kernel.view())?;
    let guest = SimulatedGuest::new(kernel, shares, &place.runtime, place.power.clone());
    syscalls::listen(&guest)?;
    if let Some(ssh) = ssh {
        sshd::listen(&guest, ssh)?;
    }
    Ok(guest)
}

fn io_error(error: io::Error) -> ApiRefusal {
    ApiRefusal::of(&["Simulator"], &error)
}

impl SimulatedVm {
    /// A fresh boot.
    pub(super) fn boot(config: &Value, place: &VmmContext) -> Result<Self> {
        let Parts { ram, disk, serial, ssh, held, shares, seen, zero_freed } = parts(config, place, None)?;
        let view = network::view_path(&place.runtime);
        let kernel = Kernel::boot(ram, disk, &view, serial, zero_freed).map_err(io_error)?;
        let guest = guest(kernel, seen, ssh, place).map_err(io_error)?;
        guest.settle();
        guest.run([0; 16]).map_err(io_error)?;
        Ok(Self { guest, paused: false, instant: [0; 16], shares, left_behind: false, _held: held })
    }

    /// What was saved in a directory, paused.
    pub(super) fn restore(config: &Value, directory: &Path, place: &VmmContext) -> Result<Self> {
        const RECEIVE: [&str; 2] = ["Cannot restore VM", "Failed to receive migratable component snapshot"];
        let path = directory.join("state.json");
        let opened = fs::read(&path).map_err(|error| {
            let opening = format!("Error opening VM state snapshot file {path:?}");
            ApiRefusal::with_file(place.version, &RECEIVE, &opening, &error)
        })?;
        let saved: Saved = serde_json::from_slice(&opened).map_err(|error| {
            ApiRefusal::with_file(place.version, &RECEIVE, "Error deserialising VM state snapshot", &error)
        })?;
        let Parts { ram, disk, serial, ssh, held, shares, seen, .. } = parts(config, place, Some(directory))?;
        let view = network::view_path(&place.runtime);
        let kernel = Kernel::go_on(ram, disk, &view, serial).map_err(io_error)?;
        let Some(mut kernel) = kernel else {
            return Err(ApiRefusal::new(
                500,
                &["Simulator", "RAM and disk are not of one simulated guest and one instant"],
            ));
        };
        if !place.version.clock_runs_while_saved {
            kernel.state.clock = kernel.state.clock.saturating_sub(now() - saved.time);
        }
        for mounted in &mut kernel.state.mounts {
            if let Some(share) = seen.get(&mounted.tag) {
                mounted.shown.clone_from(&share.source);
            }
        }
        kernel.show_mounts().map_err(io_error)?;
        let tags: BTreeSet<String> = kernel.state.mounts.iter().map(|mounted| mounted.tag.clone()).collect();
        let without: BTreeSet<String> = tags.iter().filter(|tag| !seen.contains_key(*tag)).cloned().collect();
        let guest = guest(kernel, seen, ssh, place).map_err(io_error)?;
        guest.hang(&without).map_err(io_error)?;
        if !place.version.ability.shares_survive_restore {
            guest.lose_inodes(&tags).map_err(io_error)?;
        }
        Ok(Self { guest, paused: true, instant: saved.instant, shares, left_behind: false, _held: held })
    }

    pub(super) fn pause(&mut self) -> Result<()> {
        let mut instant = [0; 16];
        rustix::rand::getrandom(&mut instant, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| io_error(error.into()))?;
        self.guest.pause(instant).map_err(io_error)?;
        (self.instant, self.paused) = (instant, true);
        Ok(())
    }

    pub(super) fn resume(&mut self, version: &Capability) -> Result<()> {
        if self.left_behind && !version.ability.shares_survive_resume {
            let tags = self.shares.values().map(|(tag, _)| tag.clone()).collect();
            self.guest.hang(&tags).map_err(io_error)?;
        }
        self.left_behind = false;
        self.guest.run(self.instant).map_err(io_error)?;
        self.paused = false;
        Ok(())
    }

    /// Into an existing directory without files of an earlier one.
    pub(super) fn save(&mut self, config: &Value, directory: &Path, version: &Capability) -> Result<()> {
        let creating = |what: &'static str| {
            let words = ["Cannot send VM snapshot", "Failed to send migratable component snapshot"];
            move |error: io::Error| ApiRefusal::with_file(version, &words, what, &error)
        };
        let write = |name: &str, what: &'static str, bytes: serde_json::Result<Vec<u8>>| {
            let written = bytes
                .map_err(io::Error::from)
                .and_then(|bytes| create_new(&directory.join(name))?.write_all(&bytes));
            written.map_err(creating(what))
        };
        let saved = Saved {
            snapshots: json!({}),
            simulator: version.simulator_version(),
            instant: self.instant,
            time: now(),
        };
        write("config.json", "Error creating VM config snapshot file", serde_json::to_vec(config))?;
        let zones = config.get("memory").map(|memory| items(memory, "zones").count()).unwrap_or_default();
        if zones == 0 {
            let failed = creating("Error creating memory ranges file");
            let mut ranges = create_new(&directory.join("memory-ranges")).map_err(&failed)?;
            let kernel = self.guest.kernel();
            let mut own = kernel.ram.file();
            io::Seek::rewind(&mut own)
                .and_then(|()| io::copy(&mut own.take(u64::MAX), &mut ranges))
                .map_err(failed)?;
        }
        write("state.json", "Error creating VM state snapshot file", serde_json::to_vec(&saved))?;
        self.left_behind = !self.shares.is_empty();
        Ok(())
    }

    pub(super) fn add_share(&mut self, fs: &Value) -> Result<()> {
        let (stream, source) = connect(fs)?;
        let tag = text(fs, "tag").to_owned();
        self.guest.attach(&tag, AttachedShare { source, hung: false });
        self.shares.insert(text(fs, "id").to_owned(), (tag, stream));
        Ok(())
    }

    /// Shares whose daemons have gone are of no use to anybody.
    pub(super) fn notice_lost_daemons(&self) -> io::Result<()> {
        let mut lost = BTreeSet::new();
        for (tag, stream) in self.shares.values() {
            stream.set_nonblocking(true)?;
            if matches!((&*stream).read(&mut [0]), Ok(0)) {
                lost.insert(tag.clone());
            }
        }
        if lost.is_empty() { Ok(()) } else { self.guest.hang(&lost) }
    }

    /// The guest lets go of what it was asked to, unless it is in use. Says whether all of it is gone.
    pub(super) fn let_go(&mut self, asked: &BTreeSet<String>) {
        if !self.paused {
            let guest = &self.guest;
            self.shares.retain(|id, (tag, _)| !asked.contains(id) || !guest.let_go(tag));
        }
    }

    /// Ids of all devices.
    pub(super) fn devices(&self) -> Vec<&str> {
        self.shares.keys().map(String::as_str).collect()
    }
}

fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

impl Drop for SimulatedVm {
    fn drop(&mut self) {
        self.guest.end();
    }
}
