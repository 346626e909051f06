//! A workspace on the simulator, nixbox run in it, and checks of what must hold, made from outside on files, processes and
//! sockets. The checks do not rely on anything that nixbox could be wrong about.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A credential. It must never be in a snapshot, a journal or a log.
pub(crate) const SECRET: &str = "s3cret-4711-of-the-host";
/// What a person has typed in the guest, or a program of the guest has written. It must never be in a snapshot either.
pub(crate) const TYPED: &str = "ssh deploy@example-4712.com";
/// The content of the shared file.
pub(crate) const GREETING: &str = "hello from the host";
/// A limit that nothing here reaches, on a busy machine either.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Workspace {
    pub(crate) directory: tempfile::TempDir,
    id: String,
    /// The files of snapshots that were read whole, with their times and inodes when that was.
    read: RefCell<BTreeSet<(PathBuf, i64, i64, u64)>>,
}

/// What a run of nixbox came to.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Said {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A process that carries the workspace's mark.
#[derive(Debug)]
pub(crate) struct Marked {
    pub(crate) pid: i32,
    role: String,
    generation: u64,
    command: String,
}

impl Workspace {
    /// A new workspace, with this `vmm` in its configuration, with a share or without one.
    pub(crate) fn new(vmm: &str, share: bool) -> Self {
        Self::in_directory(tempfile::tempdir().unwrap(), vmm, share)
    }

