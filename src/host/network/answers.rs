//! Which answers of name servers a guest gets. In filtered mode an answer must not carry an address that is not public:
//! the owner of an allowed domain could point it at a router or a database of the host's network (DNS rebinding). The
//! keeper asks this before dnsmasq sees the answer, so that such an address gets neither to the guest nor into the set of
//! the addresses that it may reach.
//!
//! The table of the VM refuses the same addresses by itself ([`super::firewall`]). This filter lets a program in the
//! guest fail at once, with the answer that the name is refused. May use `firewall` and the values of `world`.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::firewall::{AddressRange, METADATA, NEVER};
use crate::world::{NetworkMode, NetworkPolicy, PrivateNetwork};

/// The length of the header of a message.
const HEADER: usize = 12;
/// The types of records that carry addresses: those of RFC 1035, RFC 3596 and RFC 9460.
const A: u16 = 1;
const AAAA: u16 = 28;
const SVCB: u16 = 64;
const HTTPS: u16 = 65;
/// The parameters of the last two that carry addresses.
const IPV4_HINT: u16 = 4;
const IPV6_HINT: u16 = 6;
/// The bit of a truncated message, in its third byte.
const TRUNCATED: u8 = 2;
/// The response code REFUSED.
const REFUSED: u8 = 5;

/// Which answers the guest gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum AnswerFilter {
    /// All.
    All,
    /// Those whose addresses are public, or of these networks.
    Public {
        /// The private networks that the guest may reach.
        or: Vec<PrivateNetwork>,
    },
}

/// A message that is not as RFC 1035 says.
struct Malformed;

impl From<&NetworkPolicy> for AnswerFilter {
    fn from(policy: &NetworkPolicy) -> Self {
        match policy.mode {
            NetworkMode::Filtered => Self::Public { or: policy.host_networks.clone() },
            // In open mode a name may stand for any address, and the table decides what is reached.
            NetworkMode::Off | NetworkMode::Open => Self::All,
        }
    }
}

impl AnswerFilter {
    /// The answer as the guest may have it.
    pub(super) fn pass(&self, answer: Vec<u8>) -> Vec<u8> {
        let Self::Public { or } = self else { return answer };
        let flags = answer.get(2).copied().unwrap_or_default();
        if flags & TRUNCATED != 0 {
            // The guest asks again over TCP, and the last of these records may be cut off.
            return without_records(&answer, None);
        }
        match addresses(&answer) {
            Ok(addresses) if addresses.iter().all(|address| is_allowed(*address, or)) => answer,
            Ok(_) | Err(Malformed) => without_records(&answer, Some(REFUSED)),
        }
    }
}

/// The question of a message alone, with this response code. A message whose question cannot be read has its header left.
fn without_records(message: &[u8], code: Option<u8>) -> Vec<u8> {
    let mut reader = MessageReader { message, at: HEADER };
    let questions = reader.questions().is_ok();
    let end = if questions { reader.at } else { HEADER };
    let mut answer = message.get(..end).unwrap_or(message).to_vec();
    answer.resize(end.max(HEADER), 0);
    if let Some(code) = code {
        answer[3] = answer[3] & 0xf0 | code;
    }
    let first = if questions { 6 } else { 4 };
    answer[first..HEADER].fill(0);
    answer
}

/// The name that the first question of a message is about, in lower case; `None` if it cannot be read. Bytes that are no
/// letters, digits or signs of names are `?`.
pub(super) fn asked_name(message: &[u8]) -> Option<String> {
    let mut reader = MessageReader { message, at: HEADER };
    if reader.count(4).ok()? == 0 {
        return None;
    }
    let mut labels = Vec::new();
    loop {
        // A question is not compressed.
        let length @ 0..=63 = reader.bytes(1).ok()?[0] else { return None };
        if length == 0 {
            break;
        }
        let plain = |byte: &u8| match byte {
            b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => char::from(byte.to_ascii_lowercase()),
            _ => '?',
        };
        labels.push(reader.bytes(length.into()).ok()?.iter().map(plain).collect::<String>());
    }
    let name = labels.join(".");
    // RFC 1035, 2.3.4.
    (!name.is_empty() && name.len() <= 255).then_some(name)
}

/// The answer that a name is refused.
pub(super) fn refusal(question: &[u8]) -> Vec<u8> {
    let mut answer = without_records(question, Some(REFUSED));
    // It is an answer, and no more than that: of the flags of the question, only that the asker wants recursion stays.
    answer[2] = (answer[2] & 0x79) | 0x80;
    answer
}

/// An address that an answer carries.
#[derive(Debug, Clone, Copy)]
enum Carried {
    V4(Ipv4Addr),
    V6(Ipv6Addr),
}

