//! The flags of all commands together: the variables of the environment that they read are one name space.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Command, Subcommand};

use super::Role;

/// By variable: the flags that read it, and the commands that have these flags.
#[derive(Default)]
struct Variables(BTreeMap<String, BTreeSet<(String, String)>>);

impl Variables {
    fn read(&mut self, command: &Command, path: &str) {
        for flag in command.get_arguments() {
            let Some(variable) = flag.get_env() else { continue };
            let name = flag.get_long().unwrap_or(flag.get_id().as_str());
            let flags = self.0.entry(variable.to_string_lossy().into_owned()).or_default();
            flags.insert((name.to_owned(), path.to_owned()));
        }
        for below in command.get_subcommands() {
            self.read(below, format!("{path} {}", below.get_name()).trim());
        }
    }
}

fn variables() -> BTreeMap<String, BTreeSet<(String, String)>> {
    let mut variables = Variables::default();
    variables.read(&Role::augment_subcommands(Command::new("lastword")), "");
    variables.0
}

#[test]
fn a_variable_means_one_thing_in_all_commands() {
    for (variable, flags) in variables() {
        let names: BTreeSet<&str> = flags.iter().map(|(name, _)| name.as_str()).collect();
        // The controller hands on to its workers what they read under the same name: see `wire::env::GATEWAY`.
        let same = variable == "LASTWORD_WORKER_GATEWAY" && names == BTreeSet::from(["gateway", "worker-gateway"]);
        assert!(names.len() == 1 || same, "{variable} is read by {flags:?}");
    }
}

#[test]
fn what_agents_are_told_is_no_flag_of_a_command_that_they_may_run() {
    let told = variables().into_iter().filter(|(variable, _)| variable.starts_with("LASTWORD_TURN_"));
    for (variable, flags) in told {
        assert!(flags.iter().all(|(_, command)| command == "worker exec"), "{variable} is read by {flags:?}");
    }
}
