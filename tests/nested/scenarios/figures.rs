//! Measures how much longer nixbox takes than the bare calls that it has to make, both in one run on one host.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use crate::outside;
use crate::workspace::Workspace;

/// Each figure is the best of this many rounds, so that other work of the machine counts less.
const ROUNDS: usize = 2;
/// The ratio to the bare calls that nixbox is to stay below.
const WANTED: f64 = 1.25;

fn milliseconds(said: &Value, what: &str) -> f64 {
    said["times"][what].as_f64().unwrap_or_else(|| panic!("no {what} in {said}"))
}

fn bare(workspace: &Workspace, what: &str, frozen: &Value) -> f64 {
    let snapshot = workspace.state_directory("snapshots").join(frozen["snapshot"]["id"].to_string());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nested/bare");
    let key: PathBuf = workspace.path.join("key");
    let arguments = [what, snapshot.to_str().unwrap(), key.to_str().unwrap()];
    let said = outside::must(script.to_str().unwrap(), &arguments);
    said.trim().parse().unwrap_or_else(|_| panic!("{said:?}"))
}

fn best(value: impl FnMut() -> f64) -> f64 {
    std::iter::repeat_with(value).take(ROUNDS).fold(f64::INFINITY, f64::min)
}

/// Prints a figure. It is not asserted, because other work of the machine would make it fail.
fn tell(what: &str, nixbox: f64, bare: f64) {
    println!(
        "FIGURE {what}: {nixbox:.0} ms; bare calls {bare:.0} ms; ratio {:.2}, wanted {WANTED}",
        nixbox / bare
    );
}

/// Prints how long each transition of the last operation took.
pub(super) fn tell_stages(workspace: &Workspace) {
    for line in workspace.ok(&["journal"]).stdout.lines() {
        println!("FIGURE {line}");
    }
}

/// The VM has shares, and the bare calls start daemons for them too. The warm start is also compared with a cold boot of
/// the same guest, which runs no slow service: what a real guest does after its boot comes on top of the cold boot alone.
pub(super) fn a_warm_start_takes_little_longer_than_the_bare_calls() {
    let workspace = Workspace::new("warm-start");
    let to_ready = |arguments: &[&str]| {
        best(|| {
            let said = workspace.ok(&[arguments, &["--json", "--timings"]].concat());
            said.stderr.lines().for_each(|line| println!("FIGURE {line}"));
            workspace.ok(&["down"]);
            milliseconds(&said.json(), "ready_ms")
        })
    };
    let cold = to_ready(&["up"]);
    workspace.ok(&["up"]);
    let frozen = workspace.ok(&["snapshot", "--stop", "--json"]).json();
    let ready = to_ready(&["up", "--snapshot"]);
    println!("FIGURE warm start: {ready:.0} ms; cold boot {cold:.0} ms; ratio {:.2}", ready / cold);
    workspace.assert_down();
    tell("up --snapshot to SSH-ready", ready, best(|| bare(&workspace, "restore", &frozen)));
}

/// Without shares: those that this version would leave hanging have to go over to a new VMM, which no bare call does.
pub(super) fn the_guest_is_paused_little_longer_than_by_the_bare_calls() {
    let workspace = Workspace::new("pause");
    let text = Workspace::configuration("");
    let (head, rest) = text.split_once("[[mounts]]").unwrap();
    let (_, tail) = rest.split_once("[guest]").unwrap();
    workspace.configure(&format!("mounts = []\n{head}[guest]{tail}"));
    let cold = milliseconds(&workspace.ok(&["up", "--json"]).json(), "ready_ms");
    let mut frozen = Value::Null;
    let paused = best(|| {
        frozen = workspace.ok(&["snapshot", "--json"]).json();
        tell_stages(&workspace);
        milliseconds(&frozen, "paused_ms")
    });
    workspace.ok(&["down"]);
    println!("FIGURE pause: {paused:.0} ms; cold boot {cold:.0} ms; ratio {:.2}", paused / cold);
    tell("paused by `snapshot`", paused, best(|| bare(&workspace, "pause", &frozen)));
}

/// What is checked before the guest of a VM of 1 GiB, a third of it in use, is touched. The guest runs meanwhile.
pub(super) fn the_checks_of_a_snapshot_take_a_small_part_of_it() {
    const WANTED: f64 = 0.1;
    let workspace = Workspace::new("checks");
    workspace.configure(&Workspace::configuration("").replace("192MiB", "1GiB"));
    workspace.ok(&["up"]);
    workspace.guest("head -c 350000000 /dev/urandom > /tmp/fill");
    let ratio = best(|| {
        let since = Instant::now();
        let said = workspace.ok(&["snapshot", "--json"]).json();
        let whole = since.elapsed().as_secs_f64() * 1000.0;
        let checks = milliseconds(&said, "checks_ms");
        println!("FIGURE checks of a live snapshot: {checks:.0} ms of {whole:.0} ms");
        checks / whole
    });
    println!("FIGURE checks of a live snapshot: ratio {ratio:.3}, wanted {WANTED}");
    workspace.ok(&["down"]);
    workspace.assert_down();
}
