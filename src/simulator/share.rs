//! A stand-in for virtiofsd: it serves one VMM, from the listening socket that is its standard input, and ends when the VMM
//! disconnects.
//!
//! The stand-in reads that argument of virtiofsd that names the directory. It sends the VMM one line of JSON that
//! names the directory; the simulated guest then uses the directory itself. The guest is in no mount namespace of the
//! daemon's, so it gets the path that the launcher of share daemons has put into the environment, if there is one.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::host::share_view;

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
/// If the arguments name no directory, or standard input is no listening socket.
pub fn serve(arguments: &[String]) -> io::Result<()> {
    let value = |name: &str| {
        arguments
            .iter()
            .find_map(|argument| argument.strip_prefix(name))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{name}… is missing")))
    };
    let source = PathBuf::from(value("--shared-dir=")?);
    let source = match std::env::var_os(share_view::SOURCE) {
        Some(source) => source.into(),
        None => std::fs::canonicalize(source)?,
    };
    value("--fd=0")?;
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    let (mut connection, _) = listener.accept()?;
    let mut answer = serde_json::to_vec(&ServedDirectory { source })?;
    answer.push(b'\n');
    connection.write_all(&answer)?;
    // The connection of a VMM that was killed is reset if something was unread.
    match connection.read(&mut [0]) {
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
