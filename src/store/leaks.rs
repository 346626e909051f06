//! The search for credentials in a snapshot that is being made, what is done about those that are found, and the receipt.
//!
//! A file that nixbox copies is searched and hashed while it is copied, and tokens in RAM are overwritten before they are
//! written ([`captures`]). Every other file of the staging directory is searched in the pass that hashes
//! it. What is found and must not be there is overwritten in the file, and the file is searched and hashed again. The files
//! are the snapshot's own: a clone of a disk shares no longer what is overwritten in it, and the VM notices nothing.
//!
//! RAM can be overwritten everywhere. On a disk [`super::file_systems`] says where. The VMM's own state cannot: a credential
//! there means that no snapshot is made.
//!
//! A value that looks like words is overwritten only where it is rare: see [`Treatment`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zeroize::Zeroizing;

use super::error::{Result, StoreError};
use super::file_systems::{FileSystems, Fixed};
use crate::files::copy::{self, NamedFile};
use crate::files::search::findings::{FileSearch, Findings, FoundPlace, MARK};
use crate::files::search::fingerprint::SearchKey;
use crate::files::search::known::{KnownValue, KnownValues};
use crate::files::search::searcher::Searcher;
use crate::files::search::token_kinds::{TokenKind, TokenKindSearch};
use crate::files::search::value::{NamedValue, RARE, Treatment};
use crate::files::{FileError, Folder};
use crate::world::{
    FoundValue, GuestAudit, OnLeak, Receipt, SnapshotId, TokenWarning, UnprovenPlace, UnprovenValue,
    error_chain,
};

mod captures;

pub use captures::CaptureRequest;
use captures::{CopiedFile, PrecopiedFile};

/// How often a file is searched at most, because its places are overwritten a million at a time.
const ROUNDS: u32 = 8;

/// The most bytes of a log that are searched.
const MOST_OF_LOG: u64 = 64 << 20;

/// The search of one workspace.
pub struct LeakSearch {
    /// The state of the workspace, which has the fingerprints.
    pub state: PathBuf,
    /// What happens if a credential is found.
    pub on_leak: OnLeak,
    /// The directory of the logs of the workspace's VMs and of their consoles.
    logs: Option<PathBuf>,
    memory: Mutex<SearchMemory>,
}

/// What this process remembers between the transitions of a snapshot.
#[derive(Default)]
struct SearchMemory {
    /// The files of a staging directory that were copied while the guest ran.
    precopied: BTreeMap<(SnapshotId, String), PrecopiedFile>,
    /// What is known of files that were copied into a staging directory.
    copied: BTreeMap<(SnapshotId, String), CopiedFile>,
    /// What the guests were found to hold before they were wiped.
    audits: BTreeMap<SnapshotId, GuestAudit>,
    receipts: BTreeMap<SnapshotId, Receipt>,
}

impl LeakSearch {
    /// The search of the workspace that has this state.
    #[must_use]
    pub fn new(state: PathBuf, on_leak: OnLeak) -> Self {
        Self { state, on_leak, logs: None, memory: Mutex::default() }
    }

    /// The same search, which also says what the logs in this directory hold. They are no part of a snapshot, so nothing is
    /// overwritten in them.
    #[must_use]
    pub fn with_logs(self, directory: PathBuf) -> Self {
        Self { logs: Some(directory), ..self }
    }

