//! The nftables table of a slot, and what Docker's firewall needs to be told of it.
//!
//! One table per VM, named after slot and workspace, so that a table is ours by its name. It is replaced as a whole,
//! in one batch, and never touches packets that are not of its TAP. An `accept` here does not overrule a table of
//! somebody else's: a host firewall that drops DHCP or forwarding has to be told itself. For Docker, which drops all
//! forwarding, that is done here.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use nftables::batch::Batch;
use nftables::expr::{
    CT, Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix,
    SetItem,
};
use nftables::schema::{Chain, NfListObject, Rule, Set, SetType, SetTypeValue, Table};
use nftables::stmt::{Match, Operator, Reject, RejectType, Statement};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook, RejectCode};
use serde_json::Value;

use super::daemon::Role;
use super::program::{NetworkTool, ProgramError};
use super::{NetworkPlan, docker};
use crate::world::{NetworkMode, NetworkPolicy};

/// Filled by dnsmasq with the addresses of the allowed domains.
pub(super) const ALLOWED_SET: &str = "allowed";

/// Replacing a table takes 15 ms; on a host with large rulesets nft first reads all of them.
const LIMIT: Duration = Duration::from_secs(20);

/// What cannot be done about the firewall.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// nft could not be run, or refused.
    #[error("cannot change or list the firewall")]
    Nft(#[from] ProgramError),
    /// nft printed what is not JSON of its documented form, or a batch could not be written.
    #[error("cannot exchange JSON with nft")]
    Json(#[from] serde_json::Error),
}

/// How the rules look that are there: compared with how they looked right after they were made, which finds any
/// change and does not depend on how a version of nft prints them.
pub(super) type NftObjects = Value;

/// Which tables there are, of those that matter: asked once, because each question is a process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tables {
    ours: bool,
    /// Docker's chain would be in one of this name.
    filter: bool,
}

/// Which there are.
pub(super) async fn tables(plan: &NetworkPlan) -> Result<Tables, FirewallError> {
    let tables = ask("list tables").await?;
    let is_there = |family: &str, name: &str| {
        objects(&tables, "table").any(|table| table["family"] == family && table["name"] == name)
    };
    Ok(Tables { ours: is_there("inet", &plan.table), filter: is_there("ip", docker::TABLE) })
}

/// Build the table, or replace it, and put Docker's rules in order. Says how they look then. A Docker that comes up
/// meanwhile is seen by the next look.
pub(super) async fn apply(
    plan: &NetworkPlan,
    policy: &NetworkPolicy,
    tables: Tables,
) -> Result<NftObjects, FirewallError> {
    nft(plan, &table(plan, policy)).await?;
    if tables.filter {
        docker::apply(plan, policy).await?;
    }
    Ok(list(plan, Tables { ours: true, ..tables }).await?.unwrap_or_default())
}

/// What nft is asked for: two plans or modes that ask for the same have the same firewall.
pub(super) fn asked(plan: &NetworkPlan, policy: &NetworkPolicy) -> String {
    serde_json::to_string(&table(plan, policy).to_nftables()).unwrap_or_default()
}

/// Remove the table and Docker's rules.
pub(super) async fn remove(plan: &NetworkPlan) -> Result<(), FirewallError> {
    let tables = tables(plan).await?;
    if tables.filter {
        docker::remove(plan).await?;
    }
    let mut batch = Batch::new();
    // Adding what is there changes nothing, and makes deleting it right whether or not it was.
    batch.add(NfListObject::Table(own_table(plan)));
    batch.delete(NfListObject::Table(own_table(plan)));
    if tables.ours { nft(plan, &batch).await } else { Ok(()) }
}

/// What is there of it: `None` for nothing at all.
pub(super) async fn list(plan: &NetworkPlan, tables: Tables) -> Result<Option<NftObjects>, FirewallError> {
    let docker = if tables.filter { docker::list(plan).await? } else { None };
    let table = if tables.ours {
        let mut table = ask(&format!("list table inet {}", plan.table)).await?;
        forget_what_changes(&mut table);
        Some(table)
    } else {
        None
    };
    if table.is_none() && docker.as_ref().is_none_or(|rules| rules.is_empty()) {
        return Ok(None);
    }
    Ok(Some(serde_json::json!({ "table": table, "docker": docker })))
}

/// Handles are new each time, dnsmasq fills the set, and the version of nft is nobody's rule.
fn forget_what_changes(listing: &mut Value) {
    if let Some(all) = listing["nftables"].as_array_mut() {
        all.retain(|object| object.get("metainfo").is_none());
        for part in all.iter_mut().filter_map(Value::as_object_mut).flat_map(|object| object.values_mut()) {
            if let Some(part) = part.as_object_mut() {
                part.remove("handle");
                part.remove("elem");
            }
        }
    }
}

/// The objects of one kind in what nft lists.
pub(super) fn objects<'a>(listing: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    let all = listing["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().filter_map(move |object| object.get(kind))
}

