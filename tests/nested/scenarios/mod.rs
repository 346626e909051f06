//! What nixbox promises on the real VMM, one function for each promise.

mod clock;
mod confined;
mod crashes;
mod cuts;
mod debian;
mod edits;
mod figures;
mod given_back;
mod images;
mod leaks;
mod lifecycle;
mod mishaps;
mod network;
mod rebooted;
mod refused;
mod seam;
mod shared_vm;
mod side_by_side;
mod standing;
mod trust;
mod users;
mod warm;
mod writers;

use std::time::Duration;

use super::workspace::Workspace;

/// How a scenario runs.
pub(super) enum Run {
    /// With workspaces of its own, in a nested host where nothing of nixbox's is; it leaves nothing behind.
    Own(fn()),
    /// On the VM that all such scenarios share, one after the other. It leaves the VM running.
    SharedVm(fn(&Workspace)),
    /// The power of its nested host is cut after `before`; the disk with the workspaces is there for `after`.
    PowerCut { before: fn(), after: fn() },
}

pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) run: Run,
    /// Whether it needs a nixbox that can be told where to die.
    pub(super) failpoints: bool,
    /// Whether it runs only when it is named, or all are asked for: an ordinary test run must not take too long.
    pub(super) long: bool,
    /// Whether nothing else runs beside it, because it measures.
    pub(super) alone: bool,
    /// Whether it needs the guest that is made of Debian's packages.
    pub(super) debian: bool,
}

impl Scenario {
    const fn new(name: &'static str, run: Run) -> Self {
        Self { name, run, failpoints: false, long: false, alone: false, debian: false }
    }

    const fn failpoints(self) -> Self {
        Self { failpoints: true, ..self }
    }

    const fn long(self) -> Self {
        Self { long: true, ..self }
    }

    const fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    const fn debian(self) -> Self {
        Self { debian: true, ..self }
    }

    /// The time limit of the scenario, outside of a campaign. A last resort: everything that it does has its own limit.
    pub(super) fn limit(&self) -> Duration {
        Duration::from_secs(if self.debian { 5400 } else { 900 })
    }
}

/// A scenario is named after its function.
macro_rules! own {
    ($module:ident::$name:ident) => {
        Scenario::new(stringify!($name), Run::Own($module::$name))
    };
}

macro_rules! shared_vm {
    ($module:ident::$name:ident) => {
        Scenario::new(stringify!($name), Run::SharedVm($module::$name))
    };
}

/// A power cut is named after its module.
macro_rules! power_cut {
    ($module:ident::$name:ident) => {
        Scenario::new(
            stringify!($name),
            Run::PowerCut { before: $module::$name::before, after: $module::$name::after },
        )
    };
}

