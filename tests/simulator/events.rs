//! `--events`: what happens, for programs.

use serde_json::Value;

use crate::workspace::{SECRET, Said, Workspace};

fn events(said: &Said) -> Vec<Value> {
    let parsed = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let events: Vec<Value> = said.stdout.lines().map(parsed).collect();
    assert_eq!((&events[0]["event"], &events[0]["format"]), (&"start".into(), &1.into()), "{said:?}");
    assert!(!said.stdout.contains(SECRET));
    events
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event"].as_str().unwrap()).collect()
}

#[test]
fn an_operation_is_told_from_its_beginning_to_its_result() {
    let workspace = Workspace::new("simulator-v53", true);
    let up = workspace.ok(&["up", "--events"]);
    assert_eq!(up.stderr, "", "stdout has all of it");
    let told = events(&up);
    let begun = told.iter().find(|event| event["event"] == "begun").unwrap();
    assert_eq!((&begun["operation"], &begun["recovery"]), (&"up".into(), &false.into()));
    let boot = |kind: &str| {
        told.iter().position(|event| event["event"] == kind && event["transition"] == "boot").unwrap()
    };
    assert!(boot("acts") < boot("done"));
    assert!(told[boot("done")]["took_ms"].is_u64());
    let last = told.last().unwrap();
    assert_eq!((&last["event"], &last["result"]["result"]), (&"result".into(), &"done".into()));
    assert_eq!(told[told.len() - 2]["ended"], "done");
    let snapshot = events(&workspace.ok(&["snapshot", "--name", "warm", "--stop", "--events"]));
    assert_eq!(snapshot.last().unwrap()["result"]["snapshot"]["name"], "warm");
    // The end of a copy is always told, and bytes are never more than all of them.
    let copies: Vec<_> = snapshot.iter().filter(|event| event["event"] == "progress").collect();
    assert!(copies.iter().any(|copy| copy["done"] == copy["total"]), "{copies:?}");
    assert!(copies.iter().all(|copy| copy["done"].as_u64() <= copy["total"].as_u64()), "{copies:?}");
    assert!(!workspace.check());
}

#[test]
fn a_failure_is_the_last_event_and_has_the_exit_code_and_the_hint() {
    let workspace = Workspace::new("simulator-v53", false);
    let refused = workspace.run(&["snapshot", "--events"]);
    let told = events(&refused);
    assert_eq!(kinds(&told), ["start", "error"]);
    let error = told.last().unwrap();
    assert_eq!((refused.code, &error["exit"]), (Some(3), &3.into()));
    assert!(error["errors"][0].as_str().unwrap().contains("no VM"), "{error}");
    assert!(refused.stderr.starts_with("nixbox: "), "people read it too: {refused:?}");
    // A script that fails before the VM starts rolls the operation back.
    let config = workspace.nixbox().join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text + "\n[hooks]\npre-up = [\"exit 3\"]\n").unwrap();
    let failed = workspace.run(&["up", "--trust", "--events"]);
    let told = events(&failed);
    assert_eq!(failed.code, Some(1), "{failed:?}");
    let position = |kind: &str| {
        kinds(&told).iter().position(|one| *one == kind).unwrap_or_else(|| panic!("{kind}: {told:?}"))
    };
    assert!(position("failure") < position("ended"));
    assert_eq!(told[position("ended")]["ended"], "rolled-back");
    assert_eq!((&told.last().unwrap()["event"], &told.last().unwrap()["exit"]), (&"error".into(), &1.into()));
}
