//! One function for each table of the configuration. The functions convert the values, check their limits, and fill in
//! their defaults.

use std::collections::BTreeMap;
use std::num::{NonZeroU8, NonZeroU32};
use std::path::Path;

use toml::de::DeTable;

use super::error::{ConfigError, Position, Result};
use super::keys;
use super::read::{SourceText, TomlTable, TomlValue};
use super::types::{
    Config, ConfiguredGuest, CredentialFile, CredentialsTable, Defaulted, GuestScriptsTable, GuestTable,
    HooksTable, HostFacts, LONGEST_CMDLINE, MountTable, SnapshotTable, VmTable, first_user,
};
use crate::world::{
    Backing, ByteSize, DiskSpec, Domain, GuestHome, GuestPath, HostPath, InvalidValue, NetworkMode,
    NetworkPolicy, PathInShare, Port, PrivateNetwork, ReadyTimeout, Secret, SecretCommand, SecretSource,
    UplinkPool, UserIds, UserName, VariableName, VmmChoice, WorkspaceName, is_within,
};

/// The most processors that Cloud Hypervisor and the guest's kernel support, because 255 is the broadcast APIC id.
const MAX_VCPUS: u32 = 254;
/// Less memory is not enough to boot a Linux with an initramfs.
const MIN_MEMORY: u64 = 64 << 20;
/// Huge pages of the VMM and of tmpfs are of this size.
const MEMORY_UNIT: u64 = 2 << 20;
/// The default memory is at least this much on hosts that have so much.
const COMFORTABLE_MEMORY: u64 = 4 << 30;
/// The size of a disk is a multiple of this sector size, which every guest accepts.
const DISK_UNIT: u64 = 4096;
/// A smaller disk is not enough for a useful ext4.
const MIN_EMPTY_DISK: u64 = 16 << 20;
/// The VM's PCI bus has 31 slots, and other devices take some of them.
const MAX_DISKS: usize = 16;
const MAX_MOUNTS: usize = 8;
/// The most protected paths of one mount.
const MAX_PROTECTED: usize = 64;

const NOT_A_COMMAND: &str = "it is empty, or has a NUL in it";

/// Reads a configuration for a workspace on a host.
pub(super) struct ConfigReader<'a> {
    pub(super) root: &'a Path,
    /// The directory of the workspace's own keys.
    pub(super) keys: &'a Path,
    pub(super) host: &'a HostFacts,
}

