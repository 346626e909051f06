//! Copies between this host and a guest over one SSH connection.
//!
//! The guest's own `tar` reads and writes the archives. Only options are used that busybox knows. What the archive says is
//! made and read on this host on a thread of its own, with a pipe of [`PIPE`] bytes between that thread and the connection.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::runtime::Handle;

use super::location::{LocalPath, RemotePath};
use super::pack::{PackError, PackedSource, Packer, ToldEntries};
use super::unpack::{PassError, UnpackError, Unpacked, pass_on, skip_greeting, unpack};
use crate::files::incoming::{IncomingError, IncomingTree};
use crate::files::shared_paths::SharedPaths;
use crate::files::{FileError, Folder};
use crate::guest::channel::{ChannelError, CommandExit};
use crate::guest::last_words::last_words;
use crate::guest::shell::{Shell, stream_command};

/// How many bytes are between the connection and the thread that reads or writes files.
const PIPE: usize = 256 * 1024;
/// How much is kept of what a program of the guest prints on stderr.
const KEPT_STDERR: usize = 8 * 1024;

/// Prints what each argument is.
const EXAMINE: &str = "for p; do
if [ -d \"$p\" ]; then echo nixbox:directory
elif [ -e \"$p\" ] || [ -h \"$p\" ]; then echo nixbox:other
else echo nixbox:nothing
fi
done";

/// Unpacks an archive in a directory. `-p` leaves the permissions as the archive has them.
const UNPACK: &str = "cd \"$1\" && exec tar -xpf -";

/// Archives the entry `$2` of the directory `$1`. A link that is named itself is followed. GNU tar ends with 1 if a file
/// changed while it was read, and with 2 if something is missing from the archive; busybox knows 1 alone.
const PACK: &str = "[ -e \"$1/$2\" ] || exit 44
d=$1 n=$2
if [ -h \"$d/$n\" ]; then
f=$(readlink -f \"$d/$n\") && [ -e \"$f\" ] || exit 44
d=${f%/*}/ n=./${f##*/}
fi
cd \"$d\" || exit 45
echo nixbox:stream
tar -cf - \"$n\"
s=$?
[ $s != 1 ] || ! tar --version 2> /dev/null | grep -q GNU || exit 46
exit $s";

/// Writes a file to stdout.
const READ: &str = "[ ! -d \"$1\" ] || exit 47
[ -e \"$1\" ] || exit 44
echo nixbox:stream
exec cat < \"$1\"";

/// Writes stdin to a file.
const WRITE: &str = "[ ! -d \"$1\" ] || exit 47
exec cat > \"$1\"";

/// What the scripts here end with if there is no such file.
const ABSENT: CommandExit = CommandExit::Status(44);
/// What [`PACK`] ends with if files changed while they were read.
const CHANGED: CommandExit = CommandExit::Status(46);
/// What [`READ`] and [`WRITE`] end with if the path is a directory.
const DIRECTORY: CommandExit = CommandExit::Status(47);

/// Why nothing or not all was copied.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransferError {
    #[error("the guest has no {0} that its user can reach")]
    NotInGuest(String),
    #[error("{0} is a directory, and a file is needed")]
    GuestDirectory(String),
    #[error("{0} is not a directory")]
    NoGuestDirectory(String),
    #[error("{0} is not a directory, and would be replaced by one: it was left as it is")]
    GuestFileInPlace(String),
    #[error("{0} is a directory, and would be replaced by a file: it was left as it is")]
    GuestDirectoryInPlace(String),
    #[error("{} is not a directory", .0.display())]
    NoDirectory(PathBuf),
    #[error("cannot use {}", path.display())]
    Source { path: PathBuf, source: FileError },
    #[error(
        "the connection to the guest broke while {doing}; what the guest had received until then stays there"
    )]
    SendLost { doing: String, source: ChannelError },
    #[error("the connection to the guest broke while {doing}; nothing of that was kept on this host")]
    ReceiveLost { doing: String, source: ChannelError },
    #[error("the guest's answer is not what the script prints")]
    Senseless,
    #[error("the guest could not write {path} ({exit}{stderr}); what it had written until then stays there")]
    GuestWrite { path: String, exit: CommandExit, stderr: String },
    #[error("the guest could not read {path} ({exit}{stderr}); nothing of it was kept on this host")]
    GuestRead { path: String, exit: CommandExit, stderr: String },
    #[error("cannot send {what}; what was sent before stays in the guest")]
    Pack { what: String, source: PackError },
    #[error("cannot copy {what}; nothing of it was kept on this host")]
    Unpack { what: String, source: UnpackError },
    #[error("cannot copy {what}, and what was copied of it cannot be removed")]
    Discard { what: String, source: IncomingError },
    #[error("cannot put {what} in its place; what was replaced before stays, and the rest was removed")]
    Place { what: String, source: IncomingError },
    #[error("cannot pass on {what}")]
    Pass { what: String, source: PassError },
    #[error("the thread that reads and writes files has ended")]
    Thread(#[source] tokio::task::JoinError),
    #[error("interrupted; {0}")]
    Interrupted(&'static str),
}

type Result<T, E = TransferError> = std::result::Result<T, E>;

/// A connection, and what is known about the host.
pub(super) struct Transfer<'a> {
    pub(super) shell: &'a Shell,
    /// Where the guest can replace files of the host.
    pub(super) shared: &'a SharedPaths,
    /// Becomes ready when a signal asks to stop.
    pub(super) interrupted: Pin<&'a mut dyn Future<Output = ()>>,
}

/// What a path in the guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GuestEntry {
    Directory,
    Other,
    Nothing,
}

impl Transfer<'_> {
    /// Copies stdin to a file of the guest.
    pub(super) async fn stdin_to_guest(
        &mut self,
        stdin: impl AsyncRead + Unpin + Send,
        target: &RemotePath,
    ) -> Result<()> {
        let command = stream_command(WRITE, &[target.bytes()]);
        let mut stderr = LastBytes::default();
        let sent = self.shell.session.pass_through(&command, stdin, tokio::io::sink(), &mut stderr);
        let lost = |source| TransferError::SendLost { doing: format!("writing {}", target.shown()), source };
        let exit = tokio::select! {
            sent = sent => sent.map_err(lost)?,
            () = self.interrupted.as_mut() => return Err(TransferError::Interrupted(STAYS)),
        };
        match exit {
            CommandExit::Status(0) => Ok(()),
            DIRECTORY => Err(TransferError::GuestDirectory(target.shown())),
            exit => Err(TransferError::GuestWrite { path: target.shown(), exit, stderr: stderr.words() }),
        }
    }

    /// Copies a file of the guest to stdout.
    pub(super) async fn guest_to_stdout(
        &mut self,
        source: &RemotePath,
        mut stdout: impl Write + Send + 'static,
    ) -> Result<()> {
        let command = stream_command(READ, &[source.bytes()]);
        let (writing, pipe) = on_thread(move |pipe| pass_on(io::BufReader::new(pipe), &mut stdout));
        let mut stderr = LastBytes::default();
        let sent = self.shell.session.pass_through(&command, tokio::io::empty(), pipe, &mut stderr);
        // A thread that waits for the reader of stdout is not waited for.
        let done = async { (sent.await, writing.await) };
        let (ended, written) = tokio::select! {
            done = done => done,
            () = self.interrupted.as_mut() => return Err(TransferError::Interrupted("a part was passed on")),
        };
        let pass = |error| TransferError::Pass { what: source.shown(), source: error };
        match (ended, written.map_err(TransferError::Thread)?) {
            (Ok(ABSENT), _) => Err(TransferError::NotInGuest(source.shown())),
            (Ok(DIRECTORY), _) => Err(TransferError::GuestDirectory(source.shown())),
            (Ok(CommandExit::Status(0)) | Err(ChannelError::Local { .. }), Err(error)) => Err(pass(error)),
            (Ok(CommandExit::Status(0)), Ok(())) => Ok(()),
            (Ok(exit), _) => {
                Err(TransferError::GuestRead { path: source.shown(), exit, stderr: stderr.words() })
            }
            (Err(error), _) => Err(receive_lost(source, error)),
        }
    }

    /// Copies files and directories of the host to the guest.
    pub(super) async fn send_files(
        &mut self,
        sources: &[LocalPath],
        target: &RemotePath,
    ) -> Result<ToldEntries> {
        let mut opened = Vec::new();
        for source in sources {
            let failed = |error| TransferError::Source { path: source.path.clone(), source: error };
            let entry = self.shared.open(&source.path).map_err(failed)?;
            if source.needs_directory && !entry.is_directory().map_err(failed)? {
                return Err(TransferError::NoDirectory(source.path.clone()));
            }
            let (name, path) = (source.name.clone(), source.path.clone());
            opened.push(PackedSource { opened: entry, path, name });
        }
        let directory = self.place_in_guest(&mut opened, target).await?;
        let command = stream_command(UNPACK, &[&directory]);
        let owner = self.shell.facts.ids;
        let (packing, theirs) = on_thread(move |pipe| {
            Packer::new(io::BufWriter::with_capacity(64 * 1024, pipe), owner).pack(&opened)
        });
        let mut stderr = LastBytes::default();
        let sent = self.shell.session.pass_through(&command, theirs, tokio::io::sink(), &mut stderr);
        let lost = |source| TransferError::SendLost { doing: format!("writing {}", target.shown()), source };
        let exit = tokio::select! {
            sent = sent => sent.map_err(lost)?,
            () = self.interrupted.as_mut() => return Err(TransferError::Interrupted(STAYS)),
        };
        let packed = packing.await.map_err(TransferError::Thread)?;
        let what =
            || sources.iter().map(|source| source.path.display().to_string()).collect::<Vec<_>>().join(", ");
        match (exit, packed) {
            // The thread cannot send what a program of the guest does not read any more, and that program says why.
            (exit, Err(PackError::Send(_)) | Ok(_)) if exit != CommandExit::Status(0) => {
                Err(TransferError::GuestWrite { path: target.shown(), exit, stderr: stderr.words() })
            }
            (_, packed) => packed.map_err(|source| TransferError::Pack { what: what(), source }),
        }
    }

    /// Decides in which directory of the guest the sources are unpacked, and under which names.
    async fn place_in_guest(&mut self, sources: &mut [PackedSource], target: &RemotePath) -> Result<Vec<u8>> {
        let mut asked = vec![target.clone()];
        asked.extend(sources.iter().filter_map(|source| Some(target.join(source.name.as_ref()?))));
        let found = self.examine(&asked).await?;
        let is_directory = found.first() == Some(&GuestEntry::Directory);
        if is_directory {
            let named = sources.iter().filter(|source| source.name.is_some());
            for ((source, path), entry) in named.zip(&asked[1..]).zip(&found[1..]) {
                fits(source, path, *entry)?;
            }
            return Ok(target.bytes().to_vec());
        }
        let (directory, name) = target.split();
        let [source] = sources else { return Err(TransferError::NoGuestDirectory(target.shown())) };
        let (Some(name), false) = (name, target.needs_directory()) else {
            return Err(TransferError::NoGuestDirectory(target.shown()));
        };
        fits(source, target, found.first().copied().unwrap_or(GuestEntry::Nothing))?;
        source.name = Some(name);
        Ok(directory)
    }

    async fn examine(&mut self, paths: &[RemotePath]) -> Result<Vec<GuestEntry>> {
        let arguments: Vec<_> = paths.iter().map(RemotePath::bytes).collect();
        let command = stream_command(EXAMINE, &arguments);
        let (mut stdout, mut stderr) = (LastBytes::default(), LastBytes::default());
        stdout.most = KEPT_STDERR + 32 * paths.len();
        let asked = self.shell.session.pass_through(&command, tokio::io::empty(), &mut stdout, &mut stderr);
        let lost =
            |source| TransferError::SendLost { doing: "asking the guest what is there".to_owned(), source };
        tokio::select! {
            asked = asked => asked.map_err(lost)?,
            () = self.interrupted.as_mut() => return Err(TransferError::Interrupted("nothing was copied")),
        };
        let answer = String::from_utf8_lossy(&stdout.bytes).into_owned();
        let found: Vec<_> = answer
            .lines()
            .filter_map(|line| match line {
                "nixbox:directory" => Some(GuestEntry::Directory),
                "nixbox:other" => Some(GuestEntry::Other),
                "nixbox:nothing" => Some(GuestEntry::Nothing),
                _ => None,
            })
            .collect();
        if found.len() == paths.len() { Ok(found) } else { Err(TransferError::Senseless) }
    }

    /// Copies a file or directory of the guest to the host. Returns what is to be told about it.
    pub(super) async fn receive(
        &mut self,
        source: &RemotePath,
        target: &LocalPath,
        several: bool,
    ) -> Result<ReceivedCopy> {
        let (directory, name) = source.split();
        let (folder, place) = self.place_on_host(name.as_deref(), target, several)?;
        let what = source.shown();
        let unpack_error = |source| TransferError::Unpack { what: what.clone(), source };
        let mut tree = IncomingTree::begin(folder).map_err(|error| unpack_error(error.into()))?;
        let inside = name.as_ref().map_or(b".".to_vec(), |name| [b"./", name.as_bytes()].concat());
        let command = stream_command(PACK, &[&directory, &inside]);
        let whole = name.is_none();
        let (unpacking, pipe) = on_thread(move |pipe| {
            let mut pipe = io::BufReader::with_capacity(64 * 1024, pipe);
            let unpacked = skip_greeting(&mut pipe).and_then(|()| unpack(pipe, &mut tree, whole));
            (tree, unpacked)
        });
        let mut stderr = LastBytes::default();
        let sent = self.shell.session.pass_through(&command, tokio::io::empty(), pipe, &mut stderr);
        let ended = tokio::select! {
            ended = sent => Some(ended),
            () = self.interrupted.as_mut() => None,
        };
        let (tree, unpacked) = unpacking.await.map_err(TransferError::Thread)?;
        let copied = match ended {
            Some(ended) => received(source, ended, unpacked, tree.has_content(), &stderr),
            None => Err(TransferError::Interrupted("nothing of what was under way was kept on this host")),
        };
        let is_placed = copied.is_ok() && tree.has_content();
        let finishing = tokio::task::spawn_blocking(move || match place {
            _ if !is_placed => tree.discard(),
            HostPlace::Named(name) => tree.place(&name),
            HostPlace::Content => tree.place_content(),
        });
        match (finishing.await.map_err(TransferError::Thread)?, copied) {
            (Ok(()), copied) => copied,
            (Err(source), Ok(_)) => Err(TransferError::Place { what, source }),
            (Err(source), Err(_)) => Err(TransferError::Discard { what, source }),
        }
    }

    /// Decides in which directory of the host the source is made, and where it is put.
    fn place_on_host(
        &self,
        name: Option<&OsStr>,
        target: &LocalPath,
        several: bool,
    ) -> Result<(Folder, HostPlace)> {
        let failed = |source| TransferError::Source { path: target.path.clone(), source };
        match self.shared.open(&target.path) {
            Ok(existing) if existing.is_directory().map_err(failed)? => {
                let place = name.map_or(HostPlace::Content, |name| HostPlace::Named(name.to_owned()));
                return Ok((existing.folder().map_err(failed)?, place));
            }
            Ok(_) => {}
            Err(error) if error.is(io::ErrorKind::NotFound) => {}
            Err(error) => return Err(failed(error)),
        }
        let no_directory = || TransferError::NoDirectory(target.path.clone());
        match (&target.name, target.path.parent()) {
            (Some(name), Some(above)) if !several && !target.needs_directory => {
                let failed = |source| TransferError::Source { path: above.to_owned(), source };
                let folder = self.shared.open(above).and_then(|opened| opened.folder()).map_err(failed)?;
                Ok((folder, HostPlace::Named(name.clone())))
            }
            _ => Err(no_directory()),
        }
    }
}

/// What a person is told about a copy that was made on the host.
#[derive(Debug)]
pub(super) struct ReceivedCopy {
    pub(super) unpacked: Unpacked,
    /// What the guest's tar said, if files changed while it read them.
    pub(super) changed: Option<String>,
}

/// Where a tree goes in a directory of the host.
enum HostPlace {
    /// To this name.
    Named(OsString),
    /// Its entries into the directory itself.
    Content,
}

const STAYS: &str = "what the guest had received until then stays there";

fn receive_lost(source: &RemotePath, error: ChannelError) -> TransferError {
    TransferError::ReceiveLost { doing: format!("reading {}", source.shown()), source: error }
}

/// What came of a copy, from how the guest's tar ended and what was unpacked.
fn received(
    source: &RemotePath,
    ended: Result<CommandExit, ChannelError>,
    unpacked: Result<Unpacked, UnpackError>,
    has_content: bool,
    stderr: &LastBytes,
) -> Result<ReceivedCopy> {
    let what = source.shown();
    let exit = match ended {
        Ok(ABSENT) => return Err(TransferError::NotInGuest(what)),
        Ok(exit @ (CommandExit::Status(0) | CHANGED)) => exit,
        Ok(exit) => return Err(TransferError::GuestRead { path: what, exit, stderr: stderr.words() }),
        Err(error) => {
            return Err(match (error, unpacked) {
                // The connection cannot pass on what the thread does not take any more, and the thread says why.
                (ChannelError::Local { .. }, Err(source)) => TransferError::Unpack { what, source },
                (error, _) => receive_lost(source, error),
            });
        }
    };
    match unpacked {
        Ok(unpacked) if has_content || unpacked.left_out.count > 0 => {
            Ok(ReceivedCopy { unpacked, changed: (exit == CHANGED).then(|| stderr.words()) })
        }
        Ok(_) => Err(TransferError::Unpack { what, source: UnpackError::NothingSent }),
        Err(source) => Err(TransferError::Unpack { what, source }),
    }
}

/// Refuses a source that cannot take the place of what the guest has there.
fn fits(source: &PackedSource, path: &RemotePath, existing: GuestEntry) -> Result<()> {
    let failed = |error| TransferError::Source { path: source.path.clone(), source: error };
    match (source.opened.is_directory().map_err(failed)?, existing) {
        (true, GuestEntry::Other) => Err(TransferError::GuestFileInPlace(path.shown())),
        (false, GuestEntry::Directory) => Err(TransferError::GuestDirectoryInPlace(path.shown())),
        _ => Ok(()),
    }
}

/// Runs `work` on a thread, with one end of a pipe. The other end is returned.
fn on_thread<T: Send + 'static>(
    work: impl FnOnce(BlockingPipe) -> T + Send + 'static,
) -> (tokio::task::JoinHandle<T>, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(PIPE);
    let pipe = BlockingPipe { handle: Handle::current(), pipe: ours };
    (tokio::task::spawn_blocking(move || work(pipe)), theirs)
}

/// The end of a pipe on a thread that may wait.
struct BlockingPipe {
    handle: Handle,
    pipe: DuplexStream,
}

impl Read for BlockingPipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.handle.block_on(self.pipe.read(buffer))
    }
}

impl Write for BlockingPipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.handle.block_on(self.pipe.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.handle.block_on(self.pipe.flush())
    }
}

/// Keeps the last bytes that are written to it.
struct LastBytes {
    bytes: Vec<u8>,
    most: usize,
}

impl Default for LastBytes {
    fn default() -> Self {
        Self { bytes: Vec::new(), most: KEPT_STDERR }
    }
}

impl LastBytes {
    /// The last lines, safe to print, as the end of a sentence.
    fn words(&self) -> String {
        let words = last_words(&self.bytes);
        if words.is_empty() { words } else { format!(": {words}") }
    }
}

impl AsyncWrite for LastBytes {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.bytes.extend_from_slice(bytes);
        let surplus = self.bytes.len().saturating_sub(self.most);
        self.bytes.drain(..surplus);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
