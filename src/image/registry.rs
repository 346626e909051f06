//! Downloads images from registries (OCI distribution specification), without a login. A registry that asks for a token is given
//! the one that its own token service hands out to everyone.
//!
//! Everything is compared with the digest by which it was asked for. A registry on this machine is spoken to over HTTP, and every
//! other over HTTPS with the certificates of this machine. The crate `oci-client` would bring some hundred more crates.

use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderMap, LOCATION, USER_AGENT, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::digest::Sha256Digest;
use super::oci::{self, ContainerError, ContainerImage, ContainerManifest, Descriptor};
use super::reference::{ImageReference, ImageVersion};
use crate::files::{FileError, Folder};
use crate::world::{ByteSize, Interrupt};

/// How long a registry may take to begin an answer, and between two pieces of it.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a layer is asked for, if the connection breaks.
const ATTEMPTS: usize = 3;
const MOST_REDIRECTS: usize = 5;
const MOST_INDEXES: usize = 4;
/// More than a manifest, a configuration or a token takes.
const LARGEST_DOCUMENT: usize = 8 << 20;
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Why an image cannot be had from its registry.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum ImageRegistryError {
    #[error("interrupted")]
    Interrupted,
    #[error("the certificates of this machine cannot be used")]
    Certificates(#[source] std::io::Error),
    #[error("cannot speak to {host}")]
    Connect {
        host: String,
        #[source]
        source: hyper_util::client::legacy::Error,
    },
    #[error("the connection to {host} broke after {received} bytes")]
    Broken {
        host: String,
        received: u64,
        #[source]
        source: hyper::Error,
    },
    #[error("{host} did not answer for {PATIENCE:?}")]
    Silent { host: String },
    #[error("{registry} has no image {image}")]
    NoImage { registry: String, image: String },
    #[error(
        "{registry} does not give {image} to everyone, or there is no such image; nixbox has no login there: import the archive that \
         `docker save` makes"
    )]
    Login { registry: String, image: String },
    #[error("{host} answered with the status {status}{text}")]
    Status { host: String, status: StatusCode, text: String },
    #[error("{host} answered with something that is not of the protocol: {why}")]
    Protocol { host: String, why: &'static str },
    #[error("{host} sent more than {limit} bytes, which it had announced or which is the most")]
    Long { host: String, limit: u64 },
    #[error(
        "the layers have {size}, which is more than the disk of {limit} holds: give it a larger one with --size"
    )]
    TooLarge { size: ByteSize, limit: ByteSize },
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} has only {free} left, and the layers have {size}", path.display())]
    NoSpace { path: std::path::PathBuf, free: ByteSize, size: ByteSize },
}

type Result<T, E = ImageRegistryError> = std::result::Result<T, E>;

/// Downloads an image into a directory, with the paths of an OCI layout. The layers have `limit` bytes at most.
///
/// # Errors
/// [`ImageRegistryError`].
pub async fn pull(
    reference: &ImageReference,
    target: &Folder,
    limit: u64,
    tell: &dyn Fn(&str),
    interrupt: &Interrupt,
) -> Result<ContainerImage> {
    let mut session = RegistrySession::new(reference)?;
    tokio::select! {
        biased;
        () = interrupt.wait() => Err(ImageRegistryError::Interrupted),
        pulled = session.pull(target, limit, tell) => pulled,
    }
}

type HttpClient = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

struct RegistrySession<'a> {
    client: HttpClient,
    reference: &'a ImageReference,
    token: Option<String>,
}

/// The answer of a token service.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

/// How a registry asks for a token.
#[derive(Debug, PartialEq, Eq)]
struct TokenChallenge {
    realm: String,
    service: Option<String>,
    scope: Option<String>,
}

impl<'a> RegistrySession<'a> {
    fn new(reference: &'a ImageReference) -> Result<Self> {
        let provider = rustls::crypto::ring::default_provider();
        let builder = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(provider)
            .map_err(ImageRegistryError::Certificates)?;
        let builder = if reference.is_local() { builder.https_or_http() } else { builder.https_only() };
        let client = Client::builder(TokioExecutor::new()).build(builder.enable_http1().build());
        Ok(Self { client, reference, token: None })
    }

