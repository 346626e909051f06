//! The crate's own source text, read the way the tests about it need: files as modules, and code without comments, string
//! literals and unit tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// One file below `src`.
pub(crate) struct SourceFile {
    /// Relative to the repository, for messages.
    pub(crate) name: String,
    /// The path of its module in the crate: `["host", "network", "tap"]`; empty for `lib.rs`.
    pub(crate) module: Vec<String>,
    /// The whole text.
    pub(crate) text: String,
    /// The text without comments, the contents of string literals and unit tests.
    pub(crate) code: String,
}

/// The repository that is looked at: this one, or the checkout that `NIXBOX_MEASURE` names, so that the figures of two
/// revisions can be compared.
pub(crate) fn repository() -> PathBuf {
    std::env::var_os("NIXBOX_MEASURE")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
}

/// Every file below `directory` of the repository with one of these extensions, sorted.
pub(crate) fn files(directory: &str, extensions: &[&str]) -> Vec<PathBuf> {
    fn collect(directory: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if !["target", "corpus", "artifacts"].contains(&path.file_name().unwrap().to_str().unwrap()) {
                    collect(&path, extensions, found);
                }
            } else if path.extension().is_some_and(|ext| extensions.iter().any(|wanted| ext == *wanted)) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(&repository().join(directory), extensions, &mut found);
    found.sort();
    found
}

/// Whether a file holds tests alone.
pub(crate) fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests")
        || path.file_name().is_some_and(|name| name == "tests.rs" || name == "testing.rs")
}

/// All files below `src` that are more than tests.
pub(crate) fn crate_files() -> Vec<SourceFile> {
    let root = repository();
    files("src", &["rs"])
        .into_iter()
        .filter(|path| !is_test(path))
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let name = path.strip_prefix(&root).unwrap().display().to_string();
            SourceFile { module: module_of(&name), code: code(&text), name, text }
        })
        .collect()
}

/// `src/host/network/tap.rs` is `host::network::tap`; `lib.rs` and `main.rs` are the crate itself.
fn module_of(name: &str) -> Vec<String> {
    let inner = name.strip_prefix("src/").unwrap().strip_suffix(".rs").unwrap();
    let mut parts: Vec<String> = inner.split('/').map(str::to_owned).collect();
    if parts.last().is_some_and(|last| last == "mod") || parts == ["lib"] || parts == ["main"] {
        parts.pop();
    }
    parts
}

/// `text` without comments and without what string and character literals hold, and without items under `#[cfg(test)]`.
fn code(text: &str) -> String {
    without_tests(&without_comments(text))
}

fn without_comments(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(raw) = raw_string(rest) {
            kept.push_str("\"\"");
            raw
        } else if first == '"' {
            kept.push_str("\"\"");
            1 + quoted(&rest[1..], '"')
        } else if rest.starts_with("'\\") || (first == '\'' && rest.chars().nth(2) == Some('\'')) {
            kept.push_str("' '");
            1 + quoted(&rest[1..], '\'')
        } else {
            kept.push(first);
            first.len_utf8()
        };
        rest = &rest[skipped..];
    }
    kept
}

/// How long the raw string literal at the start of `text` is, if there is one.
fn raw_string(text: &str) -> Option<usize> {
    let inner = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = inner.len() - inner.trim_start_matches('#').len();
    let body = inner[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(text.len() - body.len() + body.find(&end)? + end.len())
}

/// How long the rest of a literal is, its closing `quote` included.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (index, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return index + 1,
            _ => {}
        }
    }
    text.len()
}

fn without_tests(code: &str) -> String {
    let mut kept = String::new();
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept.push_str(line);
            kept.push('\n');
            continue;
        }
        // The item that the attribute is on ends at the brace that closes at its own indentation, or in its first line.
        let indentation = line.len() - line.trim_start().len();
        let end = format!("{}}}", " ".repeat(indentation));
        let mut item = lines.by_ref().skip_while(|line| line.trim_start().starts_with("#["));
        if item.next().is_some_and(|first| first.trim_end().ends_with('{')) {
            lines.by_ref().find(|line| *line == end);
        }
    }
    kept
}

/// A type of the crate, as it is declared in code that is more than tests.
pub(crate) struct Declared {
    pub(crate) name: String,
    pub(crate) file: String,
    pub(crate) is_error: bool,
}

