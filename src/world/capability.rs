//! What each version of Cloud Hypervisor does, as one table with a row for each version that differs. Every fact in it
//! was measured on real VMMs with real guests. `vmm` and `simulator` read named facts from a row; no other code compares
//! version numbers. The table lies in `world` because `config` reads it as well: `vmm = "simulator-v52"` is a row.
//!
//! To support a new version, say v54.0:
//! 1. Ask a real one, with `NIXBOX_WRITE_DOWN` set, what it answers (`cargo test --test simulator conformance`; see
//!    `tests/simulator/conformance.rs`), keep the two files as `tests/simulator/conformance/v54.0.txt` and
//!    `v54.0-kvm.txt`, and name the version in `WRITTEN` there.
//! 2. If an answer or a behaviour differs from that of the newest row, add a row to `TABLE` that says what differs, and
//!    make the simulator read any fact that is new. `simulator-v54` is then a word of the configuration.
//! 3. If shares behave otherwise than before, change the fakes' own rule (`fakes/state.rs`): a test there compares it
//!    with the table.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What becomes of shares under a version of the VMM. This module holds the table of versions; no other code compares
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

/// A version as `--version` and `vmm.ping` give it: `v53.0`, `v53.0-dirty`, `v53.0-246-gae44c2971-dirty` (246 commits
/// after v53.0). Ordered by what a version contains: a point release contains nothing of the commits after v53.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    major: u32,
    commits: u32,
}

/// Why a version cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// Not in a known form.
    #[error("{0:?} is not a version of Cloud Hypervisor")]
    Unreadable(String),
    /// Older than the oldest row of the table.
    #[error("Cloud Hypervisor {found} is too old: nixbox needs v{OLDEST}.0 or later")]
    TooOld {
        /// As it calls itself.
        found: String,
    },
    /// The simulator was asked to behave like a version for which the table has no row.
    #[error("{0:?} is not a version that can be simulated: they are {known}", known = simulated_numbers().join(", "))]
    NotSimulated(String),
}

/// A row of the table: what a version does, as far as nixbox or its simulator act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// The first version that does so.
    since: Version,
    /// The release that the simulator calls itself when it behaves like this row.
    release: &'static str,
    /// What becomes of mounted shares; for the operations.
    pub ability: Ability,
    /// `disks[].image_type` is known. A version that knows it refuses writes to sector 0 of a raw disk without it.
    pub knows_image_type: bool,
    /// `vm.pause` waits for block I/O in flight (commit 50f2fd369 of Cloud Hypervisor). Without this a page that is read from
    /// a disk may change after the pause, so that block I/O has to be synchronous.
    pub pause_waits_for_block_io: bool,
    /// `vm.restore` resumes the VM if its body says `"resume": true`. Without this the field is ignored.
    pub restore_takes_resume_field: bool,
    /// `vm.restore` asks for the status of the RAM file before it opens it, so that a missing file is another error.
    pub restore_stats_ram_file: bool,
    /// The guest's wall clock goes on during the time between `vm.snapshot` and `vm.restore`; else it stands still.
    pub clock_runs_while_saved: bool,
    /// The HTTP status of a call that needs a VM where there is none.
    pub missing_vm_status: u16,
    /// `vm.boot` of a VM that is paused resumes it; else the VM counts as created already.
    pub boot_resumes_paused_vm: bool,
    /// `vm.remove-device` succeeds once more for a device that the guest has not yet let go of.
    pub removal_can_be_repeated: bool,
    /// The error chain names the device id that `vm.remove-device` did not find.
    pub removal_errors_name_the_id: bool,
    /// The error chain names the disk image that could not be opened.
    pub disk_errors_name_the_path: bool,
    /// The error chain says which file of `vm.snapshot` or `vm.restore` could not be made or read.
    pub snapshot_errors_name_the_file: bool,
    /// The VMM locks a file beside its API socket and replaces a socket that nobody listens on. Without this it refuses
    /// to start where a socket is.
    pub cleans_up_stale_socket: bool,
    /// A VMM that cannot bind its API socket removes the one that is there.
    pub removes_socket_it_cannot_bind: bool,
}

const OLDEST: u32 = V51.since.major;

