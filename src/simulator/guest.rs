//! The simulated guest: a kernel, what its programs ask of it, and the machine's hold on it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::sync::mpsc::UnboundedSender;

use super::kernel::{Kernel, MountedShare};
use super::pausable_stream::Gate;

/// How often the counter in RAM goes up.
const TICK: Duration = Duration::from_millis(10);
/// How much of a share is told apart when nothing in it can be reached any more.
const MOST_ENTRIES: usize = 1000;

/// What a guest asks of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Power {
    Off,
    Again,
}

/// A share as the guest sees the device.
#[derive(Debug, Clone)]
pub(super) struct AttachedShare {
    pub(super) source: PathBuf,
    /// Its daemon cannot be reached any more: whoever touches it waits for ever.
    pub(super) hung: bool,
}

/// A guest.
pub(super) struct SimulatedGuest {
    kernel: Mutex<Kernel>,
    pub(super) gate: Arc<Gate>,
    /// Process groups of what runs in it.
    groups: Mutex<BTreeSet<i32>>,
    /// By tag.
    shares: Mutex<BTreeMap<String, AttachedShare>>,
    power: UnboundedSender<Power>,
    /// Where programs reach the kernel.
    calls: PathBuf,
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimulatedGuest {
    /// A guest that does not run yet.
    pub(super) fn new(
        kernel: Kernel,
        shares: BTreeMap<String, AttachedShare>,
        runtime: &Path,
        power: UnboundedSender<Power>,
    ) -> Arc<Self> {
        let guest = Arc::new(Self {
            kernel: Mutex::new(kernel),
            gate: Arc::new(Gate::closed()),
            groups: Mutex::default(),
            shares: Mutex::new(shares),
            power,
            calls: runtime.join("guest.sock"),
        });
        tokio::spawn(tick(Arc::clone(&guest)));
        guest
    }

    pub(super) fn kernel(&self) -> MutexGuard<'_, Kernel> {
        lock(&self.kernel)
    }

    pub(super) fn calls(&self) -> &Path {
        &self.calls
    }

    pub(super) fn power(&self, power: Power) {
        // Nobody listens in a machine that ends already.
        self.power.send(power).ok();
    }

    /// A command was started as the leader of a group. Programs of the guest see it in `/proc`.
    pub(super) fn started(&self, group: i32, command: &str) -> io::Result<()> {
        lock(&self.groups).insert(group);
        let place = self.kernel().process(group);
        fs::create_dir(&place)?;
        fs::write(place.join("comm"), "sh\n")?;
        fs::write(place.join("cmdline"), format!("sh\0-c\0{command}\0"))
    }

    /// It has ended. If it was killed, so is what it started: a guest's program that kills one kills each, and sees but
    /// this one here.
    pub(super) fn ended(&self, group: i32, killed: bool) {
        let group_id = Pid::from_raw(group).filter(|_| killed);
        // A group without a process is no group, and a view that is made anew has nothing of the one before it.
        group_id.map(|group| kill_process_group(group, Signal::KILL).ok());
        fs::remove_dir_all(self.kernel().process(group)).ok();
    }

    fn signal(&self, signal: Signal) {
        // A group without a process is no group.
        let alive =
            |group: &i32| Pid::from_raw(*group).is_some_and(|pid| kill_process_group(pid, signal).is_ok());
        lock(&self.groups).retain(alive);
    }

    /// Something ran: what it changed is in RAM and on the disk now.
    pub(super) fn settle(&self) {
        let mut kernel = self.kernel();
        if self.gate.is_gone() {
            return;
        }
        if let Err(error) = kernel.absorb().and_then(|()| kernel.write_back()) {
            kernel.say(&format!("simulator: I/O error: {error}"));
        }
    }

    /// Stands still from now on, at this instant.
    pub(super) fn pause(&self, instant: [u8; 16]) -> io::Result<()> {
        self.gate.close();
        self.signal(Signal::STOP);
        let mut kernel = self.kernel();
        kernel.absorb()?;
        kernel.ram.set_instant(instant)
    }

    /// Runs from now on. If its RAM is not of the instant of its devices it does not get far.
    pub(super) fn run(&self, instant: [u8; 16]) -> io::Result<()> {
        {
            let mut kernel = self.kernel();
            if kernel.ram.instant()? != instant {
                kernel.say("Kernel panic - not syncing: RAM and devices are not of one instant");
                self.gate.end();
                return Ok(());
            }
            kernel.ram.set_instant([0; 16])?;
        }
        self.signal(Signal::CONT);
        self.gate.open();
        Ok(())
    }

    /// Is no more. What was not on the disk is lost.
    pub(super) fn end(&self) {
        let kernel = self.kernel();
        self.gate.end();
        kernel.disk.release();
        self.signal(Signal::KILL);
    }

    pub(super) fn attach(&self, tag: &str, share: AttachedShare) {
        lock(&self.shares).insert(tag.to_owned(), share);
    }

    /// The directories of this machine that the guest has as shares.
    pub(super) fn sources(&self) -> Vec<PathBuf> {
        lock(&self.shares).values().map(|share| share.source.clone()).collect()
    }

    /// Lets go of a share, unless it is mounted.
    pub(super) fn let_go(&self, tag: &str) -> bool {
        let mounted = self.kernel().state.mounts.iter().any(|mounted| mounted.tag == tag);
        if !mounted {
            lock(&self.shares).remove(tag);
        }
        !mounted
    }

