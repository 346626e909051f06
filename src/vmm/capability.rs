//! What each version of Cloud Hypervisor can do, as one table. Nothing else asks for a version.

use crate::world::{Ability, VmmVersion};

/// A version as `--version` and `vmm.ping` give it: `v53.0`, `v53.0-dirty`, `v53.0-246-gae44c2971-dirty` (246 commits
/// after v53.0). Ordered by what a version contains: a point release contains nothing of the commits after v53.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u32,
    commits: u32,
}

/// Why a version is of no use.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// Not in a known form.
    #[error("{0:?} is no version of Cloud Hypervisor")]
    Unreadable(String),
    /// Older than what nixbox was made for.
    #[error("Cloud Hypervisor {found} is too old: nixbox needs v{OLDEST}.0 or later")]
    TooOld {
        /// As it calls itself.
        found: String,
    },
}

/// What a version can do, as far as nixbox acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// For the operations.
    pub ability: Ability,
    /// `disks[].image_type` is known. Without it, such a version refuses writes to sector 0 of a raw disk.
    pub image_type: bool,
}

const OLDEST: u32 = 51;

/// Oldest first: each row holds from its version up to the next. Measured on real guests.
#[rustfmt::skip]
const TABLE: [(Version, Capability); 4] = [
    // v51.1: after a restore the guest sees EBADF on every old inode of a share.
    (Version { major: 51, commits: 0 },   row(false, true,  false)),
    // v52.0: after an in-place resume a share hangs for ever.
    (Version { major: 52, commits: 0 },   row(true,  false, true)),
    // v53.0: as v52.0.
    (Version { major: 53, commits: 0 },   row(true,  false, true)),
    // v53.0-246: has their b47c26fa5, which resumes vhost-user devices. Later than that commit by an unknown number.
    (Version { major: 53, commits: 246 }, row(true,  true,  true)),
];

const fn row(shares_survive_restore: bool, shares_survive_resume: bool, image_type: bool) -> Capability {
    Capability { ability: Ability { shares_survive_restore, shares_survive_resume }, image_type }
}

/// What the version `text` can do: `vmm.ping`'s `build_version`, or what follows the name in `--version`. Newer than
/// the newest row counts as the newest row.
///
/// # Errors
/// [`VersionError`].
pub fn of(text: &str) -> Result<Capability, VersionError> {
    let version = parse(text)?;
    TABLE
        .iter()
        .rfind(|(since, _)| *since <= version)
        .map(|(_, capability)| *capability)
        .ok_or_else(|| VersionError::TooOld { found: text.to_owned() })
}

/// The version `text`, as snapshots note it.
///
/// # Errors
/// [`VersionError`].
pub fn version(text: &str) -> Result<VmmVersion, VersionError> {
    Ok(VmmVersion { major: parse(text)?.major, text: text.to_owned() })
}

/// The version in what `cloud-hypervisor --version` printed: its first line is `cloud-hypervisor v53.0`.
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
    // git-describe's count is of commits after the tag; after a point release they are on a branch of fixes.
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
    use crate::testing::{Need, have};

    #[test]
    fn every_row_and_what_lies_between() {
        let v51 = row(false, true, false);
        let v52 = row(true, false, true);
        let later = row(true, true, true);
        let rows = [
            ("v51.0", v51),
            ("v51.1", v51),
            ("v51.1-dirty", v51),
            ("v52.0", v52),
            ("v52.0-900-g0123456789ab", v52),
            ("v53.0", v52),
            ("v53.0-dirty", v52),
            ("v53.0-rc1", v52),
            ("v53.0-245-gae44c2971", v52),
            ("v53.1", v52),
            ("v53.1-300-gae44c2971", v52),
            ("v53.0-246-gae44c2971", later),
            ("v53.0-246-gae44c2971-dirty", later),
            ("v53.0-4294967295-gae44c2971", later),
            ("v54.0", later),
            ("v100.2-dirty", later),
        ];
        for (text, capability) in rows {
            assert_eq!(of(text), Ok(capability), "{text}");
        }
    }

    #[test]
    fn the_table_is_sorted_and_begins_with_the_oldest() {
        assert!(TABLE.is_sorted_by(|(one, _), (next, _)| one < next));
        assert_eq!(TABLE[0].0, Version { major: OLDEST, commits: 0 });
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

    #[test]
    fn the_installed_program_is_understood() {
        if !have(&[Need::CloudHypervisor]) {
            return;
        }
        let program =
            crate::host::spawn::find_program("cloud-hypervisor", "NIXBOX_CLOUD_HYPERVISOR").unwrap();
        let output = std::process::Command::new(program).arg("--version").output().unwrap();
        of(of_program(&String::from_utf8(output.stdout).unwrap()).unwrap()).unwrap();
    }
}
