//! The transitions that several operations share: what a VM is made of, made and removed.
//!
//! May use: the seams of `world`, and the engine's words.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::transition::{Context, Failure, Probe, Transition, TransitionId, UndoPolicy};
use crate::world::{BootId, Generation, HookPoint, Machine, Presence, Slot, SnapshotId, VmmState, World};

/// For things that the kernel or a daemon does at once, after a look at a VMM that may be silent. Above the limits that
/// the seams have themselves, which say more.
pub(super) const QUICK: Duration = Duration::from_secs(180);
/// For daemons that start, and guests that answer.
pub(super) const GUEST: Duration = Duration::from_secs(240);
/// For copies of disks and RAM, and scripts of users. They are interruptible, so this is a last resort.
pub(super) const LONG: Duration = Duration::from_secs(3600);

pub(super) fn presence(found: Presence) -> Probe<()> {
    match found {
        Presence::Whole => Probe::Done(()),
        Presence::Partial | Presence::Absent => Probe::NotDone,
    }
}

/// Fails with [`Failure::Lost`] unless the VMM of this generation has a system in it.
pub(super) async fn must_live(world: &World, vmm: Generation) -> Result<(), Failure> {
    if world.vmm.find(vmm).await?.has_system() { Ok(()) } else { Err(Failure::Lost) }
}

/// The slot that decides the VM's addresses. Wanted ones are asked for in order.
pub(super) struct ClaimSlot {
    /// Only this one will do; else the one held, else any.
    pub(super) only: Option<Slot>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct WantedSlots(Vec<Slot>);

/// No slot is free.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoSlot {
    #[error("all {} slots of this host are taken; bring a VM of another workspace down first", Slot::COUNT)]
    AllTaken,
    #[error(
        "slot {0}, which the snapshot's guest has its address from, is taken by another VM; bring that VM down first"
    )]
    Taken(Slot),
}

impl Transition for ClaimSlot {
    type World = World;
    type Intent = WantedSlots;
    type Outcome = Slot;

    const ID: TransitionId = TransitionId(1);
    const LABEL: &'static str = "claim slot";
    const UNDO: UndoPolicy = UndoPolicy::Undoable;
    const LIMIT: Duration = QUICK;

    async fn prepare(&self, scene: &Context<'_, World>) -> Result<WantedSlots, Failure> {
        let held = scene.world.slots.held().await?;
        let mut wanted: Vec<Slot> = held.into_iter().chain(scene.world.slots.free().await?).collect();
        if let Some(only) = self.only {
            wanted.retain(|slot| *slot == only);
            if wanted.is_empty() {
                return Err(Failure::world(NoSlot::Taken(only)));
            }
        }
        if wanted.is_empty() { Err(Failure::world(NoSlot::AllTaken)) } else { Ok(WantedSlots(wanted)) }
    }

    async fn probe(&self, scene: &Context<'_, World>, _: &WantedSlots) -> Result<Probe<Slot>, Failure> {
        Ok(scene.world.slots.held().await?.map_or(Probe::NotDone, Probe::Done))
    }

    async fn apply(&self, scene: &Context<'_, World>, intent: &WantedSlots) -> Result<Slot, Failure> {
        scene.world.slots.claim(&intent.0).await
    }

    async fn undo(&self, scene: &Context<'_, World>, _: &WantedSlots) -> Result<(), Failure> {
        match scene.world.slots.held().await? {
            Some(slot) => scene.world.slots.release(slot).await,
            None => Ok(()),
        }
    }
}

/// A part of a VM, of this operation's generation: found, made and removed by a seam.
macro_rules! part {
    (
        $name:ident, $id:literal, $label:literal, $limit:expr,
        $intent:ty: |$scene:ident, $self:ident, $what:ident| $prepare:expr,
        find: $find:expr, make: $make:expr, remove: $remove:expr $(,)?
    ) => {
        // Not every part needs each of what is given.
        #[allow(unused_variables)]
        impl Transition for $name {
            type World = World;
            type Intent = $intent;
            type Outcome = ();

            const ID: TransitionId = TransitionId($id);
            const LABEL: &'static str = $label;
            const UNDO: UndoPolicy = UndoPolicy::Undoable;
            const LIMIT: Duration = $limit;

            async fn prepare(&self, $scene: &Context<'_, World>) -> Result<$intent, Failure> {
                let $self = self;
                $prepare
            }

            async fn probe(
                &self,
                $scene: &Context<'_, World>,
                $what: &$intent,
            ) -> Result<Probe<()>, Failure> {
                Ok(presence($find.await?))
            }

            async fn apply(&self, $scene: &Context<'_, World>, $what: &$intent) -> Result<(), Failure> {
                $make.await
            }

            async fn undo(&self, $scene: &Context<'_, World>, $what: &$intent) -> Result<(), Failure> {
                $remove.await
            }
        }
    };
}
pub(super) use part;

