//! nixbox
pub mod engine;
pub mod world;
