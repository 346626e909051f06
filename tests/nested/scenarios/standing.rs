//! On one VM that runs: what it was given, and how to work in it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::outside;
use crate::room::{self, FILE, PLAIN, Room, TOKEN};

pub(super) fn up_again_says_so(room: &Room) {
    let nonce = room.guest("cat /run/nonce");
    let below = room.path.join("share");
    let again = room.nixbox(&["up", "--json"]).current_dir(below).output().unwrap();
    assert_eq!(again.status.code(), Some(0));
    let said: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(said["result"], "already");
    assert_eq!(room.guest("cat /run/nonce"), nonce, "it is another guest");
    room.assert_up();
}

pub(super) fn credentials_have_their_owner_and_mode(room: &Room) {
    let stat = room.guest("cd; stat -c '%n %a %u' .env .aws .aws/credentials .ssh .ssh/id_ed25519");
    assert_eq!(
        stat,
        ".env 600 1000\n.aws 700 1000\n.aws/credentials 600 1000\n.ssh 700 1000\n.ssh/id_ed25519 600 1000\n"
    );
    assert_eq!(room.guest("cat ~/.aws/credentials"), FILE);
    let own = fs::read_to_string(room.path.join(".nixbox/ssh/vm_key.pub")).unwrap();
    let told = room.guest("cat ~/.ssh/id_ed25519.pub");
    let key = |text: &str| text.split(' ').take(2).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(key(&told), key(&own));
    let environment = room.guest("printf '%s\\n' \"$TOKEN\" \"$PLAIN\" \"$COMMAND\"");
    assert_eq!(environment, format!("{TOKEN}\n{PLAIN}\nfrom a command\n"));
    // A login has it too, and without nixbox.
    assert_eq!(room.guest("env -i HOME=/home/user sh -lc 'echo $TOKEN'"), format!("{TOKEN}\n"));
}

/// They are in the guest, and in what the person wrote down; in no argument list, environment of a daemon, log or journal.
pub(super) fn credentials_are_nowhere_else(room: &Room) {
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
    // The configuration says where two of them come from, and the guest's own disk is the guest's.
    let listing = outside::shell(&format!(
        "find {}/.nixbox /run/nixbox-0 -type f ! -name config.toml ! -path '*/run/disk-*/0.img'",
        room.path.display()
    ));
    assert!(listing.contains("/journal/"), "{listing}");
    assert!(listing.contains("/serial-"), "{listing}");
    for path in listing.lines() {
        clean(&fs::read(path).unwrap(), path);
    }
    for command in [&["config"][..], &["config", "--json"], &["status"], &["journal"]] {
        clean(room.ok(command).stdout.as_bytes(), command[0]);
    }
}

pub(super) fn shares_are_read_write_and_read_only(room: &Room) {
    assert_eq!(room.guest("cat ~/share/greeting /data/table"), "hello\n1 2 3\n");
    // Whoever writes there, it is the invoking user's here, and the guest's user's there.
    room.guest("echo from guest > ~/share/new; sudo -n sh -c 'echo of root > /home/user/share/root'; mkdir -p ~/share/d");
    for (name, content) in [("new", "from guest\n"), ("root", "of root\n")] {
        let path = room.path.join("share").join(name);
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
        let status = fs::metadata(&path).unwrap();
        assert_eq!((status.uid(), status.gid()), (0, 0), "{name}");
    }
    assert_eq!(room.guest("stat -c %u ~/share/new ~/share/root ~/share/greeting"), "1000\n1000\n1000\n");
    fs::write(room.path.join("share/later"), "from host\n").unwrap();
    assert_eq!(room.guest("cat ~/share/later"), "from host\n");
    let refused = room.run(&["run", "--", "sudo", "-n", "sh", "-c", "echo x > /data/x"]);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert!(refused.stderr.contains("Read-only"), "{refused:?}");
    // Not by the guest's good will alone: its root may mount it as it likes.
    let again = "mkdir -p /tmp/again && mount -t virtiofs share1 /tmp/again && ! touch /tmp/again/x; umount /tmp/again";
    room.guest(&format!("sudo -n sh -c '{again}'"));
    assert!(!room.path.join("data/x").exists());
}

pub(super) fn run_passes_stdin_stdout_and_status(room: &Room) {
    // Every byte, more of them than fit into any window, and the end of them.
    let bytes: Vec<u8> =
        (0..1_000_003_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let echoed = room.run_with(&bytes, &["cat"]);
    assert_eq!(echoed.status.code(), Some(0), "{:?}", String::from_utf8_lossy(&echoed.stderr));
    assert!(echoed.stdout == bytes, "{} bytes came back, or others", echoed.stdout.len());
    for code in [0, 1, 7, 255] {
        let said = room.run(&["run", "--", "sh", "-c", &format!("exit {code}")]);
        assert_eq!(said.code, Some(code));
    }
    assert_eq!(room.run(&["run", "--", "sh", "-c", "kill -TERM $$"]).code, Some(128 + 15));
    assert_eq!(room.run(&["run", "--", "no-such-program"]).code, Some(127));
    let said = room.ok(&["run", "--", "sh", "-c", "echo out; echo err >&2; test -t 0 || echo no terminal"]);
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("out\nno terminal\n", "err\n"));
    // Words stay words.
    assert_eq!(
        room.ok(&["run", "printf", "%s|", "a b", "", "it's", "$HOME", "-n"]).stdout,
        "a b||it's|$HOME|-n|"
    );
    // A command that leaves its input unread ends all the same.
    assert_eq!(room.run_with(&bytes, &["true"]).status.code(), Some(0));
}

pub(super) fn shell_is_a_terminal(room: &Room) {
    let nixbox = room::nixbox();
    let script = format!(
        "printf '%s\\n' 'stty size' 'test -t 0 && echo a-\"term\"inal' 'echo \"<$TOKEN>\"' 'pwd' 'exit 5' \
         | script --quiet --return --command 'stty rows 33 cols 77; {} shell' /dev/null",
        nixbox.display()
    );
    let said = room.program(Path::new("bash")).args(["-c", &script]).output().unwrap();
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(said.status.code(), Some(5), "{said:?}");
    for words in ["33 77", "a-terminal", &format!("<{TOKEN}>"), "/home/user"] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
}