/// Carry out a batch, all of it or nothing. nft is marked, so that one that goes on without us can be ended.
pub(super) async fn nft(plan: &NetworkPlan, batch: &Batch<'_>) -> Result<(), FirewallError> {
    let input = serde_json::to_vec(&batch.clone().to_nftables())?;
    let environment = plan.mark(Role::Firewall).environment(None);
    // What nft makes of `-` is /dev/stdin, which a bare devtmpfs does not have.
    run(&["-j", "-f", "/proc/self/fd/0"], &environment, &input).await.map(drop)
}

/// Ask for a listing, in nft's own words.
pub(super) async fn ask(question: &str) -> Result<Value, FirewallError> {
    let arguments: Vec<&str> = std::iter::once("-j").chain(question.split(' ')).collect();
    Ok(serde_json::from_slice(&run(&arguments, &[], &[]).await?)?)
}

async fn run(
    arguments: &[&str],
    environment: &[(&'static str, String)],
    input: &[u8],
) -> Result<Vec<u8>, FirewallError> {
    let program = NetworkTool { name: "nft", arguments, environment, input, limit: LIMIT };
    Ok(program.run().await?.stdout)
}

fn own_table(plan: &NetworkPlan) -> Table<'static> {
    Table { family: NfFamily::INet, name: Cow::Owned(plan.table.clone()), handle: None }
}

/// The batch that replaces the table.
fn table(plan: &NetworkPlan, policy: &NetworkPolicy) -> Batch<'static> {
    let mut rules = Rules::new(plan);
    // Between conntrack (-200), which tells answers from the rest, and destination NAT (-100), behind which an address
    // of the host's might be a container's.
    rules.chain("guard", NfChainType::Filter, NfHook::Prerouting, -150);
    guard(&mut rules, plan, policy);
    rules.chain("input", NfChainType::Filter, NfHook::Input, 0);
    to_host(&mut rules, plan, policy);
    rules.rule_for_guest(vec![], reject());
    rules.chain("forward", NfChainType::Filter, NfHook::Forward, 0);
    forward(&mut rules, plan, policy);
    if policy.mode != NetworkMode::Off {
        rules.chain("postrouting", NfChainType::NAT, NfHook::Postrouting, 100);
        let elsewhere = vec![
            is(payload("ip", "saddr"), text(plan.guest)),
            is_not(meta(MetaKey::Oifname), text(&plan.tap)),
            Statement::Masquerade(None),
        ];
        rules.rule(elsewhere);
    }
    rules.batch
}

/// Who sends, and whether it is for the host: before routing, so that nothing later can change either.
fn guard(rules: &mut Rules, plan: &NetworkPlan, policy: &NetworkPolicy) {
    rules.rule_for_guest(vec![is_not(payload("ether", "saddr"), text(&plan.mac))], Statement::Drop(None));
    rules.rule_for_guest(vec![is(meta(MetaKey::Nfproto), text("ipv6"))], Statement::Drop(None));
    let asks_for_address = vec![
        is(payload("ip", "saddr"), text(Ipv4Addr::UNSPECIFIED)),
        is(payload("ip", "daddr"), text(Ipv4Addr::BROADCAST)),
        is(payload("udp", "sport"), number(68)),
        is(payload("udp", "dport"), number(67)),
    ];
    rules.rule_for_guest(asks_for_address, Statement::Accept(None));
    rules.rule_for_guest(vec![is_not(payload("ip", "saddr"), text(plan.guest))], Statement::Drop(None));
    to_host(rules, plan, policy);
    let kind = Fib { result: FibResult::Type, flags: HashSet::from([FibFlag::Daddr]) };
    let of_host = any_of(["local", "broadcast", "multicast"].map(text));
    rules.rule_for_guest(vec![is(Expression::Named(NamedExpression::Fib(kind)), of_host)], reject());
}

/// What of the host the guest may reach: answers to the host's own connections, DHCP, DNS.
fn to_host(rules: &mut Rules, plan: &NetworkPlan, policy: &NetworkPolicy) {
    let to_gateway = |destination: Ipv4Addr| is(payload("ip", "daddr"), text(destination));
    for destination in [plan.gateway, Ipv4Addr::BROADCAST] {
        let dhcp = vec![to_gateway(destination), is(payload("udp", "dport"), number(67))];
        rules.rule_for_guest(dhcp, Statement::Accept(None));
    }
    if policy.mode != NetworkMode::Off {
        for protocol in ["udp", "tcp"] {
            let dns = vec![to_gateway(plan.gateway), is(payload(protocol, "dport"), number(53))];
            rules.rule_for_guest(dns, Statement::Accept(None));
        }
    }
    let kind = Fib { result: FibResult::Type, flags: HashSet::from([FibFlag::Daddr]) };
    let local = is(Expression::Named(NamedExpression::Fib(kind)), text("local"));
    rules.rule_for_guest(vec![local, is_answer()], Statement::Accept(None));
}

