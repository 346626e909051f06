//! nixbox
pub mod cli;
pub mod config;
pub mod engine;
#[doc(hidden)]
pub mod fakes;
pub mod guest;
pub mod host;
pub mod operations;
pub mod store;
pub mod vmm;
pub mod workspace;
pub mod world;
