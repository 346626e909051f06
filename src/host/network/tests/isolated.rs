//! Networks in namespaces of their own: what the host does to them and they to the host.

use super::arena::{Arena, Guest, PEER, PEER_OTHER, Way, ip};
use super::*;
use crate::host::sudo;

const SLOT: Slot = Slot::OWN_NETWORK;

fn presence(arena: &Arena, network: &HostNetwork) -> Presence {
    arena.on_host(network.find(SLOT)).unwrap()
}

/// The networks of two VMs whose guests have one address, side by side.
#[test]
fn guests_with_the_same_address_run_side_by_side_and_do_not_reach_each_other() {
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    let before = arena.state();
    let one = arena.network(NetworkMode::Open);
    let other = arena.network_of(arena.neighbour, NetworkMode::Open);
    arena.on_host(one.build(slot(3), Generation(1))).unwrap();
    arena.on_host(other.build(slot(3), Generation(1))).unwrap();
    let first = Guest::join(&arena, slot(3));
    let second = Guest::join_of(&arena, arena.neighbour, slot(3));
    assert_eq!(first.lease().address, ip("172.16.12.2"));
    assert_eq!(second.lease().address, ip("172.16.12.2"));
    assert!(first.reaches(PEER, 80) && second.reaches(PEER, 80));
    // Neither the addresses of the other's uplink, nor those of its own on the host.
    for address in ["203.0.113.1", "203.0.113.2", "203.0.113.5", "203.0.113.6"] {
        for port in [22, 80, 53] {
            assert!(
                !first.reaches(ip(address), port) && !second.reaches(ip(address), port),
                "{address}:{port}"
            );
        }
    }
    drop((first, second));
    arena.on_host(other.remove(slot(3))).unwrap();
    assert_eq!(arena.on_host(one.find(slot(3))).unwrap(), Presence::Whole);
    arena.on_host(one.remove(slot(3))).unwrap();
    assert_eq!(arena.state(), before);
}

/// What the guest must not reach does not depend on the host's tables.
#[test]
fn a_flush_of_the_hosts_tables_opens_nothing() {
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    let policies: [NetworkPolicy; 3] =
        [NetworkMode::Off.into(), filtered(&["allowed.test"], &[80]), NetworkMode::Open.into()];
    for policy in policies {
        let network = arena.network(policy.clone());
        arena.on_host(network.build(SLOT, Generation(1))).unwrap();
        let guest = Guest::join(&arena, SLOT);
        guest.lease();
        arena.host_run("nft flush ruleset");
        arena.host_run("sysctl -qw net.ipv4.ip_forward=1");
        is_kept_in(&arena, &guest);
        assert!(!guest.reaches(ip("203.0.113.1"), 80), "the host by the address of the uplink");
        match policy.mode {
            NetworkMode::Off => {
                assert!(!guest.reaches(PEER, 80) && !guest.reaches_udp(PEER, 443));
                assert_eq!(arena.sender_seen(), "", "nothing arrives outside");
                assert_eq!(presence(&arena, &network), Presence::Whole, "the host has no part of it");
            }
            _ => {
                // Without the masquerade of the host no answer comes back. The next build repairs that.
                assert_eq!(presence(&arena, &network), Presence::Partial);
                arena.on_host(network.build(SLOT, Generation(1))).unwrap();
                assert_eq!(guest.resolve("allowed.test"), (0, vec![PEER]));
                assert!(guest.reaches(PEER, 80));
                is_kept_in(&arena, &guest);
            }
        }
        drop(guest);
        arena.on_host(network.remove(SLOT)).unwrap();
    }
}

/// A host whose LAN, gateway, VPN and neighbours have addresses that nixbox could want.
#[test]
fn an_uplink_has_no_address_of_the_hosts_networks() {
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    let network = arena.network(NetworkMode::Open);
    arena.host_run("ip addr add 172.16.0.2/12 dev up0");
    arena.host_run("ip addr add 203.0.113.1/30 dev up0");
    arena.host_run("ip route add 203.0.113.4/32 via 10.99.0.2 table 77");
    arena.host_run("ip route add 0.0.0.0/1 via 10.99.0.2");
    arena.host_run("ip neigh add 203.0.113.9 lladdr 02:00:00:00:99:01 dev up0");
    arena.on_host(network.build(slot(0), Generation(1))).unwrap();
    let device = arena.host_output("ip -o -4 addr show nixbox-3");
    assert!(device.contains(" 203.0.113.13/30 "), "{device}");
    let guest = Guest::join(&arena, slot(0));
    guest.lease();
    assert!(guest.reaches(PEER, 80));
    assert!(arena.host_output("ip route get 172.16.0.1").contains("dev up0"), "the LAN is as it was");

    // A VPN comes that has the addresses, while nobody follows. The uplink makes room for it.
    arena.kill_follower();
    arena.host_run("ip route add 203.0.113.14/31 via 10.99.0.2");
    let faults = arena.on_host(network.faults(slot(0))).unwrap();
    assert_eq!(faults, [NetworkFault::Overlap, NetworkFault::Follower]);
    arena.on_host(network.build(slot(0), Generation(1))).unwrap();
    assert_eq!(arena.on_host(network.find(slot(0))).unwrap(), Presence::Whole);
    let device = arena.host_output("ip -o -4 addr show nixbox-4");
    assert!(device.contains(" 203.0.113.17/30 "), "{device}");
    assert!(guest.reaches(PEER, 80), "with the address that it had");
    drop(guest);
    arena.on_host(network.remove(slot(0))).unwrap();
}

