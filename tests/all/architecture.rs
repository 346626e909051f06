//! The house rules, held by a test: who may use whom, how long a file may be, where unsafe code and bincode live.

use std::fs;
use std::path::{Path, PathBuf};

/// Which modules of the crate each module may name. What is not listed is below all of them.
const MAY_USE: [(&str, &[&str]); 13] = [
    ("engine", &["engine"]),
    ("world", &["engine", "world"]),
    ("files", &["world", "files"]),
    ("operations", &["engine", "world", "operations"]),
    ("host", &["world", "files", "host", "store", "config"]),
    ("vmm", &["world", "host", "vmm"]),
    ("guest", &["world", "guest"]),
    ("store", &["engine", "world", "files", "store"]),
    ("config", &["world", "config", "guest", "files"]),
    ("workspace", &["world", "config", "files", "host", "workspace"]),
    ("fakes", &["engine", "world", "operations", "fakes"]),
    ("simulator", &["world", "guest", "simulator"]),
    (
        "cli",
        &[
            "engine",
            "world",
            "files",
            "operations",
            "host",
            "vmm",
            "guest",
            "store",
            "config",
            "workspace",
            "simulator",
            "cli",
        ],
    ),
];

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn module_of(path: &Path) -> String {
    let inner = path.strip_prefix(root().join("src")).unwrap();
    inner.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// The code of a file, without its comments and without the tests at its end.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests")
        || path.file_name().is_some_and(|name| name == "tests.rs" || name == "testing.rs")
}

#[test]
fn every_module_uses_only_what_is_below_it() {
    let mut seen = Vec::new();
    for path in sources(&root().join("src")).into_iter().filter(|path| !is_test(path)) {
        let module = module_of(&path);
        let Some((_, may)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
            assert!(["lib", "main"].contains(&module.as_str()), "{module} has no place in the house");
            continue;
        };
        for used in code(&path).split("crate::").skip(1) {
            let used: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            assert!(
                used.is_empty() || may.contains(&used.as_str()),
                "{} uses {used}, which {module} may not",
                path.display()
            );
        }
        seen.push(module);
    }
    for (module, _) in MAY_USE {
        assert!(seen.iter().any(|seen| seen == module), "the rule names {module}, which is not there");
    }
}

#[test]
fn no_file_is_more_than_one_room() {
    for directory in ["src", "tests", "fuzz/fuzz_targets"] {
        for path in sources(&root().join(directory)) {
            let lines = fs::read_to_string(&path).unwrap().lines().count();
            // About 500 is a room. Tables of cases may be longer than code.
            let most = if is_test(&path) { 660 } else { 550 };
            assert!(lines <= most, "{} has {lines} lines", path.display());
        }
    }
}

#[test]
fn bincode_is_known_to_one_module() {
    for path in sources(&root().join("src")) {
        let known = code(&path).contains("bincode::");
        assert_eq!(known, path.ends_with("engine/record.rs"), "{}", path.display());
    }
}

#[test]
fn unsafe_code_has_its_rooms() {
    for path in sources(&root().join("src")) {
        let allowed = ["host/ioctl.rs", "host/spawn.rs"].iter().any(|room| path.ends_with(room));
        assert!(allowed || !code(&path).contains("unsafe {"), "{}", path.display());
    }
}

#[test]
fn the_engine_does_no_io() {
    for path in sources(&root().join("src/engine")) {
        for forbidden in
            ["std::fs", "std::net", "std::process", "tokio::fs", "tokio::net", "rustix", "println!"]
        {
            assert!(!code(&path).contains(forbidden), "{} uses {forbidden}", path.display());
        }
    }
}
