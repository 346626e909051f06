//! The values that are refused, each at its line and with the message that a person sees.

use super::*;

/// The error that `text` is refused with. The text stands below the one required key, so the first line of the text is
/// line 2.
fn refused(text: &str) -> String {
    complaint(&with_kernel(text)).strip_prefix("config.toml:").expect("a place").to_owned()
}

#[test]
#[rustfmt::skip]
fn values_that_make_no_sense_are_refused_at_their_line() {
    for (text, expected) in [
        (
            r#"name = "a/b""#,
            r#"2:8: name is wrong: "a/b" cannot be a name: 1 to 64 of a-z A-Z 0-9 . _ -, beginning with a letter or a digit"#,
        ),
        (
            r#"name = "..""#,
            r#"2:8: name is wrong: ".." cannot be a name: 1 to 64 of a-z A-Z 0-9 . _ -, beginning with a letter or a digit"#,
        ),
        (
            r#"name = """#,
            r#"2:8: name is wrong: "" cannot be a name: 1 to 64 of a-z A-Z 0-9 . _ -, beginning with a letter or a digit"#,
        ),
        (
            concat!("name = \"a\"\n", "name = \"b\""),
            "3:1: duplicate key",
        ),
        (
            "name = ",
            "2:8: string values must be quoted, expected literal string",
        ),
        (
            r#"name = "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn""#,
            r#"2:8: name is wrong: "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn" cannot be a name: 1 to 64 of a-z A-Z 0-9 . _ -, beginning with a letter or a digit"#,
        ),
        (
            r#"vmm = "qemu""#,
            r#"2:7: vmm is wrong: "qemu" is not one of cloud-hypervisor, simulator, simulator-v51, simulator-v52, simulator-v53, simulator-v54"#,
        ),
        (
            "vm.vcpus = 255",
            "2:12: vm.vcpus: 255 is not from 0 to 254",
        ),
        (
            "vm.vcpus = -1",
            "2:12: vm.vcpus: -1 is not from 0 to 254",
        ),
        (
            r#"guest.ready-timeout = "110""#,
            r#"2:23: guest.ready-timeout is wrong: "110" is not a time: a whole number and one of s, min, h, as in "110s""#,
        ),
        (
            r#"guest.ready-timeout = "25h""#,
            r#"2:23: guest.ready-timeout is wrong: "25h" is not from 1s to 24h"#,
        ),
        (
            "guest.ready-timeout = 110",
            "2:23: guest.ready-timeout has to be of type string, and is of type integer",
        ),
        (
            r#"vm.memory = "17GiB""#,
            "2:13: vm.memory: 17GiB is more than this host has, which is 16GiB",
        ),
        (
            r#"vm.memory = "4G""#,
            r#"2:13: vm.memory is wrong: "4G" is not a size: a whole number and one of B, KiB, MiB, GiB, TiB, as in "4GiB""#,
        ),
        (
            r#"vm.memory = "-4GiB""#,
            r#"2:13: vm.memory is wrong: "-4GiB" is not a size: a whole number and one of B, KiB, MiB, GiB, TiB, as in "4GiB""#,
        ),
        (
            r#"vm.memory = "1.5GiB""#,
            r#"2:13: vm.memory is wrong: "1.5GiB" is not a size: a whole number and one of B, KiB, MiB, GiB, TiB, as in "4GiB""#,
        ),
        (
            r#"vm.memory = "99999999999TiB""#,
            r#"2:13: vm.memory is wrong: "99999999999TiB" is more than any file can have"#,
        ),
        (
            r#"vm.memory = "1MiB""#,
            "2:13: vm.memory: 1MiB is not at least 64MiB and a multiple of 2MiB",
        ),
        (
            r#"vm.memory = "1000001KiB""#,
            "2:13: vm.memory: 1000001KiB is not at least 64MiB and a multiple of 2MiB",
        ),
        (
            r#"vm.backing = "ram""#,
            r#"2:14: vm.backing is wrong: "ram" is not one of auto, tmpfs, disk, vmm"#,
        ),
        (
            r#"vm.initramfs = """#,
            r#"2:16: vm.initramfs is wrong: "" is not a path"#,
        ),
        (
            r#"vm.cmdline = "a\nb""#,
            "2:14: vm.cmdline is wrong: a kernel command line is one line of at most 2047 printable characters",
        ),
        (
            "disks = [{}]",
            "2:10: disks: a disk needs an image, a size, or both",
        ),
        (
            r#"disks = [{ size = "1MiB" }]"#,
            "2:19: disks.size: 1MiB is not at least 16MiB and a multiple of 4096 bytes",
        ),
        (
            r#"disks = [{ size = "16777217B" }]"#,
            "2:19: disks.size: 16777217B is not at least 16MiB and a multiple of 4096 bytes",
        ),
        (
            r#"mounts = [{ source = "." }]"#,
            "2:11: mounts.target is missing",
        ),
        (
            r#"mounts = [{ source = ".", target = "work" }]"#,
            r#"2:36: mounts.target is wrong: "work" is not a path in the guest: it has to begin with / or ~/"#,
        ),
        (
            r#"mounts = [{ source = ".", target = "~/../root" }]"#,
            r#"2:36: mounts.target is wrong: "~/../root" is not a path in the guest: it may not contain .."#,
        ),
        (
            r#"mounts = [{ source = ".", target = "~other/x" }]"#,
            r#"2:36: mounts.target is wrong: "~other/x" is not a path in the guest: it has to begin with / or ~/"#,
        ),
        (
            r#"mounts = [{ source = ".", target = "//" }]"#,
            r#"2:36: mounts.target is wrong: "//" is not a path in the guest: it has to name something below / or ~/"#,
        ),
        (
            concat!("mounts = [{ source = \".\", target = \"~/a\" },\n", "{ source = \"b\", target = \"/home/user//a/\" }]"),
            "3:26: mounts.target: /home/user/a is used in line 2 already",
        ),
        (
            r#"mounts = [{ source = ".", target = "~" }]"#,
            r#"2:36: mounts.target is wrong: "~" is not a path in the guest: it has to name something below / or ~/"#,
        ),
        (
            r#"mounts = [{ source = ".", target = "/" }]"#,
            r#"2:36: mounts.target is wrong: "/" is not a path in the guest: it has to name something below / or ~/"#,
        ),
        (
            concat!("mounts = [{ source = \".\", target = \"~/.ssh\" }]\n", "credentials.outbound-key = true"),
            "2:36: mounts.target: nixbox writes ~/.ssh/id_ed25519 in the guest, and on this share it would write to the host",
        ),
        (
            concat!(
                "mounts = [{ source = \".\", target = \"/home/user/.ssh/\" }]\n",
                "credentials.outbound-key = true"
            ),
            "2:36: mounts.target: nixbox writes ~/.ssh/id_ed25519 in the guest, and on this share it would write to the host",
        ),
        (
            concat!("mounts = [{ source = \".\", target = \"~/.env\" }]\n", "env.A = \"b\""),
            "2:36: mounts.target: nixbox writes ~/.env in the guest, and on this share it would write to the host",
        ),
        (
            r#"mounts = [{ source = ".", target = "/a", protect = ["/etc"] }]"#,
            r#"2:53: mounts.protect is wrong: "/etc" is not a path in a share: it has to be relative to the source"#,
        ),
        (
            r#"mounts = [{ source = ".", target = "/a", protect = ["a/../.."] }]"#,
            r#"2:53: mounts.protect is wrong: "a/../.." is not a path in a share: it may not contain .."#,
        ),
        (
            r#"mounts = [{ source = ".", target = "/a\tb" }]"#,
            r#"2:36: mounts.target is wrong: "/a\tb" is not a path in the guest: it has a control character in it"#,
        ),
        (
            r#"mounts = [{ source = "", target = "/a" }]"#,
            r#"2:22: mounts.source is wrong: "" is not a path"#,
        ),
        (
            r#"network.mode = "closed""#,
            r#"2:16: network.mode is wrong: "closed" is not one of off, filtered, open"#,
        ),
        (
            r#"network.domains = ["*.github.com"]"#,
            r#"2:20: network.domains is wrong: "*.github.com" is not a domain such as github.com, which stands for itself and everything below it: leave out the "*.""#,
        ),
        (
            r#"network.domains = ["https://github.com"]"#,
            r#"2:20: network.domains is wrong: "https://github.com" is not a domain such as github.com, which stands for itself and everything below it: only the host's name, without scheme, port or path"#,
        ),
        (
            r#"network.domains = ["1.2.3.4"]"#,
            r#"2:20: network.domains is wrong: "1.2.3.4" is not a domain such as github.com, which stands for itself and everything below it: addresses cannot be allowed by name"#,
        ),
        (
            r#"network.domains = ["bücher.de"]"#,
            r#"2:20: network.domains is wrong: "bücher.de" is not a domain such as github.com, which stands for itself and everything below it: write it in its xn-- form"#,
        ),
        (
            r#"network.domains = ["a..b"]"#,
            r#"2:20: network.domains is wrong: "a..b" is not a domain such as github.com, which stands for itself and everything below it: labels of 1 to 63 of a-z 0-9 - _, separated by dots, at most 253 in all"#,
        ),
        (
            r#"network.domains = ["a\nserver=/evil/"]"#,
            r#"2:20: network.domains is wrong: "a\nserver=/evil/" is not a domain such as github.com, which stands for itself and everything below it: only the host's name, without scheme, port or path"#,
        ),
        (
            r#"network.domains = ["-a.com"]"#,
            r#"2:20: network.domains is wrong: "-a.com" is not a domain such as github.com, which stands for itself and everything below it: labels of 1 to 63 of a-z 0-9 - _, separated by dots, at most 253 in all"#,
        ),
        (
            r#"network.domains = ["."]"#,
            r#"2:20: network.domains is wrong: "." is not a domain such as github.com, which stands for itself and everything below it: labels of 1 to 63 of a-z 0-9 - _, separated by dots, at most 253 in all"#,
        ),
        (
            r#"network.domains = [".github.com"]"#,
            r#"2:20: network.domains is wrong: ".github.com" is not a domain such as github.com, which stands for itself and everything below it: labels of 1 to 63 of a-z 0-9 - _, separated by dots, at most 253 in all"#,
        ),
        (
            r#"network.domains = ["github.com:443"]"#,
            r#"2:20: network.domains is wrong: "github.com:443" is not a domain such as github.com, which stands for itself and everything below it: only the host's name, without scheme, port or path"#,
        ),
        (
            r#"network.domains = ["a b"]"#,
            r#"2:20: network.domains is wrong: "a b" is not a domain such as github.com, which stands for itself and everything below it: labels of 1 to 63 of a-z 0-9 - _, separated by dots, at most 253 in all"#,
        ),
        (
            "network.ports = [0]",
            "2:18: network.ports: 0 is not from 1 to 65535",
        ),
        (
            "network.ports = [65536]",
            "2:18: network.ports: 65536 is not from 1 to 65535",
        ),
        (
            "network.ports = [0xffff_ffff_ffff_ffff_ffff_ffff_ffff_ffff_ff]",
            "2:18: network.ports: 9223372036854775807 is not from 1 to 65535",
        ),
        (
            r#"network.host-networks = ["10.0.0.0/8", "10.0.0.1/24"]"#,
            r#"2:40: network.host-networks is wrong: "10.0.0.1/24" is not a private network such as 192.168.1.0/24: the address has to be the first one of the network"#,
        ),
        (
            r#"network.host-networks = ["169.254.0.0/16"]"#,
            r#"2:26: network.host-networks is wrong: "169.254.0.0/16" is not a private network such as 192.168.1.0/24: it has to lie within 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10"#,
        ),
        (
            r#"network.uplink = "10.0.0.4/29""#,
            r#"2:18: network.uplink is wrong: "10.0.0.4/29" is not a network such as 203.0.113.0/24: the address has to be the first one of the network"#,
        ),
        (
            "network.ports = [53]",
            "2:18: network.ports is wrong: 53 and 853 are the ports of DNS, which goes through nixbox's own resolver alone: leave them out",
        ),
        (
            "network.ports = [80, 853]",
            "2:22: network.ports is wrong: 53 and 853 are the ports of DNS, which goes through nixbox's own resolver alone: leave them out",
        ),
        (
            r#"guest.user = "Root""#,
            r#"2:14: guest.user is wrong: "Root" cannot be a user: 1 to 32 of a-z 0-9 _ -, beginning with a letter or _"#,
        ),
        (
            r#"guest.user = "a b""#,
            r#"2:14: guest.user is wrong: "a b" cannot be a user: 1 to 32 of a-z 0-9 _ -, beginning with a letter or _"#,
        ),
        (
            r#"guest.user = "user.name""#,
            r#"2:14: guest.user is wrong: "user.name" cannot be a user: 1 to 32 of a-z 0-9 _ -, beginning with a letter or _"#,
        ),
        (
            r#"guest.user = "-x""#,
            r#"2:14: guest.user is wrong: "-x" cannot be a user: 1 to 32 of a-z 0-9 _ -, beginning with a letter or _"#,
        ),
        (
            r#"guest.user = """#,
            r#"2:14: guest.user is wrong: "" cannot be a user: 1 to 32 of a-z 0-9 _ -, beginning with a letter or _"#,
        ),
        (
            r#"guest.ssh-key = """#,
            r#"2:17: guest.ssh-key is wrong: "" is not a path"#,
        ),
        (
            r#"env."A=B" = "x""#,
            r#"2:5: env.A=B is wrong: "A=B" cannot be an environment variable: 1 to 256 of a-z A-Z 0-9 _, not beginning with a digit"#,
        ),
        (
            "env.A = {}",
            "2:9: env.A: exactly one of from-env, file, command says where a value comes from",
        ),
        (
            r#"env.A = { file = "x", from-env = "Y" }"#,
            "2:9: env.A: exactly one of from-env, file, command says where a value comes from",
        ),
        (
            "env.A = { command = [] }",
            "2:21: env.A.command is wrong: it is empty, or has a NUL in it",
        ),
        (
            r#"env.A = { from-env = "1A" }"#,
            r#"2:22: env.A.from-env is wrong: "1A" cannot be an environment variable: 1 to 256 of a-z A-Z 0-9 _, not beginning with a digit"#,
        ),
        (
            r#"env.A = ["x"]"#,
            "2:9: env.A has to be of type string or table, and is of type array",
        ),
        (
            r#"env.A = { command = [""] }"#,
            "2:22: env.A.command is wrong: it is empty, or has a NUL in it",
        ),
        (
            r#"env.A = { command = ["x", "\u0000"] }"#,
            "2:27: env.A.command is wrong: it has a NUL in it",
        ),
        (
            r#"env.A = "\u0000""#,
            "2:9: env.A is wrong: it has a NUL in it",
        ),
        (
            r#"env."" = "x""#,
            r#"2:5: env. is wrong: "" cannot be an environment variable: 1 to 256 of a-z A-Z 0-9 _, not beginning with a digit"#,
        ),
        (
            r#"credentials.files = [{ source = "a", target = "~/a" }, { source = "b", target = "~/a" }]"#,
            "2:81: credentials.files.target: /home/user/a is used in line 2 already",
        ),
        (
            r#"credentials.files = [{ source = "a", target = "~" }]"#,
            r#"2:47: credentials.files.target is wrong: "~" is not a path in the guest: it has to name something below / or ~/"#,
        ),
        (
            concat!("credentials.files = [{ source = \"a\", target = \"~/.env\" }]\n", "env.A = \"b\""),
            "2:47: credentials.files.target: ~/.env is a file that nixbox writes itself",
        ),
        (
            concat!(
                "credentials.files = [{ source = \"a\", target = \"~/.ssh/id_ed25519\" }]\n",
                "credentials.outbound-key = true"
            ),
            "2:47: credentials.files.target: ~/.ssh/id_ed25519 is a file that nixbox writes itself",
        ),
        (
            r#"credentials.overwrite = ["~/.env", "/home/user/.env"]"#,
            "2:36: credentials.overwrite: /home/user/.env is used in line 2 already",
        ),
        (
            r#"credentials.files = [{ source = "a", target = "~/workspace/.env" }]"#,
            "2:47: credentials.files.target: /home/user/workspace/.env is on the share mounted at ~/workspace: what is there is the host's",
        ),
        (
            r#"credentials.files = [{ source = "a", target = "/srv/../a" }]"#,
            r#"2:47: credentials.files.target is wrong: "/srv/../a" is not a path in the guest: it may not contain .."#,
        ),
        (
            r#"credentials.wipe = ["~"]"#,
            r#"2:21: credentials.wipe is wrong: "~" is not a path in the guest: it has to name something below / or ~/"#,
        ),
        (
            r#"credentials.wipe = ["~/workspace/target"]"#,
            "2:21: credentials.wipe: /home/user/workspace/target is on the share mounted at ~/workspace: what is there is the host's",
        ),
        (
            concat!("credentials.wipe = [\"~/a\"]\n", "mounts = [{ source = \".\", target = \"~/a/b\" }]"),
            "2:21: credentials.wipe: the share ~/a/b is mounted in it",
        ),
        (
            r#"credentials.wipe = ["~/a", "/home/user/a"]"#,
            "2:28: credentials.wipe: /home/user/a is used in line 2 already",
        ),
        (
            r#"hooks.pre-up = [""]"#,
            "2:17: hooks.pre-up is wrong: it is empty, or has a NUL in it",
        ),
        (
            r#"guest.scripts.after-up = [""]"#,
            "2:27: guest.scripts.after-up is wrong: it is empty, or has a NUL in it",
        ),
        (
            r#"hooks.post-down = ["a\u0000"]"#,
            "2:20: hooks.post-down is wrong: it is empty, or has a NUL in it",
        ),
        (
            "snapshot.keep = 0",
            "2:17: snapshot.keep: 0 is not from 1 to 4294967295",
        ),
        (
            "snapshot.keep-for = \"2w\"",
            "2:21: snapshot.keep-for is wrong: \"2w\" is not a time: a whole number and one of s, min, h, d, as in \"14d\"",
        ),
        (
            "snapshot.keep-for = \"0d\"",
            "2:21: snapshot.keep-for is wrong: \"0d\" is not from 1s to 36500d",
        ),
        (
            "snapshot.keep-size = \"50G\"",
            "2:22: snapshot.keep-size is wrong: \"50G\" is not a size: a whole number and one of B, KiB, MiB, GiB, TiB, as in \"4GiB\"",
        ),
        (
            "snapshot.keep-size = \"0GiB\"",
            "2:22: snapshot.keep-size: 0B is not at least 1B",
        ),
        (
            "snapshot.keep-disks = -1",
            "2:23: snapshot.keep-disks: -1 is not from 0 to 4294967295",
        ),
        (
            "snapshot.keep = -3",
            "2:17: snapshot.keep: -3 is not from 1 to 4294967295",
        ),
    ] {
        assert_eq!(refused(text), expected, "{text}");
    }
}

