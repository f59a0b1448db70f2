use super::*;
use chrono::{Datelike, NaiveDate, Timelike};
use proptest::prelude::*;

/// A wall-clock time in a zone; the earlier one where the clock shows it twice.
fn local(zone: Tz, text: &str) -> DateTime<Utc> {
    let wall = NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S").unwrap();
    zone.from_local_datetime(&wall).earliest().unwrap().to_utc()
}

fn utc(text: &str) -> DateTime<Utc> {
    local(Tz::UTC, text)
}

fn cron(text: &str, zone: Tz) -> Schedule {
    Schedule::cron(text, zone).unwrap()
}

#[test]
fn ticks_come_when_crontab_says() {
    // 2026-01-01 is a Thursday, and so is 2026-02-05; 2028 is a leap year.
    for (text, after, next) in [
        ("* * * * *", "2026-01-01 00:00:00", "2026-01-01 00:01:00"),
        ("* * * * *", "2026-01-01 00:00:59", "2026-01-01 00:01:00"),
        ("*/30 * * * *", "2026-01-01 00:00:00", "2026-01-01 00:30:00"),
        ("*/30 * * * *", "2026-01-01 00:30:00", "2026-01-01 01:00:00"),
        ("*/7 * * * *", "2026-01-01 00:56:00", "2026-01-01 01:00:00"),
        ("5-59/15 * * * *", "2026-01-01 00:00:00", "2026-01-01 00:05:00"),
        ("5-59/15 * * * *", "2026-01-01 00:50:00", "2026-01-01 01:05:00"),
        ("0,10,40 3 * * *", "2026-01-01 03:10:00", "2026-01-01 03:40:00"),
        ("0 3 * * *", "2026-01-01 03:00:00", "2026-01-02 03:00:00"),
        ("0 3 * * *", "2026-01-01 02:59:59", "2026-01-01 03:00:00"),
        ("0 0-6/2 * * *", "2026-01-01 04:00:00", "2026-01-01 06:00:00"),
        ("0 0-6/2 * * *", "2026-01-01 06:00:00", "2026-01-02 00:00:00"),
        ("59 23 31 12 *", "2026-01-01 00:00:00", "2026-12-31 23:59:00"),
        ("59 23 31 12 *", "2026-12-31 23:59:00", "2027-12-31 23:59:00"),
        ("0 0 * * 0", "2026-01-01 00:00:00", "2026-01-04 00:00:00"),
        ("0 0 * * 7", "2026-01-01 00:00:00", "2026-01-04 00:00:00"),
        ("0 0 * * sun", "2026-01-01 00:00:00", "2026-01-04 00:00:00"),
        ("0 0 * * 1", "2026-01-01 00:00:00", "2026-01-05 00:00:00"),
        ("0 0 * * 6", "2026-01-01 00:00:00", "2026-01-03 00:00:00"),
        ("0 0 * * 1-5", "2026-01-02 00:00:00", "2026-01-05 00:00:00"),
        ("0 0 * * MON-Fri", "2026-01-02 00:00:00", "2026-01-05 00:00:00"),
        ("0 0 * * 5-7", "2026-01-04 00:00:00", "2026-01-09 00:00:00"),
        ("0 0 * * sat-sun", "2026-01-03 00:00:00", "2026-01-04 00:00:00"),
        ("0 0 * * 0-6", "2026-01-01 00:00:00", "2026-01-02 00:00:00"),
        ("0 0 * * */2", "2026-01-01 00:00:00", "2026-01-03 00:00:00"),
        ("0 0 1 * *", "2026-01-01 00:00:00", "2026-02-01 00:00:00"),
        ("0 0 31 * *", "2026-01-31 00:00:00", "2026-03-31 00:00:00"),
        ("0 0 29 2 *", "2026-01-01 00:00:00", "2028-02-29 00:00:00"),
        ("0 0 29 2 *", "2028-02-29 00:00:00", "2032-02-29 00:00:00"),
        ("0 0 29 2 *", "2096-02-29 00:00:01", "none"),
        ("0 12 1 jan,Jul *", "2026-01-01 12:00:00", "2026-07-01 12:00:00"),
        ("0 0 1 */3 *", "2026-01-01 00:00:00", "2026-04-01 00:00:00"),
        // Either day suffices where both are restricted …
        ("0 0 13 * 5", "2026-01-01 00:00:00", "2026-01-02 00:00:00"),
        ("0 0 13 * 5", "2026-01-09 00:00:00", "2026-01-13 00:00:00"),
        // … and both must hold where one begins with a star.
        ("0 0 */2 * 5", "2026-01-01 00:00:00", "2026-01-09 00:00:00"),
        ("0 0 13 * *", "2026-01-01 00:00:00", "2026-01-13 00:00:00"),
        ("0 0 ? * 5", "2026-01-01 00:00:00", "2026-01-02 00:00:00"),
        ("30 0 0 1 1 *", "2026-01-01 00:00:00", "2026-01-01 00:00:30"),
        ("*/10 * * * * *", "2026-01-01 00:00:55", "2026-01-01 00:01:00"),
        ("* * * * * *", "2026-01-01 00:00:55", "2026-01-01 00:00:56"),
        ("@hourly", "2026-01-01 00:00:00", "2026-01-01 01:00:00"),
        ("@daily", "2026-01-01 00:00:00", "2026-01-02 00:00:00"),
        ("@midnight", "2026-01-01 00:00:00", "2026-01-02 00:00:00"),
        ("@weekly", "2026-01-01 00:00:00", "2026-01-04 00:00:00"),
        ("@monthly", "2026-01-01 00:00:00", "2026-02-01 00:00:00"),
        ("@yearly", "2026-01-01 00:00:00", "2027-01-01 00:00:00"),
        ("@annually", "2026-01-01 00:00:00", "2027-01-01 00:00:00"),
        ("  0   3 * * *  ", "2026-01-01 00:00:00", "2026-01-01 03:00:00"),
    ] {
        let found = cron(text, Tz::UTC).next(utc(after)).map(|tick| tick.naive_utc().to_string());
        assert_eq!(found.as_deref().unwrap_or("none"), next, "{text} after {after}");
    }
}

