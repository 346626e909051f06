//! The configuration of dnsmasq: one lease for one MAC, and DNS as far as the mode allows.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use super::firewall::ALLOWED_SET;
use super::plan::NetworkPlan;
use super::refused_names::REFUSER;
use crate::host::confinement::{Confinement, FileAccess};
use crate::world::{NetworkMode, NetworkPolicy};

/// Where systemd-resolved keeps the servers behind its stub at 127.0.0.53.
pub(super) const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// Files in the runtime directory, which are removed with the network.
pub(super) const CONFIGURATION: &str = "dnsmasq.conf";
const LEASES: &str = "dnsmasq.leases";
const LOG: &str = "dnsmasq.log";
/// The directory in which dnsmasq writes its pid when it starts. It is there only then.
pub(super) const STARTED: &str = "dnsmasq.started";
pub(super) const PID: &str = "pid";
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

/// Whether the stub of systemd-resolved at 127.0.0.53 is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stub {
    /// It is asked, and decides which server is asked for which name.
    Asked,
    /// The servers behind it are asked, where they are known.
    PassedBy,
}

/// The resolv.conf whose servers answer for this host: `etc`, or `resolved` if `etc` names only the stub of systemd and
/// `resolved` has the servers behind it. A host without servers has no DNS to offer, and can start a VM nevertheless.
/// Servers behind a stub that is asked follow it, for the case that it does not answer.
pub(super) fn upstreams(etc: &Path, resolved: &Path, stub: Stub) -> (PathBuf, Vec<String>) {
    let read = |path: &Path| name_servers(&std::fs::read_to_string(path).unwrap_or_default());
    let mut servers = read(etc);
    if servers.iter().all(|server| server == "127.0.0.53" || server == "127.0.0.54") {
        let behind = read(resolved);
        if stub == Stub::Asked {
            servers.extend(behind);
        } else if !behind.is_empty() {
            return (resolved.to_owned(), behind);
        }
    }
    (etc.to_owned(), servers)
}

/// Whom dnsmasq asks.
pub(super) enum Upstreams {
    /// The servers of a resolv.conf.
    Servers(PathBuf, Vec<String>),
    /// The keeper, at this address in the namespace of dnsmasq.
    Keeper((Ipv4Addr, u16)),
}

impl Upstreams {
    /// The lines of dnsmasq's configuration that say which server dnsmasq asks for a name. If the file resolv.conf changes,
    /// dnsmasq reads the file again, so that a VM can outlive the Wi-Fi network in which it was started.
    fn for_all(&self) -> String {
        match self {
            Self::Servers(path, _) => format!("resolv-file={}\n", path.display()),
            Self::Keeper((address, port)) => format!("no-resolv\nserver={address}#{port}\n"),
        }
    }

    fn servers(&self) -> Vec<String> {
        match self {
            Self::Servers(_, servers) => servers.clone(),
            Self::Keeper((address, port)) => vec![format!("{address}#{port}")],
        }
    }
}

/// What begins the line of the configuration with the MTU of the guest's device.
const MTU_OPTION: &str = "dhcp-option=option:mtu,";

/// The MTU in a configuration that was written before.
pub(super) fn configured_mtu(configuration: &str) -> Option<u32> {
    configuration.lines().find_map(|line| line.strip_prefix(MTU_OPTION)?.parse().ok())
}

/// The user that dnsmasq runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DaemonUser {
    /// `nobody`, where root starts it. A dnsmasq that an ordinary user starts with capabilities stays that user.
    Nobody,
    /// The user who starts it: a user namespace may have no other user, and dnsmasq must not look for one.
    Own,
}

impl DaemonUser {
    fn lines(self) -> &'static str {
        match self {
            Self::Nobody => "user=nobody\n",
            Self::Own => "user=\ngroup=\n",
        }
    }
}

/// The whole configuration. dnsmasq reads no other: a file on its command line replaces /etc/dnsmasq.conf.
pub(super) fn configuration(
    plan: &NetworkPlan,
    policy: &NetworkPolicy,
    upstreams: &Upstreams,
    runtime: &Path,
    user: DaemonUser,
) -> String {
    let NetworkPlan { tap, gateway, guest, mac, mtu, .. } = plan;
    let (leases, log) = (runtime.join(LEASES), runtime.join(LOG));
    let mut text = format!(
        "# Written by nixbox; made anew with every start of the network.\n\
         interface={tap}\n\
         except-interface=lo\n\
         bind-dynamic\n\
         no-hosts\n\
         pid-file={pid}\n\
         {user}\
         log-facility={log}\n\
         quiet-dhcp\n\
         dhcp-authoritative\n\
         no-ping\n\
         dhcp-ignore-names\n\
         {MTU_OPTION}{mtu}\n\
         dhcp-range={guest},static,255.255.255.252,infinite\n\
         dhcp-host={mac},{guest},infinite\n\
         dhcp-leasefile={leases}\n",
        leases = leases.display(),
        log = log.display(),
        pid = runtime.join(STARTED).join(PID).display(),
        user = user.lines(),
    );
    match policy.mode {
        // The guest gets neither a router nor DNS, so that it does not wait for them.
        NetworkMode::Off => text.push_str("port=0\ndhcp-option=3\ndhcp-option=6\n"),
        NetworkMode::Open => {
            text.push_str(&format!("dhcp-option=6,{gateway}\n{}", upstreams.for_all()));
        }
        // dnsmasq refuses all names that no `server` line covers, unless there is a keeper, which refuses them. (`server=/domain/#` with a resolv-file would follow
        // changes of the file, but then dnsmasq 2.90 passes every name on.) Without a cache, dnsmasq adds the addresses
        // of every answer to the set before the guest gets the answer.
        NetworkMode::Filtered => {
            text.push_str(&format!("dhcp-option=6,{gateway}\nno-resolv\ncache-size=0\n"));
            // The keeper refuses these answers by itself, and knows the networks that are allowed. dnsmasq knows private
            // addresses only as a whole.
            if matches!(upstreams, Upstreams::Servers(..)) && policy.host_networks.is_empty() {
                text.push_str("stop-dns-rebind\n");
            }
            if let Upstreams::Keeper(_) = upstreams {
                let (address, port) = REFUSER;
                text.push_str(&format!("server={address}#{port}\n"));
            }
            for domain in &policy.domains {
                for server in upstreams.servers() {
                    // Writing to a String cannot fail.
                    let _written = writeln!(text, "server=/{domain}/{server}");
                }
                let _written = writeln!(text, "nftset=/{domain}/4#inet#{}#{ALLOWED_SET}", plan.table);
            }
        }
    }
    text
}

