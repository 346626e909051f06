//! What nixbox brings into a guest that boots an image: one directory, `/run/nixbox/guest`, which is read-only there.
//!
//! ```text
//! bin/    busybox with a name for each of its programs; dropbear, which is the SSH server; sudo
//! lib/    the libraries of dropbear, so that it runs whatever C library the image has
//! ...     the scripts of `guest/`
//! ```
//!
//! The programs are those of this machine's Debian packages, as for `nixbox image make-minimal`. The initramfs of an image has
//! the directory, and its first process copies it to the place.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::initramfs::InitramfsWriter;
use super::sudo;
use crate::files::FileError;
use crate::host::program::{self, ProgramError};
use crate::world::Slot;

/// Where the directory is in the guest.
const PLACE: &str = "/run/nixbox/guest";
const EXECUTABLE: u32 = 0o755;
const READABLE: u32 = 0o644;

/// The scripts and the configurations, with their permissions.
const SCRIPTS: [(&str, u32, &str); 5] = [
    ("prepare", READABLE, include_str!("guest/prepare")),
    ("inittab", READABLE, include_str!("guest/inittab")),
    ("start", EXECUTABLE, include_str!("guest/start")),
    ("ssh", EXECUTABLE, include_str!("guest/ssh")),
    ("nixbox-ssh.service", READABLE, include_str!("guest/nixbox-ssh.service")),
];
const INIT: &str = include_str!("guest/init");

