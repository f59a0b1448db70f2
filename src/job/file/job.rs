//! One job file: TOML to a [`Job`].

use super::document::{Document, Field, Table, short};
use super::entries::entries;
use super::made;
use super::schedules::schedules;
use super::scope::Scope;
use super::source::sources;
use super::spelling::{closest, has_names};
use super::upstreams::Upstreams;
use crate::entry::JobName;
use crate::entry::duration;
use crate::job::{Entries, Input, Job, KeyPattern, Params, Rate, Schedules, Source, Warm};
use crate::protocol::key_pattern::check_name;
use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;
use toml::de::DeTable;
use twox_hash::XxHash3_128;

/// As long as ten of the years in which durations are written.
const TEN_YEARS: Duration = Duration::from_secs(315_576_000);
const TTL: RangeInclusive<Duration> = Duration::from_secs(1)..=TEN_YEARS;
const RECHECK: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(24 * 3600);
const DEFAULT_RECHECK: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(10), Duration::from_secs(30)];
const PATIENCE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(24 * 3600);
const DEFAULT_PATIENCE: Duration = Duration::from_secs(60);
const ABSENT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(24 * 3600);
const DEFAULT_ABSENT: Duration = Duration::from_secs(60);
const MOST_RECHECKS: usize = 10;
const DEFAULT_ATTEMPTS: u32 = 8;
const DEFAULT_GONE_GUARD: u8 = 10;
const SHORTEST_AUDIT: Duration = Duration::from_millis(100);
const MOST_TAGS: usize = 100;
const MOST_INPUTS: usize = 20;

/// A job and where its parts stand, for faults that only all files together show.
pub(super) struct ReadJob<'a> {
    pub(super) doc: Document<'a>,
    pub(super) job: Job,
    pub(super) key_at: Range<usize>,
    /// By the input's name.
    pub(super) inputs_at: BTreeMap<String, Range<usize>>,
}

/// Reads a file; `None` where it has no key.
pub(super) fn read<'a>(
    doc: Document<'a>,
    root: &'a DeTable<'a>,
    name: JobName,
    default_ttl: Duration,
    upstreams: &Upstreams,
) -> Option<ReadJob<'a>> {
    let table = Table::root(doc, root);
    let description = table.field("description").and_then(|field| field.text()).map(|text| text.value);
    let key_field = table.required("key", "key = \"artwork_info:{artwork_name}\"");
    let key = key_field.as_ref().and_then(pattern);
    let ttl_field = table.field("ttl");
    let ttl = ttl_field.as_ref().and_then(|field| field.duration(TTL));
    let (inputs, inputs_at) = table.field("inputs").map(|field| inputs(&field, key.as_ref())).unwrap_or_default();
    let scope = match &key {
        Some(key) => Scope::new(key.names(), inputs_at.keys()),
        None => Scope::any(),
    };
    let tags = table.field("tags").and_then(|field| {
        let items = field.items()?;
        if items.len() > MOST_TAGS {
            field.fault(format!("{} tags are too many; the most is {MOST_TAGS}", items.len()));
        }
        let answered = scope.with_value();
        Some(items.iter().filter_map(|item| item.template(&answered)).collect())
    });
    let version_field = table.field("version");
    let version = version_field.as_ref().and_then(|field| field.text()?.template(&scope.with_value()));
    let sources = table
        .required("source", "[source] with kind = \"http\", upstream and path")
        .map(|field| sources(&field, key.as_ref(), &scope, upstreams))
        .unwrap_or_default();
    if let Some(field) = &version_field
        && sources.iter().any(|source: &Source| source.properties().costs_money)
    {
        field.doc.fault_with_help(
            field.key.clone(),
            "`version`: an AI answer has none, and each wait for one would be paid for",
            Some("announce versions of the entry's inputs; it is made anew when they change".to_owned()),
        );
    }
    let entries = match table.field("entries") {
        Some(field) => entries(&field, key.as_ref(), upstreams),
        None => Entries::default(),
    };
    let ttl_known = ttl_field.is_none() || ttl.is_some();
    let life = ttl.unwrap_or(default_ttl);
    let is_paid_for = sources.iter().any(|source: &Source| source.properties().costs_money);
    let warm = warm(table.field("warm"), life, ttl_known, is_paid_for);
    table.finish();
    let key = key?;
    let entries = if key.names().is_empty() { entries.listing(vec![Params::new()]) } else { entries };
    let digest = match ttl_field {
        Some(_) => doc.text.to_owned(),
        None => format!("{}\0{}", default_ttl.as_millis(), doc.text),
    };
    let digest = format!("{:x}", twox_hash::XxHash3_128::oneshot(digest.as_bytes()));
    Some(ReadJob {
        doc,
        job: Job {
            name,
            description,
            key,
            ttl: life,
            tags: tags.unwrap_or_default(),
            version,
            inputs,
            sources,
            entries,
            warm,
            digest: format!("{:032x}", XxHash3_128::oneshot(digest.as_bytes())),
            parts: made::parts(root),
            // Known with all files: the upstreams may be in another one.
            made: made::text(root),
            requests: String::new(),
        },
        key_at: key_field.map_or(0..0, |field| field.at()),
        inputs_at,
    })
}

