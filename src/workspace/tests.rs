use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::Command;

use super::places::PlacesError;
use super::*;
use crate::testing::{Need, have};

/// A directory for workspaces, and places for their state beside it.
struct Arena {
    directory: tempfile::TempDir,
    /// Removed with the arena.
    _state: tempfile::TempDir,
    places: StatePlaces,
}

impl Arena {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let places = StatePlaces::below(&std::fs::canonicalize(state.path()).unwrap());
        Self { directory: tempfile::tempdir().unwrap(), _state: state, places }
    }

    /// A directory that is a workspace.
    fn workspace() -> (Self, Workspace) {
        let arena = Self::new();
        let (workspace, _) = arena.init(arena.directory.path()).unwrap();
        (arena, workspace)
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn nixbox(&self) -> PathBuf {
        self.path().join(DIRECTORY)
    }

    fn init(&self, directory: &Path) -> Result<(Workspace, Vec<PathBuf>), WorkspaceError> {
        init(directory, &self.places)
    }

    fn find(&self, from: &Path) -> Result<Workspace, WorkspaceError> {
        Workspace::find(from, &self.places)
    }

    fn found(&self) -> Result<Workspace, WorkspaceError> {
        self.find(self.path())
    }
}

#[test]
fn init_makes_a_workspace_whose_configuration_is_read() {
    let arena = Arena::new();
    let (workspace, made) = arena.init(arena.path()).unwrap();
    assert_eq!(made.len(), 3);
    let facts = config::HostFacts { vcpus: 4, memory: 8 << 30, home: None };
    let nixbox = workspace.nixbox().unwrap();
    config::Config::load(nixbox, workspace.root(), &workspace.ssh(), &facts).unwrap();
    for directory in [arena.nixbox(), workspace.run(), workspace.snapshots(), workspace.ssh()] {
        let mode = std::fs::metadata(&directory).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700, "{directory:?}");
    }
    assert_eq!(nixbox.names().unwrap(), [".gitignore", "config.toml", "workspace-id"]);
    assert_ne!(workspace.id(), Arena::workspace().1.id());
}

#[test]
fn every_commented_line_of_the_template_can_be_used() {
    let uncommented: String = template::CONFIG
        .lines()
        .skip_while(|line| !line.starts_with("# name"))
        .map(|line| format!("{}\n", line.strip_prefix("# ").unwrap_or(line)))
        .collect();
    let facts = config::HostFacts { vcpus: 4, memory: 8 << 30, home: Some("/home/me".into()) };
    let config =
        config::Config::parse(&uncommented, Path::new("c"), Path::new("/w"), Path::new("/k"), &facts)
            .unwrap();
    assert_eq!(config.snapshot.keep.unwrap().get(), 5);
    assert_eq!(config.env.len(), 4);
    let tree: toml::Table = uncommented.parse().unwrap();
    let mut keys = std::collections::BTreeSet::new();
    config::keys_of(&serde_json::to_value(tree).unwrap(), "", &mut keys);
    assert!(keys.remove("env.*"));
    assert_eq!(keys, config::all_keys());
}

