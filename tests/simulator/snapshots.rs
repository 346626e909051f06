//! What a person does with snapshots that are there: other names, notes, and deletion.

use std::fs;

use crate::workspace::Workspace;

fn listed(workspace: &Workspace) -> Vec<serde_json::Value> {
    workspace.ok(&["snapshot", "list", "--json"]).json().as_array().unwrap().clone()
}

#[test]
fn a_snapshot_gets_another_name_and_a_note() {
    let workspace = Workspace::new("simulator", false);
    workspace.ok(&["up"]);
    workspace.ok(&["snapshot", "--name", "warm"]);
    workspace.ok(&["snapshot", "--stop"]);
    let (first, second) = (listed(&workspace)[0]["id"].to_string(), listed(&workspace)[1]["id"].to_string());

    workspace.ok(&["snapshot", "note", "warm", "after the update"]);
    workspace.ok(&["snapshot", "rename", "warm", "cold"]);
    workspace.ok(&["snapshot", "rename", &second, "warm"]);
    assert_eq!(workspace.ok(&["snapshot", "note", "cold"]).stdout, "after the update\n");
    assert_eq!(workspace.ok(&["snapshot", "note", "warm", "--json"]).json()["note"], serde_json::Value::Null);
    let list = listed(&workspace);
    assert_eq!((&list[0]["name"], &list[0]["note"]), (&"cold".into(), &"after the update".into()));
    assert_eq!(list[1]["name"], "warm");
    let text = workspace.ok(&["snapshot", "list"]).stdout;
    assert!(text.contains(" AGE ") && text.contains("  after the update\n"), "{text}");
    assert!(workspace.ok(&["snapshot", "inspect", "cold"]).stdout.contains("after the update"));
    workspace.ok(&["snapshot", "verify", "cold"]);

    for (arguments, code, words) in [
        (&["rename", "cold", "warm"][..], 1, "a snapshot named warm exists"),
        (&["rename", "nothing", "x"], 3, "there is no snapshot nothing"),
        (&["rename", "cold", "12"], 2, "digits only"),
        (&["rename", "cold", "a/b"], 2, "cannot name a snapshot"),
        (&["rename", "cold", &"n".repeat(65)], 2, "cannot name a snapshot"),
        (&["rename", "cold", "a\nb"], 2, "cannot name a snapshot"),
        (&["rename", "cold", "-x"], 2, "-x"),
        (&["rename", "cold"], 2, "<NAME>"),
        (&["note", "nothing"], 3, "there is no snapshot nothing"),
        (&["note", "cold", "a\u{1b}[2Jb"], 2, "cannot be a note"),
        (&["note", "cold", ""], 2, "cannot be a note"),
        (&["note", "cold", &"n".repeat(1001)], 2, "cannot be a note"),
        (&["note", "cold", "x", "--clear"], 2, "--clear"),
    ] {
        let refused = workspace.run(&[&["snapshot"], arguments].concat());
        assert!(refused.code == Some(code) && refused.stderr.contains(words), "{arguments:?}: {refused:?}");
    }
    assert_eq!(listed(&workspace), list);

    // The new names are those that a restore and an `up` know.
    workspace.ok(&["restore", "cold"]);
    workspace.ok(&["down"]);
    let up = workspace.ok(&["up", "--snapshot", "warm", "--json"]);
    assert!(up.stdout.contains("warm"), "{up:?}");
    workspace.ok(&["snapshot", "note", "cold", "--clear"]);
    let none = workspace.ok(&["snapshot", "note", "cold"]);
    assert!(none.stdout.is_empty() && none.stderr.contains("has no note"), "{none:?}");

    // A label that cannot be read is said, and costs the name alone.
    let label = workspace.state().join("snapshots").join(&first).join("label.json");
    fs::write(&label, r#"{"format": 2}"#).unwrap();
    let told = workspace.ok(&["snapshot", "list"]).stdout;
    assert!(told.contains("damaged") && told.contains("a newer nixbox wrote it"), "{told}");
    assert_eq!(workspace.run(&["snapshot", "inspect", "cold"]).code, Some(3));
    let newer = workspace.run(&["snapshot", "rename", &first, "mine"]);
    assert!(newer.code == Some(1) && newer.stderr.contains("stay as they were"), "{newer:?}");
    workspace.ok(&["down"]);
    workspace.ok(&["restore", &first]);
    fs::write(&label, "half").unwrap();
    workspace.ok(&["snapshot", "rename", &first, "mine"]);
    assert_eq!(listed(&workspace)[0]["name"], "mine");
    workspace.ok(&["down"]);
    workspace.ok(&["snapshot", "delete", "mine"]);
    assert_eq!(listed(&workspace).len(), 1);
    workspace.check();
}

#[test]
fn a_deletion_without_a_name_takes_the_only_snapshot_and_does_not_guess() {
    let workspace = Workspace::new("simulator", false);
    let none = workspace.run(&["snapshot", "delete"]);
    assert!(none.code == Some(3) && none.stderr.contains("there is no snapshot"), "{none:?}");
    workspace.ok(&["up"]);
    workspace.ok(&["snapshot", "--name", "warm"]);
    workspace.ok(&["snapshot", "--stop"]);
    for arguments in [&["snapshot", "delete"][..], &["snapshot", "--delete"]] {
        let refused = workspace.run(arguments);
        assert!(refused.code == Some(2) && refused.stderr.contains("(warm), "), "{refused:?}");
        assert!(refused.stderr.contains("nothing was deleted"), "{refused:?}");
    }
    workspace.ok(&["snapshot", "--delete", "warm"]);
    // The only one, damaged or not.
    let id = listed(&workspace)[0]["id"].to_string();
    fs::write(workspace.state().join("snapshots").join(id).join("manifest.json"), "").unwrap();
    workspace.ok(&["snapshot", "--delete"]);
    assert!(listed(&workspace).is_empty());
    workspace.check();
}

#[test]
fn a_name_of_several_snapshots_is_refused_with_their_numbers() {
    let workspace = Workspace::new("simulator", false);
    workspace.ok(&["up"]);
    workspace.ok(&["snapshot"]);
    workspace.ok(&["snapshot", "--stop"]);
    let numbers: Vec<String> = listed(&workspace).iter().map(|one| one["id"].to_string()).collect();
    workspace.ok(&["snapshot", "rename", &numbers[0], "warm"]);
    let label = |number: &String| workspace.state().join("snapshots").join(number).join("label.json");
    fs::copy(label(&numbers[0]), label(&numbers[1])).unwrap();
    let list = listed(&workspace);
    assert_eq!((&list[0]["name"], &list[1]["name"]), (&"warm".into(), &"warm".into()));

    let both = numbers.join(", ");
    for arguments in [
        &["up", "--snapshot", "warm"][..],
        &["restore", "warm"],
        &["snapshot", "inspect", "warm"],
        &["snapshot", "verify", "warm"],
        &["snapshot", "rename", "warm", "cold"],
        &["snapshot", "note", "warm"],
        &["snapshot", "note", "warm", "a note"],
        &["snapshot", "delete", "warm"],
        &["snapshot", "--delete", "warm"],
    ] {
        let refused = workspace.run(arguments);
        assert_eq!(refused.code, Some(2), "{arguments:?}: {refused:?}");
        for words in [format!("several snapshots have the name warm: {both}"), "number".to_owned()] {
            assert!(refused.stderr.contains(&words), "{arguments:?}: {refused:?}");
        }
    }
    assert_eq!(listed(&workspace), list);
    assert_eq!(workspace.status_text("state"), "down");

    // A VM that runs is not brought down for it.
    workspace.ok(&["restore", &numbers[1]]);
    assert_eq!(workspace.run(&["restore", "warm", "--replace"]).code, Some(2));
    assert_eq!(workspace.status_text("state"), "running");
    workspace.ok(&["down"]);

    // The way out: a number means its snapshot.
    workspace.ok(&["snapshot", "rename", &numbers[1], "cold"]);
    workspace.ok(&["up", "--snapshot", "warm"]);
    workspace.ok(&["down"]);
    workspace.check();
}

#[test]
fn two_snapshots_are_compared_by_their_manifests() {
    let workspace = Workspace::new("simulator-v53", true);
    workspace.ok(&["up"]);
    workspace.ok(&["snapshot", "--name", "first", "--stop"]);
    let config = workspace.nixbox().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    assert!(text.contains("vcpus = 1"), "{text}");
    fs::write(&config, text.replace("vcpus = 1", "vcpus = 2")).unwrap();
    workspace.ok(&["up"]);
    workspace.ok(&["snapshot", "--name", "second"]);
    workspace.ok(&["snapshot"]);
    let third = listed(&workspace)[2]["id"].to_string();

    let diff = workspace.ok(&["snapshot", "diff", "first", "second", "--json"]).json();
    let differs = |key: &str| {
        let all = diff["differences"].as_array().unwrap();
        all.iter().find(|one| one["key"] == key).unwrap_or_else(|| panic!("{key}: {diff}")).clone()
    };
    assert_eq!((&differs("vm.vcpus")["from"], &differs("vm.vcpus")["to"]), (&"1".into(), &"2".into()));
    assert_ne!(differs("guest's boot")["from"], differs("guest's boot")["to"]);
    let same = diff["same"].as_array().unwrap();
    for key in ["vm.memory", "vm.kernel", "vm.cmdline", "mounts.0", "guest.user", "VMM", "slot"] {
        assert!(same.contains(&key.into()), "{key}: {diff}");
    }
    assert!(diff["milliseconds_between"].as_i64().unwrap() > 0, "{diff}");
    let files = diff["files"].as_array().unwrap();
    assert!(
        files.iter().any(|file| file["name"] == "memory.img" && file["content"] == "different"),
        "{diff}"
    );
    assert_eq!((&diff["from"]["fits"], &diff["to"]["fits"]), (&false.into(), &true.into()));
    assert!(diff["from"]["why"].as_str().unwrap().contains("vm.vcpus was \"1\""), "{diff}");
    assert_eq!(diff["to"]["why"], serde_json::Value::Null);

    let told = workspace.ok(&["snapshot", "diff", &third, "first"]).stdout;
    for words in [
        "(first) was made ",
        &format!("before snapshot {third}\n"),
        "  vm.vcpus: \"2\" -> \"1\"\n",
        "(first) does not fit: vm.vcpus was \"1\" and is \"2\" now",
        &format!("snapshot {third} fits this host and the configuration"),
    ] {
        assert!(told.contains(words), "{words:?} is not in {told}");
    }
    // Two moments of one guest.
    let told = workspace.ok(&["snapshot", "diff", "second", &third]).stdout;
    assert!(told.contains("guest's boot, ") && !told.contains("vm.vcpus: "), "{told}");

    let second = listed(&workspace)[1]["id"].to_string();
    let refuse = |arguments: &[&str], code, words: &str| {
        let refused = workspace.run(&[&["snapshot", "diff"], arguments].concat());
        assert!(refused.code == Some(code) && refused.stderr.contains(words), "{arguments:?}: {refused:?}");
        assert!(refused.stdout.is_empty(), "{refused:?}");
    };
    refuse(&["first", "nothing"], 3, "there is no snapshot nothing");
    refuse(&["nothing", "first"], 3, "there is no snapshot nothing");
    refuse(&["second", &second], 2, &format!("both are snapshot {second}"));
    refuse(&["first"], 2, "<TO>");
    refuse(&["first", "second", &third], 2, &third);
    refuse(&["first", "a/b"], 2, "a/b");

    // With a configuration that cannot be read it is not known what fits, and the comparison goes on.
    fs::write(&config, "vm = 1").unwrap();
    let diff = workspace.ok(&["snapshot", "diff", "first", "second", "--json"]).json();
    assert_eq!(diff["from"]["fits"], serde_json::Value::Null);
    assert!(diff["from"]["why"].as_str().unwrap().contains("config.toml"), "{diff}");
    let told = workspace.ok(&["snapshot", "diff", "first", "second"]).stdout;
    assert!(told.contains("(first) may fit, which cannot be told: "), "{told}");
    fs::write(&config, text).unwrap();

    let manifest = workspace.state().join("snapshots").join(&second).join("manifest.json");
    let bytes = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, bytes.replacen("second", "sEcond", 1)).unwrap();
    refuse(&["first", &second], 1, &format!("snapshot {second} is damaged"));
    refuse(&[&second, "first"], 1, "its check does not fit");
    fs::write(&manifest, bytes).unwrap();
    workspace.ok(&["down"]);
    workspace.check();
}

