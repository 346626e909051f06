//! Names: of snapshots, workspaces, users, variables and shares.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::value::{InvalidValue, text_value};
use super::{Generation, ListedSnapshot};

/// 1 to `most` of `a-z A-Z 0-9 . _ -`, beginning with a letter or a digit.
fn is_plain(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && text.as_bytes()[0].is_ascii_alphanumeric()
}

/// The rule of most systems (`NAME_REGEX` of useradd, and systemd's strict mode).
fn is_user(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte))
        && (text.as_bytes()[0].is_ascii_lowercase() || text.as_bytes()[0] == b'_')
}

fn checked(text: &str, good: bool, rule: &'static str) -> Result<String, InvalidValue> {
    if good { Ok(text.to_owned()) } else { Err(InvalidValue::new(text, rule)) }
}

/// A snapshot: the generation of the operation that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SnapshotId(pub Generation);

impl fmt::Display for SnapshotId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

text_value!(
    /// A name that a person gave to a snapshot.
    SnapshotName,
    |text| checked(
        text,
        is_plain(text, 64),
        "cannot name a snapshot: 1 to 64 of a-z A-Z 0-9 . _ -, beginning with a letter or a digit",
    )
);

impl SnapshotName {
    /// Whether it could be taken for a snapshot's number.
    #[must_use]
    pub fn is_number(&self) -> bool {
        self.0.bytes().all(|byte| byte.is_ascii_digit())
    }
}

text_value!(
    /// What a person writes down about a snapshot: one line, which no terminal acts on.
    SnapshotNote,
    |text| {
        let rule = "cannot be a note: 1 to 1,000 characters, none of them a line end or another control character";
        let acts = |character: char| {
            // What changes the direction of a line is not a control character to Unicode, and hides text as well.
            character.is_control()
                || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        let good = (1..=1000).contains(&text.chars().count()) && !text.chars().any(acts);
        if good { Ok(text.to_owned()) } else { Err(InvalidValue::unquoted(rule)) }
    }
);

/// How a person names a snapshot: by its name or by its number. The digits of a number have the form of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotReference(SnapshotName);

/// The snapshots of a list that a [`SnapshotReference`] means.
#[derive(Debug)]
pub enum ReferencedSnapshot<'a> {
    /// None has that name or number.
    Absent,
    /// The only one.
    One(&'a ListedSnapshot),
    /// Several have that name, which files that were copied by hand can bring about. Their numbers, in the order of the list.
    Several(Vec<SnapshotId>),
}

impl SnapshotReference {
    /// The snapshot that is meant. A damaged snapshot has no name that could be known, and is found by its number. A number
    /// comes before a name, so that every snapshot can be referred to, whatever the others are named.
    #[must_use]
    pub fn find<'a>(&self, listed: &'a [ListedSnapshot]) -> ReferencedSnapshot<'a> {
        if let Some(numbered) = listed.iter().find(|one| one.id.to_string() == self.0.as_str()) {
            return ReferencedSnapshot::One(numbered);
        }
        let is_named = |one: &&ListedSnapshot| {
            one.manifest.as_ref().is_ok_and(|manifest| manifest.name.as_ref() == Some(&self.0))
        };
        let named: Vec<_> = listed.iter().filter(is_named).collect();
        match named.as_slice() {
            [] => ReferencedSnapshot::Absent,
            [only] => ReferencedSnapshot::One(only),
            several => ReferencedSnapshot::Several(several.iter().map(|one| one.id).collect()),
        }
    }
}

impl FromStr for SnapshotReference {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        text.parse().map(Self)
    }
}

impl From<SnapshotId> for SnapshotReference {
    fn from(id: SnapshotId) -> Self {
        Self(SnapshotName(id.to_string().into()))
    }
}

impl fmt::Display for SnapshotReference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

text_value!(
    /// A workspace's name.
    WorkspaceName,
    |text| checked(
        text,
        is_plain(text, 64),
        "cannot be a name: 1 to 64 of a-z A-Z 0-9 . _ -, beginning with a letter or a digit",
    )
);

impl WorkspaceName {
    /// The name for a workspace in a directory of this name: letters that a name cannot have become `-`.
    #[must_use]
    pub fn of_directory(path: &std::path::Path) -> Self {
        let text = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let plain = |letter: char| {
            if letter.is_ascii_alphanumeric() || "._-".contains(letter) { letter } else { '-' }
        };
        let text: String =
            text.chars().map(plain).skip_while(|letter| !letter.is_ascii_alphanumeric()).take(64).collect();
        text.parse().unwrap_or(Self("workspace".into()))
    }
}

text_value!(
    /// The name of an image that workspaces boot.
    ImageName,
    |text| checked(
        text,
        is_plain(text, 64),
        "cannot name an image: 1 to 64 of a-z A-Z 0-9 . _ -, beginning with a letter or a digit",
    )
);

text_value!(
    /// A user of the guest.
    UserName,
    |text| checked(
        text,
        is_user(text),
        "cannot be a user: 1 to 32 of a-z 0-9 _ -, beginning with a letter or _",
    )
);

impl UserName {
    /// The user of a guest of which nothing else is said.
    pub const DEFAULT: Self = Self(std::borrow::Cow::Borrowed("user"));

    /// Whether it is the superuser.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0 == "root"
    }
}

