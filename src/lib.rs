//! nixbox
pub mod engine;
pub mod host;
pub mod world;
