//! The bytes of `manifest.json`.
//!
//! The manifest is JSON for people and their tools, and yet exact. Its field `check` is the BLAKE3 of the same text with
//! an empty `check`. A text is accepted only if it is, byte for byte, what this module writes for the values in it. So a
//! changed byte is noticed wherever it is: in a name, in a hash, or in a blank. This guards against accidents. It is not
//! a signature.
//!
//! The second format has `sections`: parts with a name, each of which a reader may pass over. A reader passes over a
//! section that it does not know, which the check covers too. There are two so far. `contents` has the BLAKE3 of
//! kernel, initramfs and disk templates by their keys in `shape`, and `cpuid` the features that the guest's processors
//! have. The first format has no sections, and its `shape` may have absolute paths. Both are read, and the second is
//! written.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::world::{
    BootId, FileRecord, Generation, Given, InvalidValue, Manifest, Origin, Slot, SnapshotId, SnapshotName,
    VmmVersion,
};

/// Its name in a snapshot's directory.
pub const FILE: &str = "manifest.json";
/// The most that is read, in bytes.
pub const LIMIT: u64 = 1 << 20;
/// The format that this program writes. It reads this one and those before.
pub const FORMAT: u32 = 2;
/// The format without sections.
const FIRST_FORMAT: u32 = 1;