    async fn pull(&mut self, target: &Folder, limit: u64, tell: &dyn Fn(&str)) -> Result<ContainerImage> {
        let asked = match &self.reference.version {
            ImageVersion::Tag(tag) => tag.clone(),
            ImageVersion::Digest(digest) => digest.to_string(),
        };
        let mut document = self.document(&format!("manifests/{asked}")).await?;
        if let ImageVersion::Digest(digest) = self.reference.version {
            let found = Sha256Digest::of(&document);
            if found != digest {
                let found_size = document.len() as u64;
                let (what, expected) = ("the manifest".to_owned(), digest.to_string());
                return Err(ContainerError::Digest { what, expected, found, found_size }.into());
            }
        }
        for _ in 0..MOST_INDEXES {
            match ContainerManifest::parse(&document, "the manifest")? {
                ContainerManifest::Refers(descriptor) => {
                    document = self.document(&format!("manifests/{}", descriptor.digest)).await?;
                    oci::check_document(&document, &descriptor)?;
                }
                ContainerManifest::Image(manifest) => {
                    let config = self.document(&format!("blobs/{}", manifest.config.digest)).await?;
                    oci::check_document(&config, &manifest.config)?;
                    // An image of another architecture is refused before its layers are downloaded.
                    let image = ContainerImage::new(&config, &manifest)?;
                    self.layers(&manifest.layers, target, limit, tell).await?;
                    return Ok(image);
                }
            }
        }
        Err(self.protocol("an index of indexes"))
    }

