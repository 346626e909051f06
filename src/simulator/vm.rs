//! The simulated VM: opens and locks the files and sockets that its configuration names, boots or restores a guest in
//! them, and pauses, saves and resumes it.

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

use super::disk::{FileTable, SimulatedDisk};
use super::guest::{AttachedShare, PowerRequest, SimulatedGuest};
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
    /// Names the instant at which the VM was paused; all zero before. RAM holds the same bytes, so that RAM of another
    /// instant is recognised.
    instant: [u8; 16],
    /// The shares that are devices, by id: tag, and connection to the daemon.
    shares: BTreeMap<String, (String, UnixStream)>,
    /// Whether there were shares at the last `vm.snapshot`: some versions do not resume their daemons.
    left_behind: bool,
    /// Files that are locked for as long as the VM lives: its TAP, and the disks other than the first.
    _locked_files: Vec<File>,
}

/// The content of `state.json`.
#[derive(Debug, Serialize, Deserialize)]
struct StateFile {
    /// Where Cloud Hypervisor has the state of devices. Empty here.
    snapshots: Value,
    simulator: String,
    instant: [u8; 16],
    /// The host's time, in nanoseconds since 1970.
    time: i64,
}

/// What a VM needs of its VMM.
#[derive(Clone)]
pub(super) struct VmmContext {
    /// The directory of the API socket, in which the simulated network lies as well.
    pub(super) runtime: PathBuf,
    /// The version that is simulated.
    pub(super) version: &'static Capability,
    /// Takes what the guest asks of its machine.
    pub(super) power: UnboundedSender<PowerRequest>,
}

/// What a configuration names, opened and locked, before there is a guest.
struct ConnectedDevices {
    ram: SimulatedRam,
    disk: (SimulatedDisk, FileTable),
    serial: File,
    ssh: Option<TcpListener>,
    locked_files: Vec<File>,
    shares: BTreeMap<String, (String, UnixStream)>,
    attached: BTreeMap<String, AttachedShare>,
    zero_freed: bool,
    emergency: bool,
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// RAM: the file of the zone, or memory of the VMM, filled from the directory `saved` in a restore.
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
    let length = file.metadata().map_err(failed("Failed to stat filesystem"))?.len();
    if length < size(zone) {
        file.set_len(size(zone)).map_err(failed("Failed to create shared file"))?;
    }
    Ok(SimulatedRam::new(file, size(zone)))
}

/// Opens everything that a configuration names. If something is missing nothing has been changed.
fn connect_devices(config: &Value, context: &VmmContext, saved: Option<&Path>) -> Result<ConnectedDevices> {
    let ram = ram(config, saved, context.version)?;
    let payload = config.get("payload").unwrap_or(&Value::Null);
    if saved.is_none() {
        File::open(text(payload, "kernel"))
            .map_err(|error| ApiRefusal::of(&["Cannot open kernel file"], &error))?;
    }
    let serial = if saved.is_some() { console(config)? } else { console_again(config).map_err(io_error)? };
    let mut disks = items(config, "disks");
    let root = disks.next().ok_or_else(|| {
        ApiRefusal::new(500, &["Simulator", "a simulated guest boots from a disk, and there is none"])
    })?;
    let disk = root_disk(root, context.version)?;
    let mut locked_files = disks.map(lock_disk).collect::<Result<Vec<_>>>()?;
    let mut ssh = None;
    for net in items(config, "net") {
        let (tap, listener) = attach_tap(net, context)?;
        locked_files.push(tap);
        ssh = Some(listener);
    }
    let (mut shares, mut attached) = (BTreeMap::new(), BTreeMap::new());
    for fs in items(config, "fs") {
        let (stream, source) = connect(fs)?;
        shares.insert(text(fs, "id").to_owned(), (text(fs, "tag").to_owned(), stream));
        attached.insert(text(fs, "tag").to_owned(), AttachedShare { source, hung: false });
    }
    let boots_with = |wanted: &str| text(payload, "cmdline").split_whitespace().any(|word| word == wanted);
    let zero_freed = boots_with("init_on_free=1");
    // As in a guest with systemd, no SSH server is started then, and the console waits for a person.
    let emergency = boots_with("emergency");
    let ssh = ssh.filter(|_| !emergency);
    Ok(ConnectedDevices { ram, disk, serial, ssh, locked_files, shares, attached, zero_freed, emergency })
}

fn device_error(what: &'static str) -> impl Fn(io::Error) -> ApiRefusal {
    move |error| ApiRefusal::of(&["Error from device manager", what], &error)
}

/// Opens the first disk, which the guest boots from.
fn root_disk(disk: &Value, version: &Capability) -> Result<(SimulatedDisk, FileTable)> {
    let path = text(disk, "path");
    let raw = !version.knows_image_type || text(disk, "image_type") == "Raw";
    SimulatedDisk::open(Path::new(path), raw).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => ApiRefusal::new(
            500,
            &[
                "Simulator",
                "the first disk is not the disk of a simulated guest: `nixbox simulator disk` makes such an image",
            ],
        ),
        _ if version.disk_errors_name_the_path => {
            let opening = format!("I/O error (path={path} op=open)");
            ApiRefusal::of(&["Error from device manager", "Cannot open disk path", &opening], &error)
        }
        _ => device_error("Cannot open disk path")(error),
    })
}

