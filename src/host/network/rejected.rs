//! The addresses and ports to which packets of the guest were refused: a set in the table of the VM, which the rules that refuse
//! fill. The kernel keeps the set, and forgets an element a day after the last packet.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::nf_netlink::Attribute;
use super::tables::{Tables, TablesError};
use crate::world::{RefusedDestination, Transport};

/// The name of the set.
pub(super) const REJECTED_SET: &str = "rejected";

/// How long an element is kept after the last packet, in seconds.
pub(super) const KEPT: u32 = 24 * 60 * 60;

/// How many elements the set has at most. What is refused beyond that is not noted.
pub(super) const MOST: u32 = 1024;

/// `NFTA_SET_ELEM_KEY`, `NFTA_SET_ELEM_EXPIRATION` and `NFTA_DATA_VALUE`.
const KEY: u16 = 1;
const EXPIRATION: u16 = 5;
const VALUE: u16 = 1;

/// The elements of the set of this table, the last refused first.
///
/// # Errors
/// [`TablesError`]; for a table without such a set, as an earlier nixbox made it, that of the kernel.
pub(super) fn find(tables: &Tables, table: &str) -> Result<Vec<RefusedDestination>, TablesError> {
    let elements = tables.elements(table, REJECTED_SET)?;
    let mut found: Vec<_> = elements.iter().filter_map(|element| destination(element)).collect();
    found.sort_by_key(|one: &RefusedDestination| (one.last, one.address, one.transport, one.port));
    Ok(found)
}

/// An element, unless it is of a kind that nixbox does not put into the set.
fn destination(element: &[u8]) -> Option<RefusedDestination> {
    // Each part of the key is padded to four bytes.
    let key: [u8; 12] = Attribute::of(Attribute::of(element, KEY)?, VALUE)?.try_into().ok()?;
    let [a, b, c, d, protocol, _, _, _, high, low, _, _] = key;
    let transport = match protocol {
        6 => Transport::Tcp,
        17 => Transport::Udp,
        _ => return None,
    };
    let left = Attribute::of(element, EXPIRATION)?.try_into().ok()?;
    let left = Duration::from_millis(u64::from_be_bytes(left));
    Some(RefusedDestination {
        address: Ipv4Addr::new(a, b, c, d),
        transport,
        port: u16::from_be_bytes([high, low]),
        last: Duration::from_secs(KEPT.into()).saturating_sub(left),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_says_what_was_refused_and_when() {
        let key = [192, 0, 2, 7, 6, 0, 0, 0, 1, 187, 0, 0];
        let expiration = u64::to_be_bytes((24 * 60 * 60 - 90) * 1000);
        let element = |key: &[u8], expiration: &[u8]| {
            let mut element = vec![20, 0, 1, 0x80, 16, 0, 1, 0];
            element.extend_from_slice(key);
            element.extend_from_slice(&[12, 0, 5, 0]);
            element.extend_from_slice(expiration);
            element
        };
        let expected = RefusedDestination {
            address: Ipv4Addr::new(192, 0, 2, 7),
            transport: Transport::Tcp,
            port: 443,
            last: Duration::from_secs(90),
        };
        assert_eq!(destination(&element(&key, &expiration)), Some(expected));
        assert_eq!(destination(&element(&[0; 12], &expiration)), None, "no protocol with ports");
        assert_eq!(destination(&[]), None);
        assert_eq!(destination(&element(&key, &expiration)[..20]), None, "cut short");
    }
}