impl ConfigReader<'_> {
    pub(super) fn config<'a>(&self, text: SourceText<'a>, table: &'a DeTable<'a>) -> Result<Config> {
        let top = TomlTable::whole(text, table, keys::TOP)?;
        let guest = ConfiguredGuest { system: self.guest(&top)?, scripts: guest_scripts(&top)? };
        let home = GuestHome::usual(&guest.system.user);
        let mounts = self.mounts(&top, &home)?;
        let (vm, defaulted) = self.vm(&top)?;
        let given = top.get("guest").map(|value| value.table(keys::GUEST.keys)).transpose()?;
        let has = |key| given.as_ref().is_some_and(|guest| guest.get(key).is_some());
        let defaulted = Defaulted { user_ids: !has("uid") && !has("gid"), ..defaulted };
        Ok(Config {
            name: match top.get("name") {
                Some(name) => name.parse()?,
                None => WorkspaceName::of_directory(self.root),
            },
            vmm: top.get("vmm").map_or(Ok(VmmChoice::CloudHypervisor), |value| value.parse())?,
            vm,
            disks: self.disks(&top)?,
            network: network(&top)?,
            env: self.env(&top)?,
            credentials: self.credentials(&top, &mounts, &home)?,
            mounts,
            guest,
            hooks: hooks(&top)?,
            snapshot: snapshot(&top)?,
            defaulted,
        })
    }

    fn path(&self, value: &TomlValue<'_>) -> Result<HostPath> {
        HostPath::resolve(value.text()?, self.root, self.host.home.as_deref())
            .map_err(|error| value.refuse(error))
    }

    fn vm(&self, top: &TomlTable<'_>) -> Result<(VmTable, Defaulted)> {
        let vm = top.get("vm").ok_or_else(|| missing(top, "vm.kernel"))?.table(keys::VM.keys)?;
        let vcpus = vm.get("vcpus").map_or(Ok(0), |value| value.number(0, MAX_VCPUS))?;
        let defaulted =
            Defaulted { vcpus: vcpus == 0, memory: vm.get("memory").is_none(), ..Defaulted::default() };
        let vcpus = if vcpus == 0 { (self.host.vcpus / 2).min(MAX_VCPUS) } else { vcpus };
        let vm = VmTable {
            // At most MAX_VCPUS, the number fits into a `u8`. Half of one processor is 0, and the default is then 1.
            vcpus: u8::try_from(vcpus).ok().and_then(NonZeroU8::new).unwrap_or(NonZeroU8::MIN),
            memory: match vm.get("memory") {
                Some(value) => self.memory(&value)?,
                None => self.default_memory(),
            },
            kernel: self.path(&vm.need("kernel")?)?,
            initramfs: vm.get("initramfs").map(|value| self.path(&value)).transpose()?,
            cmdline: match vm.get("cmdline") {
                Some(value) => command_line(&value)?,
                None => "console=ttyS0 quiet".to_owned(),
            },
            backing: vm.get("backing").map_or(Ok(Backing::Auto), |value| value.parse())?,
        };
        Ok((vm, defaulted))
    }

    fn default_memory(&self) -> ByteSize {
        let host = self.host.memory;
        let half = host / 2;
        let memory = if host >= COMFORTABLE_MEMORY { half.max(COMFORTABLE_MEMORY) } else { half };
        ByteSize::from_bytes(memory - memory % MEMORY_UNIT)
    }

    fn memory(&self, value: &TomlValue<'_>) -> Result<ByteSize> {
        let memory: ByteSize = value.parse()?;
        if memory.bytes() > self.host.memory {
            let host = ByteSize::from_bytes(self.host.memory >> 20 << 20);
            return Err(value.conflict(format!("{memory} is more than this host has, which is {host}")));
        }
        if memory.bytes() < MIN_MEMORY || !memory.bytes().is_multiple_of(MEMORY_UNIT) {
            let (least, unit) = (ByteSize::from_bytes(MIN_MEMORY), ByteSize::from_bytes(MEMORY_UNIT));
            return Err(value.conflict(format!("{memory} is not at least {least} and a multiple of {unit}")));
        }
        Ok(memory)
    }

    fn disks(&self, top: &TomlTable<'_>) -> Result<Vec<DiskSpec>> {
        let disks = top.list("disks")?;
        check_count(&disks, MAX_DISKS)?;
        disks.iter().map(|value| self.disk(value)).collect()
    }

    fn disk(&self, value: &TomlValue<'_>) -> Result<DiskSpec> {
        let disk = value.table(keys::DISK.keys)?;
        let image = disk.get("image").map(|value| self.path(&value)).transpose()?;
        let Some(size_value) = disk.get("size") else {
            return match image {
                Some(_) => Ok(DiskSpec { image, size: None }),
                None => Err(value.conflict("a disk needs an image, a size, or both".to_owned())),
            };
        };
        let size: ByteSize = size_value.parse()?;
        let least = ByteSize::from_bytes(if image.is_some() { DISK_UNIT } else { MIN_EMPTY_DISK });
        if size < least || !size.bytes().is_multiple_of(DISK_UNIT) {
            let problem = format!("{size} is not at least {least} and a multiple of {DISK_UNIT} bytes");
            return Err(size_value.conflict(problem));
        }
        Ok(DiskSpec { image, size: Some(size) })
    }

    fn mounts(&self, top: &TomlTable<'_>, home: &GuestHome) -> Result<Vec<MountTable>> {
        let Some(value) = top.get("mounts") else {
            let source = HostPath::below(self.root, ".");
            let protect = PathInShare::DEFAULT.to_vec();
            return Ok(vec![MountTable { source, target: GuestPath::WORKSPACE, readonly: false, protect }]);
        };
        let written = written_by_nixbox(top)?;
        let mut targets = Targets::new(home);
        let list = value.list()?;
        check_count(&list, MAX_MOUNTS)?;
        list.iter()
            .map(|value| {
                let mount = value.table(keys::MOUNT.keys)?;
                let source = self.path(&mount.need("source")?)?;
                let target_value = mount.need("target")?;
                let target = targets.add(&target_value)?;
                let place = target.expand(home);
                if let Some(path) = written.iter().find(|path| is_within(&path.expand(home), &place)) {
                    return Err(target_value.conflict(format!(
                        "nixbox writes {path} in the guest, and on this share it would write to the host"
                    )));
                }
                let readonly = mount.get("readonly").map_or(Ok(false), |value| value.truth())?;
                let protect = match mount.get("protect") {
                    Some(value) => protected(&value)?,
                    None => PathInShare::DEFAULT.to_vec(),
                };
                Ok(MountTable { source, target, readonly, protect })
            })
            .collect()
    }

    fn guest(&self, top: &TomlTable<'_>) -> Result<GuestTable> {
        let guest = top.get("guest").map(|value| value.table(keys::GUEST.keys)).transpose()?;
        let value = |key| guest.as_ref().and_then(|guest| guest.get(key));
        Ok(GuestTable {
            user: value("user").map_or(Ok(UserName::DEFAULT), |value| value.parse())?,
            ssh_key: match value("ssh-key") {
                Some(value) => {
                    let mut path = self.path(&value)?;
                    // An earlier nixbox kept its keys there, and configurations name them.
                    path.follow(&self.root.join(".nixbox/ssh"), self.keys);
                    path
                }
                None => HostPath::below(self.keys, "vm_key"),
            },
            uid: value("uid").map_or(Ok(first_user()), |value| value.number(1, UserIds::MAX))?,
            gid: value("gid").map(|value| value.number(0, UserIds::MAX)).transpose()?,
            require_entropy: value("require-entropy").map_or(Ok(true), |value| value.truth())?,
            ready_timeout: value("ready-timeout").map_or(Ok(ReadyTimeout::DEFAULT), |value| value.parse())?,
        })
    }

    fn env(&self, top: &TomlTable<'_>) -> Result<BTreeMap<VariableName, SecretSource>> {
        let Some(env) = top.get("env") else {
            return Ok(BTreeMap::new());
        };
        let read = |(name, at, value): (&str, Position, TomlValue<'_>)| {
            let key = value.key().to_owned();
            let name = name.parse().map_err(|source| ConfigError::Value { at, key, source })?;
            Ok((name, self.source(&value)?))
        };
        env.open_table()?.entries().map(read).collect()
    }

    /// Reads the source of a value of `[env]`. No error of this function quotes the value.
    fn source(&self, value: &TomlValue<'_>) -> Result<SecretSource> {
        if value.is_text() {
            return secret(value).map(SecretSource::Plain);
        }
        let table = value.open_table().map_err(|_| value.wrong_type("string or table"))?;
        let table = if table.entries().count() == 1 { value.table(keys::SOURCE.keys)? } else { table };
        let given: Vec<_> = table.entries().collect();
        let [(kind, _, value)] = given.as_slice() else {
            let kinds = keys::SOURCE.keys.join(", ");
            return Err(value.conflict(format!("exactly one of {kinds} says where a value comes from")));
        };
        match *kind {
            "from-env" => Ok(SecretSource::FromEnv(value.parse()?)),
            "file" => Ok(SecretSource::File(self.path(value)?)),
            _ => command(value),
        }
    }

    fn credentials(
        &self,
        top: &TomlTable<'_>,
        mounts: &[MountTable],
        home: &GuestHome,
    ) -> Result<CredentialsTable> {
        let Some(value) = top.get("credentials") else {
            return Ok(CredentialsTable::default());
        };
        let credentials = value.table(keys::CREDENTIALS.keys)?;
        let written = written_by_nixbox(top)?;
        let mut targets = Targets::new(home);
        let file = |value: &TomlValue<'_>| {
            let file = value.table(keys::CREDENTIAL_FILE.keys)?;
            let source = self.path(&file.need("source")?)?;
            let value = file.need("target")?;
            let target = targets.add(&value)?;
            off_shares(&value, &target, mounts, home)?;
            if written.iter().any(|path| path.expand(home) == target.expand(home)) {
                return Err(value.conflict(format!("{target} is a file that nixbox writes itself")));
            }
            Ok(CredentialFile { source, target })
        };
        let files = credentials.list("files")?.iter().map(file).collect::<Result<_>>()?;
        let mut wiped = Targets::new(home);
        let wipe = |value: &TomlValue<'_>| {
            let path = wiped.add(value)?;
            off_shares(value, &path, mounts, home)?;
            let inside = |mount: &&MountTable| is_within(&mount.target.expand(home), &path.expand(home));
            match mounts.iter().find(inside) {
                Some(mount) => Err(value.conflict(format!("the share {} is mounted in it", mount.target))),
                None => Ok(path),
            }
        };
        let wipe = credentials.list("wipe")?.iter().map(wipe).collect::<Result<_>>()?;
        let mut replaced = Targets::new(home);
        let overwrite =
            credentials.list("overwrite")?.iter().map(|value| replaced.add(value)).collect::<Result<_>>()?;
        let outbound_key = wants_outbound_key(top)?;
        Ok(CredentialsTable { files, wipe, overwrite, outbound_key })
    }
}

