//! Rewrites a copy of a snapshot's `config.json`, so that `vm.restore` makes a VM with the disks, RAM file, TAP, share
//! sockets and serial log of another generation.
//!
//! `vm.snapshot` writes absolute host paths of everything that the VM had into `config.json` (form of v51 to v53), and
//! `vm.restore` opens the paths that it finds there. All paths are replaced by those of the wanted machine. What remains of
//! the snapshot's configuration is checked by [`values`], so that a snapshot that was made elsewhere names nothing on this
//! host. A kind of device that nixbox never gives a VM is an error. A restore cannot change the number, size and kind of
//! the devices: if they differ from those of the wanted machine, that is an error, and the copy is not written.

use serde_json::{Map, Value};

use super::config::{FsConfig, MachineDescription, RNG_SOURCE};

mod values;

/// Why a snapshot's configuration cannot be restored as this machine.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    #[error("config.json of the snapshot is not JSON")]
    NotJson(#[source] serde_json::Error),
    #[error("config.json of the snapshot has no {0} of the form that Cloud Hypervisor writes")]
    Form(&'static str),
    #[error("the snapshot's VM has {0}, which nixbox never gives one")]
    Foreign(String),
    #[error("the snapshot's VM has {found} and this machine has {wanted}; a restore cannot change that")]
    Mismatch { found: String, wanted: String },
}

/// The keys that nixbox sets, and keys that have no effect on the host. All other keys have to be null, false, or an
/// empty list or object.
const KNOWN: [&str; 17] = [
    "balloon",
    "console",
    "cpus",
    "debug_console",
    "disks",
    "fs",
    "iommu",
    "landlock_enable",
    "memory",
    "net",
    "payload",
    "platform",
    "pvpanic",
    "rng",
    "serial",
    "vmm_config_version",
    "watchdog",
];

/// Rewrites the snapshot's `config` into the configuration of `machine`.
///
/// # Errors
/// [`RewriteError`].
pub fn rewrite(config: &[u8], machine: &MachineDescription) -> Result<Vec<u8>, RewriteError> {
    let mut config: Value = serde_json::from_slice(config).map_err(RewriteError::NotJson)?;
    let top = config.as_object_mut().ok_or(RewriteError::Form("object"))?;
    if let Some((key, _)) = top.iter().find(|(key, value)| !KNOWN.contains(&key.as_str()) && is_on(value)) {
        return Err(RewriteError::Foreign(format!("{key:?}")));
    }
    rewrite_cpus(top, machine)?;
    rewrite_memory(top, machine)?;
    rewrite_payload(top, machine)?;
    rewrite_disks(top, machine)?;
    rewrite_net(top, machine)?;
    rewrite_shares(top, machine)?;
    rewrite_consoles(top, machine)?;
    if let Some(rng) = top.get_mut("rng").and_then(Value::as_object_mut) {
        set(rng, "src", RNG_SOURCE);
    }
    values::check(&config, machine)?;
    serde_json::to_vec(&config).map_err(RewriteError::NotJson)
}

fn is_on(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Bool(true) | Value::Number(_) | Value::String(_) => true,
    }
}

/// The list of objects under `key`. The list is empty if the key is missing or null.
fn list<'a>(
    map: &'a mut Map<String, Value>,
    key: &'static str,
) -> Result<Vec<&'a mut Map<String, Value>>, RewriteError> {
    match map.get_mut(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(items)) => {
            items.iter_mut().map(|item| item.as_object_mut().ok_or(RewriteError::Form(key))).collect()
        }
        Some(_) => Err(RewriteError::Form(key)),
    }
}

fn object<'a>(
    map: &'a mut Map<String, Value>,
    key: &'static str,
) -> Result<&'a mut Map<String, Value>, RewriteError> {
    map.get_mut(key).and_then(Value::as_object_mut).ok_or(RewriteError::Form(key))
}

