//! A stand-in for virtiofsd: it listens on the socket of a share, serves one VMM, and ends when the VMM disconnects.
//!
//! The stand-in reads those arguments of virtiofsd that name the socket and the directory. It sends the VMM one line of JSON that
//! names the directory; the simulated guest then uses the directory itself.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long a daemon may take until it has named its directory.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// The longest line that is read from a daemon, in bytes. A path may be escaped.
const LONGEST_ANSWER: u64 = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
struct ServedDirectory {
    source: PathBuf,
}

/// Serves one VMM, as virtiofsd's `arguments` say, until it disconnects.
///
/// # Errors
/// If the arguments name no socket or directory, or the socket cannot be bound.
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
    // Nobody can connect a second time, as with virtiofsd.
    drop(listener);
    let mut answer = serde_json::to_vec(&ServedDirectory { source: std::fs::canonicalize(source)? })?;
    answer.push(b'\n');
    connection.write_all(&answer)?;
    // The connection of a VMM that was killed is reset if something was unread.
    let ended = connection.read(&mut [0]);
    std::fs::remove_file(socket)?;
    match ended {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error),
        _ => Ok(()),
    }
}

/// Connects to the daemon of a share. Returns the connection and the directory that the daemon serves.
///
/// # Errors
/// If nobody listens, or the daemon does not answer in time.
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
