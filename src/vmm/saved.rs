//! `state.json`, the file in which `vm.snapshot` keeps the state of a VM's devices and vCPUs (form of v51 to v53).
//!
//! The file is a tree of objects: each has the objects of its parts under `snapshots`, and its own state as a text of
//! JSON under `snapshot_data.state`. nixbox reads what CPUID says in the guest from it, and changes two things in a copy of
//! it: it keeps the guest's clock where it stood, and it leaves out devices, so that the VM can be restored without them.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::world::{Cpuid, CpuidLeaf};

/// Why a saved state cannot be read or changed.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum SavedStateError {
    #[error("state.json of the snapshot is not JSON")]
    NotJson(#[source] serde_json::Error),
    #[error("state.json of the snapshot has no {0} of the form that Cloud Hypervisor writes")]
    Form(&'static str),
}

type Result<T> = std::result::Result<T, SavedStateError>;

/// The part of the state that has the devices.
const DEVICES: &str = "device-manager";

/// The key of the guest's kvmclock.
const CLOCK: &str = "clock";
/// The length of a `struct kvm_clock_data`.
const CLOCK_BYTES: usize = 48;
/// The byte of it that has the lowest flags. The word of flags is in the order of x86, the lowest byte first.
const CLOCK_FLAGS: usize = 8;
/// The flag that makes KVM add the time since (`linux/kvm.h`).
const KVM_CLOCK_REALTIME: u64 = 1 << 2;

/// What CPUID says in the guest. `None` if the state does not say it, as that of a simulator.
///
/// # Errors
/// [`SavedStateError`].
pub fn cpuid(state: &[u8]) -> Result<Option<Cpuid>> {
    /// An entry of `common_cpuid`.
    #[derive(Deserialize)]
    struct Entry {
        function: u32,
        index: u32,
        eax: u32,
        ebx: u32,
        ecx: u32,
        edx: u32,
    }
    let state: Value = serde_json::from_slice(state).map_err(SavedStateError::NotJson)?;
    let Some(text) = state.pointer("/snapshot_data/state").and_then(Value::as_str) else {
        return Ok(None);
    };
    let mut own: Value = serde_json::from_str(text).map_err(SavedStateError::NotJson)?;
    let Some(entries) = own.get_mut("common_cpuid").map(Value::take) else {
        return Ok(None);
    };
    let entries: Vec<Entry> = serde_json::from_value(entries).map_err(SavedStateError::NotJson)?;
    let leaf = |one: &Entry| (one.function, one.index, [one.eax, one.ebx, one.ecx, one.edx]);
    let leaves: Vec<CpuidLeaf> = entries.iter().map(leaf).collect();
    Ok(Some(Cpuid::of(&leaves)))
}

/// Removes these devices, and the PCI devices that carry them, from a saved state.
///
/// # Errors
/// [`SavedStateError`].
pub fn without_devices(state: &[u8], ids: &BTreeSet<String>) -> Result<Vec<u8>> {
    let mut state: Value = serde_json::from_slice(state).map_err(SavedStateError::NotJson)?;
    let carriers = ids.iter().map(|id| format!("_virtio-pci-{id}"));
    let gone: BTreeSet<String> = carriers.chain(ids.iter().cloned()).collect();
    let stays = |id: &String| !gone.contains(id);
    let devices = state.pointer_mut("/snapshots/device-manager").ok_or(SavedStateError::Form(DEVICES))?;
    object(devices, "snapshots")?.retain(|id, _| stays(id));
    let text = devices.pointer_mut("/snapshot_data/state").ok_or(SavedStateError::Form(DEVICES))?;
    let mut own: Value = serde_json::from_str(text.as_str().ok_or(SavedStateError::Form(DEVICES))?)
        .map_err(SavedStateError::NotJson)?;
    object(&mut own, "device_tree")?.retain(|id, _| stays(id));
    *text = Value::String(own.to_string());
    serde_json::to_vec(&state).map_err(SavedStateError::NotJson)
}

/// Makes the guest's monotonic clock go on from where it stood, and not from where it would be now.
///
/// The state of a VM has the guest's kvmclock as a `struct kvm_clock_data` (`linux/kvm.h`) of 48 bytes: the clock in
/// nanoseconds, a word of flags, and the host's time when the clock was read. If the flag `KVM_CLOCK_REALTIME` is set, as
/// v53.0 sets it and v51 and v52 do not, KVM adds to the clock the time that has gone by on the host since. Watchdogs in the
/// guest would take that time for a standstill of what they watch. A guest that counts by its TSC goes on from where it
/// stood anyway, because the TSC is a register of the vCPU. A state without such a clock, as that of a simulator, is returned
/// as it is.
///
/// # Errors
/// [`SavedStateError`].
pub fn with_continuous_clock(state: &[u8]) -> Result<Vec<u8>> {
    let mut state: Value = serde_json::from_slice(state).map_err(SavedStateError::NotJson)?;
    if let Some(text) = state.pointer_mut("/snapshot_data/state") {
        let form = || SavedStateError::Form(CLOCK);
        let mut own: Value =
            serde_json::from_str(text.as_str().ok_or_else(form)?).map_err(SavedStateError::NotJson)?;
        match own.get_mut(CLOCK) {
            None | Some(Value::Null) => {}
            Some(clock) => {
                let bytes = clock.get_mut("Kvm").and_then(Value::as_array_mut).ok_or_else(form)?;
                if bytes.len() != CLOCK_BYTES {
                    return Err(form());
                }
                let flags = bytes[CLOCK_FLAGS].as_u64().filter(|byte| *byte <= 0xff).ok_or_else(form)?;
                bytes[CLOCK_FLAGS] = Value::from(flags & !KVM_CLOCK_REALTIME);
                *text = Value::String(own.to_string());
            }
        }
    }
    serde_json::to_vec(&state).map_err(SavedStateError::NotJson)
}

fn object<'a>(value: &'a mut Value, key: &'static str) -> Result<&'a mut Map<String, Value>> {
    value.get_mut(key).and_then(Value::as_object_mut).ok_or(SavedStateError::Form(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by the `vm.snapshot` of v53.0 for a VM with one share. The states of the parts are cut out, except those of
    /// the VM and of the devices as a whole.
    const REAL: &str = include_str!("saved/state-v53.0.json");

    #[test]
    fn a_device_and_its_carrier_are_left_out_and_nothing_else() {
        let before: Value = serde_json::from_str(REAL).unwrap();
        let ids = BTreeSet::from(["share-share0".to_owned()]);
        let after: Value = serde_json::from_slice(&without_devices(REAL.as_bytes(), &ids).unwrap()).unwrap();
        let gone = ["share-share0", "_virtio-pci-share-share0"];
        let own = |value: &Value| -> Value {
            let text = value.pointer("/snapshots/device-manager/snapshot_data/state").unwrap();
            serde_json::from_str(text.as_str().unwrap()).unwrap()
        };
        let mut expected = before.clone();
        let mut expected_own = own(&before);
        for id in gone {
            let parts = expected.pointer_mut("/snapshots/device-manager/snapshots").unwrap();
            assert!(parts.as_object_mut().unwrap().remove(id).is_some(), "{id}");
            let tree = expected_own.get_mut("device_tree").unwrap();
            assert!(tree.as_object_mut().unwrap().remove(id).is_some(), "{id}");
        }
        assert_eq!(own(&after), expected_own);
        *expected.pointer_mut("/snapshots/device-manager/snapshot_data/state").unwrap() =
            after.pointer("/snapshots/device-manager/snapshot_data/state").unwrap().clone();
        assert_eq!(after, expected);
    }

    #[test]
    fn the_clock_goes_on_from_where_it_stood_and_nothing_else_is_changed() {
        let own = |state: &[u8]| -> Value {
            let state: Value = serde_json::from_slice(state).unwrap();
            serde_json::from_str(state.pointer("/snapshot_data/state").unwrap().as_str().unwrap()).unwrap()
        };
        let (before, after) = (own(REAL.as_bytes()), own(&with_continuous_clock(REAL.as_bytes()).unwrap()));
        let flags = |own: &Value| own["clock"]["Kvm"][CLOCK_FLAGS].as_u64().unwrap();
        assert_eq!(flags(&before) & KVM_CLOCK_REALTIME, KVM_CLOCK_REALTIME, "v53.0 sets the flag");
        assert_eq!(flags(&after), flags(&before) & !KVM_CLOCK_REALTIME);
        let mut expected = before;
        expected["clock"]["Kvm"][CLOCK_FLAGS] = after["clock"]["Kvm"][CLOCK_FLAGS].clone();
        assert_eq!(after, expected);
    }

    #[test]
    fn a_state_without_a_clock_stays_and_one_with_another_clock_is_an_error() {
        for none in ["{}", r#"{"time":7}"#, r#"{"snapshot_data":{"state":"{\"clock\":null}"}}"#] {
            let kept: Value =
                serde_json::from_slice(&with_continuous_clock(none.as_bytes()).unwrap()).unwrap();
            assert_eq!(kept, serde_json::from_str::<Value>(none).unwrap());
        }
        for bad in [
            "",
            r#"{"snapshot_data":{"state":7}}"#,
            r#"{"snapshot_data":{"state":"{"}}"#,
            r#"{"snapshot_data":{"state":"{\"clock\":7}"}}"#,
            r#"{"snapshot_data":{"state":"{\"clock\":{\"Kvm\":[1,2]}}"}}"#,
        ] {
            assert!(with_continuous_clock(bad.as_bytes()).is_err(), "{bad}");
        }
        let words = format!(r#"{{"clock":{{"Kvm":[{}"x"]}}}}"#, "0,".repeat(CLOCK_BYTES - 1));
        let other = serde_json::json!({ "snapshot_data": { "state": words.replace("[0,0,0,0,0,0,0,0,0,", "[0,0,0,0,0,0,0,0,999,") } });
        assert!(with_continuous_clock(other.to_string().as_bytes()).is_err());
    }

    #[test]
    fn the_features_that_the_guest_was_given_are_read() {
        let cpuid = cpuid(REAL.as_bytes()).unwrap().unwrap();
        let text = serde_json::to_string(&cpuid).unwrap();
        assert!(
            text.contains(r#""1.0.ecx":"f7f83203""#) && text.contains(r#""7.0.ebx":"219c03ab""#),
            "{text}"
        );
        assert!(cpuid.missing_from(&Cpuid::default()).contains("avx2"));
    }

    #[test]
    fn a_state_without_cpuid_says_nothing_and_one_of_another_form_is_an_error() {
        for none in
            ["{}", r#"{"time":7}"#, r#"{"snapshot_data":null}"#, r#"{"snapshot_data":{"state":"{}"}}"#]
        {
            assert_eq!(cpuid(none.as_bytes()).unwrap(), None, "{none}");
        }
        for bad in [
            "",
            r#"{"snapshot_data":{"state":"{"}}"#,
            r#"{"snapshot_data":{"state":"{\"common_cpuid\":7}"}}"#,
            r#"{"snapshot_data":{"state":"{\"common_cpuid\":[{\"function\":-1}]}"}}"#,
        ] {
            assert!(cpuid(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_state_of_any_other_form_is_an_error() {
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"snapshots":{"device-manager":{"snapshots":{}}}}"#,
            r#"{"snapshots":{"device-manager":{"snapshots":{},"snapshot_data":{"state":"{}"}}}}"#,
            r#"{"snapshots":{"device-manager":{"snapshots":{},"snapshot_data":{"state":7}}}}"#,
            r#"{"snapshots":{"device-manager":{"snapshots":{},"snapshot_data":{"state":"{"}}}}"#,
        ] {
            assert!(without_devices(bad.as_bytes(), &BTreeSet::new()).is_err(), "{bad}");
        }
    }
}
