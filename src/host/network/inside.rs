//! The child in which a network namespace is made, entered and removed: a process of nixbox's own program with one thread.
//!
//! nixbox itself stays in the network of the host. The child does one thing, and says by its exit status, and on stderr,
//! whether it is done.
//!
//! | words | what the child does |
//! |---|---|
//! | `make PATH ALIAS WHAT…` | makes a namespace and gives it the name `PATH`, unless a namespace has it, and then does what `open` does |
//! | `open PATH WHAT…` | opens something in the namespace for each word, and hands the descriptors over on its stdin |
//! | `remove PATH` | takes the name from the namespace |
//! | `name PATH PID` | gives the name `PATH` to the namespace that this process is in |
//! | `keep …` | becomes the [`keeper`] |
//! | `hold`, `hold-on`, `rehearse`, `open-here` | see [`holder`] |
//! | `pasta …` | becomes the parent of [`pasta`] |

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::link::{LinkError, Netlink, setting};
use super::{handover, holder, keeper, nf_netlink, pasta};
use crate::files::FileError;
use crate::host::ioctl::{self, TapError};

/// The hidden command of nixbox that becomes such a child.
pub const COMMAND: &str = "network-namespace";

/// The exit status of a child that could not do what it was asked for.
pub const REFUSED: u8 = 1;

/// What the file system of namespaces is called by statfs(2): `NSFS_MAGIC`.
const NSFS: i64 = 0x6e73_6673;

/// Why the child cannot do what it was asked for.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum InsideError {
    #[error("the child for network namespaces got words that nixbox does not give it")]
    Arguments,
    #[error("cannot {action}")]
    Namespace { action: &'static str, source: io::Error },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{0:?} is a file that nixbox did not make, and was left as it is; remove it if nothing needs it")]
    Foreign(PathBuf),
    #[error("the loopback device of the namespace")]
    Loopback(#[source] LinkError),
    #[error("the TAP of the namespace")]
    Tap(#[from] TapError),
    #[error("the keeper of the namespace")]
    Keeper(#[from] keeper::KeeperError),
    #[error(transparent)]
    Holder(#[from] holder::HolderError),
    #[error("the parent of pasta")]
    Pasta(#[from] pasta::PastaError),
}

fn failed<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> InsideError {
    move |source| InsideError::Namespace { action, source: source.into() }
}

type Result<T, E = InsideError> = std::result::Result<T, E>;

/// What a child opens in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opened {
    /// The namespace itself.
    Namespace,
    /// A netlink socket, for devices, addresses and routes.
    Netlink,
    /// A netlink socket, for tables of nftables.
    Tables,
    /// /dev/net/tun.
    Tun,
    /// An unconnected TCP socket.
    Tcp,
    /// A netlink socket that is told what changes among devices, addresses and routes.
    Changes,
}

impl Opened {
    const ALL: [Self; 6] =
        [Self::Namespace, Self::Netlink, Self::Tables, Self::Tun, Self::Tcp, Self::Changes];

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Netlink => "netlink",
            Self::Tables => "tables",
            Self::Tun => "tun",
            Self::Tcp => "tcp",
            Self::Changes => "changes",
        }
    }

    pub(super) fn open(self) -> Result<OwnedFd> {
        Ok(match self {
            Self::Namespace => open(Path::new("/proc/thread-self/ns/net"))?.into(),
            Self::Netlink => netlink_socket()?,
            Self::Tables => nf_netlink::open_socket().map_err(failed("open a socket for nftables"))?,
            Self::Changes => {
                /// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV4_ROUTE` of `linux/rtnetlink.h`.
                const GROUPS: u32 = 0x1 | 0x10 | 0x40;
                let socket = netlink_socket()?;
                rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUPS))
                    .map_err(failed("watch the network namespace"))?;
                socket
            }
            Self::Tun => ioctl::open_device()?,
            Self::Tcp => keeper::tcp_socket().map_err(failed("open a TCP socket"))?,
        })
    }
}

fn netlink_socket() -> Result<OwnedFd> {
    // NETLINK_ROUTE, which is 0.
    rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
        .map_err(failed("open a netlink socket"))
}

