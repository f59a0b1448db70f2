//! `[warm]`: when warmups run, and which of them fetch everything.

use super::document::{Field, Table};
use super::spelling::closest;
use crate::job::{JobSchedule, Schedule, Schedules};
use chrono_tz::{TZ_VARIANTS, Tz};
use std::time::Duration;

const MOST_SCHEDULES: usize = 10;

/// Reads the schedules of `[warm]`: one directly in the table, or a list of tables.
pub(super) fn schedules(warm: &Table<'_>) -> Schedules {
    let single = (schedule(warm), refetch(warm));
    let Some(list) = warm.field("schedules") else { return Schedules::single(single.0, single.1) };
    for name in ["schedule", "every", "timezone"] {
        if let Some(field) = warm.field(name) {
            let help = "move it into a table of `schedules`, or remove it";
            field.doc.fault_with_help(
                field.key.clone(),
                format!("`{name}` beside `schedules`: each table of the list says when its warmups run"),
                Some(help.to_owned()),
            );
        }
    }
    if let Some(field) = warm.field("refetch") {
        field.doc.fault_with_help(
            field.key.clone(),
            "`refetch` beside `schedules`: each table of the list has its own",
            Some("write it into the tables whose warmups fetch everything".to_owned()),
        );
    }
    Schedules::several(listed(&list))
}

fn listed(list: &Field<'_>) -> Vec<JobSchedule> {
    if list.is_table() {
        list.fault_with_help(
            "`schedules` must be a list of tables, not a table",
            "write [[warm.schedules]] with double brackets above each of them",
        );
        return Vec::new();
    }
    let Some(items) = list.items() else { return Vec::new() };
    if items.is_empty() {
        list.fault_with_help("`schedules` lists nothing", "write at least one, or remove it");
    }
    if items.len() > MOST_SCHEDULES {
        list.fault(format!("{} schedules are too many; the most is {MOST_SCHEDULES}", items.len()));
        return Vec::new();
    }
    let mut found: Vec<JobSchedule> = Vec::with_capacity(items.len());
    for item in items {
        let Some(one) = listed_one(&item) else { continue };
        if found.iter().any(|other| other.schedule == one.schedule) {
            item.fault_with_help(
                format!("two of `schedules` have the same times: `{}`", one.schedule.as_str()),
                "remove one of them; keep the one with `refetch = true` if all is to be fetched then",
            );
        }
        found.push(one);
    }
    found
}

fn listed_one(item: &Field<'_>) -> Option<JobSchedule> {
    let table = item.table("[[warm.schedules]]")?;
    let says_when = table.all().iter().any(|field| matches!(field.name.as_str(), "schedule" | "every"));
    let (schedule, refetch) = (schedule(&table), refetch(&table));
    if !says_when {
        item.fault_with_help(
            "a schedule needs `schedule` or `every`",
            "add one, such as schedule = \"0 4 * * *\" or every = \"15m\"",
        );
    }
    table.finish();
    Some(JobSchedule { schedule: schedule?, refetch })
}

fn refetch(table: &Table<'_>) -> bool {
    table.field("refetch").and_then(|field| field.boolean()).unwrap_or(false)
}

fn schedule(table: &Table<'_>) -> Option<Schedule> {
    let (cron, every, zone) = (table.field("schedule"), table.field("every"), table.field("timezone"));
    let timezone = zone.as_ref().map(timezone);
    match (cron, every) {
        (Some(_), Some(every)) => {
            every.doc.fault_with_help(
                every.key.clone(),
                "`schedule` and `every` both say when warmups run",
                Some("keep one of them".to_owned()),
            );
            None
        }
        (Some(cron), None) => {
            let timezone = timezone.map_or(Some(Tz::UTC), |zone| zone);
            let schedule = cron.parsed(|text| Schedule::cron(text, timezone.unwrap_or(Tz::UTC)));
            timezone.and(schedule)
        }
        (None, every) => {
            if let Some(zone) = zone {
                zone.doc.fault_with_help(
                    zone.key.clone(),
                    "`timezone` has no effect without a `schedule`",
                    Some("add a `schedule` such as \"0 3 * * *\", or remove it".to_owned()),
                );
            }
            let field = every?;
            let interval = field.duration(Duration::ZERO..=Duration::MAX)?;
            match Schedule::every(interval) {
                Ok(schedule) => Some(schedule),
                Err(message) => {
                    field.fault(message);
                    None
                }
            }
        }
    }
}

fn timezone(field: &Field<'_>) -> Option<Tz> {
    let text = field.filled()?;
    let name = text.value.trim();
    match name.parse() {
        Ok(zone) => Some(zone),
        Err(_) => {
            let help = match closest(name, TZ_VARIANTS.iter().map(|zone| zone.name())) {
                Some(close) => format!("did you mean \"{close}\"?"),
                None => "write a name from the IANA time zone database, such as \"Europe/Istanbul\"".to_owned(),
            };
            text.fault_with_help(format!("there is no time zone `{name}`"), &help);
            None
        }
    }
}
