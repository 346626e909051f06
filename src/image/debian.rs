//! Debian packages → the archive of a root file system, by `mmdebstrap`, which needs no root where the host lets ordinary users
//! have user namespaces.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use tokio::process::Command;

use crate::host::program::{self, ProgramError};
use crate::world::{ImageName, Interrupt, InvalidValue};

/// How long `mmdebstrap` may take. It downloads what is asked for, and unpacks and configures it.
const LIMIT: Duration = Duration::from_secs(2 * 3600);
/// The packages that make a system in which people and services live: an init, devices, sessions, root's rights, certificates and
/// the programs that look at processes and networks. Without `openssh-server` the guest has nixbox's SSH server.
const BASE: [&str; 9] = [
    "systemd-sysv",
    "udev",
    "dbus",
    "libpam-systemd",
    "sudo",
    "ca-certificates",
    "iproute2",
    "procps",
    "kmod",
];
/// The variables of the environment that `apt` takes its proxies from.
const PROXIES: [&str; 6] = ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];
/// Takes out what is not the image's: host keys and the file of the resolver, which are made when the guest boots, the name of
/// this machine, and the setting of apt that only this command wants.
const CLEAN: &str = r#"
    rm -f "$1"/etc/ssh/ssh_host_*_key "$1"/etc/ssh/ssh_host_*_key.pub "$1"/etc/resolv.conf
    rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap
    echo guest > "$1"/etc/hostname
    chmod 644 "$1"/etc/hostname"#;

/// A release of Debian or of a distribution that is made like it: `trixie`, `stable`, `noble`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebianSuite(String);

impl FromStr for DebianSuite {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if text.starts_with(|first: char| first.is_ascii_lowercase()) && text.bytes().all(plain) {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidValue::new(text, "is not the name of a release, as trixie is"))
    }
}

impl fmt::Display for DebianSuite {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The name of a package, with the version (`=1.2-3`) or the release (`/trixie-backports`) that is wanted of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebianPackage(String);

impl FromStr for DebianPackage {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
        let wanted = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.~:".contains(&byte);
        let (package, more) = text.split_once(['=', '/']).map_or((text, "any"), |(name, more)| (name, more));
        let begins = package.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit());
        if begins && package.bytes().all(name) && !more.is_empty() && more.bytes().all(wanted) {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidValue::new(text, "is not the name of a Debian package"))
    }
}

/// The address of a mirror of Debian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebianMirror(String);

impl FromStr for DebianMirror {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let known = ["http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme));
        match known {
            Some(rest) if !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Ok(Self(text.to_owned()))
            }
            _ => Err(InvalidValue::new(
                text,
                "is not the address of a mirror: it begins with http:// or https://",
            )),
        }
    }
}

/// What a root file system is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebianSystem {
    /// The release.
    pub suite: DebianSuite,
    /// The packages beside those that every system has.
    pub packages: Vec<DebianPackage>,
    /// Where the packages are; without it `mmdebstrap` decides.
    pub mirror: Option<DebianMirror>,
}

impl DebianSystem {
    /// The name of an image of it.
    pub(super) fn image_name(&self) -> Option<ImageName> {
        format!("debian-{}", self.suite).parse().ok()
    }

    fn included(&self) -> String {
        let own = self.packages.iter().map(|package| package.0.as_str());
        BASE.into_iter().chain(own).collect::<Vec<_>>().join(",")
    }

