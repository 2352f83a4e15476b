//! One binary, a subcommand a role: parses the flags, opens the ports, and runs the role.
//!
//! Each role has its flags in an `…Args` or `…Role` beside a `run(args, ports, shutdown)`: the ports and the shutdown signal
//! come in from here, where the process begins.

mod controller;
mod dev;
mod error;
mod gateway;
mod keys;
mod migrate;
mod ports;
mod schema;
mod signals;
#[cfg(test)]
mod tests;
mod timing;

use std::fmt::Display;
use std::process::ExitCode;

use crate::cli::{self, CliError};
use crate::local::database::DatabaseArgs;
use crate::{guard, telemetry, worker};
pub use error::RoleError;

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
    /// Evaluate guardrails' expressions; gateways and controllers start such processes for themselves.
    #[command(name = guard::evaluators::SUBCOMMAND, hide = true)]
    Evaluate,
}

/// Runs a role to its end.
pub fn run(role: Role) -> ExitCode {
    if matches!(role, Role::Evaluate) {
        return guard::evaluate();
    }
    // rustls takes one provider of cryptography for the whole process. A second call is refused, which does no harm.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut runtime = match role {
        // A worker holds a stream and some pipes, which one thread serves; so hundreds of workers fit on a machine.
        Role::Worker(_) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    match runtime.enable_all().build() {
        Ok(runtime) => runtime.block_on(async {
            let code = run_role(role).await;
            telemetry::flush().await;
            code
        }),
        Err(error) => fail(&format!("no runtime: {error}")),
    }
}

async fn run_role(role: Role) -> ExitCode {
    match role {
        Role::Dev(args) => {
            telemetry::init(&args.log);
            done(dev(*args).await)
        }
        Role::Gateway(args) => {
            telemetry::init(&args.log);
            done(gateway(*args).await)
        }
        Role::Controller(args) => {
            telemetry::init(&args.log);
            done(controller(*args).await)
        }
        Role::Worker(args) => {
            telemetry::init(&args.log());
            worker::run(args, signals::shutdown()).await.unwrap_or_else(|error| fail(&error))
        }
        Role::Chat(args) => command(cli::chat::run(args).await),
        Role::Turns(args) => command(cli::turns::run(args).await),
        Role::Keys { database, keys } => keys::run(&database, keys).await.unwrap_or_else(|error| fail(&error)),
        Role::Migrate { database } => done(migrate::run(&database).await),
        Role::Crds => match crate::crd::print_crds() {
            Ok(text) => {
                print!("{text}");
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error),
        },
        Role::Evaluate => guard::evaluate(),
        Role::Init(args) => command(cli::init::run(args).await),
    }
}

async fn dev(args: dev::DevArgs) -> Result<(), RoleError> {
    // Ports come first: a second `dev` on this machine is told so before it touches anything.
    let ports = dev::ports(&args).await?;
    dev::run(args, ports, signals::shutdown()).await
}

async fn gateway(args: gateway::GatewayRole) -> Result<(), RoleError> {
    let ports = gateway::ports(&args).await?;
    gateway::run(args, ports, signals::shutdown()).await
}

async fn controller(args: controller::ControllerRole) -> Result<(), RoleError> {
    let admin = ports::admin(&args.admin).await?;
    controller::run(args, admin, signals::shutdown()).await
}

fn done(ended: Result<(), RoleError>) -> ExitCode {
    ended.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

fn command(ended: Result<ExitCode, CliError>) -> ExitCode {
    ended.unwrap_or_else(|error| cli::report(&error))
}

fn fail(why: &impl Display) -> ExitCode {
    cli::fail(&why.to_string());
    ExitCode::FAILURE
}
