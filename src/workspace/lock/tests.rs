use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use super::*;

/// The state of a workspace, with the file of its lock.
fn state() -> (tempfile::TempDir, Folder) {
    let directory = tempfile::tempdir().unwrap();
    let state = Folder::open(directory.path()).unwrap();
    make_file(&state).unwrap();
    (directory, state)
}

#[test]
fn the_lock_is_held_by_one_and_names_its_holder() {
    let (_directory, state) = state();
    let held = lock(&state, "snapshot").unwrap();
    let error = lock(&state, "up").unwrap_err();
    let LockError::Locked(Some(holder)) = &error else { panic!("{error:?}") };
    assert_eq!((holder.pid, holder.operation.as_str()), (std::process::id(), "snapshot"));
    assert!(error.to_string().contains(&format!("process {} runs `snapshot` since 20", std::process::id())));
    drop(held);
    let held = lock(&state, "up").unwrap();
    std::fs::write(state.path_of(LOCK_FILE), "garbage").unwrap();
    assert!(matches!(lock(&state, "down"), Err(LockError::Locked(None))));
    drop(held);
    drop(lock(&state, "down").unwrap());
    assert!(state.path_of(LOCK_FILE).exists());
    std::fs::remove_file(state.path_of(LOCK_FILE)).unwrap();
    symlink("/tmp/elsewhere", state.path_of(LOCK_FILE)).unwrap();
    assert!(matches!(lock(&state, "down"), Err(LockError::File(FileError::Symlink { .. }))));
}

#[test]
fn the_lock_of_a_killed_process_is_free() {
    const ROLE: &str = "NIXBOX_TEST_LOCK_IN";
    if let Some(directory) = std::env::var_os(ROLE) {
        let _lock = lock(&Folder::open(Path::new(&directory)).unwrap(), "victim").unwrap();
        println!("\nlocked");
        loop {
            std::thread::park();
        }
    }
    let (directory, state) = state();
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "workspace::lock::tests::the_lock_of_a_killed_process_is_free", "--nocapture"])
        .env(ROLE, directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = io::BufReader::new(victim.stdout.take().unwrap());
    assert!(io::BufRead::lines(output).any(|line| line.unwrap() == "locked"));
    let LockError::Locked(Some(holder)) = lock(&state, "up").unwrap_err() else { panic!() };
    assert_eq!((holder.pid, holder.operation.as_str()), (victim.id(), "victim"));
    victim.kill().unwrap();
    victim.wait().unwrap();
    drop(lock(&state, "up").unwrap());
}

/// If nixbox is killed between the fork and the exec of a daemon, the child has its lock for a moment.
#[test]
fn a_lock_that_a_dead_process_left_to_a_child_is_waited_for() {
    let (_directory, state) = state();
    let mut dead = Command::new("true").spawn().unwrap();
    let pid = dead.id();
    dead.wait().unwrap();
    let path = state.path_of(LOCK_FILE);
    let mut left = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    FileExt::try_lock_exclusive(&left).unwrap();
    left.write_all(format!("{{\"pid\":{pid},\"operation\":\"up\",\"since_ms\":1}}").as_bytes()).unwrap();
    let inherited = left.try_clone().unwrap();
    let child = Command::new("sleep").arg("0.1").stdin(inherited).spawn();
    drop(left);
    drop(lock(&state, "recover").unwrap());
    assert!(child.unwrap().wait().unwrap().success());
}
