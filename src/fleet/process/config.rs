//! How worker processes are started on this machine.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::crd::SecretKeyRef;

/// Finds the value of a Secret's key on this machine; `None` if there is none.
pub type SecretLookup = Arc<dyn Fn(&SecretKeyRef) -> Option<String> + Send + Sync>;

/// What the runtime `process` needs to know.
#[derive(Clone)]
pub struct ProcessConfig {
    /// Names this machine's data directory, the same in every run; without a slash. Only one process at a time may use it.
    pub node: String,
    /// Names this run of the process. New in each run.
    pub boot: Uuid,
    /// Base URLs of the worker port, comma-separated, as [`crate::wire::env::GATEWAY`] has them.
    pub gateway: String,
    /// What relative working directories are relative to: the directory of the file of Agents.
    pub base_dir: PathBuf,
    /// The binary `lastword`, which holds the adapters.
    pub program: PathBuf,
    /// Where API keys come from.
    pub secrets: SecretLookup,
    /// How long workers may take to end when this process stops. A worker whose own `drainSeconds` are shorter has those;
    /// with `None`, every worker has its own.
    pub stop_within: Option<Duration>,
    /// The collector that workers send their traces to.
    pub traces: Option<String>,
}

impl ProcessConfig {
    /// A config with this very binary as the program, a new boot, and no secrets.
    ///
    /// # Errors
    /// If the path of this binary cannot be found out.
    pub fn new(node: &str, gateway: &str, base_dir: impl Into<PathBuf>) -> std::io::Result<Self> {
        Ok(ProcessConfig {
            node: node.to_owned(),
            boot: Uuid::now_v7(),
            gateway: gateway.to_owned(),
            base_dir: base_dir.into(),
            program: std::env::current_exe()?,
            secrets: Arc::new(|_| None),
            stop_within: None,
            traces: None,
        })
    }
}
