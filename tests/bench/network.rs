//! What a network namespace of its own costs a VM, against a TAP in the host's network, measured in turns in one run:
//!
//! - throughput: what a process on the TAP sends to a server outside, in segments of 60 KB as a VMM hands them over, and in
//!   packets of 1448 bytes;
//! - build: making the whole network, which is a part of the stage `rebuild` of a restore.
//!
//! The host is a network namespace too, so that nothing of this machine's network is touched. It needs root, nft, dnsmasq,
//! ip and unshare, and is skipped without them. It prints a line for each ratio: its name, the ratio of the medians, and the
//! target.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nixbox::host::confinement;
use nixbox::host::ioctl::Tap;
use nixbox::host::network::{HostNetwork, NetworkNamespace, NetworkPlace, NetworkSettings, child, inside};
use nixbox::world::{Generation, Network, NetworkMode, NetworkPolicy, Presence, Slot, WorkspaceId};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The word by which this program knows that it is in namespaces of its own.
const MEASURE: &str = "measure";
const SERVER: [u8; 4] = [10, 99, 0, 2];
const ROUNDS: usize = 9;

fn main() {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let first = arguments.first().and_then(|word| word.to_str()).unwrap_or_default();
    // nixbox starts the program that it runs itself as its helpers.
    if first == inside::COMMAND {
        child::launch(&arguments[1..]).unwrap();
    } else if first == confinement::COMMAND {
        panic!("{}", confinement::launch(&arguments[1..]));
    } else if first == MEASURE {
        measure();
    } else if rustix::process::geteuid().is_root() && ["nft", "dnsmasq", "ip", "unshare"].iter().all(is_there)
    {
        let own = std::env::current_exe().unwrap();
        let mut command = Command::new("unshare");
        let status = command.args(["--net", "--mount"]).arg(own).arg(MEASURE).status().unwrap();
        assert!(status.success());
    } else {
        println!("network: skipped, for want of root's rights, nft, dnsmasq, ip or unshare");
    }
}

fn is_there(name: &&str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(name).is_file())
}

fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The network outside: a server that counts what arrives, and drops it.
struct Outside(Child);

impl Outside {
    fn new() -> Self {
        let mut command = Command::new("unshare");
        let child =
            command.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let outside = Self(child);
        let id = outside.0.id();
        // unshare has entered its namespace when it has become cat.
        run(&format!("until [ \"$(cat /proc/{id}/comm)\" = cat ]; do :; done"));
        run("ip link set lo up; ip link add up0 type veth peer name up1");
        run(&format!("ip link set up1 netns {id}; ip addr add 10.99.0.1/24 dev up0; ip link set up0 up"));
        outside.run("ip link set lo up; ip addr add 10.99.0.2/24 dev up1; ip link set up1 up");
        outside.run("nft add table ip count; nft 'add chain ip count in { type filter hook prerouting priority -400; }'");
        outside.run("nft 'add rule ip count in meta l4proto tcp counter drop'");
        run("sysctl -qw net.ipv4.ip_forward=1");
        // The neighbour is known before anything is measured.
        run("ping -c 1 -W 5 10.99.0.2 > /dev/null 2>&1 || ip neigh show");
        outside
    }

    fn run(&self, command: &str) -> String {
        run(&format!("nsenter --net=/proc/{}/ns/net sh -ec \"{command}\"", self.0.id()))
    }

