use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::files::FileError;
use crate::world::{
    Backing, ByteSize, DiskSpec, Domain, MASK, NetworkMode, NetworkPolicy, OnLeak, PathInShare, SecretSource,
    UserIds, VmmChoice, WorkspaceName,
};

mod refused;

const EXAMPLE: &str = r##"
name = "dev"
[vm]
vcpus = 2
memory = "4GiB"
kernel = "image/vmlinuz"
initramfs = "image/initramfs.gz"
cmdline = "console=ttyS0 quiet"
backing = "auto"
[[disks]]
image = "image/root.img"
size = "64GiB"
[[disks]]
size = "1GiB"
[[mounts]]
source = "."
target = "~/workspace"
readonly = false
[[mounts]]
source = "~/src"
target = "/srv/./src//"
readonly = true
protect = ["Makefile", "./.git//hooks/"]
[network]
mode = "filtered"
domains = ["GitHub.com.", "crates.io", "github.com"]
ports = [443, 80, 443]
host-networks = ["192.168.1.0/24", "10.0.0.0/8", "192.168.1.0/24"]
uplink = "10.77.0.0/16"
[guest]
user = "user"
uid = 1001
gid = 100
ssh-key = "/keys/id"
require-entropy = false
ready-timeout = "10min"
[guest.scripts]
after-up = ["docker compose up -d"]
after-restore = ["sudo systemctl restart chrony", "reconnect"]
[env]
GITHUB_TOKEN = { from-env = "GITHUB_TOKEN" }
FROM_FILE = { file = "~/token" }
FROM_COMMAND = { command = ["op", "read", "op://hunter2"] }
PLAIN = "hunter2"
[credentials]
files = [{ source = "~/.aws/credentials", target = "~/.aws/credentials" }]
wipe = ["~/.docker/config.json"]
overwrite = ["~/.env"]
outbound-key = true
[hooks]
post-up = ["echo up"]
[snapshot]
keep = 3
keep-for = "14d"
keep-size = "50GiB"
keep-disks = 0
on-leak = "fail"
"##;

/// The directory of the workspace's own keys.
const KEYS: &str = "/state/ssh";

fn host(gib: u64) -> HostFacts {
    HostFacts { vcpus: 5, memory: gib << 30, home: Some("/home/me".into()) }
}

fn parse(text: &str) -> Result<Config> {
    Config::parse(text, Path::new("config.toml"), Path::new("/srv/my project"), Path::new(KEYS), &host(16))
}

/// Prepends the one key that is required.
fn with_kernel(rest: &str) -> String {
    format!("vm.kernel = \"k\"\n{rest}")
}

