//! The nftables table of a VM, which decides about every packet of its TAP.
//!
//! There is one table for each VM, in the network namespace in which the TAP is. Its name holds the slot and the workspace,
//! and is its mark. The table is replaced as a whole, in one batch, and does not touch packets of other devices than its
//! TAP. An `accept` in it does not overrule the table of another program in the same namespace.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::Ipv4Addr;

use nftables::batch::Batch;
use nftables::expr::{
    CT, Expression, Fib, FibFlag, FibResult, MetaKey, NamedExpression, Payload, PayloadField, Prefix, SetItem,
};
use nftables::schema::{
    Chain, Element, FlushObject, NfCmd, NfListObject, Rule, Set, SetFlag, SetType, SetTypeValue, Table,
};
use nftables::stmt::{self, JumpTarget, Match, Operator, Reject, RejectType, Statement};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook, RejectCode};

use super::nft::{Nft, RulesError, is, meta, text};
use super::plan::NetworkPlan;
use super::rejected::{KEPT, MOST, REJECTED_SET};
use crate::world::{NetworkMode, NetworkPolicy, PrivateNetwork};

/// Filled by dnsmasq with the addresses of the allowed domains.
pub(super) const ALLOWED_SET: &str = "allowed";

/// Filled by nixbox with addresses of the host, which the guest must not reach. They are refused whatever happens to the
/// tables of the host.
const REFUSED_SET: &str = "refused";

/// The chain to which packets of the guest go that are refused with an answer.
const REFUSAL_CHAIN: &str = "refusal";

/// Addresses at which clouds give the host's own credentials to everyone who asks: of Alibaba, Oracle and Azure. That of
/// the others, 169.254.169.254, is link-local. They are refused even if they are in a network that the guest may reach.
pub(super) const METADATA: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(168, 63, 129, 16)];

/// Addresses that mean something in one network or for one host only, and that no guest reaches: of this network,
/// loopback, link-local, of the IETF's protocols, multicast, and reserved (RFC 6890).
pub(super) const NEVER: [(Ipv4Addr, u8); 6] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// Addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AddressRange {
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
}

impl AddressRange {
    /// The range of this many bits that has the address in it.
    pub(super) fn new(address: Ipv4Addr, prefix: u8) -> Self {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        Self { address: Ipv4Addr::from_bits(address.to_bits() & mask), prefix }
    }

    /// Whether the two have an address in common.
    pub(super) fn overlaps(self, other: Self) -> bool {
        let prefix = u32::from(self.prefix.min(other.prefix));
        (self.address.to_bits() ^ other.address.to_bits()).checked_shr(32 - prefix).unwrap_or(0) == 0
    }
}

/// Makes or replaces the table. Its guest cannot reach the `refused` addresses.
pub(super) async fn apply(
    nft: &Nft,
    plan: &NetworkPlan,
    policy: &NetworkPolicy,
    refused: &[AddressRange],
) -> Result<(), RulesError> {
    let mut rules = table(plan, policy);
    rules.refuse(refused);
    nft.change(&rules.batch).await
}

/// Replaces the refused addresses of a table that is there.
pub(super) async fn refuse(
    nft: &Nft,
    plan: &NetworkPlan,
    refused: &[AddressRange],
) -> Result<(), RulesError> {
    let mut rules =
        Rules { batch: Batch::new(), table: plan.table.clone(), tap: plan.tap.clone(), chain: "" };
    rules.refuse(refused);
    nft.change(&rules.batch).await
}

/// What nft is asked for, as text: two plans or modes with the same text have the same firewall.
pub(super) fn asked(plan: &NetworkPlan, policy: &NetworkPolicy) -> String {
    serde_json::to_string(&table(plan, policy).batch.to_nftables()).unwrap_or_default()
}

/// Removes a table of this name.
pub(super) async fn remove(nft: &Nft, name: &str) -> Result<(), RulesError> {
    if !nft.tables.has_table(name)? {
        return Ok(());
    }
    let mut batch = Batch::new();
    // Adding a table that exists changes nothing. It makes the deletion succeed if the table is gone by now.
    batch.add(NfListObject::Table(own_table(name)));
    batch.delete(NfListObject::Table(own_table(name)));
    nft.change(&batch).await
}

fn own_table(name: &str) -> Table<'static> {
    Table { family: NfFamily::INet, name: Cow::Owned(name.to_owned()), handle: None }
}