fn same<T: PartialEq + std::fmt::Display>(what: &str, found: T, wanted: T) -> Result<(), RewriteError> {
    if found == wanted {
        return Ok(());
    }
    Err(RewriteError::Mismatch { found: format!("{found} {what}"), wanted: wanted.to_string() })
}

fn refuse_paths(what: &str, map: &Map<String, Value>, foreign: &[&str]) -> Result<(), RewriteError> {
    match foreign.iter().find(|key| map.get(**key).is_some_and(is_on)) {
        Some(key) => Err(RewriteError::Foreign(format!("{what} with {key:?}"))),
        None => Ok(()),
    }
}

fn set(map: &mut Map<String, Value>, key: &str, text: &str) {
    map.insert(key.to_owned(), Value::from(text));
}

fn rewrite_cpus(top: &mut Map<String, Value>, machine: &MachineDescription) -> Result<(), RewriteError> {
    let vcpus =
        object(top, "cpus")?.get("boot_vcpus").and_then(Value::as_u64).ok_or(RewriteError::Form("cpus"))?;
    same("vCPUs", vcpus, u64::from(machine.vcpus.get()))
}

fn rewrite_memory(top: &mut Map<String, Value>, machine: &MachineDescription) -> Result<(), RewriteError> {
    let memory = object(top, "memory")?;
    let own = memory.get("size").and_then(Value::as_u64).ok_or(RewriteError::Form("memory"))?;
    let mut zones = list(memory, "zones")?;
    match (zones.as_mut_slice(), &machine.memory_file) {
        ([], None) => same("bytes of RAM", own, machine.memory),
        ([zone], Some(file)) if zone.get("file").is_some_and(is_on) => {
            let size = zone.get("size").and_then(Value::as_u64).ok_or(RewriteError::Form("zones"))?;
            same("bytes of RAM", own.saturating_add(size), machine.memory)?;
            set(zone, "file", file);
            Ok(())
        }
        (zones, file) => {
            let kind = |of_file| {
                if of_file { "RAM in a file" } else { "RAM that the VMM allocates" }
            };
            Err(RewriteError::Mismatch {
                found: kind(!zones.is_empty()).to_owned(),
                wanted: kind(file.is_some()).to_owned(),
            })
        }
    }
}

fn rewrite_payload(top: &mut Map<String, Value>, machine: &MachineDescription) -> Result<(), RewriteError> {
    let payload = object(top, "payload")?;
    refuse_paths("a payload", payload, &["firmware", "igvm", "fw_cfg_config"])?;
    // Only the paths are replaced: the command line remains the one that the guest was booted with.
    set(payload, "kernel", &machine.kernel);
    match &machine.initramfs {
        Some(initramfs) => set(payload, "initramfs", initramfs),
        None => drop(payload.remove("initramfs")),
    }
    Ok(())
}

fn rewrite_disks(top: &mut Map<String, Value>, machine: &MachineDescription) -> Result<(), RewriteError> {
    let disks = list(top, "disks")?;
    same("disks", disks.len(), machine.disks.len())?;
    for (disk, path) in disks.into_iter().zip(&machine.disks) {
        refuse_paths("a disk", disk, &["vhost_user", "vhost_socket", "backing_files"])?;
        set(disk, "path", path);
    }
    Ok(())
}

fn rewrite_net(top: &mut Map<String, Value>, machine: &MachineDescription) -> Result<(), RewriteError> {
    let nets = list(top, "net")?;
    same("network devices", nets.len(), usize::from(machine.slot.is_some()))?;
    for (net, slot) in nets.into_iter().zip(machine.slot) {
        refuse_paths("a network device", net, &["vhost_user", "vhost_socket", "fds"])?;
        // The guest keeps its address and MAC, which belong to a slot.
        let found = net.get("mac").and_then(Value::as_str).ok_or(RewriteError::Form("net"))?;
        same("as its MAC", found, slot.mac().as_str())?;
        set(net, "tap", &slot.tap());
        // `host_mac` is the MAC of the old TAP on the host. The VMM would try to set it on the new TAP, for which a
        // user has no permission.
        net.remove("host_mac");
    }
    Ok(())
}

