//! What reviewers should not have to look for, checked over the whole tree: the direction of
//! imports, purity of the pure modules, size of files and functions, module docs, left-overs, and
//! links of the docs. Each violation is named with file and line; all are shown at once.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file of `src/`, tests not counted.
const MAX_FILE_LINES: usize = 700;

/// Lines of a function, from its signature to its end.
const MAX_FUNCTION_LINES: usize = 80;

/// Modules from the lowest layer to the highest: each may import what stands below it, and its own
/// line. What is not named belongs to the top.
const LAYERS: &[&[&str]] = &[
    &["types", "planted", "wording"],
    &["crypto", "codec", "merkle", "clock", "metrics"],
    &["ledger", "pbft", "device", "policy"],
    &["keyfile", "config", "broker", "network", "store", "history", "api", "gateway"],
    &["actors"],
    &["node"],
    &["cli"],
    &["main", "lib"],
];

/// Modules that decide, and so must give the same answer for the same input.
const PURE: &[&str] = &["types", "codec", "merkle", "ledger", "pbft", "device", "policy"];

/// What would make them depend on anything else.
const IMPURE: &[&str] = &[
    "actix",
    "tokio",
    "futures",
    "std::net",
    "std::fs",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "rand::",
    "getrandom",
    "libp2p",
    "rumqttc",
    "rmqtt",
    "sled",
    "reqwest",
    "async fn",
];

/// Left-overs of work in progress. Built in two parts, so that this file has none.
fn left_overs() -> Vec<String> {
    let macros = ["todo", "unimplemented", "dbg"].map(|name| format!("{name}!("));
    let marks = ["TO", "FIX", "XX"].iter().zip(["DO", "ME", "X"]).map(|(a, b)| format!("{a}{b}"));
    macros.into_iter().chain(marks).collect()
}

/// Paths that exist on one machine only.
fn machine_paths() -> Vec<String> {
    ["home", "work", "Users", "root"].iter().map(|dir| format!("/{dir}/")).collect()
}

struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// `src/pbft/log.rs` is `pbft/log.rs`.
    fn in_src(&self) -> Option<String> {
        let path = self.path.strip_prefix(root().join("src")).ok()?;
        Some(path.to_string_lossy().into_owned())
    }

    /// The first part of the module's path.
    fn module(&self) -> Option<String> {
        let path = self.in_src()?;
        let first = path.split('/').next()?;
        Some(first.trim_end_matches(".rs").to_owned())
    }

    fn is_test(&self) -> bool {
        let name = self.path.file_name().unwrap().to_string_lossy();
        let in_tests = self.path.strip_prefix(root()).unwrap().iter().any(|part| part == "tests");
        in_tests || name == "tests.rs" || name.ends_with("_tests.rs")
    }

    /// Numbered lines up to the tests at the end of the file.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = self.text.find("\n#[cfg(test)]\nmod tests {").unwrap_or(self.text.len());
        (1..).zip(self.text[..tests].lines())
    }

    fn shown(&self, line: usize) -> String {
        format!("{}:{line}", self.path.strip_prefix(root()).unwrap().display())
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `dir` with this extension, in order.
fn files(dir: &str, extension: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut dirs = vec![root().join(dir)];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                let text = fs::read_to_string(&path).unwrap();
                found.push(Source { path, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn rust_files() -> Vec<Source> {
    let dirs = ["src", "tests", "benches", "examples", "fuzz/fuzz_targets"];
    dirs.iter().flat_map(|dir| files(dir, "rs")).collect()
}

fn check(violations: &[String]) {
    assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), violations.join("\n"));
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

fn layer(module: &str) -> usize {
    LAYERS.iter().position(|layer| layer.contains(&module)).unwrap_or(LAYERS.len() - 1)
}

/// Modules of this crate that a line names after `crate::`.
fn imported(line: &str) -> impl Iterator<Item = &str> {
    line.split("crate::").skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
        let name = &rest[..end];
        name.starts_with(|c: char| c.is_ascii_lowercase()).then_some(name)
    })
}

#[test]
fn imports_point_one_way() {
    let mut violations = Vec::new();
    for source in files("src", "rs").iter().filter(|source| !source.is_test()) {
        let own = source.module().unwrap();
        for (number, line) in source.code().filter(|(_, line)| !is_comment(line)) {
            for module in imported(line).filter(|module| layer(module) > layer(&own)) {
                violations.push(format!("{}: {own} imports {module}", source.shown(number)));
            }
        }
    }
    check(&violations);
}

#[test]
fn every_module_of_the_library_has_its_layer() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let modules = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let unknown = modules.filter(|module| !LAYERS.iter().any(|layer| layer.contains(module)));
    let unknown: Vec<String> = unknown.map(|module| format!("{module} is in no layer of LAYERS")).collect();
    check(&unknown);
}

