//! The mark in the environment of a process that nixbox started: which workspace, role and generation it belongs to.
//!
//! A process gets its environment at exec, and no other process can change it afterwards. So a mark needs no file that
//! could be lost, and a process that is given a pid again has another mark. Uses the values of [`crate::world`] alone.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::world::{Generation, Slot, WorkspaceId};

/// The variables of a mark.
pub(super) const WORKSPACE: &str = "NIXBOX_WORKSPACE";
pub(super) const GENERATION: &str = "NIXBOX_GENERATION";
pub(in crate::host) const ROLE: &str = "NIXBOX_ROLE";

/// What a process is for. As text, a role is 1 to 32 of `a-z 0-9 -`, so that it can be part of a file's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DaemonRole(String);

impl DaemonRole {
    /// Cloud Hypervisor.
    #[must_use]
    pub fn vmm() -> Self {
        Self("vmm".to_owned())
    }

    /// The virtiofsd of share number `index`.
    #[must_use]
    pub fn share(index: usize) -> Self {
        Self(format!("share-{index}"))
    }

    /// The dnsmasq of a slot.
    #[must_use]
    pub fn dhcp(slot: Slot) -> Self {
        Self(format!("dhcp-{slot}"))
    }

    /// The process of nixbox's own that stays with a network namespace.
    #[must_use]
    pub fn keeper() -> Self {
        Self("keeper".to_owned())
    }

    /// The process of nixbox's own that keeps a network namespace in step with the networks of the host.
    #[must_use]
    pub fn follower() -> Self {
        Self("follower".to_owned())
    }

    /// The process of nixbox's own that holds the namespaces of an ordinary user's VM.
    #[must_use]
    pub fn holder() -> Self {
        Self("holder".to_owned())
    }

    /// The process of nixbox's own that has pasta as its child.
    #[must_use]
    pub fn uplink() -> Self {
        Self("uplink".to_owned())
    }

    /// A process of nixbox's own that forwards ports in the background.
    #[must_use]
    pub fn forward() -> Self {
        Self("forward".to_owned())
    }

    /// An nft that changes the firewall of a slot.
    #[must_use]
    pub fn firewall(slot: Slot) -> Self {
        Self(format!("firewall-{slot}"))
    }
}

impl fmt::Display for DaemonRole {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Which process of which workspace and generation a process is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMark {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The generation that the process was started under. A mark without a generation matches processes of any.
    pub generation: Option<Generation>,
    /// What the process is for.
    pub role: DaemonRole,
}

impl ProcessMark {
    /// The mark of the VMM that this process, a daemon of nixbox's, was started for: it has the workspace and the generation of
    /// this process. `None` if this process has no mark.
    #[must_use]
    pub(in crate::host) fn of_own_vmm() -> Option<Self> {
        let own = |name| std::env::var(name).ok();
        let workspace = own(WORKSPACE)?.parse().ok()?;
        let generation = Some(Generation(own(GENERATION)?.parse().ok()?));
        Some(Self { workspace, generation, role: DaemonRole::vmm() })
    }

    /// The variables by which a process with this mark is recognized.
    pub fn environment(&self) -> impl Iterator<Item = (&'static str, String)> {
        let generation = self.generation.map(|generation| (GENERATION, generation.to_string()));
        [(WORKSPACE, self.workspace.to_string()), (ROLE, self.role.to_string())].into_iter().chain(generation)
    }

    /// Whether a process with this environment has the mark.
    pub(super) fn is_in(&self, environment: &Environment) -> bool {
        self.environment().all(|(name, value)| environment.value(name) == Some(value.as_bytes()))
    }
}

impl fmt::Display for ProcessMark {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.generation {
            Some(generation) => write!(formatter, "{} of generation {generation}", self.role),
            None => write!(formatter, "{}", self.role),
        }
    }
}

/// The environment of a process, as /proc/PID/environ has it.
pub(super) struct Environment(pub(super) Vec<u8>);

impl Environment {
    /// The value of a variable; of the first one, if there are several of that name.
    pub(super) fn value(&self, name: &str) -> Option<&[u8]> {
        let mut entries = self.0.split(|byte| *byte == 0);
        entries.find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    }

    /// The role in the mark of a process of this workspace.
    pub(super) fn role_in(&self, workspace: WorkspaceId) -> Option<String> {
        if self.value(WORKSPACE)? != workspace.to_string().as_bytes() {
            return None;
        }
        Some(std::str::from_utf8(self.value(ROLE)?).ok()?.to_owned())
    }

    /// The generation in the mark of a process of this workspace.
    pub(super) fn generation_in(&self, workspace: WorkspaceId) -> Option<Generation> {
        if self.value(WORKSPACE)? != workspace.to_string().as_bytes() {
            return None;
        }
        std::str::from_utf8(self.value(GENERATION)?).ok()?.parse().ok().map(Generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_matches_whole_variables_only() {
        let mark = ProcessMark {
            workspace: WorkspaceId([7; 16]),
            generation: Some(Generation(12)),
            role: DaemonRole::vmm(),
        };
        let environment = |generation: &str| {
            let workspace = "07".repeat(16);
            Environment(
                format!(
                    "A=1\0NIXBOX_WORKSPACE={workspace}\0NIXBOX_GENERATION={generation}\0NIXBOX_ROLE=vmm\0"
                )
                .into_bytes(),
            )
        };
        assert!(mark.is_in(&environment("12")));
        assert_eq!(environment("12").generation_in(mark.workspace), Some(Generation(12)));
        assert_eq!(environment("12").generation_in(WorkspaceId([8; 16])), None);
        assert_eq!(environment("12").role_in(mark.workspace).as_deref(), Some("vmm"));
        assert_eq!(environment("12").role_in(WorkspaceId([8; 16])), None);
        let of_any = ProcessMark { generation: None, ..mark.clone() };
        for other in ["1", "123", "012", ""] {
            assert!(!mark.is_in(&environment(other)), "{other}");
            assert!(of_any.is_in(&environment(other)), "{other}");
        }
        assert!(!mark.is_in(&Environment(Vec::new())));
        assert!(!of_any.is_in(&Environment(Vec::new())));
    }

    #[test]
    fn roles_are_parts_of_file_names() {
        let last = Slot::all().last().unwrap();
        for role in [
            DaemonRole::vmm(),
            DaemonRole::share(0),
            DaemonRole::share(usize::MAX),
            DaemonRole::dhcp(last),
            DaemonRole::firewall(last),
            DaemonRole::keeper(),
            DaemonRole::follower(),
            DaemonRole::holder(),
            DaemonRole::uplink(),
            DaemonRole::forward(),
        ] {
            let text = role.to_string();
            assert!((1..=32).contains(&text.len()) && text.as_bytes()[0].is_ascii_lowercase(), "{text}");
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            assert!(text.bytes().all(plain), "{text}");
        }
    }
}