/// TAP, addresses, firewall and DHCP of the slot.
pub(super) struct BuildNetwork;

part! {
    BuildNetwork, 2, "network", QUICK,
    Slot: |scene, network, slot| scene.outcome::<ClaimSlot>(),
    find: scene.world.network.find(*slot),
    make: scene.world.network.build(*slot, scene.generation),
    remove: scene.world.network.remove(*slot),
}

/// The share daemons of this generation.
pub(super) struct StartShares;

part! {
    StartShares, 3, "shares", QUICK,
    (): |scene, shares, nothing| Ok(()),
    find: scene.world.shares.find(scene.generation),
    make: scene.world.shares.start(scene.generation),
    remove: scene.world.shares.stop(scene.generation),
}

/// The VMM process of this generation, without a VM in it yet.
pub(super) struct StartVmm;

impl Transition for StartVmm {
    type World = World;
    type Intent = ();
    type Outcome = ();

    const ID: TransitionId = TransitionId(4);
    const LABEL: &'static str = "start VMM";
    const UNDO: UndoPolicy = UndoPolicy::Undoable;
    const LIMIT: Duration = QUICK;

    async fn prepare(&self, _: &Context<'_, World>) -> Result<(), Failure> {
        Ok(())
    }

    async fn probe(&self, scene: &Context<'_, World>, (): &()) -> Result<Probe<()>, Failure> {
        Ok(match scene.world.vmm.find(scene.generation).await? {
            VmmState::Never => Probe::NotDone,
            VmmState::Gone => Probe::Lost,
            _ => Probe::Done(()),
        })
    }

    async fn apply(&self, scene: &Context<'_, World>, (): &()) -> Result<(), Failure> {
        scene.world.vmm.start(scene.generation).await
    }

    async fn undo(&self, scene: &Context<'_, World>, (): &()) -> Result<(), Failure> {
        scene.world.vmm.stop(scene.generation).await
    }
}

/// Which VM a transition is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    /// The one that this operation puts together.
    New {
        /// Its disk; `None`: the one that this operation makes.
        disk: Option<Generation>,
        /// Whether its shares are devices from the start.
        shares: bool,
    },
    /// One that ran before this operation.
    Existing(Machine),
    /// One that ran before, in the VMM that this operation started for it.
    RolledOver(Machine),
}

impl Target {
    pub(super) fn machine(self, scene: &Context<'_, World>) -> Result<Machine, Failure> {
        Ok(match self {
            Self::New { disk, shares } => Machine {
                vmm: scene.generation,
                disk: disk.unwrap_or(scene.generation),
                memory: scene.generation,
                slot: scene.outcome::<ClaimSlot>()?,
                shares,
            },
            Self::Existing(machine) => machine,
            Self::RolledOver(machine) => Machine { vmm: scene.generation, ..machine },
        })
    }
}

/// Looks whether a system lives, for transitions that are done again rather than looked for.
async fn again_if_alive<O>(scene: &Context<'_, World>, machine: &Machine) -> Result<Probe<O>, Failure> {
    let state = scene.world.vmm.find(machine.vmm).await?;
    Ok(if state.has_system() { Probe::NotDone } else { Probe::Lost })
}

/// Waits until the guest is SSH-ready. With a boot to compare, anything but the same guest is a failure.
pub(super) struct Ready {
    pub(super) target: Target,
    /// The boot that it has to be.
    pub(super) same_as: Option<BootId>,
}

/// The guest that answers is not the one that was asked for.
#[derive(Debug, thiserror::Error)]
#[error("the guest that answers was rebooted: its boot id is not the snapshot's")]
pub(super) struct OtherBoot;

impl Transition for Ready {
    type World = World;
    type Intent = Machine;
    type Outcome = BootId;

    const ID: TransitionId = TransitionId(5);
    const LABEL: &'static str = "SSH-ready";
    const UNDO: UndoPolicy = UndoPolicy::Nothing("it only asks");
    const LIMIT: Duration = GUEST;