/// The batch that replaces the table.
fn table(plan: &NetworkPlan, policy: &NetworkPolicy) -> Rules {
    let mut rules = Rules::new(&plan.table, &plan.tap);
    rules.addresses(ALLOWED_SET, None);
    rules.addresses(REFUSED_SET, Some(SetFlag::Interval));
    // After conntrack (-200), which recognizes answers, and before destination NAT (-100), which may replace an address
    // of the host by that of a container.
    rules.refusals();
    rules.chain("guard", NfChainType::Filter, NfHook::Prerouting, -150);
    guard(&mut rules, plan, policy);
    rules.chain("input", NfChainType::Filter, NfHook::Input, 0);
    to_host(&mut rules, plan, policy);
    rules.rule_for_guest(vec![], note_and_reject());
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
    rules
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
    rules.rule_for_guest(vec![is(Expression::Named(NamedExpression::Fib(kind)), of_host)], note_and_reject());
    rules
        .rule_for_guest(vec![is(payload("ip", "daddr"), text(format!("@{REFUSED_SET}")))], note_and_reject());
    rules.rule_for_guest(vec![is(payload("ip", "daddr"), any_of(METADATA.map(text)))], note_and_reject());
    refuse_networks_of_host(rules, policy);
}

/// Refuses all addresses that are not public, except those of networks that the policy allows. In filtered mode this holds
/// whatever a name server answers, and whatever dnsmasq puts into its set.
fn refuse_networks_of_host(rules: &mut Rules, policy: &NetworkPolicy) {
    let destination = || payload("ip", "daddr");
    let never = any_of(elements(&ranges(NEVER)));
    rules.rule_for_guest(vec![is(destination(), never)], note_and_reject());
    let mut matches = vec![is(destination(), any_of(elements(&ranges(PrivateNetwork::ALL))))];
    let allowed = elements(&ranges(policy.host_networks.iter().map(PrivateNetwork::range)));
    if !allowed.is_empty() {
        matches.push(is_not(destination(), any_of(allowed)));
    }
    rules.rule_for_guest(matches, note_and_reject());
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
    match policy.mode {
        NetworkMode::Off => rules.rule_for_guest(vec![], note_and_reject()),
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
            rules.rule_for_guest(vec![], note_and_reject());
        }
    }
    // Only the host begins connections to the guest: neither another guest does, nor the network outside.
    let to_guest = || is(meta(MetaKey::Oifname), text(&plan.tap));
    rules.rule(vec![to_guest(), is_answer(), Statement::Accept(None)]);
    rules.rule(vec![to_guest(), reject()]);
}

/// Builds a batch that replaces a table: rules go to the chain that was begun last.
pub(super) struct Rules {
    pub(super) batch: Batch<'static>,
    table: String,
    tap: String,
    chain: &'static str,
}

impl Rules {
    /// Begins a batch that replaces the table of this name, whose rules are about packets of the device `tap`.
    pub(super) fn new(table: &str, tap: &str) -> Self {
        let mut batch = Batch::new();
        batch.add(NfListObject::Table(own_table(table)));
        batch.delete(NfListObject::Table(own_table(table)));
        batch.add(NfListObject::Table(own_table(table)));
        Self { batch, table: table.to_owned(), tap: tap.to_owned(), chain: "" }
    }

    fn set(&mut self, name: &'static str, set_type: SetTypeValue<'static>, settings: Set<'static>) {
        self.batch.add(NfListObject::Set(Box::new(Set {
            family: NfFamily::INet,
            table: Cow::Owned(self.table.clone()),
            name: Cow::Borrowed(name),
            set_type,
            ..settings
        })));
    }

    /// A set of addresses.
    fn addresses(&mut self, name: &'static str, flag: Option<SetFlag>) {
        let flags = flag.map(|flag| HashSet::from([flag]));
        // The server of an allowed domain may answer with ever new addresses, and the set is kept in kernel memory.
        let settings = Set { flags, size: Some(65535), ..Set::default() };
        self.set(name, SetTypeValue::Single(SetType::Ipv4Addr), settings);
    }

    /// The chain that notes a packet of the guest and refuses it, and the set of what was noted. A packet is refused also if it
    /// cannot be noted, because the set is full.
    fn refusals(&mut self) {
        let flags = Some(HashSet::from([SetFlag::Timeout]));
        let settings = Set { flags, timeout: Some(KEPT), size: Some(MOST), ..Set::default() };
        let parts = vec![SetType::Ipv4Addr, SetType::InetProto, SetType::InetService];
        self.set(REJECTED_SET, SetTypeValue::Concatenated(Cow::Owned(parts)), settings);
        self.chain = REFUSAL_CHAIN;
        self.batch.add(NfListObject::Chain(Chain {
            family: NfFamily::INet,
            table: Cow::Owned(self.table.clone()),
            name: Cow::Borrowed(REFUSAL_CHAIN),
            ..Chain::default()
        }));
        let protocol = || meta(MetaKey::L4proto);
        let parts = vec![payload("ip", "daddr"), protocol(), payload("th", "dport")];
        let note = stmt::Set {
            op: stmt::SetOp::Update,
            elem: Expression::Named(NamedExpression::Concat(parts)),
            set: Cow::Owned(format!("@{REJECTED_SET}")),
        };
        self.rule(vec![is(protocol(), any_of(["tcp", "udp"].map(text))), Statement::Set(note)]);
        self.rule(vec![reject()]);
    }

