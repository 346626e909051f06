//! The tables of nftables as the kernel has them.
//!
//! nixbox notes how a table is right after nft made it, and compares that with the table later: any change of it by others
//! is found. Both are read from the kernel and not from a listing of nft, because nft is a process of its own, and a network is
//! looked at often. A [`RulesDigest`] covers all that decides about packets, and nothing that changes by itself.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::nf_netlink::{self, Answers, Attribute, Family, NfNetlink, Question, text};

/// For how long a look at the tables is repeated while others change them. One look takes less than a millisecond.
const LIMIT: Duration = Duration::from_secs(10);

/// Why the tables cannot be looked at.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    /// EPERM: CAP_NET_ADMIN is missing.
    #[error("cannot ask the kernel for the rules of nftables")]
    Kernel(#[from] io::Error),
    #[error("the rules of nftables changed all the time for {LIMIT:?}, so that they could not be read")]
    Unsteady,
}

type Result<T, E = TablesError> = std::result::Result<T, E>;

/// The name of the table, in each object: `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE` and so on.
const TABLE: u16 = 1;
/// `NFTA_CHAIN_NAME`, and `NFTA_SET_NAME` or `NFTA_SET_ELEM_LIST_SET`.
const CHAIN_NAME: u16 = 3;
const SET_NAME: u16 = 2;

/// The attributes of an object that decide about packets, or belong to what a person has written. The others are counters,
/// handles, and numbers of who uses the object.
fn lasting(kind: Question) -> &'static [u16] {
    match kind {
        // Name, flags, a text, and the program that owns it.
        Question::Table => &[1, 2, 6, 7],
        // Name, hook, policy, type, flags and a text.
        Question::Chain => &[3, 4, 5, 7, 10, 12],
        // Chain, expressions, what is of iptables, and a text.
        Question::Rule => &[2, 4, 5, 7],
        // Name, flags, kinds and lengths of keys and data, policy, size, times, a text, kind of objects, and expressions.
        Question::Set => &[2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 17, 18],
        Question::Element | Question::Generation => &[],
    }
}

/// `NFTA_SET_FLAGS`, and the flag of a set that is written within a rule, and ends with it.
const SET_FLAGS: u16 = 3;
const ANONYMOUS: u32 = 1;
/// `NFTA_SET_ELEM_LIST_ELEMENTS`.
const ELEMENTS: u16 = 3;
/// `NFTA_RULE_CHAIN`, `NFTA_RULE_HANDLE` and `NFTA_RULE_USERDATA`.
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_TEXTS: u16 = 7;
/// `NFTNL_UDATA_RULE_COMMENT`, as nft writes it.
const COMMENT: u8 = 0;
/// `NFTA_GEN_ID`.
const GENERATION: u16 = 1;

/// What a table, or a rule, is recognized by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RulesDigest(blake3::Hash);

impl fmt::Display for RulesDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.to_hex().fmt(formatter)
    }
}

/// A rule in a chain of another program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundRule {
    pub(super) handle: u64,
    /// The comment that nft has given it; empty if there is none.
    pub(super) comment: String,
    pub(super) digest: RulesDigest,
}

/// The tables of one network namespace.
#[derive(Debug)]
pub(super) struct Tables(NfNetlink);

/// Adds what lasts of an object. The lengths keep two different objects from being the same bytes.
fn add(hasher: &mut blake3::Hasher, kind: Question, object: &[u8]) {
    hasher.update(&[kind as u8]);
    for attribute in Attribute::all(object).filter(|one| lasting(kind).contains(&one.kind)) {
        hasher.update(&attribute.kind.to_ne_bytes());
        hasher.update(&attribute.payload.len().to_ne_bytes());
        hasher.update(attribute.payload);
    }
}

fn is_anonymous(set: &[u8]) -> bool {
    let flags = Attribute::of(set, SET_FLAGS).and_then(|flags| flags.first_chunk());
    flags.is_some_and(|flags| u32::from_be_bytes(*flags) & ANONYMOUS != 0)
}

/// The comment among the texts of a rule: each has a kind, a length and its bytes.
fn comment(texts: &[u8]) -> String {
    let mut rest = texts;
    while let [kind, length, after @ ..] = rest {
        let Some((value, after)) = after.split_at_checked(usize::from(*length)) else { break };
        if *kind == COMMENT {
            return String::from_utf8_lossy(text(value)).into_owned();
        }
        rest = after;
    }
    String::new()
}

fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

impl Tables {
    /// Those of the network namespace of this thread.
    pub(super) fn here() -> io::Result<Self> {
        Ok(Self::of_socket(nf_netlink::open_socket()?))
    }

    /// Those of the network namespace in which this socket of [`nf_netlink`] was opened.
    pub(super) fn of_socket(socket: OwnedFd) -> Self {
        Self(NfNetlink::of_socket(socket))
    }

    /// The table of this name in the family `inet`, or `None`.
    pub(super) fn digest(&self, name: &str) -> Result<Option<RulesDigest>> {
        self.undisturbed(|| self.read(name))
    }

    /// Whether there is a table of this name in the family `inet`.
    pub(super) fn has_table(&self, name: &str) -> Result<bool> {
        Ok(self.table(name)?.is_some())
    }

    /// The elements of a set in the family `inet`, as the kernel describes them.
    pub(super) fn elements(&self, table: &str, set: &str) -> Result<Vec<Vec<u8>>> {
        self.undisturbed(|| self.elements_of(table, set))
    }