fn rewrite_shares(top: &mut Map<String, Value>, machine: &MachineDescription) -> Result<(), RewriteError> {
    let mut shares = list(top, "fs")?;
    let tag =
        |share: &Map<String, Value>| share.get("tag").and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut found: Vec<String> = shares.iter().map(|share| tag(share)).collect();
    let mut wanted: Vec<String> = machine.shares.iter().map(|share| share.tag().to_owned()).collect();
    found.sort();
    wanted.sort();
    same("as shares", format!("{found:?}"), format!("{wanted:?}"))?;
    for share in &mut shares {
        let tag = tag(share);
        let wanted =
            machine.shares.iter().find(|wanted| wanted.tag() == tag).ok_or(RewriteError::Form("fs"))?;
        // nixbox could not remove a share without an id later.
        let id = share.get("id").and_then(Value::as_str).unwrap_or_default();
        same("as the id of a share", id, FsConfig::id_of(&tag).as_str())?;
        set(share, "socket", wanted.socket());
    }
    Ok(())
}

fn rewrite_consoles(top: &mut Map<String, Value>, machine: &MachineDescription) -> Result<(), RewriteError> {
    for key in ["console", "debug_console"] {
        if let Some(console) = top.get_mut(key).filter(|value| is_on(value)).and_then(Value::as_object_mut) {
            refuse_paths("a console", console, &["file", "socket"])?;
        }
    }
    let serial = object(top, "serial")?;
    refuse_paths("a serial console", serial, &["socket"])?;
    set(serial, "mode", "File");
    set(serial, "file", &machine.serial);
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::vmm::config::tests::description;

    /// Written by the `vm.snapshot` of v53.0, for a VM that [`super::super::config`] describes.
    const REAL: &str = include_str!("restore/config-v53.0.json");

    fn machine() -> MachineDescription {
        MachineDescription { disks: vec!["/d/root-4".into()], ..description() }
    }

    fn with(change: impl FnOnce(&mut Value)) -> Vec<u8> {
        let mut config: Value = serde_json::from_str(REAL).unwrap();
        change(&mut config);
        serde_json::to_vec(&config).unwrap()
    }

    #[test]
    fn every_path_of_a_real_configuration_is_replaced_and_nothing_else() {
        let rewritten: Value =
            serde_json::from_slice(&rewrite(REAL.as_bytes(), &machine()).unwrap()).unwrap();
        let expected = with(|config| {
            config["memory"]["zones"][0]["file"] = json!("/run/m/ram-3");
            config["payload"]["kernel"] = json!("/k/vmlinuz");
            config["payload"]["initramfs"] = json!("/k/initramfs");
            config["disks"][0]["path"] = json!("/d/root-4");
            config["net"][0].as_object_mut().unwrap().remove("host_mac").unwrap();
            config["fs"][0]["socket"] = json!("/run/m/fs-3-0.sock");
            config["serial"]["file"] = json!("/run/m/serial-3.log");
        });
        assert_eq!(rewritten, serde_json::from_slice::<Value>(&expected).unwrap());
        let text = rewritten.to_string();
        assert!(!text.contains("/run/old") && !text.contains("/srv/guest"), "{text}");
    }

    #[test]
    fn rewriting_the_body_of_vm_create_for_the_same_machine_changes_nothing() {
        let ours =
            super::super::config::VmConfig::new(&machine(), crate::world::capability::of("v51.1").unwrap());
        let ours = serde_json::to_vec(&ours).unwrap();
        let again: Value = serde_json::from_slice(&rewrite(&ours, &machine()).unwrap()).unwrap();
        assert_eq!(again, serde_json::from_slice::<Value>(&ours).unwrap());
    }

    #[test]
    fn a_machine_that_differs_is_a_mismatch() {
        let differing = [
            MachineDescription { disks: Vec::new(), ..machine() },
            MachineDescription { memory: 1 << 30, ..machine() },
            MachineDescription { memory_file: None, ..machine() },
            MachineDescription { vcpus: std::num::NonZeroU32::new(1).unwrap(), ..machine() },
            MachineDescription { slot: None, ..machine() },
            MachineDescription { slot: Some(crate::world::Slot::try_from(8).unwrap()), ..machine() },
            MachineDescription { shares: Vec::new(), ..machine() },
            MachineDescription { shares: vec![FsConfig::new("other", "/s")], ..machine() },
        ];
        for machine in differing {
            let result = rewrite(REAL.as_bytes(), &machine);
            assert!(matches!(result, Err(RewriteError::Mismatch { .. })), "{machine:?}: {result:?}");
        }
    }

    #[test]
    fn a_device_that_nixbox_never_makes_is_refused() {
        let foreign: [fn(&mut Value); 17] = [
            |config| config["vsock"] = json!({"cid": 3, "socket": "/etc/x"}),
            |config| config["pmem"] = json!([{"file": "/etc/shadow"}]),
            |config| config["devices"] = json!([{"path": "/sys/x"}]),
            |config| config["something_new"] = json!(1),
            |config| config["disks"][0]["vhost_socket"] = json!("/x"),
            |config| config["net"][0]["fds"] = json!([3]),
            |config| config["debug_console"]["file"] = json!("/etc/x"),
            |config| config["payload"]["firmware"] = json!("/etc/x"),
            |config| config["console"] = json!({"mode": "Tty"}),
            |config| config["rng"]["socket"] = json!("/etc/x"),
            |config| config["memory"]["zones"][0]["something_new"] = json!("/etc/x"),
            |config| config["platform"] = json!({"iommufd": true}),
            |config| config["cpus"]["affinity"] = json!([{"vcpu": 0, "host_cpus": "0-3"}]),
            |config| config["disks"][0]["image_type"] = json!("Qcow2"),
            |config| config["disks"][0]["rate_limit_group"] = json!("x"),
            |config| config["memory"]["zones"][0]["id"] = json!("/etc/x"),
            |config| config["landlock_enable"] = json!(true),
        ];
        for change in foreign {
            let config = with(change);
            let result = rewrite(&config, &machine());
            assert!(matches!(result, Err(RewriteError::Foreign(_))), "{result:?}");
        }
        assert!(rewrite(&with(|config| config["pmem"] = json!([])), &machine()).is_ok());
    }

    #[test]
    fn the_source_of_entropy_is_ours() {
        let foreign = with(|config| config["rng"]["src"] = json!("/home/me/.ssh/id_ed25519"));
        let rewritten: Value = serde_json::from_slice(&rewrite(&foreign, &machine()).unwrap()).unwrap();
        assert_eq!(rewritten["rng"]["src"], "/dev/urandom");
    }

    #[test]
    fn a_configuration_of_any_other_form_is_an_error() {
        let keys = ["cpus", "memory", "payload", "disks", "net", "fs", "serial"];
        for key in keys {
            for value in [json!(7), json!("x"), json!([1]), json!({"a": 1}), Value::Null] {
                if ["payload", "serial"].contains(&key) && value.is_object() {
                    // `rewrite` sets all values that nixbox needs in these tables.
                    continue;
                }
                let config = with(|config| config[key] = value.clone());
                assert!(rewrite(&config, &machine()).is_err(), "{key}: {value}");
            }
        }
        for bad in [&b""[..], b"[]", b"null", b"{}", b"{\"cpus\":", &[b'['; 1000]] {
            assert!(rewrite(bad, &machine()).is_err());
        }
    }
}