/// What passes through the host. What comes out of the guest's TAP is judged without conntrack in filtered mode: a
/// connection that an earlier guest of this address had in open mode must not go on.
fn forward(rules: &mut Rules, plan: &NetworkPlan, policy: &NetworkPolicy) {
    // Of no use beyond a link (RFC 3927), and in clouds the way to the host's credentials.
    let link_local = Prefix { addr: Box::new(text("169.254.0.0")), len: 16 };
    let to_link_local = is(payload("ip", "daddr"), Expression::Named(NamedExpression::Prefix(link_local)));
    rules.rule_for_guest(vec![to_link_local], reject());
    match policy.mode {
        NetworkMode::Off => rules.rule_for_guest(vec![], reject()),
        NetworkMode::Open => rules.rule_for_guest(vec![], Statement::Accept(None)),
        NetworkMode::Filtered => {
            if !policy.ports.is_empty() {
                let allowed = vec![
                    is(payload("ip", "daddr"), text(format!("@{ALLOWED_SET}"))),
                    is(meta(MetaKey::L4proto), any_of(["tcp", "udp"].map(text))),
                    is(payload("th", "dport"), any_of(policy.ports.iter().map(|port| number(port.number())))),
                ];
                rules.rule_for_guest(allowed, Statement::Accept(None));
            }
            rules.rule_for_guest(vec![], reject());
        }
    }
    // Nobody but the host begins a connection to the guest: not another guest, not the network outside.
    let to_guest = || is(meta(MetaKey::Oifname), text(&plan.tap));
    rules.rule(vec![to_guest(), is_answer(), Statement::Accept(None)]);
    rules.rule(vec![to_guest(), reject()]);
}

/// A batch that replaces a table, in the making: rules go to the chain that was begun last.
struct Rules {
    batch: Batch<'static>,
    table: String,
    tap: String,
    chain: &'static str,
}

impl Rules {
    fn new(plan: &NetworkPlan) -> Self {
        let mut batch = Batch::new();
        batch.add(NfListObject::Table(own_table(plan)));
        batch.delete(NfListObject::Table(own_table(plan)));
        batch.add(NfListObject::Table(own_table(plan)));
        batch.add(NfListObject::Set(Box::new(Set {
            family: NfFamily::INet,
            table: Cow::Owned(plan.table.clone()),
            name: Cow::Borrowed(ALLOWED_SET),
            set_type: SetTypeValue::Single(SetType::Ipv4Addr),
            // Whoever answers for an allowed domain may give ever new addresses: not at the cost of the kernel's memory.
            size: Some(65535),
            ..Set::default()
        })));
        Self { batch, table: plan.table.clone(), tap: plan.tap.clone(), chain: "" }
    }

    fn chain(&mut self, name: &'static str, kind: NfChainType, hook: NfHook, priority: i32) {
        self.chain = name;
        self.batch.add(NfListObject::Chain(Chain {
            family: NfFamily::INet,
            table: Cow::Owned(self.table.clone()),
            name: Cow::Borrowed(name),
            _type: Some(kind),
            hook: Some(hook),
            prio: Some(priority),
            policy: Some(NfChainPolicy::Accept),
            ..Chain::default()
        }));
    }

    fn rule(&mut self, statements: Vec<Statement<'static>>) {
        self.batch.add(NfListObject::Rule(Rule {
            family: NfFamily::INet,
            table: Cow::Owned(self.table.clone()),
            chain: Cow::Borrowed(self.chain),
            expr: Cow::Owned(statements),
            ..Rule::default()
        }));
    }

    /// A rule about what comes from the guest.
    fn rule_for_guest(&mut self, matches: Vec<Statement<'static>>, verdict: Statement<'static>) {
        let mut statements = vec![is(meta(MetaKey::Iifname), text(&self.tap))];
        statements.extend(matches);
        statements.push(verdict);
        self.rule(statements);
    }
}

/// An answer, so that a program in the guest fails at once where silence would make it wait.
fn reject() -> Statement<'static> {
    Statement::Reject(Some(Reject::new(Some(RejectType::ICMPX), Some(RejectCode::AdminProhibited))))
}

/// Belongs to a connection that was let through at its beginning.
fn is_answer() -> Statement<'static> {
    let state = CT { key: Cow::Borrowed("state"), ..CT::default() };
    let state = Expression::Named(NamedExpression::CT(CT { family: None, dir: None, ..state }));
    let right = Expression::List(["established", "related"].map(text).to_vec());
    Statement::Match(Match { left: state, right, op: Operator::IN })
}

pub(super) fn is(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op: Operator::EQ })
}

fn is_not(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op: Operator::NEQ })
}

pub(super) fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

fn payload(protocol: &'static str, field: &'static str) -> Expression<'static> {
    let field = PayloadField { protocol: Cow::Borrowed(protocol), field: Cow::Borrowed(field) };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

pub(super) fn text(value: impl ToString) -> Expression<'static> {
    Expression::String(Cow::Owned(value.to_string()))
}

fn number(value: u16) -> Expression<'static> {
    Expression::Number(value.into())
}

fn any_of(values: impl IntoIterator<Item = Expression<'static>>) -> Expression<'static> {
    Expression::Named(NamedExpression::Set(values.into_iter().map(SetItem::Element).collect()))
}
