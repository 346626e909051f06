//! `nixbox image import`.

use std::path::{Path, PathBuf};

use crate::cli::error::{self, Outcome, Problem};
use crate::cli::{WorkspaceLocation, command, success};
use crate::engine::transition::Interrupt;
use crate::image::import::{self, ImportRequest, Imported};
use crate::image::source::ImageSource;
use crate::image::store::StoredImage;
use crate::world::{ByteSize, ImageName};

/// Make an image out of a container image or a root file system, for any number of workspaces
///
/// SOURCE is an image in a registry (debian:12, ghcr.io/owner/name:tag), an OCI layout or an archive of one, an archive that `docker
/// save` made, or a root file system as a directory or a tar archive (.gz, .zst, .xz). The image gets the kernel that it has in
/// /boot, or the newest of this machine, and an initramfs that nixbox makes out of the modules of that kernel. It needs no init, no
/// SSH server and no user: nixbox brings what it lacks. The command needs no root.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: nixbox image import debian:12 --name work --size 32GiB && nixbox init --image work"
)]
pub(super) struct Arguments {
    /// What the image is made from
    source: String,
    #[command(flatten)]
    image: ImageOptions,
}

/// What an image is made like, whatever it is made from.
#[derive(Debug, clap::Args)]
pub(super) struct ImageOptions {
    /// The name of the image; without it that of the source
    #[arg(long)]
    name: Option<ImageName>,
    /// The size of the disk, which is sparse
    #[arg(long, value_name = "SIZE", default_value = "16GiB")]
    size: ByteSize,
    /// The kernel to boot, a bzImage or a vmlinux whose modules are in /lib/modules
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
    /// Print the image as JSON, and nothing else but errors
    #[arg(long)]
    json: bool,
}

impl ImageOptions {
    /// Makes the image out of this source, and says so.
    pub(super) fn make(&self, location: &WorkspaceLocation, source: ImageSource) -> Outcome {
        let Self { name, size, kernel, json } = self;
        let request = ImportRequest {
            source,
            name: name.clone(),
            size: Some(*size),
            kernel: kernel.as_ref().map(|kernel| location.directory.join(kernel)),
        };
        let (image, made) = match import(&request, *json)? {
            Imported::Made(image) => (image, true),
            Imported::Known(image) => (image, false),
        };
        if *json {
            error::print_json(&image.description)?;
            return success();
        }
        let name = &image.description.name;
        let done = if made { "made the image" } else { "the same image is there already as" };
        error::print(&format!(
            "{done} {name}: `nixbox init --image {name}` makes a workspace that boots it"
        ))?;
        success()
    }
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    arguments.image.make(location, ImageSource::parse(&arguments.source, &location.directory)?)
}

fn import(request: &ImportRequest, quiet: bool) -> Result<Imported, Problem> {
    let store = super::store()?;
    let tell = |words: &str| {
        if !quiet {
            error::print_stderr(&format!("nixbox: {words}\n"));
        }
    };
    // An interrupt ends nixbox at once. What it leaves is not listed, and the next import removes it.
    let interrupt = Interrupt::new();
    command::block_on(async { Ok(import::import(&store, request, &tell, &interrupt).await?) })
}

/// The image that a person calls by a name, or that is made from a source.
pub(in crate::cli) fn find_or_import(text: &str, directory: &Path) -> Result<StoredImage, Problem> {
    if let Some(image) = super::store()?.find(text)? {
        return Ok(image);
    }
    let source = ImageSource::parse(text, directory)?;
    if let ImageSource::Registry(reference) = &source {
        // It is not downloaded again; `nixbox image import` asks the registry whether the tag is of another image now.
        let source = reference.to_string();
        let made =
            super::store()?.list()?.into_iter().flatten().find(|image| image.description.source == source);
        if let Some(image) = made {
            return Ok(image);
        }
    }
    let request = ImportRequest { source, name: None, size: None, kernel: None };
    match import(&request, false)? {
        Imported::Made(image) | Imported::Known(image) => Ok(image),
    }
}
