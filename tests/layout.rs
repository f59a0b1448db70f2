//! The layout: the top-level modules under `src/`, imports that go down only, and no circle of files.
//!
//! An import is any path that begins with `crate`, `super`, `self` or the name of a child module, in a `use` or in the
//! code, in a function or an inline module. Tests are left out. A path through a re-export leads to the file that
//! defines the item.
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The top-level modules, each above all that it may import.
const FLOORS: [&str; 19] = [
    "cli",
    "worker",
    "console",
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

/// A module's path below the crate.
type Module = Vec<String>;

/// A path in a file that may lead to another file.
#[derive(Debug)]
struct Import {
    line: usize,
    path: Module,
}

/// A source file.
#[derive(Debug)]
struct Source {
    file: PathBuf,
    imports: Vec<Import>,
    /// The names that it re-exports, with the paths of the items.
    exports: BTreeMap<String, Module>,
}

/// A word or a mark of a file's code, with its line.
#[derive(Clone, Debug)]
struct Token {
    line: usize,
    text: String,
}

/// Returns the tokens of a file's code, without comments, strings, characters and lifetimes.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let is_word = |c: &char| c.is_alphanumeric() || *c == '_';
    let end_of = |from: usize, end: &str| {
        let end: Vec<char> = end.chars().collect();
        (from..chars.len()).find(|at| chars[*at..].starts_with(&end)).map_or(chars.len(), |at| at + end.len())
    };
    let (mut found, mut at, mut line) = (Vec::new(), 0, 1);
    while at < chars.len() {
        let next = |n: usize| chars.get(at + n).copied().unwrap_or(' ');
        let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
        let (end, is_token) = match chars[at] {
            '/' if next(1) == '/' => (end_of(at, "\n") - 1, false),
            '/' if next(1) == '*' => (end_of(at, "*/"), false),
            'r' if next(1 + hashes) == '"' => (end_of(at + 2 + hashes, &format!("\"{}", "#".repeat(hashes))), false),
            '"' => {
                let mut end = at + 1;
                while end < chars.len() && chars[end] != '"' {
                    end += if chars[end] == '\\' { 2 } else { 1 };
                }
                (end + 1, false)
            }
            '\'' if next(1) == '\\' => (end_of(at + 3, "'"), false),
            '\'' if next(2) == '\'' => (at + 3, false),
            '\'' => (at + 1 + chars[at + 1..].iter().take_while(|c| is_word(c)).count(), false),
            ':' if next(1) == ':' => (at + 2, true),
            c if is_word(&c) => (at + chars[at..].iter().take_while(|c| is_word(c)).count(), true),
            c => (at + 1, !c.is_whitespace()),
        };
        let end = end.clamp(at + 1, chars.len());
        let text: String = chars[at..end].iter().collect();
        let breaks = text.matches('\n').count();
        if is_token {
            found.push(Token { line, text });
        }
        line += breaks;
        at = end;
    }
    found
}

/// Reads a file's tokens.
struct Reader<'a> {
    tokens: Vec<Token>,
    at: usize,
    modules: &'a BTreeSet<Module>,
    /// The module of the file, and the inline modules around the present place, with the depth of their braces.
    here: Module,
    inline: Vec<usize>,
    depth: usize,
    imports: Vec<Import>,
    exports: BTreeMap<String, Module>,
}

