//! A host, a network outside of it and guests, each in a network namespace of its own.
//!
//! ```text
//! guest: eth0 ==frames==> host: vm{slot}, up0 10.99.0.1 ---- outside: up1 10.99.0.2 to .5, .53
//! ```
//! Where the VM has a network namespace of its own, the TAP is in it, and an uplink connects it with the host.
//! The guest's eth0 is a TAP, and a thread carries frames between it and the host's, as a VMM would. Outside, TCP
//! ports greet, UDP ports echo, and a name server answers on .53.

mod guest;
mod outside;

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, UnshareFlags, move_into_link_name_space,
    set_capabilities, set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::super::plan::NetworkPlan;
use super::super::{HostNetwork, NetworkNamespace, NetworkPlace, NetworkSettings, marked};
use crate::host::process::ProcessMark;
use crate::host::sudo;
use crate::testing::{Need, USER, have, open_directory};
use crate::world::{NetworkMode, NetworkPolicy, Slot, WorkspaceId};

pub(super) use guest::{Guest, REFUSED};

pub(super) const PEER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
pub(super) const PEER_OTHER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 3);

/// Longer than anything takes that succeeds, on a busy machine too.
const LIMIT: Duration = Duration::from_secs(3);

pub(super) fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// A network namespace. It lives as long as this value, a thread in it, or a device whose other end is in it.
pub(super) struct Namespace(File);