/// Ticks in UTC from a wall-clock time on.
fn ticks(text: &str, zone: Tz, from: &str, count: usize) -> Vec<String> {
    let schedule = cron(text, zone);
    let mut at = local(zone, from);
    let mut found = Vec::new();
    for _ in 0..count {
        at = schedule.next(at).unwrap();
        found.push(at.format("%d %H:%M:%S").to_string());
    }
    found
}

#[test]
fn a_named_hour_runs_once_a_day_through_daylight_saving() {
    // Berlin: 2026-03-29 02:00 → 03:00 at 01:00 UTC, 2026-10-25 03:00 → 02:00 at 01:00 UTC.
    let berlin = Tz::Europe__Berlin;
    assert_eq!(ticks("30 2 * * *", berlin, "2026-03-28 00:00:00", 3), ["28 01:30:00", "29 01:00:00", "30 00:30:00"]);
    assert_eq!(ticks("0 2 * * *", berlin, "2026-03-28 12:00:00", 2), ["29 01:00:00", "30 00:00:00"]);
    assert_eq!(ticks("0 2,3 * * *", berlin, "2026-03-28 12:00:00", 3), ["29 01:00:00", "30 00:00:00", "30 01:00:00"]);
    assert_eq!(ticks("*/20 2 * * *", berlin, "2026-03-29 00:00:00", 2), ["29 01:00:00", "30 00:00:00"]);
    assert_eq!(ticks("30 2 * * *", berlin, "2026-10-24 00:00:00", 3), ["24 00:30:00", "25 00:30:00", "26 01:30:00"]);
    assert_eq!(
        ticks("*/30 2 * * *", berlin, "2026-10-25 00:00:00", 4),
        ["25 00:00:00", "25 00:30:00", "26 01:00:00", "26 01:30:00"]
    );
    assert_eq!(ticks("30 1 * * *", berlin, "2026-10-25 00:00:00", 2), ["24 23:30:00", "26 00:30:00"]);
    // New York: 2026-03-08 02:00 → 03:00 at 07:00 UTC, 2026-11-01 02:00 → 01:00 at 06:00 UTC.
    let new_york = Tz::America__New_York;
    assert_eq!(ticks("15 2 * * *", new_york, "2026-03-07 00:00:00", 3), ["07 07:15:00", "08 07:00:00", "09 06:15:00"]);
    assert_eq!(ticks("15 1 * * *", new_york, "2026-10-31 00:00:00", 3), ["31 05:15:00", "01 05:15:00", "02 06:15:00"]);
    // Istanbul has stayed at UTC+3 since 2016.
    let istanbul = Tz::Europe__Istanbul;
    assert_eq!(ticks("30 3 * * *", istanbul, "2026-03-28 00:00:00", 3), ["28 00:30:00", "29 00:30:00", "30 00:30:00"]);
    assert_eq!(ticks("30 3 * * *", istanbul, "2015-03-28 12:00:00", 2), ["29 01:00:00", "30 00:30:00"]);
}

