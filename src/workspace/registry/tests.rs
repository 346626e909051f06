use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use super::*;
use crate::workspace;

/// A directory with a state directory and a workspace named `original` in it.
struct Arena {
    directory: tempfile::TempDir,
    places: StatePlaces,
    registry: Registry,
}

impl Arena {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let places = StatePlaces::below(&fs::canonicalize(directory.path()).unwrap().join("deep"));
        let registry = Registry::open(&places).unwrap();
        let arena = Self { directory, places, registry };
        fs::create_dir(arena.path("original")).unwrap();
        workspace::init(&arena.path("original"), &arena.places).unwrap();
        assert_eq!(arena.follow("original").unwrap(), Standing::Same);
        arena
    }

    fn path(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.directory.path()).unwrap().join(name)
    }

    fn workspace(&self, name: &str) -> Workspace {
        Workspace::find(&self.path(name), &self.places).unwrap()
    }

    fn follow(&self, name: &str) -> Result<Standing, RegistryError> {
        let workspace = self.workspace(name);
        let examined = self.registry.examine(&workspace).map_err(|error| error.to_string());
        let followed = self.registry.follow(&workspace);
        assert_eq!(examined, followed.as_ref().map(Clone::clone).map_err(ToString::to_string));
        followed
    }

    /// A copy with all times and owners.
    fn copy(&self, from: &str, to: &str) {
        let status = Command::new("cp").arg("-a").args([self.path(from), self.path(to)]).status().unwrap();
        assert!(status.success());
    }

    fn entry(&self, name: &str) -> PathBuf {
        self.registry.entries.path_of(self.workspace(name).id())
    }
}

#[test]
fn a_workspace_that_was_moved_is_followed_and_that_is_said_once() {
    let arena = Arena::new();
    assert_eq!(arena.follow("original").unwrap(), Standing::Same);
    fs::rename(arena.path("original"), arena.path("renamed")).unwrap();
    assert_eq!(arena.follow("renamed").unwrap(), Standing::Moved { from: arena.path("original") });
    assert_eq!(arena.follow("renamed").unwrap(), Standing::Same);
    fs::create_dir(arena.path("above")).unwrap();
    fs::rename(arena.path("renamed"), arena.path("above/original")).unwrap();
    assert_eq!(arena.follow("above/original").unwrap(), Standing::Moved { from: arena.path("renamed") });
}

#[test]
fn a_copy_is_refused_as_long_as_the_original_stands_and_takes_its_place_afterwards() {
    let arena = Arena::new();
    arena.copy("original", "copy");
    let before = fs::read(arena.entry("original")).unwrap();
    for _ in 0..2 {
        let refused = arena.follow("copy").unwrap_err();
        let words = refused.to_string();
        assert!(matches!(refused, RegistryError::Copy(_)) && words.contains("--new-id"), "{words}");
        assert_eq!(arena.follow("original").unwrap(), Standing::Same);
    }
    assert_eq!(fs::read(arena.entry("original")).unwrap(), before);
    fs::remove_dir_all(arena.path("original")).unwrap();
    assert_eq!(arena.follow("copy").unwrap(), Standing::TookPlace { of: arena.path("original") });
    assert_eq!(arena.follow("copy").unwrap(), Standing::Same);
}

#[test]
fn a_copy_at_the_place_of_the_original_is_the_workspace_and_the_original_elsewhere_is_then_the_copy() {
    let arena = Arena::new();
    fs::rename(arena.path("original"), arena.path("aside")).unwrap();
    arena.copy("aside", "original");
    // Whichever nixbox meets first is the workspace. Here it is the copy, because it stands where the original was.
    assert_eq!(arena.follow("original").unwrap(), Standing::Same);
    assert!(matches!(arena.follow("aside"), Err(RegistryError::Copy(_))));
}

