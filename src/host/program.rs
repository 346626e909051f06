//! Finds the system's own programs, and runs them to their end: nft, dnsmasq, mkfs.ext4.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Child;
use tracing::{Instrument as _, debug_span};

use crate::world::{Failure, Interrupt};

/// Where system programs are, on NixOS and Guix too. Users cannot write there.
pub(crate) const SYSTEM_DIRECTORIES: [&str; 9] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
    "/run/current-system/sw/bin",
    "/run/current-system/profile/sbin",
    "/run/current-system/profile/bin",
];

/// The most that an error repeats of what a program wrote to stderr, in bytes.
const STDERR_LIMIT: usize = 2000;

/// Why a program did not do its work.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("{name} is not installed (looked in {searched}); it is part of {package}")]
    Missing { name: &'static str, package: &'static str, searched: String },
    #[error("cannot {action} {path:?}")]
    Run { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{path:?} did not end within {limit:?}, and was killed")]
    TimedOut { path: PathBuf, limit: Duration },
    #[error("{path:?} failed ({status}): {stderr}")]
    Failed { path: PathBuf, status: ExitStatus, stderr: String },
    #[error("cannot exchange JSON with {name}")]
    Json { name: &'static str, source: serde_json::Error },
    #[error("cannot start a thread to run {0:?}")]
    Thread(PathBuf),
    #[error("interrupted")]
    Interrupted,
}

impl From<ProgramError> for Failure {
    fn from(error: ProgramError) -> Self {
        match error {
            ProgramError::Interrupted => Self::Interrupted,
            error => Self::world(error),
        }
    }
}

/// The directories of PATH.
pub(crate) fn path_directories() -> Vec<PathBuf> {
    directories_in(&std::env::var_os("PATH").unwrap_or_default())
}

/// The directories in the value of PATH. Relative entries are left out, since their meaning changes with the working
/// directory.
pub(super) fn directories_in(path: &OsStr) -> Vec<PathBuf> {
    std::env::split_paths(path).filter(|directory| directory.is_absolute()).collect()
}

/// Whether this is a file that the user of this thread may execute.
pub(super) fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// The first program of that name in these directories that may be executed.
pub(crate) fn search(name: &str, directories: &[PathBuf]) -> Option<PathBuf> {
    directories.iter().map(|directory| directory.join(name)).find(|path| is_executable(path))
}

/// Like [`search`], in the directories of `own` and in [`SYSTEM_DIRECTORIES`].
///
/// # Errors
/// [`ProgramError::Missing`].
pub(crate) fn locate(
    name: &'static str,
    package: &'static str,
    mut own: Vec<PathBuf>,
) -> Result<PathBuf, ProgramError> {
    own.extend(SYSTEM_DIRECTORIES.map(PathBuf::from));
    search(name, &own).ok_or_else(|| {
        let searched: Vec<_> = own.iter().map(|path| path.display().to_string()).collect();
        ProgramError::Missing { name, package, searched: searched.join(", ") }
    })
}

/// Gives a program its input, and waits for its end; returns what it wrote if it succeeded. The program is killed if it
/// takes longer than `limit`, and on an interrupt.
///
/// # Errors
/// If the program fails or was killed. It has ended then.
pub(crate) async fn finish(
    child: Child,
    path: &Path,
    input: &[u8],
    limit: Duration,
    interrupt: &Interrupt,
) -> Result<Output, ProgramError> {
    let span = debug_span!("program", path = %path.display());
    finish_unobserved(child, path, input, limit, interrupt).instrument(span).await
}

async fn finish_unobserved(
    mut child: Child,
    path: &Path,
    input: &[u8],
    limit: Duration,
    interrupt: &Interrupt,
) -> Result<Output, ProgramError> {
    let failed = |action| move |source| ProgramError::Run { action, path: path.to_owned(), source };
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let talk = async {
        let write = async {
            let Some(mut stdin) = stdin else { return Ok(()) };
            match stdin.write_all(input).await {
                // The program ended without reading its input. Its status and stderr say why.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                written => written.map_err(failed("write to")),
            }
        };
        let read = async { tokio::try_join!(read(stdout), read(stderr)).map_err(failed("read from")) };
        let ((), (stdout, stderr)) = tokio::try_join!(write, read)?;
        let status = child.wait().await.map_err(failed("wait for"))?;
        Ok(Output { status, stdout, stderr })
    };
    let ended = tokio::select! {
        biased;
        () = interrupt.wait() => Err(ProgramError::Interrupted),
        () = tokio::time::sleep(limit) => Err(ProgramError::TimedOut { path: path.to_owned(), limit }),
        ended = talk => ended,
    };
    let output = match ended {
        Ok(output) => output,
        Err(error) => {
            child.kill().await.map_err(failed("kill"))?;
            return Err(error);
        }
    };
    if output.status.success() {
        return Ok(output);
    }
    let stderr = excerpt(&output.stderr);
    Err(ProgramError::Failed { path: path.to_owned(), status: output.status, stderr })
}

/// What an error repeats of this: all of it, or its beginning and its end. Some programs say what failed first and others last.
fn excerpt(stderr: &[u8]) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    if stderr.len() <= STDERR_LIMIT {
        return text(stderr);
    }
    let (start, end) = (&stderr[..STDERR_LIMIT / 2], &stderr[stderr.len() - STDERR_LIMIT / 2..]);
    format!("{} [...] {}", text(start), text(end))
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    fn shell(script: &str) -> Child {
        tokio::process::Command::new("/bin/sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    async fn run(script: &str, input: &[u8], interrupt: &Interrupt) -> Result<Output, ProgramError> {
        finish(shell(script), Path::new("/bin/sh"), input, Duration::from_secs(60), interrupt).await
    }

    #[tokio::test]
    async fn a_program_gets_its_input_and_its_output_is_returned() {
        let never = Interrupt::new();
        assert_eq!(run("cat", b"text", &never).await.unwrap().stdout, b"text");
        // More than a pipe holds, to a program that reads none of it.
        assert_eq!(run("echo done", &vec![b'x'; 1 << 20], &never).await.unwrap().stdout, b"done\n");
        let error = run("echo why >&2; exit 3", b"", &never).await.unwrap_err().to_string();
        assert_eq!(error, "\"/bin/sh\" failed (exit status: 3): why");
        let script = "echo first >&2; yes | head -n 100000 >&2; echo last >&2; exit 1";
        let error = run(script, b"", &never).await.unwrap_err().to_string();
        assert!(error.contains(": first") && error.ends_with("last") && error.len() < 2200, "{error}");
    }

    #[tokio::test]
    async fn a_program_that_takes_too_long_or_is_interrupted_is_killed() {
        let child = shell("exec sleep 1000");
        let id = child.id().unwrap();
        let limit = Duration::from_millis(20);
        let ended = finish(child, Path::new("/bin/sh"), b"", limit, &Interrupt::new()).await;
        assert!(matches!(ended, Err(ProgramError::TimedOut { .. })), "{ended:?}");
        assert!(!Path::new(&format!("/proc/{id}")).exists());
        let interrupt = Interrupt::new();
        interrupt.request();
        assert!(matches!(run("exec sleep 1000", b"", &interrupt).await, Err(ProgramError::Interrupted)));
    }

    #[test]
    fn programs_are_found_in_absolute_directories_only() {
        assert_eq!(search("sh", &["/nowhere".into(), "/bin".into()]), Some("/bin/sh".into()));
        assert_eq!(search("passwd", &["/etc".into()]), None, "a file that is not executable");
        assert_eq!(directories_in("bin::.:/bin".as_ref()), [PathBuf::from("/bin")]);
        let missing = locate("no-such-program", "nothing", vec!["/nowhere".into()]).unwrap_err().to_string();
        assert!(
            missing.contains("/nowhere, /usr/local/sbin") && missing.contains("part of nothing"),
            "{missing}"
        );
    }
}