impl Namespace {
    fn new() -> Self {
        let made = std::thread::spawn(|| {
            // Deprecated because some of its flags are unsafe. This one takes this thread to a network of its own.
            #[allow(deprecated)]
            rustix::thread::unshare(UnshareFlags::NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let namespace = Self(made.join().unwrap());
        // With these, a packet that does not arrive was dropped by the firewall, and a refusal arrives at once.
        for setting in ["all.rp_filter=0", "default.rp_filter=0"] {
            namespace.run(&format!("sysctl -qw net.ipv4.conf.{setting}"));
        }
        namespace.run("sysctl -qw net.ipv4.icmp_ratelimit=0");
        namespace
    }

    /// Runs this in the namespace, on a thread of its own.
    fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let thread = || {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            act()
        };
        std::thread::scope(|scope| match scope.spawn(thread).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Begins an activity that goes on until it ends by itself, or the test program ends.
    fn begin(&self, act: impl FnOnce() + Send + 'static) {
        self.within(|| std::thread::spawn(act));
    }

    fn run(&self, command: &str) {
        self.output(command);
    }

    /// Run a command of words, where '…' is one word, and return what it prints.
    fn output(&self, command: &str) -> String {
        let quoted = command.split('\'').enumerate();
        let words: Vec<String> = quoted
            .flat_map(|(number, part)| match number % 2 {
                0 => part.split_ascii_whitespace().map(str::to_owned).collect(),
                _ => vec![part.to_owned()],
            })
            .collect();
        let output = self.within(|| Command::new(&words[0]).args(&words[1..]).output().unwrap());
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    fn connect(&self, to: impl Into<IpAddr>, port: u16) -> bool {
        let to = SocketAddr::new(to.into(), port);
        self.within(|| {
            let Ok(mut stream) = TcpStream::connect_timeout(&to, LIMIT) else {
                return false;
            };
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            let mut greeting = String::new();
            std::io::Read::read_to_string(&mut stream, &mut greeting).is_ok() && greeting == "hello"
        })
    }

    /// Greets every client, and notes its address.
    fn greet(&self, port: u16, seen: &Arc<Mutex<Vec<String>>>) {
        let listener = self.within(|| TcpListener::bind(("::", port)).unwrap());
        let seen = Arc::clone(seen);
        self.begin(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                if let Ok(peer) = stream.peer_addr() {
                    seen.lock()
                        .unwrap()
                        .push(SocketAddr::new(peer.ip().to_canonical(), peer.port()).to_string());
                }
                // The client may be gone already.
                drop(stream.write_all(b"hello"));
            }
        });
    }

    /// Send every datagram back, and note it.
    fn echo(&self, port: u16, seen: &Arc<Mutex<Vec<String>>>) {
        let socket = self.within(|| UdpSocket::bind(("0.0.0.0", port)).unwrap());
        let seen = Arc::clone(seen);
        self.begin(move || {
            let mut buffer = [0; 2000];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                seen.lock().unwrap().push(String::from_utf8_lossy(&buffer[..length]).into_owned());
                drop(socket.send_to(&buffer[..length], from));
            }
        });
    }
}

/// Where the networks of the VMs of a host are: see [`NetworkPlace`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Host,
    Namespace,
    /// As [`USER`], who has no capability.
    User,
}

impl Way {
    pub(super) const ALL: [Self; 3] = [Self::Host, Self::Namespace, Self::User];
}

/// A host with a network outside of it.
pub(super) struct Arena {
    way: Way,
    pub(super) workspace: WorkspaceId,
    /// The id of a second workspace on the same host.
    pub(super) neighbour: WorkspaceId,
    host: Namespace,
    outside: Namespace,
    directory: tempfile::TempDir,
    connected: Arc<Mutex<Vec<String>>>,
    datagrams: Arc<Mutex<Vec<String>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Arena {
    /// `None` if the machine lacks something; a line on stderr says what.
    pub(super) fn new(way: Way) -> Option<Self> {
        let programs = ["nft", "dnsmasq", "ip", "sysctl"].map(Need::Program);
        let pasta: &[Need] = if way == Way::User { &[Need::Program("pasta")] } else { &[] };
        if !have(&[&[Need::Root], &programs[..], pasta].concat()) {
            return None;
        }
        let mut id = [0; 16];
        getrandom::fill(&mut id).unwrap();
        let arena = Self {
            way,
            workspace: WorkspaceId(id),
            neighbour: WorkspaceId(id.map(|byte| !byte)),
            host: Namespace::new(),
            outside: Namespace::new(),
            directory: open_directory(),
            connected: Arc::default(),
            datagrams: Arc::default(),
            asked: Arc::default(),
        };
        arena.connect_namespaces();
        arena.serve();
        std::fs::write(arena.resolv_conf(), "nameserver 10.99.0.53\n").unwrap();
        // dnsmasq reads it as nobody.
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(arena.resolv_conf(), readable).unwrap();
        arena.make_runtime(&arena.runtime());
        Some(arena)
    }

    fn make_runtime(&self, path: &Path) {
        std::fs::create_dir(path).unwrap();
        std::os::unix::fs::chown(path, Some(self.owner()), Some(self.owner())).unwrap();
    }

    /// Who runs nixbox.
    fn owner(&self) -> u32 {
        if self.way == Way::User { USER } else { 0 }
    }

    fn connect_namespaces(&self) {
        let (host, outside) = (&self.host, &self.outside);
        host.run("ip link set lo up");
        host.run("ip link add up0 type veth peer name up1");
        host.run(&format!("ip link set up1 netns {}", outside.path()));
        // Keeps away addresses that come and go by themselves while states are compared.
        host.run("ip link set up0 addrgenmode none up");
        host.run("ip addr add 10.99.0.1/24 dev up0");
        host.run("ip route add 169.254.169.254 via 10.99.0.2");
        outside.run("ip link set lo up");
        outside.run("ip link set up1 addrgenmode none up");
        for last in [2, 3, 4, 5, 53] {
            outside.run(&format!("ip addr add 10.99.0.{last}/24 dev up1"));
        }
        outside.run("ip addr add 169.254.169.254/32 dev lo");
        outside.run("ip route add 172.16.0.0/16 via 10.99.0.1");
    }

    fn serve(&self) {
        for port in [80, 443, 8080] {
            self.outside.greet(port, &self.connected);
        }
        for port in [443, 5353, 7000] {
            self.outside.echo(port, &self.datagrams);
        }
        for port in [22, 80] {
            self.host.greet(port, &Arc::default());
        }
        let socket = self.outside.within(|| UdpSocket::bind("10.99.0.53:53").unwrap());
        let asked = Arc::clone(&self.asked);
        self.outside.begin(move || guest::answer_names(&socket, &asked));
    }

    /// A network whose guest may reach the network outside, which has private addresses.
    pub(super) fn network(&self, policy: impl Into<NetworkPolicy>) -> HostNetwork {
        let mut policy = policy.into();
        policy.host_networks.push("10.99.0.0/24".parse().unwrap());
        self.network_of_policy(policy)
    }

    /// A network with exactly this policy.
    pub(super) fn network_of_policy(&self, policy: NetworkPolicy) -> HostNetwork {
        HostNetwork::new(NetworkSettings {
            workspace: self.workspace,
            owner: self.owner(),
            runtime: self.runtime(),
            policy,
            resolv_conf: self.resolv_conf(),
            place: self.place(self.workspace),
        })
    }

    fn place(&self, workspace: WorkspaceId) -> NetworkPlace {
        match self.way {
            Way::Host => NetworkPlace::Host,
            Way::Namespace | Way::User => NetworkPlace::Namespace(self.namespace(workspace)),
        }
    }

    pub(super) fn namespace(&self, workspace: WorkspaceId) -> NetworkNamespace {
        match self.way {
            Way::User => NetworkNamespace::of_user(workspace, None),
            Way::Host | Way::Namespace => NetworkNamespace::new(&self.names(), workspace),
        }
    }

    /// The directory with the names of namespaces.
    pub(super) fn names(&self) -> PathBuf {
        self.directory.path().join("netns")
    }

    /// The namespace with the TAP of a workspace.
    pub(super) fn of_tap(&self, workspace: WorkspaceId) -> Namespace {
        Namespace(match self.way {
            Way::Host => self.host.0.try_clone().unwrap(),
            Way::Namespace => File::open(self.namespace(workspace).path()).unwrap(),
            Way::User => {
                let shown = self.on_host(async { self.namespace(workspace).shown().unwrap() });
                File::open(shown.unwrap()).unwrap()
            }
        })
    }

    /// Whether nixbox reaches the guest of its VM.
    pub(super) fn nixbox_reaches(&self, address: Ipv4Addr, port: u16) -> bool {
        match self.way {
            Way::Host => self.host_reaches(address, port),
            Way::Namespace | Way::User => self.on_host(async {
                let (namespace, runtime) = (self.namespace(self.workspace), self.runtime());
                let connected = namespace.connect(&runtime, (address, port).into());
                matches!(tokio::time::timeout(LIMIT, connected).await, Ok(Ok(_)))
            }),
        }
    }

    /// Another workspace's, with a runtime directory of its own.
    pub(super) fn network_of(&self, workspace: WorkspaceId, mode: NetworkMode) -> HostNetwork {
        let runtime = self.directory.path().join(workspace.to_string());
        self.make_runtime(&runtime);
        let place = self.place(workspace);
        HostNetwork::new(NetworkSettings { workspace, runtime, place, ..self.network(mode).settings })
    }

    pub(super) fn runtime(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    fn resolv_conf(&self) -> PathBuf {
        self.directory.path().join("resolv.conf")
    }

    /// Runs it in the host's namespace, as who runs nixbox.
    pub(super) fn on_host<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        if self.way == Way::User {
            let none = CapabilitySet::empty();
            return self.on_host_with(USER, none, none, future);
        }
        self.host.within(|| block_on(future))
    }

    /// Run it there as this user, who has what `setcap` would give to nixbox and nothing more.
    pub(super) fn on_host_as<T: Send>(&self, user: u32, future: impl Future<Output = T> + Send) -> T {
        let three = sudo::NEEDED;
        self.on_host_with(user, three, three, future)
    }

    /// Runs it there as this user, who has called nixbox through sudo.
    pub(super) fn on_host_through_sudo<T: Send>(
        &self,
        user: u32,
        future: impl Future<Output = T> + Send,
    ) -> T {
        self.on_host_with(user, sudo::NEEDED, sudo::NEEDED | sudo::NAMESPACES, future)
    }

    fn on_host_with<T: Send>(
        &self,
        user: u32,
        effective: CapabilitySet,
        permitted: CapabilitySet,
        future: impl Future<Output = T> + Send,
    ) -> T {
        self.host.within(|| {
            let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
            set_keep_capabilities(true).unwrap();
            set_thread_groups(&[]).unwrap();
            set_thread_res_gid(gid, gid, gid).unwrap();
            set_thread_res_uid(uid, uid, uid).unwrap();
            let sets = CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() };
            set_capabilities(None, sets).unwrap();
            block_on(future)
        })
    }

