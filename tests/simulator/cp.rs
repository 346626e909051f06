//! `nixbox cp`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Stdio;

use crate::workspace::Workspace;

#[test]
fn files_and_directories_are_copied_both_ways() {
    let workspace = Workspace::new("simulator", true);
    let here = |name: &str| workspace.path().join(name);
    let cp = |arguments: &[&str]| workspace.run(&[&["cp"], arguments].concat());
    let ok = |arguments: &[&str]| workspace.ok(&[&["cp"], arguments].concat());
    assert_eq!(cp(&["vm:a", "b"]).code, Some(3), "no VM is running");
    workspace.ok(&["up"]);

    fs::create_dir_all(here("tree/sub")).unwrap();
    fs::write(here("tree/sub/file"), "content").unwrap();
    fs::set_permissions(here("tree/sub/file"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("sub/file", here("tree/link")).unwrap();
    assert_eq!(ok(&["tree", "vm:copied"]).stdout, "");
    assert_eq!(workspace.guest("cd ~/copied; cat sub/file link; stat -c %a sub/file"), "contentcontent640\n");
    workspace.guest(
        "mkdir -p ~/out/d; echo one > ~/out/one; echo two > ~/out/d/two; ln -s /etc/passwd ~/out/away",
    );
    let said = ok(&["vm:out/one", "vm:out", "."]);
    assert!(said.stderr.contains("1 of the links in vm:out lead out of it"), "{said:?}");
    assert_eq!(fs::read_to_string(here("one")).unwrap(), "one\n");
    assert_eq!(fs::read_to_string(here("out/d/two")).unwrap(), "two\n");
    assert!(here("out/away").is_symlink());

    // Streams.
    let mut command = workspace.command(&["cp", "-", "vm:streamed"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"\0binary\xff").unwrap();
    assert!(child.wait().unwrap().success());
    let output = workspace.command(&["cp", "vm:streamed", "-"]).output().unwrap();
    assert_eq!(output.stdout, b"\0binary\xff");

    // A link in a share is not followed, because the guest may have made it.
    symlink("/etc/passwd", here("shared/link")).unwrap();
    for (arguments, code, words) in [
        (&["vm:absent", "x"][..], 3, "the guest has no vm:absent"),
        (&["absent", "vm:x"], 1, "absent"),
        (&["a", "b"], 2, "vm:PATH"),
        (&["vm:a", "vm:b"], 2, "nixbox run -- cp"),
        (&["vm:", "x"], 2, "names no path"),
        (&["tree", "vm:out/one"], 1, "is not a directory"),
        (&["vm:out", "one"], 1, "is not a directory"),
        (&["shared/link", "vm:x"], 1, "leads through a link"),
    ] {
        let said = cp(arguments);
        assert_eq!(said.code, Some(code), "{arguments:?}: {said:?}");
        assert!(said.stderr.contains(words), "{arguments:?}: {said:?}");
    }
    workspace.guest("mkfifo ~/out/d/pipe");
    let said = cp(&["vm:out/d", "piped"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("were not copied") && here("piped/two").is_file(), "{said:?}");
    let left = fs::read_dir(workspace.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!left.into_iter().any(|name| name.to_string_lossy().starts_with(".nixbox-cp")));
}
