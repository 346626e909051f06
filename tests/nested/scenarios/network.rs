//! What a guest can reach. A network namespace stands for the internet.

use std::fs;
use std::process::{Child, Command, Stdio};

use crate::outside::{must, shell};
use crate::workspace::Workspace;

/// A host behind this host: DNS, and web servers on two addresses and two ports.
pub(super) struct Peer {
    servers: Vec<Child>,
}

const RESOLV: &str = "/etc/resolv.conf";

impl Peer {
    pub(super) fn new() -> Self {
        shell(
            "ip netns add world
             ip link add to-world type veth peer name up0 netns world
             ip addr add 198.51.100.1/24 dev to-world; ip link set to-world up
             ip -n world addr add 198.51.100.2/24 dev up0; ip -n world addr add 198.51.100.3/24 dev up0
             ip -n world link set up0 up; ip -n world link set lo up
             mkdir -p /run/world; echo hello from the world > /run/world/index.html
             echo nameserver 198.51.100.2 > /run/resolv; mount --bind /run/resolv /etc/resolv.conf",
        );
        let inside = |words: &[&str]| {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", "world"]).args(words).stdin(Stdio::null());
            command.spawn().unwrap()
        };
        let mut servers = vec![inside(&[
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
            "--pid-file=",
            "--bind-interfaces",
            "--listen-address=198.51.100.2",
            "--address=/allowed.test/198.51.100.2",
            "--address=/other.test/198.51.100.3",
        ])];
        for (address, port) in [("198.51.100.2", 80), ("198.51.100.2", 8080), ("198.51.100.3", 80)] {
            let listen = format!("{address}:{port}");
            servers.push(inside(&["busybox", "httpd", "-f", "-p", &listen, "-h", "/run/world"]));
        }
        // A server on the host itself, which no guest may reach.
        let mut own = Command::new("busybox");
        own.args(["httpd", "-f", "-p", "80", "-h", "/run/world"]).stdin(Stdio::null());
        servers.push(own.spawn().unwrap());
        Self { servers }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        for server in &mut self.servers {
            server.kill().unwrap();
            server.wait().unwrap();
        }
        must("umount", &[RESOLV]);
        must("ip", &["netns", "delete", "world"]);
    }
}

/// What the servers say.
pub(super) const HELLO: &str = "hello from the world\n";

/// What the guest gets from a name or address. bash opens the connection, with the resolver that every program uses.
pub(super) fn fetch(workspace: &Workspace, host: &str, port: u16) -> Option<String> {
    let script = r#"exec 3<> "/dev/tcp/$0/$1" && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && sed '1,/^.$/d' <&3"#;
    let port = port.to_string();
    let said = workspace.run(&["run", "--", "timeout", "10", "bash", "-c", script, host, &port]);
    (said.code == Some(0)).then_some(said.stdout)
}

pub(super) fn filtered_mode_lets_only_allowed_domains_and_ports_through() {
    let peer = Peer::new();
    assert!(fs::read_to_string(RESOLV).unwrap().contains("198.51.100.2"));
    let workspace = Workspace::new("filtered");
    let network = "[network]\nmode = \"filtered\"\ndomains = [\"allowed.test\"]\nports = [80]\n";
    workspace.configure(&Workspace::configuration(network));
    workspace.ok(&["up"]);
    workspace.assert_up();
    let fetch = |host: &str, port: u16| fetch(&workspace, host, port);
    let hello = Some(HELLO.to_owned());
    assert_eq!(fetch("allowed.test", 80), hello);
    assert_eq!(fetch("below.allowed.test", 80), hello);
    assert_eq!(fetch("allowed.test", 8080), None, "a port that is not allowed");
    assert_eq!(fetch("other.test", 80), None, "a name that is not allowed");
    assert_eq!(fetch("198.51.100.3", 80), None, "an address that no allowed name has");
    assert_eq!(fetch("198.51.100.253", 80), None, "the host itself");
    assert_eq!(fetch("198.51.100.1", 80), None, "the host itself, by another address");
    assert_eq!(fetch("203.0.113.1", 80), None, "the host itself, by the address of the uplink");
    let asked = workspace.run(&["run", "--", "nslookup", "allowed.test", "198.51.100.2"]);
    assert_ne!(asked.code, Some(0), "DNS past the host's: {asked:?}");
    assert_ne!(workspace.run(&["run", "--", "ping", "-c", "1", "-W", "3", "198.51.100.2"]).code, Some(0));

    // The names and addresses above were noted.
    let log = workspace.ok(&["network", "log", "--json"]).json();
    let has = |list: &str, wanted: &dyn Fn(&serde_json::Value) -> bool| {
        log[list].as_array().unwrap().iter().any(wanted)
    };
    assert!(has("names", &|one| one["name"] == "other.test"), "{log}");
    assert!(!has("names", &|one| one["name"] == "allowed.test"), "{log}");
    for (address, port) in [("198.51.100.2", 8080), ("198.51.100.3", 80), ("203.0.113.1", 80)] {
        assert!(
            has("destinations", &|one| one["address"] == address && one["port"] == port),
            "{address}: {log}"
        );
    }
    assert!(workspace.ok(&["network", "log"]).stdout.contains("other.test"));

    // Another name is allowed to the guest that runs, in place of the first.
    workspace.configure(&Workspace::configuration(&network.replace("allowed.test", "other.test")));
    assert!(workspace.ok(&["status"]).stdout.contains("nixbox network reload"));
    assert_eq!(workspace.ok(&["network", "reload", "--json"]).json()["result"], "done");
    assert_eq!(fetch("other.test", 80), hello);
    assert_eq!(fetch("allowed.test", 80), None, "a name that is no longer allowed");
    assert_eq!(fetch("198.51.100.2", 80), None, "its address, which the guest knew");
    workspace.assert_up();

    // With an open network the same servers answer: only the filter kept them away.
    workspace.configure(&Workspace::configuration(""));
    workspace.ok(&["network", "reload"]);
    for (host, port) in [("allowed.test", 8080), ("other.test", 80), ("198.51.100.3", 80)] {
        assert_eq!(fetch(host, port), hello, "{host}:{port}");
    }
    workspace.ok(&["down"]);
    workspace.assert_down();
    drop(peer);
}
