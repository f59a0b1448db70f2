//! `samovar man`: prints the man page, or writes one page for each command.

use super::exit;
use clap::{Args, Command};
use clap_mangen::Man;
use std::io;
use std::path::{Path, PathBuf};

/// Arguments of `samovar man`.
#[derive(Args)]
pub(super) struct ManArgs {
    /// Write samovar.1 and a page for each command into this folder, such as /usr/local/share/man/man1
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn run(args: &ManArgs, command: Command) -> u8 {
    let (written, place) = match &args.dir {
        Some(dir) => (write(dir, command), dir.display().to_string()),
        None => (print(command), "standard output".to_owned()),
    };
    match written {
        Ok(()) => exit::OK,
        Err(error) => {
            eprintln!("samovar: {place}: man pages cannot be written: {error}");
            exit::FAILED
        }
    }
}

fn write(dir: &Path, command: Command) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(command, dir)
}

fn print(command: Command) -> io::Result<()> {
    let mut page = Vec::new();
    Man::new(command.disable_help_subcommand(true)).render(&mut page)?;
    print!("{}", String::from_utf8_lossy(&page));
    Ok(())
}
