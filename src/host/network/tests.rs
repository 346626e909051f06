//! With real packets, in network namespaces of the test's own: see [`arena`]. They need root, nft, dnsmasq and ip.

mod arena;
mod figures;
mod firewalls;
mod following;
mod isolated;
mod mtu;
mod reach;
mod standing;
mod user;

use std::time::Duration;

use super::*;
use crate::host::ioctl::Tap;
use crate::world::{Port, UplinkPool, error_chain as chain};
use arena::{Arena, Guest, PEER, PEER_OTHER, REFUSED, Way, ip};

fn slot(number: u8) -> Slot {
    Slot::try_from(number).unwrap()
}

fn filtered(domains: &[&str], ports: &[u16]) -> NetworkPolicy {
    NetworkPolicy {
        mode: NetworkMode::Filtered,
        domains: domains.iter().map(|domain| domain.parse().unwrap()).collect(),
        ports: ports.iter().map(|port| Port::try_from(*port).unwrap()).collect(),
        ..NetworkPolicy::default()
    }
}

/// What holds in every mode, with controls that show that the firewall is the reason.
fn is_kept_in(arena: &Arena, guest: &Guest) {
    for port in [22, 80] {
        assert!(!guest.reaches(guest.gateway(), port), "the host by its gateway address");
        assert!(!guest.reaches(ip("10.99.0.1"), port), "the host by another address of its");
        assert!(arena.host_reaches(ip("10.99.0.1"), port), "control: it listens");
    }
    assert!(arena.nixbox_reaches(guest.address(), 22), "nixbox reaches the guest");
    assert!(!arena.peer_reaches(guest.address(), 22), "the outside does not");
    assert!(!guest.reaches(ip("169.254.169.254"), 80));
}

#[test]
fn open_mode_lets_everything_out_and_nothing_in() {
    for way in Way::ALL {
        let Some(arena) = Arena::new(way) else { return };
        let network = arena.network(NetworkMode::Open);
        arena.on_host(network.build(slot(3), Generation(5))).unwrap();
        assert_eq!(arena.on_host(network.find(slot(3))).unwrap(), Presence::Whole);

        let guest = Guest::join(&arena, slot(3));
        let lease = guest.lease();
        assert_eq!(lease.address, ip("172.16.12.2"));
        assert_eq!((lease.router, lease.dns), (Some(ip("172.16.12.1")), Some(ip("172.16.12.1"))));
        assert_eq!(lease.mask, Some(ip("255.255.255.252")));

        assert_eq!(guest.resolve("www.anything.test"), (0, vec![PEER_OTHER]));
        assert!(guest.reaches(PEER, 80) && guest.reaches(PEER_OTHER, 8080));
        is_kept_in(&arena, &guest);
        assert!(arena.sender_seen().starts_with("10.99.0.1:"), "the outside sees the host's address");
        arena.on_host(network.remove(slot(3))).unwrap();
    }
}

