//! The unit of systemd that a process is in.
//!
//! The unit is in `/proc/self/cgroup`, see cgroups(7).

use crate::files::FileError;

/// A service or a scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its name, such as `backup.service`.
    pub name: String,
    /// Whether the manager of a user has it, and not the manager of the system.
    pub of_user: bool,
}

impl Unit {
    /// The name, if it is a service. A process of a user's session is in a scope, and the manager of the user's units,
    /// `user@UID.service`, has further units in it; neither is meant.
    #[must_use]
    pub fn service(&self) -> Option<&str> {
        (self.name.ends_with(".service") && !self.name.starts_with("user@")).then_some(&*self.name)
    }
}

/// The text of `/proc/self/cgroup`; empty on a kernel without cgroups.
///
/// # Errors
/// If the file cannot be read.
pub fn cgroup() -> Result<String, FileError> {
    const PATH: &str = "/proc/self/cgroup";
    match std::fs::read_to_string(PATH) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        read => read.map_err(FileError::system("read", PATH)),
    }
}

/// The unit that a text of `/proc/self/cgroup` names.
#[must_use]
pub fn unit_in(cgroup: &str) -> Option<Unit> {
    // `0::/system.slice/backup.service`, and `1:name=systemd:/…` where version 1 of cgroups is in use.
    let paths = cgroup.lines().filter_map(|line| {
        let (head, path) = line.rsplit_once(':')?;
        (head == "0:" || head.ends_with(":name=systemd")).then_some(path)
    });
    paths.filter_map(innermost).next()
}

fn innermost(path: &str) -> Option<Unit> {
    let mut parts = path.split('/');
    let name = parts.rfind(|part| part.ends_with(".service") || part.ends_with(".scope"))?;
    let of_user = parts.any(|part| part.starts_with("user@") && part.ends_with(".service"));
    Some(Unit { name: name.to_owned(), of_user })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_of_a_process_is_read() {
        for (cgroup, name, of_user, is_service) in [
            ("0::/system.slice/backup.service\n", "backup.service", false, true),
            (
                "0::/system.slice/system-getty.slice/getty@tty1.service/inner\n",
                "getty@tty1.service",
                false,
                true,
            ),
            (
                "4:memory:/x.service\n1:name=systemd:/system.slice/cron.service\n0::/\n",
                "cron.service",
                false,
                true,
            ),
            ("1:name=systemd:/\n0::/system.slice/cron.service\n", "cron.service", false, true),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/a.service\n",
                "a.service",
                true,
                true,
            ),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/vte-spawn-1.scope\n",
                "vte-spawn-1.scope",
                true,
                false,
            ),
            ("0::/user.slice/user-1000.slice/user@1000.service/init.scope\n", "init.scope", true, false),
            ("0::/user.slice/user-0.slice/session-3.scope\n", "session-3.scope", false, false),
            ("0::/user.slice/user-1000.slice/user@1000.service\n", "user@1000.service", false, false),
        ] {
            let unit = unit_in(cgroup).unwrap();
            assert_eq!(unit, Unit { name: name.to_owned(), of_user }, "{cgroup}");
            assert_eq!(unit.service(), is_service.then_some(name), "{cgroup}");
        }
        for cgroup in ["0::/\n", "", "nonsense", "4:memory:/x.service\n"] {
            assert_eq!(unit_in(cgroup), None, "{cgroup}");
        }
    }
}
