//! `-C` with a directory, with the name of a workspace and with its id.

use std::fs;

use crate::{CONFIG, TestDirectory};

/// A name that no other workspace of this user has.
fn unusual(word: &str) -> String {
    format!("{word}-{}", std::process::id())
}

/// A workspace in a directory of this name below a directory of its own. Returns its id.
fn workspace(parent: &TestDirectory, name: &str) -> String {
    fs::create_dir(parent.path().join(name)).unwrap();
    parent.ok(&["-C", &format!("./{name}"), "init"]);
    fs::write(parent.path().join(name).join(".nixbox/config.toml"), CONFIG).unwrap();
    let status = parent.ok(&["-C", &format!("{name}/"), "status", "--json"]).json();
    status["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_workspace_is_found_by_its_name_and_its_id_from_everywhere() {
    let (parent, elsewhere) = (TestDirectory::empty(), TestDirectory::empty());
    let name = unusual("named");
    let id = workspace(&parent, &name);
    for word in [name.as_str(), &id] {
        let status = elsewhere.ok(&["-C", word, "status", "--json"]).json();
        assert_eq!(
            (status["id"].as_str(), status["name"].as_str()),
            (Some(id.as_str()), Some(name.as_str()))
        );
    }
    // The name in the configuration is the name.
    let other = unusual("configured");
    let config = parent.path().join(&name).join(".nixbox/config.toml");
    fs::write(&config, format!("name = \"{other}\"\n{CONFIG}")).unwrap();
    elsewhere.ok(&["-C", &other, "status"]);
    elsewhere.run(&["-C", &name, "status"]).failed(3, &[&name, "nixbox list"]);
    // A configuration that cannot be used leaves the name of the directory.
    fs::write(&config, "nonsense").unwrap();
    elsewhere.ok(&["-C", &name, "status"]);
}

#[test]
fn a_directory_that_is_there_is_meant_and_two_of_a_name_are_told_apart_by_a_person() {
    let (one, two, elsewhere) = (TestDirectory::empty(), TestDirectory::empty(), TestDirectory::empty());
    let name = unusual("twice");
    let ids = [workspace(&one, &name), workspace(&two, &name)];
    let paths: Vec<_> = [&one, &two].map(|parent| parent.path().join(&name).display().to_string()).into();
    elsewhere.run(&["-C", &name, "status"]).failed(2, &[&paths[0], &paths[1], "its id"]);
    for (parent, id) in [(&one, &ids[0]), (&two, &ids[1])] {
        let status = parent.ok(&["-C", &name, "status", "--json"]).json();
        assert_eq!(status["id"], id.as_str());
    }
}

#[test]
fn a_value_that_is_neither_is_refused() {
    let directory = TestDirectory::empty();
    for word in ["no-such-workspace-at-all", "./nowhere", "../..//nowhere"] {
        directory.run(&["-C", word, "status"]).failed(3, &[word]);
    }
    directory.run(&["-C", "", "status"]).failed(2, &["a value is required"]);
}
