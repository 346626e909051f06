//! The house rules, held by tests: which layer may use which, that no two files use each other, how long a file may be,
//! and where unsafe code and bincode live.

use std::collections::BTreeSet;
use std::fs;

use crate::sources::{crate_files, files, is_test, repository, uses};

/// The layers, lowest first. A module may use the modules of lower lines and its own, and no others. Two modules in one
/// line know nothing of each other.
const LAYERS: [&[&str]; 12] = [
    &["engine"],
    &["world"],
    &["files"],
    &["config"],
    &["store"],
    &["host"],
    &["vmm", "guest"],
    &["image"],
    &["simulator", "workspace"],
    &["operations"],
    &["fakes"],
    &["cli"],
];

/// What sees the world through the seams of `world` alone, whatever lies below it.
const PURE: [(&str, &[&str]); 2] =
    [("operations", &["engine", "world"]), ("fakes", &["engine", "world", "operations"])];

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

#[test]
fn every_module_uses_only_layers_below_it() {
    let files = crate_files();
    for (index, used) in uses(&files) {
        let file = &files[index];
        let Some(module) = file.module.first() else { continue };
        let layer = layer_of(module).unwrap_or_else(|| panic!("{}: {module} has no layer", file.name));
        for (target, path) in used {
            let Some(other) = files[target].module.first().filter(|other| *other != module) else { continue };
            let below = layer_of(other).is_some_and(|other| other < layer);
            let pure = PURE.iter().find(|(name, _)| name == module);
            let allowed = below && pure.is_none_or(|(_, may)| may.contains(&other.as_str()));
            assert!(allowed, "{} uses {path}, and {module} may not use {other}", file.name);
        }
    }
    for layer in LAYERS.concat() {
        assert!(
            files.iter().any(|file| file.module.first().is_some_and(|first| first == layer)),
            "no module {layer}"
        );
    }
}

/// Files that use each other, directly or around a circle, smallest groups that hold together.
pub(crate) fn cycles() -> Vec<Vec<String>> {
    let files = crate_files();
    let uses = uses(&files);
    let reached = |from: usize| {
        let mut seen = BTreeSet::new();
        let mut open = vec![from];
        while let Some(one) = open.pop() {
            open.extend(uses[&one].iter().map(|(target, _)| *target).filter(|target| seen.insert(*target)));
        }
        seen
    };
    let reached: Vec<BTreeSet<usize>> = (0..files.len()).map(reached).collect();
    let mut found = BTreeSet::new();
    for one in 0..files.len() {
        let circle: BTreeSet<usize> =
            reached[one].iter().copied().filter(|other| reached[*other].contains(&one)).collect();
        if circle.len() > 1 {
            found.insert(circle);
        }
    }
    let names = |circle: BTreeSet<usize>| circle.into_iter().map(|index| files[index].name.clone()).collect();
    found.into_iter().map(names).collect()
}

#[test]
fn no_two_files_use_each_other() {
    let found = cycles();
    assert!(found.is_empty(), "files that use each other, so that none can be read first: {found:#?}");
}

#[test]
fn files_stay_short() {
    for directory in ["src", "tests", "fuzz/fuzz_targets"] {
        for path in files(directory, &["rs"]) {
            let lines = fs::read_to_string(&path).unwrap().lines().count();
            // Tables of test cases may be longer than code.
            let most = if is_test(&path) { 660 } else { 550 };
            assert!(lines <= most, "{} has {lines} lines", path.display());
        }
    }
}

#[test]
fn only_the_record_module_knows_bincode() {
    for file in crate_files() {
        let known = file.code.contains("bincode::");
        assert_eq!(known, file.name == "src/engine/record.rs", "{}", file.name);
    }
}

#[test]
fn unsafe_code_stays_in_the_modules_for_system_calls() {
    for file in crate_files() {
        let modules = [
            "src/host/ioctl.rs",
            "src/host/share_view/seccomp.rs",
            "src/host/spawn.rs",
            "src/host/spawn/entrance.rs",
        ];
        let allowed = modules.contains(&file.name.as_str());
        assert!(allowed || !file.code.contains("unsafe {"), "{}", file.name);
    }
}

#[test]
fn the_engine_does_no_io() {
    for file in crate_files().iter().filter(|file| file.module.first().is_some_and(|first| first == "engine"))
    {
        for forbidden in
            ["std::fs", "std::net", "std::process", "tokio::fs", "tokio::net", "rustix", "println!"]
        {
            assert!(!file.code.contains(forbidden), "{} uses {forbidden}", file.name);
        }
    }
}

/// Each directory of tests has its one list of modules; a file that no list names would never run.
#[test]
fn every_test_file_is_a_module_of_a_test_binary() {
    for path in files("tests", &["rs"]) {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let parent = path.parent().unwrap();
        if ["main", "mod"].contains(&stem) || parent.ends_with("bench") {
            continue;
        }
        let owners = [parent.join("main.rs"), parent.join("mod.rs"), parent.with_extension("rs")];
        let named = owners
            .iter()
            .any(|owner| fs::read_to_string(owner).is_ok_and(|text| text.contains(&format!("mod {stem};"))));
        assert!(named, "no module list names {}", path.strip_prefix(repository()).unwrap().display());
    }
}
