//! The defaults that depend on the host, as they were when the workspace's first VM was started, and on the guest, as it
//! said.
//!
//! A snapshot can be restored only with the number of processors and the size of RAM that it was made with. The defaults of
//! both follow the host, where a new kernel, another CPU quota or `taskset` may change them by a little. So a default is
//! written down in the workspace's state when a VM is started from it, and is used from then on. A value in `config.toml`
//! always wins.
//!
//! The files of a share belong to the guest's user there, by the numbers that nixbox tells the share daemons before the
//! guest is started. Only the guest knows the numbers, so what a guest said is used from the next VM on.

use std::num::NonZeroU8;

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, Result};
use super::types::{Config, HostFacts};
use crate::files::Folder;
use crate::world::{ByteSize, UserIds, UserName};

/// The file in the state of the workspace.
pub(crate) const FILE: &str = "decided.json";
/// More than the file ever has.
const LIMIT: u64 = 4 << 10;

/// The defaults that are decided. An absent default is decided when a VM is started from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecidedDefaults {
    /// `vm.vcpus`.
    pub vcpus: Option<NonZeroU8>,
    /// `vm.memory`.
    pub memory: Option<ByteSize>,
    /// `guest.uid` and `guest.gid`. An earlier nixbox wrote none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<DecidedUser>,
}

/// What a guest said of a user of its.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecidedUser {
    /// The user.
    pub name: UserName,
    /// The numbers.
    pub ids: UserIds,
}

impl DecidedDefaults {
    /// Reads what was decided from the state of a workspace.
    ///
    /// # Errors
    /// If the file cannot be read, or nixbox did not write it.
    pub fn read(state: &Folder) -> Result<Self> {
        let Some(bytes) = state.read(FILE, LIMIT).map_err(ConfigError::State)? else {
            return Ok(Self::default());
        };
        serde_json::from_slice(&bytes)
            .map_err(|source| ConfigError::Decided { path: state.path_of(FILE), source })
    }

