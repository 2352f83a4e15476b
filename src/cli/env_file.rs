//! `lastword.env`: defaults for flags, written by `lastword init`.
//!
//! A line is `NAME=value`, where `NAME` is a flag's environment variable (`LASTWORD_DATABASE_URL`). A flag on the
//! command line wins over the environment, and the environment over the file. The process's environment is not
//! touched: changing it is unsound once there are threads.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use clap::Command;

/// The name of the file, which every role reads in its working directory.
pub const ENV_FILE: &str = "lastword.env";

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
pub enum EnvFileError {
    #[error("{file} line {line}: {what}; a line is NAME=value, a comment starts with #")]
    Line { file: PathBuf, line: usize, what: &'static str },
    #[error("cannot read {file}: {source}")]
    Read { file: PathBuf, source: io::Error },
}

/// Reads the file. A file that does not exist counts as an empty one.
pub fn load_env_file(file: &Path) -> Result<Vec<(String, String)>, EnvFileError> {
    match std::fs::read_to_string(file) {
        Ok(text) => parse_env_file(&text).map_err(|(line, what)| EnvFileError::Line { file: file.into(), line, what }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(EnvFileError::Read { file: file.into(), source }),
    }
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
