//! nixbox
pub mod config;
pub mod engine;
pub mod host;
pub mod store;
pub mod workspace;
pub mod world;
