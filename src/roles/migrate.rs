//! `lastword migrate`: creates the schema, or brings it up to date.

use super::error::RoleError;
use crate::local::database::{self, DatabaseArgs};
use crate::store::Store;

/// Migrates the database that the flags name, an embedded one included.
pub(super) async fn run(args: &DatabaseArgs) -> Result<(), RoleError> {
    let opened = database::visit(args).await?;
    let store = Store::reach(opened.options, args.pools(), args.reach()?);
    store.migrate().await?;
    store.close().await;
    if let Some(embedded) = opened.embedded {
        embedded.stop().await;
    }
    Ok(())
}
