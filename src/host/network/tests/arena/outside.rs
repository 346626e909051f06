//! What there is outside of the host of an [`Arena`], and what the host's network is like.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;

use super::{Arena, Guest, LIMIT, guest};

impl Arena {
    /// Gives the outside this address, and the host a route to it.
    pub(in super::super) fn put_outside(&self, address: Ipv4Addr) {
        self.outside.run(&format!("ip addr add {address}/32 dev lo"));
        self.host.run(&format!("ip route replace {address}/32 via 10.99.0.2"));
    }
}

impl Arena {
    /// Makes the network outside a LAN in which the host has this address. Its gateway is a server of names too.
    pub(in super::super) fn join_lan(&self, host: &str, gateway: &str) {
        let (_, prefix) = host.split_once('/').unwrap();
        // The arena has a route back to guests that are in the host's network.
        self.outside.run("ip route delete 172.16.0.0/16");
        self.outside.run(&format!("ip addr add {gateway}/{prefix} dev up1"));
        self.host.run(&format!("ip addr add {host} dev up0"));
        self.host.run(&format!("ip route replace default via {gateway}"));
        let socket = self.outside.within(|| UdpSocket::bind((gateway, 53)).unwrap());
        let asked = Arc::clone(&self.asked);
        self.outside.begin(move || guest::answer_names(&socket, &asked));
    }

    /// Gives the network outside, and the host's device in it, this MTU, and the host a default route through it.
    pub(in super::super) fn set_world_mtu(&self, mtu: u32) {
        self.host.run(&format!("ip link set up0 mtu {mtu}"));
        self.outside.run(&format!("ip link set up1 mtu {mtu}"));
        self.host.run("ip route replace default via 10.99.0.2");
    }

    /// A server outside that reads all that a client sends, and answers with its size.
    pub(in super::super) fn swallow(&self, port: u16) {
        let listener = self.outside.within(|| TcpListener::bind(("0.0.0.0", port)).unwrap());
        self.outside.begin(move || {
            for mut stream in listener.incoming().flatten() {
                let mut sent = Vec::new();
                if stream.read_to_end(&mut sent).is_ok() {
                    // The client may be gone already.
                    drop(stream.write_all(sent.len().to_string().as_bytes()));
                }
            }
        });
    }
}

impl Guest {
    /// Sends so many bytes to a server that swallows them. Returns how many have arrived.
    pub(in super::super) fn sends(&self, to: Ipv4Addr, port: u16, bytes: usize) -> Option<usize> {
        self.namespace.within(|| {
            let mut stream = TcpStream::connect_timeout(&(to, port).into(), LIMIT).ok()?;
            stream.set_read_timeout(Some(LIMIT)).ok()?;
            stream.set_write_timeout(Some(LIMIT)).ok()?;
            stream.write_all(&vec![7; bytes]).ok()?;
            stream.shutdown(Shutdown::Write).ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            answer.parse().ok()
        })
    }

    /// The largest packet that the guest's system knows to arrive there.
    pub(in super::super) fn largest_packet(&self, to: Ipv4Addr) -> u32 {
        let route = self.namespace.output(&format!("ip route get {to}"));
        let told = route.split_whitespace().skip_while(|word| *word != "mtu").nth(1);
        let link = self.namespace.output("ip -o link show eth0");
        let own = link.split_whitespace().skip_while(|word| *word != "mtu").nth(1);
        told.or(own).unwrap().parse().unwrap()
    }
}
