//! The kernel that an image boots: the image's own, the newest of this machine that the user may read, or the file that the user
//! names; and where the modules of that kernel are.

use std::cmp::Ordering;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::compression;
use super::contents::ContentStore;
use super::modules::{self, ModuleError, ModuleIndex};
use super::tree::{ImageTree, NodeKind};
use crate::files::FileError;

/// The most bytes of a kernel. A vmlinux with everything built in has some hundred MiB.
const LARGEST_KERNEL: u64 = 1 << 30;
/// The most bytes of a module or of the list of modules.
const LARGEST_MODULE: u64 = 256 << 20;
/// Where kernels are on Debian, Fedora, Arch and SUSE.
const BOOT: &str = "/boot";

/// Why an image has no kernel that it can boot.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error(
        "the image has no kernel, and of the kernels in /boot none can be used{}: name one with --kernel, or install the \
         package linux-image-cloud-amd64",
        .unreadable.as_ref().map(|path| format!(" ({} may not be read by you)", path.display())).unwrap_or_default()
    )]
    None { unreadable: Option<PathBuf> },
    #[error("{0} is not a kernel that Cloud Hypervisor boots: it is neither a bzImage nor a vmlinux")]
    Format(String),
    #[error("{what} is larger than {limit} bytes")]
    TooLarge { what: String, limit: u64 },
    #[error(
        "the modules of the kernel {release} are neither in the image nor in /lib/modules of this machine"
    )]
    NoModules { release: String },
    #[error("the module {path} of the kernel {release} is missing or cannot be read")]
    Module {
        path: String,
        release: String,
        #[source]
        source: io::Error,
    },
    #[error("the kernel {release} cannot boot a VM")]
    Unfit {
        release: String,
        #[source]
        source: ModuleError,
    },
    #[error(transparent)]
    File(#[from] FileError),
}

type Result<T, E = KernelError> = std::result::Result<T, E>;

/// Where the kernel and its modules come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelOrigin {
    /// The image.
    Image,
    /// The file on this machine.
    Host(PathBuf),
}

/// A kernel.
#[derive(Debug)]
pub struct BootKernel {
    /// The whole file.
    pub bytes: Vec<u8>,
    /// What `uname -r` says.
    pub release: String,
    /// Where it comes from.
    pub origin: KernelOrigin,
}