#[test]
fn old_snapshots_and_those_that_occupy_too_much_are_pruned_by_the_next_one() {
    let workspace = Workspace::new("simulator", false);
    let config = workspace.nixbox().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let limit = |line: &str| fs::write(&config, format!("{text}\n[snapshot]\n{line}\n")).unwrap();
    let snapshot = |arguments: &[&str]| {
        let made = workspace.ok(&[&["snapshot", "--json"], arguments].concat()).json();
        (made["snapshot"]["id"].as_u64().unwrap(), made["pruned"].clone(), made["above_keep_size"].clone())
    };
    let ids = || listed(&workspace).iter().map(|one| one["id"].as_u64().unwrap()).collect::<Vec<_>>();
    let none = (serde_json::json!([]), serde_json::Value::Null);
    workspace.ok(&["up"]);
    let (old, ..) = snapshot(&[]);
    let (named, ..) = snapshot(&["--name", "warm"]);
    let (young, ..) = snapshot(&[]);
    for id in [old, named] {
        let path = workspace.state().join("snapshots").join(id.to_string()).join("manifest.json");
        let mut manifest = nixbox::store::manifest::decode(&fs::read(&path).unwrap()).unwrap();
        manifest.created_ms -= 15 * 86_400_000;
        fs::write(&path, nixbox::store::manifest::encode(&manifest).unwrap()).unwrap();
    }
    limit("keep-for = \"16d\"\nkeep-size = \"1TiB\"");
    let (second, pruned, above) = snapshot(&[]);
    assert_eq!((pruned, above), none);
    limit("keep-for = \"14d\"");
    let (third, pruned, above) = snapshot(&[]);
    assert_eq!((pruned, above), (serde_json::json!([old]), none.1.clone()));
    assert_eq!(ids(), [named, young, second, third]);

    // The strictest limit leaves what is never pruned, also when the VM is not left running, and says so.
    workspace.ok(&["down"]);
    workspace.ok(&["restore", &young.to_string()]);
    limit("keep-size = \"1B\"");
    let (last, pruned, above) = snapshot(&["--stop"]);
    assert_eq!(pruned, serde_json::json!([second, third]));
    assert!(above.as_u64().unwrap() > 1, "{above}");
    assert_eq!(ids(), [named, young, last]);
    workspace.ok(&["up", "--snapshot"]);
    let told = workspace.ok(&["snapshot"]).stderr;
    assert!(told.contains(&format!("; pruned {young}; the snapshots occupy ")), "{told}");
    assert!(told.contains("more than snapshot.keep-size, and none of them may be pruned"), "{told}");
    assert_eq!(ids().len(), 3);
    workspace.ok(&["snapshot", "verify", "warm"]);

    for line in [
        "keep-for = \"14\"",
        "keep-for = \"\"",
        "keep-for = 14",
        "keep-for = \"1000000d\"",
        "keep-size = \"50G\"",
        "keep-size = \"0B\"",
        "keep-size = \"-1GiB\"",
        "keep_size = \"50GiB\"",
    ] {
        limit(line);
        let refused = workspace.run(&["snapshot"]);
        assert_eq!(refused.code, Some(2), "{line}: {refused:?}");
        assert!(refused.stderr.contains("keep-"), "{line}: {refused:?}");
    }
    limit("keep-for = \"2 d\"\nkeep-size = \"3 GiB\"");
    let shown = workspace.ok(&["config"]).stdout;
    assert!(shown.contains("snapshot.keep-for = \"2d\"\n"), "{shown}");
    assert_eq!(ids().len(), 3);
    workspace.ok(&["down"]);
    workspace.check();
}