    async fn layers(
        &mut self,
        layers: &[Descriptor],
        target: &Folder,
        limit: u64,
        tell: &dyn Fn(&str),
    ) -> Result<()> {
        let size = layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.size));
        if size > limit {
            let (size, limit) = (ByteSize::from_bytes(size), ByteSize::from_bytes(limit));
            return Err(ImageRegistryError::TooLarge { size, limit });
        }
        let free = target.free_bytes()?;
        if size > free {
            let (size, free) = (ByteSize::from_bytes(size), ByteSize::from_bytes(free));
            return Err(ImageRegistryError::NoSpace { path: target.path().to_owned(), free, size });
        }
        let (blobs, _) = target.make_folder("blobs")?;
        let (blobs, _) = blobs.make_folder("sha256")?;
        for (index, layer) in layers.iter().enumerate() {
            tell(&format!("layer {} of {}: {} bytes", index + 1, layers.len(), layer.size));
            if blobs.examine(layer.digest.hex())?.is_some() {
                // A layer may occur twice.
                continue;
            }
            self.layer(layer, &blobs).await?;
        }
        Ok(())
    }

    async fn layer(&mut self, layer: &Descriptor, blobs: &Folder) -> Result<()> {
        let mut attempt = 1;
        loop {
            match self.download(layer, blobs).await {
                Err(ImageRegistryError::Broken { .. } | ImageRegistryError::Silent { .. })
                    if attempt < ATTEMPTS =>
                {
                    attempt += 1
                }
                ended => return ended,
            }
        }
    }

    async fn download(&mut self, layer: &Descriptor, blobs: &Folder) -> Result<()> {
        let (host, mut response) = self.get(&format!("blobs/{}", layer.digest)).await?;
        let name = layer.digest.hex();
        blobs.remove_file(&name)?;
        let mut file = blobs.new_file(&name)?;
        let (mut hasher, mut received) = (Sha256::new(), 0_u64);
        while let Some(piece) = next_piece(&mut response, &host, received).await? {
            received += piece.len() as u64;
            if received > layer.size {
                return Err(ImageRegistryError::Long { host, limit: layer.size });
            }
            hasher.update(&piece);
            file.write_all(&piece).map_err(FileError::system("write", blobs.path_of(&name)))?;
        }
        let found = Sha256Digest::from_hasher(hasher);
        if (found, received) != (layer.digest, layer.size) {
            let expected = format!("{} and {} bytes", layer.digest, layer.size);
            let what = "a layer".to_owned();
            return Err(ContainerError::Digest { what, expected, found, found_size: received }.into());
        }
        Ok(())
    }

    async fn document(&mut self, path: &str) -> Result<Vec<u8>> {
        let (host, response) = self.get(path).await?;
        read_document(response, &host).await
    }

    fn protocol(&self, why: &'static str) -> ImageRegistryError {
        ImageRegistryError::Protocol { host: self.reference.registry.clone(), why }
    }

    /// Asks for something of the repository, with a token if the registry wants one. Returns the host that answered in the end.
    async fn get(&mut self, path: &str) -> Result<(String, Response<Incoming>)> {
        let scheme = if self.reference.is_local() { "http" } else { "https" };
        let ImageReference { registry, repository, .. } = self.reference;
        let url = format!("{scheme}://{registry}/v2/{repository}/{path}");
        let (host, response) = self.follow(&url).await?;
        if response.status() == StatusCode::UNAUTHORIZED && self.token.is_none() {
            let Some(challenge) = challenge_of(response.headers()) else { return Err(self.login()) };
            self.token = Some(self.ask_for_token(&challenge).await?);
            let (host, response) = self.follow(&url).await?;
            return self.accepted(host, response).await;
        }
        self.accepted(host, response).await
    }

    fn login(&self) -> ImageRegistryError {
        ImageRegistryError::Login {
            registry: self.reference.registry.clone(),
            image: self.reference.to_string(),
        }
    }

    async fn accepted(
        &self,
        host: String,
        response: Response<Incoming>,
    ) -> Result<(String, Response<Incoming>)> {
        match response.status() {
            StatusCode::OK => Ok((host, response)),
            StatusCode::NOT_FOUND => Err(ImageRegistryError::NoImage {
                registry: self.reference.registry.clone(),
                image: self.reference.to_string(),
            }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.login()),
            status => {
                let body = read_document(response, &host).await.unwrap_or_default();
                let text: String = String::from_utf8_lossy(&body).trim().chars().take(300).collect();
                let text = if text.is_empty() { text } else { format!(": {text}") };
                Err(ImageRegistryError::Status { host, status, text })
            }
        }
    }

    /// Asks, and follows where the answer refers to. Another host does not get the token.
    async fn follow(&self, url: &str) -> Result<(String, Response<Incoming>)> {
        let mut uri: Uri =
            url.parse().map_err(|_| self.protocol("it leads to an address that is not a URL"))?;
        for _ in 0..MOST_REDIRECTS {
            let host = uri.authority().map(ToString::to_string).unwrap_or_default();
            let own = host == self.reference.registry;
            let mut request = Request::builder()
                .method(Method::GET)
                .uri(&uri)
                .header(ACCEPT, format!("{MANIFESTS}, */*"))
                .header(USER_AGENT, concat!("nixbox/", env!("CARGO_PKG_VERSION")));
            if let Some(token) = self.token.as_ref().filter(|_| own) {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            let request =
                request.body(Empty::new()).map_err(|_| self.protocol("its token is not a header"))?;
            let response = tokio::time::timeout(PATIENCE, self.client.request(request)).await;
            let response = response
                .map_err(|_| ImageRegistryError::Silent { host: host.clone() })?
                .map_err(|source| ImageRegistryError::Connect { host: host.clone(), source })?;
            if !response.status().is_redirection() {
                return Ok((host, response));
            }
            uri = self.redirected(&uri, response.headers())?;
        }
        Err(self.protocol("it refers from one address to another without an end"))
    }

    fn redirected(&self, from: &Uri, headers: &HeaderMap) -> Result<Uri> {
        let location = headers.get(LOCATION).and_then(|location| location.to_str().ok());
        let location =
            location.ok_or_else(|| self.protocol("it refers to another address and does not say which"))?;
        let whole = if location.starts_with('/') {
            let authority = from.authority().map(ToString::to_string).unwrap_or_default();
            format!("{}://{authority}{location}", from.scheme_str().unwrap_or("https"))
        } else {
            location.to_owned()
        };
        whole.parse().map_err(|_| self.protocol("it leads to an address that is not a URL"))
    }

    async fn ask_for_token(&self, challenge: &TokenChallenge) -> Result<String> {
        let mut url = challenge.realm.clone();
        let scope = challenge
            .scope
            .clone()
            .unwrap_or_else(|| format!("repository:{}:pull", self.reference.repository));
        url += if url.contains('?') { "&" } else { "?" };
        url += &format!("scope={}", encoded(&scope));
        if let Some(service) = &challenge.service {
            url += &format!("&service={}", encoded(service));
        }
        let (host, response) = self.follow(&url).await?;
        if response.status() != StatusCode::OK {
            return Err(self.login());
        }
        let body = read_document(response, &host).await?;
        let answer: TokenAnswer =
            serde_json::from_slice(&body).map_err(|_| self.protocol("its token service gives no token"))?;
        answer.token.or(answer.access_token).ok_or_else(|| self.protocol("its token service gives no token"))
    }
}

