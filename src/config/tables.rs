//! The tables of the configuration, one function each: which keys there are, what they become, and their defaults.

use std::collections::BTreeMap;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::Path;

use secrecy::SecretString;
use toml::de::DeTable;

use super::read::{SourceText, TomlTable, TomlValue};
use super::*;

const TOP: &[&str] =
    &["name", "vmm", "vm", "disks", "mounts", "network", "guest", "env", "credentials", "hooks", "snapshot"];
const VM: &[&str] = &["vcpus", "memory", "kernel", "initramfs", "cmdline", "backing"];
const DISK: &[&str] = &["image", "size"];
const MOUNT: &[&str] = &["source", "target", "readonly"];
const NETWORK: &[&str] = &["mode", "domains", "ports"];
const GUEST: &[&str] = &["user", "ssh-key"];
const SOURCE: &[&str] = &["from-env", "file", "command"];
const CREDENTIALS: &[&str] = &["files", "wipe"];
const CREDENTIAL_FILE: &[&str] = &["source", "target"];
const HOOKS: &[&str] = &["pre-up", "post-up", "pre-down", "post-down"];
const SNAPSHOT: &[&str] = &["keep"];

/// What Cloud Hypervisor and the guest's kernel can do with; 255 is the broadcast APIC id.
const MAX_VCPUS: u32 = 254;
/// Less does not boot a Linux with an initramfs.
const MIN_MEMORY: u64 = 64 << 20;
/// Huge pages of the VMM and of tmpfs are of this size.
const MEMORY_UNIT: u64 = 2 << 20;
/// The default is at least this where the host has it.
const COMFORTABLE_MEMORY: u64 = 4 << 30;
/// The size of a sector that every guest accepts.
const DISK_UNIT: u64 = 4096;
/// Less is no useful ext4.
const MIN_EMPTY_DISK: u64 = 16 << 20;
/// There are 31 places on the VM's PCI bus, and other devices.
const MAX_DISKS: usize = 16;
const MAX_MOUNTS: usize = 8;
/// `COMMAND_LINE_SIZE` of x86 without the NUL.
const MAX_CMDLINE: usize = 2047;

/// What relative values are relative to.
pub(super) struct ConfigReader<'a> {
    pub(super) root: &'a Path,
    pub(super) host: &'a HostFacts,
}