    /// The rules of a chain in the family `ip`, or `None` if there is no such chain.
    pub(super) fn rules(&self, table: &str, chain: &str) -> Result<Option<Vec<FoundRule>>> {
        self.undisturbed(|| {
            let named = [(TABLE, table), (CHAIN_NAME, chain)];
            match self.0.ask(Question::Chain, Answers::One, Family::Ipv4, &named) {
                Err(error) if is_missing(&error) => return Ok(None),
                found => drop(found?),
            }
            let rules = self.0.ask(
                Question::Rule,
                Answers::All,
                Family::Ipv4,
                &[(TABLE, table), (RULE_CHAIN, chain)],
            )?;
            let is_in = |rule: &&Vec<u8>| is_named(rule, TABLE, table) && is_named(rule, RULE_CHAIN, chain);
            Ok(Some(rules.iter().filter(is_in).map(|rule| found_rule(rule)).collect()))
        })
    }

    fn table(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match self.0.ask(Question::Table, Answers::One, Family::Inet, &[(TABLE, name)]) {
            Err(error) if is_missing(&error) => Ok(None),
            found => Ok(found?.pop()),
        }
    }

    fn read(&self, name: &str) -> io::Result<Option<RulesDigest>> {
        let Some(table) = self.table(name)? else { return Ok(None) };
        let mut hasher = blake3::Hasher::new();
        add(&mut hasher, Question::Table, &table);
        for kind in [Question::Chain, Question::Rule, Question::Set] {
            // An old kernel has no filter for some of these, and answers with those of all tables.
            let objects = self.0.ask(kind, Answers::All, Family::Inet, &[(TABLE, name)])?;
            for object in objects.iter().filter(|object| is_named(object, TABLE, name)) {
                add(&mut hasher, kind, object);
                if kind == Question::Set && is_anonymous(object) {
                    self.add_elements(&mut hasher, name, object)?;
                }
            }
        }
        Ok(Some(RulesDigest(hasher.finalize())))
    }

    /// Adds the elements of a set that is written within a rule. Those of other sets come and go.
    fn add_elements(&self, hasher: &mut blake3::Hasher, table: &str, set: &[u8]) -> io::Result<()> {
        let name = text(Attribute::of(set, SET_NAME).unwrap_or_default());
        let mut elements = self.elements_of(table, &String::from_utf8_lossy(name))?;
        // The kernel lists a set in the order of its hash table.
        elements.sort_unstable();
        for element in elements {
            hasher.update(&element.len().to_ne_bytes());
            hasher.update(&element);
        }
        Ok(())
    }

    fn elements_of(&self, table: &str, set: &str) -> io::Result<Vec<Vec<u8>>> {
        let named = [(TABLE, table), (SET_NAME, set)];
        let lists = self.0.ask(Question::Element, Answers::All, Family::Inet, &named)?;
        let elements = lists.iter().filter_map(|list| Attribute::of(list, ELEMENTS));
        Ok(elements.flat_map(Attribute::all).map(|element| element.payload.to_vec()).collect())
    }

    /// What `read` returns of a moment in which nobody changed the tables.
    fn undisturbed<T>(&self, read: impl Fn() -> io::Result<T>) -> Result<T> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let before = self.generation()?;
            let found = read();
            if self.generation()? == before {
                return Ok(found?);
            }
            if Instant::now() > deadline {
                return Err(TablesError::Unsteady);
            }
        }
    }

    /// The number of the last change of the tables in this network namespace.
    fn generation(&self) -> io::Result<Option<Vec<u8>>> {
        let answer = self.0.ask(Question::Generation, Answers::One, Family::Any, &[])?;
        Ok(answer.first().and_then(|answer| Attribute::of(answer, GENERATION)).map(<[u8]>::to_vec))
    }
}

fn is_named(object: &[u8], kind: u16, name: &str) -> bool {
    Attribute::of(object, kind).is_some_and(|found| text(found) == name.as_bytes())
}

fn found_rule(rule: &[u8]) -> FoundRule {
    let handle = Attribute::of(rule, RULE_HANDLE).and_then(|handle| handle.first_chunk());
    let mut hasher = blake3::Hasher::new();
    add(&mut hasher, Question::Rule, rule);
    FoundRule {
        handle: handle.map_or(0, |handle| u64::from_be_bytes(*handle)),
        comment: comment(Attribute::of(rule, RULE_TEXTS).unwrap_or_default()),
        digest: RulesDigest(hasher.finalize()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_found_among_the_texts_of_a_rule() {
        assert_eq!(comment(&[7, 2, 1, 2, 0, 3, b'a', b'b', 0]), "ab");
        assert_eq!(comment(&[7, 2, 1, 2]), "");
        assert_eq!(comment(&[0, 9, b'a']), "", "cut short");
    }

    #[test]
    fn what_changes_by_itself_is_no_part_of_a_digest() {
        let rule = |handle: u8, expression: u8| {
            let handle = [12, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, handle];
            [handle.as_slice(), &[5, 0, 4, 0, expression, 0, 0, 0]].concat()
        };
        assert_eq!(found_rule(&rule(1, 1)).handle, 1);
        assert_eq!(found_rule(&rule(1, 1)).digest, found_rule(&rule(2, 1)).digest);
        assert_ne!(found_rule(&rule(1, 1)).digest, found_rule(&rule(1, 2)).digest);
    }
}