#[test]
fn a_starred_hour_runs_through_daylight_saving() {
    let berlin = Tz::Europe__Berlin;
    assert_eq!(ticks("30 * * * *", berlin, "2026-03-29 01:00:00", 3), ["29 00:30:00", "29 01:30:00", "29 02:30:00"]);
    assert_eq!(
        ticks("0 * * * *", berlin, "2026-10-25 00:30:00", 5),
        ["24 23:00:00", "25 00:00:00", "25 01:00:00", "25 02:00:00", "25 03:00:00"]
    );
    assert_eq!(
        ticks("*/30 * * * *", berlin, "2026-10-25 02:00:00", 4),
        ["25 00:30:00", "25 01:00:00", "25 01:30:00", "25 02:00:00"]
    );
    assert_eq!(ticks("0 */2 * * *", berlin, "2026-03-29 00:00:00", 2), ["29 02:00:00", "29 04:00:00"]);
    let new_york = Tz::America__New_York;
    assert_eq!(
        ticks("45 * * * *", new_york, "2026-11-01 00:00:00", 4),
        ["01 04:45:00", "01 05:45:00", "01 06:45:00", "01 07:45:00"]
    );
    assert_eq!(ticks("45 * * * *", new_york, "2026-03-08 01:00:00", 2), ["08 06:45:00", "08 07:45:00"]);
    // Lord Howe moves by half an hour only.
    assert_eq!(
        ticks("15 * * * *", Tz::Australia__Lord_Howe, "2026-04-05 00:30:00", 3),
        ["04 14:15:00", "04 15:45:00", "04 16:45:00"]
    );
    // A whole day is missing: Apia had no 2011-12-30.
    assert_eq!(
        ticks("0 12 * * *", Tz::Pacific__Apia, "2011-12-29 00:00:00", 3),
        ["29 22:00:00", "30 10:00:00", "30 22:00:00"]
    );
}

#[test]
fn rare_days_are_found_in_the_zone_with_a_starred_hour() {
    let next = cron("0 * 29 2 *", Tz::Europe__Berlin).next(utc("2026-03-01 00:00:00"));
    assert_eq!(next, Some(utc("2028-02-28 23:00:00")));
}

#[test]
fn intervals_tick_on_multiples_of_the_epoch() {
    let half_hour = Schedule::every(Duration::from_secs(1800)).unwrap();
    assert_eq!(half_hour.next(utc("2026-01-01 00:10:00")), Some(utc("2026-01-01 00:30:00")));
    assert_eq!(half_hour.next(utc("2026-01-01 00:30:00")), Some(utc("2026-01-01 01:00:00")));
    assert_eq!(half_hour.next(utc("1969-12-31 23:59:00")), Some(utc("1970-01-01 00:00:00")));
    assert_eq!(half_hour.as_str(), "every 30m");
    assert_eq!(half_hour.timezone(), None);
    let odd = Schedule::every(Duration::from_millis(1500)).unwrap();
    assert_eq!(odd.next(DateTime::UNIX_EPOCH).unwrap().timestamp_millis(), 1500);
    assert!(Schedule::every(Duration::from_millis(999)).is_err());
    assert!(Schedule::every(Duration::from_secs(367 * 86_400)).is_err());
}

#[test]
fn schedules_with_the_same_times_are_equal() {
    let every = |seconds| Schedule::every(Duration::from_secs(seconds)).unwrap();
    for (one, other, same) in [
        (cron("@daily", Tz::UTC), cron("0 0 0 * * *", Tz::UTC), true),
        (cron("*/30 * * * *", Tz::UTC), cron("0,30 * * * *", Tz::UTC), true),
        (cron("0 0 * * 0", Tz::UTC), cron("0 0 * * sun", Tz::UTC), true),
        (cron("0 4 * * *", Tz::UTC), cron("0 5 * * *", Tz::UTC), false),
        (cron("0 4 * * *", Tz::UTC), cron("0 4 * * *", Tz::Asia__Tokyo), false),
        (cron("0 0 13 * 5", Tz::UTC), cron("0 0 13 * *", Tz::UTC), false),
        (every(300), every(300), true),
        (every(300), every(301), false),
        (every(3_600), cron("@hourly", Tz::UTC), false),
    ] {
        assert_eq!(one == other, same, "{one:?} {other:?}");
    }
}

