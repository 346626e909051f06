//! Kernel calls that no safe crate has: making a TAP, making a mount read-only, which blocks of a file are shared, and what
//! KVM can give to guests. The unsafe code is inside, and safe functions are exported.
//!
//! Source: Linux `Documentation/networking/tuntap.rst`, `include/uapi/linux/if_tun.h`,
//! `Documentation/filesystems/fiemap.rst`, `include/uapi/linux/fiemap.h`, `Documentation/virt/kvm/api.rst` and
//! `arch/x86/include/uapi/asm/kvm.h`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater, ioctl, opcode};

const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
const TUNSETPERSIST: Opcode = opcode::write::<i32>(b'T', 203);
const TUNSETOWNER: Opcode = opcode::write::<i32>(b'T', 204);

const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;
/// Makes `TUNSETIFF` fail with EBUSY instead of attaching to a device that exists already.
const IFF_TUN_EXCL: i16 = i16::MIN;

/// `struct ifreq`: 16 bytes of name, then a union of 24 of which the first two are the flags.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

/// Why a TAP could not be made.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    #[error("{0:?} cannot name a network device: 1 to 15 bytes without NUL are needed")]
    Name(String),
    #[error("cannot open /dev/net/tun (is the tun module loaded?)")]
    Open(#[source] io::Error),
    #[error("network device {0} exists already")]
    Exists(String),
    /// EPERM: CAP_NET_ADMIN is missing.
    #[error("{call} failed for network device {name}")]
    Call { call: &'static str, name: String, source: io::Error },
}

/// An open TAP. The device is gone when this is dropped, unless [`Tap::persist`] was called.
#[derive(Debug)]
pub struct Tap {
    file: OwnedFd,
    name: String,
}

impl Tap {
    /// Makes a TAP that does not exist yet, with a single queue, without packet information and with virtio-net headers,
    /// as Cloud Hypervisor opens it for one queue pair.
    ///
    /// # Errors
    /// [`TapError`]. If it is [`TapError::Exists`], the other device was not touched.
    pub fn create(name: &str) -> Result<Self, TapError> {
        Self::open(name, open_device()?, IFF_TUN_EXCL)
    }

    /// Does the same as [`Tap::create`], in the network namespace in which `device`, /dev/net/tun, was opened.
    ///
    /// # Errors
    /// [`TapError`]. If it is [`TapError::Exists`], the other device was not touched.
    pub fn create_by(device: OwnedFd, name: &str) -> Result<Self, TapError> {
        Self::open(name, device, IFF_TUN_EXCL)
    }

    /// Attaches to an existing TAP, as a VMM does. nixbox itself never does; tests and benchmarks do.
    ///
    /// # Errors
    /// [`TapError`]. It is [`TapError::Exists`] if something is attached already.
    pub fn attach(name: &str) -> Result<Self, TapError> {
        Self::open(name, open_device()?, 0)
    }

    fn open(name: &str, file: OwnedFd, more_flags: i16) -> Result<Self, TapError> {
        let mut request = InterfaceRequest {
            name: [0; 16],
            flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | more_flags,
            rest: [0; 22],
        };
        if name.is_empty() || name.len() > 15 || name.contains('\0') {
            return Err(TapError::Name(name.to_owned()));
        }
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        // SAFETY: TUNSETIFF reads and writes one `struct ifreq` (40 bytes, `InterfaceRequest` has its layout) and keeps
        // no pointer to it.
        let done = unsafe { ioctl(&file, Setter::<TUNSETIFF, _>::new(request)) };
        match done {
            Ok(()) => Ok(Self { file, name: name.to_owned() }),
            Err(rustix::io::Errno::BUSY) => Err(TapError::Exists(name.to_owned())),
            Err(error) => {
                Err(TapError::Call { call: "TUNSETIFF", name: name.to_owned(), source: error.into() })
            }
        }
    }

    /// Lets this user attach to the TAP, and no other user without CAP_NET_ADMIN. Without an owner every user may.
    ///
    /// # Errors
    /// [`TapError::Call`].
    pub fn set_owner(&self, uid: u32) -> Result<(), TapError> {
        // SAFETY: TUNSETOWNER takes its argument by value.
        let done = unsafe { ioctl(&self.file, IntegerSetter::<TUNSETOWNER>::new_usize(uid as usize)) };
        done.map_err(|error| self.failed("TUNSETOWNER", error))
    }

    /// Lets the device outlive this descriptor.
    ///
    /// # Errors
    /// [`TapError::Call`].
    pub fn persist(&self) -> Result<(), TapError> {
        // SAFETY: TUNSETPERSIST takes its argument by value.
        let done = unsafe { ioctl(&self.file, IntegerSetter::<TUNSETPERSIST>::new_usize(1)) };
        done.map_err(|error| self.failed("TUNSETPERSIST", error))
    }

    fn failed(&self, call: &'static str, error: rustix::io::Errno) -> TapError {
        TapError::Call { call, name: self.name.clone(), source: error.into() }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Opens /dev/net/tun. A TAP that is made by it is in the network namespace that this thread has now.
///
/// # Errors
/// [`TapError::Open`].
pub fn open_device() -> Result<OwnedFd, TapError> {
    rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| TapError::Open(error.into()))
}

/// Makes a netlink connection out of a netlink socket.
#[must_use]
pub fn netlink_socket(socket: OwnedFd) -> rtnetlink::sys::TokioSocket {
    // SAFETY: the descriptor is open and owned, and the connection becomes its only owner.
    unsafe { rtnetlink::sys::TokioSocket::from_raw_fd(socket.into_raw_fd()) }
}

/// `struct mount_attr` of include/uapi/linux/mount.h.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Makes one mount read-only, and not those below it.
///
/// # Errors
/// If the kernel refuses, or is older than Linux 5.12.
pub fn make_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attributes =
        MountAttributes { set: libc::MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, user_namespace: 0 };
    // SAFETY: mount_setattr(2) reads a path, here the empty one, and as many bytes of the structure as the size says.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const FS_IOC_FIEMAP: Opcode = opcode::read_write::<ExtentsHeader>(b'f', 11);
const FIEMAP_EXTENT_LAST: u32 = 0x0001;
const FIEMAP_EXTENT_SHARED: u32 = 0x2000;
/// How many extents one call returns.
const EXTENTS: usize = 128;

/// `struct fiemap` without the extents that follow it.
#[derive(Clone, Copy)]
#[repr(C)]
struct ExtentsHeader {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
}

/// `struct fiemap_extent`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    more: [u32; 3],
}

#[repr(C)]
struct ExtentsRequest {
    header: ExtentsHeader,
    extents: [Extent; EXTENTS],
}

/// How many bytes of a file lie in blocks that it shares with another file, as after a reflink.
///
/// # Errors
/// If the file system cannot tell.
pub fn shared_bytes(file: impl AsFd) -> io::Result<u64> {
    let none = Extent { logical: 0, physical: 0, length: 0, reserved: [0; 2], flags: 0, more: [0; 3] };
    let (mut start, mut shared) = (0, 0);
    loop {
        let count = EXTENTS as u32;
        let header =
            ExtentsHeader { start, length: u64::MAX - start, flags: 0, mapped: 0, count, reserved: 0 };
        let mut request = ExtentsRequest { header, extents: [none; EXTENTS] };
        // SAFETY: FS_IOC_FIEMAP reads and writes one `struct fiemap` (`ExtentsHeader` has its layout), and writes at most
        // `count` of `struct fiemap_extent` behind it, for which `ExtentsRequest` has the room. It keeps no pointer.
        unsafe { ioctl(&file, Updater::<FS_IOC_FIEMAP, _>::new(&mut request)) }?;
        let mapped = &request.extents[..EXTENTS.min(request.header.mapped as usize)];
        let lengths = mapped.iter().filter(|extent| extent.flags & FIEMAP_EXTENT_SHARED != 0);
        shared += lengths.map(|extent| extent.length).sum::<u64>();
        match mapped.last() {
            Some(last) if last.flags & FIEMAP_EXTENT_LAST == 0 && last.logical + last.length > start => {
                start = last.logical + last.length;
            }
            _ => return Ok(shared),
        }
    }
}

/// The size in the number of the call is that of `struct kvm_cpuid2` without the entries that follow it.
#[cfg(target_arch = "x86_64")]
const KVM_GET_SUPPORTED_CPUID: Opcode = opcode::read_write::<CpuidHeader>(0xAE, 0x05);
/// The most entries that KVM has (`KVM_MAX_CPUID_ENTRIES`).
#[cfg(target_arch = "x86_64")]
const CPUID_ENTRIES: usize = 256;

#[cfg(target_arch = "x86_64")]
#[repr(C)]
struct CpuidHeader {
    count: u32,
    padding: u32,
}

/// `struct kvm_cpuid_entry2`.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct CpuidEntry {
    function: u32,
    index: u32,
    flags: u32,
    registers: [u32; 4],
    padding: [u32; 3],
}

