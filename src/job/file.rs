//! The file format: TOML to [`Jobs`].
//!
//! Reading never stops at a fault: every file is read to its end, then what only all of them together show (keys that
//! two jobs claim, inputs that nobody warms, circles), and either there is no fault at all or there are no jobs.

mod bulk;
mod document;
mod entries;
mod feed;
mod item;
mod job;
mod literal;
mod made;
mod pointer;
mod schema;
mod schedules;
mod scope;
mod source;
mod spelling;
mod upstreams;

use super::{EnvValues, Fault, Faults, Job, Jobs, KeyPattern, Params, Upstream};
use crate::entry::{JobName, UpstreamName};
use document::{Document, Findings, Table, variables};
use job::ReadJob;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use toml::de::DeTable;
use twox_hash::XxHash3_64;
use upstreams::Upstreams;

pub use document::EnvUse;
pub use schema::{JOB_SCHEMA, UPSTREAMS_SCHEMA};
pub(crate) use spelling::closest;

/// The one file that is not a job.
const UPSTREAMS: &str = "upstreams.toml";
/// The beginning of Samovar's own keys.
const OWN_KEYS: &str = "samovar:";
const MOST_FILE_BYTES: u64 = 8 << 20;
const LONGEST_NAME: usize = 64;

/// The result of reading job files: the jobs or all faults, and in either case the environment variables they name.
#[derive(Debug)]
pub struct Reading {
    /// The jobs, if there is no fault.
    pub jobs: Result<Jobs, Faults>,
    /// In the order of names, files and lines.
    pub env: Vec<EnvUse>,
}

pub(super) fn read_folder(folder: &Path, default_ttl: Duration, env: &dyn Fn(&str) -> Option<String>) -> Reading {
    let mut files = Vec::new();
    let mut faults = Vec::new();
    let shown = folder.display().to_string();
    match std::fs::read_dir(folder) {
        Ok(entries) => {
            for entry in entries {
                match entry {
                    Ok(entry) => match read_file(&entry.path()) {
                        Ok(file) => files.extend(file),
                        Err(message) => faults.push(Fault::whole(&entry.path().display().to_string(), message, None)),
                    },
                    Err(error) => faults.push(Fault::whole(&shown, error.to_string(), None)),
                }
            }
        }
        Err(error) => {
            let help = "job files are looked for here; name another folder or create this one";
            faults.push(Fault::whole(&shown, format!("the folder cannot be read: {error}"), Some(help.to_owned())));
        }
    }
    files.sort();
    read(&shown, &files, faults, default_ttl, env)
}

/// The path and text of a job file; `None` for what is none.
fn read_file(path: &Path) -> Result<Option<(String, String)>, String> {
    let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    if hidden || path.extension().is_none_or(|extension| extension != "toml") {
        return Ok(None);
    }
    let metadata = std::fs::metadata(path).map_err(|error| format!("the file cannot be read: {error}"))?;
    if metadata.is_dir() {
        return Ok(None);
    }
    if metadata.len() > MOST_FILE_BYTES {
        return Err(format!("the file is {} bytes long; the most is {MOST_FILE_BYTES}", metadata.len()));
    }
    let bytes = std::fs::read(path).map_err(|error| format!("the file cannot be read: {error}"))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some((path.display().to_string(), text))),
        Err(_) => Err("the file is not UTF-8; save it as such".to_owned()),
    }
}

/// A file of a folder, parsed as TOML as far as that is possible.
struct Parsed<'a> {
    doc: Document<'a>,
    name: String,
    table: toml::Spanned<DeTable<'a>>,
    /// It is TOML without fault.
    sound: bool,
}

/// Reads files given as path and text. `place` is reported for faults of all of them.
pub(super) fn read(
    place: &str,
    files: &[(String, String)],
    faults: Vec<Fault>,
    default_ttl: Duration,
    env: &dyn Fn(&str) -> Option<String>,
) -> Reading {
    let findings = Findings { env, faults: RefCell::new(faults), uses: RefCell::default(), values: RefCell::default() };
    let (jobs, upstreams) = {
        let parsed = parse(files, &findings);
        let upstreams = match parsed.iter().find(|file| file.name == UPSTREAMS) {
            Some(file) if file.sound => Upstreams::read(&Table::root(file.doc, file.table.get_ref())),
            Some(_) => Upstreams::unreadable(),
            None => Upstreams::default(),
        };
        let files: Vec<&Parsed<'_>> = parsed.iter().filter(|file| file.name != UPSTREAMS).collect();
        if files.is_empty() && findings.faults.borrow().is_empty() {
            let help = "write one for each kind of content, such as artwork_info.toml";
            findings.faults.borrow_mut().push(Fault::whole(place, "there is no job file", Some(help.to_owned())));
        }
        let jobs = read_jobs(&files, default_ttl, &upstreams);
        (jobs.into_iter().map(|(name, read)| (name, read.job)).collect(), upstreams)
    };
    let mut uses = findings.uses.take();
    uses.sort();
    uses.dedup();
    let mut faults = findings.faults.take();
    faults.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    faults.dedup();
    let jobs = if faults.is_empty() {
        Ok(together(jobs, upstreams, &uses, findings.values.take()))
    } else {
        Err(Faults(faults))
    };
    Reading { jobs, env: uses }
}

