//! `lastword keys`: the command, with the database that it works on.

use std::process::ExitCode;

use super::error::RoleError;
use crate::cli::{self, keys::KeysArgs};
use crate::local::database::{self, DatabaseArgs};
use crate::store::Store;

/// Runs the command on the database that the flags name, and tells gateways that keys may have changed.
pub(super) async fn run(args: &DatabaseArgs, keys: KeysArgs) -> Result<ExitCode, RoleError> {
    let opened = database::visit(args).await?;
    let store = Store::reach(opened.options, args.pools(), args.reach()?);
    store.migrate().await?;
    let code = cli::keys::run(keys, store.pool()).await.unwrap_or_else(|error| cli::report(&error));
    store.notify_keys_changed().await;
    store.close().await;
    if let Some(embedded) = opened.embedded {
        embedded.stop().await;
    }
    Ok(code)
}
