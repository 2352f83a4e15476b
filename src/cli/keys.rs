//! `lastword keys`: makes, lists and revokes API keys, directly in the database. No API makes keys: whoever can connect to
//! the database may.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use console::style;
use time::OffsetDateTime;
use uuid::Uuid;

use super::error::CliError;
use super::print::{PrintFormat, columns, print_json};
use super::text::{age, between, one_line};
use crate::store::Pool;
use crate::store::keys::{self, KeyInfo, KeyRole, NewKey};

/// Make, list and revoke API keys.
#[derive(Debug, Clone, clap::Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    pub command: KeysCommand,
}

/// What to do with keys.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum KeysCommand {
    /// Make a key and print it: the only time that it is shown.
    Create(CreateArgs),
    /// List keys, without their secrets.
    List {
        /// Only this organization's.
        #[arg(long, env = "LASTWORD_ORGANIZATION", value_name = "NAME")]
        organization: Option<String>,
        /// How to print them.
        #[arg(long, short, env = "LASTWORD_OUTPUT", value_name = "FORMAT", default_value = "table")]
        output: PrintFormat,
    },
    /// Revoke keys, at once and for good.
    Revoke {
        /// The keys' ids, as `list` shows them.
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<Uuid>,
    },
}

/// The key to make.
#[derive(Debug, Clone, clap::Args)]
pub struct CreateArgs {
    /// What to call the key.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The organization: the Agents' namespace in Kubernetes.
    #[arg(long, env = "LASTWORD_ORGANIZATION", value_name = "NAME", default_value = "default")]
    pub organization: String,
    /// The user that the holder is [default: the key's name].
    #[arg(long, env = "LASTWORD_USER", value_name = "NAME")]
    pub user: Option<String>,
    /// `user`: its own conversations; `operator`: all of the organization.
    #[arg(long, env = "LASTWORD_ROLE", value_name = "ROLE", default_value = "user")]
    pub role: KeyRole,
    /// How long it is valid, such as 90d, 12h, 30m or 45s; `never`: until it is revoked.
    #[arg(long, env = "LASTWORD_EXPIRES_IN", value_name = "TIME", default_value = "90d", value_parser = validity)]
    pub expires_in: Validity,
    /// How to print it; `table` prints the key alone on stdout.
    #[arg(long, short, env = "LASTWORD_OUTPUT", value_name = "FORMAT", default_value = "table")]
    pub output: PrintFormat,
    /// Write it to this file as `LASTWORD_API_KEY=…` in place of printing it; the file is new, and its owner's alone.
    /// A `lastword.env` serves commands that run in its directory.
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,
}

/// How long a key is valid; `None`: until it is revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity(pub Option<Duration>);

