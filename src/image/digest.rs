//! The digests by which the OCI formats name content, and readers that compute them on the way.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Read};
use std::rc::Rc;
use std::str::FromStr;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::world::InvalidValue;

/// A digest `sha256:…`. The specification allows others, which no registry uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Sha256Digest([u8; 32]);

impl Sha256Digest {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest of what a hasher was given.
    pub(super) fn from_hasher(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }

    /// The digest in hexadecimal digits.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl FromStr for Sha256Digest {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let mut bytes = [0; 32];
        let digits = text
            .strip_prefix("sha256:")
            .filter(|digits| !digits.bytes().any(|byte| byte.is_ascii_uppercase()));
        match digits.map(|digits| hex::decode_to_slice(digits, &mut bytes)) {
            Some(Ok(())) => Ok(Self(bytes)),
            _ => Err(InvalidValue::new(text, "is not a digest: sha256: and 64 hexadecimal digits")),
        }
    }
}

impl TryFrom<String> for Sha256Digest {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        text.parse()
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sha256:{}", self.hex())
    }
}

/// What was read through a [`DigestReader`].
#[derive(Debug, Clone, Default)]
pub struct ReadDigest(Rc<RefCell<(Sha256, u64)>>);

impl ReadDigest {
    /// The digest of all that was read, and its size.
    #[must_use]
    pub fn get(&self) -> (Sha256Digest, u64) {
        let (hasher, size) = &*self.0.borrow();
        (Sha256Digest(hasher.clone().finalize().into()), *size)
    }
}

/// Computes the digest of what is read through it.
pub struct DigestReader<R> {
    inner: R,
    digest: ReadDigest,
}

impl<R: Read> DigestReader<R> {
    /// Reads from `inner`. The digest can be had when the reader is gone.
    pub fn new(inner: R) -> (Self, ReadDigest) {
        let digest = ReadDigest::default();
        (Self { inner, digest: digest.clone() }, digest)
    }
}

impl<R: Read> Read for DigestReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let (hasher, size) = &mut *self.digest.0.borrow_mut();
        hasher.update(&buffer[..read]);
        *size += read as u64;
        Ok(read)
    }
}
