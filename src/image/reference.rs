//! Names of images in registries, with the rules of the OCI distribution specification and the short forms of Docker: `debian`,
//! `debian:12`, `ghcr.io/owner/name@sha256:…`.

use std::fmt;
use std::str::FromStr;

use super::digest::Sha256Digest;
use crate::world::{ImageName, InvalidValue};

const DOCKER_HUB: &str = "registry-1.docker.io";
const DOCKER_NAMES: [&str; 2] = ["docker.io", "index.docker.io"];

/// The name of an image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageReference {
    /// The host, with a port if it is given.
    pub registry: String,
    /// The path of the repository.
    pub repository: String,
    /// Which image of the repository.
    pub version: ImageVersion,
}

/// Which image of a repository is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageVersion {
    /// The image that has this tag now.
    Tag(String),
    /// The image with this digest.
    Digest(Sha256Digest),
}

impl ImageReference {
    /// Whether the registry is on this machine, where it is spoken to without TLS.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let host = self.registry.rsplit_once(':').map_or(self.registry.as_str(), |(host, _)| host);
        matches!(host, "localhost" | "127.0.0.1" | "[::1]")
    }

    /// The name that the image gets in the store if a person gives none: the last part of the repository, and the tag.
    #[must_use]
    pub fn image_name(&self) -> Option<ImageName> {
        let last = self.repository.rsplit('/').next().unwrap_or_default();
        match &self.version {
            ImageVersion::Tag(tag) if tag != "latest" => format!("{last}-{tag}").parse().ok(),
            _ => last.parse().ok(),
        }
    }
}

fn is_registry(text: &str) -> bool {
    let (host, port) = text.rsplit_once(':').unwrap_or((text, "443"));
    let named = text == "localhost" || text.contains('.') || text.contains(':');
    named
        && port.parse::<u16>().is_ok()
        && !host.is_empty()
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte))
        && host.as_bytes()[0].is_ascii_alphanumeric()
}

fn is_repository(text: &str) -> bool {
    let part = |part: &str| {
        let bytes = part.as_bytes();
        let end =
            |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        end(bytes.first())
            && end(bytes.last())
            && bytes
                .iter()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(byte))
    };
    text.len() <= 255 && text.split('/').all(part)
}

fn is_tag(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=128).contains(&bytes.len())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
        && (bytes[0].is_ascii_alphanumeric() || bytes[0] == b'_')
}

impl FromStr for ImageReference {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let refused = |why| InvalidValue::new(text, why);
        let bare = text.strip_prefix("docker://").unwrap_or(text);
        let (bare, digest) = match bare.split_once('@') {
            Some((bare, digest)) => (bare, Some(digest.parse::<Sha256Digest>()?)),
            None => (bare, None),
        };
        let (registry, path) = match bare.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first, rest),
            _ => (DOCKER_NAMES[0], bare),
        };
        let (repository, tag) = match path.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (path, None),
        };
        if !is_repository(repository) {
            return Err(refused("is neither a file or directory nor the name of an image in a registry"));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(refused("has a tag that no image can have"));
        }
        let hub = DOCKER_NAMES.contains(&registry);
        let official = hub && !repository.contains('/');
        Ok(Self {
            registry: if hub { DOCKER_HUB.to_owned() } else { registry.to_owned() },
            repository: if official { format!("library/{repository}") } else { repository.to_owned() },
            version: match digest {
                Some(digest) => ImageVersion::Digest(digest),
                None => ImageVersion::Tag(tag.unwrap_or("latest").to_owned()),
            },
        })
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.registry, self.repository)?;
        match &self.version {
            ImageVersion::Tag(tag) => write!(formatter, ":{tag}"),
            ImageVersion::Digest(digest) => write!(formatter, "@{digest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_of_docker_hub_and_others_say_where() {
        let shown = |text: &str| text.parse::<ImageReference>().unwrap().to_string();
        assert_eq!(shown("debian"), "registry-1.docker.io/library/debian:latest");
        assert_eq!(shown("docker.io/alpine:3.20"), "registry-1.docker.io/library/alpine:3.20");
        assert_eq!(shown("docker://owner/name"), "registry-1.docker.io/owner/name:latest");
        assert_eq!(shown("localhost:5000/a/b:c"), "localhost:5000/a/b:c");
        let digest = format!("sha256:{}", "0".repeat(64));
        assert_eq!(shown(&format!("ghcr.io/o/n:tag@{digest}")), format!("ghcr.io/o/n@{digest}"));
        let local = |text: &str| text.parse::<ImageReference>().unwrap().is_local();
        assert!(local("localhost:5000/a") && local("127.0.0.1:1/a") && local("localhost/a"));
        assert!(!local("localhost.example.org/a") && !local("debian"));
        let name = |text: &str| text.parse::<ImageReference>().unwrap().image_name().unwrap().to_string();
        assert_eq!((name("debian:12"), name("ghcr.io/o/n")), ("debian-12".to_owned(), "n".to_owned()));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a".repeat(256);
        for bad in [
            "",
            "-a",
            "A",
            "a:",
            "a:-b",
            "a//b",
            "a/../b",
            "a@sha256:00",
            "a@md5:0",
            "../a",
            "a b",
            "a:b/c",
            &long,
        ] {
            assert!(bad.parse::<ImageReference>().is_err(), "{bad:?}");
        }
    }
}
