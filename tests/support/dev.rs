//! `lastword dev`, the built binary, in a fresh directory: started, told things, killed, and looked after.
//!
//! What it starts has a marker in its environment or works in its directory, so that a test sees in /proc what is left behind.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::LASTWORD;
use super::api::Api;
use super::process::{environment_has, signal};
use super::wait::{eventually, eventually_within, within};

/// A `dev` and all that it started are gone within this after its end.
const CLEARED: Duration = Duration::from_secs(15);
/// Not one of ours by its name: those are kept from agents.
const MARKER: &str = "LW_TEST_MARKER";
const READY: &str = "Lastword is ready on ";

/// A `lastword dev` of one test alone.
pub struct Dev {
    dir: Option<TempDir>,
    marker: String,
    flags: Vec<String>,
    variables: Vec<(String, String)>,
    wrapper: Vec<String>,
    process: Option<Child>,
    url: String,
    starts: usize,
}

/// A process of this test, seen in /proc.
#[derive(Debug, Clone)]
pub struct Seen {
    pub pid: u32,
    /// Its command line, with spaces between the words.
    pub command: String,
}

impl Dev {
    /// Starts one with these Agents, and waits until it is ready.
    pub async fn start(agents: &str) -> Dev {
        Dev::with(agents, &[]).await
    }

    /// The same, with flags.
    pub async fn with(agents: &str, flags: &[&str]) -> Dev {
        let mut dev = Dev::prepare(agents, flags);
        dev.restart().await;
        dev
    }

    /// A directory with the Agents' file; nothing is started.
    pub fn prepare(agents: &str, flags: &[&str]) -> Dev {
        let dev = Dev {
            dir: Some(tempfile::Builder::new().prefix("lastword-dev-").tempdir().unwrap()),
            marker: uuid::Uuid::new_v4().to_string(),
            flags: flags.iter().map(|f| f.to_string()).collect(),
            variables: Vec::new(),
            wrapper: Vec::new(),
            process: None,
            url: String::new(),
            starts: 0,
        };
        dev.write_agents(agents);
        dev
    }

