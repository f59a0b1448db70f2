//! `samovar completions`: prints the completions of a shell.

use super::exit;
use clap::{Args, Command};
use clap_complete::Shell;

const NAME: &str = "samovar";

/// Arguments of `samovar completions`.
#[derive(Args)]
pub(super) struct CompletionsArgs {
    /// The shell that reads the completions
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs, command: &Command) -> u8 {
    // clap_complete also completes hidden commands, so it gets the others only.
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
    let mut shown = Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .propagate_version(true)
        .args(command.get_arguments())
        .subcommands(shown);
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut shown, NAME, &mut text);
    print!("{}", String::from_utf8_lossy(&text));
    exit::OK
}