    /// How many bytes have arrived since the last call.
    fn arrived(&self) -> u64 {
        let listed = self.run("nft list chain ip count in; nft reset counters table ip count > /dev/null");
        let bytes =
            listed.split_whitespace().skip_while(|word| *word != "bytes").nth(1).unwrap().parse().unwrap();
        self.run("nft flush chain ip count in; nft add rule ip count in meta l4proto tcp counter drop");
        bytes
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A VM's network, and a process on its TAP.
struct Side {
    network: HostNetwork,
    slot: Slot,
    enter: String,
}

impl Side {
    fn new(directory: &Path, number: u8, place: NetworkPlace, enter: String) -> Self {
        let runtime = directory.join(format!("run-{number}"));
        std::fs::create_dir(&runtime).unwrap();
        let policy = NetworkPolicy {
            host_networks: vec!["10.99.0.0/24".parse().unwrap()],
            ..NetworkMode::Open.into()
        };
        let network = HostNetwork::new(NetworkSettings {
            workspace: WorkspaceId([number; 16]),
            owner: 0,
            runtime,
            policy,
            resolv_conf: "/etc/resolv.conf".into(),
            place,
        });
        Self { network, slot: Slot::try_from(number).unwrap(), enter }
    }

    fn build(&self) {
        let done = block_on(async {
            self.network.build(self.slot, Generation(1)).await?;
            self.network.find(self.slot).await
        });
        assert_eq!(done.unwrap(), Presence::Whole);
    }

    fn remove(&self) {
        block_on(self.network.remove(self.slot)).unwrap();
    }

    /// The TAP, and its hardware address.
    fn attach(&self) -> (Tap, Vec<u8>) {
        let name = self.slot.tap();
        let shown = run(&format!("{} ip -o link show {name}", self.enter));
        let address = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap();
        let address = address.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        let namespace = self.enter.split_once('=').map(|(_, path)| File::open(path.trim()).unwrap());
        let attach = move || {
            if let Some(namespace) = namespace {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            }
            Tap::attach(&name).unwrap()
        };
        (std::thread::spawn(attach).join().unwrap(), address)
    }

    /// A TCP segment of a guest, as a VMM hands it over: after a virtio-net header that leaves the checksum, and the division
    /// into packets, to the host.
    fn segment(&self, tap: &[u8], size: usize) -> Vec<u8> {
        const ETHERNET: usize = 14;
        const HEADERS: u16 = 14 + 20 + 20;
        let divided = size > 1448;
        let mut frame = vec![1, u8::from(divided)];
        frame.extend(HEADERS.to_ne_bytes());
        frame.extend(if divided { 1448u16 } else { 0 }.to_ne_bytes());
        frame.extend(34u16.to_ne_bytes());
        frame.extend(16u16.to_ne_bytes());
        let begin = frame.len();
        frame.extend(tap);
        frame.extend(self.slot.mac().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()));
        frame.extend([8, 0]);
        let length = u16::try_from(40 + size).unwrap().to_be_bytes();
        let mut header = vec![0x45, 0, length[0], length[1], 0, 1, 0x40, 0, 64, 6, 0, 0];
        header.extend(self.slot.guest().octets());
        header.extend(SERVER);
        let sum = header.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum::<u32>();
        let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(header);
        // Ports, numbers, an acknowledgement, a window, and no checksum yet.
        frame.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
        assert_eq!(frame.len() - begin, ETHERNET + 40);
        frame.resize(frame.len() + size, 7);
        frame
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn timed(act: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    act();
    begun.elapsed()
}

/// Measures both in turns, and returns the medians. Who goes first changes, so that neither always pays for what the other
/// left behind.
fn in_turns(mut one: impl FnMut() -> Duration, mut other: impl FnMut() -> Duration) -> (Duration, Duration) {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        if round % 2 == 0 {
            first.push(one());
            second.push(other());
        } else {
            second.push(other());
            first.push(one());
        }
    }
    first.sort();
    second.sort();
    (first[ROUNDS / 2], second[ROUNDS / 2])
}

fn measure() {
    let directory = tempfile::tempdir().unwrap();
    let outside = Outside::new();
    let workspace = WorkspaceId([64; 16]);
    let namespace = NetworkNamespace::new(&directory.path().join("netns"), workspace);
    let enter = format!("nsenter --net={}", namespace.shown().unwrap().unwrap().display());
    let isolated = Side::new(directory.path(), 64, NetworkPlace::Namespace(namespace), enter);
    let direct = Side::new(directory.path(), 3, NetworkPlace::Host, String::new());
    let sides = [&isolated, &direct];
    sides.iter().for_each(|side| side.build());
    for (name, size, count, target) in
        [("segments of 60 KB", 60_000, 20_000, 0.9), ("packets of 1448 bytes", 1448, 100_000, 0.5)]
    {
        let send = |side: &Side| {
            let (tap, address) = side.attach();
            let frame = side.segment(&address, size);
            outside.arrived();
            let time = timed(|| {
                for _ in 0..count {
                    rustix::io::write(&tap, &frame).unwrap();
                }
            });
            let arrived = outside.arrived();
            let sent = (size * count) as u64;
            assert!(arrived > sent / 100 * 95, "{arrived} of {sent} bytes have arrived");
            time
        };
        let (ours, bare) = in_turns(|| send(&isolated), || send(&direct));
        let rate = |time: Duration| (size * count) as f64 * 8.0 / time.as_secs_f64() / 1e9;
        println!(
            "throughput, {name}: ratio {:.2}, target {target:.2} ({:.1} Gbit/s over the uplink against {:.1} from the TAP)",
            bare.as_secs_f64() / ours.as_secs_f64(),
            rate(ours),
            rate(bare)
        );
    }
    sides.iter().for_each(|side| side.remove());
    let rebuild = |side: &Side| {
        let time = timed(|| side.build());
        side.remove();
        time
    };
    let (ours, bare) = in_turns(|| rebuild(&isolated), || rebuild(&direct));
    let ratio = ours.as_secs_f64() / bare.as_secs_f64();
    println!("build: ratio {ratio:.2} ({ours:?} in a namespace against {bare:?} in the host's network)");
}
