//! Finds out whether another firewall of the host drops what the guest of a VM sends or is answered.
//!
//! A packet has to be accepted by each base chain of its hook, so nixbox's own tables cannot open what another one closes.
//! Where a firewall offers a chain for that, nixbox uses it ([`super::offered`]). For the others this finds the rule or the
//! policy that drops, so that a person can be told which it is and what allows the traffic.
//!
//! The ruleset is walked as the kernel would for one packet, from nft's listing. A rule that nixbox cannot read is taken
//! as one that does not match, and the finding says then that it is not certain. Whatever the listing holds, the walk ends:
//! it looks at no more than [`MOST_RULES`] rules. May use the errors of this module and `offered`.

use std::collections::HashMap;
use std::fmt;
use std::net::Ipv4Addr;

use serde_json::Value;

use super::nft::objects;
use super::offered::{OFFERED, TABLE};
use matching::{PacketValue, Truth};

mod matching;

/// How many rules are looked at for one packet. Rulesets of some thousand rules exist.
const MOST_RULES: usize = 100_000;
/// How deep jumps may lead; the kernel allows 16.
const DEEPEST: usize = 16;
/// Begins the names of nixbox's own tables.
const OWN: &str = "nixbox_";

/// What does not let packets of a guest pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    place: String,
    is_certain: bool,
    remedy: String,
}

impl Obstacle {
    /// The command that lets them pass.
    #[must_use]
    pub fn remedy(&self) -> &str {
        &self.remedy
    }

    /// What drops them, without what to do.
    #[must_use]
    pub fn place(&self) -> String {
        let unless =
            if self.is_certain { "" } else { ", unless a rule that nixbox cannot read accepts them" };
        format!("{}{unless}", self.place)
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}; to let them pass: {}", self.place(), self.remedy)
    }
}

/// A packet, as far as rules ask for it. `None` stands for what is not known.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) hook: &'static str,
    pub(super) input: Option<String>,
    pub(super) output: Option<String>,
    pub(super) source: Option<Ipv4Addr>,
    pub(super) destination: Option<Ipv4Addr>,
    pub(super) protocol: &'static str,
    pub(super) source_port: Option<u16>,
    pub(super) destination_port: Option<u16>,
    /// What conntrack says of it.
    pub(super) state: &'static str,
}

/// How the packets of guests are known on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Guests {
    /// Their network.
    pub(super) network: String,
    /// What the names of their devices begin with.
    pub(super) devices: &'static str,
}

/// A server on the Internet, for which any other would do.
const SERVER: Ipv4Addr = Ipv4Addr::new(1, 1, 1, 1);

/// A question of a guest to a server on the Internet, and its answer, as they pass through the host. The guest is behind
/// the device `uplink`, and `world` is the device through which the host reaches the Internet.
pub(super) fn exchange(uplink: &str, guest: Option<Ipv4Addr>, world: Option<String>) -> [Packet; 2] {
    let question = Packet {
        hook: "forward",
        input: Some(uplink.to_owned()),
        output: world.clone(),
        source: guest,
        destination: Some(SERVER),
        protocol: "tcp",
        source_port: None,
        destination_port: Some(443),
        state: "new",
    };
    let answer = Packet {
        input: world,
        output: Some(uplink.to_owned()),
        // The address of the guest takes the place of the host's before this hook.
        source: Some(SERVER),
        destination: guest,
        source_port: Some(443),
        destination_port: None,
        state: "established",
        ..question.clone()
    };
    [question, answer]
}

/// What a guest whose TAP is a device of the host asks of the host itself: an address, and a name.
pub(super) fn questions_to_host(tap: &str, gateway: Ipv4Addr, guest: Ipv4Addr) -> [Packet; 2] {
    let ask = |source, destination, source_port, port| Packet {
        hook: "input",
        input: Some(tap.to_owned()),
        output: None,
        source: Some(source),
        destination: Some(destination),
        protocol: "udp",
        source_port,
        destination_port: Some(port),
        state: "new",
    };
    [ask(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, Some(68), 67), ask(guest, gateway, None, 53)]
}

/// The first thing that drops one of these packets.
pub(super) fn find(ruleset: &Value, packets: &[Packet], guests: &Guests) -> Option<Obstacle> {
    let mut rules: HashMap<ChainKey<'_>, Vec<&Value>> = HashMap::new();
    for rule in objects(ruleset, "rule") {
        let key = (word(rule, "family"), word(rule, "table"), word(rule, "chain"));
        rules.entry(key).or_default().push(rule);
    }
    let walk = |packet| Walk { ruleset, rules: &rules, packet, left: MOST_RULES, is_certain: true };
    packets.iter().find_map(|packet| walk(packet).all(guests))
}

/// The family, the table and the name of a chain.
type ChainKey<'a> = (&'a str, &'a str, &'a str);

