//! The staged state machine and its crash-recovery journal.
//!
//! Pure: generic over the world that it changes, and without I/O but through [`journal::Storage`]. It knows nothing of
//! VMs. Read [`transition`] for what it runs, [`planner`] for how it decides, [`executor`] for the only loop.

pub mod executor;
pub mod history;
pub mod journal;
pub mod planner;
pub mod reader;
pub mod record;
pub mod transition;
