//! `nixbox init`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::consent::{self, Consent, TrustOption};
use super::error::{self, ExitKind, Outcome, Problem};
use super::image::import::find_or_import;
use super::{WorkspaceLocation, success, wiring};
use crate::config::{self, Config, HostAction, HostFacts};
use crate::files::Folder;
use crate::files::copy::{NoProgress, Progress};
use crate::guest::key::{self, KeyError};
use crate::host::share_view::standing::{self, LiveShare};
use crate::image::store::StoredImage;
use crate::simulator;
use crate::workspace::places::StatePlaces;
use crate::workspace::registry::{CopiedWorkspace, Registry, RegistryError};
use crate::workspace::{self, Workspace, WorkspaceError};

mod image_config;

/// Make this directory a workspace: a commented configuration and a key for its VM
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: cd my-project && nixbox init --image debian:12 && nixbox up")]
pub(super) struct Arguments {
    /// Make a workspace whose VM is simulated, to try nixbox on a machine without KVM
    #[arg(long)]
    simulator: bool,
    /// Boot this image: the name of one that `nixbox image list` shows, or what `nixbox image import` makes one from
    #[arg(long, value_name = "NAME|SOURCE", conflicts_with_all = ["simulator", "kernel", "initramfs"])]
    image: Option<String>,
    /// The kernel to boot, as the configuration is to name it: relative to the workspace's directory, or absolute
    #[arg(long, value_name = "PATH", conflicts_with = "simulator")]
    kernel: Option<String>,
    /// The initramfs to boot with, named in the same way
    #[arg(long, value_name = "PATH", conflicts_with = "simulator")]
    initramfs: Option<String>,
    /// Make a copy of a workspace a workspace of its own, with the configuration and the key of the original. The
    /// snapshots and disks stay with the original
    #[arg(long, conflicts_with_all = ["simulator", "image", "kernel", "initramfs"])]
    new_id: bool,
    #[command(flatten)]
    trust: TrustOption,
}

impl Arguments {
    /// Whether a person has said nothing about what the VM boots.
    fn names_nothing(&self) -> bool {
        !self.simulator && self.image.is_none() && self.kernel.is_none() && self.initramfs.is_none()
    }

    /// The text of the configuration for a workspace that has none.
    fn config(&self, image: Option<&StoredImage>) -> String {
        if self.simulator {
            return SIMULATED.to_owned();
        }
        if let Some(image) = image {
            return image_config::text(image);
        }
        let mut text = workspace::CONFIG.to_owned();
        for (given, line, key) in [
            (&self.kernel, "kernel = \"image/vmlinuz\"", "kernel"),
            (&self.initramfs, "# initramfs = \"image/initramfs.gz\"", "initramfs"),
        ] {
            if let Some(path) = given {
                // A JSON string is also a TOML string.
                text = text.replacen(line, &format!("{key} = {}", serde_json::Value::from(path.as_str())), 1);
            }
        }
        text
    }
}

