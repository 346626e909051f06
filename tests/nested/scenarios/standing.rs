//! The network of a VM that runs: what others break is named and repaired, and the host's networks are followed.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::network::{HELLO, Peer, fetch};
use crate::outside::{Thing, must, shell};
use crate::workspace::Workspace;

/// Nested, everything that takes milliseconds takes seconds.
const LIMIT: Duration = Duration::from_secs(60);

fn faults(workspace: &Workspace) -> Vec<String> {
    let status = workspace.status();
    assert_eq!(status["vm"]["network_problem"], Value::Null, "{status}");
    let all = status["vm"]["network_faults"].as_array().unwrap();
    all.iter().map(|fault| fault["fault"].as_str().unwrap().to_owned()).collect()
}

fn kill(workspace: &Workspace, role: &str) {
    let of_role = |thing: &Thing| match thing {
        Thing::Process(process) if process.role.starts_with(role) => Some(process.pid.to_string()),
        _ => None,
    };
    let pids: Vec<String> = workspace.things().iter().filter_map(of_role).collect();
    assert!(!pids.is_empty(), "no {role}");
    let words: Vec<&str> = std::iter::once("-KILL").chain(pids.iter().map(String::as_str)).collect();
    must("kill", &words);
}

/// Waits until the host's end of the uplink has this name.
fn until_uplink(workspace: &Workspace, wanted: Option<&str>) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let things = workspace.things();
        let found = things.iter().find_map(|thing| match thing {
            Thing::Uplink(name, _) => Some(name.as_str()),
            _ => None,
        });
        if found == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{found:?}, not {wanted:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn up(name: &str) -> Workspace {
    let workspace = Workspace::new(name);
    let network = "[network]\nmode = \"filtered\"\ndomains = [\"allowed.test\"]\nports = [80]\n";
    workspace.configure(&Workspace::configuration(network));
    workspace.ok(&["up"]);
    workspace.assert_up();
    assert_eq!(fetch(&workspace, "allowed.test", 80).as_deref(), Some(HELLO));
    workspace
}

pub(super) fn the_network_of_a_running_vm_is_repaired() {
    let peer = Peer::new();
    let workspace = up("repaired");
    let namespace = format!("nixbox-{}", workspace.id());
    let flush_inside = format!("ip netns exec {namespace} nft flush ruleset");
    let breakages: [(&str, &dyn Fn(), &str); 6] = [
        ("dns", &|| kill(&workspace, "dhcp"), "recover"),
        ("keeper", &|| kill(&workspace, "keeper"), "up"),
        ("host-firewall", &|| drop(shell("nft flush ruleset")), "recover"),
        ("guest-firewall", &|| drop(shell(&flush_inside)), "up"),
        ("uplink", &|| drop(shell("ip link delete nixbox-0")), "recover"),
        ("namespace", &|| drop(must("ip", &["netns", "delete", &namespace])), "up"),
    ];
    for (fault, break_it, command) in breakages {
        assert!(faults(&workspace).is_empty(), "before {fault}");
        // The follower would make the uplink again by itself.
        kill(&workspace, "follower");
        break_it();
        let found = faults(&workspace);
        assert!(found.iter().any(|one| one == fault), "{fault}: {found:?}");
        let text = workspace.ok(&["status"]).stdout;
        assert!(text.contains("warning: the network:") && text.contains("`nixbox recover`"), "{text}");
        let foreseen = workspace.ok(&["recover", "--dry-run", "--json"]).json();
        assert!(foreseen["network"].as_array().unwrap().contains(&fault.into()), "{foreseen}");
        let said = workspace.ok(&[command, "--json"]).json();
        if command == "recover" {
            assert!(said["network"]["repaired"].as_array().unwrap().contains(&fault.into()), "{said}");
        }
        assert!(faults(&workspace).is_empty(), "after {command}");
        assert_eq!(fetch(&workspace, "allowed.test", 80).as_deref(), Some(HELLO), "after {fault}");
        assert_eq!(fetch(&workspace, "198.51.100.3", 80), None, "the filter stands after {fault}");
        assert_eq!(workspace.ok(&["recover", "--json"]).json()["result"], "nothing");
    }
    workspace.assert_up();
    workspace.ok(&["down"]);
    workspace.assert_down();
    drop(peer);
}

pub(super) fn the_uplink_makes_room_for_the_networks_of_the_host() {
    let peer = Peer::new();
    let workspace = up("followed");
    until_uplink(&workspace, Some("nixbox-0"));
    let nonce = workspace.guest("od -An -N16 -tx1 /dev/urandom > /tmp/nonce; cat /tmp/nonce");
    // A VPN with the addresses of the uplink.
    shell("ip route add 203.0.113.0/31 via 198.51.100.2");
    until_uplink(&workspace, Some("nixbox-1"));
    assert!(shell("ip route get 203.0.113.1").contains("via 198.51.100.2"), "the VPN is shadowed");
    assert_eq!(fetch(&workspace, "allowed.test", 80).as_deref(), Some(HELLO));
    // An address of the host's own, which the guest must not reach either.
    shell("ip addr add 203.0.113.5/30 dev to-world");
    until_uplink(&workspace, Some("nixbox-2"));
    assert_eq!(fetch(&workspace, "allowed.test", 80).as_deref(), Some(HELLO));
    assert_eq!(fetch(&workspace, "203.0.113.5", 80), None);
    assert!(faults(&workspace).is_empty());
    // The whole pool. The host's networks win, and the guest has its network again when they go.
    shell("ip route add 203.0.113.0/24 via 198.51.100.2");
    until_uplink(&workspace, None);
    assert_eq!(faults(&workspace), ["no-free-uplink"]);
    workspace.run(&["recover"]).failed(1, &["network.uplink"]);
    assert_eq!(fetch(&workspace, "allowed.test", 80), None);
    // The whole pool is free last, because an uplink that stands well stays where it is.
    shell(
        "ip route del 203.0.113.0/31; ip addr del 203.0.113.5/30 dev to-world; ip route del 203.0.113.0/24",
    );
    until_uplink(&workspace, Some("nixbox-0"));
    assert_eq!(fetch(&workspace, "allowed.test", 80).as_deref(), Some(HELLO));
    assert_eq!(workspace.guest("cat /tmp/nonce"), nonce, "it is the same guest");
    workspace.assert_up();
    workspace.ok(&["down"]);
    workspace.assert_down();
    drop(peer);
}
