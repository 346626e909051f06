//! One name has one meaning, and prose says what it means: tests over the text of the crate. The figures that a review of
//! its size asks for are counted here too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::architecture::cycles;
use crate::sources::{crate_files, declared_types, files, repository};

/// Names that several types may have: each file's own alias for its results, and the arguments of one command.
const SHARED: [&str; 2] = ["Arguments", "Result"];

fn homonyms() -> BTreeMap<String, BTreeSet<String>> {
    let files = crate_files();
    let mut by_name: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for declared in declared_types(&files) {
        by_name.entry(declared.name).or_default().push(declared.file);
    }
    by_name
        .into_iter()
        .filter(|(name, places)| places.len() > 1 && !SHARED.contains(&name.as_str()))
        .map(|(name, places)| (name, places.into_iter().collect()))
        .collect()
}

#[test]
fn no_two_types_share_a_name() {
    let found = homonyms();
    assert!(found.is_empty(), "names that mean several types: {found:#?}");
}

/// Turns of phrase that a reader has to decode, each with what to write in its place.
const RIDDLES: [(&str, &str); 9] = [
    ("none of ours", "name the owner: \"another workspace's\""),
    ("all the same", "\"nevertheless\", or the reason"),
    ("but for", "\"except\""),
    ("what of", "\"the part of … that\""),
    ("whoever", "name the process or the person"),
    ("of no use", "\"unusable\", and why"),
    ("for ever", "\"until …\", or \"never returns\""),
    ("is none of", "\"is not one of\""),
    ("one that ", "name the thing"),
];

fn prose_lines() -> Vec<(String, usize, String)> {
    let mut lines = Vec::new();
    let mut add = |name: String, text: &str| {
        lines.extend(text.lines().enumerate().map(|(n, line)| (name.clone(), n + 1, line.to_owned())));
    };
    let root = repository();
    let rust = ["src", "tests", "fuzz/fuzz_targets"].iter().flat_map(|directory| files(directory, &["rs"]));
    let documents = ["README.md", "journal-format.md", "Cargo.toml"].iter().map(|name| root.join(name));
    for path in rust.chain(documents).filter(|path| !path.ends_with("tests/all/names.rs")) {
        add(path.strip_prefix(&root).unwrap().display().to_string(), &fs::read_to_string(&path).unwrap());
    }
    lines
}

#[test]
fn prose_needs_no_decoding() {
    let mut found = Vec::new();
    for (name, number, line) in prose_lines() {
        let lower = line.to_lowercase();
        for (riddle, instead) in RIDDLES {
            // A phrase that is found at the start of sentences only, where it has no noun yet.
            let hit = if riddle == "one that " {
                ["/// ", "//! ", "// ", ". "].iter().any(|start| line.contains(&format!("{start}One that ")))
            } else {
                lower.match_indices(riddle).any(|(at, _)| {
                    !lower[at + riddle.len()..].starts_with(|next: char| next.is_alphanumeric())
                })
            };
            if hit {
                found.push(format!("{name}:{number}: {riddle:?}: {instead}\n    {}", line.trim()));
            }
        }
        let opening =
            ["/// Of ", "//! Of ", "// Of "].iter().any(|start| line.trim_start().starts_with(start));
        if opening {
            found.push(format!(
                "{name}:{number}: begins with \"Of\": name the subject first\n    {}",
                line.trim()
            ));
        }
    }
    assert!(found.is_empty(), "{} places:\n{}", found.len(), found.join("\n"));
}

/// `cargo test --test all names::figures -- --nocapture` prints them; with `NIXBOX_MEASURE=DIRECTORY` those of another
/// checkout.
#[test]
fn figures() {
    let files = crate_files();
    let lines: usize =
        files.iter().map(|file| file.code.lines().filter(|line| !line.trim().is_empty()).count()).sum();
    let with_comments: usize = files.iter().map(|file| without_unit_tests(&file.text)).sum();
    let types = declared_types(&files);
    let errors = types.iter().filter(|declared| declared.is_error).count();
    println!("lines of src without tests: {with_comments}, of these code: {lines}");
    println!("types: {}, of these errors: {errors}", types.len());
    println!("circles of files: {}, homonyms: {}", cycles().len(), homonyms().len());
    assert!(lines > 1000 && types.len() > 100 && errors > 10, "the counts are of nothing");
}

/// The lines of a file up to its unit tests.
fn without_unit_tests(text: &str) -> usize {
    text.split("\n#[cfg(test)]\n#[allow")
        .next()
        .unwrap_or(text)
        .split("\n#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or(text)
        .lines()
        .count()
}
