//! The files of `deploy/`: what they name exists, and what they set suits the worker.
//!
//! Everything is compared with the real command, a real worker and the documentation. `make test` installs two
//! checkers for Python into `target/venv` (requirements.txt). Without them, or without systemd, a line says what is not
//! tried.
mod kubernetes;
mod metrics;
mod promql;
mod systemd;
mod words;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use saphyr::{LoadableYamlNode as _, Scalar, Yaml};
use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn root(path: &str) -> PathBuf {
    Path::new(ROOT).join(path)
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Returns the files below a folder with one of these extensions, by path from the root.
fn files(folder: &str, extensions: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(root(folder)).unwrap() {
        let file = file.unwrap();
        let path = format!("{folder}/{}", file.file_name().to_str().unwrap());
        if file.file_type().unwrap().is_dir() {
            found.extend(files(&path, extensions));
        } else if extensions.is_empty() || extensions.iter().any(|end| path.ends_with(&format!(".{end}"))) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Reads a file with one YAML document.
fn yaml(path: &str) -> Value {
    fn json(node: &Yaml<'_>) -> Value {
        match node {
            Yaml::Value(Scalar::Null) => Value::Null,
            Yaml::Value(Scalar::Boolean(is)) => (*is).into(),
            Yaml::Value(Scalar::Integer(number)) => (*number).into(),
            Yaml::Value(Scalar::FloatingPoint(number)) => number.into_inner().into(),
            Yaml::Value(Scalar::String(text)) => text.as_ref().into(),
            Yaml::Sequence(items) => items.iter().map(json).collect(),
            Yaml::Mapping(fields) => Value::Object(
                fields.iter().map(|(key, value)| (key.as_str().unwrap().to_owned(), json(value))).collect(),
            ),
            other => panic!("{other:?}"),
        }
    }
    let all = Yaml::load_from_str(&text(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    assert_eq!(all.len(), 1, "{path}");
    json(&all[0])
}

/// Checks that an object has no fields but these.
fn only(object: &Value, fields: &[&str]) {
    for field in object.as_object().unwrap_or_else(|| panic!("{object}")).keys() {
        assert!(fields.contains(&field.as_str()), "unknown field {field}: {object}");
    }
}

/// Reads a time of a file: `20s`, or seconds without a unit.
fn time(text: &str) -> Duration {
    text.parse().map_or_else(|_| humantime::parse_duration(text).unwrap(), Duration::from_secs)
}

/// Runs check.py with these arguments and this input; `None` if its packages are not installed.
fn checked(args: &[&str], input: &str) -> Option<(bool, String)> {
    use std::io::Write as _;
    let python = root("target/venv/bin/python");
    let imports = Command::new(&python).args(["-c", "import kubernetes_validate, promql_parser, yaml"]).output();
    if !imports.is_ok_and(|done| done.status.success()) {
        eprintln!("NOT TRIED: the packages of tests/deploy/requirements.txt are not in target/venv; run `make test`");
        return None;
    }
    let mut command = Command::new(python);
    command.arg("-B").arg(root("tests/deploy/check.py")).args(args).current_dir(ROOT);
    let streams = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = streams.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    let said = [done.stdout, done.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    Some((done.status.success(), said))
}
