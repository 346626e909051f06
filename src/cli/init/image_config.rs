//! The configuration of a workspace that boots an image.

use crate::image::runtime;
use crate::image::store::StoredImage;
use crate::workspace;
use crate::world::VariableName;

/// The variables of an image that a login sets by itself.
const SET_BY_LOGIN: [&str; 5] = ["HOME", "USER", "LOGNAME", "SHELL", "TERM"];
/// The PATH of most images, which says nothing.
const USUAL_PATHS: [&str; 2] =
    ["/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "/usr/local/bin:/usr/bin:/bin"];

/// The text of the configuration: that of every workspace, with the files of the image, its user and its environment.
pub(super) fn text(image: &StoredImage) -> String {
    let quoted = |path: &std::path::Path| string(&path.display().to_string());
    let description = &image.description;
    let mut text = workspace::CONFIG.to_owned();
    let mut put = |line: &str, new: &str| text = text.replacen(line, new, 1);
    put("kernel = \"image/vmlinuz\"", &format!("kernel = {}", quoted(&image.kernel())));
    put("# initramfs = \"image/initramfs.gz\"", &format!("initramfs = {}", quoted(&image.initramfs())));
    let line = format!("console=ttyS0 quiet net.ifnames=0 {}", runtime::BOOT_WORD);
    put("# cmdline = \"console=ttyS0 quiet\"", &format!("cmdline = {}", string(&line)));
    let disk = format!(
        "[[disks]]                           # the image {}\nimage = {}",
        description.name,
        quoted(&image.disk())
    );
    put("# [[disks]]\n# image = \"image/root.img\"", &disk);
    if let Some(user) = &description.user {
        put("# [guest]\n# user = \"user\"", &format!("[guest]\nuser = {}", string(user.as_str())));
    }
    let variables: Vec<String> = description.environment.iter().filter_map(|entry| variable(entry)).collect();
    if !variables.is_empty() {
        put("# [env]  ", &format!("[env]\n{}\n#        ", variables.join("\n")));
    }
    text
}

/// A line of `[env]`; `None` for a variable that needs none.
fn variable(entry: &str) -> Option<String> {
    let (name, value) = entry.split_once('=')?;
    let name: VariableName = name.parse().ok()?;
    let needless =
        SET_BY_LOGIN.contains(&name.as_str()) || (name.as_str() == "PATH" && USUAL_PATHS.contains(&value));
    let plain = !value.bytes().any(|byte| byte.is_ascii_control());
    (!needless && plain).then(|| format!("{name} = {}", string(value)))
}

/// A string of JSON is also one of TOML.
fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
