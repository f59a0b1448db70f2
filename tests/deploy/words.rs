//! The words of all files: commands, flags, variables, pages and exit codes are real.

use std::collections::BTreeSet;

use samovar::cli::exit;

use super::{files, root, text};
use crate::support::samovar;

/// Returns the help of a subcommand.
async fn help(command: &str) -> String {
    let done = samovar([command, "--help"]).run().await;
    assert_eq!(done.code, Some(0), "`samovar {command}` is no command: {done:?}");
    done.stdout
}

/// Returns the default of a variable, as the worker's help names it.
pub(crate) async fn default_of(variable: &str) -> String {
    let help = help("worker").await.split_whitespace().collect::<Vec<_>>().join(" ");
    let (_, rest) = help.split_once(&format!("[env: {variable}] [default: ")).unwrap();
    rest.split_once(']').unwrap().0.to_owned()
}

/// Returns the words that begin like this and consist of capitals, digits and `_`.
fn names<'t>(text: &'t str, beginning: &str) -> BTreeSet<&'t str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let is_name = |word: &&str| word.starts_with(beginning) && !word.ends_with('_');
    words.filter(is_name).filter(|word| word.chars().all(|c| !c.is_ascii_lowercase())).collect()
}

#[tokio::test]
async fn each_variable_in_the_files_is_a_setting() {
    let help = help("worker").await;
    for file in files("deploy", &[]) {
        let text = text(&file);
        for name in names(&text, "SAMOVAR_").into_iter().chain(names(&text, "REDIS_")) {
            assert!(names(&help, name).contains(name), "{file}: {name} is no setting");
        }
    }
}

#[tokio::test]
async fn each_command_and_flag_in_the_files_exists() {
    let mut found = 0;
    for file in files("deploy", &[]) {
        let text = text(&file);
        let spans = text.split('`').skip(1).step_by(2).filter_map(|span| span.strip_prefix("samovar "));
        let lines = text.lines().filter_map(|line| line.split_once("/usr/local/bin/samovar ").map(|(_, rest)| rest));
        let indented = text.lines().filter_map(|line| line.strip_prefix("    samovar "));
        for command in spans.chain(lines).chain(indented) {
            let mut words = command.split_whitespace();
            let name = words.next().unwrap();
            let help = help(name).await;
            for flag in words.take_while(|word| *word != "#").filter(|word| word.starts_with('-')) {
                assert!(help.contains(&format!("{flag} ")) || help.contains(&format!("{flag}\n")), "{file}: {command}");
            }
            found += 1;
        }
    }
    assert!(found > 10, "{found}");
}

#[test]
fn each_page_and_exit_code_in_the_files_exists() {
    let codes = [exit::OK, exit::FAILED, exit::USAGE, exit::UNAVAILABLE, exit::CONFIG].map(|code| code.to_string());
    for file in files("deploy", &[]) {
        let text = text(&file);
        let words = text.split(|c: char| c.is_whitespace() || "()[]\"`,;".contains(c));
        for page in words.map(|word| word.trim_end_matches('.')) {
            let Some(at) = page.find("docs/").filter(|_| page.contains(".md")) else { continue };
            let page = page[at..].split('#').next().unwrap();
            assert!(root(page).exists(), "{file}: {page}");
        }
        for after in text.split("exit code ").skip(1) {
            let code: String = after.chars().take_while(char::is_ascii_digit).collect();
            assert!(codes.contains(&code), "{file}: exit code {code}");
        }
    }
}
