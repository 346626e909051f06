//! A guest that speaks as much DHCP and DNS as the tests need, and the name server that answers its questions.

use std::io::{PipeReader, PipeWriter};
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::{Arena, LIMIT, Namespace};
use crate::host::ioctl::Tap;
use crate::world::{Slot, WorkspaceId};

/// The DNS response code of a server that refuses to answer.
pub(in super::super) const REFUSED: u8 = 5;

pub(in super::super) struct Guest {
    pub(super) namespace: Namespace,
    slot: Slot,
    datagrams: Arc<Mutex<Vec<String>>>,
    /// The thread that carries frames ends when the pipe is closed.
    cable: Option<(PipeWriter, std::thread::JoinHandle<()>)>,
}

/// A lease from the DHCP server.
pub(in super::super) struct Lease {
    pub(in super::super) address: Ipv4Addr,
    pub(in super::super) mask: Option<Ipv4Addr>,
    pub(in super::super) router: Option<Ipv4Addr>,
    pub(in super::super) dns: Option<Ipv4Addr>,
    pub(in super::super) mtu: Option<u32>,
}

impl Guest {
    /// Attaches to the TAP of the slot, as a VMM does.
    pub(in super::super) fn join(arena: &Arena, slot: Slot) -> Self {
        Self::join_of(arena, arena.workspace, slot)
    }

    /// Does the same for the VM of another workspace.
    pub(in super::super) fn join_of(arena: &Arena, workspace: WorkspaceId, slot: Slot) -> Self {
        let namespace = Namespace::new();
        let device = slot.tap();
        let far = arena.of_tap(workspace).within(|| Tap::attach(&device).unwrap());
        let near = namespace.within(|| Tap::create("eth0").unwrap());
        namespace.run(&format!("ip link set eth0 address {} addrgenmode none up", slot.mac()));
        let (stop, stopped) = std::io::pipe().unwrap();
        let carry = std::thread::spawn(move || carry_frames(&near, &far, &stop));
        let guest =
            Self { namespace, slot, datagrams: Arc::clone(&arena.datagrams), cable: Some((stopped, carry)) };
        let listener = guest.namespace.within(|| TcpListener::bind("0.0.0.0:22").unwrap());
        guest.namespace.begin(move || {
            for mut stream in listener.incoming().flatten() {
                drop(std::io::Write::write_all(&mut stream, b"hello"));
            }
        });
        guest
    }

    pub(in super::super) fn gateway(&self) -> Ipv4Addr {
        self.slot.gateway()
    }

    pub(in super::super) fn address(&self) -> Ipv4Addr {
        self.slot.guest()
    }

    pub(in super::super) fn run(&self, command: &str) {
        self.namespace.run(command);
    }

    /// Gets an address and uses it, with a default route even if the lease has none.
    pub(in super::super) fn lease(&self) -> Lease {
        self.run("ip route add 255.255.255.255/32 dev eth0");
        let number = self.slot.number();
        let lease = self.namespace.within(|| {
            let socket = UdpSocket::bind("0.0.0.0:68").unwrap();
            socket.set_broadcast(true).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let (offer, server) = ask_for_lease(&socket, number, 1, &[]);
            let mut wish = vec![50, 4];
            wish.extend(offer.address.octets());
            wish.extend([54, 4]);
            wish.extend(server.octets());
            ask_for_lease(&socket, number, 3, &wish).0
        });
        let bits = lease.mask.map_or(32, |mask| mask.to_bits().count_ones());
        self.run(&format!("ip addr add {}/{bits} dev eth0", lease.address));
        self.run(&format!("ip route add default via {}", lease.router.unwrap_or(self.gateway())));
        lease
    }

    pub(in super::super) fn reaches(&self, address: Ipv4Addr, port: u16) -> bool {
        self.namespace.connect(address, port)
    }

    pub(in super::super) fn reaches_ipv6(&self, address: &str) -> bool {
        self.namespace.connect(address.parse::<IpAddr>().unwrap(), 80)
    }

    /// Whether an answer comes back to a question that a name server and an echo server both answer.
    pub(in super::super) fn reaches_udp(&self, address: Ipv4Addr, port: u16) -> bool {
        self.exchange(address, port, &question("allowed.test")).is_some()
    }

