use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::*;
use crate::files::copy::NoProgress;
use crate::files::extents;

const ID: WorkspaceId = WorkspaceId([9; 16]);

/// A directory `.nixbox` as an earlier nixbox left it, and the place of its state, perhaps on another file system.
struct Arena {
    directories: [tempfile::TempDir; 2],
    progress: Arc<dyn Progress>,
    interrupt: Interrupt,
}

impl Arena {
    fn new(elsewhere: bool) -> Self {
        let parent = if elsewhere { tempfile::tempdir_in("/dev/shm") } else { tempfile::tempdir() };
        let directories = [tempfile::tempdir().unwrap(), parent.unwrap()];
        for directory in &directories {
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
        }
        let arena = Self { directories, progress: Arc::new(NoProgress), interrupt: Interrupt::new() };
        let from = arena.directories[0].path();
        for name in DIRECTORIES {
            fs::create_dir(from.join(name)).unwrap();
        }
        for (name, content) in
            [("lock", ""), ("config.toml", "c"), ("journal/current", "j"), ("ssh/vm_key", "k")]
                .into_iter()
                .chain(FILES.map(|name| (name, "f")))
        {
            fs::write(from.join(name), content).unwrap();
        }
        fs::create_dir(from.join("snapshots/7")).unwrap();
        let sparse = fs::File::create(from.join("snapshots/7/memory")).unwrap();
        sparse.set_len(64 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"ram", 32 << 20).unwrap();
        arena
    }

    /// Lets `act` work on the move as a nixbox does that has just been started.
    async fn with<T>(&self, act: impl AsyncFnOnce(Move<'_>) -> T) -> T {
        let [from, parent] = self.directories.each_ref().map(|path| Folder::open(path.path()).unwrap());
        let (progress, interrupt) = (&self.progress, &self.interrupt);
        act(Move { from: &from, parent: &parent, id: ID, progress, interrupt }).await
    }

    fn state(&self) -> PathBuf {
        self.directories[1].path().join(state_name(ID))
    }

    /// Everything that was to be moved is there, and nothing of it is left behind.
    fn check(&self) {
        let content = listed(&self.state());
        let wanted = [
            "contents.json",
            "decided.json",
            "journal",
            "journal/current",
            "known-values.json",
            "run",
            "snapshots",
            "snapshots/7",
            "snapshots/7/memory",
            "ssh",
            "ssh/vm_key",
        ];
        assert_eq!(content.keys().map(String::as_str).collect::<Vec<_>>(), wanted);
        assert_eq!(content["ssh/vm_key"].as_deref(), Some(b"k" as &[u8]));
        assert!(FILES.iter().all(|name| content[*name].as_deref() == Some(b"f" as &[u8])));
        assert_eq!(content["snapshots/7/memory"].as_ref().map(Vec::len), Some(64 << 20));
        let memory = self.state().join("snapshots/7/memory");
        assert!(
            extents::data_bytes(&fs::File::open(memory).unwrap()).unwrap() < 1 << 20,
            "its holes are holes"
        );
        let left: Vec<String> = listed(self.directories[0].path()).into_keys().collect();
        assert_eq!(left, ["config.toml", "lock"]);
        assert_eq!(fs::read_dir(self.directories[1].path()).unwrap().count(), 1);
    }
}

/// The paths below a directory, with the content of the files.
fn listed(directory: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(one) = open.pop() {
        for entry in fs::read_dir(one).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned();
            found.insert(name, path.is_file().then(|| fs::read(&path).unwrap()));
            if path.is_dir() {
                open.push(path);
            }
        }
    }
    found
}

#[tokio::test]
async fn the_state_is_moved_on_one_file_system_and_to_another() {
    for elsewhere in [false, true] {
        let arena = Arena::new(elsewhere);
        arena
            .with(async |one| {
                one.check().unwrap();
                one.run().await.unwrap();
            })
            .await;
        arena.check();
    }
}

#[tokio::test]
async fn a_move_that_was_killed_after_any_change_is_completed() {
    for elsewhere in [false, true] {
        for changes in 0.. {
            let arena = Arena::new(elsewhere);
            let ended = arena
                .with(async |one| {
                    let (moving, _) = one.parent.make_folder(moving_name(ID)).unwrap();
                    for _ in 0..changes {
                        if !one.advance(&moving).await.unwrap() {
                            return true;
                        }
                    }
                    false
                })
                .await;
            if ended {
                assert!(changes > 4, "{changes}");
                break;
            }
            arena.with(async |one| one.run().await.unwrap()).await;
            arena.check();
        }
    }
}

/// A kill in the middle of a copy leaves some files of it, under another name.
#[tokio::test]
async fn a_copy_that_was_killed_in_the_middle_is_made_anew() {
    let arena = Arena::new(true);
    let half = arena.directories[1].path().join(moving_name(ID)).join(".snapshots.unfinished/7");
    fs::create_dir_all(&half).unwrap();
    fs::write(half.join("memory"), "half").unwrap();
    for ancestor in half.ancestors().take(3) {
        fs::set_permissions(ancestor, fs::Permissions::from_mode(0o700)).unwrap();
    }
    arena.with(async |one| one.run().await.unwrap()).await;
    arena.check();
}

/// A kill in the middle of the removal of what was copied leaves some files of it in the workspace.
#[tokio::test]
async fn what_was_copied_and_half_removed_is_removed() {
    let arena = Arena::new(true);
    arena
        .with(async |one| {
            let (moving, _) = one.parent.make_folder(moving_name(ID)).unwrap();
            one.advance(&moving).await.unwrap();
        })
        .await;
    fs::remove_file(arena.directories[0].path().join("journal/current")).unwrap();
    arena.with(async |one| one.run().await.unwrap()).await;
    arena.check();
}

#[tokio::test]
async fn an_interrupted_copy_is_completed_later() {
    let arena = Arena::new(true);
    arena.interrupt.request();
    arena
        .with(async |one| {
            let error = one.run().await.unwrap_err();
            assert!(matches!(error, MoveError::Copy(CopyError::Interrupted)), "{error}");
        })
        .await;
    let arena = Arena { interrupt: Interrupt::new(), ..arena };
    arena.with(async |one| one.run().await.unwrap()).await;
    arena.check();
}
