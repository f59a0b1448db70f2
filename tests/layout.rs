//! The layout: rooms directly under `src/`, imports that go down only, and no circle of files.
#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms, each above all that it may import.
const FLOORS: [&str; 18] = [
    "cli",
    "worker",
    "admin",
    "ops",
    "trigger",
    "warmer",
    "queue",
    "popularity",
    "source",
    "config",
    "agenda",
    "store",
    "telemetry",
    "job",
    "cache",
    "redis",
    "protocol",
    "entry",
];

/// A `crate::…` path in a file, as the module that it leads to.
#[derive(Debug)]
struct Import {
    line: usize,
    path: Vec<String>,
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// The module that a file is, below the crate.
fn module(file: &Path) -> Vec<String> {
    let path = file.strip_prefix("src").unwrap().with_extension("");
    let mut module: Vec<String> = path.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    module
}

/// The leaves of a use tree.
fn leaves(tree: &str) -> Vec<String> {
    let Some(open) = tree.find('{') else { return vec![tree.trim().to_owned()] };
    let (head, body) = (tree[..open].trim(), &tree[open + 1..tree.rfind('}').unwrap()]);
    let (mut all, mut depth, mut part) = (Vec::new(), 0, String::new());
    for c in body.chars().chain([',']) {
        match c {
            ',' if depth == 0 => {
                if !part.trim().is_empty() {
                    all.extend(leaves(part.trim()).into_iter().map(|leaf| format!("{head}{leaf}")));
                }
                part.clear();
                continue;
            }
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        part.push(c);
    }
    all
}

/// The imports of a file outside of its tests, as paths below the crate.
fn imports(file: &Path) -> Vec<Import> {
    let text = fs::read_to_string(file).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let here = module(file);
    let mut found = Vec::new();
    let mut add = |line: usize, path: &str, nested: bool| {
        let mut parts: Vec<&str> = path.split("::").map(str::trim).collect();
        let mut base = match parts[0] {
            "crate" => Vec::new(),
            "super" if !nested => here.clone(),
            _ => return,
        };
        while parts.first() == Some(&"super") {
            base.pop();
            parts.remove(0);
        }
        if parts.first() == Some(&"crate") {
            parts.remove(0);
        }
        let name = |part: &&str| part.split(" as ").next().unwrap().trim().to_owned();
        base.extend(parts.iter().filter(|part| **part != "self").map(name));
        found.push(Import { line, path: base });
    };
    let lines: Vec<&str> = text.lines().collect();
    let mut at = 0;
    while at < lines.len() {
        let (line, number) = (lines[at], at + 1);
        at += 1;
        let bare = line.trim_start();
        if bare.starts_with("//") {
            continue;
        }
        let after_visibility = match bare.strip_prefix("pub") {
            Some(rest) if rest.starts_with('(') => rest.split_once(')').map_or(rest, |(_, rest)| rest).trim_start(),
            Some(rest) => rest.trim_start(),
            None => bare,
        };
        if let Some(tree) = after_visibility.strip_prefix("use ") {
            let mut tree = tree.to_owned();
            while !tree.contains(';') {
                tree.push_str(lines[at]);
                at += 1;
            }
            for leaf in leaves(tree.split(';').next().unwrap()) {
                add(number, &leaf, line.starts_with(' '));
            }
            continue;
        }
        for (start, _) in line.match_indices("crate::") {
            let path: String =
                line[start..].chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | ':')).collect();
            add(number, &path, true);
        }
    }
    found
}

/// All files, by module, and their imports.
fn tree() -> BTreeMap<Vec<String>, (PathBuf, Vec<Import>)> {
    std::env::set_current_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
    let mut files = Vec::new();
    sources(Path::new("src"), &mut files);
    let rooms = |file: &PathBuf| !matches!(file.to_str(), Some("src/lib.rs" | "src/main.rs"));
    files.into_iter().filter(rooms).map(|file| (module(&file), (file.clone(), imports(&file)))).collect()
}

#[test]
fn rooms_are_those_of_the_floor_plan() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let declared: Vec<&str> = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert_eq!(declared, FLOORS, "src/lib.rs declares the rooms in the order of the floors");
    let found: BTreeSet<String> = tree().into_keys().map(|module| module[0].clone()).collect();
    assert_eq!(found, FLOORS.iter().map(|room| (*room).to_owned()).collect(), "rooms under src/");
}

#[test]
fn no_import_runs_upward() {
    let floor = |room: &str| FLOORS.iter().position(|name| *name == room);
    let mut faults = Vec::new();
    for (module, (file, imports)) in tree() {
        for import in imports {
            let (Some(from), Some(to)) = (floor(&module[0]), floor(&import.path[0])) else { continue };
            if to < from {
                faults.push(format!("{}:{}: crate::{}", file.display(), import.line, import.path.join("::")));
            }
        }
    }
    assert!(faults.is_empty(), "these imports run upward:\n{}", faults.join("\n"));
}

#[test]
fn no_files_import_one_another_in_a_circle() {
    let tree = tree();
    // The file that an import leads to: the longest module that its path begins with. What a room's `mod.rs` passes on counts
    // as the room's, and a file of the room may use what its `mod.rs` defines.
    let target = |path: &[String]| {
        (1..=path.len()).rev().find_map(|end| tree.get_key_value(&path[..end])).map(|(module, _)| module.as_slice())
    };
    let mut edges: BTreeMap<&[String], BTreeSet<&[String]>> = BTreeMap::new();
    for (module, (_, imports)) in &tree {
        for import in imports {
            let Some(to) = target(&import.path) else { continue };
            let inner = module.starts_with(to) || to.starts_with(module);
            if !inner {
                edges.entry(module).or_default().insert(to);
            }
        }
    }
    let mut faults = Vec::new();
    for start in tree.keys() {
        let (mut seen, mut stack) = (BTreeSet::new(), vec![start.as_slice()]);
        while let Some(at) = stack.pop() {
            for next in edges.get(at).into_iter().flatten() {
                if *next == start.as_slice() {
                    faults.push(format!("{} is imported by {}, which it imports", start.join("::"), at.join("::")));
                }
                if seen.insert(*next) {
                    stack.push(next);
                }
            }
        }
    }
    assert!(faults.is_empty(), "these files import one another:\n{}", faults.join("\n"));
}

#[test]
fn no_two_scripts_share_a_file_name() {
    fn scripts(folder: &Path, found: &mut BTreeMap<String, Vec<PathBuf>>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                scripts(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "lua") {
                found.entry(path.file_name().unwrap().to_string_lossy().into_owned()).or_default().push(path);
            }
        }
    }
    let mut found = BTreeMap::new();
    scripts(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.len() > 40, "scripts stand under src/");
    found.retain(|_, files| files.len() > 1);
    assert!(found.is_empty(), "these scripts share a file name: {found:?}");
}
