//! A running command in the guest: its input, its output, and how it ends.

use std::future::Future;

use bytes::Bytes;
use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, OwnedMutexGuard, mpsc};
use zeroize::Zeroizing;

use super::{ChannelError, CommandExit, CommandTurn, KnownEnd, TerminalSize};

/// A running command.
pub struct GuestCommand {
    pub(super) reader: Reader,
    pub(super) writer: ChannelWriteHalf<Msg>,
    /// Keeps others from being started, unless this command runs beside others.
    pub(super) _turn: Option<OwnedMutexGuard<CommandTurn>>,
}

/// The receiving side of a channel.
pub(super) struct Reader {
    pub(super) half: ChannelReadHalf,
    /// A message that arrived before the command's start was confirmed.
    pub(super) early: Option<ChannelMsg>,
    /// Why the connection ended, for the error of a command that was running.
    pub(super) end: KnownEnd,
}

impl Reader {
    pub(super) async fn wait(&mut self) -> Option<ChannelMsg> {
        match self.early.take() {
            Some(early) => Some(early),
            None => self.half.wait().await,
        }
    }

    /// Waits for the next message that is an event of the command.
    async fn event(&mut self) -> Result<Option<CommandEvent>, ChannelError> {
        match self.wait().await {
            Some(message) => parse_event(message),
            None => Err(self.end.closed()),
        }
    }
}

impl GuestCommand {
    /// Sends bytes to the command's stdin.
    ///
    /// # Errors
    /// [`ChannelError::Protocol`] when the connection has ended.
    pub async fn send(&self, input: Zeroizing<Vec<u8>>) -> Result<(), ChannelError> {
        let sent = self.writer.data_bytes(Bytes::from_owner(input)).await;
        sent.map_err(|source| self.reader.end.while_doing("sending to a command", source))
    }

    /// Closes the command's stdin.
    ///
    /// # Errors
    /// [`ChannelError::Protocol`] when the connection has ended.
    pub async fn send_no_more(&self) -> Result<(), ChannelError> {
        let sent = self.writer.eof().await;
        sent.map_err(|source| self.reader.end.while_doing("sending to a command", source))
    }

    /// Waits for the next message of the command.
    ///
    /// # Errors
    /// [`ChannelError::Closed`], [`ChannelError::Unsaid`], [`ChannelError::NoCommands`].
    pub async fn next(&mut self) -> Result<CommandEvent, ChannelError> {
        loop {
            if let Some(event) = self.reader.event().await? {
                return Ok(event);
            }
        }
    }
}

impl GuestCommand {
    /// Runs the command to its end with stdin, stdout and stderr passed through, and passes on the sizes that come from
    /// `resized`. There is no time limit. If `stdin` is tokio's own, the caller has to shut the runtime down without
    /// waiting, because a blocked read of stdin cannot be stopped.
    ///
    /// # Errors
    /// The errors of [`GuestCommand::next`] and [`ChannelError::Local`].
    pub async fn pass_through(
        self,
        stdin: impl AsyncRead + Unpin,
        stdout: impl AsyncWrite + Unpin,
        stderr: impl AsyncWrite + Unpin,
        mut resized: mpsc::Receiver<TerminalSize>,
    ) -> Result<CommandExit, ChannelError> {
        let Self { mut reader, writer, _turn } = self;
        let mut sink = StreamSink { stdout, stderr };
        let resize = async {
            while let Some(TerminalSize { columns, rows }) = resized.recv().await {
                // This fails if the command has ended. The receiving side reports how it ended.
                writer.window_change(columns, rows, 0, 0).await.ok();
            }
            Ok::<_, ChannelError>(())
        };
        let feed = async { tokio::try_join!(pump(stdin, &writer), resize).map(|_| ()) };
        converse(feed, drain(&mut reader, &mut sink)).await
    }
}

/// A message of a command.
#[derive(Debug)]
pub enum CommandEvent {
    /// Bytes on stdout.
    Out(Bytes),
    /// Bytes on stderr.
    Err(Bytes),
    /// The command has ended.
    Ended(CommandExit),
    /// No more output follows.
    NoMore,
}

fn parse_event(message: ChannelMsg) -> Result<Option<CommandEvent>, ChannelError> {
    Ok(match message {
        ChannelMsg::Data { data } => Some(CommandEvent::Out(data)),
        ChannelMsg::ExtendedData { data, ext: 1 } => Some(CommandEvent::Err(data)),
        ChannelMsg::ExitStatus { exit_status } => Some(CommandEvent::Ended(CommandExit::Status(exit_status))),
        ChannelMsg::ExitSignal { signal_name, .. } => {
            Some(CommandEvent::Ended(CommandExit::Signal(signal_text(&signal_name))))
        }
        ChannelMsg::Eof => Some(CommandEvent::NoMore),
        ChannelMsg::Failure => return Err(ChannelError::NoCommands),
        ChannelMsg::Close => return Err(ChannelError::Unsaid),
        _ => None,
    })
}

