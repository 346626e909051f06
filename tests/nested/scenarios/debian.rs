//! The workflow that nixbox is for, on a guest as its users have one: Debian with systemd, Docker and a JDK.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::clock::{HostClock, is_about_tsc, unix};
use super::figures::tell_stages;
use super::rebooted;
use crate::emulation;
use crate::workspace::{FILE, TOKEN, Workspace};

/// The time in the freezer, in seconds: more than the three minutes after which systemd's watchdogs kill a service.
const AWAY: u64 = 3600;
/// The most of its own time that the guest may take between two ticks of its timer, which ticks every 20 s, and between two looks
/// at it. An emulated processor is slow, but not as slow as that.
const OWN: f64 = 1800.0;
/// The part of a cold boot that a warm start is to take.
const WANTED: f64 = 0.15;
/// The word of the kernel's command line by which `nixbox init --image` asks for whom the guest lets in.
const BOOT_WORD: &str = "nixbox.guest";

/// What the scenario puts into the guest, through its share.
const PARTS: [(&str, &str); 5] = [
    ("Compiler.java", include_str!("../debian/Compiler.java")),
    ("compiler.service", include_str!("../debian/compiler.service")),
    ("compose.yaml", include_str!("../debian/compose.yaml")),
    ("tick.service", include_str!("../debian/tick.service")),
    ("tick.timer", include_str!("../debian/tick.timer")),
];

/// Starts everything that is to survive, and says when it is there. The container image has one program, whose applets are links
/// to it. The credential of `docker login` is the guest's own.
const WARM_UP: &str = "
    cp ~/share/Compiler.java ~/share/compose.yaml ~
    sudo cp ~/share/tick.service ~/share/tick.timer ~/share/compiler.service /etc/systemd/system/
    sudo systemctl daemon-reload
    sudo systemctl enable --now tick.timer
    mkdir -p ~/image/bin ~/image/www ~/.docker
    cp /bin/busybox ~/image/bin/
    echo 'a page' > ~/image/www/page
    for applet in sh httpd date sleep cat; do ln -s busybox ~/image/bin/$applet; done
    printf '{\"auths\":{\"registry.example\":{\"auth\":\"bG9naW46c2VjcmV0\"}}}' > ~/.docker/config.json
    sudo systemctl start compiler.service
    tar -C ~/image --owner 0 --group 0 -c . |
        docker import -c 'CMD [\"/bin/httpd\", \"-f\", \"-p\", \"80\", \"-h\", \"/www\"]' - nested/web
    docker run --detach --name web --publish 8080:80 nested/web
    cd ~ && docker compose --progress quiet up --detach
    until busybox wget -q -O - http://127.0.0.1:8099/home/user/share/src > /dev/null; do sleep 1; done
    until [ -s /var/lib/ticks ]; do sleep 1; done";