    async fn prepare(&self, scene: &Context<'_, World>) -> Result<Machine, Failure> {
        self.target.machine(scene)
    }

    async fn probe(&self, scene: &Context<'_, World>, machine: &Machine) -> Result<Probe<BootId>, Failure> {
        again_if_alive(scene, machine).await
    }

    async fn apply(&self, scene: &Context<'_, World>, machine: &Machine) -> Result<BootId, Failure> {
        let boot = scene.world.guest.ready(machine).await?;
        match self.same_as {
            Some(expected) if expected != boot => Err(Failure::world(OtherBoot)),
            _ => Ok(boot),
        }
    }
}

/// Fresh entropy first, then the clock.
pub(super) struct Settle(pub(super) Target);

impl Transition for Settle {
    type World = World;
    type Intent = Machine;
    type Outcome = ();

    const ID: TransitionId = TransitionId(19);
    const LABEL: &'static str = "entropy and clock";
    const UNDO: UndoPolicy = UndoPolicy::Nothing("entropy and a right clock do no harm");
    const LIMIT: Duration = GUEST;

    async fn prepare(&self, scene: &Context<'_, World>) -> Result<Machine, Failure> {
        self.0.machine(scene)
    }

    async fn probe(&self, scene: &Context<'_, World>, machine: &Machine) -> Result<Probe<()>, Failure> {
        again_if_alive(scene, machine).await
    }

    async fn apply(&self, scene: &Context<'_, World>, machine: &Machine) -> Result<(), Failure> {
        scene.world.guest.settle(machine).await
    }
}

/// The credentials of the configuration as it is now.
pub(super) struct Inject(pub(super) Target);

impl Transition for Inject {
    type World = World;
    type Intent = Machine;
    type Outcome = ();

    const ID: TransitionId = TransitionId(6);
    const LABEL: &'static str = "inject credentials";
    const UNDO: UndoPolicy = UndoPolicy::Nothing("where it can be taken back, the guest had them before");
    const LIMIT: Duration = GUEST;

    async fn prepare(&self, scene: &Context<'_, World>) -> Result<Machine, Failure> {
        self.0.machine(scene)
    }

    async fn probe(&self, scene: &Context<'_, World>, machine: &Machine) -> Result<Probe<()>, Failure> {
        match must_live(scene.world, machine.vmm).await {
            Err(Failure::Lost) => Ok(Probe::Lost),
            Err(failure) => Err(failure),
            Ok(()) => Ok(presence(scene.world.guest.equipped(machine).await?.credentials)),
        }
    }

    async fn apply(&self, scene: &Context<'_, World>, machine: &Machine) -> Result<(), Failure> {
        scene.world.guest.inject(machine).await
    }
}

/// The shares, attached where they are no devices yet, and mounted in the guest.
pub(super) struct MountShares(pub(super) Target);

impl Transition for MountShares {
    type World = World;
    type Intent = Machine;
    type Outcome = ();

    const ID: TransitionId = TransitionId(7);
    const LABEL: &'static str = "mount shares";
    const UNDO: UndoPolicy = UndoPolicy::Nothing("where it can be taken back, the guest had them before");
    const LIMIT: Duration = GUEST;

    async fn prepare(&self, scene: &Context<'_, World>) -> Result<Machine, Failure> {
        self.0.machine(scene)
    }

    async fn probe(&self, scene: &Context<'_, World>, machine: &Machine) -> Result<Probe<()>, Failure> {
        match must_live(scene.world, machine.vmm).await {
            Err(Failure::Lost) => Ok(Probe::Lost),
            Err(failure) => Err(failure),
            // The guest's word is its table of mounts, in which those that nobody serves are too.
            Ok(()) if !served(scene.world, machine).await? => Ok(Probe::NotDone),
            Ok(()) => Ok(presence(scene.world.guest.equipped(machine).await?.mounts)),
        }
    }

    async fn apply(&self, scene: &Context<'_, World>, machine: &Machine) -> Result<(), Failure> {
        attach_and_mount(scene.world, machine).await
    }
}

pub(super) async fn attach_and_mount(world: &World, machine: &Machine) -> Result<(), Failure> {
    if world.vmm.shares_attached(machine.vmm).await? != Presence::Whole {
        // A share daemon ends with the device that it served.
        world.shares.start(machine.vmm).await?;
        world.vmm.attach_shares(machine.vmm).await?;
    }
    // Before, because the guest hangs in what nobody serves; and after, because its kernel mounts that all the same.
    if !served(world, machine).await? {
        return Err(Failure::world(NoDaemon));
    }
    world.guest.mount(machine).await?;
    if served(world, machine).await? { Ok(()) } else { Err(Failure::world(NoDaemon)) }
}