    /// From now on nobody gets anything out of these shares, whoever asks waits for ever.
    pub(super) fn hang(&self, tags: &BTreeSet<String>) -> io::Result<()> {
        for (_, share) in lock(&self.shares).iter_mut().filter(|(tag, _)| tags.contains(*tag)) {
            share.hung = true;
        }
        self.spoil(tags, FileType::Fifo)
    }

    /// All that was known of what is mounted is of no use any more.
    pub(super) fn lose_inodes(&self, tags: &BTreeSet<String>) -> io::Result<()> {
        self.spoil(tags, FileType::Socket)
    }

    /// Shows files of another kind in the place of those of a share: opening a FIFO waits, opening a socket fails.
    fn spoil(&self, tags: &BTreeSet<String>, kind: FileType) -> io::Result<()> {
        let mut kernel = self.kernel();
        let view = kernel.view().to_owned();
        for mounted in kernel.state.mounts.iter_mut().filter(|mounted| tags.contains(&mounted.tag)) {
            let place = view.join("sys").join(&mounted.tag);
            if mounted.shown != place && !place.exists() {
                let mut left = MOST_ENTRIES;
                mirror(&mounted.shown, &place, kind, &mut left)?;
            }
            mounted.shown = place;
        }
        kernel.show_mounts()?;
        kernel.keep_state()
    }

    /// Whether to answer at all: what hangs, hangs.
    pub(super) fn is_hung(&self, tag: &str) -> bool {
        lock(&self.shares).get(tag).is_some_and(|share| share.hung)
    }

    /// Mounts a share.
    ///
    /// # Errors
    /// What `mount` says then.
    pub(super) fn mount(&self, tag: &str, target: &Path, readonly: bool) -> Result<(), String> {
        let share = lock(&self.shares).get(tag).cloned();
        let share =
            share.ok_or_else(|| format!("mount: wrong fs type, bad option, bad superblock on {tag}"))?;
        let mut kernel = self.kernel();
        kernel.absorb().map_err(|error| error.to_string())?;
        let real =
            fs::canonicalize(target).map_err(|error| format!("mount: {}: {error}", target.display()))?;
        let point =
            real.strip_prefix(kernel.view()).ok().and_then(Path::to_str).filter(|point| !point.is_empty());
        let point = point.ok_or_else(|| format!("mount: {}: not a place for a share", target.display()))?;
        let point = point.to_owned();
        if fs::read_dir(&real).is_ok_and(|mut entries| entries.next().is_some()) {
            // A link can take the place of an empty directory alone.
            return Err(format!(
                "mount: {}: the simulator mounts on empty directories alone",
                target.display()
            ));
        }
        kernel.state.mounts.push(MountedShare { tag: tag.to_owned(), point, readonly, shown: share.source });
        kernel.show_mounts().and_then(|()| kernel.keep_state()).map_err(|error| error.to_string())
    }

    /// Unmounts what is seen at `target`, or mounted there.
    ///
    /// # Errors
    /// What `umount` says then.
    pub(super) fn unmount(&self, target: &Path) -> Result<(), String> {
        let mut kernel = self.kernel();
        kernel.absorb().map_err(|error| error.to_string())?;
        let view = kernel.view().to_owned();
        let is = |mounted: &MountedShare| mounted.shown == target || view.join(&mounted.point) == target;
        let at = kernel.state.mounts.iter().rposition(is);
        let at = at.ok_or_else(|| format!("umount: {}: not mounted", target.display()))?;
        let mounted = kernel.state.mounts.remove(at);
        let place = view.join(&mounted.point);
        let shown = fs::remove_file(&place)
            .and_then(|()| fs::create_dir(&place))
            .and_then(|()| kernel.show_mounts())
            .and_then(|()| kernel.keep_state());
        shown.map_err(|error| format!("umount: {}: {error}", target.display()))
    }

    /// The tag of what is mounted there.
    pub(super) fn tag_at(&self, target: &Path) -> Option<String> {
        let kernel = self.kernel();
        let is =
            |mounted: &&MountedShare| mounted.shown == target || kernel.view().join(&mounted.point) == target;
        kernel.state.mounts.iter().rfind(is).map(|mounted| mounted.tag.clone())
    }
}

fn mirror(from: &Path, to: &Path, kind: FileType, left: &mut usize) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        *left = left.saturating_sub(1);
        if *left == 0 {
            break;
        }
        let place = to.join(entry.file_name());
        // Whatever hangs in a workspace's own directory of state is nothing that a guest's program looks for.
        if entry.file_type()?.is_dir() {
            if entry.file_name() != ".nixbox" {
                mirror(&entry.path(), &place, kind, left)?;
            }
        } else {
            rustix::fs::mknodat(CWD, &place, kind, Mode::from_raw_mode(0o600), 0)?;
        }
    }
    Ok(())
}

async fn tick(guest: Arc<SimulatedGuest>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while guest.gate.passed().await.is_ok() {
        interval.tick().await;
        // It may have been paused meanwhile: one tick too many would be one of a guest that runs.
        let kernel = guest.kernel();
        if kernel.ram.instant().is_ok_and(|instant| instant == [0; 16]) && kernel.ram.tick().is_err() {
            return;
        }
    }
}
