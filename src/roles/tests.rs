use std::collections::BTreeMap;

use clap::{Command, Subcommand};

use super::*;

fn command() -> Command {
    Role::augment_subcommands(Command::new("lastword"))
}

#[test]
fn the_command_line_is_consistent() {
    command().debug_assert();
}

/// `lastword.env` holds variables for all commands at once, and an agent program may run `lastword` itself: a variable must
/// mean the same wherever it is read.
#[test]
fn an_environment_variable_has_one_meaning() {
    fn collect(command: &Command, meanings: &mut BTreeMap<String, Vec<String>>) {
        for arg in command.get_arguments() {
            if let Some(variable) = arg.get_env() {
                let values: Vec<String> =
                    arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
                let meaning = format!("--{} {values:?}", arg.get_long().unwrap_or_default());
                meanings.entry(variable.to_string_lossy().into_owned()).or_default().push(meaning);
            }
        }
        command.get_subcommands().for_each(|sub| collect(sub, meanings));
    }
    let mut meanings = BTreeMap::new();
    collect(&command(), &mut meanings);
    assert!(meanings.contains_key("LASTWORD_DATABASE_URL"));
    for (variable, mut meanings) in meanings {
        meanings.sort();
        meanings.dedup();
        assert_eq!(meanings.len(), 1, "{variable} means {meanings:?}");
    }
}
