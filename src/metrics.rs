//! Figures that this process counts as it goes: what happened to turns here, and what is open here. They are in memory, so they
//! are told while the database is away. What the tables say is in `store::metrics`.
//!
//! Each replica counts what it did itself: sum over replicas. Names follow Prometheus: `_seconds`, `_total`, base units.
//!
//! Labels are bounded: a reason or a platform's name is one of few, and of Agents the first [`MAX_AGENTS`] that this process
//! sees have a label of their own; all others share the label `other`.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, PoisonError};

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Agents that have a label of their own.
const MAX_AGENTS: usize = 100;
/// The label of all further Agents.
const OTHER: &str = "other";

/// From a moment, in which a program answers, to an hour, in which one may think.
const TURN_SECONDS: [f64; 14] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1200.0, 3600.0];
/// From a process that starts to a node that has to be made first.
const START_SECONDS: [f64; 11] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 180.0, 600.0];
/// From a disk that only remembers to one that is drowning.
const COMMIT_SECONDS: [f64; 11] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

/// All of them.
pub struct Metrics {
    registry: Registry,
    agents: Mutex<HashSet<String>>,
    pub turns_armed: IntCounterVec,
    pub turns_claimed: IntCounterVec,
    pub turns_ended: IntCounterVec,
    pub turns_shown: IntCounterVec,
    pub claim_seconds: HistogramVec,
    pub first_output_seconds: HistogramVec,
    pub terminal_seconds: HistogramVec,
    pub shown_seconds: HistogramVec,
    pub worker_start_seconds: HistogramVec,
    pub commit_seconds: Histogram,
    pub client_streams: IntGauge,
    pub worker_streams: IntGauge,
    pub leader: IntGauge,
    pub watches_up: IntGaugeVec,
    pub streams_cut: IntCounterVec,
}

/// This process's.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

impl Metrics {
    fn new() -> Self {
        let registry = Registry::new();
        macro_rules! registered {
            ($made:expr) => {{
                let metric = $made.expect("the name is one");
                registry.register(Box::new(metric.clone())).expect("the name is used once");
                metric
            }};
        }
        macro_rules! counters {
            ($name:literal, $help:literal, $labels:expr) => {
                registered!(IntCounterVec::new(Opts::new($name, $help), &$labels))
            };
        }
        macro_rules! seconds {
            ($name:literal, $help:literal, $buckets:expr, $labels:expr) => {
                registered!(HistogramVec::new(HistogramOpts::new($name, $help).buckets($buckets.to_vec()), &$labels))
            };
        }
        Metrics {
            turns_armed: counters!("lastword_turns_armed_total", "Turns that were accepted here.", ["agent"]),
            turns_claimed: counters!("lastword_turns_claimed_total", "Turns that a worker here took.", ["agent"]),
            turns_ended: counters!(
                "lastword_turns_ended_total",
                "Turns whose terminal was written here, by its reason; replies are Succeeded.",
                ["agent", "reason"]
            ),
            turns_shown: counters!(
                "lastword_turns_shown_total",
                "Terminals that were first shown here, by the platform that shows them.",
                ["platform"]
            ),
            claim_seconds: seconds!(
                "lastword_turn_claim_seconds",
                "From the acceptance of a turn until a worker took it.",
                TURN_SECONDS,
                ["agent"]
            ),
            first_output_seconds: seconds!(
                "lastword_turn_first_output_seconds",
                "From the acceptance of a turn until its first output was durable.",
                TURN_SECONDS,
                ["agent"]
            ),
            terminal_seconds: seconds!(
                "lastword_turn_terminal_seconds",
                "From the acceptance of a turn until its terminal; the outcome is reply or error.",
                TURN_SECONDS,
                ["agent", "outcome"]
            ),
            shown_seconds: seconds!(
                "lastword_turn_shown_seconds",
                "From the acceptance of a turn until its terminal was first shown.",
                TURN_SECONDS,
                ["agent"]
            ),
            worker_start_seconds: seconds!(
                "lastword_worker_start_seconds",
                "From the decision to start a worker until it connected: of a pod, or of a process.",
                START_SECONDS,
                ["agent"]
            ),
            commit_seconds: registered!(Histogram::with_opts(
                HistogramOpts::new("lastword_commit_seconds", "What the database takes for a COMMIT.")
                    .buckets(COMMIT_SECONDS.to_vec())
            )),
            client_streams: registered!(IntGauge::new("lastword_client_streams", "Streams of clients that are open.")),
            worker_streams: registered!(IntGauge::new("lastword_worker_streams", "Streams of workers that are open.")),
            leader: registered!(IntGauge::new("lastword_leader", "Whether this process starts and stops workers.")),
            watches_up: registered!(IntGaugeVec::new(
                Opts::new("lastword_watch_up", "Whether a watch of the API server goes on."),
                &["resource"]
            )),
            streams_cut: counters!(
                "lastword_client_streams_cut_total",
                "Streams of clients that were cut: for a reader who did not read, or one whose key or token ended.",
                ["why"]
            ),
            agents: Mutex::default(),
            registry,
        }
    }

    /// The label of an Agent.
    pub fn agent(&self, organization: &str, agent: &str) -> String {
        let label = format!("{organization}/{agent}");
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if agents.contains(&label) {
            return label;
        }
        if agents.len() >= MAX_AGENTS {
            return OTHER.to_owned();
        }
        agents.insert(label.clone());
        label
    }

    /// All of them in Prometheus' text format, version 0.0.4.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        // Writing to memory does not fail; a family without samples is left out.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_beyond_a_hundred_share_a_label() {
        let metrics = Metrics::new();
        for n in 0..2 * MAX_AGENTS {
            metrics.turns_armed.with_label_values(&[metrics.agent("acme", &format!("a{n}"))]).inc();
        }
        assert_eq!(metrics.agent("acme", "a0"), "acme/a0");
        assert_eq!(metrics.agent("acme", "a150"), OTHER);
        let text = metrics.text();
        assert_eq!(text.matches("lastword_turns_armed_total{").count(), MAX_AGENTS + 1);
        assert!(text.contains(r#"lastword_turns_armed_total{agent="other"} 100"#), "{text}");
    }

    #[test]
    fn the_documentation_has_every_metric() {
        let docs = include_str!("../docs/operations.md");
        for source in [include_str!("metrics.rs"), include_str!("store/metrics.rs")] {
            let code = source.split("#[cfg(test)]").next().unwrap_or_default();
            let names = code.split('"').filter(|text| {
                text.starts_with("lastword_") && text.bytes().all(|b| b.is_ascii_lowercase() || b"_".contains(&b))
            });
            let names: Vec<&str> = names.collect();
            assert!(names.len() >= 8, "{names:?}");
            for name in names {
                assert!(docs.contains(&format!("| `{name}` |")), "docs/operations.md lacks {name}");
            }
        }
    }
}