#[test]
fn a_pool_without_a_free_network_is_refused_and_nothing_is_left() {
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    let (open, before) = (arena.network(NetworkMode::Open), arena.state());
    let pool: UplinkPool = "10.99.0.0/24".parse().unwrap();
    let policy = NetworkPolicy { uplink: pool, ..NetworkMode::Open.into() };
    let network = HostNetwork::new(NetworkSettings { policy, ..open.settings });
    let refused = arena.on_host(network.build(SLOT, Generation(1))).unwrap_err();
    assert!(chain(&refused).contains("no network of the pool 10.99.0.0/24 is free"), "{}", chain(&refused));
    assert!(chain(&refused).contains("network.uplink"), "{}", chain(&refused));
    arena.on_host(network.remove(SLOT)).unwrap();
    assert_eq!(arena.state(), before);
}

#[test]
fn a_namespace_without_the_mark_is_refused_and_untouched() {
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    let network = arena.network(NetworkMode::Open);
    let path = arena.namespace(arena.workspace).path().to_owned();
    std::fs::create_dir(arena.names()).unwrap();
    let spot = path.display();
    let named = |alias: &str| {
        let set = format!("ip link set lo up {alias}; touch {spot}; mount --bind /proc/self/ns/net {spot}");
        arena.host_run(&format!("unshare --net sh -c '{set}'"));
    };
    for alias in ["", "alias nixbox", &format!("alias \"nixbox {} network\"", arena.neighbour)] {
        named(alias);
        let before = arena.state();
        let refused = arena.on_host(network.build(SLOT, Generation(1))).unwrap_err();
        assert!(chain(&refused).contains("not of this workspace"), "{}", chain(&refused));
        assert_eq!(presence(&arena, &network), Presence::Absent);
        arena.on_host(network.remove(SLOT)).unwrap();
        assert_eq!(arena.state(), before, "{alias}");
        arena.host_run(&format!("umount {spot}"));
        std::fs::remove_file(&path).unwrap();
    }
    std::fs::write(&path, "precious").unwrap();
    let refused = arena.on_host(network.build(SLOT, Generation(1))).unwrap_err();
    assert!(chain(&refused).contains("it is no namespace"), "{}", chain(&refused));
    arena.on_host(network.remove(SLOT)).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

/// A crash, or another program, can leave each of these states.
#[test]
fn every_partial_state_of_an_isolated_network_is_found_rebuilt_and_removed() {
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    let network = arena.network(filtered(&["allowed.test"], &[80]));
    let before = arena.state();
    let path = arena.namespace(arena.workspace).path().display().to_string();
    let inside = format!("nsenter --net={path} ");
    let runtime = arena.runtime().display().to_string();
    let (table, outer) =
        (format!("nixbox_vm64_{}", arena.workspace), format!("nixbox_uplink_{}", arena.workspace));
    let breakages = [
        "ip link delete nixbox-0".to_owned(),
        "ip link set nixbox-0 down".to_owned(),
        "ip addr flush dev nixbox-0".to_owned(),
        format!("nft delete table inet {outer}"),
        format!("nft flush chain inet {outer} postrouting"),
        "nft flush ruleset".to_owned(),
        format!("{inside}ip link delete vm64"),
        format!("{inside}ip route delete default"),
        format!("{inside}ip addr flush dev uplink0"),
        format!("{inside}nft delete table inet {table}"),
        format!("{inside}nft flush ruleset"),
        format!("rm {runtime}/firewall.json"),
        format!("rm {runtime}/keeper.sock"),
        "sysctl -qw net.ipv4.ip_forward=0".to_owned(),
        // The name is lost, and then the processes in the namespace are the only trace of it there.
        format!("sh -c 'umount -l {path} && rm {path}'"),
        format!("umount -l {path}"),
    ];
    let run: Vec<Box<dyn Fn()>> = breakages
        .iter()
        .map(|command| Box::new(|| arena.host_run(command)) as Box<dyn Fn()>)
        .chain([
            Box::new(|| arena.kill_daemons()) as Box<dyn Fn()>,
            Box::new(|| arena.kill_keeper()) as Box<dyn Fn()>,
        ])
        .collect();
    for (number, break_it) in run.iter().enumerate() {
        let name = breakages.get(number).map_or("kill a daemon", String::as_str);
        arena.on_host(network.build(SLOT, Generation(1))).unwrap();
        assert_eq!(presence(&arena, &network), Presence::Whole, "before {name}");
        // The follower would make an uplink anew before anyone has seen that it is gone.
        arena.kill_follower();
        break_it();
        assert_eq!(presence(&arena, &network), Presence::Partial, "{name}");
        arena.on_host(network.build(SLOT, Generation(2))).unwrap();
        assert_eq!(presence(&arena, &network), Presence::Whole, "after {name}");
        let guest = Guest::join(&arena, SLOT);
        guest.lease();
        assert_eq!(guest.resolve("allowed.test"), (0, vec![PEER]), "{name}");
        assert!(guest.reaches(PEER, 80) && !guest.reaches(PEER_OTHER, 80), "{name}");
        assert!(arena.nixbox_reaches(guest.address(), 22), "{name}");
        drop(guest);
        arena.kill_follower();
        break_it();
        arena.on_host(network.remove(SLOT)).unwrap();
        assert_eq!(presence(&arena, &network), Presence::Absent, "{name}");
        assert_eq!(arena.state(), before, "{name}");
    }
}

#[test]
fn names_are_asked_of_the_resolvers_of_the_moment_from_the_hosts_network() {
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    let network = arena.network(NetworkMode::Open);
    arena.set_resolvers("");
    arena.on_host(network.build(SLOT, Generation(1))).unwrap();
    let guest = Guest::join(&arena, SLOT);
    guest.lease();
    const SERVFAIL: u8 = 2;
    assert_eq!(guest.resolve("www.anything.test"), (SERVFAIL, vec![]), "the host has no resolver");
    // A server that only listens on the host's loopback address, as the stub of systemd-resolved does, after one that does
    // not answer.
    arena.answer_names_at("127.0.0.53:53");
    arena.set_resolvers("nameserver 127.0.0.99\nnameserver 127.0.0.53\n");
    assert_eq!(guest.resolve("www.anything.test"), (0, vec![PEER_OTHER]));
    assert!(!guest.reaches_udp(ip("127.0.0.53"), 53), "the guest itself does not reach it");
    drop(guest);
    arena.on_host(network.remove(SLOT)).unwrap();
}

/// What a nixbox without any capability can do is ask the keeper.
#[test]
fn without_rights_and_keeper_the_guest_is_out_of_reach_and_the_error_says_so() {
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    let network = arena.network(NetworkMode::Off);
    arena.on_host(network.build(SLOT, Generation(1))).unwrap();
    let guest = Guest::join(&arena, SLOT);
    guest.lease();
    let connect = || {
        let (namespace, runtime) = (arena.namespace(arena.workspace), arena.runtime());
        let address = (guest.address(), 22).into();
        arena.on_host_without_rights(async move { namespace.connect(&runtime, address).await.map(drop) })
    };
    connect().unwrap();
    arena.kill_keeper();
    let refused = connect().unwrap_err();
    assert!(refused.to_string().contains("through sudo"), "{refused}");
    assert!(arena.nixbox_reaches(guest.address(), 22), "with rights, a child opens the socket");
    drop(guest);
    arena.on_host(network.remove(SLOT)).unwrap();
}

#[test]
fn a_user_through_sudo_gets_a_namespace_and_gives_no_daemon_the_right_to_enter_it() {
    let Some(arena) = Arena::new(Way::Namespace) else { return };
    // The host has the directory, which is root's.
    std::fs::create_dir(arena.names()).unwrap();
    let before = arena.state();
    std::os::unix::fs::chown(arena.runtime(), Some(4711), Some(4711)).unwrap();
    let network = HostNetwork::new(NetworkSettings {
        owner: 4711,
        ..arena.network(filtered(&["allowed.test"], &[80])).settings
    });
    arena.on_host_through_sudo(4711, network.build(SLOT, Generation(1))).unwrap();
    assert_eq!(arena.on_host_through_sudo(4711, network.find(SLOT)).unwrap(), Presence::Whole);
    let guest = Guest::join(&arena, SLOT);
    guest.lease();
    assert_eq!(guest.resolve("allowed.test"), (0, vec![PEER]));
    assert!(guest.reaches(PEER, 80) && !guest.reaches(PEER_OTHER, 80));
    let plan = network.plan(SLOT);
    let needed = sudo::NEEDED.bits();
    for (mark, allowed) in
        [(plan.keeper_mark(None), 0), (plan.dhcp_mark(None), needed), (plan.follower_mark(None), needed)]
    {
        let found = arena.on_host_through_sudo(4711, async { marked::find(&mark).unwrap() });
        let [daemon] = <[_; 1]>::try_from(found).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let permitted = status.lines().find_map(|line| line.strip_prefix("CapPrm:")).unwrap();
        let permitted = u64::from_str_radix(permitted.trim(), 16).unwrap();
        assert_eq!(permitted & !allowed, 0, "{mark}");
    }
    drop(guest);
    arena.on_host_through_sudo(4711, network.remove(SLOT)).unwrap();
    assert_eq!(arena.on_host_through_sudo(4711, network.find(SLOT)).unwrap(), Presence::Absent);
    assert_eq!(arena.state(), before);
}