/// The addresses in the records that answer the question.
fn addresses(message: &[u8]) -> Result<Vec<Carried>, Malformed> {
    let mut reader = MessageReader { message, at: HEADER };
    reader.questions()?;
    let mut found = Vec::new();
    for _ in 0..reader.count(6)? {
        reader.name()?;
        let kind = reader.number()?;
        // Class and time to live.
        reader.bytes(6)?;
        let length = reader.number()?;
        let data = reader.bytes(length.into())?;
        match kind {
            A => found.push(v4(data)?),
            AAAA => found.push(v6(data)?),
            SVCB | HTTPS => found.extend(hints(data)?),
            _ => {}
        }
    }
    Ok(found)
}

fn v4(data: &[u8]) -> Result<Carried, Malformed> {
    <[u8; 4]>::try_from(data).map(|octets| Carried::V4(octets.into())).map_err(|_| Malformed)
}

fn v6(data: &[u8]) -> Result<Carried, Malformed> {
    <[u8; 16]>::try_from(data).map(|octets| Carried::V6(octets.into())).map_err(|_| Malformed)
}

/// The addresses that a record of a service names beforehand.
fn hints(data: &[u8]) -> Result<Vec<Carried>, Malformed> {
    let mut reader = MessageReader { message: data, at: 2 };
    reader.name()?;
    let mut found = Vec::new();
    while reader.at < data.len() {
        let (key, length) = (reader.number()?, reader.number()?);
        let value = reader.bytes(length.into())?;
        match key {
            IPV4_HINT => found.extend(value.chunks(4).map(v4).collect::<Result<Vec<_>, _>>()?),
            IPV6_HINT => found.extend(value.chunks(16).map(v6).collect::<Result<Vec<_>, _>>()?),
            _ => {}
        }
    }
    Ok(found)
}

/// Reads a message from its beginning to its end.
struct MessageReader<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> MessageReader<'a> {
    fn bytes(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let bytes = self.message.get(self.at..self.at.saturating_add(length)).ok_or(Malformed)?;
        self.at += length;
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u16, Malformed> {
        let bytes = <[u8; 2]>::try_from(self.bytes(2)?).map_err(|_| Malformed)?;
        Ok(u16::from_be_bytes(bytes))
    }

    /// One of the counts in the header.
    fn count(&self, at: usize) -> Result<u16, Malformed> {
        MessageReader { message: self.message, at }.number()
    }

    /// Passes a name over. What a pointer points at does not matter here, so no pointer is followed.
    fn name(&mut self) -> Result<(), Malformed> {
        loop {
            let length = self.bytes(1)?[0];
            match length {
                0 => return Ok(()),
                1..=63 => drop(self.bytes(length.into())?),
                0xc0..=0xff => return self.bytes(1).map(drop),
                _ => return Err(Malformed),
            }
        }
    }

    fn questions(&mut self) -> Result<(), Malformed> {
        for _ in 0..self.count(4)? {
            self.name()?;
            self.bytes(4)?;
        }
        Ok(())
    }
}

fn is_allowed(address: Carried, networks: &[PrivateNetwork]) -> bool {
    match address {
        Carried::V4(address) => is_v4_allowed(address, networks),
        Carried::V6(address) => is_v6_allowed(address, networks),
    }
}

fn is_v4_allowed(address: Ipv4Addr, networks: &[PrivateNetwork]) -> bool {
    let own = AddressRange::new(address, 32);
    let is_in = |all: &[(Ipv4Addr, u8)]| {
        all.iter().any(|(first, prefix)| AddressRange::new(*first, *prefix).overlaps(own))
    };
    if is_in(&NEVER) || METADATA.contains(&address) {
        return false;
    }
    !is_in(&PrivateNetwork::ALL) || networks.iter().any(|network| network.contains(address))
}

/// The IPv4 address that an IPv6 address stands for: mapped (RFC 4291), of NAT64 (RFC 6052) or of 6to4 (RFC 3056).
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let low = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, a, b] | [0x64, 0xff9b, 0, 0, 0, 0, a, b] | [0x2002, a, b, ..] => {
            Some(low(a, b))
        }
        _ => None,
    }
}

