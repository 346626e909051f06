//! `nixbox image import`, `list` and `delete`, and `init --image`: with the images of a state of their own.

mod registry;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::{Said, skipped};
use registry::{Answer, FakeRegistry};

/// An empty state, and a directory to work in.
struct ImageDirectory {
    directory: tempfile::TempDir,
}

impl ImageDirectory {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["state", "work"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        Self { directory }
    }

    fn work(&self) -> PathBuf {
        self.directory.path().join("work")
    }

    /// nixbox with this state: root's is where it always is, in a mount namespace of its own.
    fn run(&self, arguments: &[&str]) -> Said {
        let state = self.directory.path().join("state");
        let program = env!("CARGO_BIN_EXE_nixbox");
        let mut command = if rustix::process::geteuid().is_root() {
            fs::create_dir_all("/var/lib/nixbox").unwrap();
            let script = "mount --bind \"$0\" /var/lib/nixbox && exec \"$@\"";
            let mut command = Command::new("unshare");
            command
                .args(["--mount", "--propagation", "private", "sh", "-c", script])
                .arg(&state)
                .arg(program);
            command
        } else {
            let mut command = Command::new(program);
            command.env("XDG_STATE_HOME", &state);
            command
        };
        let command = command.args(arguments).current_dir(self.work()).env_remove("SUDO_UID");
        Said::new(command.env("NIXBOX_SCOPES", "none").stdin(Stdio::null()).output().unwrap())
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> Said {
        let said = self.run(arguments);
        assert_eq!(said.code, Some(0), "{said:?}");
        said
    }

    /// An import fails with this code and these words, and leaves nothing.
    #[track_caller]
    fn refused(&self, arguments: &[&str], code: i32, words: &[&str]) {
        let said = self.run(&[&["image", "import"], arguments].concat());
        said.failed(code, words);
        assert_eq!(self.ok(&["image", "list", "--json"]).json(), serde_json::json!([]));
        let images = self.images();
        let left: Vec<_> = fs::read_dir(images).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| name == "lock"), "{arguments:?} left {left:?}");
    }

    fn images(&self) -> PathBuf {
        let below = if rustix::process::geteuid().is_root() { "images" } else { "nixbox/images" };
        self.directory.path().join("state").join(below)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.work().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }
}

/// What an import takes from this machine.
fn can_import(test: &str) -> bool {
    let kernel = fs::read_dir("/boot").is_ok_and(|entries| {
        let mut names = entries.filter_map(|entry| entry.unwrap().file_name().into_string().ok());
        names.any(|name| name.starts_with("vmlinuz-"))
    });
    let programs = ["/bin/busybox", "/usr/sbin/dropbear", "/sbin/mke2fs", "/sbin/debugfs"];
    let there = kernel && programs.iter().all(|path| fs::exists(path).unwrap());
    if !there {
        skipped(test, "a kernel, busybox-static, dropbear-bin and e2fsprogs");
    }
    there
}

