//! The simulated guest: its kernel, its processes, its shares, and how its machine pauses and ends it.

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
use super::pausable_stream::PauseControl;

/// How often the counter in RAM grows by one.
const TICK: Duration = Duration::from_millis(10);
/// How many entries of a share are imitated once the share cannot be reached any more.
const MOST_ENTRIES: usize = 1000;

/// What a guest asks of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PowerRequest {
    Off,
    Reboot,
}

/// A share as the guest sees the device.
#[derive(Debug, Clone)]
pub(super) struct AttachedShare {
    pub(super) source: PathBuf,
    /// Whether its daemon cannot be reached any more: every access hangs.
    pub(super) hung: bool,
}

/// A guest.
pub(super) struct SimulatedGuest {
    kernel: Mutex<Kernel>,
    pub(super) pause_control: Arc<PauseControl>,
    /// The process groups of the commands that run in it.
    groups: Mutex<BTreeSet<i32>>,
    /// The attached shares, by tag.
    shares: Mutex<BTreeMap<String, AttachedShare>>,
    power: UnboundedSender<PowerRequest>,
    /// The socket for system calls.
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
        power: UnboundedSender<PowerRequest>,
    ) -> Arc<Self> {
        let guest = Arc::new(Self {
            kernel: Mutex::new(kernel),
            pause_control: Arc::new(PauseControl::paused()),
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

    pub(super) fn power(&self, power: PowerRequest) {
        // Without a receiver the machine is ending already.
        self.power.send(power).ok();
    }

    /// Notes that a command was started as the leader of a process group. The guest's programs see it in `/proc`.
    pub(super) fn started(&self, group: i32, command: &str) -> io::Result<()> {
        lock(&self.groups).insert(group);
        let place = self.kernel().process(group);
        fs::create_dir(&place)?;
        fs::write(place.join("comm"), "sh\n")?;
        fs::write(place.join("cmdline"), format!("sh\0-c\0{command}\0"))
    }

    /// Notes that the leader of a group has ended. If it was killed, the rest of its group is killed as well: the program of
    /// the guest that killed it would kill each process, but sees only the leader in this `/proc`.
    pub(super) fn ended(&self, group: i32, killed: bool) {
        let group_id = Pid::from_raw(group).filter(|_| killed);
        // Both fail harmlessly: the group may have no process left, and a view that was made again does not contain it.
        group_id.map(|group| kill_process_group(group, Signal::KILL).ok());
        fs::remove_dir_all(self.kernel().process(group)).ok();
    }

    fn signal(&self, signal: Signal) {
        // A group to which no signal can be sent has no process any more.
        let alive =
            |group: &i32| Pid::from_raw(*group).is_some_and(|pid| kill_process_group(pid, signal).is_ok());
        lock(&self.groups).retain(alive);
    }

    /// Takes what a program has changed into RAM and onto the disk. To be called after a program has run.
    pub(super) fn settle(&self) {
        let mut kernel = self.kernel();
        if self.pause_control.is_gone() {
            return;
        }
        if let Err(error) = kernel.absorb().and_then(|()| kernel.write_back()) {
            kernel.print(&format!("simulator: I/O error: {error}"));
        }
    }

    /// Pauses the guest, and notes in RAM at which instant.
    pub(super) fn pause(&self, instant: [u8; 16]) -> io::Result<()> {
        self.pause_control.pause();
        self.signal(Signal::STOP);
        let mut kernel = self.kernel();
        kernel.absorb()?;
        kernel.ram.set_instant(instant)
    }

    /// Runs the guest. If its RAM is of another instant than its devices, which were paused at `instant`, the kernel panics.
    pub(super) fn run(&self, instant: [u8; 16]) -> io::Result<()> {
        {
            let mut kernel = self.kernel();
            if kernel.ram.instant()? != instant {
                kernel.print("Kernel panic - not syncing: RAM and devices are not of one instant");
                self.pause_control.end();
                return Ok(());
            }
            kernel.ram.set_instant([0; 16])?;
        }
        self.signal(Signal::CONT);
        self.pause_control.resume();
        Ok(())
    }

    /// Ends the guest, as a power cut does: what was not on the disk is lost.
    pub(super) fn end(&self) {
        let kernel = self.kernel();
        self.pause_control.end();
        kernel.disk.release();
        self.signal(Signal::KILL);
    }

    pub(super) fn attach(&self, tag: &str, share: AttachedShare) {
        lock(&self.shares).insert(tag.to_owned(), share);
    }

    /// The directories of this machine that are the guest's shares.
    pub(super) fn sources(&self) -> Vec<PathBuf> {
        lock(&self.shares).values().map(|share| share.source.clone()).collect()
    }

    /// Lets go of a share unless it is mounted. Returns whether the share is gone.
    pub(super) fn let_go(&self, tag: &str) -> bool {
        let mounted = self.kernel().state.mounts.iter().any(|mounted| mounted.tag == tag);
        if !mounted {
            lock(&self.shares).remove(tag);
        }
        !mounted
    }

    /// Makes every access to these shares hang.
    pub(super) fn hang(&self, tags: &BTreeSet<String>) -> io::Result<()> {
        for (_, share) in lock(&self.shares).iter_mut().filter(|(tag, _)| tags.contains(*tag)) {
            share.hung = true;
        }
        self.replace_files(tags, FileType::Fifo)
    }

    /// Makes every access to what is mounted of these shares fail.
    pub(super) fn lose_inodes(&self, tags: &BTreeSet<String>) -> io::Result<()> {
        self.replace_files(tags, FileType::Socket)
    }

    /// Replaces the files of mounted shares by files of another kind: opening a FIFO hangs, opening a socket fails.
    fn replace_files(&self, tags: &BTreeSet<String>, kind: FileType) -> io::Result<()> {
        let mut kernel = self.kernel();
        let view = kernel.view().to_owned();
        for mounted in kernel.state.mounts.iter_mut().filter(|mounted| tags.contains(&mounted.tag)) {
            let place = view.join("sys").join(&mounted.tag);
            if mounted.shown != place && !place.exists() {
                let mut left = MOST_ENTRIES;
                imitate(&mounted.shown, &place, kind, &mut left)?;
            }
            mounted.shown = place;
        }
        kernel.show_mounts()?;
        kernel.keep_state()
    }

    /// Whether accesses to a share hang.
    pub(super) fn is_hung(&self, tag: &str) -> bool {
        lock(&self.shares).get(tag).is_some_and(|share| share.hung)
    }

    /// Mounts a share.
    ///
    /// # Errors
    /// The message of `mount`.
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
        let point =
            point.ok_or_else(|| format!("mount: {}: a share cannot be mounted there", target.display()))?;
        let point = point.to_owned();
        if fs::read_dir(&real).is_ok_and(|mut entries| entries.next().is_some()) {
            // A mounted share is shown by a link, which can only take the place of an empty directory.
            return Err(format!(
                "mount: {}: the simulator can only mount on an empty directory",
                target.display()
            ));
        }
        kernel.state.mounts.push(MountedShare { tag: tag.to_owned(), point, readonly, shown: share.source });
        kernel.show_mounts().and_then(|()| kernel.keep_state()).map_err(|error| error.to_string())
    }

    /// Unmounts the share that is mounted at `target`, or whose files are shown from `target`.
    ///
    /// # Errors
    /// The message of `umount`.
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

    /// The tag of the share that is mounted at `target`.
    pub(super) fn tag_at(&self, target: &Path) -> Option<String> {
        let kernel = self.kernel();
        let is =
            |mounted: &&MountedShare| mounted.shown == target || kernel.view().join(&mounted.point) == target;
        kernel.state.mounts.iter().rfind(is).map(|mounted| mounted.tag.clone())
    }
}

fn imitate(from: &Path, to: &Path, kind: FileType, left: &mut usize) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        *left = left.saturating_sub(1);
        if *left == 0 {
            break;
        }
        let place = to.join(entry.file_name());
        // No program of the guest looks into the workspace's own directory.
        if entry.file_type()?.is_dir() {
            if entry.file_name() != ".nixbox" {
                imitate(&entry.path(), &place, kind, left)?;
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
    while guest.pause_control.until_running().await.is_ok() {
        interval.tick().await;
        // The guest may have been paused meanwhile. The counter of a paused guest must not grow.
        let kernel = guest.kernel();
        if kernel.ram.instant().is_ok_and(|instant| instant == [0; 16]) && kernel.ram.tick().is_err() {
            return;
        }
    }
}