#[test]
fn filtered_mode_lets_out_only_allowed_ports_of_allowed_domains() {
    for way in Way::ALL {
        let Some(arena) = Arena::new(way) else { return };
        let network = arena.network(filtered(&["allowed.test"], &[80, 443]));
        arena.on_host(network.build(slot(0), Generation(1))).unwrap();
        let guest = Guest::join(&arena, slot(0));
        assert_eq!(guest.lease().address, ip("172.16.0.2"));

        assert!(!guest.reaches(PEER, 80), "not before its name was resolved");
        assert_eq!(guest.resolve("allowed.test"), (0, vec![PEER]));
        assert!(guest.reaches(PEER, 80) && guest.reaches(PEER, 443));
        assert!(!guest.reaches(PEER, 8080), "another port");
        assert!(!guest.reaches(PEER_OTHER, 80), "another address");
        assert_eq!(guest.resolve("below.allowed.test"), (0, vec![ip("10.99.0.4")]));
        assert!(guest.reaches(ip("10.99.0.4"), 80), "what is below an allowed domain");
        assert_eq!(guest.resolve("alias.allowed.test"), (0, vec![ip("10.99.0.5")]));
        assert!(guest.reaches(ip("10.99.0.5"), 80), "what an allowed name is an alias of");

        for name in ["other.test", "test", "notallowed.test", "allowed.test.other.test"] {
            assert_eq!(guest.resolve(name), (REFUSED, vec![]), "{name}");
        }
        let asked = arena.names_asked();
        assert!(
            asked.iter().all(|name| name.ends_with("allowed.test") && name != "notallowed.test"),
            "{asked:?}"
        );
        assert!(!guest.reaches_udp(PEER, 5353) && guest.reaches_udp(PEER, 443), "UDP by the same list");
        assert!(!guest.reaches_udp(ip("10.99.0.53"), 53), "DNS past the gateway");

        // The server of an allowed domain cannot open the host to the guest by its answers, nor the cloud of the host.
        assert_eq!(guest.resolve("host.allowed.test"), (0, vec![ip("10.99.0.1")]));
        guest.try_resolve("cloud.allowed.test");
        is_kept_in(&arena, &guest);

        // A whole network is left as it is, so the addresses stay allowed.
        arena.on_host(network.build(slot(0), Generation(2))).unwrap();
        assert!(guest.reaches(PEER, 80));
        arena.on_host(network.remove(slot(0))).unwrap();
    }
}

#[test]
fn off_mode_lets_nothing_out_and_the_host_in() {
    for way in Way::ALL {
        let Some(arena) = Arena::new(way) else { return };
        let network = arena.network(NetworkMode::Off);
        arena.on_host(network.build(slot(63), Generation(1))).unwrap();
        assert_eq!(arena.on_host(network.find(slot(63))).unwrap(), Presence::Whole);
        let guest = Guest::join(&arena, slot(63));
        let lease = guest.lease();
        assert_eq!((lease.address, lease.router, lease.dns), (ip("172.16.252.2"), None, None));
        assert!(!guest.reaches(PEER, 80));
        assert!(!guest.reaches_udp(guest.gateway(), 53));
        is_kept_in(&arena, &guest);
        arena.on_host(network.remove(slot(63))).unwrap();
    }
}

#[test]
fn a_guest_can_neither_use_another_address_nor_ipv6() {
    let Some(arena) = Arena::new(Way::Host) else { return };
    let network = arena.network(NetworkMode::Open);
    arena.on_host(network.build(slot(3), Generation(1))).unwrap();
    let guest = Guest::join(&arena, slot(3));
    guest.lease();
    arena.open_ipv6("vm3");
    guest.run("ip -6 addr add fd00:3::2/64 dev eth0 nodad");
    guest.run("ip -6 route add default via fd00:3::1");
    guest.run("ip addr add 172.16.16.2/32 dev eth0");
    guest.run("ip addr add 192.168.7.7/32 dev eth0");
    let tries = |guest: &Guest| {
        let spoofed = ["172.16.16.2", "192.168.7.7"].map(|from| guest.sends_from(ip(from), PEER));
        (guest.reaches_ipv6("fd00:99::2"), guest.reaches_ipv6("fd00:3::1"), spoofed)
    };
    assert_eq!(tries(&guest), (false, false, [false, false]));
    // Control: without the table each of these arrives.
    arena.host_run(&format!("nft flush table inet nixbox_vm3_{}", arena.workspace));
    assert_eq!(tries(&guest), (true, true, [true, true]));

    arena.on_host(network.build(slot(3), Generation(1))).unwrap();
    assert!(guest.reaches(PEER, 80));
    guest.run("ip link set eth0 address 02:00:00:00:00:77");
    assert!(!guest.reaches(PEER, 80), "with another MAC");
    guest.run("ip link set eth0 address 02:00:00:00:00:04");
    guest.run("ip route replace default via 172.16.12.1");
    assert!(guest.reaches(PEER, 80));
    arena.on_host(network.remove(slot(3))).unwrap();
}

