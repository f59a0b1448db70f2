//! The systemd unit: its commands are run as systemd would run them, and its limits suit the worker.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use samovar::cli::exit;

use super::words::default_of;
use super::{text, time};
use crate::support::{JobsFolder, Samovar, TestRedis, eventually, samovar};

const UNIT: &str = "deploy/systemd/samovar.service";

/// The settings that confine the worker.
const CONFINED: [(&str, &str); 12] = [
    ("DynamicUser", "yes"),
    ("NoNewPrivileges", "yes"),
    ("CapabilityBoundingSet", ""),
    ("AmbientCapabilities", ""),
    ("ProtectSystem", "strict"),
    ("ProtectHome", "yes"),
    ("PrivateTmp", "yes"),
    ("PrivateDevices", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("MemoryDenyWriteExecute", "yes"),
    ("RestrictNamespaces", "yes"),
    ("SystemCallArchitectures", "native"),
];

/// Returns the settings of the unit's section `[Service]`: all values of a name, in their order.
fn service() -> BTreeMap<String, Vec<String>> {
    let mut settings: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let (mut section, unit) = (String::new(), text(UNIT));
    for line in unit.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[') {
            name.trim_end_matches(']').clone_into(&mut section);
            continue;
        }
        let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("{line}"));
        if section == "Service" {
            settings.entry(name.to_owned()).or_default().push(value.to_owned());
        }
    }
    settings
}

fn one(name: &str) -> String {
    let all = service();
    let values = all.get(name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(values.len(), 1, "{name}");
    values[0].clone()
}

/// A command of the unit, with the folders of a test in place of the machine's.
fn command(line: &str, credentials: &Path, jobs: &Path) -> Samovar {
    let mut words = line.split(' ');
    assert_eq!(words.next(), Some("/usr/local/bin/samovar"), "{line}");
    let place = |word: &str| {
        let word = word.replace("${CREDENTIALS_DIRECTORY}", credentials.to_str().unwrap());
        word.replace("/etc/samovar/jobs", jobs.to_str().unwrap())
    };
    samovar(words.map(place))
}

#[tokio::test]
async fn the_commands_of_the_unit_start_and_reload_a_worker() {
    let redis = TestRedis::start().await;
    let jobs =
        JobsFolder::new().job("a", "key = \"a:{id}\"\n[source]\nkind = \"http\"\nurl = \"{{ env.URL }}/{{ id }}\"\n");
    let credentials = tempfile::tempdir().unwrap();
    let example = text("deploy/systemd/samovar.env.example").replace("REDIS_URL=redis://127.0.0.1:6379/0", "");
    let (credential, _) = one("LoadCredential").split_once(':').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let settings = format!("{example}\nURL=http://127.0.0.1:9\nREDIS_URL={}\n", redis.url());
    std::fs::write(credentials.path().join(credential), settings).unwrap();

    let mut worker = command(&one("ExecStart"), credentials.path(), jobs.path()).spawn();
    worker.wait_for_log(&["jobs"]).await;
    let log = worker.log().join("\n");
    assert!(!log.contains("is no setting"), "{log}");
    assert_eq!(one("ExecReload"), "/bin/kill -HUP $MAINPID");
    jobs.write("b.toml", "key = \"b:{id}\"\n[source]\nkind = \"http\"\nurl = \"http://127.0.0.1:9/{{ id }}\"\n");
    worker.hangup();
    worker.wait_for_log(&["the new jobs are in use"]).await;

    // A reload of faulty files changes nothing; a start with them ends for good.
    jobs.write("b.toml", "key = 7\n");
    worker.hangup();
    worker.wait_for_log(&["b.toml"]).await;
    assert!(worker.is_running());
    let start = command(&one("ExecStart"), credentials.path(), jobs.path()).run().await;
    assert_eq!(start.code, Some(i32::from(exit::CONFIG)), "{start:?}");
    worker.term();
    eventually("it stops", async || !worker.is_running()).await;
    assert_eq!(worker.wait().await.code(), Some(i32::from(exit::OK)));
}

/// systemd gives the folder of credentials to the commands that start the service, and to no other.
#[test]
fn only_commands_of_a_start_read_credentials() {
    for (name, values) in service() {
        let reads = values.iter().any(|value| value.contains("CREDENTIALS_DIRECTORY") || value.contains("%d"));
        assert!(!reads || name == "ExecStart", "{name}: {values:?}");
    }
}

#[tokio::test]
async fn the_unit_restarts_only_what_a_restart_can_help() {
    assert_eq!(one("Restart"), "always");
    let codes = one("RestartPreventExitStatus");
    assert_eq!(codes, format!("{} {}", exit::USAGE, exit::CONFIG));
    // A signal ends the worker within the drain time and a second.
    let drain = time(&default_of("SAMOVAR_DRAIN").await);
    assert!(text("deploy/systemd/samovar.env.example").contains(&format!("SAMOVAR_DRAIN={}s\n", drain.as_secs())));
    assert!(time(&one("TimeoutStopSec")) >= drain + Duration::from_secs(5), "{drain:?}");
    // Five starts within ten seconds, systemd's default limit, would end the restarts.
    assert!(time(&one("RestartSec")) * 5 > Duration::from_secs(10));
}

#[test]
fn the_unit_confines_the_worker() {
    for (name, value) in CONFINED {
        assert_eq!(one(name), value, "{name}");
    }
    let families = one("RestrictAddressFamilies");
    for needed in ["AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"] {
        assert!(families.split(' ').any(|family| family == needed), "{needed}");
    }
    assert_eq!(service()["SystemCallFilter"][0], "@system-service");
}

#[test]
fn systemd_accepts_the_unit_and_finds_it_confined() {
    let analyze = |args: &[&str], unit: &Path| Command::new("systemd-analyze").args(args).arg(unit).output();
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("samovar.service");
    // systemd looks for the program.
    let with_program = text(UNIT).replace("/usr/local/bin/samovar", env!("CARGO_BIN_EXE_samovar"));
    std::fs::write(&unit, &with_program).unwrap();
    let Ok(verified) = analyze(&["verify", "--man=no"], &unit) else {
        eprintln!("NOT TRIED: there is no systemd-analyze; it is in Debian's package systemd");
        return;
    };
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(verified.status.success() && !said.contains("samovar.service"), "{said}");
    let rated = analyze(&["security", "--offline=true", "--threshold=20", "--no-pager"], &unit).unwrap();
    assert!(
        rated.status.success(),
        "{}{}",
        String::from_utf8_lossy(&rated.stdout),
        String::from_utf8_lossy(&rated.stderr)
    );
    // It does say so if a name is wrong.
    std::fs::write(&unit, with_program.replace("ProtectHome=", "ProtectHomes=")).unwrap();
    let verified = analyze(&["verify", "--man=no"], &unit).unwrap();
    assert!(String::from_utf8_lossy(&verified.stderr).contains("ProtectHomes"), "{verified:?}");
}