#[test]
fn a_copy_with_a_new_id_is_another_workspace() {
    let arena = Arena::new();
    let original = arena.workspace("original");
    fs::write(original.journal().join("current"), "a journal").unwrap();
    fs::write(original.ssh().join("vm_key"), "a key").unwrap();
    fs::create_dir(original.snapshots().join("7")).unwrap();
    arena.copy("original", "copy");
    assert!(matches!(arena.follow("copy"), Err(RegistryError::Copy(_))));
    // As a nixbox leaves it that was killed before it wrote the id: the next one goes on with the same state.
    let begun = WorkspaceId([3; 16]);
    fs::write(arena.path("copy/.nixbox/next-workspace-id"), format!("{begun}\n")).unwrap();
    fs::create_dir(original.state().path().with_file_name(state_name(begun))).unwrap();
    let id = workspace::give_new_id(&arena.workspace("copy")).unwrap();
    assert_eq!(id, begun);
    assert_eq!(fs::read_dir(arena.path("copy/.nixbox")).unwrap().count(), 3);
    let copy = arena.workspace("copy");
    assert_eq!(copy.id(), id);
    assert_ne!(arena.workspace("original").id(), id);
    assert_eq!(arena.follow("copy").unwrap(), Standing::Same);
    assert_eq!(arena.follow("original").unwrap(), Standing::Same);
    let count = |directory: PathBuf| fs::read_dir(directory).unwrap().count();
    assert_eq!((count(copy.journal()), count(copy.snapshots()), count(copy.run())), (0, 0, 0));
    assert_eq!((count(original.journal()), count(original.snapshots())), (1, 1));
    assert_eq!(fs::read(copy.ssh().join("vm_key")).unwrap(), b"a key");
    let listed: BTreeSet<PathBuf> =
        arena.registry.list().unwrap().into_iter().map(|entry| entry.unwrap().path).collect();
    assert_eq!(listed, BTreeSet::from([arena.path("copy"), arena.path("original")]));
}

#[test]
fn a_new_workspace_takes_the_entries_of_removed_ones_without_state_out() {
    let arena = Arena::new();
    let (entry, state) = (arena.entry("original"), arena.workspace("original").state().path().to_owned());
    fs::remove_dir_all(arena.path("original")).unwrap();
    for name in ["second", "third"] {
        fs::create_dir(arena.path(name)).unwrap();
        workspace::init(&arena.path(name), &arena.places).unwrap();
    }
    arena.follow("second").unwrap();
    assert!(entry.exists(), "its state is there");
    fs::remove_dir_all(state).unwrap();
    arena.follow("third").unwrap();
    assert!(!entry.exists() && arena.entry("second").exists() && arena.entry("third").exists());
}

fn registered(path: &Path, identity: DirectoryIdentity) -> RegisteredWorkspace {
    RegisteredWorkspace { id: WorkspaceId([7; 16]), identity, path: path.to_owned(), state: None }
}

#[test]
fn while_a_vm_lives_no_other_directory_takes_the_place() {
    let arena = Arena::new();
    let identity = |name: &str| Folder::open(&arena.path(name)).unwrap().identity().unwrap();
    let (one, other) = (identity("original"), identity("original/.nixbox"));
    let lives = |_| Ok(true);
    let gone = registered(Path::new("/nowhere"), one);
    let elsewhere = compare(&gone, &registered(Path::new("/elsewhere"), other), lives);
    assert!(matches!(elsewhere, Err(RegistryError::Copy(_))), "{elsewhere:?}");
    let replaced = compare(&gone, &registered(Path::new("/nowhere"), other), lives);
    assert!(matches!(replaced, Err(RegistryError::Replaced { .. })), "{replaced:?}");
    // A rename of the directory keeps its identity, and its VM.
    let moved = compare(&gone, &registered(Path::new("/elsewhere"), one), lives).unwrap();
    assert_eq!(moved, Standing::Moved { from: "/nowhere".into() });
    // After a reboot the file system may have another id.
    let rebooted = compare(&gone, &registered(Path::new("/nowhere"), other), |_| Ok(false)).unwrap();
    assert_eq!(rebooted, Standing::Same);
}

