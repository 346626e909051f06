//! Every key of the configuration, once: the reader refuses all others and finds the nearest of these, and tests
//! compare them with the fields of [`super::Config`] and with the template that `init` writes.

/// One table of the configuration.
pub(super) struct KnownTable {
    /// Its key in the table that it is in.
    pub(super) name: &'static str,
    pub(super) keys: &'static [&'static str],
}

/// The keys outside of all tables, and the tables.
pub(super) const TOP: &[&str] =
    &["name", "vmm", "vm", "disks", "mounts", "network", "guest", "env", "credentials", "hooks", "snapshot"];

pub(super) const VM: KnownTable =
    KnownTable { name: "vm", keys: &["vcpus", "memory", "kernel", "initramfs", "cmdline", "backing"] };
pub(super) const DISK: KnownTable = KnownTable { name: "disks", keys: &["image", "size"] };
pub(super) const MOUNT: KnownTable = KnownTable { name: "mounts", keys: &["source", "target", "readonly"] };
pub(super) const NETWORK: KnownTable = KnownTable { name: "network", keys: &["mode", "domains", "ports"] };
pub(super) const GUEST: KnownTable = KnownTable { name: "guest", keys: &["user", "ssh-key"] };
/// A value of `[env]` that is a table.
pub(super) const SOURCE: KnownTable = KnownTable { name: "env", keys: &["from-env", "file", "command"] };
pub(super) const CREDENTIALS: KnownTable = KnownTable { name: "credentials", keys: &["files", "wipe"] };
pub(super) const CREDENTIAL_FILE: KnownTable = KnownTable { name: "files", keys: &["source", "target"] };
pub(super) const HOOKS: KnownTable =
    KnownTable { name: "hooks", keys: &["pre-up", "post-up", "pre-down", "post-down"] };
pub(super) const SNAPSHOT: KnownTable = KnownTable { name: "snapshot", keys: &["keep"] };

/// The tables that are there at most once, so that one of their keys names one value.
const SINGLE: [KnownTable; 6] = [VM, NETWORK, GUEST, CREDENTIALS, HOOKS, SNAPSHOT];

/// The key that was meant by one that is not known: a key of exactly this name in another table, for a person who left
/// out a heading, or else the most similar of the keys that are known here.
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

/// All keys, each with the tables that it is in. `*` stands for a name that a person chooses.
#[cfg(test)]
pub(crate) fn all() -> std::collections::BTreeSet<String> {
    let below = |prefix: &str, table: &KnownTable| -> Vec<String> {
        table.keys.iter().map(|key| format!("{prefix}.{key}")).collect()
    };
    let tables = [VM, DISK, MOUNT, NETWORK, GUEST, CREDENTIALS, HOOKS, SNAPSHOT];
    let nested = ["env".to_owned(), "credentials.files".to_owned()];
    let leaves =
        TOP.iter().filter(|key| tables.iter().all(|table| table.name != **key)).map(|key| (*key).to_owned());
    leaves
        .chain(tables.iter().flat_map(|table| below(table.name, table)))
        .chain(below("env.*", &SOURCE))
        .chain(below(&format!("credentials.{}", CREDENTIAL_FILE.name), &CREDENTIAL_FILE))
        .filter(|key| !nested.contains(key))
        .collect()
}