#[test]
fn values_that_are_too_long_are_refused_at_their_line() {
    let mount = |target: &str| format!("mounts = [{{ source = \".\", target = \"{target}\" }}]");
    for (text, place, expected) in [
        (mount(&format!("/{}", "a".repeat(241))), "2:36", "a part of it is longer than 240 bytes"),
        (mount(&"/a".repeat(513)), "2:36", "it is longer than 1024 bytes"),
        (format!("name = \"{}\"", "n".repeat(65)), "2:8", "1 to 64 of"),
        (format!("guest.user = \"{}\"", "n".repeat(33)), "2:14", "1 to 32 of"),
        (format!("env.{} = \"x\"", "N".repeat(257)), "2:5", "1 to 256 of"),
        (format!("network.domains = [\"{}\"]", "a".repeat(64)), "2:20", "labels of 1 to 63"),
        (format!("network.domains = [\"{}b\"]", "a.".repeat(127)), "2:20", "at most 253 in all"),
        (format!("vm.cmdline = \"{}\"", "c".repeat(2048)), "2:14", "at most 2047 printable characters"),
        (format!("disks = [{}]", "{ size = \"1GiB\" }, ".repeat(17)), "2:314", "there can be 16 at most"),
        (format!("mounts = [{}]", "{}, ".repeat(9)), "2:43", "there can be 8 at most"),
    ] {
        let found = refused(&text);
        assert!(found.starts_with(&format!("{place}: ")) && found.contains(expected), "{found}");
    }
}

#[test]
fn what_two_rules_once_disagreed_about_is_accepted() {
    for text in [
        "network.domains = [\"_dmarc.example.com\"]",
        "mounts = [{ source = \".\", target = \"/srv/./src//\" }]",
        &format!("mounts = [{{ source = \".\", target = \"/{}\" }}]", "a".repeat(240)),
        "credentials.files = [{ source = \"a\", target = \"~/.env\" }]",
        "guest.user = \"_apt\"",
    ] {
        parse(&with_kernel(text)).unwrap();
    }
}

#[test]
fn a_key_that_is_missing_is_named_with_the_place_of_its_table() {
    assert_eq!(complaint(""), "config.toml:1:1: vm.kernel is missing");
    assert_eq!(complaint("[vm]\nvcpus = 1"), "config.toml:1:1: vm.kernel is missing");
}
