//! What nixbox keeps on disk. May use: the engine's storage seam, the seams of `world`.

pub mod files;
