//! `lastword.env` in the working directory: defaults for the flags of roles, written by `lastword init`.
//!
//! A line is `NAME=value`, where `NAME` is a flag's environment variable (`LASTWORD_DATABASE_URL`). A flag on the
//! command line wins over the environment, and the environment over the file. The process's environment is not
//! touched: changing it is unsound once there are threads.
//!
//! Anybody may put a file of this name into a directory in which somebody else works. So only commands that own such a
//! directory read it ([`ROLES`]), and only a file of the user's own that nobody else may write. It names no program that is
//! run, and no gateway that a key is sent to: clients (`chat`, `turns`) read [`client_file`](super::client_file).

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Command, ValueHint};

use crate::private::{self, Others, PrivateError};

/// The name of the file.
pub const ENV_FILE: &str = "lastword.env";
/// The commands that read it.
pub const ROLES: [&str; 5] = ["dev", "gateway", "controller", "migrate", "keys"];
/// What is the clients' own: a gateway's URL, and the key for it.
const OF_CLIENTS: [&str; 2] = ["LASTWORD_GATEWAY_URL", "LASTWORD_API_KEY"];

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
pub enum EnvFileError {
    #[error("{file} line {line}: {what}; a line is NAME=value, a comment starts with #")]
    Line { file: PathBuf, line: usize, what: &'static str },
    #[error("{file}: {name} says which programs to run, and is not taken from a file; set it in the environment")]
    Program { file: PathBuf, name: String },
    #[error(transparent)]
    Private(#[from] PrivateError),
}

/// Reads the file. A file that does not exist counts as an empty one.
///
/// # Errors
/// If it may be somebody else's work, or a line is none.
pub fn load_env_file(file: &Path) -> Result<Vec<(String, String)>, EnvFileError> {
    let Some(text) = private::read(file, Others::MayRead)? else { return Ok(Vec::new()) };
    parse_env_file(&text).map_err(|(line, what)| EnvFileError::Line { file: file.into(), line, what })
}

/// The command as this process runs it, `arguments` being its command line: with the defaults of the file in the working
/// directory, if it is a role's. What is odd in the file is told on stderr.
///
/// # Errors
/// As [`load_env_file`], and if the file names a program.
pub fn with_defaults(command: Command, mut arguments: impl Iterator<Item = OsString>) -> Result<Command, EnvFileError> {
    // No flag stands before the subcommand.
    let role = arguments.nth(1).filter(|first| ROLES.iter().any(|role| first == role));
    if role.is_none() {
        return Ok(command);
    }
    let file = Path::new(ENV_FILE);
    let mut pairs = load_env_file(file)?;
    for name in unknown_names(&command, &pairs) {
        eprintln!("note: {ENV_FILE}: nothing reads {}", super::text::printable(name));
    }
    if let Some(name) = program_names(&command).into_iter().find(|name| pairs.iter().any(|(found, _)| found == name)) {
        return Err(EnvFileError::Program { file: file.into(), name });
    }
    pairs.retain(|(name, _)| {
        let of_clients = OF_CLIENTS.contains(&name.as_str());
        if of_clients {
            eprintln!(
                "note: {ENV_FILE}: {name} is for clients, which do not read this file; see `lastword init --help`"
            );
        }
        !of_clients
    });
    Ok(apply_env_file(command, &pairs))
}

/// The variables that say which programs to run: those of flags with this hint.
fn program_names(command: &Command) -> Vec<String> {
    let own = command.get_arguments().filter(|arg| arg.get_value_hint() == ValueHint::ExecutablePath);
    let own = own.filter_map(|arg| Some(arg.get_env()?.to_string_lossy().into_owned()));
    own.chain(command.get_subcommands().flat_map(program_names)).collect()
}

/// Reads `NAME=value` lines. A value may stand in single or double quotes, which are removed; nothing inside is
/// expanded. A later line wins over an earlier one of the same name.
///
/// # Errors
/// The number of the offending line, from 1, and what is wrong with it.
pub fn parse_env_file(text: &str) -> Result<Vec<(String, String)>, (usize, &'static str)> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=').ok_or((at + 1, "there is no ="))?;
        let (name, value) = (name.trim(), value.trim());
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err((at + 1, "the name is not made of letters, digits and _"));
        }
        let value = unquoted(value).ok_or((at + 1, "a quote is not closed"))?;
        pairs.retain(|(known, _)| known != name);
        pairs.push((name.to_string(), value.to_string()));
    }
    Ok(pairs)
}