fn signal_text(signal: &Sig) -> String {
    match signal {
        Sig::Custom(name) => name.chars().filter(char::is_ascii_alphanumeric).take(16).collect(),
        known => format!("{known:?}"),
    }
}

/// Sends and receives until the receiving side is done. The sending side is then dropped, because it never finishes if
/// a command ends without reading its stdin.
pub(super) async fn converse(
    feed: impl Future<Output = Result<(), ChannelError>>,
    drain: impl Future<Output = Result<CommandExit, ChannelError>>,
) -> Result<CommandExit, ChannelError> {
    tokio::pin!(feed, drain);
    let mut fed = false;
    loop {
        tokio::select! {
            exit = &mut drain => return exit,
            sent = &mut feed, if !fed => {
                sent?;
                fed = true;
            }
        }
    }
}

/// Passes all output to the sink until the command has ended and no more output follows. Both are needed, because a
/// server may report the end of the command before its last output. If a process that the command started keeps the
/// output open, the wait ends when the server closes the channel.
pub(super) async fn drain(reader: &mut Reader, sink: &mut impl Sink) -> Result<CommandExit, ChannelError> {
    let (mut exit, mut no_more) = (None, false);
    loop {
        match reader.event().await {
            Ok(Some(CommandEvent::Out(data))) => sink.out(&data).await?,
            Ok(Some(CommandEvent::Err(data))) => sink.err(&data).await?,
            Ok(Some(CommandEvent::Ended(how))) => exit = Some(how),
            Ok(Some(CommandEvent::NoMore)) => no_more = true,
            Ok(None) => {}
            Err(error @ (ChannelError::Closed(_) | ChannelError::Unsaid)) => return exit.ok_or(error),
            Err(error) => return Err(error),
        }
        if no_more && let Some(how) = exit {
            return Ok(how);
        }
    }
}

/// Sends everything that can be read from stdin until stdin ends.
pub(super) async fn pump(
    mut stdin: impl AsyncRead + Unpin,
    writer: &ChannelWriteHalf<Msg>,
) -> Result<(), ChannelError> {
    let mut buffer = Zeroizing::new(vec![0; 32 * 1024]);
    loop {
        let read = stdin.read(&mut buffer).await;
        let read = read.map_err(|source| ChannelError::Local { doing: "read from stdin", source })?;
        let chunk = Zeroizing::new(buffer[..read].to_vec());
        let sent =
            if read == 0 { writer.eof().await } else { writer.data_bytes(Bytes::from_owner(chunk)).await };
        // Sending fails if the command has ended. The receiving side reports how it ended.
        if read == 0 || sent.is_err() {
            return Ok(());
        }
    }
}

pub(super) trait Sink {
    async fn out(&mut self, data: &[u8]) -> Result<(), ChannelError>;
    async fn err(&mut self, data: &[u8]) -> Result<(), ChannelError>;
}

pub(super) struct CaptureSink<'a> {
    pub(super) most: usize,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    /// The text to wait for on stdout, and the waiter to notify when it appears.
    pub(super) prompt: Option<(&'static [u8], &'a Notify)>,
}

impl CaptureSink<'_> {
    fn keep(most: usize, into: &mut Vec<u8>, data: &[u8]) -> Result<(), ChannelError> {
        if into.len() + data.len() > most {
            return Err(ChannelError::TooMuch { limit: most });
        }
        into.extend_from_slice(data);
        Ok(())
    }
}

impl Sink for CaptureSink<'_> {
    async fn out(&mut self, data: &[u8]) -> Result<(), ChannelError> {
        Self::keep(self.most, &mut self.stdout, data)?;
        if let Some((_, waits)) = self
            .prompt
            .take_if(|(prompt, _)| self.stdout.windows(prompt.len()).any(|window| window == *prompt))
        {
            waits.notify_one();
        }
        Ok(())
    }

    async fn err(&mut self, data: &[u8]) -> Result<(), ChannelError> {
        Self::keep(self.most, &mut self.stderr, data)
    }
}

pub(super) struct StreamSink<O, E> {
    pub(super) stdout: O,
    pub(super) stderr: E,
}

impl<O: AsyncWrite + Unpin, E: AsyncWrite + Unpin> Sink for StreamSink<O, E> {
    async fn out(&mut self, data: &[u8]) -> Result<(), ChannelError> {
        let failed = |source| ChannelError::Local { doing: "write to stdout", source };
        self.stdout.write_all(data).await.map_err(failed)?;
        self.stdout.flush().await.map_err(failed)
    }

    async fn err(&mut self, data: &[u8]) -> Result<(), ChannelError> {
        let failed = |source| ChannelError::Local { doing: "write to stderr", source };
        self.stderr.write_all(data).await.map_err(failed)?;
        self.stderr.flush().await.map_err(failed)
    }
}
