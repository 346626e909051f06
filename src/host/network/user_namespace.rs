//! The namespaces of an ordinary user's VM, as nixbox sees them from outside.
//!
//! The network namespace belongs to a user namespace of the workspace's, and both are held by a process, the [`holder`].
//! They are found in /proc: those of the holder, or if it is dead those of the VMM or dnsmasq, which are in them too. The
//! mark of the network namespace is the alias of its loopback device, as that of a namespace with a name is.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::process::Command;

use super::inside::{COMMAND, Opened};
use super::link::{LinkError, Netlink, alias};
use super::tables::Tables;
use super::{handover, holder, marked, tool};
use crate::files::FileError;
use crate::host::process::{Daemon, DaemonRole, ProcessError, ProcessMark, processes_of};
use crate::host::program::{self, ProgramError};
use crate::host::spawn::entrance::{self, NamespaceEntrance};
use crate::host::sudo;
use crate::host::systemd::scope::ScopeManager;
use crate::world::{Generation, Interrupt, WorkspaceId};

/// Why the namespaces of an ordinary user's VM cannot be used.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum UserNamespaceError {
    #[error("an ordinary user cannot have namespaces for a VM on this host{}", advice(.obstacle))]
    Refused { obstacle: Option<NamespaceObstacle>, source: ProgramError },
    #[error("the holder of the namespaces does not hold them: {said}")]
    Holder { said: String },
    #[error("cannot open something in the network namespace of the VM")]
    Open(#[source] ProgramError),
    #[error("cannot receive what was opened in the network namespace of the VM")]
    Handover(#[source] io::Error),
    #[error("cannot look at the devices of the network namespace of the VM")]
    Link(#[source] Box<LinkError>),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the network namespace of the VM ended meanwhile")]
    Gone,
}

type Result<T, E = UserNamespaceError> = std::result::Result<T, E>;

/// A setting of the host that keeps ordinary users from having namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamespaceObstacle {
    /// `kernel.unprivileged_userns_clone` of Debian's kernels.
    Switch,
    /// `user.max_user_namespaces`, or `user.max_net_namespaces`.
    Limit(&'static str),
    /// `kernel.apparmor_restrict_unprivileged_userns` of Ubuntu: a program needs a profile.
    AppArmor,
    /// The device is not there, or this user may not open it.
    Tun,
}

impl NamespaceObstacle {
    /// Looks for one. The settings are readable for every user.
    #[must_use]
    pub fn find() -> Option<Self> {
        let value = |path: &str| -> Option<u64> { std::fs::read_to_string(path).ok()?.trim().parse().ok() };
        if value("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
            return Some(Self::Switch);
        }
        let limits = ["user.max_user_namespaces", "user.max_net_namespaces"];
        let path = |name: &str| format!("/proc/sys/{}", name.replace('.', "/"));
        if let Some(name) = limits.into_iter().find(|name| value(&path(name)) == Some(0)) {
            return Some(Self::Limit(name));
        }
        if File::options().read(true).write(true).open("/dev/net/tun").is_err() {
            return Some(Self::Tun);
        }
        let restricted = value("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1);
        restricted.then_some(Self::AppArmor)
    }

    /// What helps, once, as root.
    #[must_use]
    pub fn remedy(self) -> String {
        let lasting = |name: &str, value: &str| {
            format!(
                "once as root: echo {name}={value} | sudo tee /etc/sysctl.d/60-nixbox.conf && sudo sysctl -q --system"
            )
        };
        match self {
            Self::Switch => lasting("kernel.unprivileged_userns_clone", "1"),
            Self::Limit(name) => lasting(name, "15000"),
            Self::AppArmor => {
                let own = std::env::current_exe();
                let own = own.map_or_else(|_| "/usr/local/bin/nixbox".to_owned(), |path| path.display().to_string());
                format!(
                    "once as root: printf 'abi <abi/4.0>,\\ninclude <tunables/global>\\nprofile nixbox \"{own}\" \
                     flags=(unconfined) {{\\n  userns,\\n}}\\n' | sudo tee /etc/apparmor.d/nixbox && sudo apparmor_parser \
                     -r /etc/apparmor.d/nixbox"
                )
            }
            Self::Tun => "once as root: sudo modprobe tun && sudo chmod 666 /dev/net/tun; in a container the device has to \
                          be passed in"
                .to_owned(),
        }
    }
}

/// The end of a message.
fn advice(obstacle: &Option<NamespaceObstacle>) -> String {
    obstacle.map_or_else(
        || "; run nixbox through sudo, which needs none".to_owned(),
        |obstacle| format!(". What helps, {}", obstacle.remedy()),
    )
}

/// Tries whether this host lets its user have a user namespace, a network namespace in it, and a TAP in that. Everything
/// that is made has ended when this returns.
///
/// # Errors
/// [`UserNamespaceError::Refused`], which says what helps.
pub async fn rehearse() -> Result<()> {
    let path = Path::new(tool::OWN_PROGRAM);
    let mut command = own_program(None);
    command.arg("rehearse").process_group(0).stdin(Stdio::null());
    let refused = |source| UserNamespaceError::Refused { obstacle: NamespaceObstacle::find(), source };
    let child = command.spawn().map_err(|source| ProgramError::Run {
        action: "start",
        path: path.to_owned(),
        source,
    });
    let ended = program::finish(child.map_err(refused)?, path, &[], tool::LIMIT, &Interrupt::new()).await;
    ended.map(drop).map_err(refused)
}

/// A command of nixbox's own program for the network.
fn own_program(mark: Option<&ProcessMark>) -> Command {
    let mut command = tool::command(Path::new(tool::OWN_PROGRAM), mark);
    command.arg(COMMAND);
    command
}

/// The namespaces of the VM of a workspace.
#[derive(Debug, Clone)]
pub(super) struct UserNamespace {
    workspace: WorkspaceId,
    scopes: Option<ScopeManager>,
    /// The namespaces that were found, or made, last. What is opened keeps them alive.
    opened: Arc<Mutex<Option<Arc<NamespaceEntrance>>>>,
}

/// The namespaces as they were found.
pub(super) struct FoundNamespaces {
    pub(super) entrance: Arc<NamespaceEntrance>,
    pub(super) netlink: Netlink,
    pub(super) tables: Tables,
}

impl UserNamespace {
    pub(super) fn new(workspace: WorkspaceId, scopes: Option<ScopeManager>) -> Self {
        Self { workspace, scopes, opened: Arc::default() }
    }

    fn mark(&self, generation: Option<Generation>) -> ProcessMark {
        ProcessMark { workspace: self.workspace, generation, role: DaemonRole::holder() }
    }

    /// The process through which the namespaces can be seen, for people.
    pub(super) fn holder(&self) -> Result<Option<Daemon>> {
        Ok(marked::find(&self.mark(None))?.into_iter().next())
    }

    /// Finds the namespaces whose loopback device has this alias, and changes nothing.
    pub(super) async fn find(&self, wanted: &str) -> Result<Option<FoundNamespaces>> {
        let own_user = rustix::process::geteuid().as_raw();
        let mut all = processes_of(self.workspace, own_user)?;
        // The holder is in the namespaces if it lives. Of the others, virtiofsd is in namespaces of its own, and ports are
        // forwarded from those of the host.
        all.retain(|(role, _)| !role.starts_with("share-") && *role != DaemonRole::forward().to_string());
        all.sort_by_key(|(role, _)| *role != DaemonRole::holder().to_string());
        for (_, process) in all {
            let Some(entrance) = open_namespaces(&process)? else { continue };
            let entrance = Arc::new(entrance);
            let [socket, tables] = match self.open_in(&entrance, [Opened::Netlink, Opened::Tables]).await {
                Ok(opened) => opened,
                // The process ended while it was looked at.
                Err(_) if !process.alive()? => continue,
                Err(error) => return Err(error),
            };
            let netlink = Netlink::of_socket(socket);
            let loopback =
                netlink.get("lo").await.map_err(|error| UserNamespaceError::Link(Box::new(error)))?;
            if loopback.as_ref().and_then(alias) == Some(wanted) {
                self.remember(Some(Arc::clone(&entrance)));
                return Ok(Some(FoundNamespaces { entrance, netlink, tables: Tables::of_socket(tables) }));
            }
        }
        Ok(None)
    }

    fn remember(&self, entrance: Option<Arc<NamespaceEntrance>>) {
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = entrance;
    }

    /// Makes namespaces whose loopback device has this alias, or lets another holder hold `found`. No holder may live.
    pub(super) async fn hold(
        &self,
        found: Option<&Arc<NamespaceEntrance>>,
        wanted: &str,
        generation: Generation,
    ) -> Result<()> {
        // A holder that was started by a nixbox that was killed may be about to make namespaces.
        marked::end(&self.mark(None)).await?;
        let mark = self.mark(Some(generation));
        let scope = self.scopes.as_ref();
        let scope = scope.map(|manager| manager.scope(self.workspace, generation, &mark.role.to_string()));
        let mut command = tool::own_daemon(&mark, scope.as_ref());
        command.arg(COMMAND).stdin(Stdio::null());
        match found {
            None => command.args(["hold", wanted]),
            Some(found) => {
                let none = rustix::thread::CapabilitySet::empty();
                entrance::enter(command.as_std_mut(), Arc::clone(found), none);
                command.arg("hold-on")
            }
        };
        let path = PathBuf::from(tool::OWN_PROGRAM);
        let failed = |source| ProgramError::Run { action: "start", path: path.clone(), source };
        let mut child = command.spawn().map_err(|error| UserNamespaceError::Open(failed(error)))?;
        tool::until_ready(&mut child, &[], holder::READY)
            .await
            .map_err(|said| UserNamespaceError::Holder { said })
    }

    /// Ends the holder. The namespaces end with the last process that is in them.
    pub(super) async fn let_go(&self) -> Result<()> {
        self.remember(None);
        Ok(marked::end(&self.mark(None)).await?)
    }

    /// Opens these in the namespaces that were found or made last.
    pub(super) async fn open<const N: usize>(&self, wanted: &str, what: [Opened; N]) -> Result<[OwnedFd; N]> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let entrance = match opened {
            Some(entrance) => entrance,
            None => self.find(wanted).await?.ok_or(UserNamespaceError::Gone)?.entrance,
        };
        self.open_in(&entrance, what).await
    }

    async fn open_in<const N: usize>(
        &self,
        namespaces: &Arc<NamespaceEntrance>,
        what: [Opened; N],
    ) -> Result<[OwnedFd; N]> {
        let path = Path::new(tool::OWN_PROGRAM);
        let (near, far) = UnixStream::pair().map_err(UserNamespaceError::Handover)?;
        let mut command = own_program(None);
        command.arg("open-here").args(what.map(Opened::word)).process_group(0).stdin(OwnedFd::from(far));
        // A netlink socket may do what the process may do that opened it.
        entrance::enter(command.as_std_mut(), Arc::clone(namespaces), sudo::NEEDED);
        let child = command.spawn().map_err(|source| ProgramError::Run {
            action: "start",
            path: path.to_owned(),
            source,
        });
        // The command has the other end of the socket too.
        drop(command);
        let child = child.map_err(UserNamespaceError::Open)?;
        let ended = program::finish(child, path, &[], tool::LIMIT, &Interrupt::new()).await;
        ended.map_err(UserNamespaceError::Open)?;
        handover::receive(&near).map_err(UserNamespaceError::Handover)
    }

    /// Lets the program of a command run in the user namespace and in the network of the host, and returns the path by which
    /// it can enter the network namespace. Should another process have the holder's pid by then, its namespace cannot be
    /// entered, because the program has no capability there.
    pub(super) async fn admit(&self, wanted: &str, command: &mut Command) -> Result<PathBuf> {
        let found = self.find(wanted).await?.ok_or(UserNamespaceError::Gone)?;
        let holder = self.holder()?.ok_or(UserNamespaceError::Gone)?;
        let capabilities = sudo::NEEDED.union(sudo::NAMESPACES);
        entrance::enter_user_namespace(command.as_std_mut(), found.entrance, capabilities);
        Ok(format!("/proc/{}/ns/net", holder.pid()).into())
    }
}

/// Opens the namespaces of a process, unless it has ended, or its user namespace is that of nixbox.
fn open_namespaces(process: &Daemon) -> Result<Option<NamespaceEntrance>> {
    let path = |kind: &str| PathBuf::from(format!("/proc/{}/ns/{kind}", process.pid()));
    let open = |kind: &str| -> Result<Option<File>> {
        let path = path(kind);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(_) if !process.alive()? => Ok(None),
            // A process whose exec is under way lets nobody look at its namespaces.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
            Err(error) => Err(FileError::system("open", path)(error).into()),
        }
    };
    let (Some(user), Some(network)) = (open("user")?, open("net")?) else { return Ok(None) };
    // The pid may be another process's only if the process has ended.
    if !process.alive()? {
        return Ok(None);
    }
    let own = Path::new("/proc/thread-self/ns/user");
    let own = own.metadata().map_err(FileError::system("examine", own))?;
    let found = user.metadata().map_err(FileError::system("examine", path("user")))?;
    if found.ino() == own.ino() && found.dev() == own.dev() {
        return Ok(None);
    }
    Ok(Some(NamespaceEntrance::of_user(user.into(), network.into())))
}
