//! How much longer nixbox takes than the bare calls that it cannot do without, both in one run on one host.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::outside;
use crate::room::Room;

/// Of each the best of so many: what is measured is the work, and not what else the machine was doing.
const ROUNDS: usize = 2;
/// The most that nixbox is to take, times the bare calls.
const WANTED: f64 = 1.25;

fn milliseconds(said: &Value, what: &str) -> f64 {
    said["times"][what].as_f64().unwrap_or_else(|| panic!("no {what} in {said}"))
}

fn bare(room: &Room, what: &str, frozen: &Value) -> f64 {
    let snapshot = room.path.join(".nixbox/snapshots").join(frozen["snapshot"]["id"].to_string());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nested/bare");
    let key: PathBuf = room.path.join("key");
    let arguments = [what, snapshot.to_str().unwrap(), key.to_str().unwrap()];
    let said = outside::must(script.to_str().unwrap(), &arguments);
    said.trim().parse().unwrap_or_else(|_| panic!("{said:?}"))
}

fn best(value: impl FnMut() -> f64) -> f64 {
    std::iter::repeat_with(value).take(ROUNDS).fold(f64::INFINITY, f64::min)
}

/// Printed and not asserted: a machine that does other things meanwhile would make it fail.
fn tell(what: &str, nixbox: f64, bare: f64) {
    println!(
        "FIGURE {what}: {nixbox:.0} ms; bare calls {bare:.0} ms; ratio {:.2}, wanted {WANTED}",
        nixbox / bare
    );
}

/// With shares, which the bare calls have daemons for too.
pub(super) fn a_warm_start_takes_little_longer_than_the_bare_calls() {
    let room = Room::new("warm-start");
    room.ok(&["up"]);
    let frozen = room.ok(&["snapshot", "--stop", "--json"]).json();
    let ready = best(|| {
        let said = room.ok(&["up", "--snapshot", "--json"]).json();
        room.ok(&["down"]);
        milliseconds(&said, "ready_ms")
    });
    room.assert_down();
    tell("up --snapshot to SSH-ready", ready, best(|| bare(&room, "restore", &frozen)));
}

/// Without shares: those that this version would leave hanging have to go over to a new VMM, which no bare call does.
pub(super) fn the_guest_is_paused_little_longer_than_by_the_bare_calls() {
    let room = Room::new("pause");
    let text = Room::configuration("");
    let (head, rest) = text.split_once("[[mounts]]").unwrap();
    let (_, tail) = rest.split_once("[guest]").unwrap();
    room.configure(&format!("mounts = []\n{head}[guest]{tail}"));
    room.ok(&["up"]);
    let mut frozen = Value::Null;
    let paused = best(|| {
        frozen = room.ok(&["snapshot", "--json"]).json();
        milliseconds(&frozen, "paused_ms")
    });
    room.ok(&["down"]);
    tell("paused by `snapshot`", paused, best(|| bare(&room, "pause", &frozen)));
}
