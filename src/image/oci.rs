//! Reads the manifests of container images: OCI layouts, and the archives of `docker save`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::blobs::{BlobError, BlobSource};
use super::compression;
use super::contents::ContentStore;
use super::digest::{DigestReader, Sha256Digest};
use super::layer::{self, LayerError};
use super::tree::ImageTree;

/// The architecture of the guests, in the words of the OCI specifications.
const ARCHITECTURE: &str = "amd64";
const SYSTEM: &str = "linux";
/// The most layers of an image. Docker makes at most 127.
const MOST_LAYERS: usize = 1024;
/// How deep an index may refer to others.
const MOST_INDEXES: usize = 4;

/// Why a container image cannot be used.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error("{what} of the container image is not what its specification says")]
    Document {
        what: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("the container image is for {found}, and nixbox runs guests for {SYSTEM}/{ARCHITECTURE}")]
    Architecture { found: String },
    #[error(
        "there are {count} images for {SYSTEM}/{ARCHITECTURE}, and nixbox takes one at a time: save the one that you want \
         by itself"
    )]
    Several { count: usize },
    #[error("there is no image in it")]
    None,
    #[error("the manifest refers to {0:?}, which is neither an image nor an index of images")]
    MediaType(String),
    #[error(
        "{what} has the digest {found} and {found_size} bytes, and its manifest says {expected}: it is damaged or forged"
    )]
    Digest { what: String, expected: String, found: Sha256Digest, found_size: u64 },
    #[error("the image has {layers} layers, and its configuration lists {listed}")]
    LayerCount { layers: usize, listed: usize },
    #[error("layer {number} of {count} cannot be applied")]
    Layer {
        number: usize,
        count: usize,
        #[source]
        source: Box<LayerError>,
    },
    #[error("layer {number} of {count} cannot be read")]
    Read {
        number: usize,
        count: usize,
        #[source]
        source: std::io::Error,
    },
}

type Result<T, E = ContainerError> = std::result::Result<T, E>;

/// A reference by digest (OCI content descriptor).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What kind of document or layer it is.
    #[serde(default)]
    pub media_type: String,
    /// The digest of its bytes.
    pub digest: Sha256Digest,
    /// The number of its bytes.
    pub size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// An index, or a manifest: the same document may be either.
