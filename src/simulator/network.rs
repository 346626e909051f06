//! A network that needs no privileges: the guest's SSH server listens on the loopback address of this machine.
//!
//! A file in the runtime directory, named like the TAP, stands for the TAP. The VMM locks it and writes into it at which
//! address the guest can be reached. Nothing is filtered, and the guest's programs use the host's network: this is no
//! sandbox.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::kernel::remove_view;
use crate::world::{Failure, Generation, Network, NetworkFault, Presence, RefusedTraffic, Result, Slot};

/// Why the network of a simulated guest could not be made or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}, which belongs to the simulated VM")]
pub struct LoopbackError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The simulated network of a workspace.
#[derive(Debug, Clone)]
pub struct Loopback {
    runtime: PathBuf,
}

fn tap_path(runtime: &Path, tap: &str) -> PathBuf {
    runtime.join(format!("tap-{tap}"))
}

/// The directory that stands for the guest's root.
pub(super) fn view_path(runtime: &Path) -> PathBuf {
    runtime.join("guest")
}

/// The address at which the guest in a slot can be reached; port 0, on which nobody listens, while it cannot.
#[must_use]
pub fn address(runtime: &Path, slot: Slot) -> SocketAddr {
    let text = fs::read_to_string(tap_path(runtime, &slot.tap())).unwrap_or_default();
    text.trim().parse().unwrap_or((Ipv4Addr::LOCALHOST, 0).into())
}

/// Takes a TAP, which no other VMM may use then, and listens for connections to the guest.
///
/// # Errors
/// The error of a TAP: `ENOENT` if it is missing, `EBUSY` if another VMM uses it.
pub(super) fn attach(runtime: &Path, tap: &str) -> io::Result<(File, TcpListener)> {
    let file = OpenOptions::new().read(true).write(true).open(tap_path(runtime, tap))?;
    file.try_lock().map_err(|_| rustix::io::Errno::BUSY)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    file.set_len(0)?;
    writeln!(&file, "{}", listener.local_addr()?)?;
    Ok((file, listener))
}

impl Loopback {
    /// The network of the workspace whose runtime directory is `runtime`.
    #[must_use]
    pub fn new(runtime: PathBuf) -> Self {
        Self { runtime }
    }

    fn tap(&self, slot: Slot) -> PathBuf {
        tap_path(&self.runtime, &slot.tap())
    }
}

#[async_trait]
impl Network for Loopback {
    async fn find(&self, slot: Slot) -> Result<Presence> {
        Ok(if self.tap(slot).exists() { Presence::Whole } else { Presence::Absent })
    }

    async fn build(&self, slot: Slot, _: Generation) -> Result<()> {
        let path = self.tap(slot);
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(source) => Err(Failure::world(LoopbackError { what: "make", path, source })),
            Ok(_) => Ok(()),
        }
    }

    async fn faults(&self, slot: Slot) -> Result<Vec<NetworkFault>> {
        Ok(if self.tap(slot).exists() { Vec::new() } else { vec![NetworkFault::Tap] })
    }

    /// The one part is the TAP, which a VMM that runs cannot be given again.
    async fn repair(&self, _: Slot, _: Generation) -> Result<()> {
        Ok(())
    }

    /// The programs of a simulated guest are processes of the host, whose packets no rule of nixbox judges.
    async fn refused_traffic(&self, _: Slot) -> Result<RefusedTraffic> {
        Ok(RefusedTraffic::default())
    }

    async fn remove(&self, slot: Slot) -> Result<()> {
        let gone = |result: io::Result<()>| match result {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        };
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Failure::world(LoopbackError { what: "remove", path, source })
        };
        // A VMM that was killed has left the directory and the socket of its guest.
        let (view, calls) = (view_path(&self.runtime), self.runtime.join("guest.sock"));
        remove_view(&view).map_err(failed(&view))?;
        gone(fs::remove_file(&calls)).map_err(failed(&calls))?;
        let tap = self.tap(slot);
        gone(fs::remove_file(&tap)).map_err(failed(&tap))
    }
}
