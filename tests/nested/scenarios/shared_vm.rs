//! What holds of a VM that runs: its credentials, its shares, and how commands run in it. All of these share one VM.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;

use crate::outside;
use crate::workspace::{self, FILE, PLAIN, TOKEN, Workspace};

pub(super) fn up_of_a_running_vm_changes_nothing(workspace: &Workspace) {
    let nonce = workspace.guest("cat /run/nonce");
    let below = workspace.path.join("share");
    let again = workspace.nixbox(&["up", "--json"]).current_dir(below).output().unwrap();
    assert_eq!(again.status.code(), Some(0));
    let said: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(said["result"], "already");
    assert_eq!(workspace.guest("cat /run/nonce"), nonce, "it is another guest");
    workspace.assert_up();
}

pub(super) fn credentials_have_their_owner_and_mode(workspace: &Workspace) {
    let stat = workspace.guest("cd; stat -c '%n %a %u' .env .aws .aws/credentials .ssh .ssh/id_ed25519");
    assert_eq!(
        stat,
        ".env 600 1000\n.aws 700 1000\n.aws/credentials 600 1000\n.ssh 700 1000\n.ssh/id_ed25519 600 1000\n"
    );
    assert_eq!(workspace.guest("cat ~/.aws/credentials"), FILE);
    let own = fs::read_to_string(workspace.state_directory("ssh").join("vm_key.pub")).unwrap();
    let told = workspace.guest("cat ~/.ssh/id_ed25519.pub");
    let key = |text: &str| text.split(' ').take(2).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(key(&told), key(&own));
    let environment = workspace.guest("printf '%s\\n' \"$TOKEN\" \"$PLAIN\" \"$COMMAND\"");
    assert_eq!(environment, format!("{TOKEN}\n{PLAIN}\nfrom a command\n"));
    // A login shell that nixbox did not start has it too.
    assert_eq!(workspace.guest("env -i HOME=/home/user sh -lc 'echo $TOKEN'"), format!("{TOKEN}\n"));
}

/// `nixbox credentials` takes the credentials from the guest that runs and gives them again, and `nixbox list` shows the VM from
/// another directory.
pub(super) fn credentials_are_taken_from_the_guest_and_given_again(workspace: &Workspace) {
    let states = |arguments: &[&str]| {
        let report = workspace.ok(arguments).json();
        let states = report["configured"].as_array().unwrap().iter();
        let states: Vec<_> = states.map(|one| one["state"].as_str().unwrap().to_owned()).collect();
        (report["withheld"] == true, states)
    };
    let status = ["credentials", "status", "--json"];
    assert_eq!(states(&status), (false, vec!["given".to_owned(); 4]));
    workspace.ok(&["credentials", "wipe"]);
    let look = "cd; ls -d .env .aws/credentials .ssh/id_ed25519 2>/dev/null || :; printf '[%s]\n' \"$TOKEN\"";
    assert_eq!(workspace.guest(look), "[]\n");
    assert_eq!(states(&status), (true, vec!["absent".to_owned(); 4]));
    workspace.ok(&["credentials", "inject"]);
    assert_eq!(workspace.guest("printf %s \"$TOKEN\""), TOKEN);
    assert_eq!(states(&status), (false, vec!["given".to_owned(); 4]));

    let listed = workspace.nixbox(&["list", "--json"]).current_dir("/").output().unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let row = listed.as_array().unwrap().iter().find(|row| row["id"] == workspace.id().as_str()).unwrap();
    assert_eq!(row["state"], "running");
    let memory = |key: &str| row["memory"][key].as_u64().unwrap();
    assert!(
        memory("occupied_bytes") > 1 << 20 && memory("occupied_bytes") <= memory("promised_bytes"),
        "{row}"
    );
    let named = workspace
        .nixbox(&["-C", row["name"].as_str().unwrap(), "status", "--json"])
        .current_dir("/")
        .output()
        .unwrap();
    let named: serde_json::Value = serde_json::from_slice(&named.stdout).unwrap();
    assert_eq!(named["id"], row["id"]);
}