/// An archive with these entries: type, name, link or content.
fn archive(entries: &[(tar::EntryType, &str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (kind, name, text) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(*kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        let content = if *kind == tar::EntryType::Regular { text.as_bytes() } else { b"" };
        header.set_size(content.len() as u64);
        // The names are hostile, and the crate refuses to write some of them.
        let bytes = header.as_mut_bytes();
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        if content.is_empty() {
            bytes[157..157 + text.len()].copy_from_slice(text.as_bytes());
        }
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }
    builder.into_inner().unwrap()
}

use tar::EntryType::{Char, Directory, Link, Regular, Symlink};

fn root_file_system() -> Vec<u8> {
    archive(&[
        (Directory, "etc/", ""),
        (Regular, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\n"),
        (Directory, "bin/", ""),
        (Regular, "bin/tool", "tool"),
        (Symlink, "bin/link", "/bin/tool"),
    ])
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut child =
        Command::new("gzip").arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let own = bytes.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&own).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output.stdout
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The documents of a container image.
struct Container {
    manifest: Vec<u8>,
    config: Vec<u8>,
    layer: Vec<u8>,
}

impl Container {
    fn new(architecture: &str) -> Self {
        let plain = root_file_system();
        let layer = gzip(&plain);
        let config = serde_json::json!({"architecture": architecture, "os": "linux",
            "config": {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "JAVA_HOME=/opt/java \"17\""], "User": "node"},
            "rootfs": {"type": "layers", "diff_ids": [digest(&plain)]}});
        let config = serde_json::to_vec(&config).unwrap();
        let manifest = serde_json::json!({"schemaVersion": 2,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(&layer),
                "size": layer.len()}]});
        Self { manifest: serde_json::to_vec(&manifest).unwrap(), config, layer }
    }

    /// Writes an OCI layout.
    fn write(&self, directory: &Path) {
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [{"digest": digest(&self.manifest),
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": self.manifest.len()}]});
        fs::write(directory.join("index.json"), index.to_string()).unwrap();
        for bytes in [&self.manifest, &self.config, &self.layer] {
            fs::write(blobs.join(&digest(bytes)["sha256:".len()..]), bytes).unwrap();
        }
    }
}

#[test]
fn what_is_no_image_is_refused_and_changes_nothing() {
    if !can_import("what_is_no_image_is_refused_and_changes_nothing") {
        return;
    }
    let directory = ImageDirectory::new();
    directory.refused(&["./nowhere"], 3, &["there is no file or directory", "nowhere"]);
    directory.refused(&["Not A Name"], 2, &["neither a file or directory nor the name of an image"]);
    let mut start = vec![0; 1024];
    start[..4].copy_from_slice(b"QFI\xfb");
    directory.write("disk.qcow2", &start);
    directory.refused(&["disk.qcow2"], 1, &["qcow2", "qemu-img convert -O raw"]);
    start[..4].copy_from_slice(&[0; 4]);
    start[510..512].copy_from_slice(&[0x55, 0xaa]);
    directory.write("disk.img", &start);
    directory.refused(&["disk.img"], 1, &["is a disk as it is", "[[disks]]"]);
    directory.write("text", b"no archive at all");
    directory.refused(&["text"], 1, &["neither a tar archive nor a container image"]);
    directory.write("half.tar.gz", &gzip(&root_file_system())[..60]);
    directory.refused(&["half.tar.gz"], 1, &["cannot be decompressed"]);
    let whole = root_file_system();
    directory.write("half.tar", &whole[..1100]);
    directory.refused(&["half.tar"], 1, &["half.tar"]);
    directory.write("empty.tar", &archive(&[(Regular, "file", "x")]));
    directory.refused(&["empty.tar"], 1, &["no root file system"]);
    directory.write("good.tar", &whole);
    directory.refused(&["good.tar", "--size", "1MiB"], 2, &["at least 64MiB"]);
    directory.write("kernel", b"no kernel");
    directory.refused(&["good.tar", "--kernel", "kernel"], 1, &["neither a bzImage nor a vmlinux"]);
    let mut kernel = vec![0; 0x400];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x20f] = 1;
    kernel[0x300..0x309].copy_from_slice(b"9.9.9-no ");
    directory.write("kernel", &kernel);
    directory.refused(&["good.tar", "--kernel", "kernel"], 1, &["modules of the kernel 9.9.9-no"]);
}

#[test]
fn hostile_archives_are_refused_and_change_nothing() {
    if !can_import("hostile_archives_are_refused_and_change_nothing") {
        return;
    }
    let directory = ImageDirectory::new();
    for (name, entry, words) in [
        ("dots", (Regular, "bin/../../../x", "x"), "`..` in its name"),
        ("link", (Link, "bin/x", "../../etc/shadow"), "`..` in its name"),
        ("gone", (Link, "bin/x", "etc/shadow"), "is a hard link to"),
        ("device", (Char, "bin/sda", ""), "is a device"),
    ] {
        directory.write(&format!("{name}.tar"), &archive(&[(Directory, "bin/", ""), entry]));
        directory.refused(&[&format!("{name}.tar")], 1, &[words]);
    }
    // What a link leads to on the host is not touched: it is followed within the image.
    let outside = directory.write("outside", b"untouched");
    let target = outside.parent().unwrap().to_str().unwrap();
    let through = [(Symlink, "bin", target), (Regular, "bin/outside", "changed"), (Char, "bin/device", "")];
    directory.write("through.tar", &archive(&through));
    directory.refused(&["through.tar"], 1, &["is a device"]);
    assert_eq!(fs::read(&outside).unwrap(), b"untouched");
    // A file that unpacks to more than the disk holds, and a bomb.
    let zeros = vec![0; 160 << 20];
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(zeros.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, "bin/zeros", &zeros[..]).unwrap();
    directory.write("bomb.tar.gz", &gzip(&builder.into_inner().unwrap()));
    directory.refused(&["bomb.tar.gz", "--size", "64MiB"], 1, &["more than 134217728 bytes", "--size"]);
}

#[test]
fn damaged_container_images_are_refused_and_change_nothing() {
    if !can_import("damaged_container_images_are_refused_and_change_nothing") {
        return;
    }
    let directory = ImageDirectory::new();
    Container::new("arm64").write(&directory.work().join("arm"));
    directory.refused(&["arm"], 1, &["is for linux/arm64"]);
    let container = Container::new("amd64");
    container.write(&directory.work().join("damaged"));
    let layer = format!("blobs/sha256/{}", &digest(&container.layer)["sha256:".len()..]);
    let mut bytes = container.layer.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    directory.write(&format!("damaged/{layer}"), &bytes);
    directory.refused(&["damaged"], 1, &["layer 1 of 1 has the digest", "damaged or forged"]);
    fs::remove_file(directory.work().join("damaged").join(&layer)).unwrap();
    directory.refused(&["damaged"], 1, &["has no blobs/sha256/"]);
    // An archive of docker save, whose layer is another than the configuration says.
    let saved = [
        (Regular, "manifest.json", r#"[{"Config":"config.json","RepoTags":["x:y"],"Layers":["layer.tar"]}]"#),
        (Regular, "config.json", std::str::from_utf8(&container.config).unwrap()),
        (Regular, "layer.tar", "x"),
    ];
    directory.write("saved.tar", &archive(&saved));
    directory.refused(&["saved.tar"], 1, &["layer 1 of 1"]);
}

#[test]
fn a_registry_that_fails_is_told_and_changes_nothing() {
    if !can_import("a_registry_that_fails_is_told_and_changes_nothing") {
        return;
    }
    let directory = ImageDirectory::new();
    let container = Container::new("amd64");
    let layer = format!("/v2/team/app/blobs/{}", digest(&container.layer));
    for (answer, words) in [
        (Answer::bytes(&container.layer[1..]), &["a layer has the digest"][..]),
        (Answer::bytes(&[&container.layer[..], b"more"].concat()), &["sent more than"]),
        (Answer::cut(&container.layer), &["the connection to", "broke after"]),
        (Answer::status(500, "out of order"), &["status 500", "out of order"]),
        (Answer::status(404, ""), &["has no image"]),
    ] {
        let registry = FakeRegistry::start();
        registry.serve("team/app", "1.0", &container.manifest, &[&container.config]);
        registry.put(&layer, answer);
        let code = if words[0] == "has no image" { 3 } else { 1 };
        directory.refused(&[&format!("{}/team/app:1.0", registry.host())], code, words);
    }
    let registry = FakeRegistry::start();
    registry.serve("team/app", "1.0", &container.manifest, &[&container.config]);
    directory.refused(&[&format!("{}/team/app:2.0", registry.host())], 3, &["has no image", "team/app:2.0"]);
    registry.put("/v2/team/app/manifests/3.0", Answer::status(401, ""));
    directory.refused(&[&format!("{}/team/app:3.0", registry.host())], 1, &["no login", "docker save"]);
    let other = format!("{}/team/app@{}", registry.host(), digest(b"other"));
    registry.put(&format!("/v2/team/app/manifests/{}", digest(b"other")), Answer::bytes(&container.manifest));
    directory.refused(&[&other], 1, &["the manifest has the digest"]);
    let host = registry.host();
    drop(registry);
    directory.refused(&[&format!("{host}/team/app:1.0")], 1, &["cannot speak to"]);
}

#[test]
fn an_image_of_a_registry_is_kept_once_and_a_workspace_boots_it() {
    if !can_import("an_image_of_a_registry_is_kept_once_and_a_workspace_boots_it") {
        return;
    }
    let directory = ImageDirectory::new();
    let container = Container::new("amd64");
    let registry = FakeRegistry::start();
    registry.serve("team/app", "1.0", &container.manifest, &[&container.config, &container.layer]);
    // A token is wanted, and the layer is elsewhere.
    registry.want_token();
    let elsewhere = FakeRegistry::start();
    elsewhere.put("/layer", Answer::bytes(&container.layer));
    let layer = format!("/v2/team/app/blobs/{}", digest(&container.layer));
    registry.put(&layer, Answer::redirect(&format!("http://{}/layer", elsewhere.host())));
    assert!(directory.ok(&["image", "list"]).stdout.contains("there is no image"));
    let reference = format!("{}/team/app:1.0", registry.host());
    let made = directory.ok(&["image", "import", &reference, "--size", "512MiB", "--json"]).json();
    assert_eq!((made["name"].as_str(), made["user"].as_str()), (Some("app-1.0"), Some("node")), "{made}");
    assert_eq!(elsewhere.tokens(), 0, "another host got the token");

    // The same content from elsewhere is the same image.
    container.write(&directory.work().join("layout"));
    let again = directory.ok(&["image", "import", "layout", "--size", "512MiB"]);
    assert!(again.stdout.contains("there already as app-1.0"), "{again:?}");
    directory
        .run(&["image", "import", "layout", "--size", "600MiB", "--name", "app-1.0"])
        .failed(2, &["is that of another image"]);
    let listed = directory.ok(&["image", "list", "--json"]).json();
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    assert!(directory.ok(&["image", "list"]).stdout.contains("app-1.0"));

    let said = directory.ok(&["init"]);
    assert!(said.stderr.contains("one of these images: app-1.0"), "{said:?}");
    let workspace = directory.work().join("project");
    fs::create_dir(&workspace).unwrap();
    directory.ok(&["-C", "project", "init", "--image", "app-1.0"]);
    let config = directory.ok(&["-C", "project", "config", "--json"]).json();
    let image = listed[0]["directory"].as_str().unwrap();
    assert_eq!(config["vm"]["kernel"], format!("{image}/vmlinuz"));
    assert_eq!(config["vm"]["initramfs"], format!("{image}/initramfs"));
    assert_eq!(config["disks"][0]["image"], format!("{image}/disk.img"));
    assert_eq!(config["guest"]["user"], "node");
    assert!(config["vm"]["cmdline"].as_str().unwrap().contains("nixbox.guest"));
    assert!(config["env"]["JAVA_HOME"].is_string() && config["env"]["PATH"].is_null(), "{config}");
    directory
        .run(&["-C", "project", "init", "--image", "app-1.0"])
        .failed(2, &["config.toml is there already"]);

    directory.run(&["image", "delete", "app-1.0"]).failed(1, &["is used by", "project"]);
    directory.run(&["image", "delete", "none"]).failed(3, &["there is no image \"none\""]);
    fs::remove_dir_all(&workspace).unwrap();
    directory.ok(&["image", "delete", "app-1.0"]);
    assert_eq!(directory.ok(&["image", "list", "--json"]).json(), serde_json::json!([]));
    directory.run(&["image", "delete", "app-1.0"]).failed(3, &["there is no image"]);
}