impl ConfigReader<'_> {
    pub(super) fn config<'a>(&self, text: SourceText<'a>, table: &'a DeTable<'a>) -> Result<Config> {
        let top = TomlTable::whole(text, table, TOP)?;
        let guest = self.guest(&top)?;
        Ok(Config {
            name: match top.get("name") {
                Some(name) => name.parse()?,
                None => Name::of_directory(self.root),
            },
            vmm: top.get("vmm").map_or(Ok(VmmChoice::CloudHypervisor), |value| value.parse())?,
            vm: self.vm(&top)?,
            disks: self.disks(&top)?,
            mounts: self.mounts(&top, &guest.user)?,
            network: network(&top)?,
            env: self.env(&top)?,
            credentials: self.credentials(&top, &guest.user)?,
            guest,
            hooks: hooks(&top)?,
            snapshot: snapshot(&top)?,
        })
    }

    fn path(&self, value: &TomlValue<'_>) -> Result<HostPath> {
        HostPath::resolve(value.text()?, self.root, self.host.home.as_deref())
            .map_err(|error| value.refuse(error))
    }

    fn vm(&self, top: &TomlTable<'_>) -> Result<VmTable> {
        let vm = top.get("vm").ok_or_else(|| missing(top, "vm.kernel"))?.table(VM)?;
        let vcpus = vm.get("vcpus").map_or(Ok(0), |value| value.number(0, MAX_VCPUS))?;
        let vcpus = if vcpus == 0 { (self.host.vcpus / 2).clamp(1, MAX_VCPUS) } else { vcpus };
        Ok(VmTable {
            // Bounded by MAX_VCPUS.
            vcpus: u8::try_from(vcpus).unwrap_or(u8::MAX),
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
        })
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
            return Err(conflict(value, format!("{memory} is more than this host has, which is {host}")));
        }
        if memory.bytes() < MIN_MEMORY || !memory.bytes().is_multiple_of(MEMORY_UNIT) {
            let (least, unit) = (ByteSize::from_bytes(MIN_MEMORY), ByteSize::from_bytes(MEMORY_UNIT));
            return Err(conflict(
                value,
                format!("{memory} is not at least {least} and a multiple of {unit}"),
            ));
        }
        Ok(memory)
    }

    fn disks(&self, top: &TomlTable<'_>) -> Result<Vec<DiskTable>> {
        let disks = top.list("disks")?;
        check_count(&disks, MAX_DISKS)?;
        disks.iter().map(|value| self.disk(value)).collect()
    }

    fn disk(&self, value: &TomlValue<'_>) -> Result<DiskTable> {
        let disk = value.table(DISK)?;
        let image = disk.get("image").map(|value| self.path(&value)).transpose()?;
        let Some(size_value) = disk.get("size") else {
            return match image {
                Some(_) => Ok(DiskTable { image, size: None }),
                None => Err(conflict(value, "a disk needs an image, a size, or both".to_owned())),
            };
        };
        let size: ByteSize = size_value.parse()?;
        let least = ByteSize::from_bytes(if image.is_some() { DISK_UNIT } else { MIN_EMPTY_DISK });
        if size < least || !size.bytes().is_multiple_of(DISK_UNIT) {
            let problem = format!("{size} is not at least {least} and a multiple of {DISK_UNIT} bytes");
            return Err(conflict(&size_value, problem));
        }
        Ok(DiskTable { image, size: Some(size) })
    }

    fn mounts(&self, top: &TomlTable<'_>, user: &UserName) -> Result<Vec<MountTable>> {
        let Some(value) = top.get("mounts") else {
            let resolved = HostPath::resolve(".", self.root, None).and_then(|source| {
                Ok(MountTable { source, target: "~/workspace".parse()?, readonly: false })
            });
            let refuse = |source| ConfigError::Value { at: top.position(), key: "mounts".to_owned(), source };
            return Ok(vec![resolved.map_err(refuse)?]);
        };
        let mut targets = Targets::new(user);
        let list = value.list()?;
        check_count(&list, MAX_MOUNTS)?;
        list.iter()
            .map(|value| {
                let mount = value.table(MOUNT)?;
                let source = self.path(&mount.need("source")?)?;
                let target = targets.add(&mount.need("target")?)?;
                let readonly = mount.get("readonly").map_or(Ok(false), |value| value.truth())?;
                Ok(MountTable { source, target, readonly })
            })
            .collect()
    }

    fn guest(&self, top: &TomlTable<'_>) -> Result<GuestTable> {
        let guest = top.get("guest").map(|value| value.table(GUEST)).transpose()?;
        let value = |key| guest.as_ref().and_then(|guest| guest.get(key));
        Ok(GuestTable {
            user: match value("user") {
                Some(value) => value.parse()?,
                None => "user".parse().map_err(|source| ConfigError::Value {
                    at: top.position(),
                    key: "guest.user".to_owned(),
                    source,
                })?,
            },
            ssh_key: match value("ssh-key") {
                Some(value) => self.path(&value)?,
                None => HostPath::resolve(".nixbox/ssh/vm_key", self.root, None).map_err(|source| {
                    ConfigError::Value { at: top.position(), key: "guest.ssh-key".to_owned(), source }
                })?,
            },
        })
    }

    fn env(&self, top: &TomlTable<'_>) -> Result<BTreeMap<VariableName, Source>> {
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

    /// No complaint in here quotes the value.
    fn source(&self, value: &TomlValue<'_>) -> Result<Source> {
        if value.is_text() {
            let text = value.text()?;
            return if text.contains('\0') {
                Err(value.refuse(ValueError::Command))
            } else {
                Ok(plain(text))
            };
        }
        let table = value.open_table().map_err(|_| value.wrong_type("string or table"))?;
        let table = if table.entries().count() == 1 { value.table(SOURCE)? } else { table };
        let given: Vec<_> = table.entries().collect();
        let [(kind, _, value)] = given.as_slice() else {
            return Err(conflict(
                value,
                format!("exactly one of {} says where a value comes from", SOURCE.join(", ")),
            ));
        };
        match *kind {
            "from-env" => Ok(Source::FromEnv(value.parse()?)),
            "file" => Ok(Source::File(self.path(value)?)),
            _ => command(value),
        }
    }

    fn credentials(&self, top: &TomlTable<'_>, user: &UserName) -> Result<CredentialsTable> {
        let Some(value) = top.get("credentials") else {
            return Ok(CredentialsTable::default());
        };
        let credentials = value.table(CREDENTIALS)?;
        let mut targets = Targets::new(user);
        let file = |value: &TomlValue<'_>| {
            let file = value.table(CREDENTIAL_FILE)?;
            let source = self.path(&file.need("source")?)?;
            Ok(CredentialFile { source, target: targets.add(&file.need("target")?)? })
        };
        let files = credentials.list("files")?.iter().map(file).collect::<Result<_>>()?;
        let mut wipe = Targets::new(user);
        let wipe = credentials.list("wipe")?.iter().map(|value| wipe.add(value)).collect::<Result<_>>()?;
        Ok(CredentialsTable { files, wipe })
    }
}

/// Paths in the guest, none of them twice and none of them a root: written differently they may be one.
struct Targets<'a> {
    user: &'a UserName,
    seen: BTreeMap<String, Position>,
}

impl<'a> Targets<'a> {
    fn new(user: &'a UserName) -> Self {
        Self { user, seen: BTreeMap::new() }
    }

    fn add(&mut self, value: &TomlValue<'_>) -> Result<GuestPath> {
        let path: GuestPath = value.parse()?;
        let absolute = path.absolute(self.user);
        if absolute == "/" {
            return Err(conflict(value, "this is the whole guest".to_owned()));
        }
        if let Some(first) = self.seen.get(&absolute) {
            return Err(conflict(value, format!("{absolute} is used in line {} already", first.line)));
        }
        self.seen.insert(absolute, value.position());
        Ok(path)
    }
}