#[test]
fn pure_modules_know_no_time_chance_net_or_disk() {
    let mut violations = Vec::new();
    for source in files("src", "rs").iter().filter(|source| !source.is_test()) {
        if !PURE.contains(&source.module().unwrap().as_str()) {
            continue;
        }
        for (number, line) in source.code().filter(|(_, line)| !is_comment(line)) {
            for word in IMPURE.iter().filter(|word| line.contains(**word)) {
                violations.push(format!("{}: {word}", source.shown(number)));
            }
        }
    }
    check(&violations);
}

#[test]
fn every_file_says_what_it_is_for() {
    let undocumented = rust_files().into_iter().filter(|source| !source.text.starts_with("//!"));
    let violations: Vec<_> = undocumented.map(|source| source.shown(1)).collect();
    check(&violations);
}

#[test]
fn files_are_short_enough_to_be_read() {
    let sources = files("src", "rs");
    let long = sources.iter().filter(|source| !source.is_test());
    let long =
        long.map(|source| (source, source.code().count())).filter(|(_, lines)| *lines > MAX_FILE_LINES);
    let violations: Vec<_> =
        long.map(|(source, lines)| format!("{}: {lines} lines", source.shown(1))).collect();
    check(&violations);
}

#[test]
fn functions_are_short_enough_to_be_read() {
    let mut violations = Vec::new();
    for source in rust_files() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| is_function(line)) {
            // rustfmt puts the end of a function under its beginning.
            let end = format!("{}}}", " ".repeat(line.len() - line.trim_start().len()));
            let body = lines[at..].iter().position(|line| *line == end).unwrap_or_default();
            if body > MAX_FUNCTION_LINES {
                violations.push(format!("{}: {body} lines", source.shown(at + 1)));
            }
        }
    }
    check(&violations);
}

fn is_function(line: &str) -> bool {
    let words = ["fn", "pub", "async", "const", "extern"];
    let starts = line.trim_start().split([' ', '(']).next().is_some_and(|first| words.contains(&first));
    starts && line.contains("fn ") && !line.ends_with('}') && !line.ends_with(';')
}

#[test]
fn nothing_is_left_over() {
    let mut violations = Vec::new();
    let words: Vec<String> = left_overs().into_iter().chain(machine_paths()).collect();
    let others = ["docs", "k8s", "grafana"].iter().flat_map(|dir| {
        ["md", "yaml", "yml", "json"].iter().flat_map(move |extension| files(dir, extension))
    });
    for source in rust_files().into_iter().chain(others) {
        for (number, line) in (1..).zip(source.text.lines()) {
            for word in words.iter().filter(|word| line.contains(word.as_str())) {
                violations.push(format!("{}: {word}", source.shown(number)));
            }
            if source.path.extension().is_some_and(|extension| extension == "rs") && line.contains('\t') {
                violations.push(format!("{}: a tab", source.shown(number)));
            }
            if line.ends_with([' ', '\t']) {
                violations.push(format!("{}: space at the end of the line", source.shown(number)));
            }
        }
    }
    check(&violations);
}

#[test]
fn links_of_the_docs_lead_somewhere() {
    let mut violations = Vec::new();
    let readme = root().join("README.md");
    let readme = Source { text: fs::read_to_string(&readme).unwrap(), path: readme };
    for source in files("docs", "md").into_iter().chain([readme]) {
        for (number, line) in (1..).zip(source.text.lines()) {
            for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let file = target.split('#').next().unwrap();
                let elsewhere = target.contains("://") || target.starts_with("mailto:") || file.is_empty();
                if !elsewhere && !source.path.parent().unwrap().join(file).exists() {
                    violations.push(format!("{}: {target}", source.shown(number)));
                }
            }
        }
    }
    check(&violations);
}

#[test]
fn files_that_the_sources_point_to_exist() {
    let mut violations = Vec::new();
    for source in rust_files() {
        for (number, line) in (1..).zip(source.text.lines()) {
            for name in line.split("docs/").skip(1).filter_map(|rest| Some(&rest[..rest.find(".md")?])) {
                let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
                if is_name && !root().join(format!("docs/{name}.md")).exists() {
                    violations.push(format!("{}: docs/{name}.md", source.shown(number)));
                }
            }
        }
    }
    check(&violations);
}