/// What is at the path of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NamespaceFile {
    Free,
    /// An empty file: the name was taken, and no namespace is there yet.
    Taken,
    Namespace,
    /// Something else.
    Foreign,
}

/// Looks at the path, and follows no link.
pub(super) fn name_at(path: &Path) -> io::Result<NamespaceFile> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT) => return Ok(NamespaceFile::Free),
        Err(errno) => return Err(errno.into()),
    };
    if rustix::fs::fstatfs(&file)?.f_type as i64 == NSFS {
        return Ok(NamespaceFile::Namespace);
    }
    let status = File::from(file).metadata()?;
    Ok(if status.is_file() && status.len() == 0 { NamespaceFile::Taken } else { NamespaceFile::Foreign })
}

/// Does what the words say.
///
/// # Errors
/// [`InsideError`]. What was begun is left to the next call, which finishes it or removes it.
pub(super) fn launch(arguments: &[OsString]) -> Result<()> {
    let words: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
    if let Some(done) = launch_for_user(&words) {
        return done;
    }
    let [verb, path, rest @ ..] = words.as_slice() else { return Err(InsideError::Arguments) };
    let (path, verb) = (Path::new(path), verb.to_str().ok_or(InsideError::Arguments)?);
    match (verb, rest) {
        ("make", [alias, whats @ ..]) => {
            if !make(path, alias.to_str().ok_or(InsideError::Arguments)?)? {
                enter(path)?;
            }
            hand_over(whats)
        }
        ("remove", []) => remove(path),
        ("open", whats) => {
            enter(path)?;
            hand_over(whats)
        }
        ("keep", [socket, resolv_conf]) => {
            let namespace = open(path)?;
            Ok(keeper::keep(&namespace, Path::new(socket), Path::new(resolv_conf))?)
        }
        ("name", [pid]) => name_again(path, pid.to_str().ok_or(InsideError::Arguments)?),
        _ => Err(InsideError::Arguments),
    }
}

/// The words that concern the namespaces of an ordinary user's VM. `None` for all others.
fn launch_for_user(words: &[&OsStr]) -> Option<Result<()>> {
    let [verb, rest @ ..] = words else { return None };
    Some(match (verb.to_str()?, rest) {
        ("hold", [alias]) => {
            let alias = alias.to_str()?;
            holder::hold(|| set_up(alias)).map_err(InsideError::from)
        }
        ("hold-on", []) => holder::hold_on().map_err(InsideError::from),
        ("rehearse", []) => holder::rehearse().map_err(InsideError::from),
        ("open-here", whats) => hand_over(whats),
        (pasta::VERB, [program, arguments @ ..]) => {
            pasta::supervise(program, arguments).map_err(InsideError::from)
        }
        _ => return None,
    })
}

/// Opens something for each word, and hands the descriptors over on stdin.
fn hand_over(whats: &[&OsStr]) -> Result<()> {
    let open = |word: &&OsStr| {
        let what = Opened::ALL.into_iter().find(|what| *word == what.word());
        what.ok_or(InsideError::Arguments)?.open()
    };
    let opened = whats.iter().map(open).collect::<Result<Vec<_>>>()?;
    let descriptors: Vec<_> = opened.iter().map(AsFd::as_fd).collect();
    handover::send(io::stdin(), &descriptors).map_err(failed("hand descriptors over"))
}

fn open(path: &Path) -> Result<File> {
    Ok(File::open(path).map_err(FileError::system("open", path))?)
}

