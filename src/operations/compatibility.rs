//! Whether a snapshot can be restored on this host and with this configuration, and if not, each reason why.
//!
//! A snapshot is compared by what its guest was given. Files are compared by content, wherever they are. The features of
//! the processor are those that CPUID reports in the guest, compared with those that KVM can give to guests here; where one
//! of the two is not known, the flags that Linux names are compared. Some reasons are certain to make a restore fail. A
//! person may override the others ([`Incompatibility::can_be_overridden`]).
//!
//! Uses the seams, and changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::limits::{LONG, LOOK, within};
use crate::engine::executor::TransitionFailure;
use crate::engine::transition::{Failure, Interrupt};
use crate::world::{
    Depth, Given, HashMethod, HostCpu, ListedSnapshot, Manifest, Origin, Slot, SnapshotId, VmmVersion, World,
};

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
    /// A file that the guest was made from has another content.
    #[error("{key} names a file with another content now: {now:?}")]
    Content {
        /// The key.
        key: String,
        /// In the configuration.
        now: String,
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

impl Incompatibility {
    /// Whether a restore may succeed in spite of it.
    ///
    /// The VMM state has its own command line, and the guest's kernel and disks are in the snapshot, so an edit of these
    /// does not reach the VM. The numbers of processors, disks and mounts and the size of RAM cannot be changed by a restore,
    /// which fails if they differ.
    #[must_use]
    pub fn can_be_overridden(&self) -> bool {
        match self {
            Self::Cpu(_) | Self::Content { .. } => true,
            Self::Shape { key, then, now } => match key.as_str() {
                "vm.kernel" | "vm.initramfs" | "vm.cmdline" | "guest.user" => true,
                key if key.starts_with("disks.") || key.starts_with("mounts.") => {
                    then.is_some() && now.is_some()
                }
                _ => false,
            },
            Self::Vmm { .. } | Self::Mount(_) | Self::Slot(_) => false,
        }
    }
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

impl NotRestorable {
    /// Whether a person may override every reason.
    #[must_use]
    pub fn can_be_overridden(&self) -> bool {
        match self {
            Self::Misfits(misfits) => misfits.iter().all(Incompatibility::can_be_overridden),
            Self::Damaged(_) | Self::Failed(_) => false,
        }
    }
}

/// The conditions that a snapshot is to be restored under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostConditions {
    pub(super) origin: Origin,
    pub(super) given: Given,
    /// The shape as an earlier nixbox wrote it: with absolute paths.
    pub(super) absolute_shape: BTreeMap<String, String>,
    pub(super) absent: Vec<PathBuf>,
    /// The slots that this workspace could have.
    pub(super) slots: BTreeSet<Slot>,
}

/// What the manifest of a snapshot notes about the conditions that it is made under.
pub(super) fn origin(world: &World, vmm: VmmVersion) -> Result<Origin, Failure> {
    Ok(Origin { vmm, cpu: (world.cpu)()?.flags, shape: world.shape.as_ref().clone() })
}

/// What the guest of this snapshot was given.
pub(super) async fn given(world: &World, id: SnapshotId, interrupt: &Interrupt) -> Result<Given, Failure> {
    let method = HashMethod::default();
    let contents = world.sources.contents(method, interrupt).await?;
    Ok(Given { cpuid: world.vmm.saved_cpuid(id).await?, contents, method })
}

/// The conditions of this host now, with the hashes of files computed like this.
async fn here(world: &World, method: HashMethod, interrupt: &Interrupt) -> Result<HostConditions, Failure> {
    let held = within(LOOK, world.slots.held()).await?;
    let free = within(LOOK, world.slots.free()).await?;
    let HostCpu { flags, cpuid } = (world.cpu)()?;
    let vmm = within(LOOK, world.vmm.version(None)).await?;
    Ok(HostConditions {
        origin: Origin { vmm, cpu: flags, shape: world.shape.as_ref().clone() },
        given: Given {
            cpuid,
            contents: within(LONG, world.sources.contents(method, interrupt)).await?,
            method,
        },
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
    let lacking: BTreeSet<String> = match (&manifest.given.cpuid, &here.given.cpuid) {
        (Some(then), Some(now)) => then.missing_from(now),
        _ => then.cpu.difference(&now.cpu).cloned().collect(),
    };
    if !lacking.is_empty() {
        found.push(Incompatibility::Cpu(lacking));
    }
    let keys: BTreeSet<&String> = then.shape.keys().chain(now.shape.keys()).collect();
    found.extend(keys.into_iter().filter_map(|key| shape_misfit(key, manifest, here)));
    found.extend(here.absent.iter().cloned().map(Incompatibility::Mount));
    if !here.slots.contains(&manifest.slot) {
        found.push(Incompatibility::Slot(manifest.slot));
    }
    found
}

/// How the values of a key differ, if they do.
fn shape_misfit(key: &String, manifest: &Manifest, here: &HostConditions) -> Option<Incompatibility> {
    let (then, now) = (manifest.origin.shape.get(key), here.origin.shape.get(key));
    let contents = (manifest.given.contents.get(key), here.given.contents.get(key));
    let same = match (then, now, contents) {
        (Some(then), Some(now), (Some(content), Some(content_now))) => {
            if content != content_now {
                return Some(Incompatibility::Content { key: key.clone(), now: now.clone() });
            }
            beside_path(key, then) == beside_path(key, now)
        }
        _ => then == now || then.is_some() && then == here.absolute_shape.get(key),
    };
    (!same).then(|| Incompatibility::Shape { key: key.clone(), then: then.cloned(), now: now.cloned() })
}

/// What a value says beside the path of a file: the size of a disk.
fn beside_path<'a>(key: &str, value: &'a str) -> Option<&'a str> {
    let disk = key.starts_with("disks.");
    value.rsplit_once(", ").map(|(_, size)| size).filter(|_| disk)
}

/// The snapshot that was chosen, and the newer ones that cannot be restored.
#[derive(Debug)]
pub(super) struct SnapshotChoice {
    /// The newest of the candidates that can be restored.
    pub(super) chosen: Option<Manifest>,
    /// Newest first.
    pub(super) passed_over: Vec<(SnapshotId, NotRestorable)>,
}

/// Chooses among these, newest first. With `force`, reasons that can be overridden are none.
///
/// # Errors
/// If the conditions of this host cannot be determined, or a person interrupts.
pub(super) async fn choose(
    world: &World,
    candidates: impl IntoIterator<Item = ListedSnapshot>,
    force: bool,
    interrupt: &Interrupt,
) -> Result<SnapshotChoice, Failure> {
    let mut now = here(world, HashMethod::default(), interrupt).await?;
    let mut passed_over = Vec::new();
    for ListedSnapshot { id, manifest, .. } in candidates {
        let manifest = match manifest {
            Ok(manifest) => manifest,
            Err(failure) => {
                passed_over.push((id, NotRestorable::Damaged(failure)));
                continue;
            }
        };
        // Snapshots of an older nixbox are compared by the hashes that they have. They are older than the others, so
        // that the method changes once.
        if manifest.given.method != now.given.method {
            now = here(world, manifest.given.method, interrupt).await?;
        }
        let mut misfits = misfits(&manifest, &now);
        misfits.retain(|misfit| !force || !misfit.can_be_overridden());
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

/// Says of each snapshot in `manifests`, in the same order, whether it can be restored under the conditions of this host now,
/// and if not, why. This function starts no VMM and reads no file of a snapshot, so a snapshot that fits may be damaged.
///
/// # Errors
/// If the conditions of this host cannot be determined, or a person interrupts.
pub async fn fitness(
    world: &World,
    manifests: &[&Manifest],
    interrupt: &Interrupt,
) -> Result<Vec<Result<(), NotRestorable>>, Failure> {
    let mut now = here(world, HashMethod::default(), interrupt).await?;
    let mut found = Vec::new();
    for manifest in manifests {
        if manifest.given.method != now.given.method {
            now = here(world, manifest.given.method, interrupt).await?;
        }
        let misfits = misfits(manifest, &now);
        found.push(if misfits.is_empty() { Ok(()) } else { Err(NotRestorable::Misfits(misfits)) });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{BootId, Cpuid, Generation};

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
            given: Given::default(),
            receipt: None,
        }
    }

    fn good() -> HostConditions {
        HostConditions {
            origin: origin(),
            given: Given::default(),
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
    fn files_are_compared_by_content_wherever_they_are() {
        let (mut manifest, mut here) = (manifest(), good());
        for (key, then, now) in [
            ("vm.kernel", "./vmlinuz", "/boot/a, b/vmlinuz"),
            ("disks.0", "./debian.img, 8GiB", "/srv/debian.img, 8GiB"),
        ] {
            manifest.origin.shape.insert(key.into(), then.into());
            here.origin.shape.insert(key.into(), now.into());
            manifest.given.contents.insert(key.into(), [1; 32]);
            here.given.contents.insert(key.into(), [1; 32]);
        }
        assert_eq!(misfits(&manifest, &here), []);

        here.given.contents.insert("disks.0".into(), [2; 32]);
        let [misfit] = &misfits(&manifest, &here)[..] else { panic!() };
        assert_eq!(
            misfit.to_string(),
            "disks.0 names a file with another content now: \"/srv/debian.img, 8GiB\""
        );
        here.given.contents.insert("disks.0".into(), [1; 32]);
        here.origin.shape.insert("disks.0".into(), "/srv/debian.img, 9GiB".into());
        assert!(matches!(&misfits(&manifest, &here)[..], [Incompatibility::Shape { .. }]));

        // Where one content is not known, the paths decide.
        here.given.contents.clear();
        assert_eq!(misfits(&manifest, &here).len(), 2);
    }

    #[test]
    fn processors_are_compared_by_cpuid_and_by_flags_only_where_it_is_not_known() {
        let cpuid = |ebx| Some(Cpuid::of(&[(7, 0, [0, ebx, 0, 0])]));
        let (mut manifest, mut here) = (manifest(), good());
        manifest.given.cpuid = cpuid(1 << 5);
        here.given.cpuid = cpuid(1 << 5 | 1 << 16);
        // The guest was given less than the host had.
        here.origin.cpu.clear();
        assert_eq!(misfits(&manifest, &here), []);
        here.given.cpuid = cpuid(1 << 16);
        assert_eq!(misfits(&manifest, &here), [Incompatibility::Cpu(["avx2".to_owned()].into())]);
        here.given.cpuid = None;
        let flags = ["avx2", "sse2"].map(String::from).into();
        assert_eq!(misfits(&manifest, &here), [Incompatibility::Cpu(flags)]);
    }

    #[test]
    fn what_is_certain_to_fail_cannot_be_overridden() {
        let shape = |key: &str, then: Option<&str>, now: Option<&str>| Incompatibility::Shape {
            key: key.to_owned(),
            then: then.map(str::to_owned),
            now: now.map(str::to_owned),
        };
        let (some, other) = (Some("a"), Some("b"));
        let version = |major| VmmVersion { major, text: format!("v{major}.0") };
        for (misfit, can) in [
            (Incompatibility::Cpu(BTreeSet::new()), true),
            (Incompatibility::Content { key: "vm.kernel".into(), now: "b".into() }, true),
            (Incompatibility::Mount("/gone".into()), false),
            (Incompatibility::Slot(manifest().slot), false),
            (Incompatibility::Vmm { then: version(53), now: version(54) }, false),
            (shape("vm.kernel", some, other), true),
            (shape("vm.initramfs", some, None), true),
            (shape("vm.cmdline", some, other), true),
            (shape("guest.user", some, other), true),
            (shape("disks.1", some, other), true),
            (shape("disks.1", None, other), false),
            (shape("mounts.0", some, other), true),
            (shape("mounts.0", some, None), false),
            (shape("vm.vcpus", some, other), false),
            (shape("vm.memory", some, other), false),
            (shape("vm.something-new", some, other), false),
        ] {
            assert_eq!(misfit.can_be_overridden(), can, "{misfit}");
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