fn unquoted(value: &str) -> Option<&str> {
    match value.chars().next() {
        Some(quote @ ('"' | '\'')) => value.strip_prefix(quote)?.strip_suffix(quote),
        _ => Some(value),
    }
}

/// The command with the file's values as defaults of the flags that read those environment variables, in all
/// subcommands. Defaults are not shown in the help: a database URL may hold a password.
pub fn apply_env_file(command: Command, pairs: &[(String, String)]) -> Command {
    let command = command.mut_args(|arg| {
        let value = arg.get_env().and_then(|env| pairs.iter().find(|(name, _)| env == name.as_str()));
        let Some((_, value)) = value else { return arg };
        let values: Vec<OsString> = match arg.get_value_delimiter() {
            Some(delimiter) => value.split(delimiter).map(OsString::from).collect(),
            None => vec![value.into()],
        };
        arg.required(false).default_values(values).hide_default_value(true)
    });
    command.mut_subcommands(|sub| apply_env_file(sub, pairs))
}

/// The names in the file that no flag of the command reads. Most likely they are misspelt.
pub fn unknown_names<'a>(command: &Command, pairs: &'a [(String, String)]) -> Vec<&'a str> {
    fn reads(command: &Command, name: &str) -> bool {
        command.get_arguments().any(|arg| arg.get_env().is_some_and(|env| env == name))
            || command.get_subcommands().any(|sub| reads(sub, name))
    }
    pairs.iter().map(|(name, _)| name.as_str()).filter(|name| !reads(command, name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Arg, ArgAction};

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_string(), value.to_string())
    }

    #[test]
    fn lines() {
        let text = "# a comment\n\nA=1\nexport B = 'x y'\nC=\"p#q=r\"\nD=\nA=2\n";
        assert_eq!(
            parse_env_file(text).unwrap(),
            [pair("B", "x y"), pair("C", "p#q=r"), pair("D", ""), pair("A", "2")]
        );
    }

    #[test]
    fn a_bad_line_is_named() {
        assert_eq!(parse_env_file("A=1\nB\n").unwrap_err().0, 2);
        assert_eq!(parse_env_file("A-B=1").unwrap_err().0, 1);
        assert_eq!(parse_env_file("A='x").unwrap_err().0, 1);
        assert_eq!(parse_env_file("A='").unwrap_err().0, 1);
    }

    fn command() -> Command {
        let arg = |name, env| Arg::new(name).long(name).env(env);
        Command::new("x").subcommand(
            Command::new("sub")
                .arg(arg("url", "LASTWORD_TEST_UNSET_URL").required(true))
                .arg(arg("many", "LASTWORD_TEST_UNSET_MANY").value_delimiter(',').action(ArgAction::Append))
                .arg(arg("path", "PATH")),
        )
    }

    #[test]
    fn flags_then_environment_then_file() {
        let pairs =
            [pair("LASTWORD_TEST_UNSET_URL", "file"), pair("LASTWORD_TEST_UNSET_MANY", "a,b"), pair("PATH", "file")];
        let get = |args: &[&str], name: &str| -> Vec<String> {
            let matches = apply_env_file(command(), &pairs).try_get_matches_from(args).unwrap();
            matches.subcommand().unwrap().1.get_many::<String>(name).unwrap().cloned().collect()
        };
        assert_eq!(get(&["x", "sub"], "url"), ["file"]);
        assert_eq!(get(&["x", "sub", "--url", "flag"], "url"), ["flag"]);
        assert_eq!(get(&["x", "sub"], "many"), ["a", "b"]);
        assert_eq!(get(&["x", "sub"], "path"), [std::env::var("PATH").unwrap()]);
    }

    #[test]
    fn misspelt_names_are_found() {
        let pairs = [pair("PATH", ""), pair("LASTWORD_DATABSE_URL", "")];
        assert_eq!(unknown_names(&command(), &pairs), ["LASTWORD_DATABSE_URL"]);
    }
}