const V51: Capability = Capability {
    since: Version { major: 51, commits: 0 },
    release: "v51.1",
    // v51.1: after a restore the guest gets EBADF for every inode of a share that it knew.
    ability: Ability { shares_survive_restore: false, shares_survive_resume: true },
    knows_image_type: false,
    pause_waits_for_block_io: false,
    restore_takes_resume_field: false,
    restore_stats_ram_file: false,
    clock_runs_while_saved: false,
    missing_vm_status: 500,
    boot_resumes_paused_vm: true,
    removal_can_be_repeated: true,
    removal_errors_name_the_id: false,
    disk_errors_name_the_path: false,
    snapshot_errors_name_the_file: false,
    cleans_up_stale_socket: false,
    removes_socket_it_cannot_bind: false,
};

const V52: Capability = Capability {
    since: Version { major: 52, commits: 0 },
    release: "v52.0",
    // After `vm.snapshot` and a resume in place, every access to a share hangs.
    ability: Ability { shares_survive_restore: true, shares_survive_resume: false },
    knows_image_type: true,
    restore_takes_resume_field: true,
    restore_stats_ram_file: true,
    disk_errors_name_the_path: true,
    removes_socket_it_cannot_bind: true,
    ..V51
};

const V53: Capability = Capability {
    since: Version { major: 53, commits: 0 },
    release: "v53.0",
    pause_waits_for_block_io: true,
    clock_runs_while_saved: true,
    missing_vm_status: 404,
    boot_resumes_paused_vm: false,
    removal_can_be_repeated: false,
    removal_errors_name_the_id: true,
    snapshot_errors_name_the_file: true,
    cleans_up_stale_socket: true,
    removes_socket_it_cannot_bind: false,
    ..V52
};

/// v53.0-246 was measured. It contains commit b47c26fa5 of Cloud Hypervisor, which resumes vhost-user devices; how many
/// commits before v53.0-246 that one lies is not known. v54.0 will contain it.
const V54: Capability = Capability {
    since: Version { major: 53, commits: 246 },
    release: "v54.0",
    ability: Ability { shares_survive_restore: true, shares_survive_resume: true },
    ..V53
};

/// Oldest first: each row holds from its version up to the next. A version that is newer than the newest row counts as
/// the newest row.
static TABLE: [Capability; 4] = [V51, V52, V53, V54];

/// The row that the simulator behaves like unless it is told otherwise: the newest release.
pub static SIMULATED: &Capability = &TABLE[2];

impl Capability {
    /// The major version by which a person names the row where a version is to be simulated: `53`.
    #[must_use]
    pub fn number(&self) -> &'static str {
        self.release.trim_start_matches('v').split('.').next().unwrap_or(self.release)
    }

    /// What the simulator calls itself: never without saying that it is a simulator.
    #[must_use]
    pub fn simulator_version(&self) -> String {
        format!("{}-simulator", self.release)
    }

    /// The release without the leading `v`, as `vmm.ping` gives the version of the package.
    #[must_use]
    pub fn package_version(&self) -> String {
        format!("{}.0", self.release.trim_start_matches('v'))
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.number())
    }
}

/// The numbers of the versions that can be simulated, oldest first.
pub fn simulated_numbers() -> Vec<&'static str> {
    TABLE.iter().map(Capability::number).collect()
}

/// The row of the version that is to be simulated, by its number: `53`.
///
/// # Errors
/// [`VersionError::NotSimulated`].
pub fn simulated(number: &str) -> Result<&'static Capability, VersionError> {
    let row = TABLE.iter().find(|row| row.number() == number);
    row.ok_or_else(|| VersionError::NotSimulated(number.to_owned()))
}

/// The row of the version `text`: `vmm.ping`'s `build_version`, or what follows the name in the output of `--version`.
///
/// # Errors
/// [`VersionError`].
pub fn of(text: &str) -> Result<&'static Capability, VersionError> {
    let version = parse(text)?;
    let row = TABLE.iter().rfind(|row| row.since <= version);
    row.ok_or_else(|| VersionError::TooOld { found: text.to_owned() })
}

/// The version `text`, as the manifest of a snapshot holds it.
///
/// # Errors
/// [`VersionError`].
pub fn version(text: &str) -> Result<VmmVersion, VersionError> {
    Ok(VmmVersion { major: parse(text)?.major, text: text.to_owned() })
}