/// The paths of a mount that the guest may only read.
fn protected(value: &TomlValue<'_>) -> Result<Vec<PathInShare>> {
    let list = value.list()?;
    check_count(&list, MAX_PROTECTED)?;
    list.iter().map(TomlValue::parse).collect()
}

fn wants_outbound_key(top: &TomlTable<'_>) -> Result<bool> {
    let Some(credentials) = top.get("credentials") else {
        return Ok(false);
    };
    let credentials = credentials.table(keys::CREDENTIALS.keys)?;
    credentials.get("outbound-key").map_or(Ok(false), |value| value.truth())
}

/// The files that nixbox itself puts into the guest.
fn written_by_nixbox(top: &TomlTable<'_>) -> Result<Vec<GuestPath>> {
    let mut written = Vec::new();
    if wants_outbound_key(top)? {
        written.extend([GuestPath::PRIVATE_KEY, GuestPath::PUBLIC_KEY]);
    }
    if let Some(env) = top.get("env")
        && env.open_table()?.entries().next().is_some()
    {
        written.push(GuestPath::ENVIRONMENT);
    }
    Ok(written)
}

/// Refuses a path on a share, because nixbox would write or remove the file on the host.
fn off_shares(
    value: &TomlValue<'_>,
    path: &GuestPath,
    mounts: &[MountTable],
    home: &GuestHome,
) -> Result<()> {
    let path = path.expand(home);
    match mounts.iter().find(|mount| is_within(&path, &mount.target.expand(home))) {
        Some(mount) => {
            let share = &mount.target;
            Err(value
                .conflict(format!("{path} is on the share mounted at {share}: what is there is the host's")))
        }
        None => Ok(()),
    }
}

