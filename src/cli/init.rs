//! `lastword init`: asks which database to use, and writes the answer to `lastword.env`, which roles read in their working
//! directory. Where the user has none yet, it also writes the file of clients, with the gateway that listens here.

use std::io::{self, IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use console::style;

use super::client_file::{self, SavedGateway};
use super::env_file::ENV_FILE;
use super::error::CliError;
use crate::private;
use crate::store::probe;
use crate::store::server::{ConnectOptions, in_cleartext};

/// Where an embedded database lives, unless told otherwise.
const EMBEDDED: &str = ".lastword";

/// Choose the database and write the choice to ./lastword.env.
///
/// `dev`, `gateway`, `controller`, `migrate` and `keys` read that file in their working directory, if it is the user's own and
/// nobody else may write it; flags and the environment win over it. It names no programs (--postgres-bin, --cache-dir).
/// Clients (`chat`, `turns`) read ~/.config/lastword/client.env alone: a gateway's URL, and the key for it. That is written
/// too, if there is none.
#[derive(Debug, Clone, clap::Args)]
pub struct InitArgs {
    /// Use this Postgres (15 or newer): `postgres://USER:PASSWORD@HOST/DATABASE`. It is asked for its version first.
    // This flag reads no environment variable: the choice is made anew, whatever is set.
    #[arg(long, value_name = "URL")]
    pub database_url: Option<String>,
    /// Use an embedded Postgres whose data lives in this directory [default directory: .lastword].
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = EMBEDDED, conflicts_with = "database_url")]
    pub embedded: Option<PathBuf>,
    /// Use that Postgres though the connection may be in cleartext, and is to another machine.
    #[arg(long)]
    pub allow_cleartext: bool,
    /// Where the gateway listens for clients.
    #[arg(long, value_name = "ADDRESS")]
    pub gateway_listen: Option<SocketAddr>,
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
    if file.symlink_metadata().is_ok() && !args.force {
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
            let options: ConnectOptions =
                url.parse().map_err(|error| CliError::Usage(format!("the database's URL: {error}")))?;
            if let Some(host) = in_cleartext(&options).filter(|_| !args.allow_cleartext) {
                return Err(CliError::Usage(format!(
                    "the connection to Postgres at {host} may be in cleartext: say sslmode=verify-full in its URL, or allow \
                     it with --allow-cleartext"
                )));
            }
            println!("connected: Postgres {}", probe::version(&url).await?);
            url
        }
        DatabaseChoice::Embedded(dir) => absolute(&dir)?,
    };
    let mut pairs = vec![("LASTWORD_DATABASE_URL", value)];
    if args.allow_cleartext {
        pairs.push(("LASTWORD_ALLOW_CLEARTEXT", "true".into()));
    }
    if let Some(listen) = args.gateway_listen {
        pairs.push(("LASTWORD_LISTEN", listen.to_string()));
    }
    write(file, &contents(&pairs)?, args.force)?;
    println!("wrote {}", style(ENV_FILE).bold());
    name_gateway(args.gateway_listen)?;
    println!(
        "{}",
        style("next: `lastword dev` runs everything here; `lastword keys create NAME --save` makes a key").dim()
    );
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

/// Writes the file, which only its owner may read, since the URL may hold a password.
fn write(file: &Path, text: &str, replace: bool) -> Result<(), CliError> {
    if replace {
        return Ok(private::write(file, text)?);
    }
    let failed = |source| CliError::Io { doing: format!("write {}", file.display()), source };
    private::create(file)?.write_all(text.as_bytes()).map_err(failed)
}

/// Writes the clients' file, unless the user has one: it may name another gateway, with a key.
fn name_gateway(listen: Option<SocketAddr>) -> Result<(), CliError> {
    let Some(file) = client_file::path() else { return Ok(()) };
    if file.symlink_metadata().is_ok() {
        println!("{}", style(format!("{} stays as it is", file.display())).dim());
        return Ok(());
    }
    let listen = listen.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)));
    let host = if listen.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { listen.ip() };
    let gateway = format!("http://{}", SocketAddr::new(host, listen.port()));
    let gateway = gateway.parse().map_err(|error| CliError::Usage(format!("{gateway}: {error}")))?;
    client_file::write(&file, &SavedGateway { gateway, api_key: None })?;
    println!("wrote {}", style(file.display()).bold());
    Ok(())
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