async fn served(world: &World, machine: &Machine) -> Result<bool, Failure> {
    Ok(!world.shares.wanted() || world.shares.find(machine.vmm).await? == Presence::Whole)
}

/// A mount that nobody serves.
#[derive(Debug, thiserror::Error)]
#[error(
    "a share daemon (virtiofsd) has ended: its log is beside the serial console's, which `nixbox status` names"
)]
struct NoDaemon;

/// How the user's scripts came out. After the commit point a script that fails is an outcome, not a setback: the VM
/// stays, and the report says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HookOutcome {
    /// All exited with 0.
    Succeeded,
    /// One did not; what it was is in the report of the run, never in the journal.
    Failed,
}

macro_rules! hooks {
    ($name:ident, $point:ident, $id:literal, $label:literal, $failure:expr) => {
        #[doc = concat!("The user's own scripts: ", $label, ".")]
        pub(super) struct $name;

        impl Transition for $name {
            type World = World;
            type Intent = ();
            type Outcome = HookOutcome;

            const ID: TransitionId = TransitionId($id);
            const LABEL: &'static str = $label;
            const UNDO: UndoPolicy = UndoPolicy::Nothing("what a user's script did is the user's");
            const LIMIT: Duration = LONG;

            async fn prepare(&self, _: &Context<'_, World>) -> Result<(), Failure> {
                Ok(())
            }

            async fn probe(&self, _: &Context<'_, World>, (): &()) -> Result<Probe<HookOutcome>, Failure> {
                // Nothing tells whether they ran. They run at least once.
                Ok(Probe::NotDone)
            }

            async fn apply(&self, scene: &Context<'_, World>, (): &()) -> Result<HookOutcome, Failure> {
                let ran = scene.world.hooks.run(HookPoint::$point, &scene.interrupt).await;
                ran.map(|()| HookOutcome::Succeeded).or_else($failure)
            }
        }
    };
}

hooks!(PreUp, PreUp, 8, "pre-up scripts", Err);
hooks!(PostUp, PostUp, 9, "post-up scripts", |_| Ok(HookOutcome::Failed));
hooks!(PreDown, PreDown, 10, "pre-down scripts", Err);
hooks!(PostDown, PostDown, 11, "post-down scripts", |_| Ok(HookOutcome::Failed));

/// What of a VM is cleared away, each by a transition that can only go forward.
macro_rules! clearing {
    ($name:ident, $intent:ty, $id:literal, $label:literal, |$world:ident, $what:ident| $remove:expr) => {
        #[doc = concat!("Clears away: ", $label, ".")]
        pub(super) struct $name(pub(super) $intent);

        impl Transition for $name {
            type World = World;
            type Intent = $intent;
            type Outcome = ();

            const ID: TransitionId = TransitionId($id);
            const LABEL: &'static str = $label;
            const UNDO: UndoPolicy = UndoPolicy::Forbidden("comes after the commit point");
            const LIMIT: Duration = QUICK;

            async fn prepare(&self, _: &Context<'_, World>) -> Result<$intent, Failure> {
                Ok(self.0)
            }

            async fn probe(&self, _: &Context<'_, World>, _: &$intent) -> Result<Probe<()>, Failure> {
                // Removing what is not there succeeds, so that doing it again is as good as looking.
                Ok(Probe::NotDone)
            }

            async fn apply(&self, scene: &Context<'_, World>, $what: &$intent) -> Result<(), Failure> {
                let $world = scene.world;
                $remove.await
            }
        }
    };
}

clearing!(RemoveVmm, Generation, 12, "VMM", |world, generation| world.vmm.stop(*generation));
clearing!(RemoveNetwork, Slot, 13, "network", |world, slot| world.network.remove(*slot));
clearing!(RemoveShares, Generation, 14, "shares", |world, generation| world.shares.stop(*generation));
clearing!(RemoveMemory, Generation, 15, "memory", |world, generation| world.memory.remove(*generation));
clearing!(ReleaseSlot, Slot, 16, "release slot", |world, slot| world.slots.release(*slot));
clearing!(RemoveDisk, Generation, 17, "retire the former disk", |world, generation| world
    .disk
    .remove(*generation));
clearing!(Purge, SnapshotId, 18, "remove", |world, id| world.catalog.purge(*id));
