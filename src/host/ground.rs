//! What a VM stands on beside its VMM: this machine's processor, and what of the configuration shapes a VM.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

use crate::config::Config;
use crate::world::{Failure, Ground, Result};

const CPUINFO: &str = "/proc/cpuinfo";
/// The first processor's entry is some kilobytes; a host with thousands of them has megabytes of the same.
const LIMIT: u64 = 64 << 10;

/// The processor's features cannot be known.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// It cannot be read.
    #[error("cannot read {CPUINFO}")]
    Read(#[source] io::Error),
    /// It says nothing of them.
    #[error("{CPUINFO} has no line of flags")]
    NoFlags,
}

/// [`Ground`] of one workspace.
pub struct HostGround {
    shape: BTreeMap<String, String>,
    sources: Vec<PathBuf>,
}

impl HostGround {
    /// As this configuration has it.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let sources = config.mounts.iter().map(|mount| mount.source.as_path().to_owned()).collect();
        Self { shape: config.shape(), sources }
    }
}

impl Ground for HostGround {
    fn cpu(&self) -> Result<BTreeSet<String>> {
        let mut text = Vec::new();
        let read = File::open(CPUINFO).and_then(|file| file.take(LIMIT).read_to_end(&mut text));
        read.map_err(|error| Failure::world(CpuError::Read(error)))?;
        features(&String::from_utf8_lossy(&text)).ok_or_else(|| Failure::world(CpuError::NoFlags))
    }

    fn shape(&self) -> BTreeMap<String, String> {
        self.shape.clone()
    }

    fn absent(&self) -> Vec<PathBuf> {
        self.sources.iter().filter(|source| !source.is_dir()).cloned().collect()
    }
}

/// Of the first processor: a virtual CPU may run on any, so a host whose processors differ is none for VMs.
fn features(cpuinfo: &str) -> Option<BTreeSet<String>> {
    let flags = cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        // `Features` on Arm.
        ["flags", "Features"].contains(&key.trim()).then_some(value)
    })?;
    Some(flags.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_those_of_the_first_processor() {
        let text =
            "processor\t: 0\nmodel name\t: X: Y\nflags\t\t: sse2 avx2\n\nprocessor\t: 1\nflags\t\t: sse2\n";
        let found = features(text).unwrap();
        assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), ["avx2", "sse2"]);
        assert_eq!(features("processor\t: 0\nvmx flags\t: a\n"), None);
    }
}