/// The version in the output of `cloud-hypervisor --version`, whose first line is `cloud-hypervisor v53.0`.
///
/// # Errors
/// [`VersionError::Unreadable`].
pub fn of_program(output: &str) -> Result<&str, VersionError> {
    let line = output.lines().next().unwrap_or_default().trim();
    line.strip_prefix("cloud-hypervisor ").ok_or_else(|| VersionError::Unreadable(line.to_owned()))
}

fn parse(text: &str) -> Result<Version, VersionError> {
    let unreadable = || VersionError::Unreadable(text.chars().take(80).collect());
    let number = |digits: &str| {
        let digits = Some(digits).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
        digits.parse::<u32>().ok()
    };
    let (release, rest) = match text.split_once('-') {
        Some((release, rest)) => (release, rest),
        None => (text, ""),
    };
    let mut numbers = release.strip_prefix('v').ok_or_else(unreadable)?.split('.').map(number);
    let major = numbers.next().flatten().ok_or_else(unreadable)?;
    let points: Vec<u32> = numbers.collect::<Option<_>>().ok_or_else(unreadable)?;
    // git-describe counts the commits after the tag. Those after a point release are fixes on a branch of their own, which
    // lacks what the main branch has gained.
    let commits = match rest.split_once('-') {
        Some((count, commit)) if commit.starts_with('g') && points.iter().all(|point| *point == 0) => {
            number(count).unwrap_or(0)
        }
        _ => 0,
    };
    Ok(Version { major, commits })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_has_the_row_of_the_newest_version_that_it_contains() {
        let rows = [
            ("v51.0", V51),
            ("v51.1", V51),
            ("v51.1-dirty", V51),
            ("v52.0", V52),
            ("v52.0-900-g0123456789ab", V52),
            ("v53.0", V53),
            ("v53.0-dirty", V53),
            ("v53.0-rc1", V53),
            ("v53.0-245-gae44c2971", V53),
            ("v53.1", V53),
            ("v53.1-300-gae44c2971", V53),
            ("v53.0-246-gae44c2971", V54),
            ("v53.0-246-gae44c2971-dirty", V54),
            ("v53.0-4294967295-gae44c2971", V54),
            ("v54.0", V54),
            ("v100.2-dirty", V54),
        ];
        for (text, capability) in rows {
            assert_eq!(of(text), Ok(&capability), "{text}");
        }
    }

    #[test]
    fn the_table_is_sorted_and_begins_with_the_oldest() {
        assert!(TABLE.is_sorted_by(|one, next| one.since < next.since));
        assert_eq!(TABLE[0].since, Version { major: OLDEST, commits: 0 });
    }

    #[test]
    fn the_simulator_behaves_like_the_row_of_the_release_that_it_says_it_is() {
        for row in &TABLE {
            assert_eq!(of(row.release), Ok(row));
            assert_eq!(of(&row.simulator_version()), Ok(row));
            assert_eq!(simulated(row.number()), Ok(row));
        }
        assert_eq!(simulated_numbers(), ["51", "52", "53", "54"]);
        assert_eq!(SIMULATED.simulator_version(), "v53.0-simulator");
        assert_eq!(
            simulated("50").unwrap_err().to_string(),
            "\"50\" is not a version that can be simulated: they are 51, 52, 53, 54"
        );
    }

    #[test]
    fn too_old_and_unreadable_are_errors() {
        for old in ["v50.2", "v0.1", "v50.0-900-gabc"] {
            assert_eq!(of(old), Err(VersionError::TooOld { found: old.to_owned() }));
        }
        assert_eq!(
            of("v41.0").unwrap_err().to_string(),
            "Cloud Hypervisor v41.0 is too old: nixbox needs v51.0 or later"
        );
        for bad in ["", "53.0", "v", "v-1", "v+53", "vfive", "v53.x", "v53.", "v99999999999"] {
            assert!(matches!(of(bad), Err(VersionError::Unreadable(_))), "{bad}");
        }
    }

    #[test]
    fn the_program_says_its_version_first() {
        assert_eq!(
            of_program("cloud-hypervisor v53.0-dirty\nMigration Protocol Versions: 0\n"),
            Ok("v53.0-dirty")
        );
        assert!(matches!(of_program("QEMU emulator version 7\n"), Err(VersionError::Unreadable(_))));
        assert!(matches!(of_program(""), Err(VersionError::Unreadable(_))));
    }
}