/// The legacy iptables drops what it does not accept, and offers no chain for others.
pub(super) fn find_legacy(saved: &str) -> Option<Obstacle> {
    let begins = |text: &str| saved.lines().any(|line| line.starts_with(text));
    let offered = OFFERED.iter().any(|chain| begins(&format!(":{} ", chain.name)));
    (begins(":FORWARD DROP") && !offered).then(|| Obstacle {
        place: "the policy of chain FORWARD in table filter of the legacy iptables drops packets of VMs".to_owned(),
        is_certain: false,
        remedy: "sudo iptables-legacy -I FORWARD -i nixbox-+ -j ACCEPT && sudo iptables-legacy -I FORWARD -o nixbox-+ -j ACCEPT"
            .to_owned(),
    })
}

/// What becomes of a packet.
enum Fate {
    Accepted,
    /// By what it was dropped.
    Dropped(String),
    /// No rule of the chain has decided.
    Open,
    /// A rule sends it back to the chain before.
    Returned,
}

/// The walk of one packet.
struct Walk<'a> {
    ruleset: &'a Value,
    rules: &'a HashMap<ChainKey<'a>, Vec<&'a Value>>,
    packet: &'a Packet,
    left: usize,
    is_certain: bool,
}

fn word<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

/// A text of the ruleset as it may be printed and pasted.
fn shown(text: &str) -> String {
    text.chars()
        .filter(|letter| letter.is_ascii_alphanumeric() || "_-./".contains(*letter))
        .take(64)
        .collect()
}

impl<'a> Walk<'a> {
    fn all(mut self, guests: &Guests) -> Option<Obstacle> {
        let ruleset = self.ruleset;
        let bases = objects(ruleset, "chain").filter(|chain| {
            word(chain, "hook") == self.packet.hook
                && matches!(word(chain, "family"), "ip" | "inet")
                && !word(chain, "table").starts_with(OWN)
        });
        for base in bases {
            self.is_certain = true;
            let dropped = match self.chain(base, word(base, "name"), 0) {
                Fate::Accepted => None,
                Fate::Dropped(by) => Some(by),
                Fate::Open | Fate::Returned => (word(base, "policy") == "drop").then(|| {
                    let (family, table, name) =
                        (word(base, "family"), word(base, "table"), word(base, "name"));
                    format!(
                        "the policy of chain {} in table {} {} drops",
                        shown(name),
                        shown(family),
                        shown(table)
                    )
                }),
            };
            if let Some(by) = dropped {
                let place = format!("{by} packets of VMs");
                return Some(Obstacle {
                    place,
                    is_certain: self.is_certain,
                    remedy: self.remedy(base, guests),
                });
            }
        }
        None
    }

    /// The command that lets the packets pass: in the words of the firewall where they are known.
    fn remedy(&self, base: &Value, guests: &Guests) -> String {
        let (family, table, chain) =
            (shown(word(base, "family")), shown(word(base, "table")), shown(word(base, "name")));
        let is_ufw = |chain: &Value| word(chain, "name").starts_with("ufw-");
        let Guests { network, devices } = guests;
        if self.packet.hook == "input" {
            let ports = self.packet.destination_port.unwrap_or_default();
            return format!(
                "sudo nft 'insert rule {family} {table} {chain} iifname \"{devices}*\" udp dport {ports} accept'"
            );
        }
        if table == "firewalld" {
            return format!(
                "sudo firewall-cmd --permanent --zone=trusted --add-source={network} && sudo firewall-cmd --reload"
            );
        }
        if table == TABLE && objects(self.ruleset, "chain").any(is_ufw) {
            return format!("sudo ufw route allow from {network}");
        }
        format!(
            "sudo nft 'insert rule {family} {table} {chain} iifname \"{devices}*\" accept; insert rule {family} {table} {chain} \
             oifname \"{devices}*\" accept'"
        )
    }

    fn chain(&mut self, base: &Value, name: &str, depth: usize) -> Fate {
        let (family, table) = (word(base, "family"), word(base, "table"));
        let offered = OFFERED.iter().find(|offered| family == "ip" && table == TABLE && offered.name == name);
        if offered.is_some_and(|offered| offered.first) {
            // nixbox's own rules are there, or will be.
            return Fate::Accepted;
        }
        let rules = self.rules;
        for rule in rules.get(&(family, table, name)).into_iter().flatten() {
            if self.left == 0 || depth > DEEPEST {
                self.is_certain = false;
                return Fate::Open;
            }
            self.left -= 1;
            match self.rule(base, name, rule, depth) {
                Fate::Open => {}
                Fate::Returned => break,
                decided => return decided,
            }
        }
        if offered.is_some() { Fate::Accepted } else { Fate::Open }
    }

