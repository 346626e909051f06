//! The system in the VM, over SSH.
//!
//! [`channel`] makes a connection, with the keys of [`key`] and [`host_key`], and [`ready`] repeats the attempt until the
//! guest answers. [`shell`] runs scripts over the connection, and [`stale_scripts`] ends scripts that a killed nixbox left
//! running. [`sources`] reads secret values on the host, and [`credentials`] makes files of them. On top of scripts,
//! [`inject`] writes these files where `survey` has seen that it may, [`wipe`] removes them, [`backup`] copies what a wipe takes from the guest and gives it
//! back, and [`wiped_values`] makes known what a snapshot is to be searched for because of it. `audit` finds what a wipe
//! leaves: programs of the guest that hold a value (`processes`), and files (`credential_files`), from what a script tells
//! in `script_items`. `swap` switches off the guest's swap, [`mounts`] mounts the shares, [`settle`] gives a restored guest
//! entropy and the time, and [`wall_clock`] gives the time to a guest whose host was suspended. [`scripts`] runs the scripts
//! of a person and [`person_command`] a command, and [`terminal`] finds a type of terminal that the guest knows. [`examine`] finds out beforehand whether all
//! of that can work. [`ssh_guest`] implements [`crate::world::Guest`] with these modules.
//!
//! Messages quote the guest by `last_words`.
//!
//! This module uses `world`, and nothing else of nixbox.

mod audit;
pub mod backup;
pub mod channel;
mod clock_gap;
pub(crate) mod clock_helper;
mod credential_files;
pub mod credentials;
pub mod examine;
pub mod host_key;
pub mod inject;
pub mod key;
pub(crate) mod last_words;
pub mod mounts;
pub mod person_command;
mod processes;
pub mod ready;
mod remainders;
mod script_items;
pub mod scripts;
pub mod settle;
pub mod shell;
pub mod sources;
pub mod ssh_guest;
pub mod stale_scripts;
mod survey;
mod swap;
pub mod terminal;
pub mod wall_clock;
pub mod wipe;
pub mod wiped_values;

#[cfg(test)]
pub(crate) mod testing;
