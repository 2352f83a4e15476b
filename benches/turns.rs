//! Turns per second and latency through HTTP, beside pgbench doing the bare three-transaction cycle on the same server.
//!
//! The whole of `lastword dev` runs as its users run it: a child process, embedded Postgres with fsync, `echo` workers as
//! processes of their own. The load: `--concurrency` clients, each with a conversation, each submitting a turn, reading
//! its stream to the terminal, and submitting the next. Latency is from before the submit to the `complete` frame.
//! With `--stalled` and `--slow-headers` the same load runs again beside clients that read nothing and clients whose requests do
//! not end (`disturbance.rs`); what to read then is the 99th percentile beside the one alone, and what memory that took.
//! Half of the clock before and after, pgbench runs `benches/cycle.sql` on the same server; the ratio is what to read.

#[path = "disturbance.rs"]
mod disturbance;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(clap::Parser)]
struct Args {
    /// Clients, each with one turn in flight.
    #[arg(long, default_value_t = 2000)]
    concurrency: usize,
    /// How long the load lasts.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Echo workers, and the turns that each takes at once.
    #[arg(long, default_value_t = 2)]
    workers: u32,
    #[arg(long, default_value_t = 1000)]
    turns_per_worker: u32,
    /// Clients of a long reply who read nothing of it, half of them by HTTP/2.
    #[arg(long, default_value_t = 0)]
    stalled: usize,
    /// Clients who send the header of a request a byte at a time.
    #[arg(long, default_value_t = 0)]
    slow_headers: usize,
    /// What cargo passes.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Error> {
    let args = <Args as clap::Parser>::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Runtime::new()?.block_on(run(args))
}

async fn run(args: Args) -> Result<(), Error> {
    let directory = tempfile::tempdir()?;
    let dev = Dev::start(directory.path(), &args)?;
    let client = reqwest::Client::builder().pool_max_idle_per_host(args.concurrency * 2).no_proxy().build()?;
    println!("warm-up");
    load(&client, &dev.url, args.concurrency.min(200), Duration::from_secs(3)).await?;
    if args.stalled + args.slow_headers > 0 {
        return beside_disturbance(&args, &client, &dev).await;
    }
    let before = bare_cycle(directory.path(), args.seconds / 2).await;
    let result = load(&client, &dev.url, args.concurrency, Duration::from_secs(args.seconds)).await?;
    let after = bare_cycle(directory.path(), args.seconds / 2).await;
    drop(dev);
    report(&args, result, before, after);
    Ok(())
}

/// The load alone, and beside those who do not read or do not finish their requests.
async fn beside_disturbance(args: &Args, client: &reqwest::Client, dev: &Dev) -> Result<(), Error> {
    let length = Duration::from_secs(args.seconds);
    let alone = load(client, &dev.url, args.concurrency, length).await?;
    let memory = dev.memory()?;
    let long = disturbance::long_turn(client, &dev.url).await?;
    let disturbance = disturbance::begin(&dev.url, &long, args.stalled, args.slow_headers);
    disturbance.is_under_way().await;
    let beside = load(client, &dev.url, args.concurrency, length).await?;
    let grown = dev.memory()?.saturating_sub(memory) / (1024 * 1024);
    let (p99, p99_beside) = (alone.at(0.99), beside.at(0.99));
    println!("\nconcurrent turns      {}", args.concurrency);
    println!("alone                 {} turns, {} errors, p99 {p99:.1?}", alone.turns, alone.errors);
    println!("beside                {} turns, {} errors, p99 {p99_beside:.1?}", beside.turns, beside.errors);
    println!(
        "stalled, slow         {} (cut {} times), {} (cut {} times)",
        args.stalled,
        disturbance.stalled_cut(),
        args.slow_headers,
        disturbance.slow_cut()
    );
    println!("p99 beside / alone    {:.2}", p99_beside.as_secs_f64() / p99.as_secs_f64());
    println!("memory                {grown} MiB more");
    Ok(())
}

/// A running `lastword dev`; interrupted when dropped.
struct Dev {
    child: Child,
    url: String,
}

impl Dev {
    fn start(directory: &Path, args: &Args) -> Result<Self, Error> {
        let program = env!("CARGO_BIN_EXE_lastword");
        let agents = directory.join("agents.yaml");
        std::fs::write(
            &agents,
            format!(
                "apiVersion: lastword.dev/v1alpha1\nkind: Agent\nmetadata: {{name: echo}}\nspec:\n  adapter: Custom\n  scope: Agent\n  \
                 limits: {{minWorkers: {w}, maxWorkers: {w}, turnsPerWorker: {n}, maxQueuedTurns: 100000}}\n  \
                 template: {{spec: {{containers: [{{name: agent, command: [{program}, worker, echo]}}]}}}}\n",
                w = args.workers,
                n = args.turns_per_worker
            ),
        )?;
        let mut child = Command::new(program)
            .args(["dev", "--listen", "127.0.0.1:0", "--worker-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .args(["--log", "warn", "--agents"])
            .arg(&agents)
            .current_dir(directory)
            .stderr(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stderr.take().ok_or("no stderr")?).lines();
        let url = loop {
            let line = lines.next().ok_or("dev ended before it was ready")??;
            if let Some((_, url)) = line.split_once("ready on ") {
                break url.trim().to_string();
            }
        };
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| eprintln!("dev: {line}")));
        Ok(Dev { child, url })
    }
}

