//! `samovar check`: reads job files and reports their content or their faults, without access to Redis or an upstream.
//! It renders the listed entries, as far as that needs no answer.
//!
//! Values of environment variables are hidden as `***`, except in upstreams' URLs, where only variables with the name
//! of a secret are hidden.

use crate::entry::duration;
use crate::job::{
    EnvUse, EnvValues, Fault, Faults, Input, Job, JobSchedule, Jobs, KeyPattern, Params, Shape, Source, Template,
};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::listed::Rendered;
use crate::entry::escape::{escaped, escaped_lines};

const MASK: &str = "***";
/// The shortest value that is hidden: shorter ones occur in ordinary words. Templates cannot read secrets in any case.
const SHORTEST_SECRET: usize = 4;
/// The longest prompt that is shown, in characters.
const SHOWN_PROMPT: usize = 300;

/// The most entries that an example of a request for many asks for.
const SHOWN_ENTRIES: usize = 3;

/// The report on a folder of job files.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The faults; with any, there are no jobs.
    pub faults: Vec<FaultReport>,
    /// The jobs, by name.
    pub jobs: Vec<JobReport>,
    /// The environment variables that the files name, also if there are faults.
    pub env: Vec<EnvReport>,
    #[serde(skip)]
    found: Option<Faults>,
}

/// One fault.
#[derive(Debug, Serialize)]
pub struct FaultReport {
    /// The file's path.
    pub file: String,
    /// The line, from 1; 0 for the whole file.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The fault.
    pub message: String,
    /// The remedy.
    pub help: Option<String>,
}

/// One job.
#[derive(Debug, Serialize)]
pub struct JobReport {
    /// Its name.
    pub name: String,
    /// Its description.
    pub description: Option<String>,
    /// The key pattern.
    pub key: String,
    /// The TTL, in seconds.
    #[serde(rename = "ttl_seconds")]
    pub ttl: f64,
    /// The time before expiry at which an entry is refreshed, in seconds; 0 for never.
    #[serde(rename = "ahead_seconds")]
    pub ahead: f64,
    /// The time a value is kept beyond its TTL while the source fails, in seconds.
    #[serde(rename = "stale_if_error_seconds")]
    pub stale_if_error: f64,
    /// The schedules, joined by `; `, each with its time zone unless that is UTC, and with `(refetch)` if its warmups
    /// fetch everything.
    pub schedule: Option<String>,
    /// The time zone of a single schedule.
    pub timezone: Option<String>,
    /// The next warmup of any schedule, in RFC 3339.
    pub next: Option<String>,
    /// All schedules, in the file's order.
    pub schedules: Vec<ScheduleReport>,
    /// The inputs' key patterns by name.
    pub inputs: BTreeMap<String, String>,
    /// The names of the optional inputs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub optional_inputs: Vec<String>,
    /// The number of entries that the file lists.
    pub listed: usize,
    /// These entries, rendered.
    pub rendered: Rendered,
    /// The URL of the feed.
    pub feed: Option<String>,
    /// The number of most read entries that are kept warm.
    pub popular: usize,
    /// Warnings.
    pub warnings: Vec<String>,
    /// The requests of one entry.
    pub example: Example,
}

/// One schedule of a job.
#[derive(Clone, Debug, Serialize)]
pub struct ScheduleReport {
    /// The schedule, as written.
    pub schedule: String,
    /// Its time zone; absent for an interval.
    pub timezone: Option<String>,
    /// Its next warmup, in RFC 3339.
    pub next: Option<String>,
    /// Its warmups fetch everything.
    pub refetch: bool,
}

/// One entry and its requests.
#[derive(Debug, Serialize)]
pub struct Example {
    /// Its key.
    pub key: Option<String>,
    /// The source and its fallbacks, in order.
    pub requests: Vec<Request>,
}

