//! The system calls by which programs of the simulated guest ([`super::programs`]) ask its kernel, over a Unix socket.
//!
//! A call is a line of JSON followed by the program's input. An answer is a line of JSON.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::guest::{PowerRequest, SimulatedGuest};

/// The environment variable of the guest's programs that names the socket.
pub(super) const VARIABLE: &str = "NIXBOX_SIMULATED_KERNEL";
/// The longest call or answer, in bytes.
const LONGEST_MESSAGE: u64 = 64 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Syscall {
    name: String,
    arguments: Vec<String>,
    directory: PathBuf,
}

/// What the program that made a call prints, and its exit status.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct SyscallAnswer {
    pub(super) status: u8,
    pub(super) out: String,
    pub(super) error: String,
}

impl SyscallAnswer {
    fn out(text: impl Into<String>) -> Self {
        Self { out: text.into(), ..Self::default() }
    }

    fn error(error: impl ToString) -> Self {
        Self { status: 1, error: format!("{}\n", error.to_string()), ..Self::default() }
    }

    fn of<E: ToString>(result: Result<(), E>) -> Self {
        result.map_or_else(Self::error, |()| Self::default())
    }
}

/// Makes a call, as a program of the guest.
///
/// # Errors
/// If this process does not run in a simulated guest, or the guest is gone.
pub(super) fn call(name: &str, arguments: Vec<String>, input: &[u8]) -> io::Result<SyscallAnswer> {
    let socket = std::env::var_os(VARIABLE)
        .ok_or_else(|| io::Error::other("this program runs only in a simulated guest"))?;
    let mut stream = UnixStream::connect(Path::new(&socket))?;
    let call = Syscall { name: name.to_owned(), arguments, directory: std::env::current_dir()? };
    stream.write_all(&serde_json::to_vec(&call)?)?;
    stream.write_all(b"\n")?;
    stream.write_all(input)?;
    stream.shutdown(Shutdown::Write)?;
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST_MESSAGE)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// Answers calls until the guest ends.
pub(super) fn listen(guest: &Arc<SimulatedGuest>) -> io::Result<()> {
    let path = guest.calls();
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    let guest = Arc::clone(guest);
    tokio::spawn(async move {
        while guest.pause_control.until_running().await.is_ok() {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = guest.pause_control.until_gone() => return,
            };
            let Ok((stream, _)) = accepted else {
                return;
            };
            let guest = Arc::clone(&guest);
            tokio::spawn(async move {
                // This fails if the program has ended before it got the answer.
                answer(&guest, stream).await.ok();
            });
        }
    });
    Ok(())
}

async fn answer(guest: &SimulatedGuest, stream: tokio::net::UnixStream) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = tokio::io::BufReader::new(read.take(LONGEST_MESSAGE));
    let (mut line, mut input) = (String::new(), Vec::new());
    read.read_line(&mut line).await?;
    read.read_to_end(&mut input).await?;
    let call: Syscall = serde_json::from_str(&line)?;
    guest.pause_control.until_running().await?;
    let answer = perform(guest, &call, &input).await;
    guest.pause_control.until_running().await?;
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    write.write_all(&text).await
}

async fn perform(guest: &SimulatedGuest, call: &Syscall, input: &[u8]) -> SyscallAnswer {
    let arguments: Vec<&str> = call.arguments.iter().map(String::as_str).collect();
    match (call.name.as_str(), arguments.as_slice()) {
        ("sync", _) => {
            let mut kernel = guest.kernel();
            SyscallAnswer::of(kernel.absorb().and_then(|()| kernel.write_back()))
        }
        ("fstrim", _) => {
            let mut kernel = guest.kernel();
            SyscallAnswer::of(
                kernel.absorb().and_then(|()| kernel.write_back()).and_then(|()| kernel.disk.trim()),
            )
        }
        ("mount", ["-t", "virtiofs", rest @ ..]) => {
            let (readonly, tag, target) = match rest {
                ["-o", "ro", tag, target] => (true, tag, target),
                [tag, target] => (false, tag, target),
                _ => return SyscallAnswer::error("mount: bad usage"),
            };
            wait_if_hung(guest, Some((*tag).to_owned())).await;
            SyscallAnswer::of(guest.mount(tag, &call.directory.join(target), readonly))
        }
        ("mount", _) => SyscallAnswer::error(
            "mount: the simulator can only mount shares: mount -t virtiofs TAG DIRECTORY",
        ),
        ("umount", [target]) => {
            let target = call.directory.join(target);
            wait_if_hung(guest, guest.tag_at(&target)).await;
            SyscallAnswer::of(guest.unmount(&target))
        }
        ("poweroff", _) => {
            guest.settle();
            guest.power(PowerRequest::Off);
            SyscallAnswer::default()
        }
        ("reboot", _) => {
            guest.settle();
            guest.power(PowerRequest::Reboot);
            SyscallAnswer::default()
        }
        ("counter", _) => match guest.kernel().ram.counter() {
            Ok(counter) => SyscallAnswer::out(format!("{counter}\n")),
            Err(error) => SyscallAnswer::error(error),
        },
        ("keep", ["--end", process]) => match process.parse().map(|process| guest.kernel().end(process)) {
            Ok(Ok(bytes)) => SyscallAnswer::out(String::from_utf8_lossy(&bytes)),
            _ => SyscallAnswer::error(format!("keep: there is no process {process}")),
        },
        ("keep", []) => match guest.kernel().keep(input) {
            Ok(process) => SyscallAnswer::out(format!("{process}\n")),
            Err(error) => SyscallAnswer::error(error),
        },
        ("reseed", _) => {
            let mut kernel = guest.kernel();
            kernel.state.reseeded += 1;
            SyscallAnswer::of(kernel.pass(input).and_then(|()| kernel.keep_state()))
        }
        ("clock", [shift]) => match shift.parse::<i64>() {
            Ok(shift) => {
                let mut kernel = guest.kernel();
                kernel.state.clock = kernel.state.clock.saturating_add(shift);
                match kernel.keep_state() {
                    Ok(()) => SyscallAnswer::out((now() + kernel.state.clock).to_string()),
                    Err(error) => SyscallAnswer::error(error),
                }
            }
            Err(error) => SyscallAnswer::error(error),
        },
        _ => SyscallAnswer::error(format!("{}: not a program of the simulated guest", call.name)),
    }
}

async fn wait_if_hung(guest: &SimulatedGuest, tag: Option<String>) {
    if tag.is_some_and(|tag| guest.is_hung(&tag)) {
        std::future::pending::<()>().await;
    }
}

/// The host's time, in nanoseconds since 1970.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