fn pattern(field: &Field<'_>) -> Option<KeyPattern> {
    let text = field.text()?;
    match KeyPattern::parse(&text.value) {
        Ok(pattern) => Some(pattern),
        Err(message) => {
            text.fault(message);
            None
        }
    }
}

type Inputs = (BTreeMap<String, Input>, BTreeMap<String, Range<usize>>);

fn inputs(field: &Field<'_>, key: Option<&KeyPattern>) -> Inputs {
    let mut read = Inputs::default();
    let Some(table) = field.table("[inputs]") else { return read };
    let fields = table.all();
    if fields.len() > MOST_INPUTS {
        field.doc.fault(field.key.clone(), format!("{} inputs are too many; the most is {MOST_INPUTS}", fields.len()));
    }
    for input in fields {
        let name = input.name.clone();
        if let Err(message) = check_name(&name) {
            input.doc.fault(input.key.clone(), message);
        }
        if key.is_some_and(|key| key.names().contains(&name)) {
            input.doc.fault_with_help(
                input.key.clone(),
                format!("input `{name}` has the name of a placeholder in `key`"),
                Some(format!("rename the input; in templates, {{{{ {name} }}}} is the placeholder's value")),
            );
        }
        read.1.insert(name.clone(), input.at());
        let (input, is_optional) = if input.is_table() {
            let Some(table) = input.table(&format!("input `{name}`")) else { continue };
            let key = table.required("key", "key = \"artist:{id}\"");
            let is_optional = table.field("optional").and_then(|field| field.boolean());
            table.finish();
            let Some(key) = key else { continue };
            (key, is_optional.unwrap_or(false))
        } else {
            (input, false)
        };
        let Some(pattern) = pattern(&input) else { continue };
        for placeholder in pattern.names() {
            let Some(key) = key.filter(|key| !key.names().contains(placeholder)) else { continue };
            let help = match key.names() {
                [] => "the key has none".to_owned(),
                names => match closest(placeholder, names.iter().map(String::as_str)) {
                    Some(close) => format!("did you mean `{{{close}}}`?"),
                    None => has_names(key),
                },
            };
            input.fault_with_help(format!("`{{{placeholder}}}` is no placeholder of the key `{key}`"), help);
        }
        read.0.insert(name, Input { key: pattern, is_optional });
    }
    read
}

