//! `lastword init`: asks which database to use, and writes the answer to `lastword.env`, which every role reads.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use console::style;

use super::env_file::ENV_FILE;
use super::error::CliError;
use crate::store::probe;

/// Where an embedded database lives, unless told otherwise.
const EMBEDDED: &str = ".lastword";

/// Choose the database and write the choice to ./lastword.env.
///
/// Every role reads that file in its working directory; flags and the environment win over it.
#[derive(Debug, Clone, clap::Args)]
pub struct InitArgs {
    /// Use this Postgres (15 or newer): `postgres://USER:PASSWORD@HOST/DATABASE`. It is asked for its version first.
    // This flag reads no environment variable: the choice is made anew, whatever is set.
    #[arg(long, value_name = "URL")]
    pub database_url: Option<String>,
    /// Use an embedded Postgres whose data lives in this directory [default directory: .lastword].
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = EMBEDDED, conflicts_with = "database_url")]
    pub embedded: Option<PathBuf>,
    /// Where the gateway listens for clients.
    #[arg(long, value_name = "ADDRESS")]
    pub gateway_listen: Option<std::net::SocketAddr>,
    /// Ask nothing; an embedded database, unless another is named.
    #[arg(long, short)]
    pub yes: bool,
    /// Replace an existing lastword.env.
    #[arg(long)]
    pub force: bool,
}

/// The database to write down.
enum DatabaseChoice {
    Embedded(PathBuf),
    External(String),
}

/// Runs `lastword init` in the working directory.
pub async fn run(args: InitArgs) -> Result<ExitCode, CliError> {
    let file = Path::new(ENV_FILE);
    if file.exists() && !args.force {
        return Err(CliError::Usage(format!("{ENV_FILE} exists; --force replaces it")));
    }
    let database = match (args.database_url, args.embedded) {
        (Some(url), _) => of_text(&url),
        (None, Some(dir)) => DatabaseChoice::Embedded(dir),
        (None, None) if args.yes => DatabaseChoice::Embedded(EMBEDDED.into()),
        (None, None) if io::stdin().is_terminal() => ask()?,
        (None, None) => {
            return Err(CliError::Usage("which database? --embedded, --database-url URL, or --yes".into()));
        }
    };
    let value = match database {
        DatabaseChoice::External(url) => {
            println!("connected: Postgres {}", probe::version(&url).await?);
            url
        }
        DatabaseChoice::Embedded(dir) => absolute(&dir)?,
    };
    let mut pairs = vec![("LASTWORD_DATABASE_URL", value)];
    if let Some(listen) = args.gateway_listen {
        pairs.push(("LASTWORD_LISTEN", listen.to_string()));
    }
    write(file, &contents(&pairs)?, args.force)?;
    println!("wrote {}", style(ENV_FILE).bold());
    println!("{}", style("next: `lastword dev` runs everything here; `lastword keys create NAME` makes a key").dim());
    Ok(ExitCode::SUCCESS)
}

/// Reads a URL of Postgres, or the directory of an embedded one.
fn of_text(text: &str) -> DatabaseChoice {
    match text.strip_prefix("file://") {
        Some(dir) => DatabaseChoice::Embedded(dir.into()),
        None if text.contains("://") => DatabaseChoice::External(text.to_string()),
        None => DatabaseChoice::Embedded(text.into()),
    }
}

fn ask() -> Result<DatabaseChoice, CliError> {
    println!("Which database?");
    println!("  {}  a directory, for an embedded Postgres {}", style("1").bold(), style("(one machine)").dim());
    println!("  {}  a postgres:// URL {}", style("2").bold(), style("(15 or newer)").dim());
    match prompt("1 or 2", "1")?.as_str() {
        "1" => Ok(DatabaseChoice::Embedded(prompt("directory", EMBEDDED)?.into())),
        "2" => Ok(DatabaseChoice::External(prompt("URL", "")?)),
        url if url.contains("://") => Ok(of_text(url)),
        other => Err(CliError::Usage(format!("{other:?} is neither 1 nor 2"))),
    }
}

fn prompt(question: &str, default: &str) -> Result<String, CliError> {
    let hint = if default.is_empty() { String::new() } else { format!(" [{default}]") };
    print!("{question}{}: ", style(hint).dim());
    io::stdout().flush()?;
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    match read.map_err(|source| CliError::Io { doing: "read the answer".into(), source })? {
        0 => Err(CliError::Usage("no answer".into())),
        _ if answer.trim().is_empty() => Ok(default.to_string()),
        _ => Ok(answer.trim().to_string()),
    }
}

/// The directory as an absolute path, so that it is the same one for a role that is started in another directory.
fn absolute(dir: &Path) -> Result<String, CliError> {
    let dir =
        std::path::absolute(dir).map_err(|source| CliError::Io { doing: format!("find {}", dir.display()), source })?;
    let text = dir.into_os_string().into_string();
    text.map_err(|dir| CliError::Usage(format!("the directory's name is not UTF-8: {}", dir.display())))
}

/// The file's text. Values are quoted, so that they are read back as they are.
fn contents(pairs: &[(&str, String)]) -> Result<String, CliError> {
    let mut text = String::from("# Written by `lastword init`. Flags and the environment win over this file.\n");
    for (name, value) in pairs {
        if value.contains(['\n', '\r']) {
            return Err(CliError::Usage(format!("the value of {name} has several lines")));
        }
        text.push_str(&format!("{name}=\"{value}\"\n"));
    }
    Ok(text)
}

/// Writes the file, which only its owner may read, since the URL may hold a password. An old file is replaced by a rename,
/// so that it is replaced as a whole or not at all.
fn write(file: &Path, text: &str, replace: bool) -> Result<(), CliError> {
    let failed = |source| CliError::Io { doing: format!("write {}", file.display()), source };
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    if !replace {
        let mut new = options.open(file).map_err(failed)?;
        return new.write_all(text.as_bytes()).map_err(failed);
    }
    let next = file.with_extension("env.next");
    let _ = std::fs::remove_file(&next); // a former run that was killed may have left it
    let mut new = options.open(&next).map_err(failed)?;
    new.write_all(text.as_bytes()).map_err(failed)?;
    std::fs::rename(&next, file).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::env_file::parse_env_file;

    #[test]
    fn what_is_written_reads_back() {
        for value in ["postgres://u:p\"#'$@h/d", "/a dir/x", ""] {
            let text = contents(&[("A", value.to_string())]).unwrap();
            assert_eq!(parse_env_file(&text).unwrap(), [("A".to_string(), value.to_string())]);
        }
        assert!(contents(&[("A", "x\ny".into())]).is_err());
    }

    #[test]
    fn what_names_a_database() {
        assert!(matches!(of_text("postgres://h/d"), DatabaseChoice::External(_)));
        assert!(matches!(of_text("file://x/y"), DatabaseChoice::Embedded(dir) if dir == Path::new("x/y")));
        assert!(matches!(of_text(".lastword"), DatabaseChoice::Embedded(_)));
    }
}