/// Why a text is not a manifest, or a manifest cannot be written as one.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("it is not the JSON of a manifest")]
    Json(#[from] serde_json::Error),
    #[error("it has format {0}, and this nixbox reads formats {FIRST_FORMAT} to {FORMAT}")]
    Format(u32),
    #[error("it was changed after nixbox wrote it: its check does not fit")]
    Check,
    #[error("it was changed after nixbox wrote it: it says the same in other bytes")]
    Rewritten,
    #[error("it is the manifest of snapshot {0}")]
    OtherSnapshot(SnapshotId),
    /// A number that is not a slot's, or a text that cannot name a snapshot.
    #[error(transparent)]
    Value(#[from] InvalidValue),
    #[error("{0:?} is not a number of {1} bytes in hexadecimal digits")]
    Hex(String, usize),
    #[error("{0:?} cannot be a file of a snapshot: 1 to 64 of a-z A-Z 0-9 . _ -, not beginning with a dot")]
    FileName(String),
    #[error("it names {0} twice")]
    Twice(String),
    #[error("it would have {0} bytes, and nixbox reads at most {LIMIT}")]
    TooLarge(usize),
}

/// The order of these fields is that of the text.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestText {
    format: u32,
    id: u64,
    name: Option<String>,
    created_ms: u64,
    slot: u8,
    boot: String,
    shares: bool,
    vmm: String,
    vmm_major: u32,
    cpu: Vec<String>,
    shape: BTreeMap<String, String>,
    files: Vec<ManifestFileText>,
    /// Absent in the first format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sections: Option<BTreeMap<String, Value>>,
    check: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestFileText {
    name: String,
    size: u64,
    blake3: String,
}

/// Read first, because the rest may differ in another format.
#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

/// The bytes of a manifest.
///
/// # Errors
/// If it names a file that cannot be one, or is larger than [`LIMIT`].
pub fn encode(manifest: &Manifest) -> Result<Vec<u8>, ManifestError> {
    check_files(&manifest.files)?;
    let files = manifest.files.iter().map(|file| ManifestFileText {
        name: file.name.clone(),
        size: file.size,
        blake3: hex::encode(file.hash),
    });
    let mut text = ManifestText {
        format: FORMAT,
        id: manifest.id.0.0,
        name: manifest.name.as_ref().map(|name| name.as_str().to_owned()),
        created_ms: manifest.created_ms,
        slot: manifest.slot.number(),
        boot: hex::encode(manifest.boot.0),
        shares: manifest.shares,
        vmm: manifest.origin.vmm.text.clone(),
        vmm_major: manifest.origin.vmm.major,
        cpu: manifest.origin.cpu.iter().cloned().collect(),
        shape: manifest.origin.shape.clone(),
        files: files.collect(),
        sections: Some(sections(&manifest.given)?),
        check: String::new(),
    };
    text.check = check(&text)?;
    let encoded = bytes(&text)?;
    if encoded.len() as u64 > LIMIT { Err(ManifestError::TooLarge(encoded.len())) } else { Ok(encoded) }
}

/// The manifest in these bytes.
///
/// # Errors
/// If they are not exactly what [`encode`] gives for it.
pub fn decode(encoded: &[u8]) -> Result<Manifest, ManifestError> {
    let FormatOnly { format } = serde_json::from_slice(encoded)?;
    if !(FIRST_FORMAT..=FORMAT).contains(&format) {
        return Err(ManifestError::Format(format));
    }
    let mut text: ManifestText = serde_json::from_slice(encoded)?;
    let written = std::mem::take(&mut text.check);
    if check(&text)? != written {
        return Err(ManifestError::Check);
    }
    text.check = written;
    if bytes(&text)? != encoded || text.sections.is_some() != (format > FIRST_FORMAT) {
        return Err(ManifestError::Rewritten);
    }
    manifest(text)
}

/// The manifest in a text that is known to be as it was written.
fn manifest(text: ManifestText) -> Result<Manifest, ManifestError> {
    let boot: [u8; 16] = unhex(&text.boot)?;
    let file = |file: ManifestFileText| {
        Ok(FileRecord { hash: unhex(&file.blake3)?, name: file.name, size: file.size })
    };
    let manifest = Manifest {
        id: SnapshotId(Generation(text.id)),
        name: text.name.map(SnapshotName::try_from).transpose()?,
        created_ms: text.created_ms,
        slot: Slot::try_from(text.slot)?,
        boot: BootId(boot),
        shares: text.shares,
        origin: Origin {
            vmm: VmmVersion { major: text.vmm_major, text: text.vmm },
            cpu: text.cpu.into_iter().collect(),
            shape: text.shape,
        },
        files: text.files.into_iter().map(file).collect::<Result<_, ManifestError>>()?,
        given: given(text.sections.unwrap_or_default())?,
    };
    check_files(&manifest.files)?;
    Ok(manifest)
}

const CONTENTS: &str = "contents";
const CPUID: &str = "cpuid";

fn sections(given: &Given) -> Result<BTreeMap<String, Value>, ManifestError> {
    let mut sections = BTreeMap::new();
    if !given.contents.is_empty() {
        let contents: BTreeMap<&String, String> =
            given.contents.iter().map(|(key, hash)| (key, hex::encode(hash))).collect();
        sections.insert(CONTENTS.to_owned(), serde_json::to_value(contents)?);
    }
    if let Some(cpuid) = &given.cpuid {
        sections.insert(CPUID.to_owned(), serde_json::to_value(cpuid)?);
    }
    Ok(sections)
}

/// What the sections say that this nixbox knows.
fn given(mut sections: BTreeMap<String, Value>) -> Result<Given, ManifestError> {
    let contents = match sections.remove(CONTENTS) {
        Some(contents) => serde_json::from_value::<BTreeMap<String, String>>(contents)?,
        None => BTreeMap::new(),
    };
    let hash = |(key, hash): (String, String)| Ok((key, unhex(&hash)?));
    Ok(Given {
        contents: contents.into_iter().map(hash).collect::<Result<_, ManifestError>>()?,
        cpuid: sections.remove(CPUID).map(serde_json::from_value).transpose()?,
    })
}

/// Whether a snapshot may have a file of this name besides its manifest.
#[must_use]
pub fn is_file_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && !name.starts_with('.')
        && name != FILE
}

fn check_files(files: &[FileRecord]) -> Result<(), ManifestError> {
    let mut seen = std::collections::BTreeSet::new();
    for file in files {
        if !is_file_name(&file.name) {
            return Err(ManifestError::FileName(file.name.clone()));
        }
        if !seen.insert(&file.name) {
            return Err(ManifestError::Twice(file.name.clone()));
        }
    }
    Ok(())
}

