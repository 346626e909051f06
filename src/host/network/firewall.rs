//! The nftables table of a slot, and the rules that Docker's firewall needs for its TAP.
//!
//! There is one table for each VM. Its name holds the slot and the workspace, and is its mark. The table is replaced as a
//! whole, in one batch, and does not touch packets of other devices than its TAP. An `accept` in it does not overrule the
//! table of another program: if the firewall of the host drops DHCP or forwarded packets, its administrator has to allow
//! them. Docker drops everything that is forwarded; for Docker, nixbox adds the rules itself.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::Ipv4Addr;

use nftables::batch::Batch;
use nftables::expr::{
    CT, Expression, Fib, FibFlag, FibResult, MetaKey, NamedExpression, Payload, PayloadField, Prefix, SetItem,
};
use nftables::schema::{Chain, NfListObject, Rule, Set, SetType, SetTypeValue, Table};
use nftables::stmt::{Match, Operator, Reject, RejectType, Statement};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook, RejectCode};
use serde_json::Value;

use super::docker;
use super::nft::{ask, change, is, meta, objects, text};
use super::plan::NetworkPlan;
use crate::host::program::ProgramError;
use crate::world::{NetworkMode, NetworkPolicy};

/// Filled by dnsmasq with the addresses of the allowed domains.
pub(super) const ALLOWED_SET: &str = "allowed";

/// Which tables exist. This is asked once, because nft is a process for each question.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tables {
    /// The table of this slot and workspace.
    own: bool,
    /// The table that has Docker's chain, if there is one.
    filter: bool,
}

pub(super) async fn tables(plan: &NetworkPlan) -> Result<Tables, ProgramError> {
    let tables = ask("list tables").await?;
    let is_there = |family: &str, name: &str| {
        objects(&tables, "table").any(|table| table["family"] == family && table["name"] == name)
    };
    Ok(Tables { own: is_there("inet", &plan.table), filter: is_there("ip", docker::TABLE) })
}

/// Makes or replaces the table and the rules in Docker's chain, and lists them then. A Docker that starts meanwhile is
/// noticed at the next call.
pub(super) async fn apply(
    plan: &NetworkPlan,
    policy: &NetworkPolicy,
    tables: Tables,
) -> Result<Value, ProgramError> {
    change(plan, &table(plan, policy)).await?;
    if tables.filter {
        docker::apply(plan, policy).await?;
    }
    Ok(list(plan, Tables { own: true, ..tables }).await?.unwrap_or_default())
}

/// What nft is asked for, as text: two plans or modes with the same text have the same firewall.
pub(super) fn asked(plan: &NetworkPlan, policy: &NetworkPolicy) -> String {
    serde_json::to_string(&table(plan, policy).to_nftables()).unwrap_or_default()
}

/// Removes the table and the rules in Docker's chain.
pub(super) async fn remove(plan: &NetworkPlan) -> Result<(), ProgramError> {
    let tables = tables(plan).await?;
    if tables.filter {
        docker::remove(plan).await?;
    }
    let mut batch = Batch::new();
    // Adding a table that exists changes nothing. It makes the deletion succeed if the table is gone by now.
    batch.add(NfListObject::Table(own_table(plan)));
    batch.delete(NfListObject::Table(own_table(plan)));
    if tables.own { change(plan, &batch).await } else { Ok(()) }
}

/// The table and the rules in Docker's chain as nft lists them; `None` if there are neither.
///
/// The listing is compared with the listing right after the rules were made. This finds any change, and does not depend
/// on how a version of nft prints rules.
pub(super) async fn list(plan: &NetworkPlan, tables: Tables) -> Result<Option<Value>, ProgramError> {
    let docker = if tables.filter { docker::list(plan).await? } else { None };
    let table = if tables.own {
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

/// Removes what changes by itself: the version of nft, the handles, and the elements that dnsmasq adds to the set.
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

fn own_table(plan: &NetworkPlan) -> Table<'static> {
    Table { family: NfFamily::INet, name: Cow::Owned(plan.table.clone()), handle: None }
}

/// The batch that replaces the table.
fn table(plan: &NetworkPlan, policy: &NetworkPolicy) -> Batch<'static> {
    let mut rules = Rules::new(plan);
    // After conntrack (-200), which recognizes answers, and before destination NAT (-100), which may replace an address
    // of the host by that of a container.
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

/// Checks the sender of a packet, and whether the packet is for the host. This is done before routing, so that no later
/// rule can change either.
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

/// What the guest may reach on the host: answers to connections that the host began, DHCP, and DNS.
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

/// What passes through the host. In filtered mode, packets from the guest are judged without conntrack: a connection
/// that an earlier guest of this address began in open mode must not go on.
fn forward(rules: &mut Rules, plan: &NetworkPlan, policy: &NetworkPolicy) {
    // Link-local addresses mean nothing beyond a link (RFC 3927), and in clouds they lead to the host's credentials.
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
    // Only the host begins connections to the guest: neither another guest does, nor the network outside.
    let to_guest = || is(meta(MetaKey::Oifname), text(&plan.tap));
    rules.rule(vec![to_guest(), is_answer(), Statement::Accept(None)]);
    rules.rule(vec![to_guest(), reject()]);
}

/// Builds a batch that replaces a table: rules go to the chain that was begun last.
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
            // The server of an allowed domain may answer with ever new addresses, and the set is kept in kernel memory.
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

    /// A rule about packets from the guest.
    fn rule_for_guest(&mut self, matches: Vec<Statement<'static>>, verdict: Statement<'static>) {
        let mut statements = vec![is(meta(MetaKey::Iifname), text(&self.tap))];
        statements.extend(matches);
        statements.push(verdict);
        self.rule(statements);
    }
}

/// Refuses with an answer, so that a program in the guest fails at once instead of waiting.
fn reject() -> Statement<'static> {
    Statement::Reject(Some(Reject::new(Some(RejectType::ICMPX), Some(RejectCode::AdminProhibited))))
}

/// Matches packets of a connection that was accepted at its beginning.
fn is_answer() -> Statement<'static> {
    let state = CT { key: Cow::Borrowed("state"), ..CT::default() };
    let state = Expression::Named(NamedExpression::CT(CT { family: None, dir: None, ..state }));
    let right = Expression::List(["established", "related"].map(text).to_vec());
    Statement::Match(Match { left: state, right, op: Operator::IN })
}

fn is_not(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op: Operator::NEQ })
}

fn payload(protocol: &'static str, field: &'static str) -> Expression<'static> {
    let field = PayloadField { protocol: Cow::Borrowed(protocol), field: Cow::Borrowed(field) };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

fn number(value: u16) -> Expression<'static> {
    Expression::Number(value.into())
}

fn any_of(values: impl IntoIterator<Item = Expression<'static>>) -> Expression<'static> {
    Expression::Named(NamedExpression::Set(values.into_iter().map(SetItem::Element).collect()))
}