#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error("{} is there already, and is not overwritten: name the kernel, the initramfs and the disk in it", .0.display())]
    Configured(PathBuf),
    #[error(
        "{} cannot become a workspace now: a running guest has {} as a share (process {pid}), and would reach its .nixbox; \
         bring that VM down first, and up again afterwards",
        directory.display(), share.display()
    )]
    Shared { directory: PathBuf, share: PathBuf, pid: u32 },
    #[error("{} is no copy of another workspace: it keeps its id", .0.display())]
    NoCopy(PathBuf),
    #[error("the workspace is there, but has no key of its own")]
    NoKey(#[source] KeyError),
    #[error("the workspace is there, but has no {}", .0.display())]
    NoImage(PathBuf, #[source] io::Error),
}

/// The configuration of a small simulated VM.
const SIMULATED: &str = r#"# No VM runs here: the simulator stands in for Cloud Hypervisor, and what "the guest" runs is run by
# this machine, as you, in a directory. It is no sandbox.
vmm = "simulator"

[vm]
vcpus = 1
memory = "64MiB"
kernel = "image/kernel"
cmdline = "init_on_free=1"          # freed memory is zeroed, so that no snapshot has what was in it

[[disks]]
image = "image/root.img"

[env]                               # kept out of every snapshot
TOKEN = "a-secret-of-the-demonstration"
"#;

const IMAGES: &str = "image";
const DISK: u64 = 32 << 20;

pub(super) fn run(place: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    if arguments.new_id {
        return give_new_id(place);
    }
    let config = place.directory.join(workspace::DIRECTORY).join(config::FILE);
    let named = arguments.kernel.is_some() || arguments.initramfs.is_some() || arguments.image.is_some();
    if named && config.exists() {
        return Err(Problem::new(ExitKind::Usage, InitError::Configured(config)));
    }
    refuse_below_share(&place.directory)?;
    let places = WorkspaceLocation::places()?;
    let existing = confirm_existing(&place.directory, &places, arguments.trust)?;
    let image = arguments.image.as_ref().map(|text| find_or_import(text, &place.directory)).transpose()?;
    let text = arguments.config(image.as_ref());
    let (workspace, mut made) = workspace::init_with(&place.directory, &places, &text)?;
    register(&workspace)?;
    let mut consent = Consent::load(&workspace)?;
    match existing {
        _ if made.contains(&workspace.nixbox()?.path_of(config::FILE)) => consent.written_here()?,
        ExistingConfig::Settled => {}
        ExistingConfig::Confirmed(actions) => consent.confirm(&actions)?,
        ExistingConfig::Known(config) => consent.obtain(&config, arguments.trust, tell)?.write_down()?,
    }
    let path = wiring::own_key(&workspace);
    // Nothing that has this name is overwritten, not even a broken link.
    if std::fs::symlink_metadata(&path).is_err() {
        key::generate()
            .and_then(|fresh| key::write(&fresh, &path))
            .map_err(|error| Problem::new(ExitKind::Failed, InitError::NoKey(error)))?;
        made.push(path);
    }
    if arguments.simulator {
        made.extend(make_images(&workspace)?);
    }
    let fresh = made.contains(&workspace.nixbox()?.path_of(config::FILE));
    if made.is_empty() {
        let root = workspace.root().display();
        error::print(&format!("{root} is a workspace already; nothing was changed"))?;
    }
    for path in made {
        error::print(&format!("made {}", path.display()))?;
    }
    if fresh && arguments.names_nothing() {
        say_which_images()?;
    }
    success()
}

/// Says which images there are, to a person who has named none.
fn say_which_images() -> Result<(), Problem> {
    let images = super::image::store()?.list()?.into_iter().flatten();
    let names: Vec<String> = images.map(|image| image.description.name.to_string()).collect();
    if names.is_empty() {
        tell(
            "no kernel is named yet: `nixbox image import SOURCE` makes an image, and `nixbox init --image NAME` boots it",
        );
    } else {
        tell(&format!(
            "no kernel is named yet; `nixbox init --image NAME` boots one of these images: {}",
            names.join(", ")
        ));
    }
    Ok(())
}

fn register(workspace: &Workspace) -> Result<(), Problem> {
    WorkspaceLocation::registered(workspace, false, tell)
}

fn tell(words: &str) {
    error::print_stderr(&format!("nixbox: {words}\n"));
}

/// What is to be written down about a configuration when the workspace is whole.
enum ExistingConfig {
    /// Nothing is to be written down: the workspace has no configuration, the configuration was confirmed before, or it
    /// cannot be read, which `up` reports.
    Settled,
    /// It came from elsewhere, and a person has confirmed these actions.
    Confirmed(Vec<HostAction>),
    /// It is that of a workspace which the registry knows and which lacks some of its files.
    Known(Box<Config>),
}

/// Makes sure that a person confirms what a configuration that is there already does on the host.
fn confirm_existing(
    directory: &Path,
    places: &StatePlaces,
    trust: TrustOption,
) -> Result<ExistingConfig, Problem> {
    if std::fs::symlink_metadata(directory.join(workspace::DIRECTORY).join(config::FILE)).is_err() {
        return Ok(ExistingConfig::Settled);
    }
    let Ok(root) = std::fs::canonicalize(directory) else { return Ok(ExistingConfig::Settled) };
    let whole = Workspace::find(&root, places).ok().filter(|workspace| workspace.root() == root);
    let nixbox = Folder::open(&root.join(workspace::DIRECTORY)).map_err(WorkspaceError::File)?;
    nixbox.check_private().map_err(WorkspaceError::File)?;
    // A workspace that is not made yet has no place for its keys.
    let keys = nixbox.path_of("ssh");
    let config = match Config::load(&nixbox, &root, &keys, &HostFacts::of_this_machine()) {
        Ok(config) => config,
        Err(error) if trust.trust => return Err(error.into()),
        Err(_) => return Ok(ExistingConfig::Settled),
    };
    if let Some(workspace) = whole {
        register(&workspace)?;
        Consent::load(&workspace)?.obtain(&config, trust, tell)?.write_down()?;
        return Ok(ExistingConfig::Settled);
    }
    if workspace::known_id(&root, &nixbox, places)?.is_some() {
        return Ok(ExistingConfig::Known(Box::new(config)));
    }
    let actions = consent::actions(&root, &keys, &config);
    if !actions.is_empty() {
        consent::agree(&nixbox.path_of(config::FILE), &actions, trust, tell)?;
    }
    Ok(ExistingConfig::Confirmed(actions))
}

/// Refuses to make a workspace that a running guest could write in. A workspace that is there was masked when the share
/// was started.
fn refuse_below_share(directory: &Path) -> Result<(), Problem> {
    if std::fs::symlink_metadata(directory.join(workspace::DIRECTORY)).is_ok() {
        return Ok(());
    }
    // A missing directory is reported by what makes the workspace.
    let Ok(directory) = std::fs::canonicalize(directory) else { return Ok(()) };
    let failed = |error| Problem::new(ExitKind::Failed, error);
    match standing::share_above(&directory).map_err(failed)? {
        None => Ok(()),
        Some(LiveShare { pid, source }) => {
            Err(Problem::new(ExitKind::Failed, InitError::Shared { directory, share: source, pid }))
        }
    }
}

fn no_progress() -> Arc<dyn Progress> {
    Arc::new(NoProgress)
}

/// Gives a copy an id of its own. A workspace that is no copy keeps its id, because its VM and its journal bear it.
fn give_new_id(place: &WorkspaceLocation) -> Outcome {
    let (workspace, _lock) = place.lock("init --new-id", &no_progress())?;
    let registry = Registry::open(workspace.places())?;
    let original = match registry.examine(&workspace) {
        Err(RegistryError::Copy(CopiedWorkspace { original, .. })) => original,
        Err(error) => return Err(error.into()),
        Ok(_) => return Err(Problem::new(ExitKind::Usage, InitError::NoCopy(workspace.root().to_owned()))),
    };
    let id = workspace::give_new_id(&workspace)?;
    // It is opened again, because it has another id now.
    let workspace = place.workspace()?;
    registry.follow(&workspace)?;
    // Where the original cannot be read, the copy is confirmed anew.
    if let Ok(original) = Workspace::find(&original, workspace.places()) {
        Consent::load(&original)?.hand_on(&workspace)?;
    }
    error::print(&format!("{} is a workspace of its own now, with the id {id}", workspace.root().display()))?;
    success()
}

/// Makes the kernel and disk files of the simulated VM that do not exist yet.
fn make_images(workspace: &Workspace) -> Result<Vec<PathBuf>, Problem> {
    let directory = workspace.root().join(IMAGES);
    let (kernel, disk) = (directory.join("kernel"), directory.join("root.img"));
    let failed = |path: &PathBuf| {
        let path = path.clone();
        move |error| Problem::new(ExitKind::Failed, InitError::NoImage(path, error))
    };
    std::fs::create_dir_all(&directory).map_err(failed(&directory))?;
    let mut made = Vec::new();
    if !kernel.exists() {
        std::fs::write(&kernel, "the simulator runs no kernel\n").map_err(failed(&kernel))?;
        made.push(kernel);
    }
    if !disk.exists() {
        let mut public = wiring::own_key(workspace).into_os_string();
        public.push(".pub");
        let key = std::fs::read_to_string(&public).map_err(failed(&public.into()))?;
        simulator::make_disk(&disk, DISK, "user", &key).map_err(failed(&disk))?;
        made.push(disk);
    }
    Ok(made)
}
