//! The list of all keys of the configuration. The reader refuses every other key and suggests the nearest key of this
//! list. Tests compare the list with the fields of [`super::Config`] and with the template that `init` writes.

/// One table of the configuration.
pub(super) struct KnownTable {
    /// The key of this table in the table that contains it.
    pub(super) name: &'static str,
    pub(super) keys: &'static [&'static str],
}

/// The keys outside of all tables, and the tables.
pub(super) const TOP: &[&str] =
    &["name", "vmm", "vm", "disks", "mounts", "network", "guest", "env", "credentials", "hooks", "snapshot"];

pub(super) const VM: KnownTable =
    KnownTable { name: "vm", keys: &["vcpus", "memory", "kernel", "initramfs", "cmdline", "backing"] };
pub(super) const DISK: KnownTable = KnownTable { name: "disks", keys: &["image", "size"] };
pub(super) const MOUNT: KnownTable =
    KnownTable { name: "mounts", keys: &["source", "target", "readonly", "protect"] };
pub(super) const NETWORK: KnownTable =
    KnownTable { name: "network", keys: &["mode", "domains", "ports", "host-networks", "uplink"] };
pub(super) const GUEST: KnownTable = KnownTable {
    name: "guest",
    keys: &["user", "uid", "gid", "ssh-key", "require-entropy", "ready-timeout", "scripts"],
};
pub(super) const GUEST_SCRIPTS: KnownTable =
    KnownTable { name: "guest.scripts", keys: &["after-up", "after-restore", "before-snapshot"] };
/// A value of `[env]` that is a table.
pub(super) const SOURCE: KnownTable = KnownTable { name: "env", keys: &["from-env", "file", "command"] };
pub(super) const CREDENTIALS: KnownTable =
    KnownTable { name: "credentials", keys: &["files", "wipe", "overwrite", "outbound-key"] };
pub(super) const CREDENTIAL_FILE: KnownTable = KnownTable { name: "files", keys: &["source", "target"] };
pub(super) const HOOKS: KnownTable =
    KnownTable { name: "hooks", keys: &["pre-up", "post-up", "pre-down", "post-down"] };
pub(super) const SNAPSHOT: KnownTable =
    KnownTable { name: "snapshot", keys: &["keep", "keep-for", "keep-size", "keep-disks", "on-leak"] };

/// The tables that occur at most once, so that each of their keys names at most one value.
const SINGLE: [KnownTable; 7] = [VM, NETWORK, GUEST, GUEST_SCRIPTS, CREDENTIALS, HOOKS, SNAPSHOT];

/// Guesses which key was meant by an unknown key. If another table has a key of exactly this name, the person probably
/// left out a heading, and that key is returned. Otherwise the most similar of the `known` keys is returned.
pub(super) fn nearest(key: &str, known: &'static [&'static str]) -> Option<String> {
    let elsewhere = SINGLE.iter().find(|table| table.keys.contains(&key));
    if let Some(table) = elsewhere {
        return Some(format!("{}.{key}", table.name));
    }
    let key = key.to_lowercase().replace('_', "-");
    let likeness = |known: &str| strsim::jaro_winkler(&key, known);
    known
        .iter()
        .filter(|known| likeness(known) > 0.75)
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .map(|known| (*known).to_owned())
}

/// All keys, each with the names of the tables that contain it. `*` stands for a name that a person chooses.
#[cfg(test)]
pub(crate) fn all() -> std::collections::BTreeSet<String> {
    let below = |prefix: &str, table: &KnownTable| -> Vec<String> {
        table.keys.iter().map(|key| format!("{prefix}.{key}")).collect()
    };
    let tables = [VM, DISK, MOUNT, NETWORK, GUEST, GUEST_SCRIPTS, CREDENTIALS, HOOKS, SNAPSHOT];
    let nested = ["env", "credentials.files", GUEST_SCRIPTS.name];
    let leaves =
        TOP.iter().filter(|key| tables.iter().all(|table| table.name != **key)).map(|key| (*key).to_owned());
    leaves
        .chain(tables.iter().flat_map(|table| below(table.name, table)))
        .chain(below("env.*", &SOURCE))
        .chain(below(&format!("credentials.{}", CREDENTIAL_FILE.name), &CREDENTIAL_FILE))
        .filter(|key| !nested.contains(&key.as_str()))
        .collect()
}