/// Runs `lastword keys`.
pub async fn run(args: KeysArgs, pool: &Pool) -> Result<ExitCode, CliError> {
    match args.command {
        KeysCommand::Create(args) => create(args, pool).await?,
        KeysCommand::List { organization, output } => {
            list(&keys::list(pool, organization.as_deref()).await?, output)?;
        }
        KeysCommand::Revoke { keys } => return revoke(&keys, pool).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(args: CreateArgs, pool: &Pool) -> Result<(), CliError> {
    let new = NewKey {
        organization: args.organization,
        user: args.user.unwrap_or_else(|| args.name.clone()),
        name: args.name,
        role: args.role,
        valid_for: args.expires_in.0,
    };
    // The file is made before the key: a key that cannot be written down is of no use.
    let mut file = args.to.as_deref().map(create_private).transpose()?;
    let (info, key) = keys::create(pool, &new).await?;
    if let Some(file) = &mut file {
        return Ok(writeln!(file, "LASTWORD_API_KEY={}", key.reveal())?);
    }
    if args.output == PrintFormat::Json {
        let mut value = serde_json::to_value(&info).map_err(io::Error::from)?;
        value["key"] = key.reveal().into();
        return print_json(&value);
    }
    let KeyInfo { id, user, role, organization, .. } = &info;
    let until = info.expires_at.map_or("it is revoked".into(), |at| at.date().to_string());
    let told = format!("key {id} of {role} {user} in {organization}, valid until {until}; it is shown this once:");
    eprintln!("{}", style(told).for_stderr().dim());
    Ok(writeln!(io::stdout(), "{}", key.reveal())?)
}

/// Makes a file that only its owner may read; one that is there already is an error.
fn create_private(path: &Path) -> Result<File, CliError> {
    let opened = File::options().write(true).create_new(true).mode(0o600).open(path);
    opened.map_err(|source| CliError::Io { doing: format!("create {}", path.display()), source })
}

fn list(keys: &[KeyInfo], output: PrintFormat) -> Result<(), CliError> {
    if output == PrintFormat::Json {
        return print_json(&serde_json::json!({"keys": keys}));
    }
    if keys.is_empty() {
        eprintln!("no keys; `lastword keys create NAME` makes one");
        return Ok(());
    }
    let now = OffsetDateTime::now_utc();
    let headings = ["KEY", "NAME", "ORGANIZATION", "USER", "ROLE", "STATE", "EXPIRES", "LAST USED", "AGE"];
    let table = columns(&headings, keys.iter().map(|key| row(key, now)));
    Ok(writeln!(io::stdout(), "{}", table.trim_fmt())?)
}

fn row(key: &KeyInfo, now: OffsetDateTime) -> Vec<String> {
    let state = match (key.revoked_at, key.expired) {
        (Some(_), _) => "Revoked",
        (None, true) => "Expired",
        (None, false) => "Valid",
    };
    vec![
        key.id.to_string(),
        one_line(&key.name, 40),
        one_line(&key.organization, 40),
        one_line(&key.user, 40),
        key.role.to_string(),
        state.to_string(),
        key.expires_at.map_or("never".into(), |at| at.date().to_string()),
        key.last_used_at.map_or("never".into(), |at| age(between(at, now))),
        age(between(key.created_at, now)),
    ]
}

async fn revoke(ids: &[Uuid], pool: &Pool) -> Result<ExitCode, CliError> {
    let mut code = ExitCode::SUCCESS;
    for id in ids {
        if keys::revoke(pool, *id).await? {
            println!("key {id} is revoked");
        } else if keys::find(pool, *id).await?.is_some() {
            println!("key {id} was revoked before");
        } else {
            eprintln!("{} no key {id}; `lastword keys list` shows them", style("error:").for_stderr().red().bold());
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

/// Reads a duration, or `never`.
fn validity(text: &str) -> Result<Validity, String> {
    if text == "never" { Ok(Validity(None)) } else { duration(text).map(|time| Validity(Some(time))) }
}

/// Reads a duration such as `90d`, `12h`, `30m` or `45s`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time; write 90d, 12h, 30m, 45s or never");
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    count.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn a_key_file_is_new_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lastword.env");
        let made = create_private(&path).unwrap();
        assert_eq!(made.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(create_private(&path).is_err(), "a file that is there is not written over");
    }

    #[test]
    fn a_key_expires_unless_somebody_says_otherwise() {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            keys: KeysArgs,
        }
        let created = |flags: &[&str]| {
            let words = ["keys", "create", "ci"].iter().chain(flags);
            let KeysCommand::Create(args) = Command::try_parse_from(words).expect("a command").keys.command else {
                panic!("not what was asked for")
            };
            args.expires_in
        };
        assert_eq!(created(&[]), Validity(Some(Duration::from_secs(90 * 86_400))));
        assert_eq!(created(&["--expires-in", "12h"]), Validity(Some(Duration::from_secs(12 * 3600))));
        assert_eq!(created(&["--expires-in", "never"]), Validity(None));
    }

    #[test]
    fn durations() {
        assert_eq!(duration("90d"), Ok(Duration::from_secs(90 * 86_400)));
        assert_eq!(duration("45s"), Ok(Duration::from_secs(45)));
        for wrong in ["", "d", "1", "1w", "-1d", "1\u{e4}", "99999999999999999999d", "999999999999999999d"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