/// Every struct, enum, trait, union and type alias; associated types are none of these.
pub(crate) fn declared_types(files: &[SourceFile]) -> Vec<Declared> {
    let mut found = Vec::new();
    for file in files {
        let mut derives = String::new();
        for line in file.code.lines() {
            let indented = line.starts_with(' ');
            let line = line.trim_start();
            if line.starts_with("#[")
                || line.starts_with(')')
                || line.ends_with(',') && derives.ends_with('(')
            {
                derives.push_str(line);
                continue;
            }
            let item = line.strip_prefix("pub").map_or(line, |rest| {
                rest.strip_prefix('(')
                    .and_then(|rest| rest.split_once(')'))
                    .map_or(rest, |(_, rest)| rest)
                    .trim_start()
            });
            let keyword = ["struct ", "enum ", "trait ", "union ", "type "]
                .iter()
                .find_map(|keyword| Some((*keyword, item.strip_prefix(keyword)?)));
            if let Some((keyword, rest)) = keyword
                && (keyword != "type " || !indented)
            {
                let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                // `type Context<'a> = transition::Context<'a, World>` gives a type fewer parameters, and no second meaning.
                let specializes = keyword == "type "
                    && rest.split_once(" = ").is_some_and(|(_, of)| of.contains(&format!("::{name}<")));
                if !name.is_empty() && !specializes {
                    let is_error = derives.contains("thiserror::Error") || derives.contains("Error)]");
                    found.push(Declared { name, file: file.name.clone(), is_error });
                }
            }
            derives.clear();
        }
    }
    found
}

/// The files that each file names in its code: `crate::`, `super::` and `self::` paths, followed to the file that holds
/// what they name, and not to the file's own parents and children, which belong together.
pub(crate) fn uses(files: &[SourceFile]) -> BTreeMap<usize, Vec<(usize, String)>> {
    let by_module: BTreeMap<&[String], usize> = files
        .iter()
        .enumerate()
        .filter(|(_, file)| file.name != "src/main.rs")
        .map(|(n, f)| (&f.module[..], n))
        .collect();
    let mut found = BTreeMap::new();
    for (index, file) in files.iter().enumerate() {
        let mut used: Vec<(usize, String)> = Vec::new();
        for path in paths(&file.code, &file.module) {
            let target = (0..=path.len()).rev().find_map(|length| by_module.get(&path[..length]));
            let Some(&target) = target else { continue };
            let (from, to) = (&file.module, &files[target].module);
            let related = from.starts_with(to) || to.starts_with(from);
            if target != index && !related && !used.iter().any(|(one, _)| *one == target) {
                used.push((target, path.join("::")));
            }
        }
        found.insert(index, used);
    }
    found
}

/// Every path that begins with `crate`, `super` or `self`, from the crate's root, groups in braces taken apart.
pub(crate) fn paths(code: &str, module: &[String]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let base = match start {
                "crate::" => Vec::new(),
                "self::" => module.to_vec(),
                _ => module[..module.len().saturating_sub(1)].to_vec(),
            };
            tree(&mut &code[at + start.len()..], base, &mut found);
        }
    }
    found
}

/// One branch of a use tree: `a::b`, `a::{b, c::d}`, `super::a`.
fn tree(text: &mut &str, mut path: Vec<String>, found: &mut Vec<Vec<String>>) {
    loop {
        *text = text.trim_start();
        if let Some(inner) = text.strip_prefix('{') {
            *text = inner;
            loop {
                tree(text, path.clone(), found);
                *text = text.trim_start();
                match text.strip_prefix(',') {
                    Some(rest) if !rest.trim_start().starts_with('}') => *text = rest,
                    Some(rest) => {
                        *text = rest.trim_start().strip_prefix('}').unwrap_or("");
                        return;
                    }
                    None => {
                        *text = text.strip_prefix('}').unwrap_or("");
                        return;
                    }
                }
            }
        }
        let name: String =
            text.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == '*').collect();
        *text = &text[name.len()..];
        match name.as_str() {
            "super" => drop(path.pop()),
            "self" | "" | "*" => {}
            _ => path.push(name.clone()),
        }
        if let Some(rest) = text.trim_start().strip_prefix("as ") {
            let alias = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').count();
            *text = &rest[alias..];
        }
        match text.strip_prefix("::") {
            Some(rest) if !rest.starts_with('<') => *text = rest,
            _ => {
                found.push(path);
                return;
            }
        }
    }
}

#[test]
fn comments_strings_and_tests_are_left_out_of_code() {
    let text = "use a; // crate::x\nlet b = \"crate::y\\\"\"; let r = r#\"super::z\"#; let c = '\"';\n#[cfg(test)]\nmod tests {\n    use crate::t;\n}\nfn f<'a>() {}\n#[cfg(test)]\nmod testing;\nlast";
    let kept = code(text);
    assert_eq!(kept, "use a; \nlet b = \"\"; let r = \"\"; let c = ' ';\nfn f<'a>() {}\nlast\n");
}

#[test]
fn paths_are_followed_from_the_root_of_the_crate() {
    let module = ["host".to_owned(), "disk".to_owned()];
    let found = paths(
        "use crate::world::{Failure, names::{self, Slot as S}};\nsuper::super::x::f(); self::own::g()",
        &module,
    );
    let found: Vec<String> = found.iter().map(|path| path.join("::")).collect();
    assert_eq!(found, ["world::Failure", "world::names", "world::names::Slot", "x::f", "host::disk::own::g"]);
}