#[test]
fn guests_do_not_reach_each_other() {
    let Some(arena) = Arena::new(Way::Host) else { return };
    let one = arena.network(NetworkMode::Open);
    let other = arena.network_of(arena.neighbour, NetworkMode::Open);
    arena.on_host(one.build(slot(1), Generation(1))).unwrap();
    arena.on_host(other.build(slot(2), Generation(1))).unwrap();
    let (first, second) = (Guest::join(&arena, slot(1)), Guest::join(&arena, slot(2)));
    first.lease();
    second.lease();
    assert!(first.reaches(PEER, 80) && second.reaches(PEER, 80));
    assert!(!first.reaches(second.address(), 22) && !second.reaches(first.address(), 22));
    assert!(!first.reaches_udp(second.gateway(), 53), "nor each other's DNS");

    // If two workspaces use one slot by mistake, neither takes over the network of the other.
    let error = arena.on_host(other.build(slot(1), Generation(9))).unwrap_err();
    assert!(chain(&error).contains("not of this workspace"), "{}", chain(&error));
    arena.on_host(other.remove(slot(1))).unwrap();
    assert_eq!(arena.on_host(one.find(slot(1))).unwrap(), Presence::Whole);
    arena.on_host(other.remove(slot(2))).unwrap();
    assert!(first.reaches(PEER, 80));
    arena.on_host(one.remove(slot(1))).unwrap();
}

#[test]
fn a_removed_network_leaves_nothing() {
    for way in Way::ALL {
        let Some(arena) = Arena::new(way) else { return };
        for mode in [
            NetworkMode::Off.into(),
            filtered(&["allowed.test"], &[443]),
            filtered(&[], &[]),
            NetworkMode::Open.into(),
        ] {
            let network = arena.network(mode);
            let before = arena.state();
            assert_eq!(arena.on_host(network.find(slot(5))).unwrap(), Presence::Absent);
            arena.on_host(network.remove(slot(5))).unwrap();
            arena.on_host(network.build(slot(5), Generation(1))).unwrap();
            arena.on_host(network.build(slot(5), Generation(2))).unwrap();
            assert_eq!(arena.on_host(network.find(slot(5))).unwrap(), Presence::Whole);
            assert_ne!(arena.state(), before);
            arena.on_host(network.remove(slot(5))).unwrap();
            arena.on_host(network.remove(slot(5))).unwrap();
            assert_eq!(arena.on_host(network.find(slot(5))).unwrap(), Presence::Absent);
            assert_eq!(arena.state(), before);
        }
    }
}