/// Parses the TOML files among these.
fn parse<'a>(files: &'a [(String, String)], findings: &'a Findings<'a>) -> Vec<Parsed<'a>> {
    let file_name = |path: &str| Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned());
    let mut parsed = Vec::new();
    for (path, text) in files {
        let Some(name) = file_name(path).filter(|name| name.ends_with(".toml")) else { continue };
        let doc = Document { findings, file: path, text };
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let at = error.span().unwrap_or(0..0);
            let help = leading_zero(error.message(), text, at.start);
            doc.fault_with_help(at, format!("not TOML: {}", error.message().trim()), help);
        }
        parsed.push(Parsed { doc, name, table, sound: errors.is_empty() });
    }
    parsed
}

/// Returns the remedy if a number of a TOML file begins with a zero. In a list, postcodes and station numbers do.
fn leading_zero(error: &str, text: &str, at: usize) -> Option<String> {
    let (before, after) = (text.get(..at)?, text.get(at..)?);
    let part = |c: char| c.is_ascii_digit() || "+-._".contains(c);
    let start = before.trim_end_matches(part).len();
    let end = at + after.find(|c: char| !part(c)).unwrap_or(after.len());
    let number = text.get(start..end).filter(|_| error.contains("leading zero"))?;
    let is_in_list = before[..start].trim_end().ends_with(['[', ',']);
    Some(if is_in_list && number.chars().all(|c| c.is_ascii_digit()) {
        format!("write it as a string: \"{number}\"")
    } else {
        "write it without the leading zero".to_owned()
    })
}

/// Reads the jobs, and checks their keys and inputs against each other.
fn read_jobs<'a>(
    files: &[&'a Parsed<'a>],
    default_ttl: Duration,
    upstreams: &Upstreams,
) -> BTreeMap<JobName, ReadJob<'a>> {
    let mut jobs: BTreeMap<JobName, ReadJob<'_>> = BTreeMap::new();
    // Every job's key is known. Otherwise an input's key may belong to a job that could not be read.
    let mut complete = true;
    for Parsed { doc, name: file, table, sound } in files {
        let name = file.strip_suffix(".toml").unwrap_or(file);
        if let Err(message) = check_file_name(name) {
            doc.findings.faults.borrow_mut().push(Fault::whole(
                doc.file,
                format!("a job is named after its file, and {message}"),
                Some("rename the file".to_owned()),
            ));
        }
        let name = JobName::new(name);
        let read = sound.then(|| job::read(*doc, table.get_ref(), name.clone(), default_ttl, upstreams)).flatten();
        complete &= read.is_some();
        if let Some(read) = read
            && let Some(other) = jobs.insert(name.clone(), read)
        {
            doc.fault(0..0, format!("there are two files for the job `{name}`: {} and {}", other.doc.file, doc.file));
        }
    }
    check_keys(&jobs);
    if complete {
        check_inputs(&jobs);
    }
    jobs
}

/// Returns the jobs with their upstreams. Entries are refreshed early enough for a time-out and a retry.
fn together(jobs: BTreeMap<JobName, Job>, upstreams: Upstreams, uses: &[EnvUse], env_values: EnvValues) -> Jobs {
    let (upstreams, written) = upstreams.into_all();
    let refreshed_in_time = |mut job: Job| {
        let least = job.least_ahead(&upstreams);
        if !job.warm.ahead.is_zero() && least <= job.ttl / 6 {
            job.warm.ahead = job.warm.ahead.max(least);
        }
        job.requests = requests(&job, &upstreams, &env_values);
        job.made = made::digest(&job, &written);
        Arc::new(job)
    };
    let jobs = jobs.into_iter().map(|(name, job)| (name, refreshed_in_time(job))).collect();
    Jobs { jobs, upstreams, env: variables(uses), env_values }
}

/// Returns a digest of what a job's requests are made from, apart from the entry and its inputs.
fn requests(job: &Job, upstreams: &BTreeMap<UpstreamName, Arc<Upstream>>, env_values: &EnvValues) -> String {
    let upstreams = job.sources.iter().filter_map(|source| upstreams.get(source.upstream()?));
    let upstreams: Vec<_> = upstreams.map(|upstream| (&upstream.url, &upstream.headers)).collect();
    let made_from = (&job.digest, upstreams, env_values.iter().collect::<Vec<_>>());
    format!("{:016x}", XxHash3_64::oneshot(&serde_json::to_vec(&made_from).unwrap_or_default()))
}