/// Looks at all of it. Each line begins with a word that says what it is about. The journal has the command that searches it, too,
/// which the brackets keep from being found.
const LOOK: &str = "
    for port in 8080 8081; do echo \"web $port $(busybox wget -q -O - http://127.0.0.1:$port/page)\"; done
    docker inspect --format 'container {{.Name}} {{.State.Running}} {{.State.StartedAt}} {{.RestartCount}}' \\
        web user-web-1 user-clock-1
    echo \"build $(busybox wget -q -O - http://127.0.0.1:8099/home/user/share/src)\"
    systemctl --failed --no-legend --plain | sed 's/^/failed /'
    systemctl show --property Id,NRestarts '*.service' | awk 'BEGIN { RS = \"\"; FS = \"\\n\" } {
        for (i = 1; i <= NF; i++) { split($i, pair, \"=\"); value[pair[1]] = pair[2] }
        print \"restarts\", value[\"NRestarts\"], value[\"Id\"] }'
    ticks=$(wc -l < /var/lib/ticks)
    until [ \"$(wc -l < /var/lib/ticks)\" -gt \"$ticks\" ]; do sleep 1; done
    sed 's/^/tick /' /var/lib/ticks
    echo \"uptime $(cut -d ' ' -f 1 /proc/uptime)\"
    sudo journalctl --quiet --boot --no-pager --grep '[W]atchdog timeout|dumped [c]ore|watchdog: [B]UG|Failed with [r]esult' |
        sed 's/^/complaint /'
    sudo journalctl --verify > /tmp/verified 2>&1 || sed 's/^/journal /' /tmp/verified
    sudo dmesg | sed 's/^/kernel /'";

/// What was seen of the guest.
struct Seen {
    lines: Vec<(String, String)>,
}

impl Seen {
    fn of(workspace: &Workspace) -> Self {
        let told = workspace.guest(LOOK);
        let split = |line: &str| {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            (word.to_owned(), rest.trim().to_owned())
        };
        Self { lines: told.lines().map(split).collect() }
    }

    fn all(&self, word: &str) -> Vec<&str> {
        self.lines.iter().filter(|(first, _)| first == word).map(|(_, rest)| rest.as_str()).collect()
    }

    /// The process, its start and the number of the build that the compile server answered with.
    fn build(&self) -> (&str, &str, u64) {
        let [build] = self.all("build")[..] else { panic!("{:?}", self.lines) };
        let words: Vec<&str> = build.split(' ').collect();
        let [pid, began, number, _took] = words[..] else { panic!("{build}") };
        (pid, began, number.parse().unwrap())
    }

    /// How often each unit was restarted by systemd, of those that were.
    fn restarts(&self) -> BTreeSet<&str> {
        self.all("restarts").into_iter().filter(|line| !line.starts_with("0 ")).collect()
    }

    /// The times of the guest's monotonic clock at which its timer ran.
    fn ticks(&self) -> Vec<f64> {
        self.all("tick").iter().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect()
    }

    fn uptime(&self) -> f64 {
        self.all("uptime")[0].parse().unwrap()
    }

    /// What `self` has of this and `before` has not.
    fn since<'a>(&'a self, before: &Self, word: &str) -> Vec<&'a str> {
        let known = before.all(word);
        self.all(word).into_iter().filter(|line| !known.contains(line)).collect()
    }

    #[track_caller]
    fn assert_answers(&self) {
        assert_eq!(self.all("web"), ["8080 a page", "8081 a page"]);
        let containers = self.all("container");
        assert_eq!(containers.len(), 3, "{containers:?}");
        assert!(containers.iter().all(|line| line.contains(" true ")), "{containers:?}");
    }

    /// The same guest went on: nothing was started anew, and no time passed.
    #[track_caller]
    fn assert_goes_on_from(&self, before: &Self) {
        self.assert_answers();
        // What the slow processor brought about before the freezer is of no account.
        for word in ["failed", "complaint", "journal"] {
            assert_eq!(self.since(before, word), [] as [&str; 0], "{word}");
        }
        assert_eq!(self.all("container"), before.all("container"), "a container was started anew");
        let ((pid, began, number), (was, had_begun, builds)) = (self.build(), before.build());
        assert_eq!((pid, began), (was, had_begun), "the compile server was started anew");
        assert_eq!(number, builds + 1, "the compile server has forgotten builds");
        assert_eq!(self.restarts(), before.restarts(), "systemd restarted a unit");
        let ticks = self.ticks();
        let gap = ticks.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
        println!("the longest time between two ticks of the timer: {gap:.0} s");
        assert!(gap < OWN && self.uptime() - before.uptime() < OWN, "the monotonic clock jumped: {ticks:?}");
        let log = self.all("kernel").split_off(before.all("kernel").len());
        let log: Vec<&str> = log.into_iter().filter(|line| !is_about_tsc(line)).collect();
        for word in ["stall", "watchdog", "soft lockup", "unstable", "hung"] {
            assert!(!log.iter().any(|line| line.contains(word)), "{word} in {log:#?}");
        }
    }
}

/// The configuration of every scenario, with the files of this guest.
fn configuration(guest: &Path) -> String {
    let replaced = [
        ("size = \"64MiB\"", format!("image = {:?}", guest.join("disk.img"))),
        ("initramfs.gz", "initramfs".to_owned()),
        (crate::workspace::GUEST, guest.to_str().unwrap().to_owned()),
        ("console=ttyS0 quiet", format!("console=ttyS0 quiet net.ifnames=0 {BOOT_WORD}")),
        ("192MiB", "1GiB".to_owned()),
        ("ssh-key = \"key\"", "ssh-key = \"key\"\nready-timeout = \"30min\"".to_owned()),
    ];
    replaced.into_iter().fold(Workspace::configuration(""), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, &to)
    })
}

