//! A workspace of a scenario's own, and nixbox run in it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::outside::{self, Thing};

/// The directory of all workspaces, on btrfs. After a power cut it has again what had reached the disk.
pub(super) const WORK: &str = "/run/work";
/// The state of root's workspaces.
pub(super) const STATE: &str = "/run/work/.state";
/// Where root's configuration is.
pub(super) const USER_CONFIG: &str = "/etc/nixbox";
/// `vmlinuz`, `initramfs.gz` and the key that they let in.
pub(super) const GUEST: &str = "/run/guest";
/// The variable that says what is run as nixbox.
pub(super) const PROGRAM: &str = "NESTED_NIXBOX";
/// A user that no machine has on which these tests run.
pub(super) const USER: u32 = 31_000;
/// The name of the workspace whose VM several scenarios share.
const SHARED: &str = "shared";

/// The credentials of every workspace, in the order of [`Workspace::configuration`].
pub(super) const TOKEN: &str = "quite-secret-token";
pub(super) const PLAIN: &str = "it's \"plain\" $HOME";
pub(super) const FILE: &str = "[default]\nkey = file-secret\n";

/// The program that is run as nixbox, where a workspace has none of its own.
pub(super) fn nixbox() -> PathBuf {
    std::env::var_os(PROGRAM).expect(PROGRAM).into()
}

/// A workspace.
pub(super) struct Workspace {
    pub(super) path: PathBuf,
    /// What is run as nixbox.
    program: PathBuf,
    /// The uid that runs it, where that is not root.
    user: Option<u32>,
}

