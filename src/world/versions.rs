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