/// A crash, or another program, can leave each of these states.
#[test]
fn every_partial_state_is_found_rebuilt_and_removed() {
    let Some(arena) = Arena::new(Way::Host) else { return };
    let network = arena.network(filtered(&["allowed.test"], &[80]));
    let before = arena.state();
    let table = format!("nixbox_vm4_{}", arena.workspace);
    let runtime = arena.runtime().display().to_string();
    let breakages = [
        "ip link delete vm4".to_owned(),
        "ip link set vm4 down".to_owned(),
        "ip addr flush dev vm4".to_owned(),
        "ip addr add 10.1.2.3/24 dev vm4".to_owned(),
        format!("nft delete table inet {table}"),
        format!("nft flush chain inet {table} forward"),
        format!("nft insert rule inet {table} forward accept"),
        format!("nft add chain inet {table} more"),
        format!("rm {runtime}/firewall.json"),
        format!("rm {runtime}/dnsmasq.conf"),
        format!("sh -c 'echo no-hosts >> {runtime}/dnsmasq.conf'"),
        "sysctl -qw net.ipv4.ip_forward=0".to_owned(),
    ];
    let run: Vec<Box<dyn Fn()>> = breakages
        .iter()
        .map(|command| Box::new(|| arena.host_run(command)) as Box<dyn Fn()>)
        .chain([Box::new(|| arena.kill_daemons()) as Box<dyn Fn()>])
        .collect();
    for (number, break_it) in run.iter().enumerate() {
        let name = breakages.get(number).map_or("kill dnsmasq", String::as_str);
        arena.on_host(network.build(slot(4), Generation(1))).unwrap();
        assert_eq!(arena.on_host(network.find(slot(4))).unwrap(), Presence::Whole, "before {name}");
        break_it();
        assert_eq!(arena.on_host(network.find(slot(4))).unwrap(), Presence::Partial, "{name}");
        arena.on_host(network.build(slot(4), Generation(2))).unwrap();
        assert_eq!(arena.on_host(network.find(slot(4))).unwrap(), Presence::Whole, "after {name}");
        let guest = Guest::join(&arena, slot(4));
        guest.lease();
        assert_eq!(guest.resolve("allowed.test"), (0, vec![PEER]), "{name}");
        assert!(guest.reaches(PEER, 80) && !guest.reaches(PEER_OTHER, 80), "{name}");
        drop(guest);
        break_it();
        arena.on_host(network.remove(slot(4))).unwrap();
        assert_eq!(arena.on_host(network.find(slot(4))).unwrap(), Presence::Absent, "{name}");
        assert_eq!(arena.state(), before, "{name}");
    }
}

/// A build is dropped at each place where it waits. What it leaves can be removed, and completed.
#[test]
fn a_build_that_is_interrupted_anywhere_can_be_removed_or_finished() {
    for way in Way::ALL {
        let Some(arena) = Arena::new(way) else { return };
        let network = arena.network(filtered(&["allowed.test"], &[80]));
        let before = arena.state();
        // Each process of an ordinary user's is found in /proc, which takes longer.
        let stride = if way == Way::User { 5 } else { 3 };
        let mut polls = 0;
        loop {
            polls += stride;
            let finished = arena
                .on_host(cut_off(network.build(slot(4), Generation(1)), polls))
                .transpose()
                .unwrap()
                .is_some();
            if polls % 2 == 0 {
                arena.on_host(network.build(slot(4), Generation(2))).unwrap();
                assert_eq!(arena.on_host(network.find(slot(4))).unwrap(), Presence::Whole, "after {polls}");
            }
            arena.on_host(network.remove(slot(4))).unwrap();
            assert_eq!(arena.state(), before, "after {polls}");
            assert_eq!(arena.on_host(network.find(slot(4))).unwrap(), Presence::Absent, "after {polls}");
            if finished {
                break;
            }
        }
        assert!(polls > 10, "it waits more often than that: {polls}");
    }
}

/// Polls the future that many times, and then drops it.
async fn cut_off<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let (mut future, mut left) = (Box::pin(future), polls);
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        std::task::Poll::Ready(value) => std::task::Poll::Ready(Some(value)),
        std::task::Poll::Pending => {
            left -= 1;
            if left == 0 { std::task::Poll::Ready(None) } else { std::task::Poll::Pending }
        }
    })
    .await
}

#[test]
fn a_network_of_another_mode_or_user_is_partial_until_it_is_built() {
    for way in Way::ALL {
        let Some(arena) = Arena::new(way) else { return };
        let open = arena.network(NetworkMode::Open);
        arena.on_host(open.build(slot(4), Generation(1))).unwrap();
        for mode in [
            filtered(&["allowed.test"], &[80]),
            filtered(&["allowed.test"], &[81]),
            NetworkMode::Off.into(),
            NetworkMode::Open.into(),
        ] {
            let network = arena.network(mode);
            assert_eq!(arena.on_host(network.find(slot(4))).unwrap(), Presence::Partial);
            arena.on_host(network.build(slot(4), Generation(2))).unwrap();
            assert_eq!(arena.on_host(network.find(slot(4))).unwrap(), Presence::Whole);
        }
        let others = HostNetwork::new(NetworkSettings { owner: 4711, ..open.settings.clone() });
        assert_eq!(arena.on_host(others.find(slot(4))).unwrap(), Presence::Partial);
        arena.on_host(others.build(slot(4), Generation(3))).unwrap();
        assert_eq!(arena.on_host(others.find(slot(4))).unwrap(), Presence::Whole);
        let shown = arena.tap_output("ip -d link show vm4");
        assert!(
            shown.contains("user 4711") && shown.contains("vnet_hdr on") && shown.contains("persist on"),
            "{shown}"
        );
        assert!(shown.contains(&format!("alias nixbox {} 3", arena.workspace)), "{shown}");
        arena.on_host(others.remove(slot(4))).unwrap();
    }
}

