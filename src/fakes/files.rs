//! A file system in memory that has a live and a durable copy of everything, so that the power can be cut.
//!
//! Contents and names become durable separately: syncing a file makes its content durable, syncing a directory makes the
//! names in it durable. In a power cut any subset of the changes that were not synced survives.

use std::collections::BTreeMap;

use super::guest::{DiskImage, FakeRam, FakeSpec, SavedState};

use crate::world::Manifest;

/// The number of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ino(u64);

/// The root directory.
pub(super) const ROOT: Ino = Ino(0);

/// The content of a file or directory. Large files are values in place of bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Content {
    Directory,
    Bytes(Vec<u8>),
    Disk(DiskImage),
    Ram(FakeRam),
    State(SavedState),
    Manifest(Box<ManifestFile>),
    Built(FakeSpec),
    /// Not completely written.
    Torn,
}

/// A manifest as the content of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ManifestFile(pub(super) Manifest);

impl std::hash::Hash for ManifestFile {
    fn hash<H: std::hash::Hasher>(&self, hasher: &mut H) {
        format!("{:?}", self.0).hash(hasher);
    }
}

#[derive(Debug, Clone, Hash)]
enum UnsyncedWrite {
    At(usize, Vec<u8>),
    Cut(usize),
    Whole(Content),
    /// A change by which the file cannot be torn, because the file system of a guest protects what is in it.
    InPlace(Content),
}

#[derive(Debug, Clone, Hash)]
struct FakeInode {
    live: Content,
    durable: Content,
    unsynced: Vec<UnsyncedWrite>,
}

#[derive(Debug, Clone, Hash)]
struct NameChange {
    removed: Option<(Ino, String)>,
    added: Option<((Ino, String), Ino)>,
}

/// Which of the changes that were not synced survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Survival {
    /// Nothing.
    Nothing,
    /// Everything.
    Everything,
    /// A subset, chosen by this number.
    Some(u64),
}

impl Survival {
    /// Whether the next change survives.
    fn next(&mut self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Some(state) => {
                // SplitMix64, which gives an evenly distributed sequence for every seed.
                *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                (mixed ^ (mixed >> 27)) & 1 == 1
            }
        }
    }
}

/// The file system.
#[derive(Debug, Clone, Hash)]
pub(super) struct FakeFiles {
    names: BTreeMap<(Ino, String), Ino>,
    durable_names: BTreeMap<(Ino, String), Ino>,
    unsynced_names: Vec<NameChange>,
    inodes: BTreeMap<Ino, FakeInode>,
    next: u64,
}

impl Default for FakeFiles {
    fn default() -> Self {
        let root = FakeInode { live: Content::Directory, durable: Content::Directory, unsynced: Vec::new() };
        Self {
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            inodes: BTreeMap::from([(ROOT, root)]),
            next: 1,
        }
    }
}

impl FakeFiles {
    pub(super) fn find(&self, directory: Ino, name: &str) -> Option<Ino> {
        self.names.get(&(directory, name.to_owned())).copied()
    }

    pub(super) fn content(&self, ino: Ino) -> &Content {
        self.inodes.get(&ino).map_or(&Content::Torn, |inode| &inode.live)
    }

    pub(super) fn get(&self, directory: Ino, name: &str) -> Option<&Content> {
        self.find(directory, name).map(|ino| self.content(ino))
    }

    pub(super) fn list(&self, directory: Ino) -> impl Iterator<Item = (&str, Ino)> {
        let range = self.names.range((directory, String::new())..);
        range
            .take_while(move |((within, _), _)| *within == directory)
            .map(|((_, name), ino)| (name.as_str(), *ino))
    }

    /// Makes a file or directory whose name is free.
    pub(super) fn create(&mut self, directory: Ino, name: &str, content: Content) -> Ino {
        let ino = Ino(self.next);
        self.next += 1;
        let blank =
            if content == Content::Directory { Content::Directory } else { Content::Bytes(Vec::new()) };
        self.inodes
            .insert(ino, FakeInode { live: blank.clone(), durable: blank.clone(), unsynced: Vec::new() });
        self.change_name(NameChange { removed: None, added: Some(((directory, name.to_owned()), ino)) });
        if content != blank {
            self.write_whole(ino, content);
        }
        ino
    }

    /// Makes a directory unless it is there. Its name is durable at once, because setting up a workspace includes a sync.
    pub(super) fn directory(&mut self, directory: Ino, name: &str) -> Ino {
        self.find(directory, name).unwrap_or_else(|| {
            let ino = self.create(directory, name, Content::Directory);
            self.sync_names(directory);
            ino
        })
    }

    pub(super) fn write_whole(&mut self, ino: Ino, content: Content) {
        self.write(ino, UnsyncedWrite::Whole(content));
    }