/// Credentials are in the guest, and in the files that the person wrote; in no argument list, environment, log or journal.
pub(super) fn credentials_are_in_no_process_log_or_journal(workspace: &Workspace) {
    let secrets = [TOKEN, "file-secret", "from a command"];
    let clean = |text: &[u8], of: &str| {
        for secret in secrets {
            let found = text.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{secret:?} is in {of}");
        }
    };
    for process in outside::processes() {
        for name in ["cmdline", "environ"] {
            let path = format!("/proc/{}/{name}", process.pid);
            clean(&fs::read(&path).unwrap(), &path);
        }
    }
    // The configuration names the sources of two of them, and the guest's disk may hold what the guest has.
    let listing = outside::shell(&format!(
        "find {}/.nixbox {} /run/nixbox-0 -type f ! -name config.toml ! -path '*/run/disk-*/0.img' ! -path '*/run/kept-*/0.img'",
        workspace.path.display(),
        workspace.state_directory("").display()
    ));
    assert!(listing.contains("/journal/"), "{listing}");
    assert!(listing.contains("/serial-"), "{listing}");
    for path in listing.lines() {
        clean(&fs::read(path).unwrap(), path);
    }
    for command in [&["config"][..], &["config", "--json"], &["status"], &["journal"]] {
        clean(workspace.ok(command).stdout.as_bytes(), command[0]);
    }
}

pub(super) fn shares_are_writable_or_read_only_as_configured(workspace: &Workspace) {
    assert_eq!(workspace.guest("cat ~/share/greeting /data/table"), "hello\n1 2 3\n");
    // What any user of the guest writes belongs to the invoking user on the host, and to the guest's user in the guest.
    workspace.guest("echo from guest > ~/share/new; sudo -n sh -c 'echo of root > /home/user/share/root'; mkdir -p ~/share/d");
    for (name, content) in [("new", "from guest\n"), ("root", "of root\n")] {
        let path = workspace.path.join("share").join(name);
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
        let status = fs::metadata(&path).unwrap();
        assert_eq!((status.uid(), status.gid()), (0, 0), "{name}");
    }
    assert_eq!(workspace.guest("stat -c %u ~/share/new ~/share/root ~/share/greeting"), "1000\n1000\n1000\n");
    fs::write(workspace.path.join("share/later"), "from host\n").unwrap();
    assert_eq!(workspace.guest("cat ~/share/later"), "from host\n");
    let refused = workspace.run(&["run", "--", "sudo", "-n", "sh", "-c", "echo x > /data/x"]);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert!(refused.stderr.contains("Read-only"), "{refused:?}");
    // The host enforces it: the guest's root may mount the share with other options.
    let again = "mkdir -p /tmp/again && mount -t virtiofs share1 /tmp/again && ! touch /tmp/again/x; umount /tmp/again";
    workspace.guest(&format!("sudo -n sh -c '{again}'"));
    assert!(!workspace.path.join("data/x").exists());
}

pub(super) fn run_passes_stdin_stdout_and_status(workspace: &Workspace) {
    // Every byte, more of them than fit into any window, and the end of them.
    let bytes: Vec<u8> =
        (0..1_000_003_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let echoed = workspace.run_with(&bytes, &["cat"]);
    assert_eq!(echoed.status.code(), Some(0), "{:?}", String::from_utf8_lossy(&echoed.stderr));
    assert!(echoed.stdout == bytes, "{} bytes came back, or others", echoed.stdout.len());
    for code in [0, 1, 7, 255] {
        let said = workspace.run(&["run", "--", "sh", "-c", &format!("exit {code}")]);
        assert_eq!(said.code, Some(code));
    }
    assert_eq!(workspace.run(&["run", "--", "sh", "-c", "kill -TERM $$"]).code, Some(128 + 15));
    assert_eq!(workspace.run(&["run", "--", "no-such-program"]).code, Some(127));
    let said =
        workspace.ok(&["run", "--", "sh", "-c", "echo out; echo err >&2; test -t 0 || echo no terminal"]);
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("out\nno terminal\n", "err\n"));
    // The words of the command arrive unchanged.
    assert_eq!(
        workspace.ok(&["run", "printf", "%s|", "a b", "", "it's", "$HOME", "-n"]).stdout,
        "a b||it's|$HOME|-n|"
    );
    // One word is a line for the shell.
    let line =
        ["run", "-w", "/etc", "-e", "OWN=it's", "pwd && echo \"$OWN\" | tr a-z A-Z && echo \"$TOKEN\""];
    assert_eq!(workspace.ok(&line).stdout, format!("/etc\nIT'S\n{TOKEN}\n"));
    assert_eq!(workspace.ok(&["run", "--user", "root", "id -u; echo \"<$TOKEN>\""]).stdout, "0\n<>\n");
    // A command that does not read its input ends too.
    assert_eq!(workspace.run_with(&bytes, &["true"]).status.code(), Some(0));
}

