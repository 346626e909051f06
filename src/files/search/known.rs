//! The fingerprints of every value that nixbox has given to a guest of a workspace: `known-values.json` in its state.
//!
//! A value stays in the file when it is renewed or taken out of the configuration, and when its VM is gone: a disk or a
//! snapshot of that VM may still be restored. The file is synced before a value is injected, so that there is no value in a
//! guest that a snapshot is not searched for. Its key is made with it.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::fingerprint::{Fingerprint, SearchKey, TAG, WINDOW};
use super::forms::{Form, forms_of};
use super::searcher::{Searcher, WantedPattern};
use super::value::{NamedValue, Treatment};
use crate::files::{FileError, Folder};

/// Its name in the state of a workspace.
pub const FILE: &str = "known-values.json";
/// The format that this nixbox writes, and the only one that it reads.
const FORMAT: u32 = 2;
/// More than the fingerprints of [`MOST_VALUES`] values take.
const LIMIT: u64 = 256 << 20;
/// The most values that are kept.
pub const MOST_VALUES: usize = 10_000;

/// Why the fingerprints of values cannot be read or kept.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum KnownValuesError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "{} is not what nixbox wrote there: without it nixbox cannot tell whether a snapshot holds a credential that was \
         injected earlier", path.display()
    )]
    Unreadable { path: PathBuf, source: serde_json::Error },
    #[error("{} has format {found}, and this nixbox reads format {FORMAT}: a newer nixbox wrote it", path.display())]
    Newer { path: PathBuf, found: u32 },
    #[error(
        "{} has format {found}, whose fingerprints this nixbox cannot search for: without this file, what was injected until \
         now and is not injected again is not searched for", path.display()
    )]
    Earlier { path: PathBuf, found: u32 },
    #[error("{} holds something that is not a fingerprint", path.display())]
    Fingerprint { path: PathBuf },
    #[error(
        "the guests of this workspace would have been given {count} different values, and nixbox searches snapshots for at \
         most {MOST_VALUES}: give the guest fewer values"
    )]
    TooMany { count: usize },
    #[error("the system gives no random bytes for the key of the fingerprints")]
    Random(#[source] getrandom::Error),
    #[error("the fingerprints of the values cannot be written down")]
    Unwritable(#[source] serde_json::Error),
}

/// What is known of one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownValue {
    /// Its name for people.
    pub name: String,
    /// What happens where it is found.
    pub treatment: Treatment,
    /// The fingerprints of its parts in all their forms; none if it is too short to be searched for.
    fingerprints: BTreeMap<Form, Vec<Fingerprint>>,
}

impl KnownValue {
    /// Whether it is long enough to be searched for.
    #[must_use]
    pub fn is_searched_for(&self) -> bool {
        !self.fingerprints.is_empty()
    }
}

