//! Real SSH servers for tests. Each has homes, users and processes of its own, which are removed when it is dropped.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use russh::keys::PrivateKey;
use tempfile::TempDir;

use super::channel::{Endpoint, Limits, SshSession, dial_here};
use super::host_key::Pin;
use super::key;
use super::ready::until_ready;
use super::shell::Shell;
use crate::testing::{Need, have, open_directory};
use crate::world::Interrupt;

/// The system behind the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// dropbear, in a root directory that contains only busybox. This is the smallest guest that nixbox supports.
    Busybox,
    /// OpenSSH, with this machine's own programs, and `sudo` for `user`.
    Debian,
    /// `Debian` without `sudo`.
    DebianWithoutSudo,
}

/// An SSH server, and the system that stands for a guest.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) key: Arc<PrivateKey>,
    pub(crate) directory: TempDir,
    /// The directory on this machine that contains the homes of the server's users.
    homes: PathBuf,
    process: Child,
}

/// A free port of the loopback, below the range of ports that the kernel gives out.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = u16::try_from(std::process::id() % 100).unwrap() * 100;
    loop {
        let port = 20_000 + (base + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

fn sh(script: &str) {
    let output = Command::new("sh").arg("-ec").arg(script).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Server {
    /// Starts a server. If this user is not root or a program is missing, prints why and returns `None`.
    pub(crate) fn start(kind: Kind) -> Option<Self> {
        let programs = match kind {
            Kind::Busybox => &["unshare", "busybox", "dropbear"][..],
            Kind::Debian => &["unshare", "sshd", "sudo", "swapoff"],
            Kind::DebianWithoutSudo => &["unshare", "sshd", "swapoff"],
        };
        let needs: Vec<Need> =
            [Need::Root].into_iter().chain(programs.iter().map(|name| Need::Program(name))).collect();
        if !have(&needs) {
            return None;
        }
        let directory = open_directory();
        let key = Arc::new(key::generate().unwrap());
        let port = free_port();
        let (homes, script) = match kind {
            Kind::Busybox => busybox(directory.path(), port),
            Kind::Debian => debian(directory.path(), port, true),
            Kind::DebianWithoutSudo => debian(directory.path(), port, false),
        };
        for (user, id) in [("root", 0), ("user", 1000)] {
            let home = homes.join(user);
            let ssh = home.join(".ssh");
            fs::create_dir_all(&ssh).unwrap();
            fs::write(ssh.join("authorized_keys"), key::public_text(&key).unwrap()).unwrap();
            for path in [&home, &ssh, &ssh.join("authorized_keys")] {
                chown(path, Some(id), Some(id)).unwrap();
                let mode = if path.is_dir() { 0o700 } else { 0o600 };
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            }
        }
        let process = Command::new("unshare")
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--propagation",
                "private",
                "sh",
                "-ec",
                &script,
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let address = (Ipv4Addr::LOCALHOST, port).into();
        Some(Self { address, key, directory, homes, process })
    }

    /// The file that stands for the guest's list of its swap.
    pub(crate) fn swaps(&self) -> PathBuf {
        self.directory.path().join("swaps")
    }

    /// A file in the home of a user.
    pub(crate) fn home(&self, user: &str, name: &str) -> PathBuf {
        self.homes.join(user).join(name)
    }

    pub(crate) fn endpoint(&self, user: &str) -> Endpoint {
        Endpoint {
            address: self.address,
            dial: Arc::new(dial_here),
            user: user.parse().unwrap(),
            key: Arc::clone(&self.key),
            pin: Pin::new(self.directory.path().join("pin")),
        }
    }

    pub(crate) async fn connect(&self, user: &str) -> Shell {
        let endpoint = &self.endpoint(user);
        let attempt = async move |limits: Limits| {
            Ok(Shell::greet(SshSession::open(endpoint, limits).await?, limits.connect).await?)
        };
        let shell = until_ready(LIMIT.into(), Limits::default(), &Interrupt::new(), attempt).await;
        shell.unwrap_or_else(|error| panic!("{error:?}\n{}", self.log()))
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

/// More time than any step of these tests takes on a busy machine.
pub(crate) const LIMIT: std::time::Duration = std::time::Duration::from_secs(30);

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the log of the SSH server:\n{}", self.log());
        }
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

const PASSWD: &str = "root::0:0:root:HOMES/root:/bin/sh\nuser::1000:1000:user:HOMES/user:/bin/sh\n";

/// A stand-in that logs its arguments. The real fstrim would trim this machine's disks.
const FSTRIM: &str = "#!/bin/sh\necho \"$@\" >> LOG\n";

/// The list of the kernel without an entry. A test server has one of its own, so that no test switches the swap of this
/// machine.
const SWAPS: &str = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
/// Stand-ins that change the list. A busybox that has the programs itself does not use them.
const SWAPOFF: &str = "#!/bin/sh\ncase $1 in */busy) echo 'it is busy' >&2; exit 1 ;; esac\n\
    l=$(grep -v \"^$1 \" /proc/swaps); printf '%s\\n' \"$l\" > /proc/swaps\n";
const SWAPON: &str = "#!/bin/sh\np=-2\n[ \"$1\" != -p ] || { p=$2; shift 2; }\n\
    case $1 in */gone) echo 'it is gone' >&2; exit 1 ;; esac\n\
    printf '%s partition 1024 0 %s\\n' \"$1\" \"$p\" >> /proc/swaps\n";

fn executable(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn busybox(directory: &Path, port: u16) -> (PathBuf, String) {
    let root = directory.join("root");
    for name in ["bin", "dev", "proc", "tmp", "run", "etc", "usr/sbin", "home"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let applets = Command::new("/bin/busybox").arg("--list").output().unwrap().stdout;
    for applet in
        String::from_utf8(applets).unwrap().lines().filter(|applet| !matches!(*applet, "busybox" | "fstrim"))
    {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    executable(&root.join("bin/fstrim"), &FSTRIM.replace("LOG", "/run/fstrim.log"));
    let swaps = directory.join("swaps");
    fs::write(&swaps, SWAPS).unwrap();
    let swaps = swaps.display();
    fs::write(root.join("etc/passwd"), PASSWD.replace("HOMES", "/home")).unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nusers:x:1000:\n").unwrap();
    fs::write(root.join("etc/shells"), "/bin/sh\n").unwrap();
    let path = root.display();
    sh(&format!(
        "cp /usr/sbin/dropbear '{path}/usr/sbin/'
         for l in $(ldd /usr/sbin/dropbear | grep -o '/[^ ]*') /lib/x86_64-linux-gnu/libnss_files.so.2; do
           mkdir -p \"{path}${{l%/*}}\"; cp -L \"$l\" \"{path}$l\"
         done
         dropbearkey -t ed25519 -f '{path}/etc/hostkey' 2>&1
         chmod -R go+rX '{path}'"
    ));
    let script = format!(
        "mount --bind '{path}' '{path}'; mount -t proc proc '{path}/proc'; mount --rbind /dev '{path}/dev'
         mount -t tmpfs tmpfs '{path}/dev/shm'; mount --bind '{swaps}' '{path}/proc/swaps'
         exec env -i PATH=/bin /usr/sbin/chroot '{path}' /usr/sbin/dropbear -F -E -r /etc/hostkey -p 127.0.0.1:{port}"
    );
    (root.join("home"), script)
}

fn debian(directory: &Path, port: u16, sudo: bool) -> (PathBuf, String) {
    let homes = directory.join("homes");
    let path = directory.display();
    fs::create_dir_all(&homes).unwrap();
    fs::write(directory.join("passwd"), PASSWD.replace("HOMES", &homes.display().to_string())
        + "sshd:x:101:65534::/run/sshd:/usr/sbin/nologin\nnobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n").unwrap();
    fs::write(directory.join("shadow"), "root:*:19000:0:99999:7:::\nuser:*:19000:0:99999:7:::\n").unwrap();
    let rule = if sudo { "user ALL=(ALL) NOPASSWD: ALL\n" } else { "" };
    fs::write(directory.join("sudoers"), format!("root ALL=(ALL) ALL\n{rule}")).unwrap();
    fs::set_permissions(directory.join("sudoers"), fs::Permissions::from_mode(0o440)).unwrap();
    executable(&directory.join("fstrim"), &FSTRIM.replace("LOG", &format!("{path}/fstrim.log")));
    executable(&directory.join("swapoff"), SWAPOFF);
    executable(&directory.join("swapon"), SWAPON);
    fs::write(directory.join("swaps"), SWAPS).unwrap();
    sh(&format!(
        "ssh-keygen -q -t ed25519 -N '' -f '{path}/hostkey'; ssh-keygen -q -t ecdsa -N '' -f '{path}/hostkey2'
         chmod 755 '{path}/homes'; chmod 644 '{path}/passwd'"
    ));
    fs::write(directory.join("sshd_config"), format!(
        "ListenAddress 127.0.0.1:{port}\nHostKey {path}/hostkey\nHostKey {path}/hostkey2\nUsePAM no\nPidFile none\n\
         PermitRootLogin prohibit-password\nMaxStartups 100\n"
    )).unwrap();
    let script = format!(
        "cd '{path}'; for f in passwd shadow sudoers; do mount --bind $f /etc/$f; done
         mount --bind fstrim /usr/sbin/fstrim; mount -t tmpfs tmpfs /run; mkdir -p /run/sshd
         mount -t tmpfs tmpfs /dev/shm; mount -t proc proc /proc; mount --bind swaps /proc/swaps
         for p in swapoff swapon; do mount --bind $p \"$(command -v $p)\"; done
         exec /usr/sbin/sshd -D -e -f '{path}/sshd_config'"
    );
    (homes, script)
}
