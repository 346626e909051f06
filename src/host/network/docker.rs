//! Docker drops everything that is forwarded except its own traffic, and offers one chain to others: DOCKER-USER. If the
//! chain exists, rules in it let the traffic of the TAP through. What may pass is then decided by the table of the slot.
//!
//! The rules carry a comment, by which they are found again. They are of the kind that iptables-nft can print, because
//! Docker fails on a chain that iptables-nft cannot print. A Docker on the legacy iptables has no such chain in nftables,
//! and nixbox does nothing for it.

use std::borrow::Cow;

use nftables::batch::Batch;
use nftables::expr::MetaKey;
use nftables::schema::{NfCmd, NfListObject, Rule};
use nftables::stmt::Statement;
use nftables::types::NfFamily;
use serde_json::Value;

use super::nft::{ask, change, is, meta, objects, text};
use super::plan::NetworkPlan;
use crate::host::program::ProgramError;
use crate::world::{NetworkMode, NetworkPolicy};

pub(super) const TABLE: &str = "filter";
const CHAIN: &str = "DOCKER-USER";

/// Docker may change the chain after nixbox has listed it. Then the chain is listed again.
const ATTEMPTS: usize = 3;

fn comment(plan: &NetworkPlan) -> String {
    format!("nixbox {} {}", plan.workspace, plan.tap)
}

/// The rules of this slot and workspace in the chain, without their handles; `None` if there is no chain.
pub(super) async fn list(plan: &NetworkPlan) -> Result<Option<Vec<Value>>, ProgramError> {
    let Some(mut rules) = own_rules(plan).await? else {
        return Ok(None);
    };
    for rule in rules.iter_mut().filter_map(Value::as_object_mut) {
        rule.remove("handle");
    }
    Ok(Some(rules))
}

/// Puts the rules at the beginning of the chain, in place of earlier ones.
pub(super) async fn apply(plan: &NetworkPlan, policy: &NetworkPolicy) -> Result<(), ProgramError> {
    replace(plan, if policy.mode == NetworkMode::Off { vec![] } else { wanted(plan) }).await
}

/// Removes the rules from the chain.
pub(super) async fn remove(plan: &NetworkPlan) -> Result<(), ProgramError> {
    replace(plan, vec![]).await
}

/// The rules, in order. Traffic to containers goes on to Docker's own rules, because containers are not the outside.
fn wanted(plan: &NetworkPlan) -> Vec<Vec<Statement<'static>>> {
    let from = || is(meta(MetaKey::Iifname), text(&plan.tap));
    let towards = |name: &str| is(meta(MetaKey::Oifname), text(name));
    vec![
        vec![from(), towards("docker0"), Statement::Return(None)],
        vec![from(), towards("br-*"), Statement::Return(None)],
        vec![from(), Statement::Accept(None)],
        vec![towards(&plan.tap), Statement::Accept(None)],
    ]
}

async fn replace(plan: &NetworkPlan, wanted: Vec<Vec<Statement<'static>>>) -> Result<(), ProgramError> {
    let mut attempt = 1;
    loop {
        let Some(there) = own_rules(plan).await? else {
            return Ok(());
        };
        let mut batch = Batch::new();
        for handle in there.iter().filter_map(|rule| rule["handle"].as_u64()) {
            let handle = u32::try_from(handle).ok();
            batch.delete(NfListObject::Rule(Rule { handle, ..rule(vec![], None) }));
        }
        for statements in wanted.iter().rev() {
            let first = rule(statements.clone(), Some(comment(plan)));
            batch.add_cmd(NfCmd::Insert(NfListObject::Rule(first)));
        }
        if there.is_empty() && wanted.is_empty() {
            return Ok(());
        }
        match change(plan, &batch).await {
            Err(ProgramError::Failed { .. }) if attempt < ATTEMPTS => attempt += 1,
            other => return other,
        }
    }
}

fn rule(statements: Vec<Statement<'static>>, comment: Option<String>) -> Rule<'static> {
    Rule {
        family: NfFamily::IP,
        table: Cow::Borrowed(TABLE),
        chain: Cow::Borrowed(CHAIN),
        expr: Cow::Owned(statements),
        comment: comment.map(Cow::Owned),
        ..Rule::default()
    }
}

/// The rules of this slot and workspace as nft lists them. Only the comment is read of other rules in the chain, because
/// iptables made them, and nft may not be able to express them.
async fn own_rules(plan: &NetworkPlan) -> Result<Option<Vec<Value>>, ProgramError> {
    let chains = ask("list chains ip").await?;
    if !objects(&chains, "chain").any(|chain| chain["table"] == TABLE && chain["name"] == CHAIN) {
        return Ok(None);
    }
    let listing = ask(&format!("list chain ip {TABLE} {CHAIN}")).await?;
    let comment = comment(plan);
    Ok(Some(objects(&listing, "rule").filter(|rule| rule["comment"] == comment.as_str()).cloned().collect()))
}
