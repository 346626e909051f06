//! What a test needs of this machine, and how the test reports that the machine lacks it.

use std::error::Error as _;
use std::io::Write as _;

use crate::host::network::{child, inside};
use crate::host::spawn::{self, Invoker};
use crate::host::systemd::{SystemdError, scope};
use crate::host::{confinement, program, share_view};

/// Makes the binary of the unit tests the launcher of daemons, and the child for network namespaces, too, as the program nixbox
/// is: nixbox starts the program that it runs itself, and the harness of the tests would start threads before a test could be
/// such a child.
#[used]
#[allow(unsafe_code, reason = "the section is the list of functions that run before main")]
#[unsafe(link_section = ".init_array")]
static LAUNCHER: extern "C" fn() = launch;

extern "C" fn launch() {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next().unwrap_or_default();
    let arguments: Vec<_> = arguments.collect();
    let end = |error: &dyn std::error::Error, status: u8| {
        std::io::stderr().write_all(format!("{error}: {:?}\n", error.source()).as_bytes()).ok();
        std::process::exit(status.into())
    };
    if first == inside::COMMAND {
        let Err(error) = child::launch(&arguments) else { std::process::exit(0) };
        end(&error, inside::REFUSED);
    }
    if first == share_view::COMMAND {
        match share_view::launch(&arguments) {
            Ok(status) => std::process::exit(status.into()),
            Err(error) => end(&error, share_view::REFUSED),
        }
    }
    if first == confinement::COMMAND {
        end(&confinement::launch(&arguments), confinement::REFUSED);
    }
    if first == scope::COMMAND {
        let stays = |error: &SystemdError| {
            std::io::stderr().write_all(format!("{error}: {:?}\n", error.source()).as_bytes()).ok();
        };
        let Err(error) = scope::launch(&arguments, stays) else { std::process::exit(0) };
        end(&error, scope::FAILED);
    }
}

/// Something that not every machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// The test runs as root, with all capabilities of root.
    Root,
    /// A program is on PATH or in a directory of the system.
    Program(&'static str),
    /// nixbox finds Cloud Hypervisor.
    CloudHypervisor,
    /// nixbox finds virtiofsd.
    Virtiofsd,
    /// A virtiofsd that a user who is not root may run.
    VirtiofsdForUsers,
    /// `/dev/kvm`, which this user may open.
    Kvm,
    /// A kernel that has Landlock, turned on.
    Landlock,
}

/// The id of a user that no machine has, for tests that run a program as another user than root.
pub(crate) const USER: u32 = 12345;

/// A temporary directory that every user can enter, wherever the user of these tests has the others.
pub(crate) fn open_directory() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let enters = |directory: &std::path::Path| {
        let mut above = directory.ancestors();
        above.all(|path| path.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0))
    };
    let candidates = [std::env::temp_dir(), "/tmp".into(), "/var/tmp".into(), "/dev/shm".into()];
    let parent = candidates.iter().find(|path| enters(path)).expect("a directory that every user can enter");
    let directory = tempfile::tempdir_in(parent).unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

impl Need {
    /// Whether this machine has it.
    pub(crate) fn is_there(self) -> bool {
        match self {
            Self::Root => rustix::process::geteuid().is_root(),
            Self::Program(name) => {
                let mut directories = program::path_directories();
                directories.extend(program::SYSTEM_DIRECTORIES.map(Into::into));
                program::search(name, &directories).is_some()
            }
            Self::CloudHypervisor => {
                spawn::find_program("cloud-hypervisor", "NIXBOX_CLOUD_HYPERVISOR").is_ok()
            }
            Self::Virtiofsd => spawn::find_program("virtiofsd", "NIXBOX_VIRTIOFSD").is_ok(),
            Self::VirtiofsdForUsers => {
                let user = Invoker::user(USER, USER).unwrap();
                spawn::find_program_for(&user, "virtiofsd", "NIXBOX_VIRTIOFSD").is_ok()
            }
            Self::Kvm => std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok(),
            Self::Landlock => confinement::is_available(),
        }
    }
}

/// Whether this machine has all of these. If it does not, the test should return, and a line on stderr says what is
/// missing; the line bypasses the harness, which would hide it. If `NIXBOX_TESTS=all` promises that nothing is missing,
/// this panics instead.
pub(crate) fn have(needs: &[Need]) -> bool {
    let Some(missing) = needs.iter().find(|need| !need.is_there()) else {
        return true;
    };
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let missing = match missing {
        Need::Root => "root's rights",
        Need::Program(name) => name,
        Need::CloudHypervisor => "cloud-hypervisor",
        Need::Virtiofsd => "virtiofsd",
        Need::VirtiofsdForUsers => "a virtiofsd that every user may run, such as in /usr/local/bin",
        Need::Kvm => "access to /dev/kvm",
        Need::Landlock => "a kernel with Landlock",
    };
    let promised = std::env::var("NIXBOX_TESTS").is_ok_and(|text| text == "all");
    assert!(!promised, "{test} needs {missing}, and all was promised to be there");
    std::io::stderr().write_all(format!("{test}: skipped, for want of {missing}\n").as_bytes()).ok();
    false
}

/// The bytes of the code that a source file of this crate assembles to.
pub(crate) fn assembled(source: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let (object, code) = (directory.path().join("o"), directory.path().join("code"));
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let run = |command: &mut std::process::Command| assert!(command.status().unwrap().success());
    run(std::process::Command::new("as").arg("--64").arg(source).arg("-o").arg(&object));
    run(std::process::Command::new("objcopy").args(["-O", "binary", "-j", ".text"]).arg(&object).arg(&code));
    std::fs::read(code).unwrap()
}
