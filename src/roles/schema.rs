//! The database that replicas share, and the wait for its schema.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::error::RoleError;
use crate::local::database::{self, DatabaseArgs};
use crate::store::Store;

/// How often the schema is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Opens the external database. Nothing is asked of it yet: it may be away now.
pub(super) fn open_store(args: &DatabaseArgs) -> Result<Store, RoleError> {
    Ok(Store::reach(database::external(args)?, args.pools(), args.reach()?))
}

/// Waits for the database and its schema, while the role is unready. False if `shutdown` came first.
pub(super) async fn wait_for_schema(store: &Store, shutdown: &CancellationToken) -> bool {
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
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = shutdown.cancelled() => return false,
        }
    }
}