#[test]
fn a_device_without_the_mark_is_refused_and_untouched() {
    let Some(arena) = Arena::new(Way::Host) else { return };
    let network = arena.network(NetworkMode::Open);
    let foreign = [
        "ip tuntap add dev vm6 mode tap",
        "ip link add vm6 type bridge",
        "sh -c 'ip tuntap add dev vm6 mode tap && ip link set vm6 alias nixbox'",
    ];
    for make in foreign {
        arena.host_run(make);
        let before = arena.state();
        let error = arena.on_host(network.build(slot(6), Generation(1))).unwrap_err();
        assert!(chain(&error).contains("ip link delete vm6"), "{}", chain(&error));
        assert_eq!(arena.on_host(network.find(slot(6))).unwrap(), Presence::Absent);
        arena.on_host(network.remove(slot(6))).unwrap();
        assert_eq!(arena.state(), before, "{make}");
        arena.host_run("ip link delete vm6");
    }
}

/// What a build that was dropped in the middle leaves while another process that is being started has its descriptors.
#[test]
fn a_device_that_ends_with_its_descriptors_is_awaited() {
    let Some(arena) = Arena::new(Way::Host) else { return };
    let network = arena.network(NetworkMode::Open);
    let before = arena.state();
    let built = arena.on_host(async {
        let tap = Tap::create("vm6").unwrap();
        let mut build = Box::pin(network.build(slot(6), Generation(1)));
        // A build that does not wait for the device is refused at once.
        let early = tokio::time::timeout(Duration::from_millis(100), &mut build).await;
        assert!(early.is_err(), "{early:?}");
        drop(tap);
        build.await
    });
    built.unwrap();
    assert_eq!(arena.on_host(network.find(slot(6))).unwrap(), Presence::Whole);
    arena.on_host(network.remove(slot(6))).unwrap();
    assert_eq!(arena.state(), before);
}

#[test]
fn rules_in_dockers_chain_let_the_tap_through() {
    let Some(arena) = Arena::new(Way::Host) else { return };
    arena.host_run("nft add table ip filter");
    arena.host_run("nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }'");
    arena.host_run("nft add chain ip filter DOCKER-USER");
    arena.host_run("nft add rule ip filter FORWARD jump DOCKER-USER");
    arena.host_run("nft add rule ip filter DOCKER-USER ip saddr 10.0.0.0/8 counter return");
    arena.host_run("ip link add docker0 type bridge");
    arena.host_run("ip addr add 172.17.0.1/16 dev docker0");
    let before = arena.state();
    let network = arena.network(NetworkMode::Open);
    arena.on_host(network.build(slot(2), Generation(1))).unwrap();
    assert_eq!(arena.on_host(network.find(slot(2))).unwrap(), Presence::Whole);
    let guest = Guest::join(&arena, slot(2));
    guest.lease();
    assert!(guest.reaches(PEER, 80));
    let rules = arena.host_output("nft list chain ip filter DOCKER-USER");
    assert_eq!(rules.matches("comment \"nixbox").count(), 4, "{rules}");

    arena.host_run("nft flush chain ip filter DOCKER-USER");
    assert!(!guest.reaches(PEER, 80), "control: Docker drops");
    assert_eq!(arena.on_host(network.find(slot(2))).unwrap(), Presence::Partial);
    arena.host_run("nft add rule ip filter DOCKER-USER ip saddr 10.0.0.0/8 counter return");
    arena.on_host(network.build(slot(2), Generation(1))).unwrap();
    assert!(guest.reaches(PEER, 80));
    drop(guest);

    // Rules in Docker's chain are found and removed, even if nothing else is left.
    arena.host_run(&format!("nft delete table inet nixbox_vm2_{}", arena.workspace));
    assert_eq!(arena.on_host(network.find(slot(2))).unwrap(), Presence::Partial);
    arena.on_host(network.remove(slot(2))).unwrap();
    assert_eq!(arena.state(), before);
}

