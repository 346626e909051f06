//! Why the guest's SSH server does not listen on a Unix socket. The server itself only says that it does not.

use std::fmt;
use std::time::Duration;

use crate::guest::shell::{Rights, Shell, quoted};

/// How long a look at a path of the guest may take.
const LIMIT: Duration = Duration::from_secs(10);

/// What keeps the server from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SocketObstacle {
    /// A file, most often the socket of a former server: OpenSSH leaves it there.
    Exists,
    /// The directory is missing.
    NoDirectory,
    /// The directory may not be written.
    Closed,
    /// The path is free.
    Server,
}

impl fmt::Display for SocketObstacle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Exists => "it exists already: remove it in the guest, unless a program listens there",
            Self::NoDirectory => "its directory is missing in the guest",
            Self::Closed => "the user of the guest may not write to its directory",
            Self::Server => "the guest's SSH server refuses, which has to be OpenSSH and to allow it",
        })
    }
}

impl SocketObstacle {
    /// Looks at the path in the guest.
    pub(super) async fn at(shell: &Shell, path: &str) -> Self {
        let script = format!(
            "p={}; d=${{p%/*}}; d=${{d:-/}}
             if [ -e \"$p\" ] || [ -L \"$p\" ]; then echo exists
             elif [ ! -d \"$d\" ]; then echo missing
             elif [ ! -w \"$d\" ]; then echo closed
             fi",
            quoted(path)
        );
        let told = shell.script("look at the path of a socket", Rights::User, &script, &[], LIMIT).await;
        // The server has refused, and that is said of a guest which tells no more.
        match told.as_deref().map(str::trim) {
            Ok("exists") => Self::Exists,
            Ok("missing") => Self::NoDirectory,
            Ok("closed") => Self::Closed,
            Ok(_) | Err(_) => Self::Server,
        }
    }
}
