//! What runs a VM: the VMM, its versions, and what a version can do.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize, Serializer};

use super::capability::{self, Capability};
use super::value::InvalidValue;

/// What becomes of shares under a version of the VMM. [`capability`] holds the table of versions; no other code compares
/// version numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ability {
    /// A share mounted in the guest still works, open files too, after `vm.restore`.
    pub shares_survive_restore: bool,
    /// A share mounted in the guest still works after `vm.snapshot` and an in-place `vm.resume`.
    pub shares_survive_resume: bool,
}

/// A version of the VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmVersion {
    /// VMM state is not promised to load under another one (Cloud Hypervisor's docs/releases.md).
    pub major: u32,
    /// As the VMM calls itself.
    pub text: String,
}

impl fmt::Display for VmmVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// What runs the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmmChoice {
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// The simulator, behaving like this version; `None` for the newest release, where the configuration names no version.
    Simulator(Option<&'static Capability>),
}

/// What a text that is not a [`VmmChoice`] is told.
static VMM_RULE: LazyLock<String> = LazyLock::new(|| {
    let versions = capability::simulated_numbers().into_iter().map(|number| format!("simulator-v{number}"));
    let words: Vec<_> =
        ["cloud-hypervisor".to_owned(), "simulator".to_owned()].into_iter().chain(versions).collect();
    format!("is none of {}", words.join(", "))
});

impl FromStr for VmmChoice {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        match (text, text.strip_prefix("simulator-v").map(capability::simulated)) {
            ("cloud-hypervisor", _) => Ok(Self::CloudHypervisor),
            ("simulator", _) => Ok(Self::Simulator(None)),
            (_, Some(Ok(version))) => Ok(Self::Simulator(Some(version))),
            _ => Err(InvalidValue::new(text, &VMM_RULE)),
        }
    }
}

impl fmt::Display for VmmChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CloudHypervisor => formatter.write_str("cloud-hypervisor"),
            Self::Simulator(None) => formatter.write_str("simulator"),
            Self::Simulator(Some(version)) => write!(formatter, "simulator-v{version}"),
        }
    }
}

impl Serialize for VmmChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{Backing, NetworkMode};

    #[test]
    fn every_word_is_read_as_it_is_written() {
        let list = "cloud-hypervisor, simulator, simulator-v51, simulator-v52, simulator-v53, simulator-v54";
        for word in list.split(", ") {
            assert_eq!(word.parse::<VmmChoice>().unwrap().to_string(), word);
        }
        for word in ["auto", "tmpfs", "disk", "vmm"] {
            assert_eq!(word.parse::<Backing>().unwrap().to_string(), word);
        }
        for word in ["off", "filtered", "open"] {
            assert_eq!(word.parse::<NetworkMode>().unwrap().to_string(), word);
        }
        let refused = "qemu".parse::<VmmChoice>().unwrap_err();
        assert_eq!(refused.to_string(), format!("\"qemu\" is none of {list}"));
    }
}