#[derive(Debug, Deserialize)]
pub struct ManifestDocument {
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// What a document says.
#[derive(Debug)]
pub enum ContainerManifest {
    /// It refers to this document.
    Refers(Descriptor),
    /// It is the manifest of an image.
    Image(ImageManifest),
}

/// The manifest of an image.
#[derive(Debug, Clone)]
pub struct ImageManifest {
    /// The configuration.
    pub config: Descriptor,
    /// The layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

impl ContainerManifest {
    /// Reads a document, and chooses from an index the image for this architecture.
    ///
    /// # Errors
    /// [`ContainerError`].
    pub fn parse(bytes: &[u8], what: &str) -> Result<Self> {
        let document: ManifestDocument = parse(bytes, what)?;
        if let Some(manifests) = document.manifests {
            return choose(manifests).map(Self::Refers);
        }
        let config = document.config.ok_or(ContainerError::None)?;
        if document.layers.len() > MOST_LAYERS {
            return Err(ContainerError::MediaType(format!("{} layers", document.layers.len())));
        }
        let is_no_archive =
            |layer: &&Descriptor| !layer.media_type.is_empty() && !layer.media_type.contains(".tar");
        if let Some(other) = document.layers.iter().find(is_no_archive) {
            return Err(ContainerError::MediaType(other.media_type.clone()));
        }
        if let Some(encrypted) = document.layers.iter().find(|layer| layer.media_type.ends_with("+encrypted"))
        {
            return Err(ContainerError::MediaType(encrypted.media_type.clone()));
        }
        Ok(Self::Image(ImageManifest { config, layers: document.layers }))
    }
}

fn choose(manifests: Vec<Descriptor>) -> Result<Descriptor> {
    // Signatures and attestations are manifests too.
    let image = |one: &Descriptor| {
        !one.annotations.contains_key("vnd.docker.reference.type")
            && one.platform.as_ref().is_none_or(|platform| platform.os != "unknown")
    };
    let images: Vec<Descriptor> = manifests.into_iter().filter(image).collect();
    let fits = |one: &Descriptor| {
        let Some(platform) = &one.platform else { return true };
        platform.architecture == ARCHITECTURE && platform.os == SYSTEM
    };
    let mut fitting: Vec<Descriptor> = images.iter().filter(|one| fits(one)).cloned().collect();
    fitting.dedup_by_key(|one| one.digest);
    match (fitting.len(), fitting.pop()) {
        (1, Some(one)) => Ok(one),
        (0, _) if images.is_empty() => Err(ContainerError::None),
        (0, _) => {
            let named = images.iter().filter_map(|one| one.platform.as_ref());
            let found: Vec<String> =
                named.map(|platform| format!("{}/{}", platform.os, platform.architecture)).collect();
            Err(ContainerError::Architecture { found: found.join(", ") })
        }
        (count, _) => Err(ContainerError::Several { count }),
    }
}

/// The configuration of an image, as far as a VM has use for it.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ImageConfig {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<ProcessConfig>,
    #[serde(default)]
    rootfs: LayerList,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ProcessConfig {
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    user: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct LayerList {
    #[serde(default)]
    diff_ids: Vec<Sha256Digest>,
}

impl ImageConfig {
    /// The environment of the image's processes.
    #[must_use]
    pub fn environment(&self) -> Vec<String> {
        self.config.as_ref().and_then(|config| config.env.clone()).unwrap_or_default()
    }

    /// The user of the image's processes.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.config.as_ref()?.user.as_deref().filter(|user| !user.is_empty())
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let config: Self = parse(bytes, "the configuration")?;
        if config.architecture != ARCHITECTURE || config.os != SYSTEM {
            let found = format!("{}/{}", config.os, config.architecture);
            return Err(ContainerError::Architecture { found });
        }
        Ok(config)
    }
}

/// A layer of an image, and what it must be.
#[derive(Debug, Clone)]
struct LayerBlob {
    path: String,
    /// The digest and the size of the file, if the manifest names them.
    file: Option<(Sha256Digest, u64)>,
    /// The digest of the archive in it.
    archive: Option<Sha256Digest>,
}

/// A container image that can be unpacked.
#[derive(Debug)]
pub struct ContainerImage {
    /// Its configuration.
    pub config: ImageConfig,
    layers: Vec<LayerBlob>,
}

/// `manifest.json` of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    layers: Vec<String>,
}

/// Whether these are the parts of a container image, and not a root file system.
#[must_use]
pub fn is_container(blobs: &BlobSource) -> bool {
    blobs.has("index.json") || blobs.has("manifest.json")
}

/// The path of a blob in an OCI layout.
#[must_use]
pub fn blob_path(digest: &Sha256Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

impl ContainerImage {
    /// Reads the manifests of a layout or an archive.
    ///
    /// # Errors
    /// [`ContainerError`].
    pub fn read(blobs: &BlobSource) -> Result<Self> {
        // Docker's newer archives are both; the layout has the digests of the files.
        if blobs.has("index.json") { Self::read_layout(blobs) } else { Self::read_saved(blobs) }
    }

    fn read_layout(blobs: &BlobSource) -> Result<Self> {
        let mut document = blobs.document("index.json")?;
        let mut what = "index.json".to_owned();
        for _ in 0..MOST_INDEXES {
            match ContainerManifest::parse(&document, &what)? {
                ContainerManifest::Refers(descriptor) => {
                    what = descriptor.digest.to_string();
                    document = verified(blobs, &descriptor)?;
                }
                ContainerManifest::Image(manifest) => {
                    let config = verified(blobs, &manifest.config)?;
                    return Self::new(&config, &manifest);
                }
            }
        }
        Err(ContainerError::MediaType("an index of indexes".to_owned()))
    }

    /// The image with this configuration and manifest, whose layers are where a layout has them.
    ///
    /// # Errors
    /// [`ContainerError`].
    pub fn new(config: &[u8], manifest: &ImageManifest) -> Result<Self> {
        let layer = |layer: &Descriptor| LayerBlob {
            path: blob_path(&layer.digest),
            file: Some((layer.digest, layer.size)),
            archive: None,
        };
        Self::with_layers(config, manifest.layers.iter().map(layer).collect())
    }

    fn read_saved(blobs: &BlobSource) -> Result<Self> {
        let mut saved: Vec<SavedImage> = parse(&blobs.document("manifest.json")?, "manifest.json")?;
        let count = saved.len();
        let image = saved.pop().ok_or(ContainerError::None)?;
        if count > 1 {
            return Err(ContainerError::Several { count });
        }
        let layer = |path: &String| LayerBlob { path: path.clone(), file: None, archive: None };
        Self::with_layers(&blobs.document(&image.config)?, image.layers.iter().map(layer).collect())
    }

    fn with_layers(config: &[u8], mut layers: Vec<LayerBlob>) -> Result<Self> {
        let config = ImageConfig::parse(config)?;
        let listed = &config.rootfs.diff_ids;
        if listed.len() != layers.len() {
            return Err(ContainerError::LayerCount { layers: layers.len(), listed: listed.len() });
        }
        layers.iter_mut().zip(listed).for_each(|(layer, digest)| layer.archive = Some(*digest));
        Ok(Self { config, layers })
    }

    /// Applies all layers.
    ///
    /// # Errors
    /// [`ContainerError`]. The tree may have a part of the layers then.
    pub fn unpack(
        &self,
        blobs: &BlobSource,
        tree: &mut ImageTree,
        contents: &mut ContentStore,
    ) -> Result<()> {
        let count = self.layers.len();
        for (index, blob) in self.layers.iter().enumerate() {
            let number = index + 1;
            let failed = |source| ContainerError::Read { number, count, source };
            let (mut file, file_digest) = DigestReader::new(blobs.open(&blob.path)?);
            let (applied, archive_digest) = {
                let plain = compression::decompressed(&mut file).map_err(failed)?;
                let (archive, digest) = DigestReader::new(plain);
                (layer::apply(archive, tree, contents), digest)
            };
            // A damaged file shows as one error or another of the archive, so its digest is looked at first. What follows the
            // archive in the file belongs to it.
            std::io::copy(&mut file, &mut std::io::sink()).map_err(failed)?;
            let what = || format!("layer {number} of {count}");
            let (found, found_size) = file_digest.get();
            if let Some((digest, size)) = blob.file
                && (found, found_size) != (digest, size)
            {
                let expected = format!("{digest} and {size} bytes");
                return Err(ContainerError::Digest { what: what(), expected, found, found_size });
            }
            applied.map_err(|source| ContainerError::Layer { number, count, source: Box::new(source) })?;
            let (found, found_size) = archive_digest.get();
            if let Some(expected) = blob.archive.filter(|expected| *expected != found) {
                let what = format!("the archive in {}", what());
                return Err(ContainerError::Digest {
                    what,
                    expected: expected.to_string(),
                    found,
                    found_size,
                });
            }
        }
        Ok(())
    }
}

/// Reads a document, and compares its digest.
fn verified(blobs: &BlobSource, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let bytes = blobs.document(&blob_path(&descriptor.digest))?;
    check_document(&bytes, descriptor)?;
    Ok(bytes)
}

/// Compares the digest and the size of a document with its descriptor.
///
/// # Errors
/// [`ContainerError::Digest`].
pub fn check_document(bytes: &[u8], descriptor: &Descriptor) -> Result<()> {
    let (found, found_size) = (Sha256Digest::of(bytes), bytes.len() as u64);
    if (found, found_size) == (descriptor.digest, descriptor.size) {
        return Ok(());
    }
    let expected = format!("{} and {} bytes", descriptor.digest, descriptor.size);
    Err(ContainerError::Digest { what: "a document".to_owned(), expected, found, found_size })
}

fn parse<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|source| ContainerError::Document { what: what.to_owned(), source })
}

#[cfg(test)]
mod tests;