    fn memory(&self) -> MutexGuard<'_, SearchMemory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> Result<Option<KnownValues>> {
        Ok(KnownValues::read(&Folder::open(&self.state)?)?)
    }

    /// Keeps what the guest was found to hold, until the receipt of the snapshot is written.
    pub(super) fn keep_audit(&self, id: SnapshotId, audit: GuestAudit) {
        self.memory().audits.insert(id, audit);
    }

    /// Begins to search the files of a listed snapshot for what was ever injected and for `values`. Nothing is overwritten.
    pub(super) fn begin_again(&self, id: SnapshotId, values: &[NamedValue]) -> Result<Inspection> {
        let known = KnownValues::with(self.known()?, values)?;
        Inspection::new(id, OnLeak::Fail, Some(&known))
    }

    /// Begins to search the files of a snapshot that is being made.
    pub(super) fn begin(&self, id: SnapshotId) -> Result<Inspection> {
        let mut inspection = Inspection::new(id, self.on_leak, self.known()?.as_ref())?;
        for ((_, name), copied) in self.memory().copied.iter().filter(|((of, _), _)| *of == id) {
            inspection.found(&place_of(name), &copied.overwritten, |_| true);
        }
        if let Some(logs) = &self.logs {
            inspection.search_logs(&Folder::open(logs)?)?;
        }
        Ok(inspection)
    }

    /// Ends the search of a snapshot, and keeps its receipt.
    pub(super) fn finish(&self, inspection: Inspection, zeroes_freed_memory: bool) -> Result<()> {
        let id = inspection.id;
        let receipt = inspection.receipt(zeroes_freed_memory);
        let mut memory = self.memory();
        memory.copied.retain(|(of, _), _| *of != id);
        let GuestAudit { processes, unproven } = memory.audits.remove(&id).unwrap_or_default();
        let unproven_places = unproven.into_iter().chain(receipt.unproven_places).collect();
        let receipt = Receipt { processes, unproven_places, ..receipt };
        if self.on_leak == OnLeak::Fail && !receipt.found.is_empty() {
            let leaks = receipt.found.iter().map(|found| format!("{} in {}", found.value, found.place));
            let leaks: BTreeSet<String> = leaks.collect();
            return Err(StoreError::Leak { id, leaks: leaks.into_iter().collect() });
        }
        memory.receipts.insert(id, receipt);
        Ok(())
    }

    /// What the search of a snapshot by this process came to.
    #[must_use]
    pub fn receipt(&self, id: SnapshotId) -> Option<Receipt> {
        self.memory().receipts.get(&id).cloned()
    }

    /// Makes sure that what nixbox writes into a snapshot, such as its manifest, holds no token.
    pub(super) fn check_text(&self, id: SnapshotId, text: &[u8], place: &str) -> Result<()> {
        let Some(known) = self.known()? else {
            return Ok(());
        };
        let mut held = None;
        known.searcher().search(text, usize::MAX, |hit| {
            let value = known.values().get(hit.value as usize);
            held = held.take().or_else(|| value.filter(|value| value.treatment == Treatment::Token));
        });
        match held {
            None => Ok(()),
            Some(value) => Err(StoreError::Fixed {
                id,
                value: value.name.clone(),
                place: place.to_owned(),
                why: Fixed::Manifest,
            }),
        }
    }
}

/// The search of one snapshot's files.
pub(super) struct Inspection {
    id: SnapshotId,
    on_leak: OnLeak,
    /// Searches for nothing if no value is known.
    searcher: Arc<Searcher>,
    token_kind_search: Arc<TokenKindSearch>,
    values: Vec<KnownValue>,
    bytes: u64,
    found: BTreeMap<(String, String, &'static str), u64>,
    unproven: BTreeSet<UnprovenValue>,
    /// The logs that hold a value.
    logs: Vec<UnprovenPlace>,
    /// What looks like tokens, by place.
    token_kinds: BTreeMap<(TokenKind, String), u64>,
    /// The file that is being judged, and how often it was.
    judging: Option<(String, u32)>,
}

/// The name of a file of a snapshot for people.
fn place_of(name: &str) -> String {
    match name.strip_prefix("disk-").and_then(|rest| rest.strip_suffix(".img")) {
        Some(number) => format!("disk {number}"),
        None if is_memory(name) => "RAM".to_owned(),
        None => name.to_owned(),
    }
}

/// Whether a file of a snapshot is RAM: nixbox's copy of it, or the VMM's.
fn is_memory(name: &str) -> bool {
    name == "memory.img" || name == "memory-ranges"
}

impl Inspection {
    fn new(id: SnapshotId, on_leak: OnLeak, known: Option<&KnownValues>) -> Result<Self> {
        let nothing = || Searcher::new(SearchKey::new([0; 32]), Vec::new());
        Ok(Self {
            id,
            on_leak,
            searcher: Arc::new(known.map_or_else(nothing, KnownValues::searcher)),
            token_kind_search: Arc::new(TokenKindSearch::new().map_err(StoreError::TokenKinds)?),
            values: known.map(|known| known.values().to_vec()).unwrap_or_default(),
            bytes: 0,
            found: BTreeMap::new(),
            unproven: BTreeSet::new(),
            logs: Vec::new(),
            token_kinds: BTreeMap::new(),
            judging: None,
        })
    }