/// One source's request.
#[derive(Debug, Serialize)]
pub struct Request {
    /// `GET` or `POST`; the kind of a source that asks no server, in capitals.
    pub method: &'static str,
    /// The URL; the template itself if it needs inputs. Absent if no server is asked.
    pub url: Option<String>,
    /// The most entries that one request asks for, if it asks for many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<usize>,
    /// The model, for AI.
    pub model: Option<String>,
    /// The system message, for AI.
    pub system: Option<String>,
    /// The user message, for AI.
    pub prompt: Option<String>,
    /// The value's templates, if no server is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
}

/// An environment variable, without its value.
#[derive(Debug, Serialize)]
pub struct EnvReport {
    /// Its name.
    pub name: String,
    /// `true` if it is set and not empty.
    pub set: bool,
    /// Its uses: `file:line:column`.
    pub used: Vec<String>,
}

/// Reads the job files of a folder like [`Jobs::read`], and reports.
pub fn check(folder: &Path, default_ttl: Duration, env: &dyn Fn(&str) -> Option<String>) -> Report {
    check_at(folder, default_ttl, env, Utc::now())
}

fn check_at(folder: &Path, default_ttl: Duration, env: &dyn Fn(&str) -> Option<String>, now: DateTime<Utc>) -> Report {
    let reading = Jobs::read(folder, default_ttl, env);
    let env_report = variables(&reading.env);
    let jobs = match reading.jobs {
        Ok(jobs) => jobs,
        Err(faults) => {
            return Report {
                faults: faults.0.iter().map(FaultReport::of).collect(),
                jobs: Vec::new(),
                env: env_report,
                found: Some(faults),
            };
        }
    };
    // The origin of a URL is already rendered here, so it is searched for secrets.
    let secrets = jobs.env.iter().filter(|name| EnvValues::is_secret(name)).filter_map(|name| env(name));
    let secrets: Vec<String> = secrets.map(|value| value.trim().trim_end_matches('/').to_owned()).collect();
    let reports = jobs.jobs.values().map(|job| job_report(job, &jobs, &secrets, now)).collect();
    Report { faults: Vec::new(), jobs: reports, env: env_report, found: None }
}

fn variables(uses: &[EnvUse]) -> Vec<EnvReport> {
    let mut found: Vec<EnvReport> = Vec::new();
    for one in uses {
        let place = format!("{}:{}:{}", one.file, one.line, one.column);
        match found.last_mut().filter(|last| last.name == one.name) {
            Some(last) => last.used.push(place),
            None => found.push(EnvReport { name: one.name.clone(), set: one.set, used: vec![place] }),
        }
    }
    found
}

fn job_report(job: &Job, jobs: &Jobs, secrets: &[String], now: DateTime<Utc>) -> JobReport {
    let env = &jobs.env;
    let all = job.warm.schedules.list();
    let schedules: Vec<ScheduleReport> = all.iter().map(|one| schedule_report(one, now)).collect();
    let first =
        all.iter().zip(&schedules).min_by_key(|(one, _)| one.schedule.next(now).unwrap_or(DateTime::<Utc>::MAX_UTC));
    let timezone = schedules.first().filter(|_| schedules.len() == 1).and_then(|one| one.timezone.clone());
    let masks: serde_json::Map<String, Value> = env.iter().map(|name| (name.clone(), json!(MASK))).collect();
    let params = job.entries.list.first().cloned().unwrap_or_else(|| sample(&job.key));
    let mut context: serde_json::Map<String, Value> =
        params.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    if job.sources.iter().any(|source| source.properties().at_once > 1) {
        context.insert("entries".to_owned(), json!(asked_together(job, &params)));
    }
    context.insert("env".to_owned(), Value::Object(masks));
    let view = View { job, context: Value::Object(context), secrets };
    let optional = job.inputs.iter().filter(|(_, input)| input.is_optional);
    JobReport {
        name: job.name.to_string(),
        description: job.description.clone(),
        key: job.key.to_string(),
        ttl: job.ttl.as_secs_f64(),
        ahead: job.warm.ahead.as_secs_f64(),
        stale_if_error: job.warm.stale_if_error.as_secs_f64(),
        schedule: job.warm.schedules.text(),
        timezone,
        next: first.and_then(|(_, report)| report.next.clone()),
        schedules,
        inputs: job.inputs.iter().map(|(name, input)| (name.clone(), input.key.to_string())).collect(),
        optional_inputs: optional.map(|(name, _)| name.clone()).collect(),
        listed: job.entries.list.len(),
        rendered: Rendered::of(job, jobs),
        feed: job.entries.feed.as_ref().map(|feed| view.url(&feed.url)),
        popular: job.entries.popular,
        warnings: too_late(job, jobs).into_iter().chain(no_entries(job)).chain(short_inputs(job, jobs)).collect(),
        example: Example {
            key: job.key.write(&params).map(|key| key.to_string()),
            requests: job.sources.iter().map(|source| view.request(source)).collect(),
        },
    }
}