/// Why the programs for a guest cannot be had.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("a program that guests need is missing")]
    Missing(#[source] ProgramError),
    #[error("{} is not a program of this machine that a guest can run: {why}", path.display())]
    Program { path: PathBuf, why: &'static str },
    #[error("cannot ask {} for the libraries of {}", "ldd", path.display())]
    Libraries {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot run {}", path.display())]
    Run {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write the initramfs")]
    Write(#[source] io::Error),
}

type Result<T, E = RuntimeError> = std::result::Result<T, E>;

/// The files of the directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestRuntime {
    /// Content and permissions, by the path in the directory.
    files: BTreeMap<String, (u32, Vec<u8>)>,
    /// The names of the programs that busybox is.
    applets: Vec<String>,
}

impl GuestRuntime {
    /// Collects the programs of this machine.
    ///
    /// # Errors
    /// [`RuntimeError`] names what is missing, and its Debian package.
    pub fn of_this_machine() -> Result<Self> {
        let mut runtime = Self::default();
        let busybox = find("busybox", "busybox-static")?;
        let bytes = read(&busybox)?;
        match Elf::parse(&bytes) {
            Some(elf) if elf.interpreter.is_none() => {}
            Some(_) => {
                let why = "it needs libraries; the package busybox-static has one that does not";
                return Err(RuntimeError::Program { path: busybox, why });
            }
            None => return Err(RuntimeError::Program { path: busybox, why: "it is not for x86-64" }),
        }
        runtime.applets = applets(&busybox)?;
        runtime.put("bin/busybox", EXECUTABLE, bytes);
        for name in ["dropbear", "dropbearkey"] {
            runtime.add_with_libraries(name)?;
        }
        runtime.put("bin/sudo", READABLE, sudo::elf());
        for (name, mode, text) in SCRIPTS {
            runtime.put(name, mode, text.as_bytes().to_vec());
        }
        Ok(runtime)
    }

    fn put(&mut self, path: &str, mode: u32, bytes: Vec<u8>) {
        self.files.insert(path.to_owned(), (mode, bytes));
    }

    /// Adds a program that loads its libraries from the directory: the path of the dynamic linker in it is replaced. A
    /// variable in its environment names the directory of the others.
    fn add_with_libraries(&mut self, name: &'static str) -> Result<()> {
        let path = find(name, "dropbear-bin")?;
        let mut bytes = read(&path)?;
        let linker = format!("{PLACE}/lib/ld.so");
        let program = |why| RuntimeError::Program { path: path.clone(), why };
        let elf = Elf::parse(&bytes).ok_or_else(|| program("it is not for x86-64"))?;
        if let Some(place) = elf.interpreter {
            let own = String::from_utf8_lossy(&bytes[place.clone()]).trim_end_matches('\0').to_owned();
            if place.len() <= linker.len() {
                return Err(program("the path of its dynamic linker is too short to be replaced"));
            }
            bytes[place.clone()].fill(0);
            bytes[place.start..place.start + linker.len()].copy_from_slice(linker.as_bytes());
            self.put("lib/ld.so", EXECUTABLE, read(Path::new(&own))?);
            for library in libraries(&path)? {
                if let Some(file) = library.file_name().and_then(|file| file.to_str()) {
                    self.put(&format!("lib/{file}"), READABLE, read(&library)?);
                }
            }
        }
        self.put(&format!("bin/{name}"), EXECUTABLE, bytes);
        Ok(())
    }

    /// Writes the initramfs of an image that boots with these modules.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_initramfs<W: io::Write>(&self, inner: W, modules: &[(String, Vec<u8>)]) -> Result<W> {
        self.initramfs(inner, modules).map_err(RuntimeError::Write)
    }

    fn initramfs<W: io::Write>(&self, inner: W, modules: &[(String, Vec<u8>)]) -> io::Result<W> {
        let mut writer = InitramfsWriter::new(inner);
        for directory in ["bin", "dev", "proc", "sys", "root", "modules", "guest", "guest/bin", "guest/lib"] {
            writer.directory(directory)?;
        }
        writer.symlink("bin/busybox", "../guest/bin/busybox")?;
        writer.file("init", EXECUTABLE, INIT.as_bytes())?;
        writer.file("addresses", READABLE, addresses().as_bytes())?;
        let order: String = modules.iter().map(|(name, _)| format!("{name}\n")).collect();
        writer.file("modules/order", READABLE, order.as_bytes())?;
        for (name, bytes) in modules {
            writer.file(&format!("modules/{name}"), READABLE, bytes)?;
        }
        for (path, (mode, bytes)) in &self.files {
            writer.file(&format!("guest/{path}"), *mode, bytes)?;
        }
        for applet in &self.applets {
            let path = format!("bin/{applet}");
            if !self.files.contains_key(&path) {
                writer.symlink(&format!("guest/{path}"), "busybox")?;
            }
        }
        writer.finish()
    }
}

/// A line for each slot: MAC, address of the guest, gateway, length of the prefix.
fn addresses() -> String {
    let line = |slot: Slot| {
        let (guest, gateway): (Ipv4Addr, Ipv4Addr) = (slot.guest(), slot.gateway());
        format!("{} {guest} {gateway} {}\n", slot.mac(), Slot::PREFIX)
    };
    Slot::all().map(line).collect()
}

/// The words of the kernel's command line by which the initramfs of an image knows whom to let in.
#[must_use]
pub fn boot_words(user: &str, uid: u32, public_key: &str) -> String {
    // The line of a key has its type, which the key itself says too, the key in base64, and a comment.
    let key = public_key.split_ascii_whitespace().nth(1).unwrap_or_default();
    format!("nixbox.user={user} nixbox.uid={uid} nixbox.key={key}")
}

/// The word of a command line that asks for [`boot_words`].
pub const BOOT_WORD: &str = "nixbox.guest";

fn find(name: &'static str, package: &'static str) -> Result<PathBuf> {
    program::locate(name, package, program::path_directories()).map_err(RuntimeError::Missing)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    Ok(fs::read(path).map_err(FileError::system("read", path))?)
}

/// What is needed of an ELF file.
struct Elf {
    /// Where the path of the dynamic linker is in the file, with its final zero.
    interpreter: Option<std::ops::Range<usize>>,
}

impl Elf {
    /// Parses the headers of a file for x86-64 (System V ABI, chapters 4, 5); `None` for every other file.
    fn parse(bytes: &[u8]) -> Option<Self> {
        const PT_INTERP: u32 = 3;
        let half = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| {
            let long = u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?);
            usize::try_from(long).ok()
        };
        if bytes.get(..6)? != b"\x7fELF\x02\x01" || half(18)? != 62 {
            return None;
        }
        let (start, size, count) = (long(32)?, usize::from(half(54)?), usize::from(half(56)?));
        let mut interpreter = None;
        for index in 0..count {
            let header = start.checked_add(index.checked_mul(size)?)?;
            if word(header)? == PT_INTERP {
                let (offset, length) = (long(header + 8)?, long(header + 32)?);
                let place = offset..offset.checked_add(length)?;
                bytes.get(place.clone())?;
                interpreter = Some(place);
            }
        }
        Some(Self { interpreter })
    }
}

/// The names of the programs that busybox is.
fn applets(busybox: &Path) -> Result<Vec<String>> {
    let failed = |source| RuntimeError::Run { path: busybox.to_owned(), source };
    let output =
        Command::new(busybox).arg("--list").env_clear().stdin(Stdio::null()).output().map_err(failed)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let plain = |name: &&str| !name.is_empty() && !name.contains('/') && *name != "busybox";
    Ok(text.lines().filter(plain).map(str::to_owned).collect())
}

/// The libraries that the dynamic linker of this machine loads for a program of this machine.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let failed = |source| RuntimeError::Libraries { path: program.to_owned(), source };
    let output = Command::new("ldd")
        .arg(program)
        .env_clear()
        .env("PATH", program::SYSTEM_DIRECTORIES.join(":"))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(failed)?;
    if !output.status.success() {
        return Err(failed(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let path = |line: &str| {
        let (_, path) = line.split_once(" => ")?;
        Some(PathBuf::from(path.split(" (").next()?.trim())).filter(|path| path.is_absolute())
    };
    Ok(text.lines().filter_map(path).collect())
}

#[cfg(test)]
mod tests;