fn warm(field: Option<Field<'_>>, ttl: Duration, ttl_known: bool, is_paid_for: bool) -> Warm {
    let mut warm = Warm {
        schedules: Schedules::default(),
        ahead: ttl / 10,
        stale_if_error: Duration::ZERO,
        recheck: DEFAULT_RECHECK.to_vec(),
        version_patience: DEFAULT_PATIENCE,
        absent_for: DEFAULT_ABSENT,
        attempts: DEFAULT_ATTEMPTS,
        gone_guard: Some(DEFAULT_GONE_GUARD),
        audit: None,
    };
    let Some(table) = field.and_then(|field| field.table("[warm]")) else { return warm };
    let long = Duration::ZERO..=*TTL.end();
    warm.schedules = schedules(&table);
    if let Some(field) = table.field("ahead")
        && let Some(ahead) = field.duration(long.clone())
    {
        if ttl_known && ahead >= ttl {
            let shown = duration::text;
            field.fault_with_help(
                format!("`ahead` ({}) must be shorter than `ttl` ({})", shown(ahead), shown(ttl)),
                format!("a tenth of the TTL is usual: {}", shown(ttl / 10)),
            );
        }
        warm.ahead = ahead;
    }
    if let Some(stale) = table.field("stale_if_error").and_then(|field| field.duration(long)) {
        warm.stale_if_error = stale;
    }
    if let Some(recheck) = table.field("recheck").and_then(|field| recheck(&field)) {
        warm.recheck = recheck;
    }
    if let Some(patience) = table.field("version_patience").and_then(|field| field.duration(PATIENCE)) {
        warm.version_patience = patience;
    }
    if let Some(absent) = table.field("absent_for").and_then(|field| field.duration(ABSENT)) {
        warm.absent_for = absent;
    }
    table.retired(
        "settle",
        "`settle` is now `recheck`, a list of times",
        "write recheck = [\"1s\", \"3s\", \"10s\", \"30s\"], or recheck = [] for none",
    );
    if let Some(attempts) = table.field("attempts").and_then(|field| field.integer(1..=1000)) {
        warm.attempts = u32::try_from(attempts).unwrap_or(DEFAULT_ATTEMPTS);
    }
    warm.gone_guard = gone_guard(&table);
    warm.audit = audit(&table, is_paid_for);
    table.finish();
    warm
}

fn recheck(field: &Field<'_>) -> Option<Vec<Duration>> {
    let items = field.items()?;
    if items.len() > MOST_RECHECKS {
        field.fault(format!("{} rechecks are too many; the most is {MOST_RECHECKS}", items.len()));
        return None;
    }
    let mut times = Vec::with_capacity(items.len());
    for item in items {
        let time = item.duration(RECHECK)?;
        if let Some(before) = times.last().filter(|before| **before >= time) {
            let (before, time) = (duration::text(*before), duration::text(time));
            item.fault(format!("`recheck`: {time} must come before {before}; each is a time after the invalidation"));
            return None;
        }
        times.push(time);
    }
    Some(times)
}

/// Reads the interval of freshness audits.
fn audit(table: &Table<'_>, is_paid_for: bool) -> Option<Duration> {
    let field = table.field("audit")?;
    let text = field.text()?.value;
    if is_paid_for {
        field.fault_with_help(
            "`audit`: values from AI are not audited, since each request would cost money",
            "remove it, and audit the jobs that the prompt is made from",
        );
        return None;
    }
    let interval = match Rate::parse(&text) {
        Ok(Rate { count, per }) => per / count.max(1),
        Err(message) => {
            field.fault(format!("`audit`: {message}"));
            return None;
        }
    };
    if interval < SHORTEST_AUDIT {
        field.fault_with_help("`audit`: the most is 10 a second", "one a minute is usual: audit = \"1/minute\"");
        return None;
    }
    Some(interval)
}

/// Reads the share of `gone_guard`; `None` for "off" and where it has a fault.
fn gone_guard(table: &Table<'_>) -> Option<u8> {
    let Some(field) = table.field("gone_guard") else { return Some(DEFAULT_GONE_GUARD) };
    let text = field.text_or_number()?.value;
    let text = text.trim();
    if text == "off" {
        return None;
    }
    let share = text.strip_suffix('%').and_then(|share| share.trim_end().parse().ok());
    let share = share.filter(|share| (1..=100).contains(share));
    if share.is_none() {
        field.fault_with_help(
            format!("`gone_guard` ({}) is neither a share from 1% to 100% nor \"off\"", short(text)),
            "write gone_guard = \"10%\", or gone_guard = \"off\" to remove at once what the upstream says is gone",
        );
    }
    share
}
