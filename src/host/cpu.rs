//! What this machine's processor can do, and what KVM can give of that to a guest.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};

#[cfg(target_arch = "x86_64")]
use super::ioctl;
use crate::world::{Cpuid, HostCpu};

const KVM: &str = "/dev/kvm";
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

/// What the processor can do. `guests` says whether to ask KVM too.
///
/// # Errors
/// If the kernel does not say.
pub fn of_this_machine(guests: bool) -> Result<HostCpu, CpuError> {
    Ok(HostCpu { flags: features()?, cpuid: if guests { cpuid() } else { None } })
}

/// What CPUID can say in a guest. `None` if this user may not ask KVM, or if the processor has no CPUID. Snapshots are then
/// compared by the features that Linux names.
fn cpuid() -> Option<Cpuid> {
    #[cfg(target_arch = "x86_64")]
    {
        let kvm = File::options().read(true).write(true).open(KVM).ok()?;
        Some(Cpuid::of(&ioctl::supported_cpuid(&kvm).ok()?))
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// The features of the first processor. A virtual CPU may run on any processor, so a host whose processors differ is not
/// fit for VMs.
///
/// # Errors
/// If the kernel does not say.
fn features() -> Result<BTreeSet<String>, CpuError> {
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
    use crate::testing::{Need, have};

    #[test]
    fn a_host_can_give_a_guest_what_it_can_give_now() {
        if !have(&[Need::Kvm]) {
            return;
        }
        let cpuid = of_this_machine(true).unwrap().cpuid.unwrap();
        assert_eq!(cpuid.missing_from(&cpuid), BTreeSet::new());
        let all = cpuid.missing_from(&Cpuid::default());
        assert!(all.contains("fpu") && all.contains("sse2"), "{all:?}");
        assert_eq!(of_this_machine(false).unwrap().cpuid, None);
    }

    #[test]
    fn features_are_those_of_the_first_processor() {
        let text =
            "processor\t: 0\nmodel name\t: X: Y\nflags\t\t: sse2 avx2\n\nprocessor\t: 1\nflags\t\t: sse2\n";
        let found = parse(text).unwrap();
        assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), ["avx2", "sse2"]);
        assert_eq!(parse("processor\t: 0\nvmx flags\t: a\n"), None);
    }
}