#[test]
fn the_last_tick_is_found_without_counting_up_to_it() {
    let daily = cron("0 4 * * *", Tz::UTC);
    for (from, to, last) in [
        ("2026-01-01 04:00:00", "2026-01-01 04:00:00", "2026-01-01 04:00:00"),
        ("2026-01-01 04:00:00", "2026-01-02 03:59:59", "2026-01-01 04:00:00"),
        ("1970-01-01 00:00:00", "2026-01-01 04:00:01", "2026-01-01 04:00:00"),
        ("2026-01-01 04:00:01", "2026-01-02 03:59:59", "none"),
        ("2026-01-02 00:00:00", "2026-01-01 23:00:00", "none"),
    ] {
        let found = daily.last(utc(from), utc(to)).map(|tick| tick.naive_utc().to_string());
        assert_eq!(found.as_deref().unwrap_or("none"), last, "{from} {to}");
    }
    let seconds = Schedule::every(Duration::from_secs(1)).unwrap();
    let to = utc("2026-01-01 00:00:00") + Span::milliseconds(1);
    assert_eq!(seconds.last(DateTime::UNIX_EPOCH, to), Some(utc("2026-01-01 00:00:00")));
}

#[test]
fn what_is_no_crontab_line_is_refused_with_the_remedy() {
    for (text, message) in [
        ("", "`` has 0 fields; cron has 5 (minute hour day month weekday) or 6 (second first)"),
        ("* * * *", "`* * * *` has 4 fields; cron has 5 (minute hour day month weekday) or 6 (second first)"),
        (
            "0 0 0 1 1 * 2026",
            "`0 0 0 1 1 * 2026` has 7 fields; cron has 5 (minute hour day month weekday) or 6 (second first)",
        ),
        ("60 * * * *", "`60` is no minute; it goes from 0 to 59"),
        ("60 * * * * *", "`60` is no second; it goes from 0 to 59"),
        ("* 24 * * *", "`24` is no hour; it goes from 0 to 23"),
        ("* * 0 * *", "`0` is no day of month; it goes from 1 to 31"),
        ("* * * 13 *", "`13` is no month; it goes from 1 to 12, or jan to dec"),
        ("* * * * 8", "`8` is no day of week; it goes from 0 to 7, or sun to sat"),
        ("* * * * pzt", "`pzt` is no day of week; it goes from 0 to 7, or sun to sat"),
        ("? * * * *", "`?` is no minute; it goes from 0 to 59"),
        ("5/15 * * * *", "`5/15` in the minute field: a step needs a range; write `5-59/15`"),
        ("*/0 * * * *", "`0` is no step for the minute field; write a whole number from 1"),
        ("*/x * * * *", "`x` is no step for the minute field; write a whole number from 1"),
        ("0 22-4 * * *", "`22-4` in the hour field runs backwards; write `22-23,0-4`"),
        ("1,,2 * * * *", "`` is no minute; it goes from 0 to 59"),
        ("-1 * * * *", "`` is no minute; it goes from 0 to 59"),
        ("@reboot", "`@reboot` is none of @hourly, @daily, @midnight, @weekly, @monthly, @yearly and @annually"),
        ("0 0 30 2 *", "`0 0 30 2 *` never comes: no month it names has such a day"),
        ("0 0 31 4,6,9,11 *", "`0 0 31 4,6,9,11 *` never comes: no month it names has such a day"),
    ] {
        assert_eq!(Schedule::cron(text, Tz::UTC).unwrap_err(), message);
    }
}

/// A field as text and the numbers it means, worked out without the parser.
fn field(least: u32, most: u32) -> impl Strategy<Value = (String, Vec<u32>)> {
    let all: Vec<u32> = (least..=most).collect();
    let span = most - least;
    prop_oneof![
        Just(("*".to_owned(), all)),
        (1..=span).prop_map(move |step| {
            (format!("*/{step}"), (least..=most).filter(|n| (n - least).is_multiple_of(step)).collect())
        }),
        (least..=most, least..=most).prop_map(|(a, b)| (format!("{a},{b}"), vec![a, b])),
        (least..=most, 0..=span, 1..=span).prop_map(move |(from, length, step)| {
            let to = (from + length).min(most);
            (format!("{from}-{to}/{step}"), (from..=to).filter(|n| (n - from).is_multiple_of(step)).collect())
        }),
    ]
}

