//! The schema: applying the migrations, waiting for them, and refusing a database that is not ours to work with.
//!
//! Versions of Lastword run side by side during an upgrade and after a rollback, so a program takes a schema that is newer
//! than its own as it is. A database whose migrations are not those that this program was built with was made before the
//! first release; there is no way from it to here.

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{Executor, Row};

use super::pool::one_session;
use super::{Store, StoreError};

/// The oldest Postgres that is supported, as a major version.
pub const MIN_POSTGRES: u32 = 15;

impl From<MigrateError> for StoreError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::VersionMismatch(version) => made_before(version),
            error => StoreError::Schema(format!("migration failed: {error}").into()),
        }
    }
}

/// The database knows a migration of this number under another checksum.
fn made_before(version: i64) -> StoreError {
    let said = format!(
        "this database was made by a Lastword from before its first release (its migration {version} is another one), and \
         there is no upgrade from it: give Lastword a new database, or, if nothing in this one is needed, run \
         `DROP SCHEMA lastword CASCADE` in it; then run `lastword migrate`"
    );
    StoreError::Schema(said.into())
}

impl Store {
    /// Creates the schema and applies the migrations that are missing. A newer schema is left as it is.
    ///
    /// [`StoreError::Schema`] says in words for a person why a database cannot be used.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let version: String = sqlx::query("SHOW server_version_num").fetch_one(&self.general).await?.try_get(0)?;
        let major = version.parse::<u32>().unwrap_or(0) / 10_000;
        if major < MIN_POSTGRES {
            return Err(StoreError::Schema(
                format!("Postgres {major} is too old: Lastword needs {MIN_POSTGRES} or newer").into(),
            ));
        }
        self.create_schema().await?;
        match self.session_options().await? {
            Some(options) => {
                let mut session = one_session(options).acquire().await?;
                session.execute("SET search_path = lastword; SET lock_timeout = 6000").await?;
                migrations().run(&mut *session).await?;
                Ok(())
            }
            None => self.migrate_in_one_transaction().await,
        }
    }

    /// Two that create the schema at once both look before either has written, so the later one finds it made after all.
    async fn create_schema(&self) -> Result<(), StoreError> {
        let create = "CREATE SCHEMA IF NOT EXISTS lastword";
        let made = sqlx::query(create).execute(&self.general).await;
        if made.as_ref().is_err_and(|e| e.as_database_error().is_some_and(|e| e.is_unique_violation())) {
            sqlx::query(create).execute(&self.general).await?;
        } else {
            made?;
        }
        Ok(())
    }

    /// Behind a pooler, sqlx's own way would leave its lock on a session that others get: there is one transaction with a lock
    /// of its own. The table of what is applied is sqlx's.
    async fn migrate_in_one_transaction(&self) -> Result<(), StoreError> {
        let mut tx = self.general.begin().await?;
        tx.execute("SET LOCAL statement_timeout = 0; SELECT pg_advisory_xact_lock(hashtext('lastword migrate'))")
            .await?;
        tx.execute(
            "CREATE TABLE IF NOT EXISTS _sqlx_migrations (
               version bigint PRIMARY KEY, description text NOT NULL, installed_on timestamptz NOT NULL DEFAULT now(),
               success boolean NOT NULL, checksum bytea NOT NULL, execution_time bigint NOT NULL)",
        )
        .await?;
        for migration in migrations().iter() {
            let applied: Option<Vec<u8>> =
                sqlx::query_scalar("SELECT checksum FROM _sqlx_migrations WHERE version = $1 AND success")
                    .bind(migration.version)
                    .fetch_optional(&mut tx)
                    .await?;
            match applied {
                Some(checksum) if checksum == *migration.checksum => continue,
                Some(_) => return Err(made_before(migration.version)),
                None if migration.no_tx => {
                    let said = "a migration cannot run behind a pooler in transaction mode: give `lastword migrate` a way \
                                past it (--database-direct-url)";
                    return Err(StoreError::Schema(said.into()));
                }
                None => {}
            }
            let failed = |error| MigrateError::ExecuteMigration(error, migration.version);
            tx.execute(migration.sql.clone()).await.map_err(failed)?;
            sqlx::query(
                "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES ($1, $2, true, $3, -1)",
            )
            .bind(migration.version)
            .bind(&*migration.description)
            .bind(&*migration.checksum)
            .execute(&mut tx)
            .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Whether the schema is at least as new as this program. [`StoreError::Schema`]: it never will be.
    pub async fn schema_ready(&self) -> Result<bool, StoreError> {
        let exists: bool = sqlx::query_scalar("SELECT to_regclass('lastword._sqlx_migrations') IS NOT NULL")
            .fetch_one(&self.general)
            .await?;
        if !exists {
            return Ok(false);
        }
        let applied: Vec<(i64, Vec<u8>)> =
            sqlx::query_as("SELECT version, checksum FROM _sqlx_migrations WHERE success")
                .fetch_all(&self.general)
                .await?;
        let mut ready = true;
        for known in migrations().iter() {
            match applied.iter().find(|(version, _)| *version == known.version) {
                None => ready = false,
                Some((_, checksum)) if *checksum == *known.checksum => {}
                Some(_) => return Err(made_before(known.version)),
            }
        }
        Ok(ready)
    }
}

fn migrations() -> Migrator {
    let mut migrations = sqlx::migrate!("./migrations");
    // What a newer program has added stays, and does not stop an older one: that is a rollback.
    migrations.set_ignore_missing(true);
    migrations
}
