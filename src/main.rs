//! Parses the command line, with defaults from `lastword.env`, and runs the role that it names. Started as `lastword-keeper`,
//! the same binary keeps a program (see [`keeper`]).

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use lastword::child::keeper;
use lastword::roles::Role;
use lastword::{cli, roles};

/// Every agent turn gets exactly one last word.
#[derive(clap::Parser)]
#[command(name = "lastword", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|name| name == keeper::NAME) {
        return keeper::keep();
    }
    let pairs = match cli::env_file::load_env_file(cli::env_file::ENV_FILE.as_ref()) {
        Ok(pairs) => pairs,
        Err(error) => return cli::report(&error.into()),
    };
    let command = Cli::command();
    for name in cli::env_file::unknown_names(&command, &pairs) {
        eprintln!("note: {}: nothing reads {name}", cli::env_file::ENV_FILE);
    }
    let mut matches = cli::env_file::apply_env_file(command, &pairs).get_matches();
    match Cli::from_arg_matches_mut(&mut matches) {
        Ok(cli) => roles::run(cli.role),
        Err(error) => error.exit(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