    pub(crate) fn in_directory(directory: tempfile::TempDir, vmm: &str, share: bool) -> Self {
        let mut workspace = Self { directory, id: String::new(), read: RefCell::default() };
        workspace.ok(&["init", "--simulator"]);
        fs::create_dir(workspace.path().join("shared")).unwrap();
        fs::write(workspace.path().join("shared/greeting"), GREETING).unwrap();
        let config = workspace.nixbox().join("config.toml");
        let text = fs::read_to_string(&config).unwrap();
        let mounts = if share { "[[mounts]]\nsource = \"shared\"\ntarget = \"~/shared\"\n" } else { "" };
        let head = if share { "" } else { "mounts = []\n" };
        let text = text.replace("vmm = \"simulator\"", &format!("{head}vmm = \"{vmm}\""));
        let text = text.replace("a-secret-of-the-demonstration", SECRET);
        fs::write(&config, format!("{text}{mounts}")).unwrap();
        workspace.id = fs::read_to_string(workspace.nixbox().join("workspace-id")).unwrap().trim().to_owned();
        workspace
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn nixbox(&self) -> PathBuf {
        self.path().join(".nixbox")
    }

    /// The directory of its state.
    pub(crate) fn state(&self) -> PathBuf {
        let places = nixbox::workspace::places::StatePlaces::of_this_user().unwrap();
        places.state().join("workspaces").join(&self.id)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nixbox"));
        command
            .args(arguments)
            .current_dir(self.path())
            .env_remove("SUDO_UID")
            .env("NIXBOX_SCOPES", "none")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Said {
        self.command(arguments).output().unwrap().into()
    }

    pub(crate) fn ok(&self, arguments: &[&str]) -> Said {
        let said = self.run(arguments);
        assert_eq!(said.code, Some(0), "{arguments:?}: {said:?}");
        said
    }

    /// A command in the guest.
    pub(crate) fn guest(&self, script: &str) -> String {
        self.ok(&["run", "--", "sh", "-c", script]).stdout
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Runs nixbox until it is killed at this event, or ends before. Returns whether it was killed.
    #[cfg(feature = "failpoints")]
    pub(crate) fn killed_at(&self, arguments: &[&str], at: u64) -> bool {
        let mut command = self.command(arguments);
        let output = command.env("NIXBOX_KILL_AT", at.to_string()).output().unwrap();
        let killed = std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(9);
        assert!(killed || output.status.success(), "{arguments:?}: {:?}", Said::from(output));
        killed
    }

    pub(crate) fn status(&self) -> serde_json::Value {
        self.ok(&["status", "--json"]).json()
    }

    /// A text of the report of `nixbox status`.
    pub(crate) fn status_text(&self, key: &str) -> String {
        self.status()[key].as_str().unwrap().to_owned()
    }

    #[cfg(feature = "failpoints")]
    pub(crate) fn is_up(&self) -> bool {
        self.status()["state"] == "running"
    }

    /// Where sockets and logs are.
    pub(crate) fn runtime(&self) -> PathBuf {
        let user = rustix::process::geteuid().as_raw();
        let bases =
            ["/run".to_owned(), format!("/run/user/{user}"), "/dev/shm".to_owned(), "/tmp".to_owned()];
        let place = |base| Path::new(&base).join(format!("nixbox-{user}")).join(&self.id[..16]);
        bases.into_iter().map(place).find(|path| path.is_dir()).unwrap()
    }

    /// The guest's RAM.
    pub(crate) fn memory_files(&self) -> Vec<PathBuf> {
        let user = rustix::process::geteuid().as_raw();
        ["/dev/shm", "/run"]
            .iter()
            .flat_map(|base| names(&Path::new(base).join(format!("nixbox-{user}")).join(&self.id)))
            .collect()
    }

    pub(crate) fn marked(&self) -> Vec<Marked> {
        let mark = format!("NIXBOX_WORKSPACE={}", self.id);
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap() {
            let path = entry.unwrap().path();
            let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else {
                continue;
            };
            let environ = fs::read(path.join("environ")).unwrap_or_default();
            let environ = String::from_utf8_lossy(&environ);
            let value =
                |key: &str| environ.split('\0').find_map(|entry| entry.strip_prefix(key)).map(str::to_owned);
            if environ.split('\0').any(|entry| entry == mark) {
                let command = fs::read(path.join("cmdline")).unwrap_or_default();
                found.push(Marked {
                    pid,
                    role: value("NIXBOX_ROLE=").unwrap_or_default(),
                    generation: value("NIXBOX_GENERATION=")
                        .and_then(|text| text.parse().ok())
                        .unwrap_or_default(),
                    command: String::from_utf8_lossy(&command).replace('\0', " "),
                });
            }
        }
        found
    }

    /// The VMM's process.
    pub(crate) fn vmm(&self) -> i32 {
        let marked = self.marked();
        let vmm = marked.iter().find(|process| process.command.contains("simulator vmm"));
        vmm.unwrap_or_else(|| panic!("{marked:?}")).pid
    }

    fn slots(&self) -> usize {
        names(&self.runtime().join("slots")).len()
    }

    /// The snapshots, by the names in their directory. Beside them are the notes of which were read whole.
    pub(crate) fn snapshots(&self) -> Vec<String> {
        let all: Vec<String> = names(&self.state().join("snapshots")).iter().map(|path| name(path)).collect();
        let (seen, listed): (Vec<String>, Vec<String>) =
            all.into_iter().partition(|name| name.trim_start_matches('.').starts_with("seen-"));
        for name in seen {
            // Half written, it is written over when the snapshot is read next.
            let id = name.trim_end_matches(".unfinished").trim_matches('.');
            let id = id.trim_start_matches("seen-").trim_end_matches(".json");
            assert!(listed.iter().any(|listed| listed == id), "{name} is of no snapshot: {listed:?}");
        }
        listed
    }

    /// Checks everything that must hold after a recovery. Returns whether the VM is up.
    pub(crate) fn check(&self) -> bool {
        let status = self.status();
        assert_eq!(status["operation"], serde_json::Value::Null, "{status}");
        let up = match status["state"].as_str().unwrap() {
            "running" => true,
            "down" => false,
            other => panic!("{other}: {status}"),
        };
        let journal = self.ok(&["journal", "--json"]).json();
        assert_eq!(journal["verdict"]["kind"], "clean");
        if up {
            self.check_up(status["vm"]["generation"].as_u64().unwrap());
        } else {
            self.check_down();
        }
        self.check_snapshots();
        self.check_secrets();
        up
    }

    fn shared(&self) -> bool {
        fs::read_to_string(self.nixbox().join("config.toml")).unwrap().contains("[[mounts]]")
    }

    fn check_up(&self, generation: u64) {
        let shared = self.shared();
        let script = if shared { "echo $TOKEN; cat ~/shared/greeting" } else { "echo $TOKEN" };
        let wanted = if shared { format!("{SECRET}\n{GREETING}") } else { format!("{SECRET}\n") };
        assert_eq!(self.guest(script), wanted);
        let daemons: Vec<Marked> =
            self.marked().into_iter().filter(|process| process.command.contains(" simulator ")).collect();
        let of = |role: &str, what: &str| {
            let is = |process: &&Marked| {
                let supervises = process.command.contains("share-daemon supervise");
                process.role == role
                    && process.command.contains(what)
                    && supervises == what.contains("supervise")
            };
            daemons.iter().filter(is).map(|process| process.generation).collect::<Vec<_>>()
        };
        assert_eq!(of("vmm", "simulator vmm"), [generation], "{daemons:?}");
        let shares = if shared { vec![generation] } else { Vec::new() };
        // The supervisor of a share, and the daemon that it has started.
        assert_eq!(of("share-0", "share-daemon supervise"), shares, "{daemons:?}");
        assert_eq!(of("share-0", "simulator share"), shares, "{daemons:?}");
        assert_eq!(self.memory_files().len(), 1, "{:?}", self.memory_files());
        assert_eq!(self.slots(), 1);
        let mut run: BTreeMap<String, usize> = BTreeMap::new();
        for path in names(&self.state().join("run")) {
            let name = name(&path);
            assert!(!name.contains("partial") && !name.contains("new"), "{name}");
            *run.entry(name.split('-').next().unwrap().to_owned()).or_default() += 1;
        }
        assert_eq!((run.get("memory"), run.get("built")), (Some(&1), Some(&1)), "{run:?}");
        // The disk from before a restore stays until the VM has gone down, and one is kept then.
        let kept = run.remove("kept").unwrap_or_default();
        assert!(matches!(run.get("disk"), Some(1..=2)) && kept <= 1 && run.len() == 3, "{run:?}, {kept}");
        for path in names(&self.runtime()).iter().map(|path| name(path)) {
            let known =
                ["guest", "guest.sock", "slots", "tap-vm"].iter().any(|known| path.starts_with(known));
            let ours = path.contains(&format!("-{generation}.")) || path.ends_with(".log");
            assert!(known || ours, "{path} is left of another generation than {generation}");
        }
    }

    fn check_down(&self) {
        // A killed process is gone a moment after the command that killed it has ended.
        let since = Instant::now();
        while !self.marked().is_empty() {
            assert!(since.elapsed() < LIMIT, "{:?}", self.marked());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(self.memory_files(), Vec::<PathBuf>::new());
        assert_eq!(self.slots(), 0);
        let run: Vec<String> = names(&self.state().join("run")).iter().map(|path| name(path)).collect();
        let (disks, kept): (Vec<_>, Vec<_>) = run.iter().partition(|name| name.starts_with("disk-"));
        assert!(disks.len() <= 1 && kept.len() <= 1, "{run:?}");
        assert!(kept.iter().all(|name| name.starts_with("kept-")), "{run:?}");
        assert!(run.iter().all(|name| !name.contains("partial")), "{run:?}");
        let left: Vec<String> = names(&self.runtime())
            .iter()
            .map(|path| name(path))
            .filter(|name| !name.ends_with(".log") && name != "slots")
            .collect();
        assert_eq!(left, Vec::<String>::new());
    }

    fn check_snapshots(&self) {
        for listed in self.snapshots() {
            let directory = self.state().join("snapshots").join(&listed);
            assert!(listed.bytes().all(|byte| byte.is_ascii_digit()), "{listed} is left in the list");
            let text = fs::read_to_string(directory.join("manifest.json")).unwrap();
            let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
            let mut wanted: Vec<String> = vec!["manifest.json".into()];
            for file in manifest["files"].as_array().unwrap() {
                let path = directory.join(file["name"].as_str().unwrap());
                wanted.push(name(&path));
                assert_eq!(fs::metadata(&path).unwrap().len(), file["size"].as_u64().unwrap(), "{path:?}");
                if self.is_new(&path) {
                    assert_eq!(root_of_pieces(&path), file["pieces"].as_str().unwrap(), "{path:?}");
                    self.holds_no_secret(&path);
                }
            }
            wanted.sort();
            let mut there: Vec<String> = names(&directory).iter().map(|path| name(path)).collect();
            there.retain(|name| name != "label.json");
            there.sort();
            assert_eq!(there, wanted);
        }
    }

    /// Whether a file was written since it was read last. The kernel notes the time of every change.
    fn is_new(&self, path: &Path) -> bool {
        let status = fs::metadata(path).unwrap();
        self.read.borrow_mut().insert((path.to_owned(), status.ctime(), status.ctime_nsec(), status.ino()))
    }

    fn check_secrets(&self) {
        for directory in [self.state().join("journal"), self.runtime(), self.state().join("snapshots")] {
            // What is in a snapshot was searched with it.
            for path in names(&directory).iter().filter(|path| path.is_file()) {
                self.holds_no_secret(path);
            }
        }
    }

    fn holds_no_secret(&self, path: &Path) {
        let key = fs::read_to_string(self.state().join("ssh/vm_key")).unwrap();
        // A line of the key's body that no public key has.
        for secret in [SECRET, TYPED, key.lines().nth(3).unwrap()] {
            assert_eq!(count(path, secret), 0, "{} holds a secret", path.display());
        }
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the workspace is kept: {}", self.path().display());
            for process in self.marked() {
                println!("{process:?}");
            }
        }
        // A test that failed may have left the workspace elsewhere.
        if self.path().exists() {
            self.run(&["down", "--quiet"]);
        }
        for process in self.marked() {
            // Left by a failed test. It may have ended by itself.
            rustix::process::Pid::from_raw(process.pid)
                .map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
        }
        if !std::thread::panicking() {
            fs::remove_dir_all(self.path()).ok();
            forget_below(self.path());
        }
    }
}

/// Runs nixbox in a directory, without a terminal, and without a systemd scope for its daemons.
pub(crate) fn nixbox_in(directory: impl AsRef<Path>, arguments: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nixbox"));
    command
        .args(arguments)
        .current_dir(directory)
        .env_remove("SUDO_UID")
        .env("NIXBOX_SCOPES", "none")
        .stdin(Stdio::null());
    command.output().unwrap().into()
}

/// Removes what nixbox keeps of the workspaces whose directories were at or beside this path, and are gone.
pub(crate) fn forget_below(place: &Path) {
    let nixbox = |arguments: &[&str]| nixbox_in("/", arguments);
    let place = place.to_str().unwrap();
    for one in nixbox(&["list", "--json"]).json().as_array().unwrap() {
        if one["directory"].as_str().unwrap().starts_with(place) {
            nixbox(&["forget", one["id"].as_str().unwrap()]);
        }
    }
}

pub(crate) fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// What is in a directory; nothing if there is none.
pub(crate) fn names(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// The root over the pieces of a file, as the format of manifests defines it and without nixbox's own code.
fn root_of_pieces(path: &Path) -> String {
    fn top(pieces: &[[u8; 32]]) -> [u8; 32] {
        if let [alone] = pieces {
            return *alone;
        }
        let (left, right) = pieces.split_at(pieces.len().next_power_of_two() / 2);
        blake3::derive_key("nixbox snapshot: node of pieces", &[top(left), top(right)].concat())
    }
    let bytes = fs::read(path).unwrap();
    let mut pieces: Vec<_> = bytes.chunks(65_536).map(|piece| blake3::hash(piece).into()).collect();
    if pieces.is_empty() {
        pieces.push(blake3::hash(b"").into());
    }
    let length = (bytes.len() as u64).to_le_bytes();
    let root = blake3::derive_key("nixbox snapshot: root of pieces", &[&top(&pieces)[..], &length].concat());
    blake3::Hash::from(root).to_hex().to_string()
}

/// How often a file holds a text. Holes hold nothing.
pub(crate) fn count(path: &Path, text: &str) -> usize {
    let file = fs::File::open(path).unwrap();
    let (mut from, mut found) = (0, 0);
    while let Ok(begin) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(from)) {
        from = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(begin)).unwrap();
        let mut bytes = vec![0; usize::try_from(from - begin).unwrap()];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, begin).unwrap();
        let first = text.as_bytes()[0];
        let mut rest = bytes.as_slice();
        while let Some(at) = rest.iter().position(|byte| *byte == first) {
            found += usize::from(rest[at..].starts_with(text.as_bytes()));
            rest = &rest[at + 1..];
        }
    }
    found
}

/// Writes a line past the harness, which hides what a passing test prints.
pub(crate) fn tell(line: &str) {
    use std::io::Write;
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Says that a test cannot run here. Panics where `NIXBOX_TESTS=all` promises that nothing is missing.
pub(crate) fn skipped(test: &str, want: &str) {
    let promised = std::env::var("NIXBOX_TESTS").is_ok_and(|text| text == "all");
    assert!(!promised, "{test} needs {want}, and all was promised to be there");
    tell(&format!("{test}: skipped, for want of {want}"));
}
