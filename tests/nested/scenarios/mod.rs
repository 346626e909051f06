//! What is promised of nixbox on the real VMM, one function each.

mod crashes;
mod cuts;
mod figures;
mod lifecycle;
mod network;
mod refused;
mod seam;
mod standing;
mod users;
mod warm;

/// How a scenario runs.
pub(super) enum Run {
    /// With workspaces of its own, in a nested host where nothing of nixbox's is; it leaves nothing behind.
    Own(fn()),
    /// On a VM that runs, and runs on.
    Standing(fn(&super::room::Room)),
    /// The power of its nested host is cut after `before`; the disk with the workspaces is there for `after`.
    PowerCut { before: fn(), after: fn() },
}

pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) run: Run,
    /// Whether it needs a nixbox that can be told where to die.
    pub(super) failpoints: bool,
    /// Whether it runs only when it is named, or all are asked for: an ordinary test run has its time.
    pub(super) long: bool,
    /// Whether nothing else runs beside it: it measures.
    pub(super) alone: bool,
}

/// All of them, each named after its function. They are begun in this order, but for the power cuts, which need hosts of their
/// own and come last: what takes long comes first, so that no host waits for another at the end.
macro_rules! scenarios {
    ($($kind:ident $module:ident :: $name:ident $(, $needs:ident)? ;)*) => {
        pub(super) const ALL: &[Scenario] = &[$(scenarios!(@ $kind $module $name $($needs)?)),*];
    };
    (@ own $module:ident $name:ident $($needs:ident)?) => {
        Scenario {
            name: stringify!($name),
            run: Run::Own($module::$name),
            failpoints: scenarios!(@ needs $($needs)?),
            long: scenarios!(@ takes $($needs)?),
            alone: scenarios!(@ wants $($needs)?),
        }
    };
    (@ standing $module:ident $name:ident) => {
        Scenario { name: stringify!($name), run: Run::Standing($module::$name), failpoints: false, long: false, alone: false }
    };
    (@ power_cut $module:ident $name:ident $($needs:ident)?) => {
        Scenario {
            name: stringify!($name),
            run: Run::PowerCut { before: $module::$name::before, after: $module::$name::after },
            failpoints: false,
            long: scenarios!(@ takes $($needs)?),
            alone: false,
        }
    };
    (@ needs failpoints) => { true };
    (@ needs $($other:ident)?) => { false };
    (@ takes long) => { true };
    (@ takes $($other:ident)?) => { false };
    (@ wants alone) => { true };
    (@ wants $($other:ident)?) => { false };
}

scenarios! {
    own cuts::kills_of_snapshot_restore_and_delete_are_recovered, failpoints;
    own crashes::every_kill_of_up_and_down_is_recovered, failpoints;
    own cuts::daemons_killed_under_way_are_recovered, long;
    own warm::ten_restores_begin_the_same, long;
    own warm::five_generations_deep, long;
    own crashes::random_kills_are_recovered;
    power_cut cuts::power_cut_in_a_capture;
    power_cut cuts::power_cut_in_a_restore;
    power_cut lifecycle::a_reboot_of_the_host_is_recovered;
    own lifecycle::a_killed_vmm_or_share_daemon_is_noticed_and_cleared_away;
    own refused::what_cannot_work_is_refused_and_changes_nothing;
    own lifecycle::the_readme_leads_from_init_to_a_shell;
    own lifecycle::down_leaves_nothing_and_the_disk_stays;
    own lifecycle::two_vms_at_once_do_not_touch_each_other;
    own lifecycle::a_vmm_that_does_not_answer_is_ended, long;
    own network::filtered_lets_through_what_is_allowed_alone;
    own users::a_user_with_capabilities_needs_no_root;
    own warm::the_requests_workflow;
    own warm::bad_input_changes_nothing;
    own warm::a_full_disk_ends_a_capture_and_nothing_else;
    own warm::an_interrupted_snapshot_leaves_the_vm_as_it_was;
    own figures::a_warm_start_takes_little_longer_than_the_bare_calls, alone;
    own figures::the_guest_is_paused_little_longer_than_by_the_bare_calls, alone;
    own seam::a_guest_goes_round_as_root_with_memory_of_ours;
    own seam::a_guest_goes_round_as_a_user_with_memory_of_the_vmm;
    standing standing::up_again_says_so;
    standing standing::credentials_have_their_owner_and_mode;
    standing standing::credentials_are_nowhere_else;
    standing standing::shares_are_read_write_and_read_only;
    standing standing::run_passes_stdin_stdout_and_status;
    standing standing::shell_is_a_terminal;
}