/// A command gets the signals of its nixbox, and does not outlive it.
pub(super) fn run_passes_signals_and_ends_its_command(workspace: &Workspace) {
    let begin = |line: &str| {
        let mut child = workspace.nixbox(&["run", line]).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        out.read_line(&mut first).unwrap();
        assert_eq!(first, "begun\n");
        (child, out)
    };
    let waits = "rm -f gate; mkfifo gate; trap 'echo told; exit 9' TERM; echo begun; read -r word < gate";
    let (mut child, mut out) = begin(waits);
    outside::shell(&format!("kill -TERM {}", child.id()));
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("told\n", Some(9)));

    let (mut child, _out) = begin("trap '' HUP; echo begun; exec sleep 98765");
    child.kill().unwrap();
    child.wait().unwrap();
    // The command that looks has a directory of its own.
    workspace.guest("while pgrep -f 'sleep 9876[5]'; do sleep 0.1; done; while [ $(ls -d /dev/shm/nixbox-run.* | wc -l) -gt 1 ]; do sleep 0.1; done");
}

pub(super) fn files_are_copied_and_ssh_and_forwarded_ports_reach_the_guest(workspace: &Workspace) {
    let bytes: Vec<u8> =
        (0..3_000_017_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let tree = workspace.path.join("tree");
    fs::create_dir_all(tree.join("below")).unwrap();
    fs::write(tree.join("below/a file"), &bytes).unwrap();
    std::os::unix::fs::symlink("below/a file", tree.join("link")).unwrap();
    workspace.ok(&["cp", "tree", "vm:copied"]);
    let told =
        workspace.guest("cd ~/copied; readlink link; wc -c < 'below/a file'; stat -c %u 'below/a file'");
    assert_eq!(told, format!("below/a file\n{}\n1000\n", bytes.len()));
    workspace.ok(&["cp", "vm:copied/link", "vm:copied/.", "tree"]);
    assert!(fs::read(tree.join("below/a file")).unwrap() == bytes);
    assert_eq!(fs::metadata(tree.join("below/a file")).unwrap().uid(), 0);
    workspace.run(&["cp", "vm:nowhere", "tree"]).failed(3, &["the guest has no"]);

    let entry = workspace.ok(&["ssh-config"]).stdout;
    fs::write(workspace.path.join("entry"), &entry).unwrap();
    let host = entry
        .lines()
        .find_map(|line| line.strip_prefix("Host "))
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned();
    let said = workspace
        .program(Path::new("ssh"))
        .args(["-F", "entry", &host, "cat copied/link | wc -c"])
        .output()
        .unwrap();
    assert!(said.status.success(), "{said:?}");
    assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), bytes.len().to_string());

    let greets = || {
        let mut greeting = String::new();
        BufReader::new(std::net::TcpStream::connect("127.0.0.1:12222").unwrap())
            .read_line(&mut greeting)
            .unwrap();
        assert!(greeting.starts_with("SSH-2.0-"), "{greeting}");
    };
    let mut forward = workspace.nixbox(&["forward", "12222:22"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(forward.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("12222"), "{line}");
    greets();
    outside::shell(&format!("kill -INT {}", forward.id()));
    assert_eq!(forward.wait().unwrap().code(), Some(0));
    workspace.ok(&["forward", "--background", "12222:22"]);
    greets();
    let listed = || workspace.ok(&["forward", "list", "--json"]).json();
    assert_eq!(listed().as_array().unwrap().len(), 1, "{}", listed());
    workspace.ok(&["forward", "stop", "12222"]);
    assert_eq!(listed(), serde_json::json!([]));
    assert!(std::net::TcpStream::connect("127.0.0.1:12222").is_err());
    assert!(workspace.ok(&["logs"]).stdout.lines().count() > 10);
    fs::remove_dir_all(&tree).unwrap();
    fs::remove_file(workspace.path.join("entry")).unwrap();
    workspace.guest("rm -r ~/copied");
}

pub(super) fn shell_gives_a_terminal(workspace: &Workspace) {
    let nixbox = workspace::nixbox();
    let script = format!(
        "printf '%s\\n' 'stty size' 'test -t 0 && echo a-\"term\"inal' 'echo \"<$TOKEN>\"' 'pwd' 'exit 5' \
         | script --quiet --return --command 'stty rows 33 cols 77; {} shell' /dev/null",
        nixbox.display()
    );
    let said = workspace.program(Path::new("bash")).args(["-c", &script]).output().unwrap();
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(said.status.code(), Some(5), "{said:?}");
    for words in ["33 77", "a-terminal", &format!("<{TOKEN}>"), "/home/user"] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
    // A command in a terminal, too.
    let script = format!(
        "script --quiet --return --command 'stty rows 33 cols 77; {} shell \"stty size; exit 6\"' /dev/null < /dev/null",
        nixbox.display()
    );
    let said = workspace.program(Path::new("bash")).args(["-c", &script]).output().unwrap();
    assert!(String::from_utf8_lossy(&said.stdout).contains("33 77"), "{said:?}");
    assert_eq!(said.status.code(), Some(6), "{said:?}");
}
