//! The listed entries of a job, rendered: `samovar check` finds names at which a worker fails.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::entry::escape::escaped;
use crate::job::{Entries, Job, Jobs, Params, Template};
use crate::source::{Preview, RequestFault};
use crate::warmer::check_storable;

/// The most listed entries of a job that are rendered.
const MOST: usize = 5_000;
/// The most faults of a job that are reported.
const REPORTED: usize = 100;
/// The most of them that are shown to people.
const SHOWN: usize = 10;
const HELP: &str = "correct the name in `entries.list`, or the template";

/// The listed entries of a job, rendered as far as that needs no answer and no input.
#[derive(Debug, Serialize)]
pub struct Rendered {
    /// The number of entries that were rendered: all that are listed, 5,000 at most.
    pub entries: usize,
    /// The number of those for which a template fails.
    pub failing: usize,
    /// One fault of each of these, of the first hundred.
    pub faults: Vec<EntryFault>,
}

/// A template that fails for an entry.
#[derive(Debug, Serialize)]
pub struct EntryFault {
    /// The entry's key.
    pub key: String,
    /// The field of the job file: `url`, `header X-Lang`, `prompt of fallback 1`, `tag`, `input art`.
    pub place: String,
    /// The template, or the key pattern of an input.
    pub template: String,
    /// The reason.
    pub reason: String,
    /// The remedy.
    pub help: &'static str,
}

impl Rendered {
    /// Renders a job's listed entries.
    pub(super) fn of(job: &Job, jobs: &Jobs) -> Self {
        let (preview, stored) = (Preview::new(job, &jobs.env_values), Stored::of(job));
        let (mut entries, mut failing, mut faults) = (0, 0, Vec::new());
        for params in job.entries.list.iter().take(MOST) {
            entries += 1;
            let fault = input_fault(job, jobs, params).or_else(|| preview.fault(params));
            let Some(fault) = fault.or_else(|| stored.iter().find_map(|stored| stored.fault(params, &preview))) else {
                continue;
            };
            failing += 1;
            if faults.len() < REPORTED {
                let key = job.key.write(params).map_or_else(|| format!("{params:?}"), |key| key.to_string());
                let RequestFault { place, template, reason } = fault;
                faults.push(EntryFault { key, place, template, reason, help: HELP });
            }
        }
        Self { entries, failing, faults }
    }

    /// Writes the faults, and how many of the `listed` entries were rendered if not all were.
    pub(super) fn write(&self, f: &mut impl fmt::Write, listed: usize) -> fmt::Result {
        let Self { entries, failing, faults } = self;
        if *entries < listed {
            writeln!(f, "  rendered  the first {entries} of {listed} listed entries")?;
        }
        if *failing == 0 {
            return Ok(());
        }
        let entries = if *failing == 1 { "listed entry" } else { "listed entries" };
        writeln!(f, "  failing   {failing} {entries}: a worker fails at a template; {HELP}:")?;
        for EntryFault { key, place, template, reason, .. } in faults.iter().take(SHOWN) {
            writeln!(f, "            {}", escaped(&format!("{key}: {place} `{template}`: {reason}")))?;
        }
        match failing.saturating_sub(SHOWN) {
            0 => Ok(()),
            more => writeln!(f, "            and {more} more"),
        }
    }
}

/// Returns the fault of an input that has no key for an entry, or whose key is no job's.
fn input_fault(job: &Job, jobs: &Jobs, params: &Params) -> Option<RequestFault> {
    job.inputs.iter().find_map(|(name, input)| {
        let reason = match input.key.write(params) {
            None => "it makes no key: the key would be too long, or be read back as something else".to_owned(),
            Some(key) if jobs.owner(key.as_str()).is_none() => format!("no job warms {key}"),
            Some(_) => return None,
        };
        Some(RequestFault { place: format!("input {name}"), template: input.key.to_string(), reason })
    })
}

/// A tag or the version of a job, if it needs neither the answer nor an input.
struct Stored {
    place: &'static str,
    template: Template,
    /// The job with this template alone.
    job: Job,
}

impl Stored {
    fn of(job: &Job) -> Vec<Self> {
        let tags = job.tags.iter().map(|template| ("tag", template));
        let all = tags.chain(job.version.iter().map(|template| ("version", template)));
        let needs_answer = |name: &String| name == "value" || name.starts_with("value.");
        // Without its list, which may be long.
        let bare = Job { entries: Entries::default(), ..job.clone() };
        all.filter(|(_, template)| !job.names_input(template) && !template.names().iter().any(needs_answer))
            .map(|(place, template)| {
                let (template, mut job) = (template.clone(), bare.clone());
                (job.tags, job.version) = match place {
                    "tag" => (vec![template.clone()], None),
                    _ => (Vec::new(), Some(template.clone())),
                };
                Self { place, template, job }
            })
            .collect()
    }

    fn fault(&self, params: &Params, preview: &Preview<'_>) -> Option<RequestFault> {
        let reason = check_storable(&self.job, params, &Map::new(), &Value::Null).err()?;
        let template = self.template.source();
        let reason = reason.strip_prefix(&format!("the {} `{template}`: ", self.place)).unwrap_or(&reason);
        let (template, reason) = (preview.hide(template), preview.hide(reason));
        Some(RequestFault { place: self.place.to_owned(), template, reason })
    }
}