/// Names of jobs and upstreams are parts of Redis keys.
fn check_file_name(name: &str) -> Result<(), String> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
        return Err(format!("`{name}` is no name; use letters, digits, `_` and `-`"));
    }
    if name.len() > LONGEST_NAME {
        return Err(format!("`{name}` is too long; the most is {LONGEST_NAME} characters"));
    }
    Ok(())
}

/// No key may have two owners.
fn check_keys(jobs: &BTreeMap<JobName, ReadJob<'_>>) {
    let own = KeyPattern::parse(&format!("{OWN_KEYS}{{key}}"));
    let all: Vec<&ReadJob<'_>> = jobs.values().collect();
    for (index, read) in all.iter().enumerate() {
        let key = &read.job.key;
        if own.as_ref().is_ok_and(|own| own.overlaps(key)) {
            read.doc.fault_with_help(
                read.key_at.clone(),
                format!("keys of `{key}` could be Samovar's own, which begin with `{OWN_KEYS}`"),
                Some("begin the key with something else".to_owned()),
            );
        }
        for other in all.iter().take(index).filter(|other| other.job.key.overlaps(key)) {
            read.doc.fault_with_help(
                read.key_at.clone(),
                format!(
                    "the jobs `{}` and `{}` claim the same keys: `{}` and `{key}` overlap",
                    other.job.name, read.job.name, other.job.key
                ),
                Some("let each key begin with text of its own".to_owned()),
            );
        }
    }
}

/// Every input must be some job's entry, and nothing may wait for itself.
fn check_inputs(jobs: &BTreeMap<JobName, ReadJob<'_>>) {
    let mut needs: BTreeMap<&JobName, Vec<(&JobName, &str)>> = BTreeMap::new();
    for (name, read) in jobs {
        for (input, of) in &read.job.inputs {
            let pattern = &of.key;
            let at = read.inputs_at.get(input).cloned().unwrap_or(0..0);
            match jobs.iter().find(|(_, other)| owns(&other.job.key, pattern)) {
                Some((owner, _)) => needs.entry(name).or_default().push((owner, input)),
                None => {
                    let near = jobs.values().find(|other| other.job.key.overlaps(pattern));
                    let help = near.map(|other| {
                        format!("`{}` of the job `{}` covers only some of them", other.job.key, other.job.name)
                    });
                    read.doc.fault_with_help(
                        at,
                        format!("no job warms `{pattern}`, which the input `{input}` asks for"),
                        Some(help.unwrap_or_else(|| "write a job file with that key, or correct the input".to_owned())),
                    );
                }
            }
        }
    }
    let mut done = BTreeSet::new();
    for name in jobs.keys() {
        let mut path = Vec::new();
        if let Some((job, input)) = circle(name, &needs, &mut path, &mut done)
            && let Some(read) = jobs.get(job)
        {
            let start = path.iter().position(|one| *one == job).unwrap_or(0);
            let names: Vec<&str> = path.iter().skip(start).chain([&job]).map(|one| one.as_str()).collect();
            read.doc.fault_with_help(
                read.inputs_at.get(input).cloned().unwrap_or(0..0),
                format!("jobs wait for each other: {}", names.join(" → ")),
                Some("remove one of these inputs".to_owned()),
            );
        }
    }
}

/// Returns whether all keys that an input can ask for are of a job's pattern, tried with values of several kinds.
fn owns(key: &KeyPattern, input: &KeyPattern) -> bool {
    let values = ["x", "Mona Lisa", "Kaplumbağa Terbiyecisi", "1234567890"];
    values.iter().all(|value| {
        let params: Params = input.names().iter().map(|name| (name.clone(), (*value).to_owned())).collect();
        input.write(&params).is_some_and(|written| key.read(written.as_str()).is_some())
    })
}

/// The job and the input at which a circle closes, with the path to there.
fn circle<'j>(
    name: &'j JobName,
    needs: &BTreeMap<&'j JobName, Vec<(&'j JobName, &'j str)>>,
    path: &mut Vec<&'j JobName>,
    done: &mut BTreeSet<&'j JobName>,
) -> Option<(&'j JobName, &'j str)> {
    if done.contains(name) {
        return None;
    }
    path.push(name);
    for (next, input) in needs.get(name).into_iter().flatten() {
        if path.contains(next) {
            let first = needs.get(next).into_iter().flatten();
            let start = path.iter().position(|one| one == next).unwrap_or(0);
            let after = path.get(start + 1).copied().unwrap_or(next);
            let input = first.into_iter().find(|(to, _)| *to == after).map_or(*input, |(_, input)| *input);
            done.extend(path.iter().copied());
            return Some((next, input));
        }
        if let Some(found) = circle(next, needs, path, done) {
            return Some(found);
        }
    }
    path.pop();
    done.insert(name);
    None
}

#[cfg(test)]
mod tests;
