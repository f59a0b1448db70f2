//! Commands that print something about Samovar itself: schemas, completions, man pages.
use std::path::Path;
use std::process::Command;

use crate::support::{Art, JobsFolder, Reply, both, eventually, samovar};
use serde_json::{Value, json};

const SHELLS: [&str; 5] = ["bash", "zsh", "fish", "elvish", "powershell"];

/// Returns what a command prints. It must succeed.
async fn printed(args: &[&str]) -> String {
    let ended = samovar(args).run().await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{args:?}");
    ended.stdout
}

/// Returns the commands that the help shows.
async fn shown_commands() -> Vec<String> {
    let help = printed(&["--help"]).await;
    let listed = help.split("\nCommands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = listed.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|n| !n.is_empty()));
    let names: Vec<String> = names.filter(|name| *name != "help").map(str::to_owned).collect();
    assert!(names.len() >= 16 && names.iter().any(|name| name == "worker"), "{names:?}");
    names
}

#[tokio::test]
async fn printing_needs_neither_settings_nor_files_nor_redis() {
    for args in [&["schema", "job"][..], &["schema", "upstreams"], &["completions", "bash"], &["man"]] {
        let ended = samovar(args)
            .redis_at("no address")
            .env("SAMOVAR_LOG", "inf0")
            .env("SAMOVAR_JOBS", "/nowhere")
            .env("SAMOVAR_PREFIX", "{")
            .dot_env("not a setting\n")
            .run()
            .await;
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{args:?}");
        assert!(ended.stdout.len() > 1_000, "{args:?}: {}", ended.stdout);
    }
    let refused = samovar(["jobs"]).redis_at("no address").run().await;
    assert_eq!(refused.code, Some(78), "{refused:?}");
}

#[tokio::test]
async fn a_schema_is_printed_as_it_is_in_the_repository() {
    for name in ["job", "upstreams"] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("schemas/{name}.json"));
        let text = printed(&["schema", name]).await;
        assert_eq!(text, std::fs::read_to_string(file).unwrap());
        let schema: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(schema["$schema"], "http://json-schema.org/draft-07/schema#");
        assert!(jsonschema::draft7::meta::is_valid(&schema), "{name}");
    }
    let refused = samovar(["schema", "jobs"]).run().await;
    assert!(refused.code == Some(2) && refused.stderr.contains("upstreams"), "{refused:?}");
}

#[tokio::test]
async fn completions_offer_all_shown_commands_and_no_hidden_one() {
    let commands = shown_commands().await;
    for shell in SHELLS {
        let script = printed(&["completions", shell]).await;
        for name in &commands {
            assert!(script.contains(name.as_str()), "{shell}: {name}");
        }
        assert!(script.contains("env-file") && !script.contains("minder"), "{shell}");
    }
}

#[tokio::test]
async fn bash_parses_and_runs_its_completions() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("samovar");
    std::fs::write(&file, printed(&["completions", "bash"]).await).unwrap();
    let parsed = Command::new("bash").arg("-n").arg(&file).output().unwrap();
    assert!(parsed.status.success() && parsed.stderr.is_empty(), "{parsed:?}");
    for (line, word, offered) in [("samovar sch", "1", "schema"), ("samovar schema up", "2", "upstreams")] {
        let script = format!(
            "source '{}'; COMP_WORDS=({line}); COMP_CWORD={word}; _samovar samovar \"${{COMP_WORDS[-1]}}\"; \
             echo \"${{COMPREPLY[@]}}\"",
            file.display()
        );
        let completed = Command::new("bash").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&completed.stdout).trim(), offered, "{completed:?}");
    }
}

#[tokio::test]
async fn man_pages_cover_all_shown_commands_and_no_hidden_one() {
    let commands = shown_commands().await;
    let page = printed(&["man"]).await;
    assert!(page.starts_with(".ie") && page.contains(".TH samovar 1"), "{page}");
    assert!(page.contains("Exit codes:") && !page.contains("minder"), "{page}");
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("share/man1");
    assert_eq!(printed(&["man", "--dir", dir.to_str().unwrap()]).await, "");
    let mut written: Vec<String> =
        std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let mut expected: Vec<String> = commands.iter().map(|name| format!("samovar-{name}.1")).collect();
    expected.push("samovar.1".to_owned());
    expected.sort();
    written.sort();
    assert_eq!(written, expected);
    for name in &commands {
        assert!(page.contains(&format!("samovar\\-{name}(1)")), "{name}: {page}");
        let page = std::fs::read_to_string(dir.join(format!("samovar-{name}.1"))).unwrap();
        assert!(page.contains(&format!(".TH samovar-{name} 1")), "{page}");
    }
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let refused = samovar(["man", "--dir", file.to_str().unwrap()]).run().await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("/file: man pages cannot be written: "), "{refused:?}");
}

#[tokio::test]
async fn errors_that_nobody_reads_change_no_exit_code() {
    let jobs = JobsFolder::new();
    jobs.write("art.toml", "ttl = 1");
    let nowhere = "redis://127.0.0.1:1";
    for (args, code) in [(&["worker"][..], 78), (&["jobs"], 69), (&["check", "--json"], 78)] {
        for _ in 0..5 {
            let ended = samovar(args).jobs(&jobs).redis_at(nowhere).unread().run().await;
            assert_eq!(ended.code, Some(code), "{args:?}");
        }
    }
}

#[tokio::test]
async fn a_worker_whose_log_nobody_reads_works_on() {
    let (redis, upstream) = both().await;
    upstream.otherwise(|_, _| Reply::json(json!(1)));
    let jobs = Art::of(&upstream).list(0..3).folder();
    let mut worker = samovar(["worker"]).redis(&redis).jobs(&jobs).env("SAMOVAR_LOG", "debug").unread().spawn();
    eventually("all are warm", async || redis.keys("art:*").await.len() == 3).await;
    worker.term();
    assert!(worker.wait().await.success());
}