#[test]
fn the_list_shows_what_each_snapshot_occupies_and_whether_it_fits() {
    use std::os::unix::fs::MetadataExt as _;

    let workspace = Workspace::new("simulator", false);
    workspace.ok(&["up"]);
    workspace.ok(&["snapshot", "--name", "warm"]);
    workspace.ok(&["snapshot", "--stop"]);
    let list = listed(&workspace);
    let snapshot = |index: usize| workspace.state().join("snapshots").join(list[index]["id"].to_string());
    for (index, one) in list.iter().enumerate() {
        let files = fs::read_dir(snapshot(index)).unwrap();
        let blocks: u64 = files.map(|file| file.unwrap().metadata().unwrap().blocks()).sum();
        assert_eq!(one["occupied_bytes"], blocks * 512, "{one}");
        assert_eq!((&one["fits"], &one["why"]), (&true.into(), &serde_json::Value::Null), "{one}");
    }
    let told = workspace.ok(&["snapshot", "list"]).stdout;
    let occupied = indicatif::HumanBytes(list[0]["occupied_bytes"].as_u64().unwrap()).to_string();
    assert!(told.contains("SIZE    OCCUPIES  CREDENTIALS") && told.contains(&occupied), "{told}");

    // What does not fit says why, and a damaged snapshot still says what it occupies.
    let config = workspace.nixbox().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("vcpus = 1", "vcpus = 2")).unwrap();
    fs::write(snapshot(1).join("manifest.json"), "").unwrap();
    let list = listed(&workspace);
    assert_eq!(list[0]["fits"], false);
    assert!(list[0]["why"].as_str().unwrap().contains("vm.vcpus was"), "{list:?}");
    assert!(list[1]["damaged"].is_string() && list[1].get("fits").is_none(), "{list:?}");
    assert!(list[1]["occupied_bytes"].as_u64().unwrap() > 0, "{list:?}");
    workspace.ok(&["snapshot", "delete", &list[1]["id"].to_string()]);
    workspace.check();
}
