//! Parses a role and calls its `run`.

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use lastword::cli::{self, CliError};

/// Every agent turn gets exactly one last word.
#[derive(clap::Parser)]
#[command(name = "lastword", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(clap::Subcommand)]
enum Role {
    Chat(cli::chat::ChatArgs),
    Turns(cli::turns::TurnsArgs),
    Keys {
        /// The database: `postgres://…`.
        #[arg(long, env = "LASTWORD_DATABASE_URL", value_name = "URL", hide_env_values = true)]
        database_url: String,
        #[command(flatten)]
        keys: cli::keys::KeysArgs,
    },
    Init(cli::init::InitArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    let pairs = match cli::env_file::load_env_file(cli::env_file::ENV_FILE.as_ref()) {
        Ok(pairs) => pairs,
        Err(error) => return cli::report(&error.into()),
    };
    let command = Cli::command();
    for name in cli::env_file::unknown_names(&command, &pairs) {
        eprintln!("note: {}: nothing reads {name}", cli::env_file::ENV_FILE);
    }
    let mut matches = cli::env_file::apply_env_file(command, &pairs).get_matches();
    let ran = match Cli::from_arg_matches_mut(&mut matches) {
        Ok(cli) => run(cli.role).await,
        Err(error) => error.exit(),
    };
    ran.unwrap_or_else(|error| cli::report(&error))
}

async fn run(role: Role) -> Result<ExitCode, CliError> {
    match role {
        Role::Chat(args) => cli::chat::run(args).await,
        Role::Turns(args) => cli::turns::run(args).await,
        Role::Init(args) => cli::init::run(args).await,
        Role::Keys { database_url, keys } => {
            let options = sqlx::postgres::PgPoolOptions::new().max_connections(1);
            let pool = options
                .after_connect(|connection, _| {
                    Box::pin(async move {
                        sqlx::Executor::execute(connection, "SET search_path TO lastword").await.map(drop)
                    })
                })
                .connect(&database_url)
                .await
                .map_err(lastword::store::keys::KeyError::from)?;
            cli::keys::run(keys, &pool).await
        }
    }
}