/// The error for `text`, with all its causes.
fn complaint(text: &str) -> String {
    let error = parse(text).expect_err(text);
    let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[test]
fn the_documented_example_is_read_in_full() {
    let config = parse(EXAMPLE).unwrap();
    assert_eq!(config.name.as_str(), "dev");
    assert_eq!(
        (config.vm.vcpus.get(), config.vm.memory.bytes(), config.vm.backing),
        (2, 4 << 30, Backing::Auto)
    );
    assert_eq!(config.vm.kernel.as_path(), Path::new("/srv/my project/image/vmlinuz"));
    assert_eq!(config.disks[0].size, Some(ByteSize::from_bytes(64 << 30)));
    assert!(config.disks[1].image.is_none());
    assert_eq!(config.mounts[0].source.as_path(), Path::new("/srv/my project"));
    assert_eq!(config.mounts[0].target.as_str(), "~/workspace");
    assert_eq!(config.mounts[1].source.as_path(), Path::new("/home/me/src"));
    assert_eq!(config.mounts[1].target.to_string(), "/srv/src");
    assert!(config.mounts[1].readonly);
    let protected =
        |mount: usize| config.mounts[mount].protect.iter().map(PathInShare::as_str).collect::<Vec<_>>();
    assert_eq!(protected(0), [".git/hooks", ".git/config"]);
    assert_eq!(protected(1), ["Makefile", ".git/hooks"]);
    let domains: Vec<_> = config.network.domains.iter().map(Domain::as_str).collect();
    assert_eq!(domains, ["crates.io", "github.com"]);
    assert_eq!(config.network.ports.iter().map(|port| port.number()).collect::<Vec<_>>(), [80, 443]);
    assert_eq!(config.guest.system.ssh_key.as_path(), Path::new("/keys/id"));
    assert_eq!(config.guest.system.user_ids(), UserIds { uid: 1001, gid: 100 });
    assert!(!config.defaulted.user_ids);
    assert_eq!(config.guest.scripts.after_up, ["docker compose up -d"]);
    assert_eq!(config.guest.scripts.after_restore, ["sudo systemctl restart chrony", "reconnect"]);
    assert_eq!(config.credentials.files[0].target.as_str(), "~/.aws/credentials");
    assert_eq!(config.hooks.post_up, ["echo up"]);
    assert_eq!((config.snapshot.keep.unwrap().get(), config.snapshot.keep_disks), (3, 0));
    assert_eq!(config.snapshot.keep_for.unwrap().duration(), std::time::Duration::from_secs(14 * 86_400));
    assert_eq!(config.snapshot.keep_size.unwrap().bytes(), 50 << 30);
    assert_eq!(config.snapshot.on_leak, OnLeak::Fail);
    let env: Vec<_> = config.env.values().collect();
    let SecretSource::Command(command) = env[0] else { panic!("{env:?}") };
    assert_eq!(command.program, "op");
    assert!(command.arguments.iter().map(|argument| argument.expose()).eq([&b"read"[..], b"op://hunter2"]));
    assert!(matches!(env[1], SecretSource::File(path) if path.as_path() == Path::new("/home/me/token")));
    assert!(matches!(env[2], SecretSource::FromEnv(name) if name.as_str() == "GITHUB_TOKEN"));
    assert!(matches!(env[3], SecretSource::Plain(value) if value.expose() == b"hunter2"));
}

#[test]
fn no_printed_form_contains_a_secret() {
    let config = parse(EXAMPLE).unwrap();
    let json = serde_json::to_value(&config).unwrap();
    assert!(!json.to_string().contains("hunter2") && !format!("{config:#?}").contains("hunter2"));
    assert_eq!(json["env"]["PLAIN"], MASK);
    assert_eq!(json["env"]["GITHUB_TOKEN"]["from-env"], "GITHUB_TOKEN");
    assert_eq!(json["env"]["FROM_COMMAND"]["command"], serde_json::json!(["op", MASK, MASK]));
    assert_eq!(json["vm"]["memory"], 4_u64 << 30);
    assert_eq!(json["guest"]["ssh-key"], "/keys/id");
    assert_eq!(json["network"]["mode"], "filtered");
    assert_eq!(json["mounts"][0]["target"], "~/workspace");
}

#[test]
fn errors_about_the_environment_do_not_quote_it() {
    for text in [
        "[env]\nA = \"hunter2",
        "[env]\nA = hunter2",
        "[env]\nA = { plain = \"hunter2\" }",
        "[env]\nA = { command = [\"\", \"hunter2\"] }",
        "[env]\nA = { command = [\"x\", \"hunter2\\u0000\"] }",
        "[env]\nA = [\"hunter2\"]",
        "[env]\nA = \"hunter2\\u0000\"",
        "[env]\nA = { file = \"a\", x = \"hunter2\" }",
        "[env]\nA = \"hunter2\" \"hunter2\"",
        "[env]\nA = \"hunter2\"\nA = \"hunter2\"",
        "[env]\nA = \"\\qhunter2\"",
    ] {
        let error = parse(&with_kernel(text)).unwrap_err();
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        assert!(!complaint(&with_kernel(text)).contains("hunter2"), "{error}");
    }
}

#[test]
fn defaults_come_from_the_host() {
    let config = parse("[vm]\nkernel = \"k\"\nvcpus = 0").unwrap();
    assert_eq!(config.name.as_str(), "my-project");
    assert_eq!((config.vm.vcpus.get(), config.vm.memory.bytes()), (2, 8 << 30));
    assert_eq!(config.mounts.len(), 1);
    assert_eq!(config.mounts[0].target.to_string(), "~/workspace");
    assert_eq!(config.network.mode, NetworkMode::Open);
    assert_eq!(config.guest.system.ssh_key.as_path(), Path::new("/state/ssh/vm_key"));
    assert_eq!(config.snapshot.keep_disks, 1);
    assert_eq!(config.snapshot.on_leak, OnLeak::Redact);
    assert!(config.snapshot.keep.is_none() && config.env.is_empty());
    assert!(config.snapshot.keep_for.is_none() && config.snapshot.keep_size.is_none());
    assert!(parse(&with_kernel("mounts = []")).unwrap().mounts.is_empty());
    for (host_gib, memory_gib) in [(2, 1), (4, 4), (6, 4), (8, 4), (64, 32)] {
        let config = Config::parse(
            "vm.kernel = \"k\"",
            Path::new("c"),
            Path::new("/w"),
            Path::new(KEYS),
            &host(host_gib),
        )
        .unwrap();
        assert_eq!(config.vm.memory.bytes(), memory_gib << 30, "{host_gib} GiB");
    }
}

#[test]
fn unknown_keys_are_refused_with_place_and_nearest_key() {
    for (text, expected) in [
        (
            "[vm]\nkernel = \"k\"\nmemroy = \"1GiB\"",
            "config.toml:3:1: there is no key vm.memroy; did you mean memory?",
        ),
        ("vm.kernel = \"k\"\n[[mount]]\n", "config.toml:2:3: there is no key mount; did you mean mounts?"),
        ("memory = \"4GiB\"\n", "config.toml:1:1: there is no key memory; did you mean vm.memory?"),
        ("guest.ssh_key = \"k\"", "there is no key guest.ssh_key; did you mean ssh-key?"),
        ("guest.SSH-Key = \"k\"", "did you mean ssh-key?"),
        ("[hooks]\npost_up = []", "did you mean post-up?"),
        ("[[disks]]\nsizes = \"1GiB\"", "there is no key disks.sizes; did you mean size?"),
        ("[snapshot]\nzzz = 1", "there is no key snapshot.zzz; there are keep"),
        ("[env]\nA = { from_env = \"A\" }", "there is no key env.A.from_env; did you mean from-env?"),
        ("[credentials]\nfiles = [{ source = \"a\", tarjet = \"b\" }]", "did you mean target?"),
        ("mounts = [{ source = \"a\", target = \"b\", read-only = true }]", "did you mean readonly?"),
    ] {
        let found = complaint(&if text.contains("kernel") {
            text.to_owned()
        } else {
            format!("{text}\n[vm]\nkernel = \"k\"")
        });
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn wrong_types_are_refused_with_place_and_type() {
    for (text, expected) in [
        ("name = 1", "config.toml:2:8: name has to be of type string, and is of type integer"),
        ("vm.vcpus = \"2\"", "vm.vcpus has to be of type integer"),
        ("vm.vcpus = 2.0", "vm.vcpus has to be of type integer, and is of type float"),
        ("vm.memory = 4096", "vm.memory has to be of type string"),
        ("disks = {}", "disks has to be of type array"),
        ("disks = [1]", "disks has to be of type table"),
        (
            "mounts = [{ source = \"a\", target = \"/b\", readonly = \"yes\" }]",
            "mounts.readonly has to be of type boolean",
        ),
        ("network = 3", "network has to be of type table"),
        ("network.ports = [\"80\"]", "network.ports has to be of type integer"),
        ("network.domains = \"github.com\"", "network.domains has to be of type array"),
        ("env.A = 1", "env.A has to be of type string or table, and is of type integer"),
        ("env.A = { command = \"op read\" }", "env.A.command has to be of type array"),
        (
            "credentials.wipe = [1979-05-27]",
            "credentials.wipe has to be of type string, and is of type datetime",
        ),
        ("hooks.pre-up = \"x\"", "hooks.pre-up has to be of type array"),
        ("snapshot.keep = true", "snapshot.keep has to be of type integer"),
        ("snapshot.keep-for = 14", "snapshot.keep-for has to be of type string"),
        ("snapshot.keep-size = 14", "snapshot.keep-size has to be of type string"),
    ] {
        let found = complaint(&with_kernel(text));
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn a_tilde_without_a_home_is_refused() {
    let nowhere = HostFacts { home: None, ..host(16) };
    let error =
        Config::parse("vm.kernel = \"~/k\"", Path::new("c"), Path::new("/w"), Path::new(KEYS), &nowhere)
            .unwrap_err();
    let ConfigError::Value { source, .. } = error else { panic!("{error:?}") };
    assert_eq!(source.to_string(), "\"~/k\" begins with ~, and HOME is not set to an absolute path");
}

#[test]
fn links_large_files_and_other_encodings_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::open(root.path()).unwrap();
    let load = || Config::load(&folder, root.path(), Path::new(KEYS), &host(16));
    assert!(matches!(load(), Err(ConfigError::Absent { .. })));
    std::os::unix::fs::symlink("/etc/hostname", root.path().join(FILE)).unwrap();
    assert!(matches!(load(), Err(ConfigError::File(FileError::Symlink { .. }))));
    std::fs::remove_file(root.path().join(FILE)).unwrap();
    std::fs::write(root.path().join(FILE), [0xff]).unwrap();
    assert!(matches!(load(), Err(ConfigError::NotText { .. })));
    std::fs::write(root.path().join(FILE), vec![b'\n'; LIMIT as usize + 1]).unwrap();
    assert!(matches!(load(), Err(ConfigError::File(FileError::TooLarge { .. }))));
    std::fs::write(root.path().join(FILE), EXAMPLE).unwrap();
    assert_eq!(load().unwrap().name.as_str(), "dev");
}

#[test]
fn missing_files_are_named() {
    let root = tempfile::tempdir().unwrap();
    let read =
        |text: &str| Config::parse(text, Path::new("c"), root.path(), Path::new(KEYS), &host(16)).unwrap();
    let missing = |text: &str| match read(text).check_files() {
        Err(ConfigError::NotThere { key, .. }) => Some(key),
        Ok(()) => None,
        Err(error) => panic!("{error}"),
    };
    assert_eq!(missing("vm.kernel = \"k\""), Some("vm.kernel"));
    std::fs::create_dir(root.path().join("k")).unwrap();
    assert_eq!(missing("vm.kernel = \"k\""), Some("vm.kernel"));
    std::fs::write(root.path().join("kernel"), "").unwrap();
    assert_eq!(missing("vm.kernel = \"kernel\""), None);
    assert_eq!(missing("vm = { kernel = \"kernel\", initramfs = \"i\" }"), Some("vm.initramfs"));
    assert_eq!(missing("vm.kernel = \"kernel\"\ndisks = [{ image = \"d\" }]"), Some("disks.image"));
    let file = "vm.kernel = \"kernel\"\nmounts = [{ source = \"kernel\", target = \"/x\" }]";
    assert_eq!(missing(file), Some("mounts.source"));
}

/// The test names every field of every table, without `..`, so that a new field does not compile until it has a value
/// here and the expected shape either contains it or does not.
#[test]
fn the_shape_has_these_keys_and_values_and_no_others() {
    let config = parse(EXAMPLE).unwrap();
    let Config {
        name: _,
        vmm: _,
        vm,
        disks,
        mounts,
        network,
        guest,
        env: _,
        credentials,
        hooks,
        snapshot,
        defaulted: _,
    } = config.clone();
    let VmTable { vcpus: _, memory: _, kernel: _, initramfs: _, cmdline: _, backing: _ } = vm.clone();
    let ConfiguredGuest { system, scripts } = guest.clone();
    let GuestTable { user: _, uid: _, gid: _, ssh_key: _, require_entropy: _, ready_timeout: _ } =
        system.clone();
    let GuestScriptsTable { after_up: _, after_restore: _, before_snapshot: _ } = scripts;
    let NetworkPolicy { mode: _, domains: _, ports: _, host_networks: _, uplink: _ } = network;
    let CredentialsTable { files: _, wipe: _, overwrite: _, outbound_key: _ } = credentials;
    let HooksTable { pre_up: _, post_up: _, pre_down: _, post_down: _ } = hooks;
    let SnapshotTable { keep: _, keep_for: _, keep_size: _, keep_disks: _, on_leak: _ } = snapshot;
    for DiskSpec { image: _, size: _ } in disks {}
    for MountTable { source: _, target: _, readonly: _, protect: _ } in mounts {}
    let expected = [
        ("disks.0", "./image/root.img, 64GiB"),
        ("disks.1", "empty, 1GiB"),
        ("guest.user", "user"),
        ("mounts.0", ". at ~/workspace, read-write"),
        ("mounts.1", "/home/me/src at /srv/src, read-only"),
        ("vm.cmdline", "console=ttyS0 quiet"),
        ("vm.initramfs", "./image/initramfs.gz"),
        ("vm.kernel", "./image/vmlinuz"),
        ("vm.memory", "4GiB"),
        ("vm.vcpus", "2"),
    ];
    let expected: BTreeMap<String, String> =
        expected.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    assert_eq!(config.vm_spec().shape(Path::new("/srv/my project")), expected);

    // Values that do not shape a VM may change.
    let other = Config {
        name: WorkspaceName::of_directory(Path::new("other")),
        vmm: VmmChoice::Simulator(None),
        vm: VmTable { backing: Backing::Vmm, ..vm },
        network: NetworkMode::Off.into(),
        guest: ConfiguredGuest {
            system: GuestTable { uid: 1002, ssh_key: config.vm.kernel.clone(), ..system },
            scripts: GuestScriptsTable::default(),
        },
        env: BTreeMap::new(),
        credentials: CredentialsTable::default(),
        hooks: HooksTable::default(),
        snapshot: SnapshotTable::default(),
        ..config
    };
    assert_eq!(other.vm_spec().shape(Path::new("/srv/my project")), expected);
    let small = parse("[vm]\nkernel = \"k\"\nmemory = \"64MiB\"\n[[disks]]\nimage = \"d\"")
        .unwrap()
        .vm_spec()
        .shape(Path::new("/srv/my project"));
    assert_eq!((small.get("vm.initramfs"), small["disks.0"].as_str()), (None, "./d, as it is"));
}

/// The keys of a table with the tables in it. A person chooses the names of the entries of `[env]`.
pub(crate) fn keys_of(value: &serde_json::Value, prefix: &str, found: &mut BTreeSet<String>) {
    use serde_json::Value;
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                let key = if prefix == "env" { "*" } else { key };
                let path = if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
                keys_of(member, &path, found);
            }
        }
        Value::Array(members) if members.iter().any(Value::is_object) => {
            members.iter().for_each(|member| keys_of(member, prefix, found));
        }
        _ => drop(found.insert(prefix.to_owned())),
    }
}

#[test]
fn the_list_of_keys_has_the_fields_of_the_configuration() {
    let mut found = BTreeSet::new();
    keys_of(&serde_json::to_value(parse(EXAMPLE).unwrap()).unwrap(), "", &mut found);
    // This key is a value of `[env]` that is not a table.
    assert!(found.remove("env.*"));
    assert_eq!(found, all_keys());
}

#[test]
fn this_machine_has_processors_and_memory() {
    let facts = HostFacts::of_this_machine();
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let kib: u64 = text.lines().next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(facts.vcpus > 0);
    assert_eq!(facts.memory >> 10, kib);
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,200}") {
        drop(parse(&text));
    }

    #[test]
    fn no_mutation_makes_the_reader_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), 0_u8..4, any::<char>()), 1..6),
    ) {
        let mut letters: Vec<char> = EXAMPLE.chars().collect();
        for (place, kind, letter) in changes {
            if letters.is_empty() {
                break;
            }
            let place = place.index(letters.len());
            match kind {
                0 => letters[place] = letter,
                1 => letters.insert(place, letter),
                2 => drop(letters.remove(place)),
                _ => letters.truncate(place + 1),
            }
        }
        let text: String = letters.into_iter().collect();
        if let Err(error) = parse(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn no_line_moved_makes_the_reader_panic(order in Just(EXAMPLE.lines().collect::<Vec<_>>()).prop_shuffle()) {
        drop(parse(&order.join("\n")));
    }

    #[test]
    fn every_directory_gives_a_name(name in "\\PC{0,100}") {
        let name = WorkspaceName::of_directory(&Path::new("/").join(name));
        prop_assert!(name.as_str().parse::<WorkspaceName>().is_ok());
    }
}

#[test]
fn what_unzeroed_memory_means_is_said_where_it_makes_a_difference() {
    let of = |rest: &str| parse(&with_kernel(rest)).unwrap();
    for (rest, gives) in [
        ("", false),
        ("credentials.wipe = [\"~/.npmrc\"]", false),
        ("env.A = \"b\"", true),
        ("credentials.outbound-key = true", true),
        ("credentials.files = [{ source = \"a\", target = \"~/a\" }]", true),
    ] {
        assert_eq!(of(rest).gives_credentials(), gives, "{rest}");
    }
    for (cmdline, zeroes) in [
        ("init_on_free=1", true),
        ("quiet init_on_free=0 init_on_free=1", true),
        ("init_on_free=1 init_on_free=0", false),
        ("xinit_on_free=1", false),
    ] {
        let config = of(&format!("vm.cmdline = \"{cmdline}\""));
        assert_eq!(config.unzeroed_memory().is_none(), zeroes, "{cmdline}");
    }
    assert!(of("").unzeroed_memory().unwrap().contains("`init_on_free=1` in vm.cmdline"));
}
