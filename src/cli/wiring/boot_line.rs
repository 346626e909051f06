//! The kernel's command line of a VM.

use crate::config::VmSpec;
use crate::files::shared_paths::SharedPaths;
use crate::guest::key;
use crate::image::runtime;

/// The command line of the configuration. If it has the word `nixbox.guest`, which `init --image` writes, the initramfs is that of
/// an image of nixbox's, and the line says whom the guest lets in. A key that cannot be used is reported by what logs in with it.
pub(super) fn of(spec: &VmSpec, shared: &SharedPaths) -> String {
    let line = spec.vm.cmdline.clone();
    if !line.split_ascii_whitespace().any(|word| word == runtime::BOOT_WORD) {
        return line;
    }
    let key = key::load(spec.guest.ssh_key.as_path(), shared);
    match key.and_then(|key| key::public_text(&key)) {
        Ok(public) => {
            let words = runtime::boot_words(spec.guest.user.as_str(), spec.guest.uid, &public);
            format!("{line} {words}")
        }
        Err(_) => line,
    }
}