/// What dnsmasq can open: the files in the runtime directory that are its own, /etc for the names of users, and where
/// dnsmasq reads the file with the name servers itself, the directory of that file, because another file may take its place
/// there. As dnsmasq runs as nobody, the modes of files keep it from most of what is there.
pub(super) fn confinement(runtime: &Path, upstreams: &Upstreams) -> Confinement {
    let confinement = Confinement::of_a_program()
        .may_use_tcp()
        .may(FileAccess::Read, "/etc")
        .may(FileAccess::Read, "/proc")
        .may(FileAccess::Read, runtime.join(CONFIGURATION))
        .may(FileAccess::OwnFile, runtime.join(LEASES))
        .may(FileAccess::OwnFile, runtime.join(LOG))
        .may(FileAccess::Make, runtime.join(STARTED));
    match upstreams {
        Upstreams::Keeper(_) => confinement,
        Upstreams::Servers(resolv_conf, _) => {
            let real = std::fs::canonicalize(resolv_conf).unwrap_or_else(|_| resolv_conf.clone());
            confinement.may(FileAccess::Read, real.parent().unwrap_or(&real))
        }
    }
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
            upstreams(&etc, &resolved, Stub::PassedBy),
            (etc.clone(), vec!["127.0.0.53".to_owned()]),
            "the stub is all there is"
        );
        std::fs::write(&resolved, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(
            upstreams(&etc, &resolved, Stub::PassedBy),
            (resolved.clone(), vec!["192.0.2.1".to_owned()])
        );
        assert_eq!(upstreams(&etc, &resolved, Stub::Asked).1, ["127.0.0.53", "192.0.2.1"]);
        std::fs::write(&etc, "nameserver 127.0.0.1\n").unwrap();
        assert_eq!(upstreams(&etc, &resolved, Stub::Asked).1, ["127.0.0.1"]);
        assert_eq!(
            upstreams(&etc, &resolved, Stub::PassedBy).1,
            ["127.0.0.1"],
            "a resolver of the host itself is not a stub"
        );
        std::fs::remove_file(&etc).unwrap();
        std::fs::remove_file(&resolved).unwrap();
        assert_eq!(upstreams(&etc, &resolved, Stub::PassedBy), (etc, vec![]));
    }

    #[test]
    fn dnsmasq_may_open_the_file_that_takes_the_place_of_its_servers() {
        let directory = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(directory.path()).unwrap();
        std::fs::create_dir(root.join("resolve")).unwrap();
        std::fs::write(root.join("resolve/stub.conf"), "").unwrap();
        std::os::unix::fs::symlink("resolve/stub.conf", root.join("resolv.conf")).unwrap();
        let servers = Upstreams::Servers(root.join("resolv.conf"), vec![]);
        let runtime = root.join("runtime");
        let own = confinement(&runtime, &Upstreams::Keeper((Ipv4Addr::LOCALHOST, 5300)));
        assert!(!own.allows(FileAccess::Read, &root.join("resolve")), "the keeper reads it");
        let confinement = confinement(&runtime, &servers);
        assert!(confinement.allows(FileAccess::Read, &root.join("resolve")));
        assert!(!confinement.allows(FileAccess::Read, &root));
        assert!(confinement.allows(FileAccess::Read, &root.join("runtime").join(CONFIGURATION)));
    }

    #[test]
    fn nftset_is_recognized_as_a_whole_option_only() {
        assert!(fills_sets("Dnsmasq version 2.90\nCompile time options: IPv6 ipset nftset auth\n"));
        assert!(!fills_sets("Dnsmasq version 2.90\nCompile time options: IPv6 ipset no-nftset auth\n"));
        assert!(!fills_sets("Dnsmasq version 2.86 nftset\nCompile time options: IPv6 ipset auth\n"));
        assert!(!fills_sets(""));
    }
}
