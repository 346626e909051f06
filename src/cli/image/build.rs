//! `nixbox image build`.

use super::import::ImageOptions;
use crate::cli::WorkspaceLocation;
use crate::cli::error::Outcome;
use crate::image::debian::{DebianMirror, DebianPackage, DebianSuite, DebianSystem};
use crate::image::source::ImageSource;

/// Make an image out of Debian packages, for any number of workspaces
///
/// The image has systemd, sudo, certificates and the packages that are named, with what they depend on. The program mmdebstrap
/// fetches and installs them. It needs no root where the host lets ordinary users have user namespaces. The image gets the kernel
/// that it has in /boot (name linux-image-cloud-amd64), or the newest of this machine.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: nixbox image build --debian --include docker.io,openjdk-21-jdk-headless --name jvm && \
                        nixbox init --image jvm"
)]
pub(super) struct Arguments {
    /// The release of Debian
    #[arg(
        long,
        value_name = "SUITE",
        required = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "stable"
    )]
    debian: DebianSuite,
    /// Packages to install, separated by commas
    #[arg(long, value_name = "PACKAGES", value_delimiter = ',')]
    include: Vec<DebianPackage>,
    /// The mirror of Debian; without it that of mmdebstrap
    #[arg(long, value_name = "URL")]
    mirror: Option<DebianMirror>,
    #[command(flatten)]
    image: ImageOptions,
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let Arguments { debian, include, mirror, image } = arguments;
    let (suite, packages, mirror) = (debian.clone(), include.clone(), mirror.clone());
    image.make(location, ImageSource::Debian(DebianSystem { suite, packages, mirror }))
}