    fn value(&self, number: u32) -> Option<&KnownValue> {
        self.values.get(number as usize)
    }

    /// A search of one file, which overwrites nothing.
    pub(super) fn search(&self) -> Arc<FileSearch> {
        let search = FileSearch::new(Arc::clone(&self.searcher), Vec::new());
        Arc::new(search.with_token_kinds(Arc::clone(&self.token_kind_search)))
    }

    /// Names the logs that hold a token: what the guest writes to its console is there.
    fn search_logs(&mut self, directory: &Folder) -> Result<()> {
        for name in directory.names()? {
            let name = name.to_string_lossy().into_owned();
            if !name.ends_with(".log") {
                continue;
            }
            let reason = match self.held_by_log(directory, &name) {
                Ok(held) if held.is_empty() => continue,
                Ok(held) => format!("it holds {}; it is no part of the snapshot", held.join(", ")),
                Err(error) => error_chain(&error),
            };
            let place = format!("{} on this host", directory.path_of(&name).display());
            self.logs.push(UnprovenPlace { place, reason });
        }
        Ok(())
    }

    /// The names of the tokens that a log holds.
    fn held_by_log(&self, directory: &Folder, name: &str) -> Result<Vec<String>, FileError> {
        let Some(file) = directory.file(name)? else { return Ok(Vec::new()) };
        let mut text = Zeroizing::new(Vec::new());
        let read = file.take(MOST_OF_LOG).read_to_end(&mut text);
        read.map_err(FileError::system("read", directory.path_of(name)))?;
        let mut held = BTreeSet::new();
        self.searcher.search(&text, usize::MAX, |hit| {
            let token = self.value(hit.value).filter(|value| value.treatment == Treatment::Token);
            held.extend(token.map(|value| value.name.clone()));
        });
        Ok(held.into_iter().collect())
    }

    /// The hash of a file that is known since it was copied; `None` if the file has to be read, because something in it was
    /// overwritten just now, or may have to be.
    pub(super) fn known_hash(
        &mut self,
        name: &str,
        file: &NamedFile,
        copied: CopiedFile,
    ) -> Result<Option<[u8; 32]>> {
        if copied.values != self.values.len() {
            return Ok(None);
        }
        let search = self.search();
        if !copy::search_seams(file, &copied.seams, &search)?.counts.is_empty() {
            return Ok(None);
        }
        Ok(self.judge(name, &file.file, &copied.left)?.then_some(copied.hash))
    }