#[test]
fn entries_that_nixbox_did_not_write_are_refused_and_left() {
    let arena = Arena::new();
    let path = arena.entry("original");
    let good = fs::read_to_string(&path).unwrap();
    let id = arena.workspace("original").id().to_string();
    let texts = [
        String::new(),
        good[..good.len() / 2].to_owned(),
        good.replacen("\"path\":\"2f", "\"path\":\"2e", 1),
        good.replacen("\"path\":\"2f", "\"path\":\"2", 1),
        good.replacen(&id, &id.replace(|_: char| true, "0"), 1),
        good.replacen("\"state\":\"2f", "\"state\":\"2e", 1),
        good.replacen("\"format\":2", "\"format\":2,\"more\":2", 1),
        good.replacen("\"format\":2", "\"format\":3,\"more\":2", 1),
        good.replacen("\"format\":2", "\"format\":0", 1),
    ];
    for text in texts {
        assert_ne!(text, good);
        fs::write(&path, &text).unwrap();
        let refused = arena.follow("original").unwrap_err();
        assert!(refused.to_string().contains(path.to_str().unwrap()), "{refused}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(arena.follow("original").unwrap(), Standing::Same);
}

#[test]
fn a_registry_that_others_may_write_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let arena = Arena::new();
    let state = arena.places.state();
    fs::set_permissions(state, fs::Permissions::from_mode(0o777)).unwrap();
    let refused = Registry::open(&arena.places).unwrap_err().to_string();
    assert!(refused.contains(state.to_str().unwrap()), "{refused}");
}

#[test]
fn a_second_nixbox_waits_for_the_lock_of_the_first() {
    let arena = Arena::new();
    let held = arena.registry.entries.lock().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| arena.follow("original").unwrap());
        drop(held);
        assert_eq!(waiting.join().unwrap(), Standing::Same);
    });
}

#[test]
fn a_path_of_any_bytes_is_kept() {
    let arena = Arena::new();
    let path = Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"/srv/\xff\n"));
    let identity = Folder::open(&arena.path("original")).unwrap().identity().unwrap();
    let entry = registered(path, identity);
    arena.registry.entries.write(&entry).unwrap();
    assert_eq!(arena.registry.entries.read(entry.id).unwrap(), Some(entry));
}

#[test]
fn an_entry_of_an_earlier_nixbox_is_read_and_written_anew() {
    let arena = Arena::new();
    let path = arena.entry("original");
    let good = fs::read_to_string(&path).unwrap();
    let (before, _) = good.split_once(",\"state\"").unwrap();
    fs::write(&path, format!("{}}}", before.replacen("\"format\":2", "\"format\":1", 1))).unwrap();
    let id = arena.workspace("original").id();
    assert_eq!(arena.registry.entries.read(id).unwrap().unwrap().state, None);
    assert_eq!(arena.follow("original").unwrap(), Standing::Same);
    assert_eq!(fs::read_to_string(&path).unwrap(), good);
}

/// A removal that was killed in the middle is completed.
#[test]
fn what_is_kept_of_a_gone_workspace_is_removed_also_after_a_kill() {
    for killed in [false, true] {
        let arena = Arena::new();
        let original = arena.workspace("original");
        fs::write(original.ssh().join("vm_key"), "a key").unwrap();
        let state = original.state().path().to_owned();
        let trash = state.with_file_name(trash_name(original.id()));
        fs::remove_dir_all(arena.path("original")).unwrap();
        if killed {
            fs::rename(&state, &trash).unwrap();
        }
        arena.registry.forget(original.id()).unwrap();
        assert!(!state.exists() && !trash.exists());
        assert_eq!(arena.registry.list().unwrap().len(), 0);
    }
}
