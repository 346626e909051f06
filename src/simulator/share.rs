//! A stand-in for virtiofsd: it listens on the share's socket, serves one VMM, and ends with it.
//!
//! It takes virtiofsd's arguments as far as they say where the socket and the directory are. What it tells the VMM is a
//! line of JSON, for the simulated guest reaches the directory by itself.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long a daemon may take until it says what it serves.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// A path, escaped.
const LONGEST_ANSWER: u64 = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
struct ServedDirectory {
    source: PathBuf,
}

/// Serves by virtiofsd's arguments, until the VMM disconnects.
///
/// # Errors
/// If the socket cannot be had, or the arguments do not name one.
pub fn serve(arguments: &[String]) -> io::Result<()> {
    let value = |name: &str| {
        arguments
            .iter()
            .find_map(|argument| argument.strip_prefix(name))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{name}… is missing")))
    };
    let (socket, source) = (value("--socket-path=")?, PathBuf::from(value("--shared-dir=")?));
    std::fs::write(format!("{socket}.pid"), std::process::id().to_string())?;
    let listener = UnixListener::bind(socket)?;
    let (mut connection, _) = listener.accept()?;
    // As virtiofsd does: nobody can connect a second time.
    drop(listener);
    let mut answer = serde_json::to_vec(&ServedDirectory { source: std::fs::canonicalize(source)? })?;
    answer.push(b'\n');
    connection.write_all(&answer)?;
    // A VMM that is killed resets what it has not read.
    let ended = connection.read(&mut [0]);
    std::fs::remove_file(socket)?;
    match ended {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error),
        _ => Ok(()),
    }
}

/// Connects to a share's daemon, and hears which directory it serves.
///
/// # Errors
/// If nobody listens, or does not answer.
pub(super) fn connect(socket: &Path) -> io::Result<(UnixStream, PathBuf)> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    let mut text = Vec::new();
    let mut reader = (&stream).take(LONGEST_ANSWER);
    let mut byte = [0];
    while reader.read(&mut byte)? == 1 && byte[0] != b'\n' {
        text.push(byte[0]);
    }
    let answer: ServedDirectory = serde_json::from_slice(&text)?;
    stream.set_read_timeout(None)?;
    Ok((stream, answer.source))
}
