//! Which modules of a kernel an initramfs needs: the wanted ones and what they depend on, in the order in which they are to be
//! loaded, as `modules.dep` and `modules.builtin` of the kernel say.

use std::collections::{BTreeMap, BTreeSet};

/// What an initramfs cannot do without: the bus, the disk, its file system and the network.
pub const REQUIRED: [&str; 4] = ["virtio_pci", "virtio_blk", "ext4", "virtio_net"];
/// What it loads before these, where the kernel has it. ext4 asks for crc32c by name, which no line of `modules.dep` says.
pub const OPTIONAL: [&str; 10] = [
    "crc32c_generic",
    "crc32c_intel",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "virtiofs",
    "fuse",
    "overlay",
    "vsock",
    "vmw_vsock_virtio_transport",
];

/// Why the modules of a kernel cannot be used.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ModuleError {
    #[error(
        "the kernel has no {0}, neither built in nor as a module, and a VM needs it: use another kernel (--kernel)"
    )]
    Missing(String),
    #[error("modules.dep of the kernel has a line that is not of the form `module: modules`: {0:?}")]
    Line(String),
    #[error("modules.dep of the kernel has the path {0:?}, which is not below the directory of its modules")]
    Path(String),
}

/// The modules that a kernel has.
#[derive(Debug, Clone, Default)]
pub struct ModuleIndex {
    /// The path of each module, by its name.
    paths: BTreeMap<String, String>,
    /// What each module, by its path, depends on directly or indirectly.
    needs: BTreeMap<String, Vec<String>>,
    builtin: BTreeSet<String>,
}

/// The name of a module by its path: without directories and endings, `-` written as `_`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.split(".ko").next().unwrap_or(file);
    stem.replace('-', "_")
}

fn checked(path: &str) -> Result<String, ModuleError> {
    let good =
        !path.is_empty() && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if good { Ok(path.to_owned()) } else { Err(ModuleError::Path(path.to_owned())) }
}

impl ModuleIndex {
    /// Parses the two files. Each path is relative to the directory of the modules.
    ///
    /// # Errors
    /// [`ModuleError::Line`], [`ModuleError::Path`].
    pub fn parse(dependencies: &str, builtin: &str) -> Result<Self, ModuleError> {
        let mut index = Self { builtin: builtin.lines().map(name_of).collect(), ..Self::default() };
        for line in dependencies.lines().filter(|line| !line.trim().is_empty()) {
            let (path, needs) = line.split_once(':').ok_or_else(|| ModuleError::Line(line.to_owned()))?;
            let path = checked(path)?;
            let needs: Vec<String> = needs.split_whitespace().map(checked).collect::<Result<_, _>>()?;
            index.paths.insert(name_of(&path), path.clone());
            index.needs.insert(path, needs);
        }
        Ok(index)
    }

    /// The paths of these modules and of all that they depend on, each after what it depends on. What is built in needs no
    /// module, and optional modules that do not exist are left out.
    ///
    /// # Errors
    /// [`ModuleError::Missing`] for a required module.
    pub fn closure(&self, required: &[&str], optional: &[&str]) -> Result<Vec<String>, ModuleError> {
        let mut chosen = Vec::new();
        let mut seen = BTreeSet::new();
        for (name, needed) in
            optional.iter().map(|name| (name, false)).chain(required.iter().map(|name| (name, true)))
        {
            match self.paths.get(*name) {
                Some(path) => self.add(path, &mut seen, &mut chosen),
                None if self.builtin.contains(*name) || !needed => {}
                None => return Err(ModuleError::Missing((*name).to_owned())),
            }
        }
        Ok(chosen)
    }

    fn add(&self, path: &str, seen: &mut BTreeSet<String>, chosen: &mut Vec<String>) {
        if !seen.insert(path.to_owned()) {
            return;
        }
        // A line names what a module depends on before what that depends on, so the last is loaded first.
        for need in self.needs.get(path).into_iter().flatten().rev() {
            self.add(need, seen, chosen);
        }
        chosen.push(path.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "kernel/drivers/virtio/virtio.ko:\n\
        kernel/drivers/virtio/virtio_ring.ko.xz: kernel/drivers/virtio/virtio.ko\n\
        kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio_ring.ko.xz kernel/drivers/virtio/virtio.ko\n\
        kernel/drivers/net/virtio_net.ko: kernel/net/core/failover.ko kernel/drivers/virtio/virtio.ko\n\
        kernel/net/core/failover.ko:\n\
        kernel/drivers/block/virtio-blk.ko.zst: kernel/drivers/virtio/virtio.ko\n\
        kernel/fs/fuse/virtiofs.ko: kernel/fs/fuse/fuse.ko\n\
        kernel/fs/fuse/fuse.ko:\n";
    const BUILTIN: &str = "kernel/fs/ext4/ext4.ko\n";

    #[test]
    fn each_module_comes_once_and_after_what_it_needs() {
        let index = ModuleIndex::parse(DEPENDENCIES, BUILTIN).unwrap();
        let closure = index.closure(&REQUIRED, &OPTIONAL).unwrap();
        let names: Vec<String> = closure.iter().map(|path| name_of(path)).collect();
        let expected = [
            "fuse",
            "virtiofs",
            "virtio",
            "virtio_ring",
            "virtio_pci",
            "virtio_blk",
            "failover",
            "virtio_net",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn a_kernel_without_virtio_is_refused_and_so_are_paths_that_lead_elsewhere() {
        let index = ModuleIndex::parse("", BUILTIN).unwrap();
        let error = index.closure(&REQUIRED, &OPTIONAL).unwrap_err();
        assert_eq!(error, ModuleError::Missing("virtio_pci".to_owned()));
        assert!(index.closure(&["ext4"], &OPTIONAL).unwrap().is_empty());
        for bad in ["../../etc/shadow:", "kernel/a.ko: /etc/shadow", "a//b.ko:", "no colon"] {
            assert!(ModuleIndex::parse(bad, "").is_err(), "{bad:?}");
        }
        // A circle ends.
        let circle = ModuleIndex::parse("a.ko: b.ko\nb.ko: a.ko\n", "").unwrap();
        assert_eq!(circle.closure(&["a"], &[]).unwrap(), ["b.ko", "a.ko"]);
    }

    #[test]
    fn the_closure_is_that_of_modprobe() {
        let Ok(releases) = std::fs::read_dir("/lib/modules") else { return };
        for directory in releases.map(|entry| entry.unwrap().path()) {
            let read = |name: &str| std::fs::read_to_string(directory.join(name));
            let (Ok(dependencies), Ok(builtin)) = (read("modules.dep"), read("modules.builtin")) else {
                continue;
            };
            let index = ModuleIndex::parse(&dependencies, &builtin).unwrap();
            for name in ["virtio_net", "virtiofs", "overlay", "virtio_pci"] {
                let ours: BTreeSet<String> =
                    index.closure(&[name], &[]).unwrap().iter().map(|path| name_of(path)).collect();
                let release = directory.file_name().unwrap();
                let output = std::process::Command::new("/sbin/modprobe")
                    .args(["--show-depends", "-S"])
                    .arg(release)
                    .arg(name)
                    .output();
                let Ok(output) = output else { return };
                let text = String::from_utf8(output.stdout).unwrap();
                let theirs = text
                    .lines()
                    .filter_map(|line| line.strip_prefix("insmod "))
                    .map(|path| name_of(path.trim()));
                assert_eq!(ours, theirs.collect::<BTreeSet<_>>(), "{name} of {release:?}");
            }
        }
    }
}