    pub(super) fn change_in_place(&mut self, ino: Ino, content: Content) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.unsynced.retain(|write| !matches!(write, UnsyncedWrite::InPlace(_)));
        }
        self.write(ino, UnsyncedWrite::InPlace(content));
    }

    pub(super) fn append(&mut self, ino: Ino, bytes: &[u8]) {
        let Content::Bytes(live) = self.content(ino) else {
            return;
        };
        let at = live.len();
        self.write(ino, UnsyncedWrite::At(at, bytes.to_vec()));
    }

    pub(super) fn cut(&mut self, ino: Ino, size: usize) {
        self.write(ino, UnsyncedWrite::Cut(size));
    }

    fn write(&mut self, ino: Ino, write: UnsyncedWrite) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            write.apply(&mut inode.live);
            inode.unsynced.push(write);
        }
    }

    pub(super) fn sync(&mut self, ino: Ino) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.durable = inode.live.clone();
            inode.unsynced.clear();
        }
    }

    pub(super) fn sync_names(&mut self, directory: Ino) {
        let concerns = |change: &NameChange| {
            change.removed.as_ref().is_some_and(|(within, _)| *within == directory)
                || change.added.as_ref().is_some_and(|((within, _), _)| *within == directory)
        };
        let (now, later) = std::mem::take(&mut self.unsynced_names).into_iter().partition(concerns);
        let now: Vec<NameChange> = now;
        self.unsynced_names = later;
        now.iter().for_each(|change| change.apply(&mut self.durable_names));
    }

    pub(super) fn link(&mut self, directory: Ino, from: &str, to: &str) {
        if let Some(ino) = self.find(directory, from) {
            self.change_name(NameChange { removed: None, added: Some(((directory, to.to_owned()), ino)) });
        }
    }

    pub(super) fn rename(&mut self, directory: Ino, from: &str, to: &str) {
        if let Some(ino) = self.find(directory, from) {
            self.change_name(NameChange {
                removed: Some((directory, from.to_owned())),
                added: Some(((directory, to.to_owned()), ino)),
            });
        }
    }

    /// Removes a file, or a directory with all that is in it.
    pub(super) fn remove(&mut self, directory: Ino, name: &str) {
        if let Some(ino) = self.find(directory, name) {
            let under: Vec<String> = self.list(ino).map(|(name, _)| name.to_owned()).collect();
            under.iter().for_each(|name| self.remove(ino, name));
            self.change_name(NameChange { removed: Some((directory, name.to_owned())), added: None });
        }
    }

    /// Hashes the live names and contents of all files.
    pub(super) fn hash_live(&self, hasher: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        let mut directories = vec![ROOT];
        while let Some(directory) = directories.pop() {
            for (name, ino) in self.list(directory) {
                let content = self.content(ino);
                (name, content).hash(hasher);
                if *content == Content::Directory {
                    directories.push(ino);
                }
            }
        }
    }

    fn change_name(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.unsynced_names.push(change);
    }

    /// Cuts the power: the durable copy with the changes that survive becomes the live one.
    pub(super) fn power_cut(&mut self, mut survival: Survival) {
        for change in std::mem::take(&mut self.unsynced_names) {
            if survival.next() {
                change.apply(&mut self.durable_names);
            }
        }
        self.names = self.durable_names.clone();
        for inode in self.inodes.values_mut() {
            for write in std::mem::take(&mut inode.unsynced) {
                match (survival.next(), write) {
                    (true, write) => write.apply(&mut inode.durable),
                    (false, UnsyncedWrite::Whole(_)) => inode.durable = Content::Torn,
                    (false, _) => {}
                }
            }
            inode.live = inode.durable.clone();
        }
        self.forget_nameless();
    }

    fn forget_nameless(&mut self) {
        let mut reached = vec![ROOT];
        let mut at = 0;
        while let Some(directory) = reached.get(at).copied() {
            reached.extend(self.list(directory).map(|(_, ino)| ino));
            at += 1;
        }
        self.inodes.retain(|ino, _| reached.contains(ino));
        self.names.retain(|(directory, _), _| reached.contains(directory));
        self.durable_names = self.names.clone();
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<(Ino, String), Ino>) {
        if let Some(removed) = &self.removed {
            names.remove(removed);
        }
        if let Some((name, ino)) = &self.added {
            names.insert(name.clone(), *ino);
        }
    }
}

impl UnsyncedWrite {
    fn apply(&self, content: &mut Content) {
        match (self, content) {
            (Self::Whole(new) | Self::InPlace(new), content) => *content = new.clone(),
            (Self::At(at, bytes), Content::Bytes(old)) => {
                old.resize(old.len().max(at + bytes.len()), 0);
                old[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            (Self::Cut(size), Content::Bytes(old)) => old.truncate(*size),
            (Self::At(..) | Self::Cut(_), _) => {}
        }
    }
}
