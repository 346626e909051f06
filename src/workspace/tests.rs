use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::{Command, Stdio};

use super::*;
use crate::testing::{Need, have};

fn workspace() -> (tempfile::TempDir, Workspace) {
    let directory = tempfile::tempdir().unwrap();
    let (workspace, _) = init(directory.path()).unwrap();
    (directory, workspace)
}

fn nixbox(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join(DIRECTORY)
}

#[test]
fn init_makes_a_workspace_whose_configuration_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let (workspace, made) = init(directory.path()).unwrap();
    assert_eq!(made.len(), 3);
    let facts = config::HostFacts { vcpus: 4, memory: 8 << 30, home: None };
    config::Config::load(workspace.nixbox(), workspace.root(), &facts).unwrap();
    for name in ["", "run", "snapshots", "ssh"] {
        let mode = std::fs::metadata(nixbox(&directory).join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700, "{name}");
    }
    assert_ne!(workspace.id(), self::workspace().1.id());
}

#[test]
fn every_commented_line_of_the_template_can_be_used() {
    let uncommented: String = template::CONFIG
        .lines()
        .skip_while(|line| !line.starts_with("# name"))
        .map(|line| format!("{}\n", line.strip_prefix("# ").unwrap_or(line)))
        .collect();
    let facts = config::HostFacts { vcpus: 4, memory: 8 << 30, home: Some("/home/me".into()) };
    let config = config::Config::parse(&uncommented, Path::new("c"), Path::new("/w"), &facts).unwrap();
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
    let (directory, _workspace) = workspace();
    std::fs::write(nixbox(&directory).join("ssh/vm_key"), "key").unwrap();
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(directory.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    git(&["init", "-q"]);
    let seen = git(&["status", "--porcelain", "--untracked-files=all"]);
    assert_eq!(seen, "?? .nixbox/.gitignore\n?? .nixbox/config.toml\n");
}

#[test]
fn init_overwrites_nothing_and_makes_what_is_missing() {
    let (directory, workspace) = workspace();
    std::fs::write(nixbox(&directory).join("config.toml"), "mine").unwrap();
    std::fs::remove_dir(nixbox(&directory).join("run")).unwrap();
    assert!(matches!(Workspace::find(directory.path()), Err(WorkspaceError::Incomplete { .. })));
    let (again, made) = init(directory.path()).unwrap();
    assert!(made.is_empty());
    assert_eq!(again.id(), workspace.id());
    assert_eq!(std::fs::read(nixbox(&directory).join("config.toml")).unwrap(), b"mine");
}

#[test]
fn a_workspace_is_found_from_any_directory_below() {
    let (directory, workspace) = workspace();
    let below = directory.path().join("a/b/c");
    std::fs::create_dir_all(&below).unwrap();
    symlink(&below, directory.path().join("link")).unwrap();
    for from in
        [below.clone(), directory.path().to_owned(), nixbox(&directory), directory.path().join("link")]
    {
        let found = Workspace::find(&from).unwrap();
        assert_eq!((found.id(), found.root()), (workspace.id(), workspace.root()), "{from:?}");
    }
    let (inner, _) = init(&below).unwrap();
    assert_eq!(Workspace::find(&below).unwrap().id(), inner.id());
    let nowhere = tempfile::tempdir().unwrap();
    assert!(matches!(Workspace::find(nowhere.path()), Err(WorkspaceError::None { .. })));
    assert!(matches!(Workspace::find(&below.join("absent")), Err(WorkspaceError::Start { .. })));
}

#[test]
fn a_directory_that_others_own_or_write_is_refused() {
    let mode =
        |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    let (directory, _) = workspace();
    let refused = || Workspace::find(directory.path()).unwrap_err();
    for bits in [0o770, 0o702, 0o777] {
        mode(&nixbox(&directory), bits);
        assert!(matches!(refused(), WorkspaceError::File(FileError::Writable { .. })));
        assert!(init(directory.path()).is_err());
    }
    mode(&nixbox(&directory), 0o755);
    mode(&nixbox(&directory).join("snapshots"), 0o777);
    assert!(matches!(refused(), WorkspaceError::File(FileError::Writable { .. })));
    mode(&nixbox(&directory).join("snapshots"), 0o700);
    Workspace::find(directory.path()).unwrap();
    if have(&[Need::Root]) {
        chown(nixbox(&directory), Some(12345), None).unwrap();
        assert!(matches!(refused(), WorkspaceError::File(FileError::Owner { owner: 12345, .. })));
    }
}

#[test]
fn links_and_other_files_in_the_place_of_directories_are_refused() {
    let (elsewhere, _) = workspace();
    let directory = tempfile::tempdir().unwrap();
    for target in [nixbox(&elsewhere), "dangling".into()] {
        symlink(target, nixbox(&directory)).unwrap();
        let below = directory.path().join("below");
        std::fs::create_dir_all(&below).unwrap();
        assert!(matches!(Workspace::find(&below), Err(WorkspaceError::File(FileError::Symlink { .. }))));
        assert!(matches!(init(directory.path()), Err(WorkspaceError::File(FileError::Symlink { .. }))));
        std::fs::remove_file(nixbox(&directory)).unwrap();
    }
    std::fs::write(nixbox(&directory), "").unwrap();
    assert!(matches!(Workspace::find(directory.path()), Err(WorkspaceError::File(FileError::Kind { .. }))));
    std::fs::remove_file(nixbox(&directory)).unwrap();

    for name in ["run", "workspace-id"] {
        let (directory, _) = workspace();
        let path = nixbox(&directory).join(name);
        std::fs::rename(&path, directory.path().join("moved")).unwrap();
        symlink(directory.path().join("moved"), &path).unwrap();
        assert!(matches!(
            Workspace::find(directory.path()),
            Err(WorkspaceError::File(FileError::Symlink { .. }))
        ));
    }
}

#[test]
fn a_malformed_id_is_refused() {
    let (directory, workspace) = workspace();
    let path = nixbox(&directory).join(ID_FILE);
    for text in [
        "",
        "x",
        "0123456789abcdef0123456789abcde",
        "0123456789ABCDEF0123456789abcdef\n",
        "+123456789abcdef0123456789abcdef\n",
    ] {
        std::fs::write(&path, text).unwrap();
        assert!(matches!(Workspace::find(directory.path()), Err(WorkspaceError::BadId { .. })), "{text:?}");
    }
    std::fs::write(&path, workspace.id().to_string()).unwrap();
    assert_eq!(Workspace::find(directory.path()).unwrap().id(), workspace.id());
}

#[test]
fn the_lock_is_held_by_one_and_names_its_holder() {
    let (directory, workspace) = workspace();
    let lock = workspace.lock("snapshot").unwrap();
    let other = Workspace::find(directory.path()).unwrap();
    let error = other.lock("up").unwrap_err();
    let LockError::Locked(Some(holder)) = &error else { panic!("{error:?}") };
    assert_eq!((holder.pid, holder.operation.as_str()), (std::process::id(), "snapshot"));
    assert!(error.to_string().contains(&format!("process {} runs `snapshot` since 20", std::process::id())));
    drop(lock);
    let lock = other.lock("up").unwrap();
    std::fs::write(nixbox(&directory).join(LOCK_FILE), "garbage").unwrap();
    assert!(matches!(workspace.lock("down"), Err(LockError::Locked(None))));
    drop(lock);
    drop(workspace.lock("down").unwrap());
    assert!(nixbox(&directory).join(LOCK_FILE).exists());
    std::fs::remove_file(nixbox(&directory).join(LOCK_FILE)).unwrap();
    symlink("/tmp/elsewhere", nixbox(&directory).join(LOCK_FILE)).unwrap();
    assert!(matches!(workspace.lock("down"), Err(LockError::File(FileError::Symlink { .. }))));
}

#[test]
fn the_lock_of_a_killed_process_is_free() {
    const ROLE: &str = "NIXBOX_TEST_LOCK_IN";
    if let Some(directory) = std::env::var_os(ROLE) {
        let _lock = Workspace::find(Path::new(&directory)).unwrap().lock("victim").unwrap();
        println!("\nlocked");
        loop {
            std::thread::park();
        }
    }
    let (directory, workspace) = workspace();
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "workspace::tests::the_lock_of_a_killed_process_is_free", "--nocapture"])
        .env(ROLE, directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = io::BufReader::new(victim.stdout.take().unwrap());
    assert!(io::BufRead::lines(output).any(|line| line.unwrap() == "locked"));
    let LockError::Locked(Some(holder)) = workspace.lock("up").unwrap_err() else { panic!() };
    assert_eq!((holder.pid, holder.operation.as_str()), (victim.id(), "victim"));
    victim.kill().unwrap();
    victim.wait().unwrap();
    drop(workspace.lock("up").unwrap());
}

#[test]
fn the_directory_for_sockets_is_short_and_private() {
    let (_directory, workspace) = workspace();
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

/// If nixbox is killed between the fork and the exec of a daemon, the child has its lock for a moment.
#[test]
fn a_lock_that_a_dead_process_left_to_a_child_is_waited_for() {
    let (directory, workspace) = workspace();
    let mut dead = Command::new("true").spawn().unwrap();
    let pid = dead.id();
    dead.wait().unwrap();
    let path = nixbox(&directory).join(LOCK_FILE);
    let mut left = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    FileExt::try_lock_exclusive(&left).unwrap();
    left.write_all(format!("{{\"pid\":{pid},\"operation\":\"up\",\"since_ms\":1}}").as_bytes()).unwrap();
    let inherited = left.try_clone().unwrap();
    let child = Command::new("sleep").arg("0.1").stdin(inherited).spawn();
    drop(left);
    drop(workspace.lock("recover").unwrap());
    assert!(child.unwrap().wait().unwrap().success());
}