impl Reader<'_> {
    fn text(&self, ahead: usize) -> &str {
        self.tokens.get(self.at + ahead).map_or("", |token| &token.text)
    }

    /// Returns the path below the crate that `parts` leads to from here; `None` for paths of other crates.
    fn resolve(&self, parts: &[String]) -> Option<Module> {
        let mut base = self.here.clone();
        let mut rest = parts;
        match parts[0].as_str() {
            "crate" => {
                base.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            "super" => {}
            name => {
                let child = [base.as_slice(), &[name.to_owned()]].concat();
                if !self.modules.contains(&child) {
                    return None;
                }
            }
        }
        while rest.first().is_some_and(|part| part == "super") {
            base.pop();
            rest = &rest[1..];
        }
        base.extend(rest.iter().cloned());
        Some(base)
    }

    /// Reads all of it, from the present token on.
    fn read(&mut self) {
        while self.at < self.tokens.len() {
            let (before, line) =
                (self.at.checked_sub(1).map(|at| self.tokens[at].text.clone()), self.tokens[self.at].line);
            match (self.text(0), self.text(2)) {
                ("mod", "{") if self.text(1) == "tests" => self.skip(),
                ("mod", "{") => {
                    self.inline.push(self.depth);
                    self.here.push(self.text(1).to_owned());
                    self.at += 2;
                }
                ("{", _) => {
                    self.depth += 1;
                    self.at += 1;
                }
                ("}", _) => {
                    self.depth -= 1;
                    if self.inline.last() == Some(&self.depth) {
                        self.inline.pop();
                        self.here.pop();
                    }
                    self.at += 1;
                }
                // Not the `use<…>` of a type.
                ("use", _) if self.text(1) != "<" => {
                    let is_public = before.is_some_and(|before| before == "pub" || before == ")");
                    self.at += 1;
                    self.tree(&[], is_public);
                }
                _ => {
                    let mut path = vec![self.text(0).to_owned()];
                    self.at += 1;
                    while self.text(0) == "::" && self.text(1).starts_with(|c: char| c.is_alphabetic() || c == '_') {
                        path.push(self.text(1).to_owned());
                        self.at += 2;
                    }
                    if path.len() > 1
                        && before.as_deref() != Some("::")
                        && let Some(path) = self.resolve(&path)
                    {
                        self.imports.push(Import { line, path });
                    }
                }
            }
        }
    }

    /// Leaves out a module of tests.
    fn skip(&mut self) {
        let mut depth = 0;
        loop {
            match self.text(0) {
                "{" => depth += 1,
                "}" => depth -= 1,
                "" => return,
                _ => {}
            }
            self.at += 1;
            if depth == 0 && self.tokens[self.at - 1].text == "}" {
                return;
            }
        }
    }

    /// Reads a use tree below `head`, with the mark behind it.
    fn tree(&mut self, head: &[String], is_public: bool) {
        let mut path = head.to_vec();
        let line = self.tokens[self.at].line;
        loop {
            match self.text(0) {
                "{" => {
                    self.at += 1;
                    while self.text(0) != "}" {
                        self.tree(&path, is_public);
                    }
                    self.at += 1;
                    path.clear();
                }
                "::" => self.at += 1,
                "as" => {
                    self.leaf(&path, self.text(1).to_owned(), line, is_public);
                    self.at += 2;
                    path.clear();
                }
                ";" | "," | "}" | "" => break,
                name => {
                    path.push(name.to_owned());
                    self.at += 1;
                }
            }
        }
        if self.text(0) != "}" {
            self.at += 1;
        }
        if let Some(name) = path.last().cloned() {
            self.leaf(&path, name, line, is_public);
        }
    }

    fn leaf(&mut self, path: &[String], name: String, line: usize, is_public: bool) {
        let path: &[String] = if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            &path[..path.len() - 1]
        } else {
            path
        };
        let Some(path) = self.resolve(path) else { return };
        if is_public {
            self.exports.insert(name, path.clone());
        }
        self.imports.push(Import { line, path });
    }
}

impl Source {
    fn read(file: &Path, text: &str, modules: &BTreeSet<Module>) -> Self {
        let (imports, exports) = (Vec::new(), BTreeMap::new());
        let (tokens, here, inline) = (tokens(text), module(file), Vec::new());
        let mut reader = Reader { tokens, at: 0, modules, here, inline, depth: 0, imports, exports };
        reader.read();
        Self { file: file.to_owned(), imports: reader.imports, exports: reader.exports }
    }
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// Returns the module that a file is.
fn module(file: &Path) -> Module {
    let path = file.strip_prefix("src").unwrap().with_extension("");
    let mut module: Module = path.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    module
}

/// Returns all files by module, but for `lib.rs` and `main.rs`.
fn tree() -> BTreeMap<Module, Source> {
    std::env::set_current_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
    let mut found = Vec::new();
    files(Path::new("src"), &mut found);
    found.retain(|file| !matches!(file.to_str(), Some("src/lib.rs" | "src/main.rs")));
    let modules = found.iter().map(|file| module(file)).collect();
    let read = |file: &PathBuf| Source::read(file, &fs::read_to_string(file).unwrap(), &modules);
    found.iter().map(|file| (module(file), read(file))).collect()
}

/// Returns the module of the file that defines what a path leads to.
fn target<'a>(tree: &'a BTreeMap<Module, Source>, path: &[String]) -> Option<&'a Module> {
    let (module, source) = (1..=path.len()).rev().find_map(|end| tree.get_key_value(&path[..end]))?;
    match path.get(module.len()).and_then(|name| source.exports.get(name)) {
        Some(item) => target(tree, item),
        None => Some(module),
    }
}

