//! Images: what VMs boot from, made of container images and root file systems, and kept once per user.
//!
//! ```text
//! store.rs         the images of a user on disk: list, add, remove
//! import.rs        a source → an image in the store
//! source.rs        what a person means by a source
//! reference.rs     names of images in registries
//! registry.rs      downloads from a registry (OCI distribution specification)
//! digest.rs        the digests of the OCI formats
//! oci.rs           manifests and configurations; which layers an image has
//! blobs.rs         where manifests and layers are read from: a directory, an archive
//! archive.rs       bytes → entries of a tar archive
//! compression.rs   gzip, zstd, xz; formats of disks by their first bytes
//! layer.rs         an archive → changes of a tree
//! directory.rs     a directory of the host → changes of a tree
//! debian.rs        Debian packages → an archive
//! tree.rs          the root file system in memory
//! contents.rs      the contents of its files, by number
//! file_system.rs   a tree → an ext4
//! kernel.rs        the kernel that an image boots, and its modules
//! modules.rs       which modules an initramfs needs
//! runtime.rs       what nixbox brings into a guest
//! sudo.rs          the machine code of a small sudo
//! initramfs.rs     the bytes of an initramfs
//! ```
//!
//! An image is hostile: it comes from a registry. Nothing of it is unpacked by its name on the host, every digest is compared,
//! and what it unpacks to is limited by the size of its disk and by the free space. May use `host`, `files` and `world`.

pub mod archive;
pub mod blobs;
pub mod compression;
pub mod contents;
pub mod debian;
pub mod digest;
pub mod directory;
pub mod file_system;
pub mod import;
pub mod initramfs;
pub mod kernel;
pub mod layer;
pub mod modules;
pub mod oci;
pub mod reference;
pub mod registry;
pub mod runtime;
pub mod source;
pub mod store;
pub mod sudo;
pub mod tree;