/// What a run of nixbox, or of something else, came to.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) code: Option<i32>,
    pub(super) signal: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        Self {
            code: output.status.code(),
            signal: output.status.signal(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Said {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// It exited with this, and its stderr has these words.
    #[track_caller]
    pub(super) fn failed(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in {self:?}");
        }
    }
}

impl Workspace {
    /// A workspace of root's with a share, a read-only share, a disk and every kind of credential.
    pub(super) fn new(name: &str) -> Self {
        Self::of(name, nixbox(), None)
    }

    /// The same for a user who has a nixbox of their own.
    pub(super) fn of(name: &str, program: PathBuf, user: Option<u32>) -> Self {
        let path = Path::new(WORK).join(name);
        for directory in ["share", "data"] {
            fs::create_dir_all(path.join(directory)).unwrap();
        }
        fs::write(path.join("share/greeting"), "hello\n").unwrap();
        fs::write(path.join("data/table"), "1 2 3\n").unwrap();
        fs::write(path.join("credentials"), FILE).unwrap();
        fs::copy(Path::new(GUEST).join("key"), path.join("key")).unwrap();
        let owner = user.unwrap_or(0).to_string();
        outside::must("chown", &["-R", &format!("{owner}:{owner}"), path.to_str().unwrap()]);
        outside::must("chmod", &["600", path.join("key").to_str().unwrap()]);
        let workspace = Self { path, program, user };
        workspace.ok(&["init"]);
        workspace.configure(&Self::configuration(""));
        workspace
    }

    /// A directory that is not a workspace yet.
    pub(super) fn bare(name: &str) -> Self {
        let path = Path::new(WORK).join(name);
        fs::create_dir_all(&path).unwrap();
        Self { path, program: nixbox(), user: None }
    }

    /// A workspace that exists already.
    pub(super) fn existing(name: &str) -> Self {
        Self { path: Path::new(WORK).join(name), program: nixbox(), user: None }
    }

    /// Makes the workspace whose VM several scenarios share, and brings the VM up.
    pub(super) fn shared_up() -> Result<Self, String> {
        let made = std::panic::catch_unwind(|| Self::new(SHARED)).map_err(|_| "no workspace".to_owned())?;
        let said = made.run(&["up"]);
        if said.code == Some(0) { Ok(made) } else { Err(format!("{said:?}")) }
    }

    pub(super) fn shared() -> Self {
        Self::existing(SHARED)
    }

    /// A configuration with `more` tables at its end.
    pub(super) fn configuration(more: &str) -> String {
        format!(
            r#"
            [vm]
            vcpus = 1
            memory = "192MiB"
            kernel = "{GUEST}/vmlinuz"
            initramfs = "{GUEST}/initramfs.gz"
            cmdline = "console=ttyS0 quiet nokaslr mitigations=off"
            [[disks]]
            size = "64MiB"
            [[mounts]]
            source = "share"
            target = "~/share"
            [[mounts]]
            source = "data"
            target = "/data"
            readonly = true
            [guest]
            ssh-key = "key"
            [env]
            TOKEN = {{ from-env = "NESTED_TOKEN" }}
            PLAIN = '''{PLAIN}'''
            COMMAND = {{ command = ["printf", "%s", "from a command"] }}
            [credentials]
            outbound-key = true
            files = [{{ source = "credentials", target = "~/.aws/credentials" }}]
            {more}
            "#
        )
    }

    pub(super) fn configure(&self, text: &str) {
        fs::write(self.path.join(".nixbox/config.toml"), text).unwrap();
    }

    /// Whether the guest may reach nothing.
    fn is_off(&self) -> bool {
        fs::read_to_string(self.path.join(".nixbox/config.toml")).unwrap().contains("mode = \"off\"")
    }

    /// The id of this workspace.
    pub(super) fn id(&self) -> String {
        fs::read_to_string(self.path.join(".nixbox/workspace-id")).unwrap().trim().to_owned()
    }

    /// A directory of the state of this workspace.
    pub(super) fn state_directory(&self, name: &str) -> PathBuf {
        // A user who is not root has the state in the home.
        let above = match self.user {
            None => PathBuf::from(STATE),
            Some(_) => Path::new(WORK).join("home/.local/state/nixbox/workspaces"),
        };
        above.join(self.id()).join(name)
    }

    /// A program as this workspace's user, in this workspace.
    pub(super) fn program(&self, program: &Path) -> Command {
        let mut command = match self.user {
            None => Command::new(program),
            Some(user) => {
                let mut command = Command::new("setpriv");
                let user = user.to_string();
                command.args(["--reuid", &user, "--regid", &user, "--init-groups", "--inh-caps=-all"]);
                command.arg(program);
                command
            }
        };
        command.current_dir(&self.path).env("NESTED_TOKEN", TOKEN).stdin(Stdio::null());
        command
    }

    pub(super) fn nixbox(&self, arguments: &[&str]) -> Command {
        let mut command = self.program(&self.program);
        command.args(arguments);
        command
    }

    pub(super) fn run(&self, arguments: &[&str]) -> Said {
        let said = self.nixbox(arguments).output().unwrap().into();
        // Shown if the scenario fails.
        println!("nixbox {arguments:?}: {said:#?}");
        said
    }

    #[track_caller]
    pub(super) fn ok(&self, arguments: &[&str]) -> Said {
        let said = self.run(arguments);
        assert_eq!(said.code, Some(0), "{arguments:?}: {said:?}");
        said
    }

    /// Runs nixbox until it is killed at this event, or ends before. Returns whether it was killed.
    pub(super) fn killed_at(&self, event: usize, arguments: &[&str]) -> bool {
        let output = self.nixbox(arguments).env("NIXBOX_KILL_AT", event.to_string()).output().unwrap();
        let said = Said::from(output);
        println!("nixbox {arguments:?}, killed at {event}: {said:?}");
        assert!(said.signal == Some(9) || said.code == Some(0), "{said:?}");
        said.signal == Some(9)
    }

    /// Runs a script in the guest, which has to succeed, and returns what it prints.
    #[track_caller]
    pub(super) fn guest(&self, script: &str) -> String {
        self.ok(&["run", "--", "sh", "-ec", script]).stdout
    }

    /// `nixbox run`, with this on its stdin.
    pub(super) fn run_with(&self, input: &[u8], command: &[&str]) -> Output {
        let mut child = self
            .nixbox(&["run", "--"])
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || match stdin.write_all(input) {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                written => written.unwrap(),
            });
            child.wait_with_output().unwrap()
        })
    }

    pub(super) fn status(&self) -> Value {
        self.ok(&["status", "--json"]).json()
    }

    pub(super) fn state(&self) -> String {
        self.status()["state"].as_str().unwrap().to_owned()
    }

    pub(super) fn things(&self) -> Vec<Thing> {
        outside::of(&self.id())
    }

    /// Asserts that nothing exists on this host but what a workspace without a VM has: at most one disk.
    #[track_caller]
    pub(super) fn assert_down(&self) {
        assert_eq!(self.state(), "down");
        assert_eq!(self.things(), [], "left of {:?}", self.path);
        let mut left: Vec<String> = fs::read_dir(self.state_directory("run"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.retain(|name| !name.starts_with("disk-") && !name.starts_with("kept-"));
        assert!(left.is_empty(), "left of the VM: {left:?}");
        let names =
            fs::read_dir(self.state_directory("run")).unwrap().map(|entry| entry.unwrap().file_name());
        let disks = names.filter(|name| name.to_str().unwrap().starts_with("disk-")).count();
        assert!(disks <= 1, "{disks} disks are left");
    }

    /// Asserts that a VM runs with each thing that belongs to it, once, and that its guest has its credentials and shares.
    #[track_caller]
    pub(super) fn assert_up(&self) {
        assert_eq!(self.state(), "running");
        let things = self.things();
        let count = |wanted: fn(&Thing) -> bool| things.iter().filter(|thing| wanted(thing)).count();
        assert_eq!(count(|thing| matches!(thing, Thing::Tap(..))), 1, "{things:#?}");
        // An ordinary user's VM has a namespace without a name, and nothing of its network is on the host.
        let (named, off) = (usize::from(self.user.is_none()), self.is_off());
        let uplinks = if off { 0 } else { named };
        assert_eq!(count(|thing| matches!(thing, Thing::Namespace(_))), named, "{things:#?}");
        assert_eq!(count(|thing| matches!(thing, Thing::Uplink(..))), uplinks, "{things:#?}");
        assert_eq!(count(|thing| matches!(thing, Thing::Table(_))), 1 + uplinks, "{things:#?}");
        assert_eq!(count(|thing| matches!(thing, Thing::Claim(..))), 0, "{things:#?}");
        assert_eq!(count(|thing| matches!(thing, Thing::Memory(_))), 1, "{things:#?}");
        let roles = outside::roles(&self.id());
        let slot = self.status()["vm"]["slot"].to_string();
        let dhcp = format!("dhcp-{slot}");
        let mut expected = vec![dhcp.as_str(), "keeper", "share-0", "share-1", "vmm"];
        expected.extend((!off).then_some("follower"));
        if self.user.is_some() {
            expected.push("holder");
            expected.extend((!off).then_some("uplink"));
            // pasta and its parent.
            assert_eq!(roles.get("uplink").copied(), (!off).then_some(2), "{things:#?}");
        }
        expected.sort_unstable();
        assert_eq!(roles.keys().collect::<Vec<_>>(), expected, "{things:#?}");
        assert_eq!((roles["vmm"], roles[&format!("dhcp-{slot}")]), (1, 1), "{things:#?}");
        let told = self.guest("echo \"$TOKEN\"; cat ~/.aws/credentials ~/share/greeting /data/table");
        assert_eq!(told, format!("{TOKEN}\n{FILE}hello\n1 2 3\n"));
    }
}