    /// Runs a command where the TAP is.
    pub(super) fn tap_output(&self, command: &str) -> String {
        self.of_tap(self.workspace).output(command)
    }

    /// Runs it there as root without any capability.
    pub(super) fn on_host_without_rights<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        self.host.within(|| {
            let none = CapabilitySet::empty();
            set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
                .unwrap();
            block_on(future)
        })
    }

    /// Writes the resolv.conf of the host.
    pub(super) fn set_resolvers(&self, text: &str) {
        std::fs::write(self.resolv_conf(), text).unwrap();
    }

    /// A name server on the host itself.
    pub(super) fn answer_names_at(&self, address: &str) {
        let socket = self.host.within(|| UdpSocket::bind(address).unwrap());
        let asked = Arc::clone(&self.asked);
        self.host.begin(move || guest::answer_names(&socket, &asked));
    }

    pub(super) fn host_run(&self, command: &str) {
        self.host.run(command);
    }

    pub(super) fn host_output(&self, command: &str) -> String {
        self.host.output(command)
    }

    pub(super) fn host_reaches(&self, address: Ipv4Addr, port: u16) -> bool {
        self.host.connect(address, port)
    }

    pub(super) fn peer_reaches(&self, address: Ipv4Addr, port: u16) -> bool {
        self.outside.connect(address, port)
    }