/// Opens and locks a disk other than the first. The guest does not use it.
fn lock_disk(disk: &Value) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(text(disk, "path"));
    let file = file.map_err(device_error("Cannot open disk path"))?;
    file.try_lock().map_err(|_| {
        device_error("Cannot lock images of all block devices")(io::ErrorKind::ResourceBusy.into())
    })?;
    Ok(file)
}

fn attach_tap(net: &Value, context: &VmmContext) -> Result<(File, TcpListener)> {
    let words = [
        "Error from device manager",
        "Cannot create virtio-net device",
        "Failed to open taps",
        "Open tap device failed",
        "Unable to configure tap interface",
    ];
    network::attach(&context.runtime, text(net, "tap")).map_err(|error| ApiRefusal::of(&words, &error))
}

/// Makes or truncates the file of the serial console, as `vm.create` and `vm.restore` do.
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
            "ClientConnection to socket failed",
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
    context: &VmmContext,
) -> io::Result<Arc<SimulatedGuest>> {
    programs::install(kernel.view())?;
    let guest = SimulatedGuest::new(kernel, shares, &context.runtime, context.power.clone());
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
    /// Boots a guest from the first disk.
    pub(super) fn boot(config: &Value, context: &VmmContext) -> Result<Self> {
        let ConnectedDevices {
            ram,
            disk,
            serial,
            ssh,
            locked_files,
            shares,
            attached,
            zero_freed,
            emergency,
        } = connect_devices(config, context, None)?;
        let view = network::view_path(&context.runtime);
        let mut kernel = Kernel::boot(ram, disk, &view, serial, zero_freed).map_err(io_error)?;
        if emergency {
            kernel.print("You are in emergency mode.\nGive root password for maintenance: \x1b[0m");
        }
        let guest = guest(kernel, attached, ssh, context).map_err(io_error)?;
        guest.settle();
        guest.run([0; 16]).map_err(io_error)?;
        Ok(Self {
            guest,
            paused: false,
            instant: [0; 16],
            shares,
            left_behind: false,
            _locked_files: locked_files,
        })
    }

    /// Restores the guest that was saved in a directory. It is paused.
    pub(super) fn restore(config: &Value, directory: &Path, context: &VmmContext) -> Result<Self> {
        const RECEIVE: [&str; 2] = ["Cannot restore VM", "Failed to receive migratable component snapshot"];
        let path = directory.join("state.json");
        let opened = fs::read(&path).map_err(|error| {
            let opening = format!("Error opening VM state snapshot file {path:?}");
            ApiRefusal::with_file(context.version, &RECEIVE, &opening, &error)
        })?;
        let saved: StateFile = serde_json::from_slice(&opened).map_err(|error| {
            ApiRefusal::with_file(context.version, &RECEIVE, "Error deserialising VM state snapshot", &error)
        })?;
        let ConnectedDevices { ram, disk, serial, ssh, locked_files, shares, attached, .. } =
            connect_devices(config, context, Some(directory))?;
        let view = network::view_path(&context.runtime);
        let kernel = Kernel::restore(ram, disk, &view, serial).map_err(io_error)?;
        let Some(mut kernel) = kernel else {
            return Err(ApiRefusal::new(
                500,
                &["Simulator", "RAM and disk do not belong to the same simulated guest at the same instant"],
            ));
        };
        if !context.version.clock_runs_while_saved {
            kernel.state.clock = kernel.state.clock.saturating_sub(now() - saved.time);
        }
        for mounted in &mut kernel.state.mounts {
            if let Some(share) = attached.get(&mounted.tag) {
                mounted.shown.clone_from(&share.source);
            }
        }
        kernel.show_mounts().map_err(io_error)?;
        let tags: BTreeSet<String> = kernel.state.mounts.iter().map(|mounted| mounted.tag.clone()).collect();
        let without: BTreeSet<String> =
            tags.iter().filter(|tag| !attached.contains_key(*tag)).cloned().collect();
        let guest = guest(kernel, attached, ssh, context).map_err(io_error)?;
        guest.hang(&without).map_err(io_error)?;
        if !context.version.ability.shares_survive_restore {
            guest.lose_inodes(&tags).map_err(io_error)?;
        }
        Ok(Self {
            guest,
            paused: true,
            instant: saved.instant,
            shares,
            left_behind: false,
            _locked_files: locked_files,
        })
    }

    pub(super) fn pause(&mut self) -> Result<()> {
        let mut instant = [0; 16];
        getrandom::fill(&mut instant).map_err(|error| io_error(error.into()))?;
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

    /// Saves the VM in an existing directory without files of an earlier snapshot.
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
        let saved = StateFile {
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

    /// Makes shares hang whose daemons have gone.
    pub(super) fn hang_shares_of_lost_daemons(&self) -> io::Result<()> {
        let mut lost = BTreeSet::new();
        for (tag, stream) in self.shares.values() {
            stream.set_nonblocking(true)?;
            if matches!((&*stream).read(&mut [0]), Ok(0)) {
                lost.insert(tag.clone());
            }
        }
        if lost.is_empty() { Ok(()) } else { self.guest.hang(&lost) }
    }

    /// The guest lets go of the devices that it was asked to let go of, except shares that are mounted.
    pub(super) fn let_go(&mut self, asked: &BTreeSet<String>) {
        if !self.paused {
            let guest = &self.guest;
            self.shares.retain(|id, (tag, _)| !asked.contains(id) || !guest.let_go(tag));
        }
    }

    /// The ids of the shares that are devices.
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