/// Returns the entries of an example of a request for many: the first listed ones, or one that is made up.
fn asked_together(job: &Job, sample: &Params) -> Vec<Params> {
    let listed: Vec<Params> = job.entries.list.iter().take(SHOWN_ENTRIES).cloned().collect();
    if listed.is_empty() { vec![sample.clone()] } else { listed }
}

fn schedule_report(one: &JobSchedule, now: DateTime<Utc>) -> ScheduleReport {
    let timezone = one.schedule.timezone();
    ScheduleReport {
        schedule: one.schedule.as_str().to_owned(),
        timezone: timezone.map(|zone| zone.name().to_owned()),
        next: one.schedule.next(now).map(|at| match timezone {
            Some(zone) => at.with_timezone(&zone).to_rfc3339(),
            None => at.to_rfc3339(),
        }),
        refetch: one.refetch,
    }
}

/// Returns a warning if an entry may expire while it is refreshed.
fn too_late(job: &Job, jobs: &Jobs) -> Option<String> {
    let least = job.least_ahead(&jobs.upstreams);
    if job.warm.ahead.is_zero() || job.warm.ahead >= least {
        return None;
    }
    let [ahead, least] = [job.warm.ahead, least].map(duration::text);
    Some(format!(
        "refreshed {ahead} ahead, an entry may expire while a slow answer is awaited: with these time-outs and one retry \
         it takes up to {least}; raise `ttl` and `ahead`, or lower `timeout` of the upstream"
    ))
}

/// Returns a warning if a job has a schedule, and no entries that its warmups could fetch.
fn no_entries(job: &Job) -> Option<String> {
    (names_none(job) && !job.warm.schedules.list().is_empty()).then(|| {
        "has a schedule but no entries: its warmups fetch nothing, and its entries are fetched on demand only, for \
         instance as inputs of others; add `list`, `feed` or `popular` in [entries], or remove the schedule"
            .to_owned()
    })
}

/// Returns `true` if a job keeps no entry warm by itself.
fn names_none(job: &Job) -> bool {
    let entries = &job.entries;
    entries.list.is_empty() && entries.feed.is_none() && entries.popular == 0
}

/// Returns a hint for each input that may expire before the value that is made from it, because nothing keeps it warm.
fn short_inputs(job: &Job, jobs: &Jobs) -> Vec<String> {
    let hint = |(name, input): (&String, &Input)| {
        let owner = jobs.jobs.values().find(|owner| owner.name != job.name && owner.key.overlaps(&input.key))?;
        let is_kept = !names_none(owner) && !owner.warm.ahead.is_zero();
        if is_kept || owner.ttl >= job.ttl {
            return None;
        }
        let ([short, long], owner) = ([owner.ttl, job.ttl].map(duration::text), &owner.name);
        Some(format!(
            "its input `{name}` lives for {short} (`ttl` of {owner}), and its own values for {long}: an input that \
             nothing keeps warm expires sooner, and what changes upstream after that reaches a value at its next \
             refresh; raise the `ttl` of {owner}, lower this one, or let {owner} keep entries warm (`list`, `feed` or \
             `popular`)"
        ))
    };
    job.inputs.iter().filter_map(hint).collect()
}

