//! A container image that has neither an init nor an SSH server nor a user becomes a VM.

use std::fs;
use std::path::{Path, PathBuf};

use crate::outside::{self, shell};
use crate::workspace::{WORK, Workspace};

/// Makes an OCI layout with two layers: busybox and its names, and a layer that removes a file and adds a setuid program.
const LAYOUT: &str = r#"
set -eu
rm -rf layout lower upper
mkdir -p layout/blobs/sha256 lower/bin lower/etc lower/usr/lib upper/etc upper/bin
cp /bin/busybox lower/bin/
for name in sh cat id ls mkdir mount umount sleep stat env grep readlink sha256sum tar rm mv chmod chown dirname tr; do
    ln -s busybox "lower/bin/$name"
done
echo 'root:x:0:0:root:/root:/bin/sh' > lower/etc/passwd
echo 'root:x:0:' > lower/etc/group
echo lower > lower/etc/gone
echo kept > lower/etc/kept
cp /bin/busybox upper/bin/setuid
chmod 4755 upper/bin/setuid
: > upper/etc/.wh.gone
digest() { sha256sum "$1" | cut -d' ' -f1; }
descriptor() { printf '{"mediaType":"%s","digest":"sha256:%s","size":%s}' "$2" "$(digest "$1")" "$(stat -c %s "$1")"; }
keep() { cp "$1" "layout/blobs/sha256/$(digest "$1")"; }
for layer in lower upper; do
    tar --owner=0 --group=0 -C "$layer" -cf "$layer.tar" .
    gzip -1 -c "$layer.tar" > "$layer.tar.gz"
    keep "$layer.tar.gz"
done
printf '{"architecture":"amd64","os":"linux","config":{"Env":["GREETING=hello world"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s","sha256:%s"]}}' \
    "$(digest lower.tar)" "$(digest upper.tar)" > config
keep config
layer=application/vnd.oci.image.layer.v1.tar+gzip
printf '{"schemaVersion":2,"config":%s,"layers":[%s,%s]}' "$(descriptor config application/vnd.oci.image.config.v1+json)" \
    "$(descriptor lower.tar.gz $layer)" "$(descriptor upper.tar.gz $layer)" > manifest
keep manifest
printf '{"schemaVersion":2,"manifests":[%s]}' "$(descriptor manifest application/vnd.oci.image.manifest.v1+json)" > layout/index.json
echo '{"imageLayoutVersion":"1.0.0"}' > layout/oci-layout
"#;

/// Makes the layout in a directory of this name.
pub(super) fn layout(name: &str) -> PathBuf {
    let place = Path::new(WORK).join(name);
    fs::create_dir_all(&place).unwrap();
    shell(&format!("cd {}\n{LAYOUT}", place.display()));
    place.join("layout")
}

pub(super) fn an_image_without_init_and_sshd_boots_and_is_restored() {
    let layout = layout("image-source");
    let workspace = Workspace::bare("image");
    let made = workspace.ok(&[
        "image",
        "import",
        layout.to_str().unwrap(),
        "--name",
        "small",
        "--size",
        "512MiB",
        "--json",
    ]);
    assert_eq!(made.json()["name"], "small");
    workspace.ok(&["init", "--image", "small"]);
    let path = workspace.path.join(".nixbox/config.toml");
    let text = fs::read_to_string(&path).unwrap();
    // The emulated host is small, and slow where the kernel guards against the processor.
    let text = text.replace("# memory = \"4GiB\"", "memory = \"256MiB\"").replace("# vcpus = 2", "vcpus = 1");
    let text = text
        .replace("# [guest]", "[guest]")
        .replace("# ready-timeout = \"110s\"", "ready-timeout = \"10min\"");
    fs::write(path, text.replace("nixbox.guest", "nokaslr mitigations=off nixbox.guest")).unwrap();

    workspace.ok(&["up"]);
    assert_eq!(workspace.state(), "running");
    let told = workspace.guest(
        "id -un; id -u; cat /etc/kept; [ ! -e /etc/gone ]; stat -c '%a %u' /bin/setuid; echo $GREETING",
    );
    assert_eq!(told, "user\n1000\nkept\n4755 0\nhello world\n");
    assert_eq!(workspace.guest("sudo -n id -u; ls ~/workspace | grep note || echo none"), "0\nnone\n");
    assert_eq!(workspace.guest("grep -c ' /run/nixbox/guest tmpfs ro' /proc/mounts"), "1\n");
    workspace.guest("echo alive > /dev/shm/memory; echo kept > ~/kept; sync");
    workspace.ok(&["snapshot", "--name", "warm"]);
    workspace.guest("echo later > /dev/shm/memory");
    workspace.ok(&["down"]);
    workspace.ok(&["up", "--snapshot", "warm"]);
    assert_eq!(workspace.guest("cat /dev/shm/memory ~/kept"), "alive\nkept\n");
    workspace.run(&["image", "delete", "small"]).failed(1, &["is used by"]);
    workspace.ok(&["down"]);

    // The same user and the same host key at the next boot.
    workspace.ok(&["up"]);
    assert_eq!(workspace.guest("cat ~/kept; grep -c ^user: /etc/passwd"), "kept\n1\n");
    workspace.ok(&["down"]);
    assert_eq!(outside::of(&workspace.id()), []);
    fs::remove_file(workspace.path.join(".nixbox/config.toml")).unwrap();
    workspace.ok(&["image", "delete", "small"]);
}