fn enter(path: &Path) -> Result<()> {
    rustix::thread::move_into_link_name_space(open(path)?.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(failed("enter the network namespace"))
}

/// Makes a namespace in which packets are passed on and IPv6 is off. It bears its mark before it has its name, so that a
/// namespace without the mark is never one that nixbox has made. This process is in the namespace then. Returns false if a
/// namespace has the name already.
fn make(path: &Path, alias: &str) -> Result<bool> {
    let Some(_locked) = take_name(path)? else { return Ok(false) };
    // Deprecated because of CLONE_FILES, which is not among these flags.
    #[allow(deprecated)]
    rustix::thread::unshare(UnshareFlags::NEWNET).map_err(failed("make a network namespace"))?;
    set_up(alias).map_err(InsideError::Loopback)?;
    rustix::mount::mount_bind("/proc/self/ns/net", path)
        .map_err(failed("give the network namespace its name"))?;
    Ok(true)
}

/// Gives a namespace its name that has lost it, and whose inhabitant this process is. Who asks looks at the mark of what has
/// the name then.
fn name_again(path: &Path, pid: &str) -> Result<()> {
    let pid: u32 = pid.parse().map_err(|_| InsideError::Arguments)?;
    let namespace = open(Path::new(&format!("/proc/{pid}/ns/net")))?;
    let Some(_locked) = take_name(path)? else { return Ok(()) };
    rustix::mount::mount_bind(format!("/proc/self/fd/{}", namespace.as_raw_fd()), path)
        .map_err(failed("give the network namespace its name"))
}

/// Lets the network namespace of this process pass packets on, turns IPv6 off in it, and marks it.
fn set_up(alias: &str) -> Result<(), LinkError> {
    setting("/proc/sys/net/ipv4/ip_forward", "1", false)?;
    for scope in ["all", "default"] {
        setting(&format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1", true)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(LinkError::Connect)?.block_on(loopback(alias))
}

/// Marks the loopback device, and brings it up.
async fn loopback(alias: &str) -> Result<(), LinkError> {
    const NAME: &str = "lo";
    let netlink = Netlink::here()?;
    let device = netlink.get(NAME).await?.ok_or_else(|| LinkError::Vanished(NAME.to_owned()))?;
    netlink.mark(device.header.index, NAME, alias.to_owned()).await?;
    netlink.bring_up(device.header.index, NAME).await
}

/// Takes the name for a namespace that is about to get it. Returns the lock of the directory; `None` if a namespace has the
/// name already.
fn take_name(path: &Path) -> Result<Option<File>> {
    let locked = prepare(path.parent().ok_or(InsideError::Arguments)?)?;
    match name_at(path).map_err(FileError::system("examine", path))? {
        NamespaceFile::Namespace => return Ok(None),
        NamespaceFile::Foreign => return Err(InsideError::Foreign(path.to_owned())),
        NamespaceFile::Taken => {}
        NamespaceFile::Free => {
            File::create_new(path).map_err(FileError::system("make", path))?;
        }
    }
    Ok(Some(locked))
}

/// Makes the directory for the names of namespaces as `ip netns` does: a shared mount, so that a name that is removed is
/// gone in the mount namespaces of services too. Returns the lock of the directory, which `ip netns` takes for the same.
fn prepare(directory: &Path) -> Result<File> {
    if !directory.exists() {
        fs::create_dir_all(directory).map_err(FileError::system("make", directory))?;
        // Every user has to enter it, whatever the umask of root is.
        rustix::fs::chmod(directory, Mode::from_raw_mode(0o755))
            .map_err(io::Error::from)
            .map_err(FileError::system("change the mode of", directory))?;
    }
    let locked = open(directory)?;
    rustix::fs::flock(&locked, FlockOperation::LockExclusive)
        .map_err(io::Error::from)
        .map_err(FileError::system("lock", directory))?;
    let shared = || {
        let flags = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
        rustix::mount::mount_change(directory, flags)
    };
    match shared() {
        // It is no mount yet.
        Err(rustix::io::Errno::INVAL) => {
            rustix::mount::mount_bind_recursive(directory, directory)
                .map_err(failed("mount the directory"))?;
            shared().map_err(failed("share the mounts of the directory"))?;
        }
        other => other.map_err(failed("share the mounts of the directory"))?,
    }
    Ok(locked)
}

/// Takes the name from a namespace, which ends with the last process and mount that has it.
fn remove(path: &Path) -> Result<()> {
    loop {
        match name_at(path).map_err(FileError::system("examine", path))? {
            NamespaceFile::Free => return Ok(()),
            NamespaceFile::Foreign => return Err(InsideError::Foreign(path.to_owned())),
            NamespaceFile::Namespace => {
                rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                    .map_err(failed("unmount the network namespace"))?
            }
            NamespaceFile::Taken => fs::remove_file(path).map_err(FileError::system("remove", path))?,
        }
    }
}
