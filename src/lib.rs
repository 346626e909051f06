//! nixbox
pub mod engine;
pub mod host;
pub mod vmm;
pub mod world;
