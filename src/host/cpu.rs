//! What this machine's processor can do.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};

const CPUINFO: &str = "/proc/cpuinfo";
/// The first processor's entry is some kilobytes; a host with thousands of them has megabytes of the same.
const LIMIT: u64 = 64 << 10;

/// Why the features of the processor cannot be known.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum CpuError {
    #[error("cannot read {CPUINFO}")]
    Read(#[source] io::Error),
    #[error("{CPUINFO} has no line of flags")]
    NoFlags,
}

/// The features of the first processor. A virtual CPU may run on any processor, so a host whose processors differ is not
/// fit for VMs.
///
/// # Errors
/// If the kernel does not say.
pub fn features() -> Result<BTreeSet<String>, CpuError> {
    let mut text = Vec::new();
    File::open(CPUINFO).and_then(|file| file.take(LIMIT).read_to_end(&mut text)).map_err(CpuError::Read)?;
    parse(&String::from_utf8_lossy(&text)).ok_or(CpuError::NoFlags)
}

fn parse(cpuinfo: &str) -> Option<BTreeSet<String>> {
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
        let found = parse(text).unwrap();
        assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), ["avx2", "sse2"]);
        assert_eq!(parse("processor\t: 0\nvmx flags\t: a\n"), None);
    }
}
