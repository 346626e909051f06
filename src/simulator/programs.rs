//! Programs of the simulated guest that cannot be those of this machine: they would act upon its kernel.
//!
//! Each is a script in the guest's `/bin`, before this machine's own on PATH, that calls the simulated kernel.
//!
//! | program | what it does |
//! |---|---|
//! | `mount` `umount` `sync` `fstrim` `poweroff` `shutdown` `halt` `reboot` | what they do anywhere, in the guest |
//! | `dd` | this machine's, and `conv=fsync` reaches the guest's disk |
//! | `sudo` | runs the command: the guest's user is root in everything but its name |
//! | `setsid` | runs the command, without a session of its own, which would pass for a daemon of nixbox's |
//! | `counter` | prints a number in the guest's RAM that goes up 100 times a second |
//! | `keep` | keeps its input in memory, and prints a process id; `keep --end ID` gives the input back |

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::syscalls;

/// Those that do nothing but call the kernel, by the name of the call.
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

/// What runs a call as a program: the words before its arguments.
pub(super) fn caller(name: &str) -> io::Result<String> {
    let program = std::env::current_exe()?;
    let program = program.to_str().ok_or(io::ErrorKind::InvalidData)?;
    Ok(format!("exec '{}' simulator call {name}", program.replace('\'', r"'\''")))
}

/// Puts them into the guest whose root stands at `view`.
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

/// Runs one of them, in the guest. Gives what to exit with.
///
/// # Errors
/// If it is not run in a guest, or that is gone.
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

/// What `guest/clock_helper.s` does on a machine of its own: reads a `struct rand_pool_info` for the random pool and tells the
/// time, then reads `struct timex` for the clock and tells the time after each. Its numbers of what went wrong are the same.
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
        let told = syscalls::call("clock", vec![shift.to_string()], &[])?;
        let Ok(time) = told.out.parse::<i64>() else {
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

/// As many bytes as there are, up to the length of the buffer.
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
