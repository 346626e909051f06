//! The configuration of dnsmasq: one lease for one MAC, and DNS as far as the mode allows.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::firewall::ALLOWED_SET;
use super::plan::NetworkPlan;
use crate::world::{NetworkMode, NetworkPolicy};

/// Where systemd-resolved keeps the servers behind its stub at 127.0.0.53.
pub(super) const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// Files in the runtime directory, which are removed with the network.
pub(super) const CONFIGURATION: &str = "dnsmasq.conf";
const LEASES: &str = "dnsmasq.leases";
const LOG: &str = "dnsmasq.log";
pub(super) const FILES: [&str; 3] = [CONFIGURATION, LEASES, LOG];

/// The name servers in a resolv.conf, as resolv.conf(5) defines them, without texts that are not addresses. A scope such
/// as `%eth0` is kept. A line whose scope cannot be the name of a device is left out.
fn name_servers(text: &str) -> Vec<String> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        let (bare, scope) = address.split_once('%').unwrap_or((address, "lo"));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let good = bare.parse::<IpAddr>().is_ok() && !scope.is_empty() && scope.bytes().all(plain);
        good.then(|| address.to_owned())
    };
    text.lines().filter_map(server).collect()
}

/// The resolv.conf whose servers answer for this host: `etc`, or `resolved` if `etc` names only the stub of systemd and
/// `resolved` has the servers behind it. A host without servers has no DNS to offer, and can start a VM nevertheless.
pub(super) fn upstreams(etc: &Path, resolved: &Path) -> (PathBuf, Vec<String>) {
    let read = |path: &Path| name_servers(&std::fs::read_to_string(path).unwrap_or_default());
    let servers = read(etc);
    if servers.iter().all(|server| server == "127.0.0.53" || server == "127.0.0.54") {
        let behind = read(resolved);
        if !behind.is_empty() {
            return (resolved.to_owned(), behind);
        }
    }
    (etc.to_owned(), servers)
}

/// The whole configuration. dnsmasq reads no other: a file on its command line replaces /etc/dnsmasq.conf.
pub(super) fn configuration(
    plan: &NetworkPlan,
    policy: &NetworkPolicy,
    upstreams: &(PathBuf, Vec<String>),
    runtime: &Path,
) -> String {
    let NetworkPlan { tap, gateway, guest, mac, .. } = plan;
    let (leases, log) = (runtime.join(LEASES), runtime.join(LOG));
    let mut text = format!(
        "# Written by nixbox; made anew with every start of the network.\n\
         interface={tap}\n\
         except-interface=lo\n\
         bind-dynamic\n\
         no-hosts\n\
         pid-file=\n\
         user=nobody\n\
         log-facility={log}\n\
         quiet-dhcp\n\
         dhcp-authoritative\n\
         no-ping\n\
         dhcp-ignore-names\n\
         dhcp-range={guest},static,255.255.255.252,infinite\n\
         dhcp-host={mac},{guest},infinite\n\
         dhcp-leasefile={leases}\n",
        leases = leases.display(),
        log = log.display(),
    );
    match policy.mode {
        // The guest gets neither a router nor DNS, so that it does not wait for them.
        NetworkMode::Off => text.push_str("port=0\ndhcp-option=3\ndhcp-option=6\n"),
        // dnsmasq reads the file again when it changes: a VM may outlive the Wi-Fi that it was started in.
        NetworkMode::Open => {
            text.push_str(&format!("dhcp-option=6,{gateway}\nresolv-file={}\n", upstreams.0.display()));
        }
        // dnsmasq refuses all names that no `server` line covers. (`server=/domain/#` with a resolv-file would follow
        // changes of the file, but then dnsmasq 2.90 passes every name on.) Without a cache, dnsmasq adds the addresses
        // of every answer to the set before the guest gets the answer.
        NetworkMode::Filtered => {
            text.push_str(&format!("dhcp-option=6,{gateway}\nno-resolv\ncache-size=0\n"));
            for domain in &policy.domains {
                for server in &upstreams.1 {
                    // Writing to a String cannot fail.
                    let _written = writeln!(text, "server=/{domain}/{server}");
                }
                let _written = writeln!(text, "nftset=/{domain}/4#inet#{}#{ALLOWED_SET}", plan.table);
            }
        }
    }
    text
}

/// Whether a dnsmasq that prints this for `--version` can put addresses into nftables sets.
pub(super) fn fills_sets(version: &str) -> bool {
    let options = version.lines().find_map(|line| line.strip_prefix("Compile time options:"));
    options.is_some_and(|options| options.split_ascii_whitespace().any(|option| option == "nftset"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_are_taken_from_a_resolv_conf() {
        let text = "# nameserver 9.9.9.9\nsearch a b\nnameserver 10.0.0.1 # office\nnameserver\nnameserver evil/#\n\
                    nameserver fe80::1%eth0\nnameserver fe80::1%a/b\nnameserver 1.1.1.1/8\n\tnameserver 2001:db8::1\n";
        assert_eq!(name_servers(text), ["10.0.0.1", "fe80::1%eth0", "2001:db8::1"]);
    }

    #[test]
    fn the_servers_behind_the_stub_are_used_if_they_are_known() {
        let directory = tempfile::tempdir().unwrap();
        let (etc, resolved) = (directory.path().join("etc"), directory.path().join("resolved"));
        let stub = "nameserver 127.0.0.53\noptions edns0\n";
        std::fs::write(&etc, stub).unwrap();
        assert_eq!(
            upstreams(&etc, &resolved),
            (etc.clone(), vec!["127.0.0.53".to_owned()]),
            "the stub is all there is"
        );
        std::fs::write(&resolved, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(upstreams(&etc, &resolved), (resolved.clone(), vec!["192.0.2.1".to_owned()]));
        std::fs::write(&etc, "nameserver 127.0.0.1\n").unwrap();
        assert_eq!(
            upstreams(&etc, &resolved).1,
            ["127.0.0.1"],
            "a resolver of the host itself is not a stub"
        );
        std::fs::remove_file(&etc).unwrap();
        std::fs::remove_file(&resolved).unwrap();
        assert_eq!(upstreams(&etc, &resolved), (etc, vec![]));
    }

    #[test]
    fn nftset_is_recognized_as_a_whole_option_only() {
        assert!(fills_sets("Dnsmasq version 2.90\nCompile time options: IPv6 ipset nftset auth\n"));
        assert!(!fills_sets("Dnsmasq version 2.90\nCompile time options: IPv6 ipset no-nftset auth\n"));
        assert!(!fills_sets("Dnsmasq version 2.86 nftset\nCompile time options: IPv6 ipset auth\n"));
        assert!(!fills_sets(""));
    }
}