/// The fingerprints of a workspace's values.
#[derive(Clone)]
pub struct KnownValues {
    key: SearchKey,
    values: Vec<KnownValue>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownValuesText {
    format: u32,
    key: String,
    values: Vec<KnownValueText>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownValueText {
    name: String,
    treatment: Treatment,
    fingerprints: BTreeMap<Form, Vec<String>>,
}

/// The one key that is read before the file is known to have this nixbox's format.
#[derive(Deserialize)]
struct KnownValuesFormat {
    format: u32,
}

/// The digits of a fingerprint: the bits of the window, where it is, the length, and BLAKE3.
fn to_text(fingerprint: &Fingerprint) -> String {
    let Fingerprint { window, anchor, length, tag } = fingerprint;
    format!("{window:05x}{anchor:02x}{length:04x}{}", hex::encode(tag))
}

fn from_text(text: &str) -> Option<Fingerprint> {
    let (window, rest) = text.split_at_checked(5)?;
    let (anchor, rest) = rest.split_at_checked(2)?;
    let (length, digits) = rest.split_at_checked(4)?;
    let mut tag = [0; TAG];
    hex::decode_to_slice(digits, &mut tag).ok()?;
    let fingerprint = Fingerprint {
        window: u32::from_str_radix(window, 16).ok()?,
        anchor: u8::from_str_radix(anchor, 16).ok()?,
        length: u16::from_str_radix(length, 16).ok()?,
        tag,
    };
    let whole = usize::from(fingerprint.anchor) + WINDOW <= usize::from(fingerprint.length);
    (whole && to_text(&fingerprint) == text).then_some(fingerprint)
}

impl KnownValues {
    fn new() -> Result<Self, KnownValuesError> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(KnownValuesError::Random)?;
        Ok(Self { key: SearchKey::new(key), values: Vec::new() })
    }

    /// Reads them from the state of a workspace; `None` if no guest was given anything yet.
    ///
    /// # Errors
    /// If the file cannot be read, or is not what nixbox wrote.
    pub fn read(state: &Folder) -> Result<Option<Self>, KnownValuesError> {
        let Some(bytes) = state.read_private(FILE, LIMIT)? else {
            return Ok(None);
        };
        let path = || state.path_of(FILE);
        let unreadable = |source| KnownValuesError::Unreadable { path: path(), source };
        let KnownValuesFormat { format } = serde_json::from_slice(&bytes).map_err(unreadable)?;
        match format.cmp(&FORMAT) {
            Ordering::Less => return Err(KnownValuesError::Earlier { path: path(), found: format }),
            Ordering::Equal => {}
            Ordering::Greater => return Err(KnownValuesError::Newer { path: path(), found: format }),
        }
        let text: KnownValuesText = serde_json::from_slice(&bytes).map_err(unreadable)?;
        let odd = || KnownValuesError::Fingerprint { path: path() };
        let mut key = [0; 32];
        hex::decode_to_slice(&text.key, &mut key).map_err(|_| odd())?;
        let value = |KnownValueText { name, treatment, fingerprints }: KnownValueText| {
            let of_form = |(form, texts): (Form, Vec<String>)| {
                Some((form, texts.iter().map(|text| from_text(text)).collect::<Option<_>>()?))
            };
            let fingerprints = fingerprints.into_iter().map(of_form).collect::<Option<_>>()?;
            Some(KnownValue { name, treatment, fingerprints })
        };
        let values = text.values.into_iter().map(value).collect::<Option<_>>().ok_or_else(odd)?;
        Ok(Some(Self { key: SearchKey::new(key), values }))
    }

    /// Adds values that a guest is about to be given. They are on the medium when this returns.
    ///
    /// # Errors
    /// If the file cannot be read or written, or would have too many values. The earlier file is still there then.
    pub fn remember(state: &Folder, values: &[NamedValue]) -> Result<(), KnownValuesError> {
        match Self::text_with(state, values)? {
            Some(text) => Ok(state.replace(FILE, &text)?),
            None => Ok(()),
        }
    }

    /// Finds out whether [`KnownValues::remember`] could add these values, and writes nothing.
    ///
    /// # Errors
    /// If the file cannot be read, or would have too many values.
    pub fn examine(state: &Folder, values: &[NamedValue]) -> Result<(), KnownValuesError> {
        Self::text_with(state, values).map(drop)
    }

    /// The file with these values added; `None` if it has them all.
    fn text_with(state: &Folder, values: &[NamedValue]) -> Result<Option<Vec<u8>>, KnownValuesError> {
        let (mut known, mut changed) = match Self::read(state)? {
            Some(known) => (known, false),
            None if values.is_empty() => return Ok(None),
            None => (Self::new()?, true),
        };
        for value in values {
            changed |= known.add(value);
        }
        if !changed {
            return Ok(None);
        }
        if known.values.len() > MOST_VALUES {
            return Err(KnownValuesError::TooMany { count: known.values.len() });
        }
        serde_json::to_vec(&known.text()).map(Some).map_err(KnownValuesError::Unwritable)
    }

    /// Adds a value; `false` if it is known already.
    fn add(&mut self, value: &NamedValue) -> bool {
        let mut fingerprints: BTreeMap<Form, Vec<Fingerprint>> = BTreeMap::new();
        for part in value.parts() {
            for (form, bytes) in forms_of(&part) {
                fingerprints.entry(form).or_default().extend(self.key.fingerprint(&bytes));
            }
        }
        let new = KnownValue { name: value.name.clone(), treatment: value.treatment(), fingerprints };
        let fresh = !self.values.contains(&new);
        if fresh {
            self.values.push(new);
        }
        fresh
    }

    /// These and other values, which are not kept.
    ///
    /// # Errors
    /// If the system gives no random bytes.
    pub fn with(known: Option<Self>, values: &[NamedValue]) -> Result<Self, KnownValuesError> {
        let mut known = known.map_or_else(Self::new, Ok)?;
        for value in values {
            known.add(value);
        }
        Ok(known)
    }

    fn text(&self) -> KnownValuesText {
        let value = |value: &KnownValue| KnownValueText {
            name: value.name.clone(),
            treatment: value.treatment,
            fingerprints: value
                .fingerprints
                .iter()
                .map(|(form, fingerprints)| (*form, fingerprints.iter().map(to_text).collect()))
                .collect(),
        };
        KnownValuesText {
            format: FORMAT,
            key: hex::encode(self.key.bytes()),
            values: self.values.iter().map(value).collect(),
        }
    }

    /// The values, in the order in which they were first injected.
    #[must_use]
    pub fn values(&self) -> &[KnownValue] {
        &self.values
    }

    /// A search for all of them. The number of a value is its place in [`KnownValues::values`].
    #[must_use]
    pub fn searcher(&self) -> Searcher {
        let wanted = (0..).zip(&self.values).flat_map(|(number, value)| {
            let of_form = move |(form, fingerprints): (&Form, &Vec<Fingerprint>)| {
                let form = *form;
                fingerprints
                    .clone()
                    .into_iter()
                    .map(move |fingerprint| -> WantedPattern { (fingerprint, number, form) })
            };
            value.fingerprints.iter().flat_map(of_form)
        });
        Searcher::new(self.key.clone(), wanted.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::search::value::ValueKind;
    use crate::world::Secret;

    fn value(name: &str, content: &str) -> NamedValue {
        let content = Secret::new(content.as_bytes().to_vec());
        NamedValue { name: name.to_owned(), kind: ValueKind::Read, content }
    }

    fn hits(known: &KnownValues, bytes: &[u8]) -> Vec<(u32, Form)> {
        let mut hits = Vec::new();
        known.searcher().search(bytes, usize::MAX, |hit| hits.push((hit.value, hit.form)));
        hits
    }

    const TOKEN: &str = "ghp_16C7e42F292c6912E7710c838347Ae178B4a";

    #[test]
    fn a_value_stays_known_when_it_is_renewed_and_the_file_does_not_hold_it() {
        let directory = tempfile::tempdir().unwrap();
        let state = Folder::open(directory.path()).unwrap();
        assert!(KnownValues::read(&state).unwrap().is_none());
        KnownValues::remember(&state, &[value("A", TOKEN), value("B", "vi")]).unwrap();
        KnownValues::remember(&state, &[value("A", "another-token-0123456789")]).unwrap();
        let written = std::fs::read(directory.path().join(FILE)).unwrap();
        KnownValues::remember(&state, &[value("A", TOKEN), value("B", "vi")]).unwrap();
        assert_eq!(std::fs::read(directory.path().join(FILE)).unwrap(), written);

        let known = KnownValues::read(&state).unwrap().unwrap();
        let names: Vec<&str> = known.values().iter().map(|value| value.name.as_str()).collect();
        assert_eq!(names, ["A", "B", "A"]);
        assert!(!known.values()[1].is_searched_for());
        let text = String::from_utf8(written).unwrap();
        for (form, bytes) in forms_of(TOKEN.as_bytes()) {
            assert_eq!(hits(&known, &[b"..", &**bytes, b".."].concat()), [(0, form)]);
            assert!(!text.contains(&*String::from_utf8_lossy(&bytes)));
        }
        assert_eq!(hits(&known, b"another-token-0123456789"), [(2, Form::Plain)]);
    }

    #[test]
    fn what_nixbox_did_not_write_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let state = Folder::open(directory.path()).unwrap();
        let key = "00".repeat(32);
        let with = |fingerprint: &str| {
            format!(
                r#"{{"format":2,"key":"{key}","values":[{{"name":"A","treatment":"token","fingerprints":{{"plain":["{fingerprint}"]}}}}]}}"#
            )
        };
        let good = format!("12345030014{}", "ab".repeat(TAG));
        state.replace(FILE, with(&good).as_bytes()).unwrap();
        assert!(KnownValues::read(&state).unwrap().unwrap().values()[0].is_searched_for());
        let bad = [
            &good[1..],
            &good.to_uppercase(),
            &format!("+2345{}", &good[5..]),
            "",
            "ä2345",
            &format!("{good}0"),
            // The window at the anchor reaches beyond the end.
            &good.replacen("030014", "0f0014", 1),
        ];
        let texts = bad.iter().map(|bad| with(bad)).chain([
            "{}".to_owned(),
            String::new(),
            r#"{"format":1}"#.to_owned(),
            r#"{"format":3}"#.to_owned(),
        ]);
        for text in texts {
            state.replace(FILE, text.as_bytes()).unwrap();
            assert!(KnownValues::read(&state).is_err(), "{text}");
            assert!(KnownValues::remember(&state, &[value("A", TOKEN)]).is_err());
            assert_eq!(std::fs::read(directory.path().join(FILE)).unwrap(), text.as_bytes());
        }
    }

    #[test]
    fn too_many_values_are_refused_and_change_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let state = Folder::open(directory.path()).unwrap();
        KnownValues::remember(&state, &[value("A", TOKEN)]).unwrap();
        let written = std::fs::read(directory.path().join(FILE)).unwrap();
        // Short values are kept by name alone, which is quick.
        let many: Vec<_> = (0..MOST_VALUES).map(|number| value(&format!("V{number}"), "short")).collect();
        let refused = KnownValues::remember(&state, &many);
        assert!(matches!(refused, Err(KnownValuesError::TooMany { count }) if count == MOST_VALUES + 1));
        assert!(
            KnownValues::examine(&state, &many).is_err() && KnownValues::examine(&state, &many[1..]).is_ok()
        );
        assert_eq!(std::fs::read(directory.path().join(FILE)).unwrap(), written);
    }
}