    /// Starts it, again on the same directory; its addresses are new.
    pub async fn restart(&mut self) {
        assert!(self.process.is_none(), "it runs");
        self.starts += 1;
        let log = self.path(&format!("dev-{}.log", self.starts));
        let mut child = self.command(&[]).stderr(File::create(&log).unwrap()).spawn().unwrap();
        self.url = eventually("dev is ready", async || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("dev ended ({status}) before it was ready:\n{}", self.log());
            }
            ready(&log).ok_or_else(|| self.log())
        })
        .await;
        self.process = Some(child);
    }

    /// `lastword dev` on this directory, with these flags besides; ports are chosen by the system.
    pub fn command(&self, flags: &[&str]) -> Command {
        let mut command = self.lastword();
        if let [program, words @ ..] = self.wrapper.as_slice() {
            command = Command::new(program);
            command.args(words).arg(LASTWORD).current_dir(self.dir()).stdin(Stdio::null()).stderr(Stdio::piped());
        }
        command.args(["dev", "--agents", "agents.yaml"]);
        for port in ["--listen", "--worker-listen", "--admin-listen"] {
            if !flags.contains(&port) {
                command.args([port, "127.0.0.1:0"]);
            }
        }
        command.args(&self.flags).args(flags).envs(self.variables.iter().cloned()).env(MARKER, &self.marker);
        command
    }

    /// A variable in the environment of the next start.
    pub fn env(&mut self, name: &str, value: &str) {
        self.variables.push((name.into(), value.into()));
    }

    /// The next start is by this program, which executes what follows its words.
    pub fn by(&mut self, wrapper: &[&str]) {
        self.wrapper = wrapper.iter().map(|w| w.to_string()).collect();
    }

    /// The binary in this directory, in an environment of its own.
    pub fn lastword(&self) -> Command {
        let mut command = Command::new(LASTWORD);
        for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("LASTWORD_") && n != "LASTWORD_CACHE_DIR") {
            command.env_remove(name);
        }
        command.current_dir(self.dir()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// `lastword chat` against it: exit code, stdout, stderr.
    pub async fn chat(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let mut command = self.lastword();
        command.args(["chat", "--gateway", &self.url]).args(args).kill_on_drop(true);
        let output = within("the end of chat", command.output()).await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// A client of it as it runs now.
    pub fn api(&self) -> Api {
        Api::new(&self.url, None)
    }

    pub fn dir(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Replaces the Agents' file, as an editor does.
    pub fn write_agents(&self, agents: &str) {
        fs::write(self.path("agents.yaml.new"), agents).unwrap();
        fs::rename(self.path("agents.yaml.new"), self.path("agents.yaml")).unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().and_then(Child::id).expect("it runs")
    }

    /// SIGKILL to `dev` alone, and waits for its end.
    pub async fn kill9(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.start_kill().unwrap();
        assert_eq!(process.wait().await.unwrap().signal(), Some(9), "killed by us:\n{}", self.log());
    }

    /// Ctrl-C, and waits for the end.
    pub async fn interrupt(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("it runs");
        signal(process.id().unwrap(), Signal::INT);
        within("the end of dev", process.wait()).await.unwrap()
    }

    /// What the last start has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path(&format!("dev-{}.log", self.starts))).unwrap_or_default()
    }

    /// The processes that carry this test's marker, `dev` itself among them.
    pub fn processes(&self) -> Vec<Seen> {
        let marker = format!("{MARKER}={}", self.marker);
        let dir = self.dir.as_ref().map(|d| d.path().to_path_buf());
        let entries = fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter_map(|entry| {
                let pid = entry.file_name().to_str()?.parse().ok()?;
                let marked = environment_has(pid, &marker);
                // Where the environment cannot be read, the working directory tells.
                let inside = || {
                    fs::read_link(entry.path().join("cwd"))
                        .ok()
                        .zip(dir.as_ref())
                        .is_some_and(|(c, d)| c.starts_with(d))
                };
                let command = fs::read(entry.path().join("cmdline")).ok().filter(|c| !c.is_empty())?;
                let command = command.split(|b| *b == 0).map(String::from_utf8_lossy).collect::<Vec<_>>().join(" ");
                (marked || inside()).then(|| Seen { pid, command: command.trim_end().to_string() })
            })
            .collect()
    }

    /// Waits for the one process whose command line has all of these words. A keeper, which has the words of what it keeps,
    /// does not count.
    pub async fn process(&self, words: &[&str]) -> u32 {
        let what = format!("one process with {words:?}");
        eventually(&what, async || {
            let is =
                |p: &Seen| !p.command.starts_with("lastword-keeper") && words.iter().all(|w| p.command.contains(w));
            let found: Vec<_> = self.processes().into_iter().filter(is).collect();
            match found.as_slice() {
                [one] => Ok(one.pid),
                _ => Err(format!("{found:#?}")),
            }
        })
        .await
    }

    /// Waits until nothing of this test's runs, and says what still does if that takes too long.
    pub async fn nothing_left(&self) {
        eventually_within(CLEARED, "nothing is left behind", async || {
            let left = self.processes();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
        })
        .await;
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the log of dev, start {} ---\n{}---", self.starts, self.log());
        }
        if let Some(process) = self.process.take().and_then(|p| p.id()) {
            signal(process, Signal::KILL);
        }
        let begun = Instant::now();
        let mut left = self.processes();
        while !left.is_empty() && begun.elapsed() < CLEARED {
            std::thread::sleep(Duration::from_millis(20)); // a drop cannot await
            left = self.processes();
        }
        for process in &left {
            signal(process.pid, Signal::KILL);
        }
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left behind by a killed dev: {left:#?}");
        }
    }
}

fn ready(log: &Path) -> Option<String> {
    let text = fs::read_to_string(log).ok()?;
    // The line is whole when the one behind it has begun.
    let (url, _) = text.split_once(READY)?.1.split_once('\n')?;
    Some(url.trim().to_string())
}

/// An Agent as a YAML document: its name, and what stands in `spec` besides the template.
pub fn agent(name: &str, spec: serde_json::Value, command: &[&str]) -> String {
    let mut spec = spec;
    spec["template"]["spec"]["containers"] = serde_json::json!([{"name": "agent", "command": command}]);
    if spec["adapter"].is_null() {
        spec["adapter"] = "Exec".into();
    }
    let document = serde_json::json!({
        "apiVersion": "lastword.dev/v1alpha1", "kind": "Agent", "metadata": {"name": name}, "spec": spec
    });
    // JSON is YAML.
    format!("---\n{document}\n")
}
