//! `-v`, `NIXBOX_LOG` and `--timings`.

use crate::workspace::{SECRET, TYPED, Workspace};

#[test]
fn each_request_program_and_script_is_shown_with_its_time_and_no_secret_is() {
    let workspace = Workspace::new("simulator-v53", true);
    let up = workspace.ok(&["-v", "up", "--json"]);
    for part in [
        "checks (",
        "> request vm.create 204 (",
        "apply network (",
        "> script put credentials into the guest",
    ] {
        let lines = up.stderr.lines().filter(|line| line.starts_with("nixbox: [") && line.ends_with(" ms)"));
        assert!(lines.into_iter().any(|line| line.contains(part)), "{part}: {up:?}");
    }
    assert!(up.json()["times"]["ready_ms"].is_u64(), "stdout is for the result: {up:?}");
    workspace.guest(&format!("echo '{TYPED}' > ~/.bash_history"));
    let mut said = up.stderr;
    for arguments in [&["-vv", "snapshot"][..], &["-vv", "run", "-e", "TOKEN", "true"], &["-vv", "down"]] {
        let told = workspace.command(arguments).env("TOKEN", SECRET).output().unwrap();
        assert!(told.status.success());
        said += &String::from_utf8(told.stderr).unwrap();
    }
    assert!(said.contains("request vm.snapshot") || said.contains("request vm.pause"), "{said}");
    assert!(!said.contains(SECRET) && !said.contains(TYPED), "{said}");
    assert!(!workspace.check());
}

#[test]
fn the_variable_chooses_parts_and_a_wrong_one_is_refused_before_anything_is_done() {
    let workspace = Workspace::new("simulator-v53", false);
    let with = |value: &str, arguments: &[&str]| {
        workspace.command(arguments).env("NIXBOX_LOG", value).output().unwrap()
    };
    for wrong in ["loud", "vmm=loud", "=debug,x"] {
        let refused = with(wrong, &["up"]);
        assert_eq!(refused.status.code(), Some(2));
        assert!(String::from_utf8(refused.stderr).unwrap().contains("NIXBOX_LOG"));
        assert_eq!(workspace.status_text("state"), "down");
    }
    let chosen = with("vmm=debug", &["up"]);
    let told = String::from_utf8(chosen.stderr).unwrap();
    assert!(told.contains("request vm.boot 204"), "{told}");
    assert!(!told.contains("program") && !told.contains("script ask"), "{told}");
    // What a command of the guest is told is not for nixbox.
    assert_eq!(workspace.ok(&["run", "echo", "-v", "--timings"]).stdout, "-v --timings\n");
    let quiet = with("", &["status"]);
    assert!(!String::from_utf8(quiet.stderr).unwrap().contains("request"));
    workspace.ok(&["down"]);
}

#[test]
fn timings_show_what_a_command_waited_for_also_if_it_fails() {
    let workspace = Workspace::new("simulator-v53", false);
    let up = workspace.ok(&["up", "--quiet", "--timings=json"]);
    let [line] = up.stderr.lines().collect::<Vec<_>>()[..] else { panic!("{up:?}") };
    let timings: serde_json::Value = serde_json::from_str(line).unwrap();
    let parts = timings["parts"].as_array().unwrap();
    let load = parts.iter().find(|part| part["what"] == "apply boot").unwrap_or_else(|| panic!("{line}"));
    assert_eq!(load["critical"], true, "{line}");
    let sum: f64 = parts
        .iter()
        .filter(|part| part["depth"] == 0 && part["critical"] == true)
        .map(|part| part["took_ms"].as_f64().unwrap())
        .sum();
    let whole = timings["took_ms"].as_f64().unwrap();
    assert!(sum > 0.0 && sum <= whole, "parts that were waited for cannot overlap: {sum} of {whole}");
    let failed = workspace.run(&["snapshot", "verify", "nothing", "--timings"]);
    assert_eq!(failed.code, Some(3));
    assert!(failed.stderr.contains("the whole command"), "{failed:?}");
    let wrong = workspace.run(&["down", "--timings=xml"]);
    assert_eq!((wrong.code, workspace.status_text("state")), (Some(2), "running".to_owned()));
    workspace.ok(&["down", "--timings"]);
}