/// A set of distinct paths in the guest. Paths are compared as in a guest whose user has the usual home, so that `~/a`
/// and `/home/user/a` are the same path.
struct Targets<'a> {
    home: &'a GuestHome,
    seen: BTreeMap<String, Position>,
}

impl<'a> Targets<'a> {
    fn new(home: &'a GuestHome) -> Self {
        Self { home, seen: BTreeMap::new() }
    }

    fn add(&mut self, value: &TomlValue<'_>) -> Result<GuestPath> {
        let path: GuestPath = value.parse()?;
        let absolute = path.expand(self.home);
        if let Some(first) = self.seen.get(&absolute) {
            return Err(value.conflict(format!("{absolute} is used in line {} already", first.line)));
        }
        self.seen.insert(absolute, value.position());
        Ok(path)
    }
}

fn network(top: &TomlTable<'_>) -> Result<NetworkPolicy> {
    let network = top.get("network").map(|value| value.table(keys::NETWORK.keys)).transpose()?;
    let value = |key| network.as_ref().and_then(|network| network.get(key));
    let mode = value("mode").map_or(Ok(NetworkMode::Open), |value| value.parse())?;
    let domains = value("domains").map_or(Ok(Vec::new()), |value| value.list())?;
    let mut domains = domains.iter().map(TomlValue::parse).collect::<Result<Vec<Domain>>>()?;
    domains.sort();
    domains.dedup();
    let mut ports = match value("ports") {
        Some(value) => value.list()?.iter().map(port).collect::<Result<Vec<_>>>()?,
        None => vec![Port::HTTP, Port::HTTPS],
    };
    ports.sort();
    ports.dedup();
    let host_networks = value("host-networks").map_or(Ok(Vec::new()), |value| value.list())?;
    let mut host_networks =
        host_networks.iter().map(TomlValue::parse).collect::<Result<Vec<PrivateNetwork>>>()?;
    host_networks.sort();
    host_networks.dedup();
    let uplink = value("uplink").map_or(Ok(UplinkPool::default()), |value| value.parse())?;
    Ok(NetworkPolicy { mode, domains, ports, host_networks, uplink })
}

fn port(value: &TomlValue<'_>) -> Result<Port> {
    let most = u16::MAX;
    let number = u16::try_from(value.number(1, most.into())?).unwrap_or(most);
    Port::try_from(number).map_err(|error| value.refuse(error))
}