fn network(top: &TomlTable<'_>) -> Result<NetworkTable> {
    let network = top.get("network").map(|value| value.table(NETWORK)).transpose()?;
    let value = |key| network.as_ref().and_then(|network| network.get(key));
    let mode = value("mode").map_or(Ok(NetworkMode::Open), |value| value.parse())?;
    let domains = value("domains").map_or(Ok(Vec::new()), |value| value.list())?;
    let mut domains = domains.iter().map(TomlValue::parse).collect::<Result<Vec<Domain>>>()?;
    domains.sort();
    domains.dedup();
    let mut ports = match value("ports") {
        Some(value) => value.list()?.iter().map(port).collect::<Result<Vec<_>>>()?,
        None => [80, 443].into_iter().filter_map(NonZeroU16::new).collect(),
    };
    ports.sort();
    ports.dedup();
    Ok(NetworkTable { mode, domains, ports })
}

fn port(value: &TomlValue<'_>) -> Result<NonZeroU16> {
    let number = value.number(1, u32::from(u16::MAX))?;
    u16::try_from(number)
        .ok()
        .and_then(NonZeroU16::new)
        .ok_or_else(|| value.refuse(ValueError::Range(number.into(), 1, u16::MAX.into())))
}

fn hooks(top: &TomlTable<'_>) -> Result<HooksTable> {
    let Some(value) = top.get("hooks") else {
        return Ok(HooksTable::default());
    };
    let hooks = value.table(HOOKS)?;
    let commands =
        |key| hooks.list(key)?.iter().map(|value| words(value).map(str::to_owned)).collect::<Result<_>>();
    Ok(HooksTable {
        pre_up: commands("pre-up")?,
        post_up: commands("post-up")?,
        pre_down: commands("pre-down")?,
        post_down: commands("post-down")?,
    })
}

fn snapshot(top: &TomlTable<'_>) -> Result<SnapshotTable> {
    let Some(value) = top.get("snapshot") else {
        return Ok(SnapshotTable::default());
    };
    // Zero would remove the snapshot that was just made.
    let keep = value.table(SNAPSHOT)?.get("keep").map(|value| value.number(1, u32::MAX)).transpose()?;
    Ok(SnapshotTable { keep: keep.and_then(NonZeroU32::new) })
}

fn command_line(value: &TomlValue<'_>) -> Result<String> {
    let text = value.text()?;
    let good = text.len() <= MAX_CMDLINE
        && text.chars().all(|letter| letter.is_ascii() && !letter.is_ascii_control());
    if good { Ok(text.to_owned()) } else { Err(value.refuse(ValueError::CommandLine)) }
}

/// A text that can be a command or a part of one.
fn words<'a>(value: &TomlValue<'a>) -> Result<&'a str> {
    let text = value.text()?;
    if text.is_empty() || text.contains('\0') { Err(value.refuse(ValueError::Command)) } else { Ok(text) }
}

fn command(value: &TomlValue<'_>) -> Result<Source> {
    let list = value.list()?;
    let Some((program, arguments)) = list.split_first() else {
        return Err(value.refuse(ValueError::Command));
    };
    let program = words(program)?.to_owned();
    let argument = |value: &TomlValue<'_>| {
        let text = value.text()?;
        if text.contains('\0') {
            Err(value.refuse(ValueError::Command))
        } else {
            Ok(SecretString::from(text))
        }
    };
    let arguments = arguments.iter().map(argument).collect::<Result<_>>()?;
    Ok(Source::Command(SecretCommand::new(program, arguments)))
}

fn conflict(value: &TomlValue<'_>, problem: String) -> ConfigError {
    ConfigError::Conflict { at: value.position(), key: value.key().to_owned(), problem }
}

fn missing(top: &TomlTable<'_>, key: &str) -> ConfigError {
    ConfigError::Missing { at: top.position(), key: key.to_owned() }
}

fn check_count(list: &[TomlValue<'_>], most: usize) -> Result<()> {
    match list.get(most) {
        Some(value) => Err(conflict(value, format!("there can be {most} at most"))),
        None => Ok(()),
    }
}

/// The table that has a key of exactly this name: for somebody who left out its heading.
pub(super) fn elsewhere(key: &str) -> Option<&'static str> {
    let full = [
        ("vcpus", "vm.vcpus"),
        ("memory", "vm.memory"),
        ("kernel", "vm.kernel"),
        ("initramfs", "vm.initramfs"),
        ("cmdline", "vm.cmdline"),
        ("backing", "vm.backing"),
        ("domains", "network.domains"),
        ("ports", "network.ports"),
        ("user", "guest.user"),
        ("ssh-key", "guest.ssh-key"),
        ("wipe", "credentials.wipe"),
        ("keep", "snapshot.keep"),
    ];
    full.iter().find(|(name, _)| *name == key).map(|(_, full)| *full)
}
