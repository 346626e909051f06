//! What a process of nixbox's own program becomes that works on a network namespace: the child of one call ([`inside`]), the
//! keeper, or the follower ([`follow`]).

use std::ffi::OsString;
use std::io;
use std::path::Path;

use super::follow::{self, FollowerError};
use super::inside::{self, InsideError};
use crate::host::sudo;

/// Why the process cannot do what it was started for.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    #[error(transparent)]
    Inside(#[from] InsideError),
    #[error(transparent)]
    Follower(#[from] FollowerError),
    #[error("cannot use the capabilities for namespaces")]
    Capabilities(#[source] io::Error),
}

/// Does what the words say: `follow PATH` becomes the follower of a namespace, as its stdin says, and [`inside::launch`]
/// knows the others.
///
/// # Errors
/// [`ChildError`]. What was begun is left to the next call, which finishes it or removes it.
pub fn launch(arguments: &[OsString]) -> Result<(), ChildError> {
    sudo::take_effect(true).map_err(ChildError::Capabilities)?;
    match arguments {
        [verb, path] if verb == "follow" => Ok(follow::follow(Path::new(path))?),
        _ => Ok(inside::launch(arguments)?),
    }
}
