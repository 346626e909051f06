//! The system in the VM, over SSH.
//!
//! [`channel`] makes a connection, with the keys of [`key`] and [`host_key`], and [`ready`] repeats the attempt until
//! the guest answers. [`shell`] runs scripts over the connection, and [`stale_scripts`] ends scripts that a killed
//! nixbox left running. [`sources`] reads secret values on the host, and [`credentials`] makes files of them. On top of
//! scripts, [`inject`] writes these files, [`wipe`] removes them, [`mounts`] mounts the shares, and [`settle`] gives a restored guest entropy and the time.
//! [`examine`] finds out beforehand whether all of that can work. [`ssh_guest`] implements [`crate::world::Guest`] with these modules.
//!
//! This module uses `world`, and nothing else of nixbox.

pub mod channel;
mod clock_helper;
pub mod credentials;
pub mod examine;
pub mod host_key;
pub mod inject;
pub mod key;
pub mod mounts;
pub mod ready;
pub mod settle;
pub mod shell;
pub mod sources;
pub mod ssh_guest;
pub mod stale_scripts;
pub mod wipe;

#[cfg(test)]
mod testing;
