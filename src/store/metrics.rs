//! Metrics of the tables: how Lastword fares, read cheaply and now and then, so that every replica tells about the same. What a
//! process counts itself is in [`crate::metrics`].

use std::fmt::Write;
use std::time::Duration;

use sqlx::Row;

use super::pool::bounded;
use super::{Store, StoreError};

/// What the tables say now.
#[derive(Debug, Clone, Default)]
pub struct StoreMetrics {
    /// Open turns by phase: `guarding`, `waiting`, `claimed`.
    pub open_turns: Vec<(String, i64)>,
    /// Seconds that the oldest waiting turn has waited.
    pub oldest_waiting_seconds: f64,
    /// Workers that are not dead, by phase.
    pub workers: Vec<(String, i64)>,
    /// Terminals of the last hour by reason; replies are `Succeeded`.
    pub terminals_last_hour: Vec<(String, i64)>,
    /// Terminals for webhooks and Slack that are yet to be posted, and those that were given up and not yet pruned.
    pub posts: Vec<(String, i64)>,
    /// Seconds since a gateway last ticked: large means that verdicts of silence are held back.
    pub gate_seen_seconds: f64,
    /// Seconds by which the oldest ended turn is past its retention: large means that the retention does not keep up, or
    /// that something keeps the turn, such as a status that was not written.
    pub retention_backlog_seconds: f64,
    /// Age in transactions of the oldest snapshot, which holds back vacuum.
    pub oldest_xmin_age: i64,
}

impl Store {
    /// Reads the metrics.
    pub async fn metrics(&self) -> Result<StoreMetrics, StoreError> {
        bounded(async {
        let mut connection = self.general.acquire().await?;
        let open_turns = sqlx::query_as("SELECT phase, count(*) FROM marker GROUP BY phase ORDER BY phase")
            .fetch_all(&mut connection)
            .await?;
        let workers =
            sqlx::query_as("SELECT phase, count(*) FROM lease WHERE phase <> 'dead' GROUP BY phase ORDER BY phase")
                .fetch_all(&mut connection)
                .await?;
        let terminals_last_hour = sqlx::query_as(
            "SELECT coalesce(reason, 'Succeeded'), count(*) FROM terminal
             WHERE ended_at > statement_timestamp() - interval '1 hour' GROUP BY 1 ORDER BY 1",
        )
        .fetch_all(&mut connection)
        .await?;
        // Each of the two counts has a partial index of its own.
        let posts = sqlx::query_as(
            "SELECT 'due', count(*) FROM delivery WHERE state = 'ready' AND platform NOT IN ('api', 'kubernetes')
             UNION ALL
             SELECT 'given-up', count(*) FROM delivery WHERE state = 'parked' AND platform NOT IN ('api', 'kubernetes')",
        )
        .fetch_all(&mut connection)
        .await?;
        let row = sqlx::query(
            "SELECT extract(epoch FROM statement_timestamp() - g.seen)::float8 AS seen,
                    coalesce((SELECT extract(epoch FROM statement_timestamp() - min(armed_at)) FROM marker
                              WHERE incarnation IS NULL), 0)::float8 AS oldest,
                    coalesce((SELECT greatest(0, extract(epoch FROM statement_timestamp() - (SELECT min(ended_at) FROM terminal))
                                               - turn_seconds) FROM retention), 0)::float8 AS overdue,
                    coalesce((SELECT max(age(backend_xmin)) FROM pg_stat_activity), 0)::bigint AS xmin
             FROM gate g",
        )
        .fetch_one(&mut connection)
        .await?;
        Ok(StoreMetrics {
            open_turns,
            workers,
            terminals_last_hour,
            posts,
            oldest_waiting_seconds: row.try_get("oldest")?,
            gate_seen_seconds: row.try_get("seen")?,
            retention_backlog_seconds: row.try_get("overdue")?,
            oldest_xmin_age: row.try_get("xmin")?,
        })
        })
        .await
    }
}

impl StoreMetrics {
    /// The metrics in Prometheus' text format, as they were so long ago.
    pub fn text(&self, age: Duration) -> String {
        let age = age.as_secs_f64();
        let counted = |rows: &[(String, i64)]| rows.iter().map(|(k, n)| (k.clone(), *n as f64)).collect::<Vec<_>>();
        let one = |n: f64| vec![(String::new(), n)];
        let mut text = String::new();
        let mut gauge = |name: &str, help: &str, label: &str, samples: Vec<(String, f64)>| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
            for (value, n) in samples {
                let _ = match label {
                    "" => writeln!(text, "{name} {n}"),
                    label => writeln!(text, "{name}{{{label}=\"{value}\"}} {n}"),
                };
            }
        };
        gauge("lastword_open_turns", "Turns that owe their terminal.", "phase", counted(&self.open_turns));
        gauge(
            "lastword_oldest_waiting_seconds",
            "Age of the oldest turn that no worker has claimed.",
            "",
            one(self.oldest_waiting_seconds),
        );
        gauge("lastword_workers", "Workers that are not dead.", "phase", counted(&self.workers));
        gauge(
            "lastword_terminals_last_hour",
            "Terminals of the last hour.",
            "reason",
            counted(&self.terminals_last_hour),
        );
        gauge(
            "lastword_posts",
            "Terminals for webhooks and Slack that are due, or were given up.",
            "state",
            counted(&self.posts),
        );
        gauge(
            "lastword_gate_seen_seconds",
            "Time since a gateway last wrote a heartbeat tick, as far as is known.",
            "",
            one(self.gate_seen_seconds + age),
        );
        gauge(
            "lastword_retention_backlog_seconds",
            "Time by which the oldest ended turn is past its retention.",
            "",
            one(self.retention_backlog_seconds),
        );
        gauge(
            "lastword_oldest_xmin_age",
            "Age in transactions of the oldest snapshot; it holds back vacuum.",
            "",
            one(self.oldest_xmin_age as f64),
        );
        gauge(
            "lastword_store_figures_age_seconds",
            "Age of the figures that are read from the database.",
            "",
            one(age),
        );
        text
    }
}