    /// The keys that a configuration has from here.
    #[must_use]
    pub fn keys(&self, config: &Config) -> Vec<&'static str> {
        let memory =
            (config.defaulted.memory && self.memory == Some(config.vm.memory)).then_some("vm.memory");
        let vcpus = (config.defaulted.vcpus && self.vcpus == Some(config.vm.vcpus)).then_some("vm.vcpus");
        let of_user = self.user_of(config).map(|_| "guest.uid");
        memory.into_iter().chain(vcpus).chain(of_user).collect()
    }

    /// Puts these defaults in place of the host's. RAM that this host does not have is not taken: no VM could be started
    /// with it.
    pub fn apply(&self, config: &mut Config, host: &HostFacts) {
        if let Some(vcpus) = self.vcpus.filter(|_| config.defaulted.vcpus) {
            config.vm.vcpus = vcpus;
        }
        let fits = |memory: &ByteSize| config.defaulted.memory && memory.bytes() <= host.memory;
        if let Some(memory) = self.memory.filter(fits) {
            config.vm.memory = memory;
        }
        if let Some(UserIds { uid, gid }) = self.user_of(config) {
            (config.guest.system.uid, config.guest.system.gid) = (uid, Some(gid));
        }
    }

    /// What a guest said of the user of this configuration, if the configuration does not say it.
    fn user_of(&self, config: &Config) -> Option<UserIds> {
        let user = self.user.as_ref().filter(|_| config.defaulted.user_ids);
        user.filter(|user| user.name == config.guest.system.user).map(|user| user.ids)
    }

    /// Writes down what a guest said of its user. Returns whether that is new.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn learn(state: &Folder, user: DecidedUser) -> Result<bool> {
        let before = Self::read(state)?;
        if before.user.as_ref() == Some(&user) {
            return Ok(false);
        }
        Self { user: Some(user), ..before }.write(state)?;
        Ok(true)
    }

    /// Writes down the defaults of a configuration that a VM is started from, unless they are decided.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn decide(state: &Folder, config: &Config) -> Result<()> {
        let before = Self::read(state)?;
        let vcpus = config.defaulted.vcpus.then_some(config.vm.vcpus);
        let memory = config.defaulted.memory.then_some(config.vm.memory);
        let after = Self {
            vcpus: before.vcpus.or(vcpus),
            memory: before.memory.or(memory),
            user: before.user.clone(),
        };
        if after == before { Ok(()) } else { after.write(state) }
    }

    fn write(&self, state: &Folder) -> Result<()> {
        let text = serde_json::to_vec(self)
            .map_err(|source| ConfigError::Decided { path: state.path_of(FILE), source })?;
        state.replace(FILE, &text).map_err(ConfigError::State)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const HOST: HostFacts = HostFacts { vcpus: 8, memory: 16 << 30, home: None };

    fn config(vm: &str, host: &HostFacts) -> Config {
        let text = format!(
            "[vm]\nkernel = \"/k\"\n{vm}\n[guest]\nuser = \"root\"\nssh-key = \"/key\"\n[[disks]]\nsize = \"1GiB\"\n"
        );
        Config::parse(&text, Path::new("config.toml"), Path::new("/w"), Path::new("/w/ssh"), host).unwrap()
    }

    fn seen(state: &Folder, vm: &str, host: &HostFacts) -> (u8, u64) {
        let mut config = config(vm, host);
        DecidedDefaults::read(state).unwrap().apply(&mut config, host);
        (config.vm.vcpus.get(), config.vm.memory.bytes() >> 30)
    }

    #[test]
    fn a_default_stays_as_it_was_decided_and_a_value_of_the_configuration_wins() {
        let directory = tempfile::tempdir().unwrap();
        let state = Folder::open(directory.path()).unwrap();
        let changed = HostFacts { vcpus: 2, memory: 12 << 30, ..HOST };
        assert_eq!(seen(&state, "", &HOST), (4, 8));
        assert_eq!(seen(&state, "", &changed).0, 1);

        DecidedDefaults::decide(&state, &config("", &HOST)).unwrap();
        assert_eq!(seen(&state, "", &changed), (4, 8));
        assert_eq!(seen(&state, "vcpus = 3\nmemory = \"2GiB\"", &changed), (3, 2));
        DecidedDefaults::decide(&state, &config("", &changed)).unwrap();
        assert_eq!(seen(&state, "", &HOST), (4, 8));
        let decided = DecidedDefaults::read(&state).unwrap();
        assert_eq!(decided.keys(&config("", &HOST)), ["vm.memory", "vm.vcpus"]);
        assert_eq!(decided.keys(&config("vcpus = 4", &HOST)), ["vm.memory"]);

        // A host that does not have the RAM.
        let small = HostFacts { memory: 4 << 30, ..HOST };
        assert!(seen(&state, "", &small).1 <= 4);
    }

    #[test]
    fn only_what_the_configuration_leaves_open_is_decided() {
        let directory = tempfile::tempdir().unwrap();
        let state = Folder::open(directory.path()).unwrap();
        DecidedDefaults::decide(&state, &config("vcpus = 3\nmemory = \"2GiB\"", &HOST)).unwrap();
        assert_eq!(state.names().unwrap().len(), 0);
        DecidedDefaults::decide(&state, &config("vcpus = 3", &HOST)).unwrap();
        let decided = DecidedDefaults::read(&state).unwrap();
        assert_eq!((decided.vcpus, decided.memory), (None, Some(ByteSize::from_bytes(8 << 30))));
    }

    #[test]
    fn the_numbers_that_a_guest_said_are_used_for_its_user_alone() {
        let directory = tempfile::tempdir().unwrap();
        let state = Folder::open(directory.path()).unwrap();
        let ids = UserIds { uid: 1001, gid: 100 };
        let user = DecidedUser { name: "dev".parse().unwrap(), ids };
        assert!(DecidedDefaults::learn(&state, user.clone()).unwrap());
        assert!(!DecidedDefaults::learn(&state, user).unwrap());
        DecidedDefaults::decide(&state, &config("", &HOST)).unwrap();
        let seen = |guest: &str| {
            let text = format!("vm.kernel = \"/k\"\n[guest]\n{guest}");
            let (path, root) = (Path::new("config.toml"), Path::new("/w"));
            let mut config = Config::parse(&text, path, root, Path::new("/w/ssh"), &HOST).unwrap();
            let decided = DecidedDefaults::read(&state).unwrap();
            decided.apply(&mut config, &HOST);
            (config.guest.system.user_ids(), decided.keys(&config).contains(&"guest.uid"))
        };
        assert_eq!(seen("user = \"dev\""), (ids, true));
        assert_eq!(seen("user = \"dev\"\nuid = 1002"), (UserIds { uid: 1002, gid: 1002 }, false));
        assert_eq!(seen("user = \"dev\"\ngid = 50"), (UserIds { uid: 1000, gid: 50 }, false));
        assert_eq!(seen("user = \"other\""), (UserIds { uid: 1000, gid: 1000 }, false));
        assert_eq!(seen("user = \"root\""), (UserIds { uid: 0, gid: 0 }, false));
    }

    #[test]
    fn a_file_that_nixbox_did_not_write_is_an_error_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let state = Folder::open(directory.path()).unwrap();
        for bad in ["", "[]", "{\"vcpus\": 0}", "{\"memory\": \"lots\"}", "{\"cores\": 4}"] {
            std::fs::write(directory.path().join(FILE), bad).unwrap();
            assert!(DecidedDefaults::read(&state).is_err(), "{bad}");
            assert!(DecidedDefaults::decide(&state, &config("", &HOST)).is_err(), "{bad}");
        }
    }
}
