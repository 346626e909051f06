//! Which values of a snapshot's `config.json` a restore takes over: those that cannot name anything on the host.
//!
//! A snapshot may have been made elsewhere, so its configuration decides nothing outside of the VM. Numbers are sizes and
//! counts, which the guest was booted with. Every text has to be one that nixbox sets for this machine under this key, the
//! guest's command line, or one of a few words. A switch may be on only if nixbox or the VMM's defaults switch it on (defaults
//! of v51 to v53, `vmm/src/vm_config.rs` of Cloud Hypervisor).

use serde_json::Value;

use super::RewriteError;
use crate::vmm::config::{MachineDescription, RNG_SOURCE};

/// The words that a key may have.
const WORDS: [(&str, &[&str]); 7] = [
    ("core_scheduling", &["Vm", "Vcpu", "Off"]),
    ("hotplug_method", &["Acpi"]),
    // A disk of an unknown type is one of a version that knows no types.
    ("image_type", &["Raw", "Unknown"]),
    ("lock_granularity", &["ByteRange", "Full"]),
    ("mode", &["Off", "Null", "File"]),
    ("profile", &["Host"]),
    ("vhost_mode", &["Client"]),
];

/// The switches that may be on.
const SWITCHES: [&str; 12] = [
    "deflate_on_oom",
    "disable_aio",
    "disable_io_uring",
    "free_page_reporting",
    "nested",
    "offload_csum",
    "offload_tso",
    "offload_ufo",
    "shared",
    "sparse",
    "thp",
    "vfio_p2p_dma",
];

/// The texts that nixbox sets for this machine, each with its key.
fn own_texts(machine: &MachineDescription) -> Vec<(&'static str, String)> {
    let MachineDescription {
        vcpus: _,
        memory: _,
        memory_file,
        memory_reserved: _,
        kernel,
        initramfs,
        // The guest was booted with the command line of the snapshot, which no program of the host reads.
        cmdline: _,
        disks,
        slot,
        shares,
        serial,
    } = machine;
    let mut own = vec![
        ("kernel", kernel.clone()),
        ("file", serial.clone()),
        ("src", RNG_SOURCE.to_owned()),
        ("id", "ram".to_owned()),
        ("id", "net".to_owned()),
    ];
    own.extend(memory_file.iter().map(|file| ("file", file.clone())));
    own.extend(initramfs.iter().map(|path| ("initramfs", path.clone())));
    for (index, path) in disks.iter().enumerate() {
        own.extend([("path", path.clone()), ("id", format!("disk-{index}"))]);
    }
    if let Some(slot) = slot {
        own.extend([("tap", slot.tap()), ("mac", slot.mac())]);
    }
    for share in shares {
        own.extend([
            ("tag", share.tag().to_owned()),
            ("id", share.id().to_owned()),
            ("socket", share.socket().to_owned()),
        ]);
    }
    own
}

/// Makes sure that a rewritten configuration has no value that could act on the host.
///
/// # Errors
/// [`RewriteError::Foreign`] for the first value that could.
pub(super) fn check(config: &Value, machine: &MachineDescription) -> Result<(), RewriteError> {
    check_value("", config, &own_texts(machine))
}

fn check_value(key: &str, value: &Value, own: &[(&'static str, String)]) -> Result<(), RewriteError> {
    let good = match value {
        Value::Null | Value::Bool(false) | Value::Number(_) => true,
        Value::Bool(true) => SWITCHES.contains(&key),
        Value::String(text) => {
            let word = WORDS.iter().any(|(name, words)| *name == key && words.contains(&text.as_str()));
            key == "cmdline" || word || own.iter().any(|(name, own)| *name == key && own == text)
        }
        Value::Array(items) => return items.iter().try_for_each(|item| check_value(key, item, own)),
        Value::Object(map) => return map.iter().try_for_each(|(key, value)| check_value(key, value, own)),
    };
    if good { Ok(()) } else { Err(RewriteError::Foreign(format!("{key:?} with the value {value}"))) }
}