/// All scenarios. Those that take long come first, so that no host waits for another at the end. They are begun in this order,
/// except for the power cuts, which need hosts of their own and come last.
pub(super) const ALL: &[Scenario] = &[
    own!(cuts::kills_of_snapshot_restore_and_delete_are_recovered).failpoints(),
    own!(crashes::every_kill_of_up_and_down_is_recovered).failpoints(),
    own!(crashes::every_kill_of_up_and_down_of_an_ordinary_user_is_recovered).failpoints().long(),
    own!(cuts::daemons_killed_under_way_are_recovered).long(),
    own!(warm::ten_restores_of_a_snapshot_begin_the_same).long(),
    own!(warm::snapshots_of_restored_vms_work_five_generations_deep).long(),
    own!(crashes::random_kills_are_recovered),
    own!(crashes::random_kills_of_an_ordinary_user_are_recovered).long(),
    power_cut!(cuts::power_cut_in_a_capture).long(),
    power_cut!(cuts::power_cut_in_a_restore).long(),
    power_cut!(lifecycle::a_reboot_of_the_host_is_recovered).long(),
    own!(lifecycle::a_killed_vmm_or_share_daemon_is_cleared_away).long(),
    own!(edits::a_vm_outlives_every_edit_of_its_configuration).long(),
    own!(edits::a_vm_goes_down_without_credentials_and_without_a_journal).long(),
    own!(edits::a_copy_leaves_the_vm_alone_and_a_renamed_workspace_keeps_it).long(),
    own!(mishaps::a_roll_over_that_fails_is_tried_again_and_then_without_shares).long(),
    own!(mishaps::a_guest_that_never_answers_is_shut_down_or_kept).long(),
    own!(mishaps::a_former_disk_is_gone_back_to_and_a_workspace_without_a_directory_is_forgotten).long(),
    own!(images::an_image_without_init_and_sshd_boots_and_is_restored),
    own!(clock::a_guest_that_was_frozen_notices_no_jump_but_that_of_the_wall_clock).long(),
    own!(clock::a_guest_whose_host_was_suspended_gets_the_time).long(),
    own!(rebooted::a_guest_that_reboots_comes_back_and_one_that_powers_off_is_down),
    own!(trust::a_guest_sees_copies_in_place_of_nixbox_and_changes_nothing_there),
    own!(confined::a_vmm_opens_the_files_of_its_vm_and_no_other).long(),
    own!(refused::up_refuses_what_cannot_work_and_changes_nothing).long(),
    own!(lifecycle::the_commands_of_the_readme_lead_to_a_shell),
    own!(lifecycle::down_leaves_only_the_disk).long(),
    own!(lifecycle::two_running_vms_are_independent).long(),
    own!(side_by_side::snapshots_of_one_address_are_restored_side_by_side).long(),
    own!(lifecycle::a_vmm_that_does_not_answer_is_ended).long(),
    own!(network::filtered_mode_lets_only_allowed_domains_and_ports_through),
    own!(standing::the_network_of_a_running_vm_is_repaired).long(),
    own!(standing::the_uplink_makes_room_for_the_networks_of_the_host).long(),
    own!(users::an_ordinary_user_needs_no_root_and_no_capability),
    own!(users::a_host_that_refuses_an_ordinary_user_says_what_helps).long(),
    own!(warm::a_snapshot_without_credentials_brings_back_the_same_guest),
    own!(given_back::a_guest_that_runs_on_has_the_histories_and_files_that_the_wipe_took).long(),
    own!(leaks::a_credential_that_a_process_keeps_is_in_no_snapshot),
    own!(warm::refused_snapshots_and_restores_change_nothing).long(),
    own!(warm::a_full_disk_fails_the_snapshot_and_keeps_the_vm).long(),
    own!(warm::an_interrupted_snapshot_leaves_the_vm_as_it_was).long(),
    own!(writers::what_is_written_while_a_snapshot_is_made_is_in_it_as_it_was_at_the_pause).long(),
    own!(figures::a_warm_start_takes_little_longer_than_the_bare_calls).long().alone(),
    own!(figures::the_guest_is_paused_little_longer_than_by_the_bare_calls).long().alone(),
    own!(figures::the_checks_of_a_snapshot_take_a_small_part_of_it).long().alone(),
    own!(debian::a_debian_guest_goes_on_with_its_containers_and_its_compile_server).long().debian(),
    own!(seam::a_guest_is_saved_and_loaded_as_root_with_a_memory_file).long(),
    own!(seam::a_guest_is_saved_and_loaded_as_a_user_with_memory_of_the_vmm).long(),
    shared_vm!(shared_vm::up_of_a_running_vm_changes_nothing),
    shared_vm!(shared_vm::credentials_have_their_owner_and_mode),
    shared_vm!(shared_vm::credentials_are_taken_from_the_guest_and_given_again),
    shared_vm!(shared_vm::credentials_are_in_no_process_log_or_journal),
    shared_vm!(shared_vm::shares_are_writable_or_read_only_as_configured),
    shared_vm!(shared_vm::run_passes_stdin_stdout_and_status),
    shared_vm!(shared_vm::run_passes_signals_and_ends_its_command),
    shared_vm!(shared_vm::files_are_copied_and_ssh_and_forwarded_ports_reach_the_guest),
    shared_vm!(shared_vm::shell_gives_a_terminal),
];