    /// Who connected last outside.
    pub(super) fn sender_seen(&self) -> String {
        self.connected.lock().unwrap().last().cloned().unwrap_or_default()
    }

    /// What the name server outside was asked for.
    pub(super) fn names_asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// Let the host forward IPv6 between this device and the outside.
    pub(super) fn open_ipv6(&self, device: &str) {
        self.host.run("sysctl -qw net.ipv6.conf.all.forwarding=1");
        self.host.run(&format!("sysctl -qw net.ipv6.conf.{device}.disable_ipv6=0"));
        self.host.run(&format!("ip -6 addr add fd00:3::1/64 dev {device} nodad"));
        // Without a link-local address of its own it asks for no neighbour of what it forwards.
        for device in [device, "up0"] {
            self.host.run(&format!("ip -6 addr add fe80::1/64 dev {device} nodad"));
        }
        self.host.run("ip -6 addr add fd00:99::1/64 dev up0 nodad");
        self.outside.run("ip -6 addr add fd00:99::2/64 dev up1 nodad");
        self.outside.run("ip -6 route add fd00:3::/64 via fd00:99::1");
    }

    /// Everything that could be left behind: devices, addresses, rules, files, daemons.
    pub(super) fn state(&self) -> String {
        let mut files: Vec<_> =
            std::fs::read_dir(self.runtime()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let dhcp = Slot::all().map(|slot| dhcp_mark(self.workspace, slot));
        let plan = plan_of(self.workspace, slot_of_keeper());
        let marks = dhcp.chain(plan.daemon_marks().into_iter().skip(1)).chain([plan.firewall_mark()]);
        let marks: Vec<_> = marks.collect();
        let count = async { marks.iter().map(|mark| marked::find(mark).unwrap().len()).sum() };
        let daemons: usize = self.on_host(count);
        let mut names: Vec<_> = std::fs::read_dir(self.names())
            .map(|all| all.map(|entry| entry.unwrap().path()).collect())
            .unwrap_or_default();
        names.sort();
        files.extend(names);
        let shown =
            ["ip -d -o link", "ip -o addr", "nft -s list ruleset"].map(|command| self.host.output(command));
        format!("{}\n{files:?}\n{daemons} daemons", shown.join("\n"))
    }

    pub(super) fn kill_keeper(&self) {
        self.kill(&plan_of(self.workspace, slot_of_keeper()).keeper_mark(None));
    }

    pub(super) fn kill_follower(&self) {
        self.kill(&plan_of(self.workspace, slot_of_keeper()).follower_mark(None));
    }

    /// Waits until this holds, which another process is about to bring about.
    pub(super) fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = std::time::Instant::now() + 10 * LIMIT;
        while !holds() {
            assert!(std::time::Instant::now() < deadline, "not {what}: {}", self.state());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(super) fn kill_daemons(&self) {
        for slot in Slot::all() {
            self.kill(&dhcp_mark(self.workspace, slot));
        }
    }

    /// Ends all processes with this mark.
    pub(super) fn kill(&self, mark: &ProcessMark) {
        self.on_host(marked::end(mark)).unwrap();
    }
}

impl Drop for Arena {
    /// A test that fails leaves no daemon and no mount. Everything else ends with the namespaces.
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.names()).into_iter().flatten().flatten() {
            // What is no namespace is no mount.
            rustix::mount::unmount(entry.path(), rustix::mount::UnmountFlags::DETACH).ok();
        }
        rustix::mount::unmount(self.names(), rustix::mount::UnmountFlags::DETACH).ok();
        for workspace in [self.workspace, self.neighbour] {
            for slot in Slot::all().take(if std::thread::panicking() { 64 } else { 0 }) {
                for mark in plan_of(workspace, slot).daemon_marks() {
                    drop(self.on_host(marked::end(&mark)));
                }
            }
        }
    }
}

fn dhcp_mark(workspace: WorkspaceId, slot: Slot) -> ProcessMark {
    plan_of(workspace, slot).dhcp_mark(None)
}

fn plan_of(workspace: WorkspaceId, slot: Slot) -> NetworkPlan {
    NetworkPlan::new(slot, workspace, 0)
}

/// The mark of the keeper is the same for each slot.
fn slot_of_keeper() -> Slot {
    Slot::OWN_NETWORK
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
