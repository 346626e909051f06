//! Whether a snapshot can be restored on this host and with this configuration, and if not, each reason why.
//!
//! Uses the seams, and changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::limits::{LONG, LOOK, within};
use crate::engine::executor::TransitionFailure;
use crate::engine::transition::{Failure, Interrupt};
use crate::world::{Depth, ListedSnapshot, Manifest, Origin, Slot, SnapshotId, VmmVersion, World};

/// One reason why a snapshot cannot be restored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Incompatibility {
    /// VMM state is not promised to load under another major version.
    #[error("it was saved by Cloud Hypervisor {then}, and {now} is installed")]
    Vmm {
        /// Which saved it.
        then: VmmVersion,
        /// Which is installed.
        now: VmmVersion,
    },
    /// A restored kernel keeps using the CPU features that it detected at boot.
    #[error("this host's processor lacks {}, which the snapshot's had", list(.0))]
    Cpu(BTreeSet<String>),
    /// A setting that shapes a VM has changed.
    #[error("{key} was {} and is {} now", said(.then), said(.now))]
    Shape {
        /// The key.
        key: String,
        /// In the snapshot.
        then: Option<String>,
        /// In the configuration.
        now: Option<String>,
    },
    /// The guest has the source of a mount, which does not exist now.
    #[error("the mount's source {} is not there", .0.display())]
    Mount(PathBuf),
    /// The guest's address belongs to it.
    #[error(
        "slot {0}, which the guest has its address from, is taken by another VM; bring that VM down first"
    )]
    Slot(Slot),
}

