//! A script of nixbox's that runs in the guest while nixbox talks to it.

use zeroize::Zeroizing;

use super::{MOST, Rights, ScriptError, script_error};
use crate::guest::channel::{ChannelError, CommandEvent, CommandExit, GuestCommand};

/// A running script that nixbox talks to.
pub struct Dialogue {
    pub(super) what: &'static str,
    pub(super) rights: Rights,
    pub(super) command: GuestCommand,
    pub(super) pending: Zeroizing<Vec<u8>>,
    pub(super) stderr: Vec<u8>,
}

impl Dialogue {
    /// Sends input to the programs that the script started.
    ///
    /// # Errors
    /// [`ScriptError::Channel`].
    pub async fn send(&self, input: Zeroizing<Vec<u8>>) -> Result<(), ScriptError> {
        self.command.send(input).await.map_err(|source| ScriptError::Channel { what: self.what, source })
    }

    /// Waits for exactly `N` bytes of the script's stdout.
    ///
    /// # Errors
    /// [`ScriptError::Failed`] if the script ends first; [`ScriptError::Channel`].
    pub async fn receive<const N: usize>(&mut self) -> Result<[u8; N], ScriptError> {
        loop {
            if let Some(chunk) = self.pending.first_chunk::<N>() {
                let chunk = *chunk;
                self.pending.drain(..N);
                return Ok(chunk);
            }
            self.listen(true).await?;
        }
    }

    /// Waits for a line of the script's stdout, and returns it without its end.
    ///
    /// # Errors
    /// [`ScriptError::Failed`] if the script ends first; [`ScriptError::Channel`].
    pub async fn line(&mut self) -> Result<Zeroizing<Vec<u8>>, ScriptError> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line = Zeroizing::new(self.pending[..end].to_vec());
                self.pending.drain(..=end);
                return Ok(line);
            }
            self.listen(true).await?;
        }
    }

    /// Closes the script's stdin, and waits until the script ends successfully.
    ///
    /// # Errors
    /// [`ScriptError::Failed`], [`ScriptError::Channel`].
    pub async fn finish(mut self) -> Result<(), ScriptError> {
        let channel = |source| ScriptError::Channel { what: self.what, source };
        self.command.send_no_more().await.map_err(channel)?;
        loop {
            match self.listen(true).await {
                Ok(()) => {}
                Err(ScriptError::Failed { exit: CommandExit::Status(0), .. }) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Closes the script's stdin, and returns what it writes to stdout until it ends successfully: at most `most` bytes, for
    /// which the memory is there from the start, so that no part of a secret is moved and left behind.
    ///
    /// # Errors
    /// [`ScriptError::Failed`], [`ScriptError::Channel`].
    pub async fn read_to_end(mut self, most: usize) -> Result<Zeroizing<Vec<u8>>, ScriptError> {
        let channel = |source| ScriptError::Channel { what: self.what, source };
        self.command.send_no_more().await.map_err(channel)?;
        let mut whole = Zeroizing::new(Vec::with_capacity(most));
        whole.extend_from_slice(&self.pending);
        let (mut exit, mut no_more) = (None, false);
        while exit.is_none() || !no_more {
            match self.command.next().await {
                Ok(CommandEvent::Out(data)) if whole.len() + data.len() <= most => {
                    whole.extend_from_slice(&data);
                }
                Ok(CommandEvent::Err(data)) if self.stderr.len() + data.len() <= MOST => {
                    self.stderr.extend_from_slice(&data);
                }
                Ok(CommandEvent::Out(_) | CommandEvent::Err(_)) => {
                    return Err(channel(ChannelError::TooMuch { limit: most }));
                }
                // A server may report the end of the command before its last output.
                Ok(CommandEvent::Ended(how)) => exit = Some(how),
                Ok(CommandEvent::NoMore) => no_more = true,
                Err(ChannelError::Closed(_) | ChannelError::Unsaid) if exit.is_some() => break,
                Err(error) => return Err(channel(error)),
            }
        }
        match exit {
            Some(CommandExit::Status(0)) => Ok(whole),
            Some(exit) => Err(script_error(self.what, self.rights, true, exit, &self.stderr)),
            None => Err(channel(ChannelError::Unsaid)),
        }
    }

    /// Handles one message of the command. The end of the command is an error here, because the caller waits for more
    /// output.
    pub(super) async fn listen(&mut self, begun: bool) -> Result<(), ScriptError> {
        let channel = |source| ScriptError::Channel { what: self.what, source };
        if self.pending.len() > MOST || self.stderr.len() > MOST {
            return Err(channel(ChannelError::TooMuch { limit: MOST }));
        }
        match self.command.next().await.map_err(channel)? {
            CommandEvent::Out(data) => self.pending.extend_from_slice(&data),
            CommandEvent::Err(data) => self.stderr.extend_from_slice(&data),
            CommandEvent::Ended(exit) => {
                return Err(script_error(self.what, self.rights, begun, exit, &self.stderr));
            }
            CommandEvent::NoMore => {}
        }
        Ok(())
    }
}
