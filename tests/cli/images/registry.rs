//! A registry of images on this machine, as far as nixbox asks one.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::digest;

const TOKEN: &str = "the-token";

/// What the registry answers to a path.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    status: u16,
    header: Option<String>,
    body: Vec<u8>,
    /// How many bytes of the body are sent before the connection is closed.
    sent: usize,
}

impl Answer {
    pub(super) fn bytes(body: &[u8]) -> Self {
        Self { status: 200, header: None, body: body.to_vec(), sent: body.len() }
    }

    /// The connection breaks in the middle of the body.
    pub(super) fn cut(body: &[u8]) -> Self {
        Self { sent: body.len() / 2, ..Self::bytes(body) }
    }

    pub(super) fn status(status: u16, text: &str) -> Self {
        Self { status, ..Self::bytes(text.as_bytes()) }
    }

    pub(super) fn redirect(location: &str) -> Self {
        Self { header: Some(format!("Location: {location}")), ..Self::status(307, "") }
    }
}

#[derive(Default)]
struct Content {
    answers: Mutex<BTreeMap<String, Answer>>,
    /// The realm, if a token is wanted.
    realm: Mutex<Option<String>>,
    /// How many requests had a token.
    tokens: AtomicUsize,
}

/// The registry. It ends when it is dropped.
pub(super) struct FakeRegistry {
    host: String,
    content: Arc<Content>,
    thread: Option<JoinHandle<()>>,
}

impl FakeRegistry {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let content = Arc::<Content>::default();
        let own = Arc::clone(&content);
        let thread = std::thread::spawn(move || {
            for connection in listener.incoming() {
                if !serve(connection.unwrap(), &own) {
                    return;
                }
            }
        });
        Self { host, content, thread: Some(thread) }
    }

    pub(super) fn host(&self) -> String {
        self.host.clone()
    }

    pub(super) fn put(&self, path: &str, answer: Answer) {
        self.content.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    /// Serves the documents of an image.
    pub(super) fn serve(&self, repository: &str, tag: &str, manifest: &[u8], blobs: &[&[u8]]) {
        for reference in [tag.to_owned(), digest(manifest)] {
            self.put(&format!("/v2/{repository}/manifests/{reference}"), Answer::bytes(manifest));
        }
        for blob in blobs {
            self.put(&format!("/v2/{repository}/blobs/{}", digest(blob)), Answer::bytes(blob));
        }
    }

    /// From now on the registry answers to those alone who have a token.
    pub(super) fn want_token(&self) {
        *self.content.realm.lock().unwrap() = Some(format!("http://{}/token", self.host));
    }

    pub(super) fn tokens(&self) -> usize {
        self.content.tokens.load(Ordering::Relaxed)
    }
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        let mut stream = TcpStream::connect(&self.host).unwrap();
        stream.write_all(b"END / HTTP/1.1\r\n\r\n").unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Answers one request, and closes the connection. Returns `false` if the registry is to end.
fn serve(mut stream: TcpStream, content: &Content) -> bool {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(first)) = lines.next() else { return true };
    let words: Vec<&str> = first.split(' ').collect();
    if words[0] == "END" {
        return false;
    }
    let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let token = format!("authorization: bearer {TOKEN}");
    let authorized = headers.iter().any(|line| line.to_lowercase() == token);
    if headers.iter().any(|line| line.to_lowercase().starts_with("authorization")) {
        content.tokens.fetch_add(1, Ordering::Relaxed);
    }
    let answer = answer(words[1], authorized, content);
    let header = answer.header.map(|header| format!("{header}\r\n")).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 {} Answer\r\nContent-Length: {}\r\nConnection: close\r\n{header}\r\n",
        answer.status,
        answer.body.len()
    );
    // A client that has seen enough closes the connection.
    let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&answer.body[..answer.sent]));
    drop(sent.and_then(|()| stream.shutdown(Shutdown::Write)));
    true
}

fn answer(path: &str, authorized: bool, content: &Content) -> Answer {
    let realm = content.realm.lock().unwrap().clone();
    if let Some(realm) = realm {
        if path.starts_with("/token?") {
            let scope = path.contains("scope=repository:team/app:pull") && path.contains("service=fake");
            let body = serde_json::json!({ "token": TOKEN }).to_string();
            return if scope { Answer::bytes(body.as_bytes()) } else { Answer::status(400, path) };
        }
        if !authorized {
            let challenge = format!("WWW-Authenticate: Bearer realm=\"{realm}\",service=\"fake\"");
            return Answer { header: Some(challenge), ..Answer::status(401, "") };
        }
    }
    let answers = content.answers.lock().unwrap();
    answers.get(path).cloned().unwrap_or_else(|| Answer::status(404, ""))
}