/// Compares versions: numbers by their value, and the text between them by its letters.
#[must_use]
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let pieces = |text: &str| {
        let mut pieces: Vec<(String, bool)> = Vec::new();
        for letter in text.chars() {
            let digit = letter.is_ascii_digit();
            match pieces.last_mut() {
                Some((piece, number)) if *number == digit => piece.push(letter),
                _ => pieces.push((letter.to_string(), digit)),
            }
        }
        pieces
    };
    let (a, b) = (pieces(a), pieces(b));
    for ((a, a_number), (b, b_number)) in a.iter().zip(&b) {
        let order = if *a_number && *b_number {
            let trimmed = |text: &str| text.trim_start_matches('0').to_owned();
            let (a, b) = (trimmed(a), trimmed(b));
            a.len().cmp(&b.len()).then(a.cmp(&b))
        } else {
            a.cmp(b)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    a.len().cmp(&b.len())
}

/// The release of a kernel: of a bzImage by its header (Documentation/arch/x86/boot.rst), of a vmlinux by its banner.
fn release_of(bytes: &[u8]) -> Option<String> {
    let text_at = |start: usize| {
        let text: Vec<u8> =
            bytes.get(start..)?.iter().copied().take_while(|byte| *byte > b' ').take(128).collect();
        String::from_utf8(text).ok().filter(|text| is_release(text))
    };
    if bytes.get(0x202..0x206) == Some(b"HdrS") {
        let pointer = u16::from_le_bytes([*bytes.get(0x20e)?, *bytes.get(0x20f)?]);
        return text_at(usize::from(pointer) + 0x200);
    }
    if bytes.starts_with(b"\x7fELF") {
        let banner = b"Linux version ";
        let found = bytes.windows(banner.len()).position(|window| window == banner)?;
        return text_at(found + banner.len());
    }
    None
}

/// A release becomes the name of a directory.
fn is_release(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('.')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-+~".contains(&byte))
}

impl BootKernel {
    /// The kernel of this file.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn of_file(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(FileError::system("open", path))?;
        let shown = path.display().to_string();
        let bytes = read_all(file, &shown, LARGEST_KERNEL)?.map_err(FileError::system("read", path))?;
        let release = release_of(&bytes).ok_or(KernelError::Format(shown))?;
        Ok(Self { bytes, release, origin: KernelOrigin::Host(path.to_owned()) })
    }

    /// The newest kernel of an image; `None` if it has none.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn of_image(tree: &ImageTree, contents: &ContentStore) -> Result<Option<Self>> {
        let mut names: Vec<String> =
            tree.names(BOOT).into_iter().filter(|name| name.starts_with("vmlinuz-")).collect();
        names.sort_by(|a, b| compare_versions(b, a));
        let mut paths: Vec<String> = names.into_iter().map(|name| format!("{BOOT}/{name}")).collect();
        paths.extend(["/boot/vmlinuz", "/vmlinuz"].map(str::to_owned));
        for release in tree.names("/lib/modules") {
            paths.push(format!("/lib/modules/{release}/vmlinuz"));
        }
        for path in paths {
            let Some(bytes) = read_from(tree, contents, &path, LARGEST_KERNEL)? else { continue };
            let release =
                release_of(&bytes).ok_or_else(|| KernelError::Format(format!("{path} of the image")))?;
            return Ok(Some(Self { bytes, release, origin: KernelOrigin::Image }));
        }
        Ok(None)
    }

    /// The newest kernel of this machine that this user may read and that has its modules here.
    ///
    /// # Errors
    /// [`KernelError::None`].
    pub fn of_host() -> Result<Self> {
        let entries = fs::read_dir(BOOT).into_iter().flatten().filter_map(Result::ok);
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with("vmlinuz-"))
            .collect();
        names.sort_by(|a, b| compare_versions(b, a));
        let mut unreadable = None;
        for name in names {
            let path = Path::new(BOOT).join(&name);
            match Self::of_file(&path) {
                Ok(kernel) if host_modules(&kernel.release).join("modules.dep").is_file() => {
                    return Ok(kernel);
                }
                Err(KernelError::File(error)) if error.is(io::ErrorKind::PermissionDenied) => {
                    unreadable = unreadable.or(Some(path));
                }
                _ => {}
            }
        }
        Err(KernelError::None { unreadable })
    }

    /// The modules that the initramfs loads, in their order: names, and contents that are not compressed.
    ///
    /// # Errors
    /// [`KernelError::Unfit`] for a kernel without virtio; otherwise if a module cannot be read.
    pub fn boot_modules(&self, tree: &ImageTree, contents: &ContentStore) -> Result<Vec<(String, Vec<u8>)>> {
        let release = || self.release.clone();
        let text = |name: &str| {
            let bytes = self.module_file(tree, contents, name)?;
            Ok::<_, KernelError>(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
        };
        let dependencies =
            text("modules.dep")?.ok_or_else(|| KernelError::NoModules { release: release() })?;
        let builtin = text("modules.builtin")?.unwrap_or_default();
        let unfit = |source| KernelError::Unfit { release: release(), source };
        let index = ModuleIndex::parse(&dependencies, &builtin).map_err(unfit)?;
        let paths = index.closure(&modules::REQUIRED, &modules::OPTIONAL).map_err(unfit)?;
        let mut chosen = Vec::new();
        for path in paths {
            let failed = |source| KernelError::Module { path: path.clone(), release: release(), source };
            let bytes = self
                .module_file(tree, contents, &path)?
                .ok_or_else(|| failed(io::Error::from(io::ErrorKind::NotFound)))?;
            let plain = compression::decompressed(&bytes[..]).map_err(failed)?;
            let module = read_all(plain, &path, LARGEST_MODULE)?.map_err(failed)?;
            let name = path.rsplit('/').next().unwrap_or(&path);
            let stem = name.split(".ko").next().unwrap_or(name);
            chosen.push((format!("{stem}.ko"), module));
        }
        Ok(chosen)
    }

    /// A file in the directory of the modules. The image's own are taken for the image's own kernel, and otherwise those of this
    /// machine.
    fn module_file(&self, tree: &ImageTree, contents: &ContentStore, name: &str) -> Result<Option<Vec<u8>>> {
        if self.origin == KernelOrigin::Image {
            let path = format!("/lib/modules/{}/{name}", self.release);
            return read_from(tree, contents, &path, LARGEST_MODULE);
        }
        let path = host_modules(&self.release).join(name);
        match File::open(&path) {
            Ok(file) => {
                let read = read_all(file, name, LARGEST_MODULE)?;
                Ok(Some(read.map_err(FileError::system("read", &path))?))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(FileError::system("open", &path)(error).into()),
        }
    }
}

/// Where this machine has the modules of a release.
#[must_use]
pub fn host_modules(release: &str) -> PathBuf {
    Path::new("/lib/modules").join(release)
}

/// Drivers of hardware that no VM has.
const HARDWARE: [&str; 17] = [
    "kernel/sound",
    "kernel/drivers/gpu",
    "kernel/drivers/media",
    "kernel/drivers/infiniband",
    "kernel/drivers/scsi",
    "kernel/drivers/usb",
    "kernel/drivers/iio",
    "kernel/drivers/staging",
    "kernel/drivers/ata",
    "kernel/drivers/hwmon",
    "kernel/drivers/input",
    "kernel/drivers/hid",
    "kernel/drivers/mtd",
    "kernel/drivers/bluetooth",
    "kernel/drivers/net/ethernet",
    "kernel/drivers/net/wireless",
    "kernel/net/bluetooth",
];

/// Whether a file in the directory of the modules is left out of an image: drivers of hardware, and the links to the headers.
#[must_use]
pub fn is_left_out(relative: &Path) -> bool {
    HARDWARE.iter().any(|directory| relative.starts_with(directory))
        || ["build", "source", "vmlinuz"].iter().any(|name| relative == Path::new(name))
}

fn read_all(source: impl Read, what: &str, limit: u64) -> Result<io::Result<Vec<u8>>> {
    let mut bytes = Vec::new();
    if let Err(error) = source.take(limit + 1).read_to_end(&mut bytes) {
        return Ok(Err(error));
    }
    if bytes.len() as u64 > limit {
        return Err(KernelError::TooLarge { what: what.to_owned(), limit });
    }
    Ok(Ok(bytes))
}

/// The content of a file of an image; `None` if it is not there.
fn read_from(tree: &ImageTree, contents: &ContentStore, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
    let Some(id) = tree.look_up(path) else { return Ok(None) };
    let NodeKind::File(number, _) = tree.node(id).kind else { return Ok(None) };
    let read = read_all(contents.open(number)?, path, limit)?;
    Ok(Some(read.map_err(FileError::system("read", path))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        let mut versions =
            ["6.1.0-9-amd64", "6.1.0-10-amd64", "5.19.0", "6.1.0-10-cloud-amd64", "6.1", "10.0"];
        versions.sort_by(|a, b| compare_versions(a, b));
        let expected = ["5.19.0", "6.1", "6.1.0-9-amd64", "6.1.0-10-amd64", "6.1.0-10-cloud-amd64", "10.0"];
        assert_eq!(versions, expected);
    }

    #[test]
    fn a_release_is_read_from_the_header_or_the_banner_and_may_not_lead_elsewhere() {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        let put = |image: &mut Vec<u8>, text: &[u8]| image[0x300..0x300 + text.len()].copy_from_slice(text);
        put(&mut image, b"6.1.0-9-amd64 (debian)\0");
        assert_eq!(release_of(&image).as_deref(), Some("6.1.0-9-amd64"));
        put(&mut image, b"../../etc (x)\0");
        assert_eq!(release_of(&image), None);
        image[0x20e..0x210].copy_from_slice(&u16::MAX.to_le_bytes());
        assert_eq!(release_of(&image), None);
        assert_eq!(release_of(b"\x7fELF....Linux version 5.10.1+ (gcc)").as_deref(), Some("5.10.1+"));
        assert_eq!(release_of(b"MZ"), None);
        assert_eq!(release_of(b""), None);
    }
}