async fn next_piece(response: &mut Response<Incoming>, host: &str, received: u64) -> Result<Option<Bytes>> {
    loop {
        let frame = tokio::time::timeout(PATIENCE, response.body_mut().frame()).await;
        let frame = frame.map_err(|_| ImageRegistryError::Silent { host: host.to_owned() })?;
        match frame {
            None => return Ok(None),
            Some(Err(source)) => {
                return Err(ImageRegistryError::Broken { host: host.to_owned(), received, source });
            }
            // Trailers are passed over.
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

async fn read_document(mut response: Response<Incoming>, host: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(piece) = next_piece(&mut response, host, bytes.len() as u64).await? {
        bytes.extend_from_slice(&piece);
        if bytes.len() > LARGEST_DOCUMENT {
            return Err(ImageRegistryError::Long { host: host.to_owned(), limit: LARGEST_DOCUMENT as u64 });
        }
    }
    Ok(bytes)
}

/// What a registry asks for: `Bearer realm="…",service="…",scope="…"`.
fn challenge_of(headers: &HeaderMap) -> Option<TokenChallenge> {
    let text = headers.get(WWW_AUTHENTICATE)?.to_str().ok()?;
    let (scheme, mut rest) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut challenge = TokenChallenge { realm: String::new(), service: None, scope: None };
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        match key.trim().trim_start_matches(',').trim() {
            "realm" => challenge.realm = value.to_owned(),
            "service" => challenge.service = Some(value.to_owned()),
            "scope" => challenge.scope = Some(value.to_owned()),
            _ => {}
        }
        rest = after;
    }
    (!challenge.realm.is_empty()).then_some(challenge)
}

/// The text as a value in the query of a URL.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'/' => {
            (byte as char).to_string()
        }
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_parsed_with_and_without_quotes() {
        let challenge = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(WWW_AUTHENTICATE, text.parse().unwrap());
            challenge_of(&headers)
        };
        let docker = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/debian:pull,push""#;
        let expected = TokenChallenge {
            realm: "https://auth.docker.io/token".to_owned(),
            service: Some("registry.docker.io".to_owned()),
            scope: Some("repository:library/debian:pull,push".to_owned()),
        };
        assert_eq!(challenge(docker), Some(expected));
        let bare = challenge("bearer realm=http://localhost/t, service=s").unwrap();
        assert_eq!((bare.realm.as_str(), bare.service.as_deref()), ("http://localhost/t", Some("s")));
        for bad in ["Basic realm=\"x\"", "Bearer", "Bearer service=\"s\"", "Bearer realm=\"open"] {
            assert_eq!(challenge(bad), None, "{bad:?}");
        }
        assert_eq!(encoded("a b&c:d/e"), "a%20b%26c:d/e");
    }
}
