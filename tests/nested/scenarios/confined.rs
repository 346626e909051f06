//! What the processes of a VM can open of the host.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::outside;
use crate::workspace::{WORK, Workspace};

/// Asks the VMM to attach a disk image, and returns its answer.
fn attach(socket: &str, image: &Path) -> String {
    let body = serde_json::json!({ "path": image, "readonly": true, "image_type": "Raw" }).to_string();
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(stream, "PUT /api/v1/vm.add-disk HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n").unwrap();
    write!(stream, "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    // The VMM keeps the connection. Its answer is one small segment.
    let mut answer = vec![0; 1 << 16];
    let length = stream.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

/// The VMM runs as root here, so that the modes of files keep it from nothing.
pub(super) fn a_vmm_opens_the_files_of_its_vm_and_no_other() {
    let workspace = Workspace::new("confined");
    let needs = workspace.run(&["doctor", "--json"]).json();
    let landlock = needs["needs"].as_array().unwrap().iter().find(|need| need["name"] == "landlock").unwrap();
    assert_eq!(landlock["state"], "found", "{landlock}");
    let image = vec![0; 1 << 20];
    let of_another = [Path::new(WORK).join("secret.img"), Path::new("/root/secret.img").to_owned()];
    for path in &of_another {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &image).unwrap();
    }
    // Every path that a VMM gets later than at its start works: a roll-over, a restore, shares that are attached again.
    workspace.ok(&["up"]);
    workspace.guest("echo written > ~/share/by-guest");
    workspace.ok(&["snapshot", "--name", "warm"]);
    workspace.ok(&["restore", "warm", "--replace"]);
    assert_eq!(workspace.guest("cat ~/share/by-guest"), "written\n");
    let socket = outside::shell("ls /run/nixbox-0/*/vmm-*.sock");
    for path in &of_another {
        let answer = attach(socket.trim(), path);
        assert!(answer.starts_with("HTTP/1.1 500") && answer.contains("Permission denied"), "{answer}");
    }
    // dnsmasq was started by the launcher, which gives up new privileges for it.
    let dhcp = outside::processes().into_iter().find(|process| process.role.starts_with("dhcp")).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", dhcp.pid)).unwrap();
    assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    // The same question about a file of the VM is answered otherwise.
    let own = workspace.state_directory("run").join("own.img");
    fs::write(&own, &image).unwrap();
    let answer = attach(socket.trim(), &own);
    assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
    fs::remove_file(own).unwrap();
    workspace.ok(&["down"]);
    workspace.assert_down();
    for path in of_another {
        fs::remove_file(path).unwrap();
    }
}