    /// Counts bytes that were searched.
    pub(super) fn searched(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    fn found(&mut self, place: &str, findings: &Findings, of: impl Fn(u32) -> bool) {
        for ((value, form), count) in findings.counts.iter().filter(|((value, _), _)| of(*value)) {
            let name = self.value(*value).map(|known| known.name.clone()).unwrap_or_default();
            *self.found.entry((name, place.to_owned(), form.name())).or_default() += count;
        }
    }

    fn doubt(&mut self, value: u32, reason: String) {
        let value = self.value(value).map(|known| known.name.clone()).unwrap_or_default();
        self.unproven.insert(UnprovenValue { value, reason });
    }

    fn warn(&mut self, place: &str, findings: &Findings) {
        for (kind, count) in &findings.token_kinds {
            *self.token_kinds.entry((*kind, place.to_owned())).or_default() += count;
        }
    }

    /// Decides about what was found in a file, and overwrites what must not be there. Returns whether the file has nothing
    /// more that must not be there: otherwise it is to be searched again.
    pub(super) fn judge(&mut self, name: &str, file: &File, findings: &Findings) -> Result<bool> {
        let place = place_of(name);
        let found: BTreeSet<u32> = findings.counts.keys().map(|(value, _)| *value).collect();
        let mut removed = BTreeSet::new();
        for value in found {
            let times = findings.of(value);
            match self.value(value).map(|known| known.treatment) {
                None => {}
                Some(Treatment::Ordinary) => self.doubt(value, format!(
                    "it looks like words and is written in the configuration, so it was left where it is: {times} times in {place}"
                )),
                Some(Treatment::Words) if times > RARE => self.doubt(value, format!(
                    "it looks like words and is in too many places to be a secret: {times} times in {place}"
                )),
                Some(Treatment::Words | Treatment::Token) => {
                    removed.insert(value);
                }
            }
        }
        if removed.is_empty() {
            self.warn(&place, findings);
            return Ok(true);
        }
        self.found(&place, findings, |value| removed.contains(&value));
        if self.on_leak == OnLeak::Fail {
            self.warn(&place, findings);
            return Ok(true);
        }
        let rounds = match self.judging.take() {
            Some((judged, rounds)) if judged == name => rounds + 1,
            _ => 1,
        };
        if rounds > ROUNDS {
            return Err(StoreError::Recurring { id: self.id, place, rounds });
        }
        self.judging = Some((name.to_owned(), rounds));
        let places = findings.places.iter().filter(|place| removed.contains(&place.value));
        self.overwrite(name, file, places)?;
        Ok(false)
    }

    fn overwrite<'a>(
        &self,
        name: &str,
        file: &File,
        places: impl Iterator<Item = &'a FoundPlace> + Clone,
    ) -> Result<()> {
        let refuse = |place: &FoundPlace, why| StoreError::Fixed {
            id: self.id,
            value: self.value(place.value).map(|known| known.name.clone()).unwrap_or_default(),
            place: place_of(name),
            why,
        };
        if name.starts_with("disk-") {
            let systems = FileSystems::of(file).map_err(FileError::system("read", name))?;
            for place in places.clone() {
                let fixed = systems.fixed(file, place.at, place.length as u64);
                if let Some(why) = fixed.map_err(FileError::system("read", name))? {
                    return Err(refuse(place, why));
                }
            }
        } else if !is_memory(name) {
            return match places.clone().next() {
                Some(place) => Err(refuse(place, Fixed::VmmState)),
                None => Ok(()),
            };
        }
        let longest = places.clone().map(|place| place.length).max().unwrap_or(0);
        let marks = vec![MARK; longest];
        for place in places {
            file.write_all_at(&marks[..place.length], place.at).map_err(FileError::system("write", name))?;
        }
        Ok(())
    }

    /// The receipt.
    pub(super) fn receipt(mut self, zeroes_freed_memory: bool) -> Receipt {
        let short = self.values.iter().filter(|value| !value.is_searched_for());
        let short = short.map(|value| UnprovenValue {
            value: value.name.clone(),
            reason: "it has fewer than 8 bytes, which occur by chance".to_owned(),
        });
        self.unproven.extend(short.collect::<Vec<_>>());
        let searched = self.values.iter().filter(|value| value.is_searched_for());
        let names: BTreeSet<String> = searched.map(|value| value.name.clone()).collect();
        let found = self.found.into_iter().map(|((value, place, form), count)| FoundValue {
            value,
            place,
            form: form.to_owned(),
            count,
        });
        let warnings = self.token_kinds.into_iter().map(|((kind, place), count)| TokenWarning {
            kind: kind.name().to_owned(),
            place,
            count,
        });
        Receipt {
            on_leak: self.on_leak,
            zeroes_freed_memory,
            values: names.into_iter().collect(),
            bytes: self.bytes,
            found: found.collect(),
            unproven: self.unproven.into_iter().collect(),
            processes: Vec::new(),
            unproven_places: self.logs,
            warnings: warnings.collect(),
        }
    }
}

#[cfg(test)]
mod tests;
