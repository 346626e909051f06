//! A filter that keeps a share daemon from making files that give privileges to those who use them.
//!
//! What the guest does on a share, the daemon does on the host, in the directory of the invoking user. A setuid program of
//! that user, or a device node if that user is root, would be of use to another user of the host whatever the daemon's
//! mounts say. So in the daemon and its children these calls fail:
//!
//! | call | fails with |
//! |---|---|
//! | `chmod` and its kin, if the mode has the setuid or setgid bit | EPERM |
//! | `open`, `creat` and `mknod` that make a file with one of these bits | EPERM |
//! | `mknod` of a character or block device | EPERM |
//! | `renameat2` that leaves a whiteout, which is a character device | EINVAL, as on a file system without them |
//! | `setxattr` and its kin: file capabilities are an attribute, and shares have no attributes | EOPNOTSUPP |
//! | `openat2` and `io_uring_setup`, whose modes a filter cannot read | ENOSYS; virtiofsd uses `openat` then |
//! | any call of another architecture | EPERM |
//!
//! A filter cannot tell whether the target of a `chmod` is a directory. So the guest cannot set the setgid bit of a
//! directory either, which is the smaller loss: a setgid program would have the group of the invoking user. A directory
//! that is made in a setgid directory inherits the bit from the kernel, as ever. `mkdir` needs no rule, because the kernel
//! ignores these bits in its mode.
//!
//! Source: Linux `Documentation/userspace-api/seccomp_filter.rst` and `include/uapi/linux/seccomp.h`.
#![allow(unsafe_code)]

use std::io;

use libc::{EINVAL, ENOSYS, EOPNOTSUPP, EPERM, c_int, c_long, sock_filter, sock_fprog};

/// The bits of a mode that no file of a guest may have.
const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;
/// The flags of `open` that make a file.
const CREATES: u32 = (libc::O_CREAT | (libc::O_TMPFILE & !libc::O_DIRECTORY)).cast_unsigned();
/// `fchmodat2` and `setxattrat` have the same number on every architecture.
const FCHMODAT2: c_long = 452;
const SETXATTRAT: c_long = 463;

/// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_AARCH64` of include/uapi/linux/audit.h.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// The bit that marks the numbers of the x32 calls of x86-64. No call of another architecture has it.
const X32: u32 = 0x4000_0000;

/// Which calls of a number fail. Arguments are numbered from 0.
enum Rule {
    /// All.
    Any(c_int),
    /// Those whose argument has one of the bits.
    Bits { argument: u32, bits: u32, errno: c_int },
    /// Those that make a file with one of the bits.
    Opens { flags: u32, mode: u32 },
    /// Those that make a device, or a file with one of the bits.
    Makes { mode: u32 },
}

const fn mode_in(argument: u32) -> Rule {
    Rule::Bits { argument, bits: SET_ID, errno: EPERM }
}

/// The rules of every architecture.
const RULES: [(c_long, Rule); 12] = [
    (libc::SYS_fchmod, mode_in(1)),
    (libc::SYS_fchmodat, mode_in(2)),
    (FCHMODAT2, mode_in(2)),
    (libc::SYS_openat, Rule::Opens { flags: 2, mode: 3 }),
    (libc::SYS_openat2, Rule::Any(ENOSYS)),
    (libc::SYS_mknodat, Rule::Makes { mode: 2 }),
    (libc::SYS_renameat2, Rule::Bits { argument: 4, bits: libc::RENAME_WHITEOUT, errno: EINVAL }),
    (libc::SYS_setxattr, Rule::Any(EOPNOTSUPP)),
    (libc::SYS_lsetxattr, Rule::Any(EOPNOTSUPP)),
    (libc::SYS_fsetxattr, Rule::Any(EOPNOTSUPP)),
    (SETXATTRAT, Rule::Any(EOPNOTSUPP)),
    (libc::SYS_io_uring_setup, Rule::Any(ENOSYS)),
];

/// The calls that newer architectures do without.
#[cfg(target_arch = "x86_64")]
const OLDER_RULES: [(c_long, Rule); 4] = [
    (libc::SYS_chmod, mode_in(1)),
    (libc::SYS_open, Rule::Opens { flags: 1, mode: 2 }),
    (libc::SYS_creat, mode_in(1)),
    (libc::SYS_mknod, Rule::Makes { mode: 1 }),
];
#[cfg(target_arch = "aarch64")]
const OLDER_RULES: [(c_long, Rule); 0] = [];

/// An instruction; `yes` and `no` are how many instructions a jump passes over.
fn instruction(code: u32, value: u32, yes: u8, no: u8) -> sock_filter {
    // The codes of classic BPF have 16 bits.
    sock_filter { code: code as u16, jt: yes, jf: no, k: value }
}

/// Loads 32 bits of `struct seccomp_data`.
fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0)
}

/// Loads the lower half of an argument. All that is compared has 32 bits at most, and both architectures are
/// little-endian.
fn argument(number: u32) -> sock_filter {
    load(16 + 8 * number)
}

fn jump(kind: u32, value: u32, yes: u8, no: u8) -> sock_filter {
    instruction(libc::BPF_JMP | kind | libc::BPF_K, value, yes, no)
}

fn end(action: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, action, 0, 0)
}

fn fail(errno: c_int) -> sock_filter {
    end(libc::SECCOMP_RET_ERRNO | errno.cast_unsigned())
}

fn allow() -> sock_filter {
    end(libc::SECCOMP_RET_ALLOW)
}

impl Rule {
    /// The instructions for a call of the rule's number. Each way through them ends.
    fn instructions(&self) -> Vec<sock_filter> {
        let (any_bit, equal) = (libc::BPF_JSET, libc::BPF_JEQ);
        match *self {
            Self::Any(errno) => vec![fail(errno)],
            Self::Bits { argument: number, bits, errno } => {
                vec![argument(number), jump(any_bit, bits, 0, 1), fail(errno), allow()]
            }
            Self::Opens { flags, mode } => vec![
                argument(flags),
                jump(any_bit, CREATES, 0, 3),
                argument(mode),
                jump(any_bit, SET_ID, 0, 1),
                fail(EPERM),
                allow(),
            ],
            Self::Makes { mode } => vec![
                argument(mode),
                jump(any_bit, SET_ID, 4, 0),
                instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, libc::S_IFMT, 0, 0),
                jump(equal, libc::S_IFCHR, 2, 0),
                jump(equal, libc::S_IFBLK, 1, 0),
                allow(),
                fail(EPERM),
            ],
        }
    }
}

fn program() -> Vec<sock_filter> {
    let mut program = vec![
        load(4),
        jump(libc::BPF_JEQ, ARCHITECTURE, 1, 0),
        fail(EPERM),
        load(0),
        jump(libc::BPF_JGE, X32, 0, 1),
        fail(EPERM),
    ];
    for (number, rule) in RULES.iter().chain(&OLDER_RULES) {
        let block = rule.instructions();
        // The numbers of calls and the lengths of blocks are small.
        program.push(jump(libc::BPF_JEQ, *number as u32, 0, block.len() as u8));
        program.extend(block);
    }
    program.push(allow());
    program
}

/// Installs the filter for this process and what it becomes. The process must have given up new privileges.
pub(super) fn install() -> io::Result<()> {
    let mut filter = program();
    let program = sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel copies the program during the call. The length is that of the vector, which lives until then.
    let done =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