#[test]
fn a_user_with_three_capabilities_can_build_and_remove() {
    let Some(arena) = Arena::new(Way::Host) else { return };
    let before = arena.state();
    std::os::unix::fs::chown(arena.runtime(), Some(4711), Some(4711)).unwrap();
    let network = HostNetwork::new(NetworkSettings {
        owner: 4711,
        ..arena.network(filtered(&["allowed.test"], &[80])).settings
    });
    arena.on_host_as(4711, network.build(slot(3), Generation(1))).unwrap();
    assert_eq!(arena.on_host_as(4711, network.find(slot(3))).unwrap(), Presence::Whole);
    let guest = Guest::join(&arena, slot(3));
    assert_eq!(guest.lease().address, ip("172.16.12.2"));
    assert_eq!(guest.resolve("allowed.test"), (0, vec![PEER]));
    assert!(guest.reaches(PEER, 80) && !guest.reaches(PEER_OTHER, 80));
    drop(guest);
    arena.on_host_as(4711, network.remove(slot(3))).unwrap();
    assert_eq!(arena.on_host_as(4711, network.find(slot(3))).unwrap(), Presence::Absent);
    assert_eq!(arena.state(), before);
}

#[test]
fn a_runtime_directory_that_others_write_to_is_refused() {
    for way in Way::ALL {
        let Some(arena) = Arena::new(way) else { return };
        use std::os::unix::fs::PermissionsExt;
        let (network, before) = (arena.network(NetworkMode::Open), arena.state());
        for mode in [0o775, 0o757] {
            std::fs::set_permissions(arena.runtime(), std::fs::Permissions::from_mode(mode)).unwrap();
            let error = arena.on_host(network.build(slot(1), Generation(1))).unwrap_err();
            assert!(chain(&error).contains("nobody else may write"), "{}", chain(&error));
        }
        assert_eq!(arena.state(), before);
    }
}

#[test]
fn links_in_the_runtime_directory_are_not_followed() {
    for way in Way::ALL {
        let Some(arena) = Arena::new(way) else { return };
        let victim = arena.runtime().with_extension("victim");
        std::fs::write(&victim, "precious").unwrap();
        for name in dhcp::FILES.iter().chain([&LISTING]) {
            std::os::unix::fs::symlink(&victim, arena.runtime().join(name)).unwrap();
        }
        let network = arena.network(NetworkMode::Open);
        arena.on_host(network.build(slot(1), Generation(1))).unwrap();
        arena.on_host(network.remove(slot(1))).unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
        std::fs::remove_file(victim).unwrap();
    }
}

#[test]
fn the_stderr_of_a_failing_program_is_in_the_error() {
    let Some(arena) = Arena::new(Way::Host) else { return };
    let failed = arena
        .on_host(async {
            let nft = nft::Nft {
                tables: tables::Tables::here().unwrap(),
                inside: None,
                mark: NetworkPlan::new(slot(0), arena.workspace, 0).firewall_mark(),
            };
            let mut rules = firewall::Rules::new("nonsense", "vm0");
            rules.rule(vec![]);
            nft.change(&rules.batch).await
        })
        .unwrap_err();
    assert!(chain(&failed).contains("No such file"), "{}", chain(&failed));
}
