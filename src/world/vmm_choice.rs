//! Which program runs a VM: Cloud Hypervisor, or the simulator in one of its versions.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::capability::{self, Capability};
use super::value::{self, InvalidValue};

/// What runs the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmmChoice {
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// The simulator, behaving like this version; `None` for the newest release, where the configuration names no version.
    Simulator(Option<&'static Capability>),
}

/// The rule of a [`VmmChoice`], for the message that refuses a text.
static VMM_RULE: LazyLock<String> = LazyLock::new(|| {
    let versions = capability::simulated_numbers().into_iter().map(|number| format!("simulator-v{number}"));
    let words: Vec<_> =
        ["cloud-hypervisor".to_owned(), "simulator".to_owned()].into_iter().chain(versions).collect();
    format!("is not one of {}", words.join(", "))
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

impl<'de> Deserialize<'de> for VmmChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        value::from_text(deserializer)
    }
}
