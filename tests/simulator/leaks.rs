//! A credential that a program of the guest keeps in memory is in no snapshot, and the VM that runs on has it.

use std::fs;

use crate::workspace::{Workspace, count};

const TOKEN: &str = "glpat-simulated0123456789";

fn workspace() -> Workspace {
    let workspace = Workspace::new("simulator", true);
    let config = workspace.nixbox().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("[env]", &format!("[env]\nKEPT = \"{TOKEN}\""))).unwrap();
    workspace.ok(&["up"]);
    workspace.guest(
        ". ~/.env; echo \"$KEPT\" | keep > ~/process; printf %s \"user:$KEPT\" | base64 | keep > ~/header",
    );
    workspace
}

#[test]
fn what_a_program_keeps_is_overwritten_in_the_snapshot_alone() {
    let workspace = workspace();
    workspace.ok(&["snapshot", "--name", "warm"]);
    assert!(count(&workspace.memory_files()[0], TOKEN) > 0, "the VM runs on with it");
    assert!(workspace.check());
    let listed = workspace.ok(&["snapshot", "inspect", "warm", "--json"]).json();
    let snapshot = workspace.state().join("snapshots").join(listed["snapshot"]["id"].to_string());
    for file in fs::read_dir(&snapshot).unwrap().map(|entry| entry.unwrap().path()) {
        assert_eq!(count(&file, TOKEN), 0, "{}", file.display());
    }
    assert_eq!(listed["snapshot"]["credentials"], "redacted", "{listed}");
    let forms: Vec<&str> = listed["receipt"]["found"]
        .as_array()
        .unwrap()
        .iter()
        .map(|found| found["form"].as_str().unwrap())
        .collect();
    assert_eq!(forms, ["base64", "plain bytes"], "{listed}");
    workspace.ok(&["snapshot", "verify", "warm", "--deep"]);

    workspace.ok(&["restore", "warm", "--replace"]);
    let stars = "*".repeat(TOKEN.len());
    assert_eq!(
        workspace.guest("keep --end $(cat ~/process); . ~/.env; echo $KEPT"),
        format!("{stars}\n{TOKEN}\n")
    );
    workspace.ok(&["down"]);
}

#[test]
fn with_fail_no_snapshot_is_made_and_the_guest_keeps_everything() {
    let workspace = workspace();
    let config = workspace.nixbox().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text + "\n[snapshot]\non-leak = \"fail\"\n").unwrap();
    let said = workspace.run(&["snapshot"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("KEPT in RAM") && !said.stderr.contains(TOKEN), "{said:?}");
    assert!(workspace.check());
    assert_eq!(fs::read_dir(workspace.state().join("snapshots")).unwrap().count(), 0);
    assert_eq!(workspace.guest("keep --end $(cat ~/process)"), format!("{TOKEN}\n"));
    workspace.ok(&["down"]);
}

/// nixbox never gave these to the guest. It knows the one from the file that the wipe takes, and counts the other.
#[test]
fn what_docker_login_keeps_is_overwritten_and_what_looks_like_a_token_is_counted() {
    const LOGIN: &str = "dckr_pat_16C7e42F292c6912E7710c8383";
    const OTHER: &str = "npm_16C7e42F292c6912E7710c838347Ae178B4a";
    let workspace = workspace();
    workspace.guest(&format!(
        "mkdir -p ~/.docker; printf '{{\"password\": \"%s\"}}' {LOGIN} > ~/.docker/config.json
         echo {LOGIN} | keep > ~/client; echo {OTHER} | keep > ~/other"
    ));
    workspace.ok(&["snapshot", "--name", "warm"]);
    assert!(workspace.check());
    let file = workspace.guest("cat ~/.docker/config.json");
    assert!(file.contains(LOGIN), "the VM runs on with it: {file}");
    let inspected = workspace.ok(&["snapshot", "inspect", "warm", "--json"]).json();
    let snapshot = workspace.state().join("snapshots").join(inspected["snapshot"]["id"].to_string());
    assert_eq!(count(&snapshot.join("memory.img"), LOGIN), 0);
    let receipt = &inspected["receipt"];
    let found = receipt["found"].as_array().unwrap();
    let of_login = |found: &serde_json::Value| {
        found["value"].as_str().unwrap().ends_with(".docker/config.json of the guest")
    };
    assert!(found.iter().any(of_login), "{receipt}");
    let warning = serde_json::json!({ "kind": "tokens of npm", "place": "RAM", "count": 1 });
    assert!(receipt["warnings"].as_array().unwrap().contains(&warning), "{receipt}");
    assert!(!inspected.to_string().contains(OTHER), "a token is never printed");
    workspace.ok(&["down"]);
}
