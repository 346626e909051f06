//! Docker drops all that is forwarded but its own, and leaves one chain for others: DOCKER-USER. Where there is one,
//! the TAP's traffic is let through in it; what may pass is then the business of our own table.
//!
//! The rules carry a comment by which they are found again. They are of the kind that iptables-nft can print, as
//! Docker would fail on a chain that it cannot. A Docker on the legacy iptables has no such chain in nftables: nothing
//! is done for it here.

use std::borrow::Cow;

use nftables::batch::Batch;
use nftables::expr::MetaKey;
use nftables::schema::{NfCmd, NfListObject, Rule};
use nftables::stmt::Statement;
use nftables::types::NfFamily;
use serde_json::Value;

use super::NetworkPlan;
use super::firewall::{FirewallError, ask, is, meta, nft, objects, text};
use crate::world::{NetworkMode, NetworkPolicy};

pub(super) const TABLE: &str = "filter";
const CHAIN: &str = "DOCKER-USER";

/// Docker may change the chain between our look and our change; the next look sees it.
const ATTEMPTS: usize = 3;

fn comment(plan: &NetworkPlan) -> String {
    format!("nixbox {} {}", plan.workspace, plan.tap)
}

/// Our rules that are in the chain, without their handles; `None` without a chain.
pub(super) async fn list(plan: &NetworkPlan) -> Result<Option<Vec<Value>>, FirewallError> {
    let Some(mut rules) = ours(plan).await? else {
        return Ok(None);
    };
    for rule in rules.iter_mut().filter_map(Value::as_object_mut) {
        rule.remove("handle");
    }
    Ok(Some(rules))
}

/// Put our rules first in the chain, in place of any that are there.
pub(super) async fn apply(plan: &NetworkPlan, policy: &NetworkPolicy) -> Result<(), FirewallError> {
    replace(plan, if policy.mode == NetworkMode::Off { vec![] } else { wanted(plan) }).await
}

/// Remove our rules from the chain.
pub(super) async fn remove(plan: &NetworkPlan) -> Result<(), FirewallError> {
    replace(plan, vec![]).await
}

/// In order. Containers stay behind Docker's own rules: they are no part of the outside.
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

async fn replace(plan: &NetworkPlan, wanted: Vec<Vec<Statement<'static>>>) -> Result<(), FirewallError> {
    let mut attempt = 1;
    loop {
        let Some(there) = ours(plan).await? else {
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
        match nft(plan, &batch).await {
            Err(FirewallError::Nft(_)) if attempt < ATTEMPTS => attempt += 1,
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

/// Our rules as nft lists them. Other rules of the chain are read no further than to their comment: they are
/// iptables' and may hold what nft cannot say.
async fn ours(plan: &NetworkPlan) -> Result<Option<Vec<Value>>, FirewallError> {
    let chains = ask("list chains ip").await?;
    if !objects(&chains, "chain").any(|chain| chain["table"] == TABLE && chain["name"] == CHAIN) {
        return Ok(None);
    }
    let listing = ask(&format!("list chain ip {TABLE} {CHAIN}")).await?;
    let comment = comment(plan);
    Ok(Some(objects(&listing, "rule").filter(|rule| rule["comment"] == comment.as_str()).cloned().collect()))
}