#[test]
fn top_level_modules_are_those_of_the_floor_plan() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let declared: Vec<&str> = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert_eq!(declared, FLOORS, "src/lib.rs declares the modules in the order of the floors");
    let found: BTreeSet<String> = tree().into_keys().map(|module| module[0].clone()).collect();
    assert_eq!(found, FLOORS.iter().map(|name| (*name).to_owned()).collect(), "modules under src/");
}

#[test]
fn main_calls_the_command_line_and_nothing_else() {
    let main = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/main.rs")).unwrap();
    let tokens: Vec<String> = tokens(&main).into_iter().map(|token| token.text).collect();
    let used: Vec<&str> =
        tokens.windows(3).filter(|path| path[0] == "samovar" && path[1] == "::").map(|path| path[2].as_str()).collect();
    assert_eq!(used, ["cli"], "what src/main.rs uses of the crate");
}

#[test]
fn no_import_runs_upward() {
    let floor = |top: &str| FLOORS.iter().position(|name| *name == top);
    let mut faults = Vec::new();
    for (module, Source { file, imports, .. }) in tree() {
        for Import { line, path, .. } in imports {
            let (Some(from), Some(to)) = (floor(&module[0]), path.first().and_then(|top| floor(top))) else {
                continue;
            };
            if to < from {
                faults.push(format!("{}:{line}: crate::{}", file.display(), path.join("::")));
            }
        }
    }
    assert!(faults.is_empty(), "these imports run upward:\n{}", faults.join("\n"));
}

#[test]
fn no_files_import_one_another_in_a_circle() {
    let tree = tree();
    let mut edges: BTreeMap<&Module, BTreeMap<&Module, usize>> = BTreeMap::new();
    for (module, source) in &tree {
        for import in &source.imports {
            let Some(to) = target(&tree, &import.path) else { continue };
            // A file may use what the `mod.rs` above it defines, and the other way round.
            let is_inner = module.starts_with(to) || to.starts_with(module);
            if !is_inner {
                edges.entry(module).or_default().entry(to).or_insert(import.line);
            }
        }
    }
    let reaches = |from: &Module, to: &Module| {
        let (mut seen, mut stack) = (BTreeSet::new(), vec![from]);
        while let Some(at) = stack.pop() {
            if at == to {
                return true;
            }
            stack.extend(edges.get(at).into_iter().flat_map(BTreeMap::keys).filter(|next| seen.insert(**next)));
        }
        false
    };
    let mut faults = Vec::new();
    for (from, targets) in &edges {
        for (to, line) in targets.iter().filter(|(to, _)| reaches(to, from)) {
            faults.push(format!("{}:{line}: crate::{}", tree[*from].file.display(), to.join("::")));
        }
    }
    assert!(faults.is_empty(), "these imports close a circle of files:\n{}", faults.join("\n"));
}

#[test]
fn imports_are_seen_wherever_they_stand() {
    let modules: BTreeSet<Module> =
        ["a", "a::b", "a::b::child"].map(|path| path.split("::").map(str::to_owned).collect()).into();
    let text = r##"
//! Not crate::doc::One.
use crate::one::{self, Two as Renamed,
    three::{Four, Five}};
pub(crate) use super::Six;
use child::Seven;
fn f<'a>(c: &'a str) -> impl Iterator + use<'a> {
    use super::super::Eight;
    let _ = ("use crate::no::No;", r#"crate::no::No"#, '"', "\"crate::no::No");
    self::child::nine(std::mem::take(child::ten::<u8>()), crate::eleven());
}
mod inner {
    use super::twelve;
}
#[cfg(test)]
mod tests {
    use crate::no::No;
}
"##;
    let Source { imports, exports, .. } = Source::read(Path::new("src/a/b.rs"), text, &modules);
    let seen: Vec<String> =
        imports.iter().map(|import| format!("{} {}", import.line, import.path.join("::"))).collect();
    let expected = [
        "3 one",
        "3 one::Two",
        "4 one::three::Four",
        "4 one::three::Five",
        "5 a::Six",
        "6 a::b::child::Seven",
        "8 Eight",
        "10 a::b::child::nine",
        "10 a::b::child::ten",
        "10 eleven",
        "13 a::b::twelve",
    ];
    assert_eq!(seen, expected);
    assert_eq!(exports.into_iter().collect::<Vec<_>>(), [("Six".to_owned(), vec!["a".to_owned(), "Six".to_owned()])]);
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
