//! `nixbox network` on a VM that runs. The simulator has the host's loopback for a network, so what the rules let through is tested
//! in namespaces (`host/network/tests`).

use std::fs;

use crate::workspace::Workspace;

fn edit(workspace: &Workspace, network: &str) {
    let config = workspace.nixbox().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let kept = text.split("\n# edited\n").next().unwrap();
    fs::write(&config, format!("{kept}\n# edited\n[network]\n{network}\n")).unwrap();
}

fn pending(workspace: &Workspace) -> Vec<String> {
    let edits = workspace.status()["pending_edits"].clone();
    edits.as_array().unwrap().iter().map(|one| one["key"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn an_edit_of_the_network_is_applied_to_the_vm_that_runs() {
    let workspace = Workspace::new("simulator-v53", false);
    let refused = workspace.run(&["network", "reload"]);
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert_eq!(workspace.run(&["network", "log"]).code, Some(3));
    workspace.ok(&["up"]);
    let log = workspace.ok(&["network", "log", "--json"]).json();
    assert_eq!((&log["names"], &log["destinations"]), (&serde_json::Value::Null, &serde_json::json!([])));
    assert!(workspace.ok(&["network", "log"]).stderr.contains("refused nothing"));
    let reload = || workspace.ok(&["network", "reload", "--json"]).json()["result"].clone();
    assert_eq!(reload(), "already");
    for (network, keys) in [
        (
            "mode = \"filtered\"\ndomains = [\"example.com\"]\nports = [443]",
            &["network.domains.0", "network.mode"] as &[&str],
        ),
        ("mode = \"filtered\"\ndomains = [\"example.org\"]\nports = [443]", &["network.domains.0"]),
        ("mode = \"off\"", &["network.mode"]),
    ] {
        edit(&workspace, network);
        let found = pending(&workspace);
        assert!(keys.iter().all(|key| found.iter().any(|one| one == key)), "{network}: {found:?}");
        assert!(workspace.ok(&["status"]).stdout.contains("nixbox network reload"));
        assert_eq!(reload(), "done", "{network}");
        assert_eq!(pending(&workspace), Vec::<String>::new(), "{network}");
        assert_eq!(reload(), "already", "{network}");
    }
    // The VM has it through a roll-over, and what cannot be changed or read changes nothing.
    workspace.ok(&["snapshot"]);
    assert_eq!(pending(&workspace), Vec::<String>::new());
    for (network, code, part) in [
        ("mode = \"off\"\nuplink = \"10.77.0.0/24\"", 2, "network.uplink"),
        ("mode = \"filtered\"\ndomains = [\"no domain\"]", 2, "domain"),
        ("mode = \"some\"", 2, "mode"),
    ] {
        edit(&workspace, network);
        let refused = workspace.run(&["network", "reload"]);
        assert_eq!(refused.code, Some(code), "{network}: {refused:?}");
        assert!(refused.stderr.contains(part), "{network}: {refused:?}");
    }
    edit(&workspace, "mode = \"off\"");
    assert_eq!(pending(&workspace), Vec::<String>::new());
    assert!(workspace.check());
    workspace.ok(&["down"]);
    assert!(!workspace.check());
}

/// A nixbox that is killed anywhere leaves the record of one policy or the other.
#[cfg(feature = "failpoints")]
#[test]
fn a_reload_that_is_killed_is_done_or_not_begun() {
    let workspace = Workspace::new("simulator-v53", false);
    workspace.ok(&["up"]);
    for (at, mode) in (1..).zip(["off", "open"].into_iter().cycle()) {
        edit(&workspace, &format!("mode = \"{mode}\""));
        let killed = workspace.killed_at(&["network", "reload"], at);
        workspace.ok(&["recover"]);
        assert!(pending(&workspace).len() <= 1);
        workspace.ok(&["network", "reload"]);
        assert_eq!(pending(&workspace), Vec::<String>::new());
        if !killed {
            break;
        }
    }
    workspace.ok(&["down"]);
    assert!(!workspace.check());
}
