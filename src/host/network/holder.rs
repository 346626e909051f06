//! The holder: the process that makes and holds the namespaces of an ordinary user's VM. May use the errors of this module.
//!
//! An ordinary user can give a namespace no name, so the network namespace lives as long as a process that is in it. The
//! holder is a process of nixbox's own program with one thread. It makes a user namespace in which the user has the ids
//! that the user has outside, and no other id, and makes a network namespace in it. Then it waits for its end, without a
//! capability. If it is killed, the VMM and dnsmasq are still in the namespaces, and another holder enters them there.
//!
//! | words | what the child does |
//! |---|---|
//! | `hold ALIAS` | makes the namespaces, and holds them |
//! | `hold-on` | holds the namespaces that it is in |
//! | `rehearse` | makes namespaces and a TAP in them, and ends |
//! | `open-here WHAT…` | opens something for each word in the namespaces that it is in, as `open` does |

use std::fs;
use std::io::{self, Write};

use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use super::keeper;
use super::link::LinkError;
use crate::files::FileError;
use crate::host::ioctl::{Tap, TapError};

/// What the holder writes to stdout when it holds the namespaces.
pub(super) const READY: &[u8] = b"held\n";

/// Why the namespaces of an ordinary user's VM cannot be made or held.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum HolderError {
    #[error("cannot {action}")]
    System { action: &'static str, source: io::Error },
    #[error("the kernel refuses the ids of a user namespace")]
    Ids(#[source] FileError),
    #[error("the loopback device of the namespace")]
    Loopback(#[source] LinkError),
    #[error("a network namespace of an ordinary user cannot have a TAP")]
    Tap(#[from] TapError),
}

fn failed<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> HolderError {
    move |source| HolderError::System { action, source: source.into() }
}

/// Makes a user namespace and a network namespace, and takes this process, which has one thread, to them.
fn make() -> Result<(), HolderError> {
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    // Deprecated because of CLONE_FILES, which is not among these flags.
    #[allow(deprecated)]
    let unshare = |flags| rustix::thread::unshare(flags);
    unshare(UnshareFlags::NEWUSER).map_err(failed("make a user namespace"))?;
    // Without this the kernel lets nobody but root say what the groups are.
    let files = [("setgroups", "deny".to_owned()), ("uid_map", one_id(user)), ("gid_map", one_id(group))];
    for (name, text) in files {
        let path = format!("/proc/self/{name}");
        fs::write(&path, text).map_err(FileError::system("write", path)).map_err(HolderError::Ids)?;
    }
    unshare(UnshareFlags::NEWNET).map_err(failed("make a network namespace in a user namespace"))
}

/// The id inside, the same id outside, and how many ids follow each other.
fn one_id(id: u32) -> String {
    format!("{id} {id} 1")
}

/// Makes the namespaces and holds them. `set_up` does what every network namespace of a VM needs.
pub(super) fn hold(set_up: impl FnOnce() -> Result<(), LinkError>) -> Result<(), HolderError> {
    make()?;
    set_up().map_err(HolderError::Loopback)?;
    hold_on()
}

/// Holds the namespaces that this process is in, and returns only if it cannot.
pub(super) fn hold_on() -> Result<(), HolderError> {
    let none = CapabilitySet::empty();
    rustix::thread::clear_ambient_capability_set().map_err(failed("give up capabilities"))?;
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets).map_err(failed("give up capabilities"))?;
    // A nixbox that was killed does not read it. Then the holder ends, and the next nixbox starts another.
    io::stdout().write_all(READY).map_err(failed("say that it holds the namespaces"))?;
    io::stdout().flush().map_err(failed("say that it holds the namespaces"))?;
    keeper::silence().map_err(failed("close its output"))?;
    loop {
        rustix::event::pause();
    }
}

/// Tries whether this host lets its user have what a VM needs. Everything that is made ends with this process.
pub(super) fn rehearse() -> Result<(), HolderError> {
    make()?;
    Tap::create("rehearsal").map(drop).map_err(HolderError::Tap)
}