fn list(features: &BTreeSet<String>) -> String {
    features.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn said(value: &Option<String>) -> String {
    value.as_ref().map_or_else(|| "absent".to_owned(), |value| format!("{value:?}"))
}

/// Why a snapshot cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum NotRestorable {
    /// A file is missing or damaged.
    #[error("it is not whole")]
    Damaged(#[source] Failure),
    /// It was made under conditions that this host or configuration does not meet.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Misfits(Vec<Incompatibility>),
    /// It was tried, and the operation was rolled back.
    #[error("it fits, and could not be restored")]
    Failed(#[source] TransitionFailure),
}

/// The conditions that a snapshot is to be restored under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostConditions {
    pub(super) origin: Origin,
    /// The shape as an earlier nixbox wrote it: with absolute paths.
    pub(super) absolute_shape: BTreeMap<String, String>,
    pub(super) absent: Vec<PathBuf>,
    /// The slots that this workspace could have.
    pub(super) slots: BTreeSet<Slot>,
}

/// What the manifest of a snapshot notes about the conditions that it is made under.
pub(super) fn origin(world: &World, vmm: VmmVersion) -> Result<Origin, Failure> {
    Ok(Origin { vmm, cpu: (world.cpu)()?, shape: world.shape.as_ref().clone() })
}

/// The conditions of this host now.
async fn here(world: &World) -> Result<HostConditions, Failure> {
    let held = within(LOOK, world.slots.held()).await?;
    let free = within(LOOK, world.slots.free()).await?;
    Ok(HostConditions {
        origin: origin(world, within(LOOK, world.vmm.version(None)).await?)?,
        absolute_shape: world.absolute_shape.as_ref().clone(),
        absent: world.missing_mounts.to_vec(),
        slots: held.into_iter().chain(free).collect(),
    })
}

/// Each reason why the snapshot cannot be restored. Pure.
fn misfits(manifest: &Manifest, here: &HostConditions) -> Vec<Incompatibility> {
    let (then, now) = (&manifest.origin, &here.origin);
    let mut found = Vec::new();
    if then.vmm.major != now.vmm.major {
        found.push(Incompatibility::Vmm { then: then.vmm.clone(), now: now.vmm.clone() });
    }
    let lacking: BTreeSet<String> = then.cpu.difference(&now.cpu).cloned().collect();
    if !lacking.is_empty() {
        found.push(Incompatibility::Cpu(lacking));
    }
    let keys: BTreeSet<&String> = then.shape.keys().chain(now.shape.keys()).collect();
    found.extend(keys.into_iter().filter_map(|key| {
        let (then, now) = (then.shape.get(key).cloned(), now.shape.get(key).cloned());
        let same = then == now || then.is_some() && then.as_ref() == here.absolute_shape.get(key);
        (!same).then(|| Incompatibility::Shape { key: key.clone(), then, now })
    }));
    found.extend(here.absent.iter().cloned().map(Incompatibility::Mount));
    if !here.slots.contains(&manifest.slot) {
        found.push(Incompatibility::Slot(manifest.slot));
    }
    found
}

/// The snapshot that was chosen, and the newer ones that cannot be restored.
#[derive(Debug)]
pub(super) struct SnapshotChoice {
    /// The newest of the candidates that can be restored.
    pub(super) chosen: Option<Manifest>,
    /// Newest first.
    pub(super) passed_over: Vec<(SnapshotId, NotRestorable)>,
}

/// Chooses among these, newest first.
///
/// # Errors
/// If the conditions of this host cannot be determined, or a person interrupts.
pub(super) async fn choose(
    world: &World,
    candidates: impl IntoIterator<Item = ListedSnapshot>,
    interrupt: &Interrupt,
) -> Result<SnapshotChoice, Failure> {
    let here = here(world).await?;
    let mut passed_over = Vec::new();
    for ListedSnapshot { id, manifest } in candidates {
        let manifest = match manifest {
            Ok(manifest) => manifest,
            Err(failure) => {
                passed_over.push((id, NotRestorable::Damaged(failure)));
                continue;
            }
        };
        let misfits = misfits(&manifest, &here);
        if !misfits.is_empty() {
            passed_over.push((id, NotRestorable::Misfits(misfits)));
            continue;
        }
        match within(LONG, world.catalog.verify(id, Depth::Touched, interrupt)).await {
            Ok(()) => return Ok(SnapshotChoice { chosen: Some(manifest), passed_over }),
            Err(Failure::Interrupted) => return Err(Failure::Interrupted),
            Err(failure) => passed_over.push((id, NotRestorable::Damaged(failure))),
        }
    }
    Ok(SnapshotChoice { chosen: None, passed_over })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{BootId, Generation};

    fn origin() -> Origin {
        Origin {
            vmm: VmmVersion { major: 53, text: "v53.0".into() },
            cpu: ["avx2", "sse2"].map(String::from).into(),
            shape: BTreeMap::from([("vm.memory".to_owned(), "4GiB".to_owned())]),
        }
    }

    fn manifest() -> Manifest {
        Manifest {
            id: SnapshotId(Generation(4)),
            name: "warm".parse().ok(),
            created_ms: 0,
            slot: Slot::try_from(3).unwrap(),
            boot: BootId([0; 16]),
            shares: true,
            origin: origin(),
            files: Vec::new(),
        }
    }

    fn good() -> HostConditions {
        HostConditions {
            origin: origin(),
            absolute_shape: BTreeMap::new(),
            absent: Vec::new(),
            slots: Slot::all().collect(),
        }
    }

    #[test]
    fn the_same_conditions_and_better_ones_are_compatible() {
        assert_eq!(misfits(&manifest(), &good()), []);
        let mut better = good();
        better.origin.cpu.insert("avx512f".to_owned());
        better.origin.vmm.text = "v53.0-246-gae44c2971".to_owned();
        assert_eq!(misfits(&manifest(), &better), []);
    }

    #[test]
    fn a_manifest_with_the_absolute_paths_of_an_earlier_nixbox_fits() {
        let mut here = good();
        here.origin.shape.insert("vm.kernel".into(), "./vmlinuz".into());
        here.absolute_shape.insert("vm.kernel".into(), "/srv/project/vmlinuz".into());
        for (then, fits) in
            [("./vmlinuz", true), ("/srv/project/vmlinuz", true), ("/srv/other/vmlinuz", false)]
        {
            let mut manifest = manifest();
            manifest.origin.shape.insert("vm.kernel".into(), then.into());
            assert_eq!(misfits(&manifest, &here).is_empty(), fits, "{then}");
        }
    }

    #[test]
    fn each_incompatibility_is_named() {
        let mut bad = good();
        bad.origin.vmm = VmmVersion { major: 54, text: "v54.0".into() };
        bad.origin.cpu.remove("avx2");
        bad.origin.shape =
            BTreeMap::from([("vm.memory".into(), "8GiB".into()), ("mounts.1".into(), "/x".into())]);
        bad.absent.push("/gone".into());
        bad.slots.remove(&Slot::try_from(3).unwrap());
        let said = NotRestorable::Misfits(misfits(&manifest(), &bad)).to_string();
        assert_eq!(
            said,
            "it was saved by Cloud Hypervisor v53.0, and v54.0 is installed; \
             this host's processor lacks avx2, which the snapshot's had; \
             mounts.1 was absent and is \"/x\" now; \
             vm.memory was \"4GiB\" and is \"8GiB\" now; \
             the mount's source /gone is not there; \
             slot 3, which the guest has its address from, is taken by another VM; bring that VM down first"
        );
    }
}
