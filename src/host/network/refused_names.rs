//! The names that a guest asked for and may not have, in filtered mode.
//!
//! dnsmasq asks the [`keeper`](super::keeper) for the allowed names at one address, and for all others at [`REFUSER`]. There the
//! keeper asks nobody: it notes the name and answers that it is refused. What was noted is told to each client of a Unix
//! socket of its own, as JSON. The notes are in memory, have at most [`MOST`] names, and end with the keeper, so that a guest
//! that asks for many different names fills nothing.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;

use super::answers;
use super::reserve::Reserve;
use crate::world::RefusedName;

/// Where the keeper refuses names, in the namespace.
pub(super) const REFUSER: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 5301);

/// The socket at which the keeper tells the names, in the runtime directory.
pub(super) const SOCKET: &str = "keeper-names.sock";

/// How many names are noted. One more takes the place of the one that was asked for longest ago.
const MOST: usize = 256;

/// How long the keeper may take to tell them, and a client to read them.
const LIMIT: Duration = Duration::from_secs(5);

/// More than the names take: each has at most 255 bytes, and a byte at most six characters of JSON.
const TOLD_LIMIT: u64 = 1 << 20;

/// A name as it is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ToldName {
    name: String,
    times: u64,
    /// How long ago it was asked for last, in milliseconds.
    ago_ms: u64,
}

/// How often a name was asked for, and when last.
#[derive(Debug, Clone, Copy)]
struct Asked {
    times: u64,
    last: Instant,
}

/// The names that were asked for.
#[derive(Debug, Clone, Default)]
pub(super) struct RefusedNames(Arc<Mutex<BTreeMap<String, Asked>>>);

impl RefusedNames {
    fn names(&self) -> MutexGuard<'_, BTreeMap<String, Asked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, name: String) {
        let mut names = self.names();
        let oldest = names.iter().min_by_key(|(_, asked)| asked.last).map(|(name, _)| name.clone());
        if let Some(oldest) = oldest
            && names.len() >= MOST
            && !names.contains_key(&name)
        {
            names.remove(&oldest);
        }
        let last = Instant::now();
        let asked = names.entry(name).or_insert(Asked { times: 0, last });
        *asked = Asked { times: asked.times.saturating_add(1), last };
    }

    fn told(&self) -> Vec<ToldName> {
        let told = |(name, asked): (&String, &Asked)| ToldName {
            name: name.clone(),
            times: asked.times,
            ago_ms: u64::try_from(asked.last.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        self.names().iter().map(told).collect()
    }

    /// Refuses each question that arrives at this socket, and returns only if nothing can arrive any more.
    pub(super) fn refuse(&self, questions: &UdpSocket) {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = questions.recv_from(&mut buffer) {
            let question = &buffer[..length];
            if let Some(name) = answers::asked_name(question) {
                self.note(name);
            }
            // dnsmasq asks again if the answer is lost.
            questions.send_to(&answers::refusal(question), from).ok();
        }
    }

    /// Tells each client of this socket the names, and returns only if no client can come any more.
    pub(super) fn tell(&self, clients: &UnixListener) {
        let Ok(mut reserve) = Reserve::new() else { return };
        while let Ok(accepted) = reserve.accept(|| clients.accept()) {
            let Some((mut client, _)) = accepted else { continue };
            let text = serde_json::to_vec(&self.told()).unwrap_or_default();
            // A client that reads nothing must not keep the others waiting.
            if client.set_write_timeout(Some(LIMIT)).is_ok() {
                client.write_all(&text).ok();
            }
        }
    }
}

/// Asks the keeper with this runtime directory for the names, the last first.
///
/// # Errors
/// If there is no keeper, or one of a nixbox that noted no names.
pub(super) async fn ask(runtime: &Path) -> io::Result<Vec<RefusedName>> {
    let asked = async {
        let keeper = tokio::net::UnixStream::connect(runtime.join(SOCKET)).await?;
        let mut text = Vec::new();
        keeper.take(TOLD_LIMIT).read_to_end(&mut text).await?;
        Ok::<_, io::Error>(text)
    };
    let text = tokio::time::timeout(LIMIT, asked).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let mut told: Vec<ToldName> = serde_json::from_slice(&text)?;
    told.sort_by_key(|told| told.ago_ms);
    let name =
        |ToldName { name, times, ago_ms }| RefusedName { name, times, last: Duration::from_millis(ago_ms) };
    Ok(told.into_iter().map(name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_that_were_asked_for_longest_ago_make_room() {
        let names = RefusedNames::default();
        for number in 0..MOST + 2 {
            names.note(format!("n{number}.test"));
            names.note("often.test".to_owned());
        }
        let told = names.told();
        assert_eq!(told.len(), MOST);
        let has = |wanted: &str| told.iter().find(|told| told.name == wanted).map(|told| told.times);
        assert_eq!(has("often.test"), Some(MOST as u64 + 2));
        assert_eq!((has("n0.test"), has("n1.test"), has("n2.test")), (None, None, None));
        assert_eq!(has(&format!("n{}.test", MOST + 1)), Some(1));
    }

    #[tokio::test]
    async fn a_client_is_told_and_questions_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert!(ask(directory.path()).await.is_err());
        let names = RefusedNames::default();
        let clients = UnixListener::bind(directory.path().join(SOCKET)).unwrap();
        let teller = names.clone();
        std::thread::spawn(move || teller.tell(&clients));
        assert_eq!(ask(directory.path()).await.unwrap(), []);
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = server.local_addr().unwrap();
        let refuser = names.clone();
        std::thread::spawn(move || refuser.refuse(&server));
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03Www\x07refused\x04test\0\0\x01\0\x01";
        for asked in [&question[..], b"\x12", &question[..14]] {
            client.send_to(asked, address).unwrap();
            let mut answer = [0; 512];
            let length = client.recv(&mut answer).unwrap();
            assert_eq!(
                (&answer[..1], answer[2] & 0x80, answer[3] & 0xf),
                (&b"\x12"[..], 0x80, 5),
                "{asked:?}"
            );
            assert!(length >= 12);
        }
        let told = ask(directory.path()).await.unwrap();
        assert_eq!(
            told.iter().map(|told| (told.name.as_str(), told.times)).collect::<Vec<_>>(),
            [("www.refused.test", 1)]
        );
    }
}
