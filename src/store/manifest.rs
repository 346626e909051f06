//! The bytes of `manifest.json`.
//!
//! The manifest is JSON for people and their tools, and yet exact. Its field `check` is the BLAKE3 of the same text with
//! an empty `check`. A text is accepted only if it is, byte for byte, what this module writes for the values in it. So a
//! changed byte is noticed wherever it is: in a name, in a hash, or in a blank. This guards against accidents. It is not
//! a signature.
//!
//! There are three formats. The third is written, and all are read:
//!
//! | format | files | `shape` | sections |
//! |---|---|---|---|
//! | 1 | `blake3` | may have absolute paths | none |
//! | 2 | `blake3` | | yes |
//! | 3 | `pieces` or `blake3` | | yes |
//!
//! `files` has the name, the size in bytes and the hash of each file. The name of the hash says how it is computed:
//! `blake3` is that of the file's bytes from the first to the last, as `b3sum` prints it, and `pieces` the root over the
//! file's pieces, which `files/hash/pieces.rs` defines. This nixbox writes `pieces`, because a hole costs nothing in it.
//!
//! `sections` are parts with a name, each of which a reader may pass over. A reader passes over a section that it does not
//! know, which the check covers too. There are four so far. `content-pieces` has the hashes of kernel, initramfs and disk
//! templates by their keys in `shape`: roots over their pieces. An older nixbox wrote `contents` in its place, with the
//! BLAKE3 of the files. `cpuid` has the features that the guest's processors have, and `receipt` what was searched for
//! credentials.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::label;
use crate::world::{
    BootId, FileRecord, Generation, Given, HashMethod, InvalidValue, Manifest, Origin, Receipt, Slot,
    SnapshotId, SnapshotName, VmmVersion,
};

/// Its name in a snapshot's directory.
pub const FILE: &str = "manifest.json";
/// The most that is read, in bytes.
pub const LIMIT: u64 = 1 << 20;
/// The format that this program writes. It reads this one and those before.
pub const FORMAT: u32 = 3;
/// The format without sections.
const FIRST_FORMAT: u32 = 1;
/// The first format whose files may be hashed by pieces.
const PIECES_FORMAT: u32 = 3;

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
    /// There is either this one or the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pieces: Option<String>,
}

impl ManifestFileText {
    fn of(FileRecord { name, size, hash, method }: &FileRecord) -> Self {
        let only = |of: HashMethod| (*method == of).then(|| hex::encode(hash));
        let (blake3, pieces) = (only(HashMethod::Whole), only(HashMethod::Pieces));
        Self { name: name.clone(), size: *size, blake3, pieces }
    }

    fn record(self, format: u32) -> Result<FileRecord, ManifestError> {
        let (hash, method) = match (self.blake3, self.pieces) {
            (Some(hash), None) => (hash, HashMethod::Whole),
            (None, Some(hash)) if format >= PIECES_FORMAT => (hash, HashMethod::Pieces),
            _ => return Err(ManifestError::Rewritten),
        };
        Ok(FileRecord { hash: unhex(&hash)?, name: self.name, size: self.size, method })
    }
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
        files: manifest.files.iter().map(ManifestFileText::of).collect(),
        sections: Some(sections(manifest)?),
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
    let mut sections = text.sections.unwrap_or_default();
    let format = text.format;
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
        files: text
            .files
            .into_iter()
            .map(|file| file.record(format))
            .collect::<Result<_, ManifestError>>()?,
        receipt: receipt(&mut sections)?,
        given: given(sections)?,
    };
    check_files(&manifest.files)?;
    Ok(manifest)
}

const CONTENTS: &str = "contents";
const CONTENT_PIECES: &str = "content-pieces";
const CPUID: &str = "cpuid";
const RECEIPT: &str = "receipt";

fn sections(Manifest { given, receipt, .. }: &Manifest) -> Result<BTreeMap<String, Value>, ManifestError> {
    let mut sections = BTreeMap::new();
    if !given.contents.is_empty() {
        let contents: BTreeMap<&String, String> =
            given.contents.iter().map(|(key, hash)| (key, hex::encode(hash))).collect();
        let section = match given.method {
            HashMethod::Whole => CONTENTS,
            HashMethod::Pieces => CONTENT_PIECES,
        };
        sections.insert(section.to_owned(), serde_json::to_value(contents)?);
    }
    if let Some(cpuid) = &given.cpuid {
        sections.insert(CPUID.to_owned(), serde_json::to_value(cpuid)?);
    }
    if let Some(receipt) = receipt {
        sections.insert(RECEIPT.to_owned(), serde_json::to_value(receipt)?);
    }
    Ok(sections)
}

fn receipt(sections: &mut BTreeMap<String, Value>) -> Result<Option<Receipt>, ManifestError> {
    Ok(sections.remove(RECEIPT).map(serde_json::from_value).transpose()?)
}

/// What the sections say that this nixbox knows.
fn given(mut sections: BTreeMap<String, Value>) -> Result<Given, ManifestError> {
    let (contents, method) = match (sections.remove(CONTENTS), sections.remove(CONTENT_PIECES)) {
        (None, None) => (BTreeMap::new(), HashMethod::default()),
        (Some(contents), None) => (serde_json::from_value(contents)?, HashMethod::Whole),
        (None, Some(contents)) => (serde_json::from_value(contents)?, HashMethod::Pieces),
        (Some(_), Some(_)) => return Err(ManifestError::Rewritten),
    };
    let hash = |(key, hash): (String, String)| Ok((key, unhex(&hash)?));
    Ok(Given {
        contents: contents.into_iter().map(hash).collect::<Result<_, ManifestError>>()?,
        cpuid: sections.remove(CPUID).map(serde_json::from_value).transpose()?,
        method,
    })
}

/// Whether a snapshot may have a file of this name besides its manifest.
#[must_use]
pub fn is_file_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && !name.starts_with('.')
        && name != FILE
        && name != label::FILE
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
mod tests;
