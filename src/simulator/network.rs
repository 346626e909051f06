//! A network that needs no privileges: the guest's SSH server is on this machine's loopback.
//!
//! In place of a TAP there is a file of its name in the runtime directory. The VMM locks it, and writes the address into
//! it where the guest is to be reached. Nothing is filtered, and the guest's programs have the host's network: this is no
//! sandbox.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::kernel::remove_view;
use crate::world::{Failure, Generation, Network, Presence, Result, Slot};

/// Why there is no network for a simulated guest.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}, which is the simulated VM's")]
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

/// Where the guest in a slot is to be reached; a port that nobody has while it is not.
#[must_use]
pub fn address(runtime: &Path, slot: Slot) -> SocketAddr {
    let text = fs::read_to_string(tap_path(runtime, &slot.tap())).unwrap_or_default();
    text.trim().parse().unwrap_or((Ipv4Addr::LOCALHOST, 0).into())
}

/// Attaches to a TAP as the only one, and listens for the guest.
///
/// # Errors
/// As a TAP would have it: if it is not there, or another VMM's.
pub(super) fn attach(runtime: &Path, tap: &str) -> io::Result<(File, TcpListener)> {
    let file = OpenOptions::new().read(true).write(true).open(tap_path(runtime, tap))?;
    file.try_lock().map_err(|_| rustix::io::Errno::BUSY)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    file.set_len(0)?;
    writeln!(&file, "{}", listener.local_addr()?)?;
    Ok((file, listener))
}

impl Loopback {
    /// For the workspace whose sockets are in `runtime`.
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

    async fn remove(&self, slot: Slot) -> Result<()> {
        let gone = |result: io::Result<()>| match result {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        };
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Failure::world(LoopbackError { what: "remove", path, source })
        };
        // What a VMM that was killed has left of its guest, too.
        let (view, calls) = (view_path(&self.runtime), self.runtime.join("guest.sock"));
        remove_view(&view).map_err(failed(&view))?;
        gone(fs::remove_file(&calls)).map_err(failed(&calls))?;
        let tap = self.tap(slot);
        gone(fs::remove_file(&tap)).map_err(failed(&tap))
    }
}