impl Dev {
    /// What it has of the machine's memory, in bytes.
    fn memory(&self) -> Result<u64, Error> {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id()))?;
        let pages: u64 = statm.split(' ').nth(1).ok_or("statm")?.parse()?;
        Ok(pages * 4096)
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ =
            rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::INT);
        let _ = self.child.wait();
    }
}

struct Loaded {
    turns: usize,
    errors: u64,
    elapsed: Duration,
    latencies: Vec<Duration>,
}

impl Loaded {
    fn at(&self, q: f64) -> Duration {
        let index = ((self.latencies.len() as f64 * q) as usize).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(index).copied().unwrap_or_default()
    }
}

async fn load(client: &reqwest::Client, url: &str, clients: usize, length: Duration) -> Result<Loaded, Error> {
    let errors = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let run = uuid::Uuid::now_v7();
    let tasks: Vec<_> = (0..clients)
        .map(|n| {
            let (client, url, errors) = (client.clone(), url.to_string(), errors.clone());
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while started.elapsed() < length {
                    let begun = Instant::now();
                    match turn(&client, &url, &format!("{run}-{n}")).await {
                        Ok(()) => latencies.push(begun.elapsed()),
                        Err(error) => {
                            if errors.fetch_add(1, Ordering::Relaxed) == 0 {
                                eprintln!("first error: {error}");
                            }
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    }
                }
                latencies
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await?);
    }
    latencies.sort();
    let errors = errors.load(Ordering::Relaxed);
    Ok(Loaded { turns: latencies.len(), errors, elapsed: started.elapsed(), latencies })
}

/// One turn: submit, then read its stream to the terminal.
async fn turn(client: &reqwest::Client, url: &str, conversation: &str) -> Result<(), Error> {
    let body = serde_json::json!({"agent": "echo", "message": "the message of a turn"});
    let submitted: serde_json::Value = client
        .post(format!("{url}/v1/conversations/{conversation}/turns"))
        .json(&body)
        .send()
        .await?
        .error_for_status()?
        .json()
        .await?;
    let id = submitted["turnId"].as_str().ok_or("no turnId")?;
    let response = client.get(format!("{url}/v1/turns/{id}/events")).send().await?.error_for_status()?;
    let mut stream = response.bytes_stream();
    let mut text = Vec::new();
    while let Some(part) = stream.next().await {
        text.extend_from_slice(&part?);
    }
    let text = String::from_utf8(text)?;
    match text.matches("event: complete").count() {
        1 if text.contains("\"outcome\":\"reply\"") => Ok(()),
        n => Err(format!("{n} terminals:\n{text}").into()),
    }
}

/// pgbench's transactions per second on the same server; `None` where there is no pgbench.
async fn bare_cycle(directory: &Path, seconds: u64) -> Option<f64> {
    let socket = directory.join(".lastword/run");
    let psql = |sql: &'static str| {
        let mut command = Command::new("psql");
        command.args(["-q", "-U", "lastword", "-d", "lastword", "-h"]).arg(&socket).args(["-c", sql]);
        command
    };
    psql(
        "CREATE TABLE IF NOT EXISTS bare_turn (id bigint PRIMARY KEY, input text, at timestamptz DEFAULT clock_timestamp());
         CREATE TABLE IF NOT EXISTS bare_marker (turn_id bigint PRIMARY KEY, worker int, claimed_at timestamptz);
         CREATE TABLE IF NOT EXISTS bare_terminal (turn_id bigint PRIMARY KEY, text text, at timestamptz DEFAULT clock_timestamp());",
    )
    .status()
    .ok()?;
    let output = tokio::task::spawn_blocking({
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/cycle.sql");
        let socket = socket.clone();
        move || {
            Command::new("pgbench")
                .args(["-n", "-U", "lastword", "-c", "32", "-j", "2", "-T", &seconds.to_string(), "-f", script, "-h"])
                .arg(socket)
                .arg("lastword")
                .output()
        }
    })
    .await
    .ok()?
    .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).to_string();
    let tps = text.lines().find_map(|l| l.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    if tps.is_none() {
        eprintln!("pgbench: {}", String::from_utf8_lossy(&output.stderr));
    }
    tps
}

fn report(args: &Args, loaded: Loaded, before: Option<f64>, after: Option<f64>) {
    let rate = loaded.turns as f64 / loaded.elapsed.as_secs_f64();
    let at = |q: f64| loaded.at(q);
    println!("\nconcurrent turns      {}", args.concurrency);
    println!(
        "turns                 {} in {:.1} s, {} errors",
        loaded.turns,
        loaded.elapsed.as_secs_f64(),
        loaded.errors
    );
    println!("turns/s               {rate:.0}");
    println!("submit to terminal    p50 {:.1?}  p99 {:.1?}  max {:.1?}", at(0.5), at(0.99), at(1.0));
    match (before, after) {
        (Some(before), Some(after)) => {
            let bare = (before + after) / 2.0;
            println!("bare cycle, pgbench   {before:.0} /s before, {after:.0} /s after (32 clients)");
            println!("turns / bare cycles   {:.2}", rate / bare);
        }
        _ => println!(
            "bare cycle, pgbench   SKIPPED: pgbench and psql are not installed (Debian: postgresql-client, postgresql)"
        ),
    }
}