/// The milliseconds from the boot to SSH-ready, without what is made before it.
fn boot(said: &Value) -> f64 {
    let stages = said["times"]["stages"].as_array().unwrap();
    let of = |name: &str| {
        stages.iter().find(|stage| stage["stage"] == name).map_or(0.0, |stage| stage["ms"].as_f64().unwrap())
    };
    of("boot") + of("connect")
}

pub(super) fn a_debian_guest_goes_on_with_its_containers_and_its_compile_server() {
    let guest = PathBuf::from(std::env::var_os(emulation::DEBIAN).expect(emulation::DEBIAN));
    let workspace = Workspace::new("debian");
    fs::create_dir(workspace.path.join("share/src")).unwrap();
    fs::write(workspace.path.join("share/src/Hello.java"), "class Hello { int answer() { return 42; } }\n")
        .unwrap();
    for (name, text) in PARTS {
        fs::write(workspace.path.join("share").join(name), text).unwrap();
    }
    workspace.configure(&configuration(&guest));
    let cold = workspace.ok(&["up", "--json"]).json();
    tell_stages(&workspace);
    let first = rebooted::boot(&workspace);
    rebooted::until(&workspace, &["systemctl", "reboot"], |status| status["vm"]["rebooted"] == true);
    workspace.ok(&["up"]);
    assert_ne!(rebooted::boot(&workspace), first);
    workspace.assert_up();
    workspace.guest(WARM_UP);
    let begun = Seen::of(&workspace);
    begun.assert_answers();

    // A live snapshot: the guest loses nothing, the credential of `docker login` included.
    workspace.ok(&["snapshot", "--name", "live"]);
    let frozen = Seen::of(&workspace);
    frozen.assert_goes_on_from(&begun);
    workspace.assert_up();
    assert!(workspace.guest("cat ~/.docker/config.json").contains("registry.example"));

    workspace.ok(&["snapshot", "delete", "live"]);
    workspace.ok(&["snapshot", "--name", "warm", "--stop"]);
    workspace.assert_down();
    let mut clock = HostClock::default();
    clock.forward(AWAY);
    let warm = workspace.ok(&["up", "--snapshot", "--json"]).json();
    tell_stages(&workspace);
    assert_eq!(warm["result"], "restored", "{warm}");
    let (early, told, late) = (unix(), workspace.guest("date +%s"), unix());
    assert!((early..=late).contains(&told.trim().parse().unwrap()), "{told} is not from {early} to {late}");
    let thawed = Seen::of(&workspace);
    thawed.assert_goes_on_from(&frozen);
    workspace.assert_up();
    assert_eq!(workspace.guest("echo \"$TOKEN\"; cat ~/.aws/credentials"), format!("{TOKEN}\n{FILE}"));
    let login = workspace.guest("ls ~/.docker/config.json 2> /dev/null || echo none");
    assert_eq!(login, "none\n", "the snapshot has what docker login keeps");

    let (ready, cold) = (warm["times"]["ready_ms"].as_f64().unwrap(), boot(&cold));
    println!(
        "FIGURE warm start of Debian: {ready:.0} ms; its cold boot, without the copy of its disk, {cold:.0} ms; ratio {:.2}, \
         wanted {WANTED}",
        ready / cold
    );
    workspace.ok(&["down"]);
    workspace.assert_down();
}
