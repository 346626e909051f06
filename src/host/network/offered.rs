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

use super::nft::{Nft, RulesError, is, meta, text};
use super::tables::{FoundRule, TablesError};
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
    /// The rules of this workspace in each chain that there is.
    pub(super) fn list(&self) -> Result<Vec<(OfferedChain, Vec<FoundRule>)>, TablesError> {
        let comment = comment(self.workspace);
        let mut found = Vec::new();
        for offered in OFFERED {
            if let Some(mut rules) = self.nft.tables.rules(TABLE, offered.name)? {
                rules.retain(|rule| rule.comment.starts_with(&comment));
                found.push((offered, rules));
            }
        }
        Ok(found)
    }

    /// Puts the rules for this device into each chain, in place of earlier ones.
    pub(super) async fn apply(&self, device: &str) -> Result<(), RulesError> {
        self.replace(&format!("{}{device}", comment(self.workspace)), wanted(device)).await
    }

    /// Removes the rules from the chains.
    pub(super) async fn remove(&self) -> Result<(), RulesError> {
        self.replace("", vec![]).await
    }

    async fn replace(&self, comment: &str, wanted: Vec<Vec<Statement<'static>>>) -> Result<(), RulesError> {
        let mut attempt = 1;
        loop {
            let mut batch = Batch::new();
            let mut changes = false;
            for (chain, there) in self.list()? {
                changes |= !there.is_empty() || !wanted.is_empty();
                for handle in there.iter().map(|rule| rule.handle) {
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
                Err(RulesError::Program(ProgramError::Failed { .. })) if attempt < ATTEMPTS => attempt += 1,
                other => return other,
            }
        }
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
