//! The system in the VM, spoken to over SSH.
//!
//! What lives here: one connection ([`channel`], [`ready`]), the host key that it must show ([`host_key`]), the key that it is made with
//! ([`key`]), scripts for any POSIX shell ([`shell`]) and the end of those that a
//! killed nixbox left running ([`stale_scripts`]), and what nixbox does to a guest: [`credentials`] are made on the host and put
//! there by [`inject`], taken away by [`wipe`]; [`mounts`] are the shares; [`settle`] gives entropy and time. [`ssh_guest`] puts them together as [`crate::world::Guest`].
//!
//! It uses `world` and the words of `engine::transition`, and nothing else of nixbox.

pub mod channel;
mod clock_helper;
pub mod credentials;
pub mod host_key;
pub mod inject;
pub mod key;
pub mod mounts;
pub mod ready;
pub mod settle;
pub mod shell;
pub mod ssh_guest;
pub mod stale_scripts;
pub mod wipe;

#[cfg(test)]
mod testing;