#[test]
fn git_sees_the_configuration_and_nothing_else() {
    if !have(&[Need::Program("git")]) {
        return;
    }
    let (arena, _workspace) = Arena::workspace();
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(arena.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    git(&["init", "-q"]);
    let seen = git(&["status", "--porcelain", "--untracked-files=all"]);
    assert_eq!(seen, "?? .nixbox/.gitignore\n?? .nixbox/config.toml\n");
}

#[test]
fn init_overwrites_nothing_and_makes_what_is_missing() {
    let (arena, workspace) = Arena::workspace();
    std::fs::write(arena.nixbox().join("config.toml"), "mine").unwrap();
    std::fs::remove_dir(workspace.run()).unwrap();
    assert!(matches!(arena.found(), Err(WorkspaceError::Incomplete { .. })));
    let (again, made) = arena.init(arena.path()).unwrap();
    assert!(made.is_empty());
    assert_eq!(again.id(), workspace.id());
    assert_eq!(std::fs::read(arena.nixbox().join("config.toml")).unwrap(), b"mine");
    std::fs::remove_dir_all(workspace.state().path()).unwrap();
    assert!(matches!(arena.found(), Err(WorkspaceError::Incomplete { .. })));
    let (again, _) = arena.init(arena.path()).unwrap();
    assert_eq!((again.id(), again.state().path()), (workspace.id(), workspace.state().path()));
}

#[test]
fn a_workspace_is_found_from_any_directory_below() {
    let (arena, workspace) = Arena::workspace();
    let below = arena.path().join("a/b/c");
    std::fs::create_dir_all(&below).unwrap();
    symlink(&below, arena.path().join("link")).unwrap();
    for from in [below.clone(), arena.path().to_owned(), arena.nixbox(), arena.path().join("link")] {
        let found = arena.find(&from).unwrap();
        assert_eq!((found.id(), found.root()), (workspace.id(), workspace.root()), "{from:?}");
    }
    let (inner, _) = arena.init(&below).unwrap();
    assert_eq!(arena.find(&below).unwrap().id(), inner.id());
    let nowhere = tempfile::tempdir().unwrap();
    assert!(matches!(arena.find(nowhere.path()), Err(WorkspaceError::None { .. })));
    assert!(matches!(arena.find(&below.join("absent")), Err(WorkspaceError::Start { .. })));
}

#[test]
fn a_directory_that_others_own_or_write_is_refused() {
    let mode =
        |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    let (arena, workspace) = Arena::workspace();
    let refused = || arena.found().unwrap_err();
    for bits in [0o770, 0o702, 0o777] {
        mode(&arena.nixbox(), bits);
        assert!(matches!(refused(), WorkspaceError::File(FileError::Writable { .. })));
        assert!(arena.init(arena.path()).is_err());
    }
    mode(&arena.nixbox(), 0o755);
    for directory in [workspace.snapshots(), workspace.state().path().to_owned()] {
        mode(&directory, 0o777);
        assert!(matches!(refused(), WorkspaceError::File(FileError::Writable { .. })));
        mode(&directory, 0o700);
    }
    arena.found().unwrap();
    if have(&[Need::Root]) {
        chown(arena.nixbox(), Some(12345), None).unwrap();
        assert!(matches!(refused(), WorkspaceError::File(FileError::Owner { owner: 12345, .. })));
    }
}

#[test]
fn links_and_other_files_in_the_place_of_directories_are_refused() {
    let (elsewhere, _) = Arena::workspace();
    let arena = Arena::new();
    for target in [elsewhere.nixbox(), "dangling".into()] {
        symlink(target, arena.nixbox()).unwrap();
        let below = arena.path().join("below");
        std::fs::create_dir_all(&below).unwrap();
        assert!(matches!(arena.find(&below), Err(WorkspaceError::File(FileError::Symlink { .. }))));
        assert!(matches!(arena.init(arena.path()), Err(WorkspaceError::File(FileError::Symlink { .. }))));
        std::fs::remove_file(arena.nixbox()).unwrap();
    }
    std::fs::write(arena.nixbox(), "").unwrap();
    assert!(matches!(arena.found(), Err(WorkspaceError::File(FileError::Kind { .. }))));
    std::fs::remove_file(arena.nixbox()).unwrap();

    let places: [fn(&Arena, &Workspace) -> PathBuf; 3] = [
        |_, workspace| workspace.run(),
        |arena, _| arena.nixbox().join(ID_FILE),
        |_, workspace| workspace.state().path().to_owned(),
    ];
    for place in places {
        let (arena, workspace) = Arena::workspace();
        let path = place(&arena, &workspace);
        std::fs::rename(&path, path.with_extension("moved")).unwrap();
        symlink(path.with_extension("moved"), &path).unwrap();
        let error = arena.found().unwrap_err();
        let chain = format!("{error}");
        assert!(chain.contains("symbolic link"), "{chain}");
    }
}

#[test]
fn a_malformed_id_is_refused() {
    let (arena, workspace) = Arena::workspace();
    let path = arena.nixbox().join(ID_FILE);
    for text in [
        "",
        "x",
        "0123456789abcdef0123456789abcde",
        "0123456789ABCDEF0123456789abcdef\n",
        "+123456789abcdef0123456789abcdef\n",
    ] {
        std::fs::write(&path, text).unwrap();
        let error = arena.found().unwrap_err();
        assert!(matches!(error, WorkspaceError::Id(IdError::Malformed { .. })), "{text:?}: {error}");
    }
    std::fs::write(&path, workspace.id().to_string()).unwrap();
    assert_eq!(arena.found().unwrap().id(), workspace.id());
}

#[test]
fn the_directory_for_sockets_is_short_and_private() {
    let (_arena, workspace) = Arena::workspace();
    let base = tempfile::tempdir().unwrap();
    let nowhere = base.path().join("absent");
    let folder = workspace.runtime_in(&[nowhere.clone(), base.path().to_owned()]).unwrap();
    assert!(folder.path().starts_with(base.path()));
    assert_eq!(std::fs::metadata(folder.path()).unwrap().permissions().mode() & 0o777, 0o700);
    let again = workspace.runtime_in(&[base.path().to_owned()]).unwrap();
    assert_eq!(folder.path(), again.path());
    assert!(matches!(workspace.runtime_in(&[nowhere]), Err(WorkspaceError::NoRuntime { .. })));
    // A directory that others can write is not used.
    let user = folder.path().parent().unwrap();
    std::fs::set_permissions(user, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(workspace.runtime_in(&[base.path().to_owned()]), Err(WorkspaceError::NoRuntime { .. })));

    let real = workspace.runtime().unwrap();
    // 108 bytes of sun_path, with room for a socket's name.
    assert!(real.path().as_os_str().len() <= 60, "{:?}", real.path());
    std::fs::remove_dir(real.path()).unwrap();
}

/// `git clean -x` removes the file with the id, and the state is the same afterwards.
#[test]
fn a_workspace_whose_id_was_removed_gets_it_again() {
    let (arena, workspace) = Arena::workspace();
    let entries = Entries::open(&arena.places).unwrap();
    let identity = workspace.nixbox().unwrap().identity().unwrap();
    let state = Some(workspace.state().path().to_owned());
    let path = workspace.root().to_owned();
    entries.write(&RegisteredWorkspace { id: workspace.id(), identity, path, state }).unwrap();
    std::fs::remove_file(arena.nixbox().join(ID_FILE)).unwrap();
    assert!(matches!(arena.found(), Err(WorkspaceError::Incomplete { .. })));
    let (again, made) = arena.init(arena.path()).unwrap();
    assert_eq!((again.id(), made.len()), (workspace.id(), 1));
    // A directory that only has the name gets an id of its own.
    std::fs::rename(arena.nixbox(), arena.path().join("aside")).unwrap();
    assert_ne!(arena.init(arena.path()).unwrap().0.id(), workspace.id());
}

/// State on a disk that is not mounted is not made anew elsewhere.
#[test]
fn a_state_that_the_registry_knows_and_that_is_gone_is_an_error_that_says_where_it_was() {
    let (arena, workspace) = Arena::workspace();
    let entries = Entries::open(&arena.places).unwrap();
    let identity = workspace.nixbox().unwrap().identity().unwrap();
    let (id, path) = (workspace.id(), workspace.root().to_owned());
    let state = Some(arena.path().join("unmounted").join(id.to_string()));
    entries.write(&RegisteredWorkspace { id, identity, path, state }).unwrap();
    for result in [arena.found().map(drop), arena.init(arena.path()).map(drop)] {
        let error = result.unwrap_err();
        assert!(matches!(error, WorkspaceError::StateGone { .. }), "{error}");
        assert!(error.to_string().contains("unmounted") && error.to_string().contains("mount it"), "{error}");
    }
}

#[test]
fn new_state_is_made_where_the_user_chose_and_stays_there() {
    let arena = Arena::new();
    let chosen = arena.path().join("fast/nixbox");
    let config = arena.places.user_config();
    std::fs::create_dir(config).unwrap();
    std::fs::set_permissions(config, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::write(config.join("config.toml"), format!("[state]\ndirectory = {chosen:?}\n")).unwrap();
    let directory = arena.path().join("project");
    std::fs::create_dir(&directory).unwrap();
    let (workspace, _) = arena.init(&directory).unwrap();
    let real = std::fs::canonicalize(&chosen).unwrap();
    assert_eq!(workspace.state().path(), real.join(workspace.id().to_string()));
    registry::Registry::open(&arena.places).unwrap().follow(&workspace).unwrap();
    // An edit of the key moves nothing.
    std::fs::write(config.join("config.toml"), "nonsense").unwrap();
    assert_eq!(arena.find(&directory).unwrap().state().path(), workspace.state().path());
    let other = arena.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let error = arena.init(&other).unwrap_err();
    assert!(matches!(error, WorkspaceError::Places(PlacesError::UserConfig(_))), "{error}");
}

#[test]
fn a_workspace_whose_directory_is_gone_is_found_by_its_id() {
    let (arena, workspace) = Arena::workspace();
    let registry = registry::Registry::open(&arena.places).unwrap();
    registry.follow(&workspace).unwrap();
    let of_id = || Workspace::of_id(workspace.id(), &arena.places);
    assert_eq!(of_id().unwrap().nixbox().unwrap().path(), workspace.nixbox().unwrap().path());
    assert!(matches!(registry.forget(workspace.id()), Err(RegistryError::NotGone { .. })));
    std::fs::remove_dir_all(arena.path()).unwrap();
    let found = of_id().unwrap();
    assert_eq!((found.root(), found.run()), (workspace.root(), workspace.run()));
    assert!(found.nixbox().is_err());
    registry.forget(workspace.id()).unwrap();
    assert!(!workspace.state().path().exists());
    assert!(matches!(registry.forget(workspace.id()), Err(RegistryError::Unknown { .. })));
    assert!(of_id().unwrap_err().to_string().contains("the registry has no workspace"));
}
