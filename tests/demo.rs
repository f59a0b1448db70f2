//! `samovar demo`, shortened: it runs to its end, and its figures agree with one another.
use crate::support::samovar;
use serde_json::Value;

fn number(row: &Value, field: &str) -> u64 {
    row[field].as_u64().unwrap_or_else(|| panic!("`{field}` is no number in {row}"))
}

#[tokio::test]
async fn its_figures_add_up_and_samovar_misses_least() {
    let rows = adds_up(["demo", "--seconds", "3", "--json"]).await;
    let rates: Vec<f64> = rows.iter().map(|row| row["hit_rate"].as_f64().unwrap()).collect();
    assert!(rates.iter().all(|rate| *rate <= rates[0]), "{rates:?}");
}

/// The failovers take most of the time, and not the same time for all.
#[tokio::test]
async fn its_figures_add_up_with_a_failover() {
    adds_up(["demo", "--seconds", "6", "--json", "--topology", "sentinel"]).await;
}

async fn adds_up<const N: usize>(line: [&str; N]) -> Vec<Value> {
    let finished = samovar(line).run().await;
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    let rows = report["contenders"].as_array().unwrap();
    let names: Vec<&Value> = rows.iter().map(|row| &row["name"]).collect();
    assert_eq!(names, ["Samovar", "hundred lines", "cache-aside"]);
    let edits = report["edits"].as_u64().unwrap();
    assert!(report["museum_lag_ms"].as_f64().unwrap() > 0.0, "the museum lags");
    for row in rows {
        let [reads, hits, misses, failed, away] =
            ["reads", "hits", "misses", "failed", "away"].map(|field| number(row, field));
        assert!(reads > 0, "{row}");
        assert_eq!(reads, hits + misses + failed + away, "{row}");
        assert_eq!(reads, number(&rows[0], "reads"), "all meet the same reads: {row}");
        assert_eq!(number(row, "published"), 3 * edits, "each edit is published as three entries: {row}");
        assert!(number(row, "stale_stories") <= number(row, "stories"), "{row}");
        assert!(number(row, "stale_reads") <= hits + misses, "{row}");
        assert!(number(row, "stale_by_lag") <= number(row, "stale_reads"), "{row}");
        assert!(number(row, "stale_by_lag") == 0 || number(row, "outdated") > 0, "{row}");
        assert!(number(row, "upstream_calls") >= number(row, "not_modified"), "{row}");
        assert!(number(row, "ai_calls") > 0 && row["ai_dollars"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["p50_ms"].as_f64().unwrap() <= row["p99_ms"].as_f64().unwrap(), "{row}");
        assert!(number(row, "redis_bytes") > 0, "{row}");
    }
    rows.clone()
}

#[tokio::test]
async fn without_a_redis_program_it_says_in_a_line_how_to_get_one() {
    let finished = samovar(["demo"]).env("PATH", "/nonexistent").run().await;
    assert_eq!(finished.code, Some(69));
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    assert!(finished.stderr.contains("make setup"), "{}", finished.stderr);
    assert_eq!(finished.stdout, "");
}