proptest! {
    #[test]
    fn the_next_tick_matches_and_none_lies_between(
        (minute, minutes) in field(0, 59), (hour, hours) in field(0, 23), (day, days) in field(1, 31),
        (month, months) in field(1, 12), (weekday, weekdays) in field(0, 7),
        start in 0_i64..4_000_000_000,
    ) {
        let text = format!("{minute} {hour} {day} {month} {weekday}");
        let either = !day.starts_with('*') && !weekday.starts_with('*');
        let day_fits = |date: NaiveDate| {
            let by_day = day == "*" || days.contains(&date.day());
            let sunday = date.weekday().num_days_from_sunday();
            let by_weekday = weekdays.contains(&sunday) || (sunday == 0 && weekdays.contains(&7));
            let fits = if either { by_day || by_weekday } else { by_day && by_weekday };
            fits && months.contains(&date.month())
        };
        let after = DateTime::from_timestamp(start, 0).unwrap();
        let Ok(schedule) = Schedule::cron(&text, Tz::UTC) else { return Ok(()) };
        let Some(next) = schedule.next(after) else { return Ok(()) };
        prop_assert!(next > after);
        prop_assert!(day_fits(next.date_naive()), "{} {}", text, next);
        prop_assert!(hours.contains(&next.hour()) && minutes.contains(&next.minute()) && next.second() == 0);
        // The brute force: day by day, then minute by minute.
        let mut date = after.date_naive();
        let expected = 'found: loop {
            if day_fits(date) {
                for minute_of_day in 0..1440_u32 {
                    let at = date.and_hms_opt(minute_of_day / 60, minute_of_day % 60, 0).unwrap().and_utc();
                    if at > after && hours.contains(&at.hour()) && minutes.contains(&at.minute()) {
                        break 'found at;
                    }
                }
            }
            date = date.succ_opt().unwrap();
        };
        prop_assert_eq!(next, expected);
    }

    #[test]
    fn ticks_advance_in_every_zone(
        (minute, _) in field(0, 59), (hour, _) in field(0, 23), start in 0_i64..4_000_000_000, zone in 0_usize..590,
    ) {
        let zone = chrono_tz::TZ_VARIANTS[zone % chrono_tz::TZ_VARIANTS.len()];
        let schedule = cron(&format!("{minute} {hour} * * *"), zone);
        let mut at = DateTime::from_timestamp(start, 123_456_789).unwrap();
        for _ in 0..50 {
            let next = schedule.next(at).unwrap();
            prop_assert!(next > at);
            prop_assert!(next - at < Span::days(3), "{} {} {}", schedule.as_str(), zone, at);
            at = next;
        }
    }

    #[test]
    fn a_starred_hour_ticks_at_every_instant_that_matches(
        (minute, minutes) in field(0, 59), hours_before in 0_i64..6, zone in 0_usize..4, change in 0_usize..4,
    ) {
        let zone = [Tz::Europe__Berlin, Tz::America__New_York, Tz::Australia__Lord_Howe, Tz::Antarctica__Troll][zone];
        let changes = [
            ["2026-03-29 01:00:00", "2026-10-25 01:00:00"], ["2026-03-08 07:00:00", "2026-11-01 06:00:00"],
            ["2026-10-03 15:30:00", "2026-04-04 15:00:00"], ["2026-03-29 01:00:00", "2026-10-25 01:00:00"],
        ];
        let after = utc(changes[change][usize::from(hours_before % 2 == 0)]) - Span::hours(hours_before);
        let next = cron(&format!("{minute} * * * *"), zone).next(after).unwrap();
        let expected = (1..).map(|step| after + Span::minutes(step))
            .find(|at| minutes.contains(&at.with_timezone(&zone).minute())).unwrap();
        prop_assert_eq!(next, expected);
    }

    #[test]
    fn the_last_tick_is_the_one_before_the_end(
        (minute, _) in field(0, 59), (hour, _) in field(0, 23), start in 0_i64..4_000_000_000, near in any::<bool>(),
        zone in 0_usize..590, length in 0_i64..40_000_000,
    ) {
        let zone = chrono_tz::TZ_VARIANTS[zone % chrono_tz::TZ_VARIANTS.len()];
        let schedule = cron(&format!("{minute} {hour} * * *"), zone);
        // Near a change of Berlin's and New York's clocks, too.
        let start = if near { 1_774_746_000 + start % 200_000 } else { start };
        let from = DateTime::from_timestamp(start, 0).unwrap();
        let to = from + Span::milliseconds(length);
        let before = from - Span::milliseconds(1);
        let ticks = std::iter::successors(schedule.next(before), |tick| schedule.next(*tick));
        prop_assert_eq!(schedule.last(from, to), ticks.take_while(|tick| *tick <= to).last());
    }

    #[test]
    fn reading_never_panics(text in "[-0-9a-z*/,?@ ]{0,30}", interval in any::<u64>()) {
        if let Ok(schedule) = Schedule::cron(&text, Tz::Europe__Istanbul) {
            let _ = schedule.next(utc("2026-01-01 00:00:00"));
        }
        let _ = Schedule::every(Duration::from_millis(interval));
    }
}
