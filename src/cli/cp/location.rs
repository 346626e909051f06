//! What the arguments of `nixbox cp` name.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// What stands before a path in the guest.
const GUEST: &[u8] = b"vm:";

/// Why the arguments do not say what to copy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LocationError {
    #[error("{0:?} names no path in the guest: `vm:.` is its user's home")]
    NoGuestPath(String),
    #[error("the path is empty")]
    NoHostPath,
    #[error("neither side is in the guest: write a path there as `vm:PATH`")]
    NeitherInGuest,
    #[error("both sides are in the guest: `nixbox run -- cp` copies within it")]
    BothInGuest,
    #[error("the sources are on both sides: copy them one side after the other")]
    MixedSources,
    #[error("`-` stands for stdin or stdout, and can be the only source alone")]
    StreamAmongSources,
    #[error("to write to stdout, name one file of the guest")]
    SeveralToStream,
}

/// A path in the guest: absolute, or below the home of its user and then with `./` before it, so that no program takes it for
/// an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemotePath {
    path: Vec<u8>,
}

impl RemotePath {
    fn parse(text: &[u8]) -> Result<Self, LocationError> {
        let below = match text {
            b"" => {
                return Err(LocationError::NoGuestPath(String::from_utf8_lossy(GUEST).into_owned()));
            }
            b"~" => b"",
            text => text.strip_prefix(b"~/").unwrap_or(text),
        };
        let path =
            if below.starts_with(b"/") && below == text { below.to_vec() } else { [b"./", below].concat() };
        Ok(Self { path })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.path
    }

    /// The path as a person writes it.
    pub(super) fn shown(&self) -> String {
        let path = self.path.strip_prefix(b"./").filter(|path| !path.is_empty()).unwrap_or(&self.path);
        format!("vm:{}", String::from_utf8_lossy(path))
    }

    /// Whether the path can mean a directory alone.
    pub(super) fn needs_directory(&self) -> bool {
        self.path.ends_with(b"/") || self.split().1.is_none()
    }

    /// The directory in which the entry is, and its name; for a path that ends in `.` or `..`, the directory itself.
    pub(super) fn split(&self) -> (Vec<u8>, Option<OsString>) {
        let end = self.path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        let path = &self.path[..end];
        let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        match &path[start..] {
            b"" | b"." | b".." => (self.path.clone(), None),
            name => (path[..start].to_vec(), Some(OsString::from_vec(name.to_vec()))),
        }
    }

    /// The path of an entry, if this is a directory.
    pub(super) fn join(&self, name: &OsStr) -> Self {
        let slash: &[u8] = if self.path.ends_with(b"/") { b"" } else { b"/" };
        Self { path: [&self.path, slash, name.as_bytes()].concat() }
    }
}

/// A path on this host, absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LocalPath {
    pub(super) path: PathBuf,
    /// Whether the path can mean a directory alone.
    pub(super) needs_directory: bool,
    /// The last name; `None` if the path ends in `.` or `..`, or is `/`.
    pub(super) name: Option<OsString>,
}

impl LocalPath {
    fn parse(text: &OsStr, current: &Path) -> Result<Self, LocationError> {
        if text.is_empty() {
            return Err(LocationError::NoHostPath);
        }
        let bytes = text.as_bytes();
        let end = bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        let last = bytes[..end].rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let name = (!matches!(last, b"" | b"." | b"..")).then(|| OsString::from_vec(last.to_vec()));
        Ok(Self { path: current.join(text), needs_directory: name.is_none() || bytes.ends_with(b"/"), name })
    }
}

/// What is copied where.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CopyRoute {
    /// stdin into a file of the guest.
    StdinToGuest(RemotePath),
    /// Files of the host to the guest.
    ToGuest(Vec<LocalPath>, RemotePath),
    /// A file of the guest to stdout.
    GuestToStdout(RemotePath),
    /// Files of the guest to the host.
    ToHost(Vec<RemotePath>, LocalPath),
}

enum Place {
    Stream,
    Guest(RemotePath),
    Host(LocalPath),
}

impl CopyRoute {
    /// Parses the arguments: sources, and a target. Relative paths of the host are below `current`.
    pub(super) fn parse(sources: &[OsString], target: &OsStr, current: &Path) -> Result<Self, LocationError> {
        let place = |text: &OsStr| {
            Ok(match text.as_bytes() {
                b"-" => Place::Stream,
                bytes => match bytes.strip_prefix(GUEST) {
                    Some(path) => Place::Guest(RemotePath::parse(path)?),
                    None => Place::Host(LocalPath::parse(text, current)?),
                },
            })
        };
        let (mut guest, mut host, mut streams) = (Vec::new(), Vec::new(), 0);
        for source in sources {
            match place(source)? {
                Place::Stream => streams += 1,
                Place::Guest(path) => guest.push(path),
                Place::Host(path) => host.push(path),
            }
        }
        if !guest.is_empty() && (streams > 0 || !host.is_empty()) {
            return Err(LocationError::MixedSources);
        }
        match place(target)? {
            Place::Guest(_) if !guest.is_empty() => Err(LocationError::BothInGuest),
            Place::Guest(target) if streams == 1 && host.is_empty() => Ok(Self::StdinToGuest(target)),
            Place::Guest(_) if streams > 0 => Err(LocationError::StreamAmongSources),
            Place::Guest(target) => Ok(Self::ToGuest(host, target)),
            Place::Stream | Place::Host(_) if guest.is_empty() => Err(LocationError::NeitherInGuest),
            Place::Stream => match <[RemotePath; 1]>::try_from(guest) {
                Ok([source]) => Ok(Self::GuestToStdout(source)),
                Err(_) => Err(LocationError::SeveralToStream),
            },
            Place::Host(target) => Ok(Self::ToHost(guest, target)),
        }
    }
}

#[cfg(test)]
mod tests;