#[cfg(target_arch = "x86_64")]
#[repr(C)]
struct CpuidRequest {
    header: CpuidHeader,
    entries: [CpuidEntry; CPUID_ENTRIES],
}

/// What CPUID can say in a guest of this host: each leaf with its subleaf and registers.
///
/// # Errors
/// If `kvm` is not `/dev/kvm`.
#[cfg(target_arch = "x86_64")]
pub fn supported_cpuid(kvm: impl AsFd) -> io::Result<Vec<(u32, u32, [u32; 4])>> {
    let header = CpuidHeader { count: CPUID_ENTRIES as u32, padding: 0 };
    let mut request = CpuidRequest { header, entries: [CpuidEntry::default(); CPUID_ENTRIES] };
    // SAFETY: KVM_GET_SUPPORTED_CPUID reads and writes one `struct kvm_cpuid2` (`CpuidHeader` has its layout), and writes at
    // most `count` of `struct kvm_cpuid_entry2` behind it, for which `CpuidRequest` has the room. It keeps no pointer.
    unsafe { ioctl(&kvm, Updater::<KVM_GET_SUPPORTED_CPUID, _>::new(&mut request)) }?;
    let found = &request.entries[..CPUID_ENTRIES.min(request.header.count as usize)];
    Ok(found.iter().map(|entry| (entry.function, entry.index, entry.registers)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_the_size_that_the_kernel_expects() {
        assert_eq!(size_of::<InterfaceRequest>(), 40);
        assert_eq!((TUNSETIFF, TUNSETPERSIST, TUNSETOWNER), (0x4004_54ca, 0x4004_54cb, 0x4004_54cc));
    }

    #[test]
    fn the_map_of_extents_has_the_layout_that_the_kernel_expects() {
        assert_eq!((size_of::<ExtentsHeader>(), size_of::<Extent>()), (32, 56));
        assert_eq!(std::mem::offset_of!(ExtentsRequest, extents), 32);
        assert_eq!(FS_IOC_FIEMAP, 0xc020_660b);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_entries_of_cpuid_have_the_layout_that_the_kernel_expects() {
        assert_eq!((size_of::<CpuidHeader>(), size_of::<CpuidEntry>()), (8, 40));
        assert_eq!(std::mem::offset_of!(CpuidRequest, entries), 8);
        assert_eq!(KVM_GET_SUPPORTED_CPUID, 0xc008_ae05);
        let other = std::fs::File::open("/dev/null").unwrap();
        assert!(supported_cpuid(&other).is_err());
    }

    #[test]
    fn names_that_the_kernel_would_cut_or_misread_are_refused() {
        for name in ["", "a\0b", "sixteen-bytes-lo"] {
            assert!(matches!(Tap::create(name), Err(TapError::Name(_))), "{name:?}");
        }
    }
}
