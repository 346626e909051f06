//! Programs of the simulated guest that cannot be those of this machine, because they would act upon its kernel.
//!
//! Each is a script in the guest's `/bin`, which comes before this machine's directories on PATH. The script calls the
//! simulated kernel.
//!
//! | program | what it does |
//! |---|---|
//! | `mount` `umount` `sync` `fstrim` `poweroff` `shutdown` `halt` `reboot` | the same as everywhere, in the guest |
//! | `dd` | runs this machine's `dd`, and writes to the guest's disk after `conv=fsync` |
//! | `sudo` | runs the command, without a change of user |
//! | `setsid` | runs the command without a new session, because the leader of a session would be taken for a daemon of nixbox |
//! | `counter` | prints a number in the guest's RAM that grows by one 100 times a second |
//! | `keep` | keeps its input in memory, and prints a process id; `keep --end ID` gives the input back |

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::syscalls;

/// Programs that only make a system call: name of the program, name of the call.
const CALLS: [(&str, &str); 11] = [
    ("mount", "mount"),
    ("umount", "umount"),
    ("sync", "sync"),
    ("fstrim", "fstrim"),
    ("poweroff", "poweroff"),
    ("shutdown", "poweroff"),
    ("halt", "poweroff"),
    ("reboot", "reboot"),
    ("counter", "counter"),
    ("keep", "keep"),
    ("settle", "settle"),
];

const DD: &str =
    "command -p dd \"$@\"; status=$?\ncase \" $* \" in *fsync*) sync || exit 1 ;; esac\nexit $status";
const SUDO: &str = "[ \"$1\" != -n ] || shift\nexec \"$@\"";
const SETSID: &str = "exec \"$@\"";

/// The shell words that make a call, before its arguments.
pub(super) fn caller(name: &str) -> io::Result<String> {
    let program = std::env::current_exe()?;
    let program = program.to_str().ok_or(io::ErrorKind::InvalidData)?;
    Ok(format!("exec '{}' simulator call {name}", program.replace('\'', r"'\''")))
}

/// Writes the programs into the guest whose root directory is `view`.
pub(super) fn install(view: &Path) -> io::Result<()> {
    for (name, call) in CALLS {
        write(view, name, &format!("{} \"$@\"", caller(call)?))?;
    }
    for (name, text) in [("dd", DD), ("sudo", SUDO), ("setsid", SETSID)] {
        write(view, name, text)?;
    }
    Ok(())
}

fn write(view: &Path, name: &str, text: &str) -> io::Result<()> {
    let path = view.join("bin").join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

/// Runs the program `name` in the guest. Returns its exit status.
///
/// # Errors
/// If this process does not run in a simulated guest, or the guest is gone.
pub fn run(name: &str, arguments: Vec<String>) -> io::Result<u8> {
    if name == "settle" {
        return settle();
    }
    let mut input = Vec::new();
    if name == "keep" && arguments.is_empty() {
        io::stdin().read_to_end(&mut input)?;
    }
    let answer = syscalls::call(name, arguments, &input)?;
    io::stderr().write_all(answer.error.as_bytes())?;
    io::stdout().write_all(answer.out.as_bytes())?;
    Ok(answer.status)
}

/// Does in the simulated guest what `guest/clock_helper.s` does in a real one: reads a `struct rand_pool_info` for the random
/// pool and writes the time, then reads one `struct timex` after another for the clock and writes the time after each. The
/// exit statuses for failures are the same.
fn settle() -> io::Result<u8> {
    const POOL_INFO: usize = 520;
    const TIMEX: usize = 208;
    const ADJ_SETOFFSET: u32 = 0x0100;
    let mut input = io::stdin().lock();
    let mut pool = [0; POOL_INFO];
    if fill(&mut input, &mut pool)? != POOL_INFO {
        return Ok(11);
    }
    if syscalls::call("reseed", Vec::new(), &pool)?.status != 0 {
        return Ok(13);
    }
    let mut shift = 0;
    loop {
        let answer = syscalls::call("clock", vec![shift.to_string()], &[])?;
        let Ok(time) = answer.out.parse::<i64>() else {
            return Ok(16);
        };
        let second = 1_000_000_000;
        let mut timespec = time.div_euclid(second).to_le_bytes().to_vec();
        timespec.extend(time.rem_euclid(second).to_le_bytes());
        let mut output = io::stdout().lock();
        output.write_all(&timespec)?;
        output.flush()?;
        let mut timex = [0; TIMEX];
        match fill(&mut input, &mut timex)? {
            0 => return Ok(0),
            TIMEX => {}
            _ => return Ok(15),
        }
        let word = |at: usize| i64::from_le_bytes(std::array::from_fn(|byte| timex[at + byte]));
        let modes = u32::from_le_bytes(std::array::from_fn(|byte| timex[byte]));
        shift = if modes & ADJ_SETOFFSET == 0 { 0 } else { word(72) * second + word(80) };
    }
}

/// Reads until the buffer is full or the input ends. Returns the number of bytes.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}
