//! The chains of [`super::offered`] where Docker or ufw works with the legacy iptables, whose rules nftables does not know.
//!
//! They are listed with `iptables-legacy-save`, and changed with one call of `iptables-legacy-restore`, which replaces all
//! rules of a workspace or none. The legacy programs are asked only where the kernel has their table already: a listing of a
//! table makes it. May use `tool` and `offered`.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::offered::{OFFERED, TABLE, comment};
use super::tool::{self, NetworkTool};
use crate::host::process::ProcessMark;
use crate::host::program::ProgramError;
use crate::world::WorkspaceId;

/// The tables of the legacy iptables in the network of this thread. Only root may read it.
const TABLES: &str = "/proc/thread-self/net/ip_tables_names";
/// The kernel's module of the table with the chains.
const MODULE: &str = "/sys/module/iptable_filter";
/// A table of many thousand rules takes a second.
const LIMIT: Duration = Duration::from_secs(20);
const SAVE: &str = "iptables-legacy-save";
const RESTORE: &str = "iptables-legacy-restore";

/// The chains of the legacy iptables, and the rules of one workspace in them.
pub(super) struct LegacyChains<'a> {
    pub(super) workspace: WorkspaceId,
    /// The mark of a program that changes something, so that one that outlives nixbox can be ended.
    pub(super) mark: &'a ProcessMark,
}

/// What `iptables-legacy-save` lists of the table with the chains; `None` where it is not in use, or cannot be listed for
/// want of the program.
pub(super) async fn save() -> Result<Option<String>, ProgramError> {
    if !is_in_use() || matches!(tool::locate(SAVE), Err(ProgramError::Missing { .. })) {
        return Ok(None);
    }
    run(SAVE, &["-t", TABLE], None, &[]).await.map(Some)
}

fn is_in_use() -> bool {
    match std::fs::read_to_string(TABLES) {
        Ok(tables) => tables.lines().any(|table| table == TABLE),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Path::new(MODULE).exists(),
        // The kernel has no legacy iptables.
        Err(_) => false,
    }
}

async fn run(
    name: &'static str,
    arguments: &[&str],
    mark: Option<&ProcessMark>,
    input: &[u8],
) -> Result<String, ProgramError> {
    let program = NetworkTool {
        name,
        arguments,
        mark,
        confinement: None,
        scope: None,
        input,
        limit: LIMIT,
        inside: None,
    };
    Ok(String::from_utf8_lossy(&program.run().await?.stdout).into_owned())
}

impl LegacyChains<'_> {
    /// The chains that there are, and the rules of this workspace in them, as iptables lists them.
    pub(super) async fn list(&self) -> Result<(Vec<&'static str>, Vec<String>), ProgramError> {
        let Some(saved) = save().await? else { return Ok((vec![], vec![])) };
        let there = OFFERED.iter().filter(|chain| has_chain(&saved, chain.name)).map(|chain| chain.name);
        Ok((there.collect(), own_rules(&saved, self.workspace)))
    }

    /// Puts the rules for this device into each chain, in place of earlier ones.
    pub(super) async fn apply(&self, device: &str) -> Result<(), ProgramError> {
        self.replace(Some(device)).await
    }

    /// Removes the rules from the chains.
    pub(super) async fn remove(&self) -> Result<(), ProgramError> {
        self.replace(None).await
    }

    async fn replace(&self, device: Option<&str>) -> Result<(), ProgramError> {
        let Some(saved) = save().await? else { return Ok(()) };
        match change(&saved, self.workspace, device) {
            None => Ok(()),
            Some(change) => {
                let arguments = ["--noflush", "--wait", "5"];
                run(RESTORE, &arguments, Some(self.mark), change.as_bytes()).await.map(drop)
            }
        }
    }
}

fn has_chain(saved: &str, name: &str) -> bool {
    saved.lines().any(|line| line.strip_prefix(':').is_some_and(|rest| rest.split(' ').next() == Some(name)))
}

fn own_rules(saved: &str, workspace: WorkspaceId) -> Vec<String> {
    let own = format!("--comment \"{}", comment(workspace));
    let is_own = |line: &&str| line.starts_with("-A ") && line.contains(&own);
    saved.lines().filter(is_own).map(str::to_owned).collect()
}

/// What `iptables-legacy-restore` is given; `None` if nothing is to be changed.
fn change(saved: &str, workspace: WorkspaceId, device: Option<&str>) -> Option<String> {
    let mut lines: Vec<String> =
        own_rules(saved, workspace).iter().map(|rule| rule.replacen("-A", "-D", 1)).collect();
    for chain in OFFERED.iter().filter(|chain| has_chain(saved, chain.name)) {
        let Some(device) = device else { continue };
        let rules = [
            format!("-i {device} -o docker0"),
            format!("-i {device} -o br-+"),
            format!("-i {device}"),
            format!("-o {device}"),
        ];
        let targets = ["RETURN", "RETURN", "ACCEPT", "ACCEPT"];
        let made = rules.iter().zip(targets).enumerate().map(|(number, (rule, target))| {
            let comment = format!("-m comment --comment \"{}{device}\"", comment(workspace));
            let place = if chain.first {
                format!("-I {} {}", chain.name, number + 1)
            } else {
                format!("-A {}", chain.name)
            };
            format!("{place} {rule} {comment} -j {target}")
        });
        lines.extend(made);
    }
    (!lines.is_empty()).then(|| format!("*{TABLE}\n{}\nCOMMIT\n", lines.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n\
                         -A DOCKER-USER -s 10.0.0.0/8 -j RETURN\nCOMMIT\n";

    #[test]
    fn rules_of_one_workspace_are_replaced_and_no_others() {
        let (own, other) = (WorkspaceId([1; 16]), WorkspaceId([2; 16]));
        let made = change(SAVED, own, Some("nixbox-0")).unwrap();
        let rules: Vec<&str> = made.lines().collect();
        assert_eq!((rules.len(), rules[0], rules[5]), (6, "*filter", "COMMIT"));
        assert_eq!(
            rules[3],
            format!("-I DOCKER-USER 3 -i nixbox-0 -m comment --comment \"nixbox {own} nixbox-0\" -j ACCEPT")
        );
        assert_eq!(change(SAVED, own, None), None, "nothing is there");
        let rule = |id| {
            format!("-A DOCKER-USER -i nixbox-0 -m comment --comment \"nixbox {id} nixbox-0\" -j ACCEPT")
        };
        let both = SAVED.replace("COMMIT", &format!("{}\n{}\nCOMMIT", rule(own), rule(other)));
        assert_eq!(own_rules(&both, own), [rule(own)]);
        let removed = format!("*filter\n{}\nCOMMIT\n", rule(own).replace("-A", "-D"));
        assert_eq!(change(&both, own, None), Some(removed));
    }
}