    /// Whether a datagram with this source address arrives. A later datagram with the right address does.
    pub(in super::super) fn sends_from(&self, from: Ipv4Addr, to: Ipv4Addr) -> bool {
        let earlier = self.datagrams.lock().unwrap().len();
        self.namespace.within(|| {
            let spoofed = UdpSocket::bind((from, 0)).unwrap();
            spoofed.send_to(b"spoofed", (to, 7000)).unwrap();
            let right = UdpSocket::bind((self.address(), 0)).unwrap();
            right.send_to(b"right", (to, 7000)).unwrap();
        });
        let deadline = std::time::Instant::now() + LIMIT;
        loop {
            let seen = self.datagrams.lock().unwrap()[earlier..].to_vec();
            if seen.iter().any(|text| text == "right") {
                return seen.iter().any(|text| text == "spoofed");
            }
            assert!(std::time::Instant::now() < deadline, "not even the right one arrived: {seen:?}");
            std::thread::yield_now();
        }
    }

    /// Asks the gateway for a name. Returns the response code and the addresses.
    pub(in super::super) fn resolve(&self, name: &str) -> (u8, Vec<Ipv4Addr>) {
        let answer = self.exchange(self.gateway(), 53, &question(name)).expect("an answer");
        let count = u16::from_be_bytes([answer[6], answer[7]]);
        let tail = answer.len().checked_sub(4).filter(|_| count > 0);
        let address =
            tail.map(|at| Ipv4Addr::new(answer[at], answer[at + 1], answer[at + 2], answer[at + 3]));
        (answer[3] & 15, address.into_iter().collect())
    }

    /// Asks the gateway for a name, whatever it answers.
    pub(in super::super) fn try_resolve(&self, name: &str) {
        self.exchange(self.gateway(), 53, &question(name));
    }

