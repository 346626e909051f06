//! Why talking to the guest failed.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::guest::host_key::PinError;
use crate::world::UserName;

/// Why talking to the guest failed. No message contains any of the bytes that nixbox sent.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ChannelError {
    #[error("cannot connect to the guest's SSH server at {address}")]
    Connect { address: SocketAddr, source: io::Error },
    #[error("the guest did not answer within {limit:?} while {doing}")]
    Silent { doing: &'static str, limit: Duration },
    #[error("the SSH connection to the guest broke while {doing}")]
    Protocol { doing: &'static str, source: russh::Error },
    #[error("the SSH connection to the guest ended while {doing}")]
    Ended { doing: &'static str, source: ConnectionEnd },
    #[error("the guest's SSH server cannot be trusted")]
    HostKey(#[source] PinError),
    #[error(
        "the guest does not let {user} in with the key {fingerprint}: is it in the image's authorized_keys?"
    )]
    Denied { user: UserName, fingerprint: String },
    #[error("the guest's SSH server refused to run a command")]
    NoCommands,
    #[error("the SSH connection to the guest ended before the command did")]
    Closed(#[source] Option<ConnectionEnd>),
    #[error("the guest's SSH server did not say how the command ended")]
    Unsaid,
    #[error("a command in the guest wrote more than {limit} bytes")]
    TooMuch { limit: usize },
    #[error("no command has run in the guest within {limit:?}")]
    NotReady {
        limit: Duration,
        #[source]
        last: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    #[error("interrupted while waiting for the guest")]
    Interrupted,
    #[error("cannot {doing}")]
    Local { doing: &'static str, source: io::Error },
}

/// Why a connection ended that nixbox did not end.
#[derive(Debug, Clone, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ConnectionEnd {
    #[error("the guest's SSH server ended the connection{}", in_parentheses(message))]
    ByServer { message: String },
    #[error("the connection broke")]
    Broken(#[source] Arc<russh::Error>),
}

fn in_parentheses(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({message})") }
}

/// Why the connection has ended, once that is known.
#[derive(Clone, Default)]
pub(super) struct KnownEnd(pub(super) Arc<OnceLock<ConnectionEnd>>);

impl KnownEnd {
    /// The error of a command that was running.
    pub(super) fn closed(&self) -> ChannelError {
        ChannelError::Closed(self.0.get().cloned())
    }

    /// The error of what nixbox was doing. russh itself says only that the connection has ended.
    pub(super) fn while_doing(&self, doing: &'static str, source: russh::Error) -> ChannelError {
        self.reason(doing).unwrap_or(ChannelError::Protocol { doing, source })
    }

    /// The same; `None` if it is not known why the connection has ended.
    pub(super) fn reason(&self, doing: &'static str) -> Option<ChannelError> {
        Some(ChannelError::Ended { doing, source: self.0.get()?.clone() })
    }
}
