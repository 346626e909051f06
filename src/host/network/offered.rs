//! The chains that other firewalls of a host offer to programs that want something forwarded. If one exists, rules in it
//! let the traffic of a VM's device through: of its uplink, or of its TAP. What may pass is then decided by nixbox's own
//! tables.
//!
//! | chain | whose | where nixbox's rules are, and why |
//! |---|---|---|
//! | `DOCKER-USER` | Docker, which drops everything that is forwarded except its own traffic | first, because nothing of Docker's is in it |
//! | `ufw-user-forward` | ufw, which has the rules of `ufw route` there | last, so that the rules of the host's administrator count first |
//!
//! The rules carry a comment, by which they are found again. They are of the kind that iptables-nft can print, because
//! Docker and ufw fail on a chain that iptables-nft cannot print. `ufw route` itself would write the rule into /etc, where a
//! crash would leave it until a person removes it; a rule in the chain ends with the boot, or with `ufw reload`, and is then
//! made anew.
//! A Docker or ufw on the legacy iptables has such chains outside of nftables: see [`super::legacy`].

use std::borrow::Cow;

use nftables::batch::Batch;
use nftables::expr::MetaKey;
use nftables::schema::{NfCmd, NfListObject, Rule};
use nftables::stmt::Statement;
use nftables::types::NfFamily;
use serde_json::Value;

use super::nft::{Nft, is, meta, objects, text};
use crate::host::program::ProgramError;
use crate::world::WorkspaceId;

pub(super) const TABLE: &str = "filter";

/// A chain that its owner leaves to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OfferedChain {
    pub(super) name: &'static str,
    /// Whether nixbox's rules come before those that are in it.
    pub(super) first: bool,
}

pub(super) const OFFERED: [OfferedChain; 2] = [
    OfferedChain { name: "DOCKER-USER", first: true },
    OfferedChain { name: "ufw-user-forward", first: false },
];

/// The owner of a chain may change it after nixbox has listed it. Then the chain is listed again.
const ATTEMPTS: usize = 3;

/// Begins the comment of each rule of a workspace.
pub(super) fn comment(workspace: WorkspaceId) -> String {
    format!("nixbox {workspace} ")
}

/// The chains of nftables, and the rules of one workspace in them.
pub(super) struct OfferedChains<'a> {
    /// nft in the host's network.
    pub(super) nft: &'a Nft,
    pub(super) workspace: WorkspaceId,
}

impl OfferedChains<'_> {
    /// The rules of this workspace in each chain that there is, without their handles.
    pub(super) async fn list(&self) -> Result<Vec<(&'static str, Vec<Value>)>, ProgramError> {
        let mut chains = Vec::new();
        for (chain, mut rules) in self.own_rules().await? {
            for rule in rules.iter_mut().filter_map(Value::as_object_mut) {
                rule.remove("handle");
            }
            chains.push((chain.name, rules));
        }
        Ok(chains)
    }

    /// Puts the rules for this device into each chain, in place of earlier ones.
    pub(super) async fn apply(&self, device: &str) -> Result<(), ProgramError> {
        self.replace(&format!("{}{device}", comment(self.workspace)), wanted(device)).await
    }

    /// Removes the rules from the chains.
    pub(super) async fn remove(&self) -> Result<(), ProgramError> {
        self.replace("", vec![]).await
    }

    async fn replace(&self, comment: &str, wanted: Vec<Vec<Statement<'static>>>) -> Result<(), ProgramError> {
        let mut attempt = 1;
        loop {
            let mut batch = Batch::new();
            let mut changes = false;
            for (chain, there) in self.own_rules().await? {
                changes |= !there.is_empty() || !wanted.is_empty();
                for handle in there.iter().filter_map(|rule| rule["handle"].as_u64()) {
                    let handle = u32::try_from(handle).ok();
                    batch.delete(NfListObject::Rule(Rule { handle, ..rule(chain, vec![], None) }));
                }
                let made = |statements: &Vec<Statement<'static>>| {
                    NfListObject::Rule(rule(chain, statements.clone(), Some(comment.to_owned())))
                };
                if chain.first {
                    for statements in wanted.iter().rev() {
                        batch.add_cmd(NfCmd::Insert(made(statements)));
                    }
                } else {
                    wanted.iter().for_each(|statements| batch.add(made(statements)));
                }
            }
            if !changes {
                return Ok(());
            }
            match self.nft.change(&batch).await {
                Err(ProgramError::Failed { .. }) if attempt < ATTEMPTS => attempt += 1,
                other => return other,
            }
        }
    }

    /// The rules of this workspace as nft lists them, in each chain that there is. Only the comment is read of other rules
    /// in the chain, because iptables made them, and nft may not be able to express them.
    async fn own_rules(&self) -> Result<Vec<(OfferedChain, Vec<Value>)>, ProgramError> {
        let chains = self.nft.ask("list chains ip").await?;
        let comment = comment(self.workspace);
        let own = |rule: &&Value| rule["comment"].as_str().is_some_and(|text| text.starts_with(&comment));
        let mut found = Vec::new();
        for offered in OFFERED {
            let is_it = |chain: &Value| chain["table"] == TABLE && chain["name"] == offered.name;
            if objects(&chains, "chain").any(is_it) {
                let listing = self.nft.ask(&format!("list chain ip {TABLE} {}", offered.name)).await?;
                found.push((offered, objects(&listing, "rule").filter(own).cloned().collect()));
            }
        }
        Ok(found)
    }
}

/// The rules, in order. Traffic to containers goes on to Docker's own rules, because containers are not the outside.
fn wanted(device: &str) -> Vec<Vec<Statement<'static>>> {
    let from = || is(meta(MetaKey::Iifname), text(device));
    let towards = |name: &str| is(meta(MetaKey::Oifname), text(name));
    vec![
        vec![from(), towards("docker0"), Statement::Return(None)],
        vec![from(), towards("br-*"), Statement::Return(None)],
        vec![from(), Statement::Accept(None)],
        vec![towards(device), Statement::Accept(None)],
    ]
}

fn rule(chain: OfferedChain, statements: Vec<Statement<'static>>, comment: Option<String>) -> Rule<'static> {
    Rule {
        family: NfFamily::IP,
        table: Cow::Borrowed(TABLE),
        chain: Cow::Borrowed(chain.name),
        expr: Cow::Owned(statements),
        comment: comment.map(Cow::Owned),
        ..Rule::default()
    }
}
