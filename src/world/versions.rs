//! What runs a VM: the VMM, its versions, and what a version can do.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::value::words;

/// What the VMM's version can do. `vmm/capability.rs` holds the table; nothing else asks for a version.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VmmChoice {
    /// The real one.
    CloudHypervisor,
    /// A stand-in that behaves like v53.0.
    Simulator,
    /// Like v51.1.
    SimulatorV51,
    /// Like v52.0.
    SimulatorV52,
    /// Like v53.0.
    SimulatorV53,
    /// Like v54.0.
    SimulatorV54,
}

words!(
    VmmChoice,
    "cloud-hypervisor" => Self::CloudHypervisor,
    "simulator" => Self::Simulator,
    "simulator-v51" => Self::SimulatorV51,
    "simulator-v52" => Self::SimulatorV52,
    "simulator-v53" => Self::SimulatorV53,
    "simulator-v54" => Self::SimulatorV54,
);

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
