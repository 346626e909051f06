//! Applies a layer, or the archive of a whole root file system, to a tree.

use std::io::Read;

use super::archive::{ArchiveError, EntryKind, TarReader};
use super::contents::{ContentError, ContentStore};
use super::tree::{ImageTree, TreeError};

/// Why a layer cannot be applied.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("{path:?} cannot be unpacked")]
    Content { path: String, source: ContentError },
}

/// Applies an uncompressed archive as the next layer, and reads it to its end. Returns whether the archive has the mark that ends
/// one.
///
/// # Errors
/// [`LayerError`]. The tree may have a part of the layer then.
pub fn apply(
    source: impl Read,
    tree: &mut ImageTree,
    contents: &mut ContentStore,
) -> Result<bool, LayerError> {
    tree.begin_layer();
    let mut archive = TarReader::new(source);
    while let Some(entry) = archive.next_entry()? {
        let content = match entry.kind {
            EntryKind::File => {
                let taken = contents.take(&mut archive.content(), entry.size);
                Some(taken.map_err(|source| LayerError::Content { path: entry.shown(), source })?)
            }
            _ => None,
        };
        tree.apply(&entry, content)?;
    }
    Ok(archive.drain()?)
}

#[cfg(test)]
mod tests;