    /// Puts these addresses into the set of refused ones, in place of those that are in it.
    fn refuse(&mut self, refused: &[AddressRange]) {
        let name = || Cow::Borrowed(REFUSED_SET);
        self.batch.add_cmd(NfCmd::Flush(FlushObject::Set(Box::new(Set {
            family: NfFamily::INet,
            table: Cow::Owned(self.table.clone()),
            name: name(),
            ..Set::default()
        }))));
        let elements = elements(refused);
        if elements.is_empty() {
            return;
        }
        self.batch.add(NfListObject::Element(Element {
            family: NfFamily::INet,
            table: Cow::Owned(self.table.clone()),
            name: name(),
            elem: Cow::Owned(elements),
        }));
    }

    pub(super) fn chain(&mut self, name: &'static str, kind: NfChainType, hook: NfHook, priority: i32) {
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

    pub(super) fn rule(&mut self, statements: Vec<Statement<'static>>) {
        self.batch.add(NfListObject::Rule(Rule {
            family: NfFamily::INet,
            table: Cow::Owned(self.table.clone()),
            chain: Cow::Borrowed(self.chain),
            expr: Cow::Owned(statements),
            ..Rule::default()
        }));
    }

    /// A rule about packets from the guest.
    pub(super) fn rule_for_guest(&mut self, matches: Vec<Statement<'static>>, verdict: Statement<'static>) {
        let mut statements = vec![is(meta(MetaKey::Iifname), text(&self.tap))];
        statements.extend(matches);
        statements.push(verdict);
        self.rule(statements);
    }
}

/// The elements of a set that has these addresses. nft refuses ranges that overlap, so only the outermost are in it.
fn elements(ranges: &[AddressRange]) -> Vec<Expression<'static>> {
    let is_within = |inner: &AddressRange| {
        ranges.iter().any(|outer| outer.prefix < inner.prefix && outer.overlaps(*inner))
    };
    let mut outermost: Vec<AddressRange> = ranges.iter().copied().filter(|one| !is_within(one)).collect();
    outermost.sort_unstable();
    outermost.dedup();
    let element = |range: AddressRange| match range.prefix {
        32 => text(range.address),
        prefix => within(range.address, prefix),
    };
    outermost.into_iter().map(element).collect()
}

/// The ranges of these networks.
fn ranges(networks: impl IntoIterator<Item = (Ipv4Addr, u8)>) -> Vec<AddressRange> {
    networks.into_iter().map(|(address, prefix)| AddressRange::new(address, prefix)).collect()
}

/// All addresses of a network.
pub(super) fn within(address: Ipv4Addr, prefix: u8) -> Expression<'static> {
    let network = Prefix { addr: Box::new(text(address)), len: prefix.into() };
    Expression::Named(NamedExpression::Prefix(network))
}

/// Notes the packet, and refuses it.
fn note_and_reject() -> Statement<'static> {
    Statement::Goto(JumpTarget { target: Cow::Borrowed(REFUSAL_CHAIN) })
}

/// Refuses with an answer, so that a program in the guest fails at once instead of waiting.
pub(super) fn reject() -> Statement<'static> {
    Statement::Reject(Some(Reject::new(Some(RejectType::ICMPX), Some(RejectCode::AdminProhibited))))
}

/// Matches packets of a connection that was accepted at its beginning.
pub(super) fn is_answer() -> Statement<'static> {
    let state = CT { key: Cow::Borrowed("state"), ..CT::default() };
    let state = Expression::Named(NamedExpression::CT(CT { family: None, dir: None, ..state }));
    let right = Expression::List(["established", "related"].map(text).to_vec());
    Statement::Match(Match { left: state, right, op: Operator::IN })
}

pub(super) fn is_not(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op: Operator::NEQ })
}

pub(super) fn payload(protocol: &'static str, field: &'static str) -> Expression<'static> {
    let field = PayloadField { protocol: Cow::Borrowed(protocol), field: Cow::Borrowed(field) };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

fn number(value: u16) -> Expression<'static> {
    Expression::Number(value.into())
}

fn any_of(values: impl IntoIterator<Item = Expression<'static>>) -> Expression<'static> {
    Expression::Named(NamedExpression::Set(values.into_iter().map(SetItem::Element).collect()))
}
