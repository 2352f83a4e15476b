//! The flags that all adapters have.

use std::path::PathBuf;

use url::Url;

use crate::wire::env;

/// How to reach Lastword, and how much to take. There is no flag for the credential, since flags show in the list of
/// processes: it comes from the variable LASTWORD_CREDENTIAL, or, in a pod, in exchange for the token in the file that
/// LASTWORD_TOKEN_FILE names.
#[derive(Debug, Clone, clap::Args)]
pub struct CommonArgs {
    /// Base URLs of the gateways' worker port; one is used, the next when it fails
    #[arg(
        long,
        env = env::GATEWAY,
        value_name = "URL,…",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:8081"
    )]
    pub gateway: Vec<Url>,
    /// PEM file with the authorities to trust at https:// gateways, in place of the system's
    #[arg(long, env = env::GATEWAY_CA, value_name = "FILE")]
    pub gateway_ca: Option<PathBuf>,
    /// Turns that may run at once
    #[arg(
        long,
        env = env::CAPACITY,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    pub turns_per_worker: u32,
    /// Time to finish the turns in hand after SIGTERM; then their programs are killed
    #[arg(long, env = env::DRAIN_SECONDS, value_name = "SECONDS", default_value_t = 30)]
    pub drain_seconds: u32,
}
