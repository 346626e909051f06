//! Snapshots on disk, `snapshots/<id>/` of a workspace's state, and the files of the journal.
//!
//! ```text
//! snapshots/.staging-12/   is being made, and is known to the operation that makes it only
//! snapshots/12/            is listed, with manifest.json and exactly the files that the manifest names,
//!                          and label.json if it was renamed or has a note
//! snapshots/.trash-12/     is deleted, and about to be removed
//! snapshots/.seen-12.json  says how the files looked when all of their bytes were last read
//! ```
//!
//! A snapshot gets from one state to the next by a rename, so that a crash leaves it in one of the states. [`layout`]
//! has the names, [`manifest`] the bytes of `manifest.json`, [`label`] those of `label.json`, [`scan`] reads all files of a snapshot, [`leaks`] searches them for credentials, and [`catalog`] is
//! the list with its renames. Every file is reached through a [`Folder`](crate::files::Folder): no link is followed.
//!
//! The built records of VMs ([`built`]) are beside the images of the VMs, in `run`. [`withheld`] says which VM's guest is given
//! no credentials.
//!
//! May use: the engine's storage seam, `world`, `config` and `files`.

pub mod built;
pub mod catalog;
mod error;
mod file_systems;
pub mod journal_files;
mod label;
mod layout;
pub mod leaks;
pub mod manifest;
pub mod occupied;
mod scan;
mod verified;
pub mod withheld;

pub use catalog::Snapshots;
pub use error::StoreError;
pub use layout::{open, record_of, staging_name};
pub use leaks::{CaptureRequest, LeakSearch};