text_value!(
    /// Whom a file in the guest belongs to: `user` or `user:group`.
    FileOwner,
    |text| {
        let mut names = text.splitn(2, ':');
        checked(text, names.all(is_user), "cannot own a file in the guest: `user` or `user:group`")
    }
);

text_value!(
    /// The name of an environment variable.
    VariableName,
    |text| checked(
        text,
        (1..=256).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && !text.as_bytes()[0].is_ascii_digit(),
        "cannot be an environment variable: 1 to 256 of a-z A-Z 0-9 _, not beginning with a digit",
    )
);

text_value!(
    /// The tag of a share: what the guest mounts it by. A virtiofs tag has at most 36 bytes (virtio 1.2, 5.11.4).
    ShareTag,
    |text| checked(
        text,
        is_plain(text, 36),
        "cannot be the tag of a share: 1 to 36 of a-z A-Z 0-9 . _ -, beginning with a letter or a digit",
    )
);

impl ShareTag {
    /// The tag of the configuration's mount number `index`.
    #[must_use]
    pub fn numbered(index: usize) -> Self {
        Self(format!("share{index}").into())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::world::{BootId, Manifest, Origin, Slot, VmmVersion};

    #[test]
    fn names_are_plain() {
        for bad in ["", "-x", "a b", "a\n", "a/b", "a:b:c", ":", "a:", "é", &"x".repeat(65)] {
            assert!(bad.parse::<FileOwner>().is_err(), "{bad:?}");
            assert!(bad.parse::<UserName>().is_err(), "{bad:?}");
            assert!(bad.parse::<ShareTag>().is_err(), "{bad:?}");
            assert!(bad.parse::<SnapshotName>().is_err(), "{bad:?}");
            assert!(bad.parse::<WorkspaceName>().is_err(), "{bad:?}");
        }
        for bad in ["Root", "1st", ".hidden", "a.b", &"x".repeat(33)] {
            assert!(bad.parse::<UserName>().is_err(), "{bad:?}");
            assert!(bad.parse::<FileOwner>().is_err(), "{bad:?}");
        }
        for bad in ["", "1A", "A-B", "A=B", "A\0", "Ä", &"A".repeat(257)] {
            assert!(bad.parse::<VariableName>().is_err(), "{bad:?}");
        }
        assert!("x".repeat(37).parse::<ShareTag>().is_err());
        assert!("root:wheel".parse::<FileOwner>().is_ok());
        assert!("_x9".parse::<VariableName>().is_ok());
        assert!("_apt".parse::<UserName>().is_ok());
    }

    #[test]
    fn a_reference_means_one_snapshot_and_a_number_comes_before_a_name() {
        let listed = |id, name: Option<&str>| {
            let id = SnapshotId(Generation(id));
            let origin = Origin {
                vmm: VmmVersion { major: 53, text: "v53.0".to_owned() },
                cpu: BTreeSet::new(),
                shape: BTreeMap::new(),
            };
            let manifest = Manifest {
                id,
                name: name.map(|name| name.parse().unwrap()),
                created_ms: 0,
                slot: Slot::try_from(0).unwrap(),
                boot: BootId([0; 16]),
                shares: false,
                origin,
                files: Vec::new(),
                given: Default::default(),
                receipt: None,
            };
            ListedSnapshot { id, manifest: Ok(manifest), label: Ok(Default::default()), occupied: Ok(0) }
        };
        let listed = [
            listed(4, Some("warm")),
            listed(7, None),
            listed(8, Some("7")),
            listed(9, Some("two")),
            listed(10, Some("two")),
            listed(11, Some("10")),
        ];
        let found = |text: &str| match text.parse::<SnapshotReference>().unwrap().find(&listed) {
            ReferencedSnapshot::Absent => Vec::new(),
            ReferencedSnapshot::One(one) => vec![one.id.0.0],
            ReferencedSnapshot::Several(ids) => ids.iter().map(|id| id.0.0).collect(),
        };
        for (text, ids) in [
            ("warm", &[4][..]),
            ("4", &[4]),
            ("7", &[7]),
            ("8", &[8]),
            ("07", &[]),
            ("cold", &[]),
            ("two", &[9, 10]),
            ("10", &[10]),
        ] {
            assert_eq!(found(text), ids, "{text}");
        }
        assert_eq!(SnapshotReference::from(SnapshotId(Generation(7))).to_string(), "7");
        for bad in ["", "..", "a/b", "-x"] {
            assert!(bad.parse::<SnapshotReference>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_note_is_one_line_that_a_terminal_can_show() {
        for good in ["a", "after `sbt update`, größer: 3 \u{1f600}", &"ß".repeat(1000)] {
            assert_eq!(good.parse::<SnapshotNote>().unwrap().as_str(), good);
        }
        for bad in ["", "a\nb", "a\tb", "\u{1b}[2J", "a\u{202e}b", "\u{85}", "\0", &"a".repeat(1001)] {
            assert!(bad.parse::<SnapshotNote>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn values_that_are_made_without_parsing_would_parse() {
        assert_eq!(UserName::DEFAULT.as_str().parse(), Ok(UserName::DEFAULT));
        let tag = ShareTag::numbered(usize::MAX);
        assert_eq!(tag.as_str().parse(), Ok(tag));
        let reference = SnapshotReference::from(SnapshotId(Generation(u64::MAX)));
        assert_eq!(reference.to_string().parse(), Ok(reference));
    }
}