fn is_v6_allowed(address: Ipv6Addr, networks: &[PrivateNetwork]) -> bool {
    if let Some(inner) = embedded(address) {
        return is_v4_allowed(inner, networks);
    }
    let [first, second, third, ..] = address.segments();
    let is_local_nat64 = (first, second, third) == (0x64, 0xff9b, 1);
    // Link-local and the former site-local addresses are fe80::/9 together, unique local ones fc00::/7, multicast ff00::/8.
    !(is_local_nat64 || first & 0xff80 == 0xfe80 || first & 0xfe00 == 0xfc00 || first & 0xff00 == 0xff00)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUESTION: &[u8] = &[1, b'a', 4, b't', b'e', b's', b't', 0, 0, 1, 0, 1];

    fn record(kind: u16, data: &[u8]) -> Vec<u8> {
        let length = u16::try_from(data.len()).unwrap().to_be_bytes();
        [&[0xc0, 12][..], &kind.to_be_bytes(), &[0, 1, 0, 0, 0, 60], &length, data].concat()
    }

    fn answer(records: &[Vec<u8>]) -> Vec<u8> {
        let count = u8::try_from(records.len()).unwrap();
        let head = [0x12, 0x34, 0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0];
        [&head[..], QUESTION, &records.concat()].concat()
    }

    fn refused(answer: &[u8]) -> Vec<u8> {
        let mut head = answer[..HEADER].to_vec();
        head[3] = 0x85;
        head[6..].fill(0);
        [&head[..], QUESTION].concat()
    }

    fn filter(networks: &[&str]) -> AnswerFilter {
        AnswerFilter::Public { or: networks.iter().map(|text| text.parse().unwrap()).collect() }
    }

    #[track_caller]
    fn assert_passes(filter: &AnswerFilter, records: &[Vec<u8>], passes: bool) {
        let answer = answer(records);
        let wanted = if passes { answer.clone() } else { refused(&answer) };
        assert_eq!(filter.pass(answer), wanted);
    }

    #[test]
    fn an_answer_with_an_address_that_is_not_public_is_refused_as_a_whole() {
        let a = |text: &str| record(A, &text.parse::<Ipv4Addr>().unwrap().octets());
        let aaaa = |text: &str| record(AAAA, &text.parse::<Ipv6Addr>().unwrap().octets());
        let public = filter(&[]);
        for text in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "168.63.129.15", "198.18.0.1", "223.255.255.255"]
        {
            assert_passes(&public, &[a(text)], true);
        }
        for text in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.255.255",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.168.0.1",
            "224.0.0.251",
            "255.255.255.255",
        ] {
            assert_passes(&public, &[a(text)], false);
            assert_passes(&public, &[a("1.1.1.1"), a(text)], false);
        }
        for text in ["2606:4700::1111", "64:ff9b::1.1.1.1", "::ffff:1.1.1.1", "2002:101:101::1"] {
            assert_passes(&public, &[aaaa(text)], true);
        }
        for text in [
            "::",
            "::1",
            "::10.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1.1.1.1",
            "2002:a00:1::1",
            "fe80::1",
            "fec0::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
        ] {
            assert_passes(&public, &[aaaa(text)], false);
        }
        let alias = record(5, &[0xc0, 12]);
        assert_passes(&public, &[alias.clone(), a("1.1.1.1")], true);
        assert_passes(&public, &[alias, a("10.0.0.1")], false);
    }

    #[test]
    fn addresses_of_allowed_networks_pass_and_those_of_clouds_never_do() {
        let a = |text: &str| vec![record(A, &text.parse::<Ipv4Addr>().unwrap().octets())];
        let some = filter(&["10.1.0.0/16", "100.64.0.0/10"]);
        assert_passes(&some, &a("10.1.2.3"), true);
        assert_passes(&some, &a("10.2.0.1"), false);
        assert_passes(&some, &a("100.100.100.199"), true);
        assert_passes(&some, &a("100.100.100.200"), false);
        assert_passes(&AnswerFilter::All, &a("10.2.0.1"), true);
    }

    #[test]
    fn the_addresses_that_a_service_names_count_too() {
        let https = |key: u16, value: &[u8]| {
            let length = u16::try_from(value.len()).unwrap().to_be_bytes();
            vec![record(
                HTTPS,
                &[&[0, 1, 0][..], &[0, 1, 0, 3, 2, b'h', b'2'], &key.to_be_bytes(), &length, value].concat(),
            )]
        };
        assert_passes(&filter(&[]), &https(IPV4_HINT, &[1, 1, 1, 1]), true);
        assert_passes(&filter(&[]), &https(IPV4_HINT, &[1, 1, 1, 1, 10, 0, 0, 1]), false);
        assert_passes(&filter(&[]), &https(IPV4_HINT, &[1, 1, 1]), false);
        assert_passes(&filter(&[]), &https(IPV6_HINT, &Ipv6Addr::LOCALHOST.octets()), false);
    }

    #[test]
    fn a_truncated_answer_keeps_its_question_and_asks_for_another_try() {
        let mut cut = answer(&[record(A, &[10, 0, 0, 1])]);
        cut.truncate(cut.len() - 2);
        cut[2] |= TRUNCATED;
        let passed = filter(&[]).pass(cut.clone());
        assert_eq!((passed[2], passed[3] & 15, &passed[HEADER..]), (cut[2], 0, QUESTION));
        assert_eq!(passed[6..HEADER], [0; 6]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_filter_panic_or_pass_a_private_address(
            start in proptest::collection::vec(any::<u8>(), 0..80),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            drop(filter(&[]).pass(start));
            let mut bytes = answer(&[record(A, &[10, 0, 0, 1]), record(AAAA, &[0; 16])]);
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            drop(filter(&[]).pass(bytes));
        }
    }
}