/// Returns sample values: each placeholder's name.
fn sample(key: &KeyPattern) -> Params {
    key.names().iter().map(|name| (name.clone(), name.clone())).collect()
}

/// One entry's templates, rendered.
struct View<'j> {
    job: &'j Job,
    context: Value,
    secrets: &'j [String],
}

impl View<'_> {
    fn request(&self, source: &Source) -> Request {
        let outline = source.outline();
        Request {
            method: outline.method,
            url: outline.url.map(|url| self.url(url)),
            entries: self.entries(source),
            model: outline.model.map(|model| self.masked(model.to_owned())),
            system: outline.system.map(|system| self.text(system)),
            prompt: outline.prompt.map(|prompt| self.text(prompt)),
            value: outline.value.map(Shape::source),
        }
    }

    /// Returns the most entries that a request to a source asks for; `None` if it is one.
    fn entries(&self, source: &Source) -> Option<usize> {
        Some(source.properties().at_once).filter(|most| *most > 1)
    }

    fn url(&self, template: &Template) -> String {
        let source = || self.masked(template.source().to_owned());
        let is_of_many = template.names().iter().any(|name| name.split('.').next() == Some("entries"));
        if self.job.names_input(template) || is_of_many && !self.job.inputs.is_empty() {
            return source();
        }
        match template.render_url(&self.context) {
            Ok(url) => self.masked(url.replace("%2A%2A%2A", MASK)),
            Err(message) => format!("{} ({message})", source()),
        }
    }

    fn text(&self, template: &Template) -> String {
        let text = if self.job.names_input(template) { None } else { template.render(&self.context).ok() };
        let text = self.masked(text.unwrap_or_else(|| template.source().to_owned()));
        match text.char_indices().nth(SHOWN_PROMPT) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        }
    }

    fn masked(&self, text: String) -> String {
        self.secrets
            .iter()
            .filter(|secret| secret.len() >= SHORTEST_SECRET)
            .fold(text, |text, secret| text.replace(secret, MASK))
    }
}

impl FaultReport {
    fn of(fault: &Fault) -> Self {
        Self {
            file: fault.file.clone(),
            line: fault.line,
            column: fault.column,
            message: fault.message.clone(),
            help: fault.help.clone(),
        }
    }
}