    fn rule(&mut self, base: &Value, chain: &str, rule: &'a Value, depth: usize) -> Fate {
        let mut matches = Truth::Yes;
        for statement in rule["expr"].as_array().into_iter().flatten() {
            let Some((kind, body)) = statement.as_object().and_then(|object| object.iter().next()) else {
                matches = Truth::Unknown;
                continue;
            };
            let verdict = match kind.as_str() {
                "match" => {
                    match self.matches(body) {
                        Truth::Yes => {}
                        Truth::No => return Fate::Open,
                        Truth::Unknown => matches = Truth::Unknown,
                    }
                    continue;
                }
                // These change nothing about whether the packet passes.
                "counter" | "log" | "mangle" | "notrack" => continue,
                "set" if body["stmt"].is_null() => continue,
                "xt" if word(body, "type") == "target" => continue,
                "vmap" => self.mapped(body),
                "accept" | "drop" | "reject" | "return" | "jump" | "goto" | "continue" => {
                    Some((kind.as_str(), body))
                }
                // A limit, an extension of iptables, or something that this nixbox does not know.
                _ => None,
            };
            let Some((verdict, body)) = verdict else {
                // What is not known of a map may be a verdict.
                self.is_certain &= kind != "vmap";
                matches = Truth::Unknown;
                continue;
            };
            if matches == Truth::Unknown {
                // A rule that may drop some packets drops no guest's by intention, and one that may accept might.
                self.is_certain &= matches!(verdict, "drop" | "reject" | "continue");
                return Fate::Open;
            }
            return self.verdict(base, chain, (verdict, body), depth);
        }
        Fate::Open
    }

    fn verdict(&mut self, base: &Value, chain: &str, (verdict, body): (&str, &Value), depth: usize) -> Fate {
        match verdict {
            "accept" => Fate::Accepted,
            "drop" | "reject" => {
                let (family, table) = (word(base, "family"), word(base, "table"));
                let rule = if verdict == "drop" { "drops" } else { "rejects" };
                Fate::Dropped(format!(
                    "a rule of chain {} in table {} {} {rule}",
                    shown(chain),
                    shown(family),
                    shown(table)
                ))
            }
            "return" => Fate::Returned,
            "jump" | "goto" => match self.chain(base, word(body, "target"), depth + 1) {
                Fate::Open | Fate::Returned if verdict == "jump" => Fate::Open,
                Fate::Open | Fate::Returned => Fate::Returned,
                decided => decided,
            },
            _ => Fate::Open,
        }
    }

    /// The verdict of a map of verdicts for this packet. `None` if that is not known.
    fn mapped(&self, body: &'a Value) -> Option<(&'a str, &'a Value)> {
        for entry in body["data"]["set"].as_array()? {
            let is_it = Truth::any(self.values(&body["key"])?.iter().map(|own| own.is(&entry[0])));
            match is_it {
                Truth::Yes => {
                    let (verdict, body) = entry[1].as_object()?.iter().next()?;
                    return Some((verdict, body));
                }
                Truth::No => {}
                Truth::Unknown => return None,
            }
        }
        Some(("continue", &Value::Null))
    }

    fn matches(&self, body: &Value) -> Truth {
        let Some(values) = self.values(&body["left"]) else { return Truth::Unknown };
        let is = Truth::any(values.iter().map(|own| own.is(&body["right"])));
        match word(body, "op") {
            "==" | "in" => is,
            "!=" => is.not(),
            _ => Truth::Unknown,
        }
    }

    /// What the packet has where a rule looks: some of these forms. `None` if that is not known.
    fn values(&self, left: &Value) -> Option<Vec<PacketValue>> {
        let packet = self.packet;
        let text = |text: &str| Some(vec![PacketValue::Text(text.to_owned())]);
        let device = |name: &Option<String>| text(name.as_deref()?);
        let address = |address: Option<Ipv4Addr>| Some(vec![PacketValue::Address(address?)]);
        if let Some(payload) = left.get("payload") {
            let of = word(payload, "protocol");
            let is_this = matches!(of, "ip" | "th") || of == packet.protocol;
            let port = |port: Option<u16>| Some(vec![PacketValue::Number(port?.into())]);
            return match word(payload, "field") {
                "protocol" if of == "ip" => self.protocol(),
                "saddr" if of == "ip" => address(packet.source),
                "daddr" if of == "ip" => address(packet.destination),
                "sport" if is_this => port(packet.source_port),
                "dport" if is_this => port(packet.destination_port),
                // A packet of another protocol has nothing there.
                _ if matches!(of, "ip6" | "icmp" | "icmpv6" | "tcp" | "udp" | "sctp" | "dccp")
                    && !is_this =>
                {
                    Some(vec![])
                }
                _ => None,
            };
        }
        if let Some(ct) = left.get("ct") {
            return match word(ct, "key") {
                "state" => text(packet.state),
                // No address of the guest's packets is replaced by another before it is forwarded.
                "status" if packet.state == "new" => Some(vec![]),
                _ => None,
            };
        }
        match word(left.get("meta")?, "key") {
            "iifname" | "iif" => device(&packet.input),
            "oifname" | "oif" => device(&packet.output),
            "l4proto" => self.protocol(),
            "nfproto" => text("ipv4"),
            "protocol" => text("ip"),
            _ => None,
        }
    }

    fn protocol(&self) -> Option<Vec<PacketValue>> {
        Some(vec![PacketValue::Protocol(self.packet.protocol)])
    }
}

#[cfg(test)]
mod tests;