    fn exchange(&self, to: Ipv4Addr, port: u16, message: &[u8]) -> Option<Vec<u8>> {
        self.namespace.within(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            socket.connect((to, port)).ok()?;
            socket.send(message).ok()?;
            let mut buffer = [0; 2000];
            let length = socket.recv(&mut buffer).ok()?;
            Some(buffer[..length].to_vec())
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some((stopped, carry)) = self.cable.take() {
            drop(stopped);
            drop(carry.join());
        }
    }
}

/// Carries frames between two TAPs. Both put the same virtio-net header before each frame, and neither offers to leave
/// checksums to the other.
fn carry_frames(near: &Tap, far: &Tap, stop: &PipeReader) {
    let mut frame = vec![0; 70_000];
    loop {
        let mut polled =
            [near.as_fd(), far.as_fd(), stop.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        if poll(&mut polled, None).is_err() || !polled[2].revents().is_empty() {
            return;
        }
        let ready = [!polled[0].revents().is_empty(), !polled[1].revents().is_empty()];
        for (ready, (from, to)) in ready.into_iter().zip([(near, far), (far, near)]) {
            if ready {
                match rustix::io::read(from, &mut frame) {
                    // A device that is down takes no frame, like an unplugged cable.
                    Ok(length) => drop(rustix::io::write(to, &frame[..length])),
                    // The device was removed.
                    Err(_) => return,
                }
            }
        }
    }
}

/// Sends the message until it is answered. Returns the answer and its sender.
fn ask_for_lease(socket: &UdpSocket, slot: u8, kind: u8, options: &[u8]) -> (Lease, Ipv4Addr) {
    const EXCHANGE: [u8; 4] = *b"nixb";
    let mut message = vec![0; 236];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[4..8].copy_from_slice(&EXCHANGE);
    // The flag "answer by broadcast": a guest without an address can receive nothing else.
    message[10] = 0x80;
    message[28..34].copy_from_slice(&[2, 0, 0, 0, 0, slot + 1]);
    message.extend([99, 130, 83, 99, 53, 1, kind, 55, 4, 1, 3, 6, 26]);
    message.extend(options);
    message.push(255);
    let mut buffer = [0; 2000];
    for _ in 0..10 {
        socket.send_to(&message, "255.255.255.255:67").unwrap();
        while let Ok(length) = socket.recv(&mut buffer) {
            let answer = &buffer[..length];
            let option = |wanted: u8| find_option(&answer[240..], wanted);
            let address =
                |wanted| option(wanted).and_then(|value| <[u8; 4]>::try_from(value).ok()).map(Ipv4Addr::from);
            // OFFER to DISCOVER, ACK to REQUEST.
            if answer[4..8] == EXCHANGE && option(53) == Some(&[if kind == 1 { 2 } else { 5 }]) {
                let given = Ipv4Addr::new(answer[16], answer[17], answer[18], answer[19]);
                let mtu = option(26).and_then(|value| <[u8; 2]>::try_from(value).ok());
                let mtu = mtu.map(|bytes| u16::from_be_bytes(bytes).into());
                let lease =
                    Lease { address: given, mask: address(1), router: address(3), dns: address(6), mtu };
                return (lease, address(54).unwrap());
            }
        }
    }
    panic!("no DHCP answer");
}

fn find_option(mut options: &[u8], wanted: u8) -> Option<&[u8]> {
    while let [kind, length, rest @ ..] = options {
        let (value, rest) = rest.split_at_checked(usize::from(*length))?;
        if *kind == wanted {
            return Some(value);
        }
        options = rest;
    }
    None
}

fn labels(name: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = name
        .split('.')
        .flat_map(|label| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat())
        .collect();
    bytes.push(0);
    bytes
}

fn question(name: &str) -> Vec<u8> {
    [&[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], labels(name).as_slice(), &[0, 1, 0, 1]].concat()
}

/// The name server outside: every name has an address.
pub(super) fn answer_names(socket: &UdpSocket, asked: &Mutex<Vec<String>>) {
    let mut buffer = [0; 2000];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let message = &buffer[..length];
        let (mut name, mut at) = (Vec::new(), 12);
        while message[at] != 0 {
            let end = at + 1 + usize::from(message[at]);
            name.push(String::from_utf8_lossy(&message[at + 1..end]).to_lowercase());
            at = end;
        }
        let name = name.join(".");
        let record = |owner: &[u8], kind: u8, data: &[u8]| {
            let size = u16::try_from(data.len()).unwrap().to_be_bytes();
            [owner, &[0, kind, 0, 1, 0, 0, 0, 60], &size, data].concat()
        };
        let address = |last: &[u8; 4]| record(&[0xc0, 12], 1, last);
        let answers = match name.as_str() {
            "allowed.test" => vec![address(&[10, 99, 0, 2])],
            "below.allowed.test" => vec![address(&[10, 99, 0, 4])],
            "alias.allowed.test" => {
                let real = labels("real.other.test");
                vec![record(&[0xc0, 12], 5, &real), record(&real, 1, &[10, 99, 0, 5])]
            }
            "host.allowed.test" => vec![address(&[10, 99, 0, 1])],
            "cloud.allowed.test" => vec![address(&[169, 254, 169, 254])],
            "alibaba.allowed.test" => vec![address(&[100, 100, 100, 200])],
            "azure.allowed.test" => vec![address(&[168, 63, 129, 16])],
            "public.allowed.test" => vec![address(&[8, 8, 4, 4])],
            "private.allowed.test" => vec![address(&[192, 168, 7, 7])],
            "mixed.allowed.test" => vec![address(&[8, 8, 4, 4]), address(&[192, 168, 7, 7])],
            "loopback.allowed.test" => vec![address(&[127, 0, 0, 1])],
            "shared.allowed.test" => vec![address(&[100, 64, 9, 9])],
            "multicast.allowed.test" => vec![address(&[224, 0, 0, 251])],
            "unspecified.allowed.test" => vec![address(&[0; 4])],
            "mapped.allowed.test" => {
                let mapped = Ipv4Addr::new(192, 168, 7, 7).to_ipv6_mapped();
                vec![record(&[0xc0, 12], 28, &mapped.octets())]
            }
            _ => vec![address(&[10, 99, 0, 3])],
        };
        asked.lock().unwrap().push(name);
        let count = u8::try_from(answers.len()).unwrap();
        let head = [&message[..2], &[0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0]].concat();
        let answer = [&head, &message[12..at + 5], &answers.concat()].concat();
        drop(socket.send_to(&answer, from));
    }
}
