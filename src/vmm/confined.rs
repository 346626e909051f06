//! What a VMM process can open: the files of its VM, and no other file of its user.
//!
//! The VMM is started before its disks and its RAM file are made, so the rules name the directories where these will be.
//! What v51 to v53 open (read in their sources):
//!
//! | file | when | rule |
//! |---|---|---|
//! | `/dev/kvm`, `/dev/net/tun` | start, boot, restore | read, write, control |
//! | `/dev/urandom` | boot, restore | as every program |
//! | `/sys/class/net/TAP/tun_flags`, below `/sys/devices/virtual/net` | boot, restore | read |
//! | kernel, initramfs | boot, reboot of the guest | read; copies of what a guest can replace are in the runtime directory |
//! | disks, RAM file | boot, restore | read and write what is there |
//! | `config.json`, `state.json`, `memory-ranges` of a snapshot | snapshot | made below the directory of the snapshots |
//! | the same files for a restore | restore | read in the runtime directory, and `memory-ranges` through a link in the snapshot |
//! | API socket | start | made in the runtime directory, where the VMM may make sockets and no other files |
//! | lock of the API socket (v53), serial log, log of events | start, boot, restore | made by the launcher, and written |
//!
//! Sockets of share daemons are connected to, which needs no rule.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::files::shared_paths::SharedPaths;
use crate::host::confinement::{Confinement, FileAccess};
use crate::host::socket::SocketPath;
use crate::host::spawn::Program;

/// Adds where disks, RAM and snapshots of the VM are and will be. The directories exist when this returns.
pub type OwnPlaces = Arc<dyn Fn(Confinement) -> Confinement + Send + Sync>;

/// The files of one VMM.
pub(super) struct VmmFiles<'a> {
    pub(super) runtime: &'a Path,
    pub(super) socket: &'a SocketPath,
    pub(super) serial: PathBuf,
    /// The file of its events.
    pub(super) events: PathBuf,
    /// The kernel and the initramfs.
    pub(super) boot: [Option<&'a Path>; 2],
    /// Where a guest can replace them.
    pub(super) shared: &'a SharedPaths,
}

impl VmmFiles<'_> {
    fn confinement(&self) -> Confinement {
        let confinement = Confinement::of_a_program()
            .may(FileAccess::Device, "/dev/kvm")
            .may(FileAccess::Device, "/dev/net/tun")
            .may(FileAccess::Read, "/sys/devices/virtual/net")
            .may(FileAccess::Listen, self.runtime)
            .may(FileAccess::OwnFile, self.socket.with_suffix(".lock"))
            .may(FileAccess::OwnFile, &self.serial)
            .may(FileAccess::OwnFile, &self.events);
        // A path that a guest can replace could lead to any file by the time that the launcher opens it.
        let fixed = |path: &&Path| self.shared.open(path).is_ok_and(|opened| !opened.is_shared());
        let boot = self.boot.into_iter().flatten().filter(fixed);
        boot.fold(confinement, |confinement, path| confinement.may(FileAccess::Read, path))
    }

    /// The VMM's program, confined to these files and those at `places`; as it is without `places`.
    pub(super) fn confine(&self, program: Program, places: Option<&OwnPlaces>) -> Program {
        match places {
            Some(places) => places(self.confinement()).launch(program),
            None => program,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::host::spawn::{Invoker, Privileges};

    #[test]
    fn a_vmm_gets_no_path_that_its_guest_can_replace() {
        let directory = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(directory.path()).unwrap();
        fs::create_dir(root.join("share")).unwrap();
        for name in ["share/vmlinuz", "initramfs"] {
            fs::write(root.join(name), name).unwrap();
        }
        let shared = SharedPaths::new([root.join("share").as_path()]);
        let socket = SocketPath::new(root.join("vmm-1.sock")).unwrap();
        let (kernel, initramfs) = (root.join("share/vmlinuz"), root.join("initramfs"));
        let files = VmmFiles {
            runtime: &root,
            socket: &socket,
            serial: root.join("serial-1.log"),
            events: root.join("events-1.log"),
            boot: [Some(&kernel), Some(&initramfs)],
            shared: &shared,
        };
        let confinement = files.confinement();
        assert!(confinement.allows(FileAccess::Read, &initramfs));
        assert!(!confinement.allows(FileAccess::Read, &kernel));
        // In the directory of sockets, in which nixbox has its records, no other file is made or written.
        assert!(
            confinement.allows(FileAccess::Listen, &root) && !confinement.allows(FileAccess::Make, &root)
        );
        let program = || Program::new("/nowhere/vmm", Privileges::Invoker(Invoker::detect().unwrap()));
        assert_eq!(files.confine(program(), None).path(), Path::new("/nowhere/vmm"));
        let places: OwnPlaces = Arc::new(|confinement| confinement);
        assert_ne!(files.confine(program(), Some(&places)).path(), Path::new("/nowhere/vmm"));
    }
}
