//! The commands for people: `chat` and `turns` call the client API of a gateway (`docs/api.md`), `keys` and `init` work on
//! the database.
//!
//! Each command has its flags (clap) in an `…Args` beside a `run`, which prints the result and gives the exit code. What
//! goes wrong is a [`CliError`], which the process prints by [`report`].

mod args;
pub mod chat;
pub mod client;
pub mod client_file;
pub mod env_file;
mod error;
pub mod init;
pub mod keys;
mod patience;
mod print;
pub mod stream;
pub mod text;
pub mod turns;
pub mod types;

pub use args::ClientArgs;
pub use error::{ApiProblem, CliError, ClientError, fail, report};
pub use print::PrintFormat;