impl Report {
    /// Returns `true` if the jobs can run.
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }

    /// Returns the number of listed entries for which a template fails.
    pub fn failing(&self) -> usize {
        self.jobs.iter().map(|job| job.rendered.failing).sum()
    }

    /// Returns the report as text, with colours for a terminal.
    pub fn render(&self, colours: bool) -> String {
        let mut text = String::new();
        // Writing to a `String` does not fail.
        let _ = self.write(&mut text, colours);
        text
    }

    fn write(&self, f: &mut impl fmt::Write, colours: bool) -> fmt::Result {
        let (strong, end) = if colours { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        for job in &self.jobs {
            let description = job.description.as_deref().unwrap_or_default();
            writeln!(f, "{strong}{}{end}  {}", job.name, escaped(description))?;
            let mut lines = String::new();
            job.write(&mut lines)?;
            f.write_str(&escaped_lines(&lines))?;
            writeln!(f)?;
        }
        if !self.env.is_empty() {
            writeln!(f, "{strong}environment{end}")?;
            let width = self.env.iter().map(|one| one.name.len()).max().unwrap_or(0);
            for one in &self.env {
                let set = if one.set { "set" } else { "NOT SET" };
                writeln!(f, "  {:width$}  {set:7}  {}", one.name, escaped(&one.used.join(", ")))?;
            }
            writeln!(f)?;
        }
        match &self.found {
            Some(faults) => writeln!(f, "{}", faults.render(colours)),
            None => {
                let plural = if self.jobs.len() == 1 { "" } else { "s" };
                let failing = match self.failing() {
                    0 => String::new(),
                    failing => format!(" in the files; listed entries that fail: {failing}"),
                };
                writeln!(f, "{} job{plural}, no fault{failing}", self.jobs.len())
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, false)
    }
}

impl JobReport {
    fn write(&self, f: &mut impl fmt::Write) -> fmt::Result {
        let time = |seconds: f64| duration::text(Duration::from_secs_f64(seconds));
        writeln!(f, "  key       {}", escaped(&self.key))?;
        write!(f, "  ttl       {}", time(self.ttl))?;
        if self.ahead > 0.0 {
            write!(f, ", refreshed {} before it ends", time(self.ahead))?;
        }
        if self.stale_if_error > 0.0 {
            write!(f, ", kept {} longer while the source fails", time(self.stale_if_error))?;
        }
        writeln!(f)?;
        if self.schedules.is_empty() {
            writeln!(f, "  warmup    at the start, after a change of the file, and after a flush")?;
        }
        for ScheduleReport { schedule, timezone, next, refetch } in &self.schedules {
            let zone = timezone.as_deref().map(|zone| format!(" {zone}")).unwrap_or_default();
            let next = next.as_deref().map(|next| format!(", next {next}")).unwrap_or_default();
            let refetch = if *refetch { ", fetches everything" } else { "" };
            writeln!(f, "  warmup    {schedule}{zone}{next}{refetch}")?;
        }
        let mut kept = vec![format!("{} listed", self.listed)];
        if self.popular > 0 {
            kept.push(format!("the {} most read", self.popular));
        }
        kept.extend(self.feed.as_ref().map(|feed| format!("those of {feed}")));
        writeln!(f, "  entries   {}", escaped(&kept.join(", ")))?;
        self.rendered.write(f, self.listed)?;
        for (name, pattern) in &self.inputs {
            let optional = if self.optional_inputs.contains(name) { " (optional)" } else { "" };
            writeln!(f, "  input     {name} = {}{optional}", escaped(pattern))?;
        }
        for warning in &self.warnings {
            writeln!(f, "  warning   {warning}")?;
        }
        let key = self.example.key.as_deref().unwrap_or("none");
        writeln!(f, "  example   {}", escaped(key))?;
        for request in &self.example.requests {
            let model = request.model.as_deref().map(|model| format!("  model {model}")).unwrap_or_default();
            let value = request.value.as_ref().map(Value::to_string);
            let what = request.url.as_ref().or(value.as_ref()).map(String::as_str).unwrap_or_default();
            let many = request.entries.map(|most| format!("  for up to {most} entries")).unwrap_or_default();
            writeln!(f, "            {} {}{model}{many}", request.method, escaped(what))?;
            for (name, text) in [("system", &request.system), ("prompt", &request.prompt)] {
                if let Some(text) = text {
                    writeln!(f, "            {name}: {}", text.trim().replace('\n', "\n                    "))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(name: &str) -> Option<String> {
        Some(match name {
            "MUSEUM_URL" => "http://127.0.0.1:8600".to_owned(),
            "OPENAI_BASE_URL" => "http://127.0.0.1:8600/v1".to_owned(),
            "OPENAI_API_KEY" => "sk-very-secret".to_owned(),
            "PATH_TOKEN" => "hunter2".to_owned(),
            _ => return None,
        })
    }

    fn report(files: &[(&str, &str)]) -> Report {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let now = DateTime::parse_from_rfc3339("2026-01-01T00:10:00Z").unwrap().to_utc();
        check_at(folder.path(), Duration::from_secs(3600), &environment, now)
    }

    #[test]
    fn the_shipped_jobs_are_shown_without_their_secrets() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs");
        let now = DateTime::parse_from_rfc3339("2026-01-01T00:10:00Z").unwrap().to_utc();
        let report = check_at(&folder, Duration::from_secs(3600), &environment, now);
        let text = report.render(false);
        assert!(report.is_sound(), "{text}");
        for line in [
            "artwork_info  What the API shows about an artwork\n  key       artwork_info:{artwork_name}\n",
            "  ttl       2h, refreshed 10m before it ends, kept 6h longer while the source fails\n",
            "  warmup    */30 * * * * Europe/Istanbul, next 2026-01-01T03:30:00+03:00\n",
            "  entries   2 listed, the 200 most read, those of http://127.0.0.1:8600/popular\n",
            "  input     artwork = artwork_info:{artwork_name}\n",
            "  example   artwork_info:Mona Lisa\n            GET http://127.0.0.1:8600/artworks/Mona%20Lisa\n",
            "            POST http://127.0.0.1:8600/v1/chat/completions  model gpt-4o-mini\n",
            "            prompt: {{ artwork_name }} hakkında bir hikâye yaz. Bilinenler: {{ artwork | tojson }}\n",
            "            prompt: Leonardo da Vinci adlı sanatçının hayatını en çok üç cümleyle anlat.\n",
            "  OPENAI_API_KEY   set      ",
            "5 jobs, no fault\n",
        ] {
            assert!(text.contains(line), "{line}\n----\n{text}");
        }
        let json = serde_json::to_string(&report).unwrap();
        assert!(!text.contains("very-secret") && !json.contains("very-secret"));
    }

    #[test]
    fn each_schedule_is_shown_with_its_next_warmup() {
        let report = report(&[(
            "a.toml",
            "key = \"a:{x}\"\n[source]\nkind = \"http\"\nurl = \"http://h/{{ x }}\"\n\
             [[warm.schedules]]\nschedule = \"0 4 * * *\"\ntimezone = \"Europe/Istanbul\"\nrefetch = true\n\
             [[warm.schedules]]\nevery = \"15m\"\n[[warm.schedules]]\nschedule = \"@hourly\"\n",
        )]);
        let job = &report.jobs[0];
        let joined = "0 4 * * * Europe/Istanbul (refetch); every 15m; @hourly";
        assert_eq!((job.schedule.as_deref(), job.timezone.as_deref()), (Some(joined), None));
        assert_eq!(job.next.as_deref(), Some("2026-01-01T00:15:00+00:00"), "the earliest of all");
        let text = report.to_string();
        let lines = "  warmup    0 4 * * * Europe/Istanbul, next 2026-01-01T04:00:00+03:00, fetches everything\n  \
                     warmup    every 15m, next 2026-01-01T00:15:00+00:00\n  \
                     warmup    @hourly UTC, next 2026-01-01T01:00:00+00:00\n";
        assert!(text.contains(lines), "{text}");
    }

    #[test]
    fn what_comes_from_the_environment_is_masked() {
        let report = report(&[(
            "a.toml",
            "key = \"a:{x}\"\n[source]\nkind = \"http\"\nurl = \"{{ env.MUSEUM_URL }}/{{ x }}?k={{ env.PATH_TOKEN }}\"\n\
             [[source.fallback]]\nkind = \"http\"\nurl = \"http://h{{ env.PATH_TOKEN }}/\"\n",
        )]);
        let urls: Vec<&str> =
            report.jobs[0].example.requests.iter().map(|request| request.url.as_deref().unwrap()).collect();
        assert_eq!(urls[0], "http://127.0.0.1:8600/x?k=***");
        assert_eq!(urls[1], "http://h***/");
        assert!(!report.to_string().contains("hunter2"));
    }

    #[test]
    fn variables_are_listed_even_where_there_are_faults() {
        let report = report(&[
            (
                "a.toml",
                "key = \"a:{x}\"\nttl = \"{{ env.LIFE }}\"\n[source]\nkind = \"http\"\nurl = \"{{ env.LOST }}/\"\n",
            ),
            ("upstreams.toml", "[m]\nurl = \"{{ env.MUSEUM_URL }}\"\nrate = \"fast\"\n"),
        ]);
        assert!(!report.is_sound());
        let names: Vec<(&str, bool)> = report.env.iter().map(|one| (one.name.as_str(), one.set)).collect();
        assert_eq!(names, [("LIFE", false), ("LOST", false), ("MUSEUM_URL", true)]);
        assert!(report.env[0].used[0].ends_with("a.toml:2:11"), "{:?}", report.env[0].used);
        let text = report.to_string();
        assert!(text.contains("LOST        NOT SET"), "{text}");
        assert!(text.ends_with("3 faults in 2 files; no job was loaded\n"), "{text}");
        assert_eq!(report.faults[0].line, 2);
    }

    #[test]
    fn who_refreshes_too_late_is_warned() {
        let job = |ttl: &str, timeout: &str| {
            let job = format!(
                "key = \"a:{{x}}\"\nttl = \"{ttl}\"\n[source]\nkind = \"http\"\nupstream = \"m\"\npath = \"/\"\n"
            );
            let upstreams = format!("[m]\nurl = \"http://h\"\ntimeout = \"{timeout}\"\n");
            report(&[("a.toml", &job), ("upstreams.toml", &upstreams)]).jobs.remove(0)
        };
        assert!(job("1m", "10s").warnings[0].contains("up to 20s500ms"));
        let raised = job("3m", "10s");
        assert!(raised.warnings.is_empty());
        assert!((raised.ahead - 20.5).abs() < 1e-9, "not 18 s: {}", raised.ahead);
        assert!((job("2h", "10s").ahead - 720.0).abs() < 1e-9);
    }

    #[test]
    fn a_schedule_without_entries_is_warned_of() {
        let warnings = |rest: &str| {
            let job = "key = \"a:{x}\"\nttl = \"1h\"\n[source]\nkind = \"http\"\nurl = \"http://h/{{ x }}\"\n";
            let mut report = report(&[("a.toml", &format!("{job}{rest}"))]);
            report.jobs.remove(0).warnings
        };
        assert!(warnings("[warm]\nevery = \"5m\"\n")[0].contains("has a schedule but no entries"));
        for rest in [
            "",
            "[warm]\nevery = \"5m\"\n[entries]\nlist = [\"a\"]\n",
            "[entries]\npopular = 3\n[warm]\nevery = \"5m\"\n",
        ] {
            assert_eq!(warnings(rest), Vec::<String>::new(), "{rest}");
        }
    }

    #[test]
    fn an_input_that_expires_before_the_value_is_hinted_at() {
        let warnings = |input: &str, page: &str| {
            let source = "[source]\nkind = \"http\"\nurl = \"http://h/{{ x }}\"\n";
            let input = format!("key = \"a:{{x}}\"\n{input}{source}");
            let page = format!("key = \"p:{{x}}\"\nttl = \"{page}\"\n[inputs]\na = \"a:{{x}}\"\n{source}");
            report(&[("a.toml", &input), ("p.toml", &page)]).jobs.remove(1).warnings
        };
        let hint = &warnings("ttl = \"5m\"\n", "1h")[0];
        assert!(hint.starts_with("its input `a` lives for 5m (`ttl` of a), and its own values for 1h: "), "{hint}");
        for (input, page) in [("ttl = \"1h\"\n", "1h"), ("ttl = \"5m\"\nentries = { list = [\"1\"] }\n", "1h")] {
            assert_eq!(warnings(input, page), Vec::<String>::new(), "{input}");
        }
        assert_eq!(warnings("ttl = \"5m\"\nentries = { list = [\"1\"] }\nwarm = { ahead = \"0s\" }\n", "1h").len(), 1);
    }

    #[test]
    fn an_entry_is_made_up_where_none_is_listed() {
        let report = report(&[(
            "a.toml",
            "key = \"a:{size}:{name}\"\n[source]\nkind = \"http\"\nurl = \"http://h/{{ name }}\"\nbody = { q = \"x\" }\n",
        )]);
        assert_eq!(report.jobs[0].example.key.as_deref(), Some("a:size:name"));
        assert_eq!(report.jobs[0].example.requests[0].method, "POST");
        assert!(report.to_string().contains("1 job, no fault"));
    }
}