    fn command(&self, program: &Path, archive: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", program::SYSTEM_DIRECTORIES.join(":"))
            .env("LC_ALL", "C")
            .envs(PROXIES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            // /tmp is often in memory, and a system has gigabytes. A directory of nixbox's own is closed to the other users that
            // the system belongs to while it is made.
            .env("TMPDIR", std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into()))
            .args(["--variant=minbase", "--format=tar"])
            .args(["--aptopt=APT::Install-Recommends \"false\"", "--aptopt=Acquire::Retries \"1\""])
            .arg(format!("--customize-hook={CLEAN}"))
            .arg(format!("--include={}", self.included()))
            .arg(&self.suite.0)
            .arg(archive)
            .args(self.mirror.as_ref().map(|mirror| &mirror.0))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Makes the archive of the system.
    ///
    /// # Errors
    /// If `mmdebstrap` is not installed, or cannot make the system; its reason is part of the error.
    pub(super) async fn make(&self, archive: &Path, interrupt: &Interrupt) -> Result<(), ProgramError> {
        let path = mmdebstrap()?;
        let child = self.command(&path, archive).spawn().map_err(|source| ProgramError::Run {
            action: "start",
            path: path.clone(),
            source,
        })?;
        program::finish(child, &path, &[], LIMIT, interrupt).await.map(drop).map_err(|error| match error {
            ProgramError::Failed { path, status, stderr } => {
                ProgramError::Failed { path, status, stderr: reasons(stderr) }
            }
            error => error,
        })
    }
}

/// The errors of `apt` in what `mmdebstrap` wrote; all of it if there are none. mmdebstrap's own errors only repeat the command
/// that failed.
fn reasons(stderr: String) -> String {
    let own = ["E: apt-get ", "E: setup failed", "E: mmdebstrap "];
    let of_apt = stderr
        .lines()
        .filter(|line| line.starts_with("E: ") && !own.iter().any(|start| line.starts_with(start)));
    let errors: Vec<_> = of_apt.map(|line| &line[3..]).collect();
    if errors.is_empty() { stderr } else { errors.join("; ") }
}

impl fmt::Display for DebianSystem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Debian packages of {}", self.suite)?;
        for (index, package) in self.packages.iter().enumerate() {
            write!(formatter, "{}{}", if index == 0 { ": " } else { ", " }, package.0)?;
        }
        Ok(())
    }
}

/// Where `mmdebstrap` is.
///
/// # Errors
/// [`ProgramError::Missing`].
pub(super) fn mmdebstrap() -> Result<PathBuf, ProgramError> {
    program::locate("mmdebstrap", "mmdebstrap", program::path_directories())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_a_package_and_a_mirror_are_never_options_and_never_several() {
        for good in ["trixie", "stable", "bookworm-backports", "noble"] {
            assert!(good.parse::<DebianSuite>().is_ok(), "{good}");
        }
        for bad in ["", "-v", "--help", "trixie main", "../x", "Trixie", "a,b"] {
            assert!(bad.parse::<DebianSuite>().is_err(), "{bad}");
        }
        for good in
            ["docker.io", "g++", "openjdk-17-jdk-headless", "7zip", "git=1:2.47.3-0+deb13u1", "jq/trixie"]
        {
            assert!(good.parse::<DebianPackage>().is_ok(), "{good}");
        }
        for bad in ["", "-y", "a,b", "a b", "a=", "Docker", "a;b", "?essential", "a=1=2", "a/b/c"] {
            assert!(bad.parse::<DebianPackage>().is_err(), "{bad}");
        }
        for good in ["http://deb.debian.org/debian", "https://mirror.example:8080/debian/"] {
            assert!(good.parse::<DebianMirror>().is_ok(), "{good}");
        }
        for bad in
            ["", "http://", "-", "deb http://a b c", "file:///etc", "http://a/ b", "/etc/apt/sources.list"]
        {
            assert!(bad.parse::<DebianMirror>().is_err(), "{bad}");
        }
    }

    #[test]
    fn mmdebstrap_is_asked_for_the_base_and_for_what_a_person_names() {
        let system = DebianSystem {
            suite: "trixie".parse().unwrap(),
            packages: vec!["docker.io".parse().unwrap(), "jq".parse().unwrap()],
            mirror: Some("http://mirror.example/debian".parse().unwrap()),
        };
        assert_eq!(system.image_name().unwrap().to_string(), "debian-trixie");
        assert_eq!(system.to_string(), "Debian packages of trixie: docker.io, jq");
        let command = system.command(Path::new("/usr/bin/mmdebstrap"), Path::new("/state/archive"));
        let words: Vec<_> = command.as_std().get_args().map(|word| word.to_str().unwrap()).collect();
        let include = words.iter().find_map(|word| word.strip_prefix("--include=")).unwrap();
        assert!(include.starts_with("systemd-sysv,") && include.ends_with(",kmod,docker.io,jq"), "{include}");
        assert_eq!(words[words.len() - 3..], ["trixie", "/state/archive", "http://mirror.example/debian"]);
    }
    #[test]
    fn an_error_says_what_apt_found() {
        let stderr = "I: running apt-get update...\nErr:2 http://mirror.example nosuch Release\n\
                      E: The repository 'http://mirror.example nosuch Release' does not have a Release file.\n\
                      E: apt-get update --error-on=any failed\nE: mmdebstrap failed to run\n";
        let repository =
            "The repository 'http://mirror.example nosuch Release' does not have a Release file.";
        assert_eq!(reasons(stderr.to_owned()), repository);
        assert_eq!(reasons("newuidmap is missing".to_owned()), "newuidmap is missing");
    }
}
