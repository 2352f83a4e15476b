//! One binary, a subcommand a role.

mod controller;
mod dev;
mod gateway;
mod timing;

use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::admin::CannotListen;
use crate::cli::{self, CliError};
use crate::local::database;
use crate::local::database::DatabaseArgs;
use crate::store::Store;
use crate::worker;

/// What this process does.
#[derive(Debug, clap::Subcommand)]
pub enum Role {
    Dev(Box<dev::DevArgs>),
    Gateway(Box<gateway::GatewayRole>),
    Controller(Box<controller::ControllerRole>),
    /// Be a worker: run turns with a program or a model.
    Worker(worker::WorkerArgs),
    Chat(cli::chat::ChatArgs),
    Turns(cli::turns::TurnsArgs),
    /// Make, list and revoke API keys, in the database.
    Keys {
        #[command(flatten)]
        database: DatabaseArgs,
        #[command(flatten)]
        keys: cli::keys::KeysArgs,
    },
    /// Create the schema, or bring it up to date.
    Migrate {
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// Print the CustomResourceDefinitions.
    Crds,
    Init(cli::init::InitArgs),
}

/// Runs a role to its end.
pub fn run(role: Role) -> ExitCode {
    // One provider of cryptography for everything in the process; a second call would be refused, and means the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut runtime = match role {
        // A worker holds a stream and some pipes: one thread serves it, and hundreds fit on a machine.
        Role::Worker(_) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    match runtime.enable_all().build() {
        Ok(runtime) => runtime.block_on(dispatch(role)),
        Err(error) => fail(&format!("no runtime: {error}")),
    }
}

async fn dispatch(role: Role) -> ExitCode {
    match role {
        Role::Dev(args) => {
            crate::telemetry::init(&args.log);
            report(dev::run(*args, until_told()).await.map(|()| ExitCode::SUCCESS))
        }
        Role::Gateway(args) => {
            crate::telemetry::init(&args.log);
            report(gateway::run(*args, until_told()).await.map(|()| ExitCode::SUCCESS))
        }
        Role::Controller(args) => {
            crate::telemetry::init(&args.log);
            report(controller::run(*args, until_told()).await.map(|()| ExitCode::SUCCESS))
        }
        Role::Worker(args) => {
            crate::telemetry::init(&args.log());
            report(worker::run(args, until_told()).await)
        }
        Role::Chat(args) => cli_report(cli::chat::run(args).await),
        Role::Turns(args) => cli_report(cli::turns::run(args).await),
        Role::Keys { database, keys } => {
            let opened = match database::visit(&database).await {
                Ok(opened) => opened,
                Err(error) => return fail(&error.to_string()),
            };
            let store = Store::open(opened.options.clone(), database.pools());
            if let Err(error) = store.migrate().await {
                return fail(&error.to_string());
            }
            let code = cli_report(cli::keys::run(keys, store.pool()).await);
            store.notify_keys_changed().await;
            store.close().await;
            if let Some(embedded) = opened.embedded {
                embedded.stop().await;
            }
            code
        }
        Role::Migrate { database } => report(migrate(&database).await.map(|()| ExitCode::SUCCESS)),
        Role::Crds => match crate::crd::print_crds() {
            Ok(text) => {
                print!("{text}");
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error.to_string()),
        },
        Role::Init(args) => cli_report(cli::init::run(args).await),
    }
}

/// Why a role did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    #[error(transparent)]
    Database(#[from] database::DatabaseError),
    #[error(transparent)]
    Gateway(#[from] crate::gateway::GatewayError),
    #[error(transparent)]
    Listen(#[from] CannotListen),
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    #[error("there is no Kubernetes to talk to: {0}; run it in a pod, or set KUBECONFIG")]
    Kubernetes(#[from] kube::Error),
    #[error("cannot make an HTTP client: {0}")]
    Http(#[from] reqwest::Error),
}

/// Opens the external database that replicas share; it may be away now.
fn open_store(args: &DatabaseArgs) -> Result<Store, RoleError> {
    Ok(Store::open(database::external(args)?, args.pools()))
}

/// How often the schema is looked for.
const SCHEMA_EVERY: Duration = Duration::from_secs(1);

/// Waits, unready, for the database and its schema; false if `shutdown` came first.
async fn schema(store: &Store, shutdown: &CancellationToken) -> bool {
    let mut said = String::new();
    loop {
        let why = match store.schema_ready().await {
            Ok(true) => return true,
            Ok(false) => "the schema is older than this program; run `lastword migrate`".to_owned(),
            Err(error) => error.to_string(),
        };
        if said != why {
            tracing::warn!("waiting: {why}");
            said = why;
        }
        tokio::select! {
            () = tokio::time::sleep(SCHEMA_EVERY) => {}
            () = shutdown.cancelled() => return false,
        }
    }
}

async fn migrate(args: &DatabaseArgs) -> Result<(), dev::DevError> {
    let opened = database::visit(args).await?;
    let store = Store::open(opened.options, args.pools());
    store.migrate().await?;
    store.close().await;
    if let Some(embedded) = opened.embedded {
        embedded.stop().await;
    }
    Ok(())
}

/// Cancelled by the first SIGINT or SIGTERM; a second one ends the process at once.
fn until_told() -> CancellationToken {
    let told = CancellationToken::new();
    let token = told.clone();
    if let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        tokio::spawn(async move {
            for again in [false, true] {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if again {
                    std::process::exit(130);
                }
                token.cancel();
            }
        });
    }
    told
}

fn report<E: std::fmt::Display>(ran: Result<ExitCode, E>) -> ExitCode {
    ran.unwrap_or_else(|error| fail(&error.to_string()))
}

fn cli_report(ran: Result<ExitCode, CliError>) -> ExitCode {
    ran.unwrap_or_else(|error| cli::report(&error))
}

fn fail(why: &str) -> ExitCode {
    eprintln!("error: {why}");
    ExitCode::FAILURE
}