fn bytes(text: &ManifestText) -> Result<Vec<u8>, ManifestError> {
    let mut bytes = serde_json::to_vec_pretty(text)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The BLAKE3 of a text whose `check` is empty.
fn check(text: &ManifestText) -> Result<String, ManifestError> {
    Ok(blake3::hash(&bytes(text)?).to_hex().to_string())
}

fn unhex<const N: usize>(text: &str) -> Result<[u8; N], ManifestError> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| ManifestError::Hex(text.to_owned(), N))?;
    // Digits in upper case say the same in other bytes.
    if hex::encode(bytes) == text { Ok(bytes) } else { Err(ManifestError::Rewritten) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::world::Cpuid;

    fn origin() -> Origin {
        Origin {
            vmm: VmmVersion { major: 53, text: "v53.0".to_owned() },
            cpu: ["avx2", "sse2"].map(String::from).into(),
            shape: BTreeMap::from([("vm.memory".to_owned(), "4GiB".to_owned())]),
        }
    }

    fn manifest() -> Manifest {
        let file = |name: &str, size, byte| FileRecord { name: name.to_owned(), size, hash: [byte; 32] };
        let leaf = (7, 0, [0, 0x219c_03ab, 0, 0x10]);
        Manifest {
            id: SnapshotId(Generation(12)),
            name: Some(SnapshotName::try_from("warm".to_owned()).unwrap()),
            created_ms: 1_764_000_000_123,
            slot: Slot::try_from(3).unwrap(),
            boot: BootId([0xab; 16]),
            shares: true,
            origin: origin(),
            files: vec![
                file("disk-0.img", 1 << 36, 1),
                file("memory.img", 4096, 2),
                file("state.json", 7, 3),
            ],
            given: Given {
                cpuid: Some(Cpuid::of(&[leaf])),
                contents: BTreeMap::from([("vm.kernel".to_owned(), [4; 32])]),
            },
        }
    }

    #[test]
    fn digits_in_upper_case_are_a_change() {
        let encoded = encode(&Manifest { files: vec![], ..manifest() }).unwrap();
        let text = String::from_utf8(encoded).unwrap();
        let changed = text.replace(&"ab".repeat(16), &"AB".repeat(16));
        assert_ne!(changed, text);
        assert!(decode(changed.as_bytes()).is_err());
        // Even with a check of its own.
        let mut text: ManifestText = serde_json::from_str(&changed).unwrap();
        text.check.clear();
        text.check = check(&text).unwrap();
        assert!(matches!(decode(&bytes(&text).unwrap()), Err(ManifestError::Rewritten)));
    }

    #[test]
    fn what_is_written_is_read() {
        for manifest in
            [manifest(), Manifest { name: None, files: vec![], given: Given::default(), ..manifest() }]
        {
            assert_eq!(decode(&encode(&manifest).unwrap()).unwrap(), manifest);
        }
    }

    #[test]
    fn every_changed_bit_and_every_cut_is_noticed() {
        let encoded = encode(&manifest()).unwrap();
        for bit in 0..encoded.len() * 8 {
            let mut changed = encoded.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&changed).is_err(), "bit {bit}");
        }
        for length in 0..encoded.len() {
            assert!(decode(&encoded[..length]).is_err(), "{length} bytes");
        }
        let blank = String::from_utf8(encoded).unwrap().replace("  \"id\"", "   \"id\"");
        assert!(matches!(decode(blank.as_bytes()), Err(ManifestError::Rewritten)));
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let long = "x".repeat(65);
        for name in
            ["", ".", "..", ".hidden", "a/b", "/etc/passwd", "../x", "a b", "a\n", "manifest.json", &long]
        {
            let file = FileRecord { name: name.to_owned(), size: 0, hash: [0; 32] };
            let manifest = Manifest { files: vec![file], ..manifest() };
            assert!(matches!(encode(&manifest), Err(ManifestError::FileName(_))), "{name:?}");
        }
        let twice =
            Manifest { files: vec![manifest().files[0].clone(), manifest().files[0].clone()], ..manifest() };
        assert!(matches!(encode(&twice), Err(ManifestError::Twice(_))));
    }

    #[test]
    fn a_newer_format_is_named() {
        let newer = r#"{"format": 3, "something": "else"}"#;
        assert!(matches!(decode(newer.as_bytes()), Err(ManifestError::Format(3))));
    }

    /// The manifest of a test, byte for byte. A nixbox that wrote or read the formats differently would not read the
    /// snapshots that there are.
    const FIRST: &str = include_str!("manifest/format-1.json");
    const SECOND: &str = include_str!("manifest/format-2.json");

    #[test]
    fn both_formats_are_read_and_the_second_is_written() {
        assert_eq!(decode(FIRST.as_bytes()).unwrap(), Manifest { given: Given::default(), ..manifest() });
        assert_eq!(decode(SECOND.as_bytes()).unwrap(), manifest());
        assert_eq!(String::from_utf8(encode(&manifest()).unwrap()).unwrap(), SECOND);
    }

    /// The same text with a check of its own.
    fn resealed(text: &str, change: impl FnOnce(&mut ManifestText)) -> Vec<u8> {
        let mut text: ManifestText = serde_json::from_str(text).unwrap();
        change(&mut text);
        text.check.clear();
        text.check = check(&text).unwrap();
        bytes(&text).unwrap()
    }

    #[test]
    fn a_section_of_a_later_nixbox_is_passed_over_and_is_covered_by_the_check() {
        let later = resealed(SECOND, |text| {
            let receipt = serde_json::json!({ "wiped": ["a", "b"], "bytes": 7 });
            text.sections.as_mut().unwrap().insert("receipt".to_owned(), receipt);
        });
        assert_eq!(decode(&later).unwrap(), manifest());
        let changed = String::from_utf8(later).unwrap().replace("\"bytes\": 7", "\"bytes\": 8");
        assert!(matches!(decode(changed.as_bytes()), Err(ManifestError::Check)));
    }

    #[test]
    fn sections_belong_to_the_second_format_and_their_values_are_exact() {
        let odd: [fn(&mut ManifestText); 4] = [
            |text| text.sections = None,
            |text| text.format = 1,
            |text| {
                drop(
                    text.sections.as_mut().unwrap().insert("contents".into(), serde_json::json!({"a": "AB"})),
                )
            },
            |text| {
                drop(
                    text.sections
                        .as_mut()
                        .unwrap()
                        .insert("cpuid".into(), serde_json::json!({"1.0.eax": "00000001"})),
                )
            },
        ];
        for change in odd {
            assert!(decode(&resealed(SECOND, change)).is_err());
        }
        assert!(decode(&resealed(FIRST, |text| text.format = 2)).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn any_manifest_survives(
            id in any::<u64>(), created_ms in any::<u64>(), slot in 0_u8..64, boot in any::<[u8; 16]>(),
            shares in any::<bool>(), cpu in proptest::collection::btree_set("[a-z0-9_]{1,9}", 0..4),
            shape in proptest::collection::btree_map("[a-z.]{1,9}", any::<String>(), 0..4), name in proptest::option::of("[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}"),
            files in proptest::collection::btree_map("[a-z0-9][a-z0-9._-]{0,63}", any::<(u64, [u8; 32])>(), 0..5),
            contents in proptest::collection::btree_map("[a-z.]{1,9}", any::<[u8; 32]>(), 0..4), cpuid in any::<bool>(), leaf in any::<[u32; 4]>(),
        ) {
            let manifest = Manifest {
                id: SnapshotId(Generation(id)),
                name: name.map(|name| SnapshotName::try_from(name).unwrap()),
                created_ms, slot: Slot::try_from(slot).unwrap(), boot: BootId(boot), shares,
                origin: Origin { cpu, shape, ..origin() },
                files: files.into_iter().map(|(name, (size, hash))| FileRecord { name, size, hash }).collect(),
                given: Given { cpuid: cpuid.then(|| Cpuid::of(&[(1, 0, leaf)])), contents },
            };
            prop_assert_eq!(decode(&encode(&manifest).unwrap()).unwrap(), manifest);
        }
    }
}