fn hooks(top: &TomlTable<'_>) -> Result<HooksTable> {
    let Some(value) = top.get("hooks") else {
        return Ok(HooksTable::default());
    };
    let hooks = value.table(keys::HOOKS.keys)?;
    Ok(HooksTable {
        pre_up: commands(&hooks, "pre-up")?,
        post_up: commands(&hooks, "post-up")?,
        pre_down: commands(&hooks, "pre-down")?,
        post_down: commands(&hooks, "post-down")?,
    })
}

fn guest_scripts(top: &TomlTable<'_>) -> Result<GuestScriptsTable> {
    let guest = top.get("guest").map(|value| value.table(keys::GUEST.keys)).transpose()?;
    let Some(value) = guest.and_then(|guest| guest.get("scripts")) else {
        return Ok(GuestScriptsTable::default());
    };
    let scripts = value.table(keys::GUEST_SCRIPTS.keys)?;
    Ok(GuestScriptsTable {
        after_up: commands(&scripts, "after-up")?,
        after_restore: commands(&scripts, "after-restore")?,
        before_snapshot: commands(&scripts, "before-snapshot")?,
    })
}

/// The command lines of a list, each for a shell.
fn commands(table: &TomlTable<'_>, key: &str) -> Result<Vec<String>> {
    table.list(key)?.iter().map(|value| words(value).map(str::to_owned)).collect()
}

fn snapshot(top: &TomlTable<'_>) -> Result<SnapshotTable> {
    let Some(value) = top.get("snapshot") else {
        return Ok(SnapshotTable::default());
    };
    let table = value.table(keys::SNAPSHOT.keys)?;
    // If `keep` were zero, every snapshot would be removed as soon as it is made.
    let keep = table.get("keep").map(|value| value.number(1, u32::MAX)).transpose()?;
    let keep_disks = table.get("keep-disks").map(|value| value.number(0, u32::MAX)).transpose()?;
    let default = SnapshotTable::default();
    Ok(SnapshotTable {
        keep: keep.and_then(NonZeroU32::new),
        keep_for: table.get("keep-for").map(|value| value.parse()).transpose()?,
        keep_size: table.get("keep-size").map(|value| some_bytes(&value)).transpose()?,
        keep_disks: keep_disks.unwrap_or(default.keep_disks),
        on_leak: table.get("on-leak").map(|value| value.parse()).transpose()?.unwrap_or(default.on_leak),
    })
}

/// Reads a size that is not zero: no snapshot occupies nothing.
fn some_bytes(value: &TomlValue<'_>) -> Result<ByteSize> {
    let size: ByteSize = value.parse()?;
    if size.bytes() == 0 { Err(value.conflict(format!("{size} is not at least 1B"))) } else { Ok(size) }
}

fn command_line(value: &TomlValue<'_>) -> Result<String> {
    let text = value.text()?;
    let good = text.len() <= LONGEST_CMDLINE
        && text.chars().all(|letter| letter.is_ascii() && !letter.is_ascii_control());
    let rule = "a kernel command line is one line of at most 2047 printable characters";
    if good { Ok(text.to_owned()) } else { Err(value.refuse(InvalidValue::unquoted(rule))) }
}

/// Reads a text that can be a command line or a program.
fn words<'a>(value: &TomlValue<'a>) -> Result<&'a str> {
    let text = value.text()?;
    if text.is_empty() || text.contains('\0') {
        Err(value.refuse(InvalidValue::unquoted(NOT_A_COMMAND)))
    } else {
        Ok(text)
    }
}

/// Reads a text that may be secret.
fn secret(value: &TomlValue<'_>) -> Result<Secret> {
    let text = value.text()?;
    if text.contains('\0') {
        Err(value.refuse(InvalidValue::unquoted("it has a NUL in it")))
    } else {
        Ok(Secret::new(text.as_bytes().to_vec()))
    }
}

fn command(value: &TomlValue<'_>) -> Result<SecretSource> {
    let list = value.list()?;
    let Some((program, arguments)) = list.split_first() else {
        return Err(value.refuse(InvalidValue::unquoted(NOT_A_COMMAND)));
    };
    let program = words(program)?.to_owned();
    let arguments = arguments.iter().map(secret).collect::<Result<_>>()?;
    Ok(SecretSource::Command(SecretCommand { program, arguments }))
}

fn missing(top: &TomlTable<'_>, key: &str) -> ConfigError {
    ConfigError::Missing { at: top.position(), key: key.to_owned() }
}

fn check_count(list: &[TomlValue<'_>], most: usize) -> Result<()> {
    match list.get(most) {
        Some(value) => Err(value.conflict(format!("there can be {most} at most"))),
        None => Ok(()),
    }
}
