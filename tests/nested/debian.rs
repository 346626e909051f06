//! The guest that `nixbox image build` makes of Debian's packages. To make it takes some minutes, so it is kept from one run to the
//! next, and made anew when what it is made of has changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// The release and the packages: Docker with compose, a JDK, and busybox for the container image of the scenario.
const SUITE: &str = "trixie";
const PACKAGES: &str = "docker.io,docker-cli,docker-compose,iptables,openjdk-21-jdk-headless,busybox-static";
/// The file of the guest that is put into its place last.
const LAST: &str = "disk.img";

/// Why there is no such guest.
#[derive(Debug, thiserror::Error)]
pub(super) enum DebianError {
    #[error("needs mmdebstrap (Debian package mmdebstrap)")]
    NoMmdebstrap,
    #[error("needs a mirror of Debian to make its guest: {0}")]
    Failed(String),
}

/// Returns the directory of the guest, with `vmlinuz`, `initramfs` and `disk.img`. The guest is made if it is not there.
pub(super) fn guest() -> Result<PathBuf, DebianError> {
    let directory = cache().join(format!("debian-{}", digest()));
    if directory.join(LAST).exists() {
        return Ok(directory);
    }
    let search = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&search).any(|directory| directory.join("mmdebstrap").is_file()) {
        return Err(DebianError::NoMmdebstrap);
    }
    // A guest that was made of something else is not used again.
    for former in fs::read_dir(cache()).into_iter().flatten().map(|entry| entry.unwrap().path()) {
        if former.file_name().unwrap().to_string_lossy().starts_with("debian-") {
            fs::remove_dir_all(former).unwrap();
        }
    }
    let state = directory.join("state");
    fs::create_dir_all(&state).unwrap();
    println!("the Debian guest is made in {}", directory.display());
    let made = nixbox(&state)
        .args(["image", "build", &format!("--debian={SUITE}"), "--include", PACKAGES])
        .args(["--name", "debian", "--size", "6GiB", "--json"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr).trim().to_owned();
        fs::remove_dir_all(directory).unwrap();
        return Err(DebianError::Failed(said));
    }
    let told: Value = serde_json::from_slice(&made.stdout).unwrap();
    let images = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().path().join("images"));
    let image = images.chain([state.join("images")]).find(|images| images.is_dir()).unwrap();
    let image = image.join(told["id"].as_str().unwrap());
    for name in ["vmlinuz", "initramfs", LAST] {
        fs::rename(image.join(name), directory.join(name)).unwrap();
    }
    fs::remove_dir_all(state).unwrap();
    Ok(directory)
}

/// A nixbox whose state is in this directory. Root's is at a fixed place, so the directory is mounted there for this nixbox alone.
fn nixbox(state: &Path) -> Command {
    let nixbox = env!("CARGO_BIN_EXE_nixbox");
    if rustix::process::geteuid().is_root() {
        let mut command = Command::new("unshare");
        let script = "mkdir -p /var/lib/nixbox; mount --bind \"$0\" /var/lib/nixbox; exec \"$@\"";
        command.args(["--mount", "sh", "-ec", script]).arg(state).arg(nixbox).env_remove("SUDO_UID");
        command
    } else {
        let mut command = Command::new(nixbox);
        command.env("XDG_STATE_HOME", state);
        command
    }
}

/// Where the guest is kept: outside of the repository, because a checkout is removed more often than the guest changes.
fn cache() -> PathBuf {
    let home = || Path::new(&std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache");
    std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("nixbox-tests")
}

/// Changes with the packages, with what nixbox puts into an image, and with the kernels that are installed.
fn digest() -> String {
    let mut hasher = blake3::Hasher::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/image");
    let mut parts: Vec<_> = [source.clone(), source.join("guest")]
        .iter()
        .flat_map(|directory| fs::read_dir(directory).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    parts.sort();
    for path in parts {
        hasher.update(&fs::read(path).unwrap());
    }
    let mut kernels: Vec<_> =
        fs::read_dir("/boot").unwrap().map(|entry| entry.unwrap().file_name()).collect();
    kernels.sort();
    for kernel in kernels {
        hasher.update(kernel.as_encoded_bytes());
    }
    for text in [SUITE, PACKAGES] {
        hasher.update(text.as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}
