//! Real proxies between a real client, curl, and a gateway that is killed in mid-stream: the cut must reach the client as one.
//! The configurations are those of `docs/proxies.md`, word for word but for names and ports, and what that page says of each
//! proxy is what is tried here.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use lastword::gateway::AuthMode;
use lastword::store::NewStart;
use lastword::store::keys::KeyRole;
use lastword::turn::keys::TurnId;
use lastword::wire::{FinishResult, INCARNATION};
use reqwest::{StatusCode, Version};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use uuid::Uuid;

use crate::support::client::answer;
use crate::support::fake_worker::FakeWorker;
use crate::support::gateway::{Gateway, ORGANIZATION, api_key};
use crate::support::http::free_address;
use crate::support::wait::{eventually, within};
use crate::support::{Db, left_out, repository, skipped};

crate::newest! {
    nginx_passes_a_cut_on,
    nginx_as_it_comes_is_refused,
    haproxy_passes_a_cut_on_by_http_1_1_alone,
    apache_passes_a_cut_on,
    caddy_of_debian_passes_no_cut_on,
    caddy_of_today_passes_a_cut_on,
    a_stream_asked_for_by_http_1_0_is_refused_on_every_port,
}

/// A proxy in front of a gateway, as one process; it ends with this value.
struct Proxy {
    _process: Child,
    _directory: TempDir,
    address: SocketAddr,
}

/// What is tried: its program, the Debian package that brings it, and the kind of its block in `docs/proxies.md`.
struct Kind {
    program: &'static str,
    /// None for one that was built.
    package: Option<&'static str>,
    block: &'static str,
    /// Arguments before the file of its configuration.
    arguments: &'static [&'static str],
}

const NGINX: Kind =
    Kind { program: "/usr/sbin/nginx", package: Some("nginx-light"), block: "nginx", arguments: &["-c"] };
const HAPROXY: Kind =
    Kind { program: "/usr/sbin/haproxy", package: Some("haproxy"), block: "haproxy", arguments: &["-f"] };
/// `-X`: one process, so that none is left behind.
const APACHE: Kind =
    Kind { program: "/usr/sbin/apache2", package: Some("apache2"), block: "apache", arguments: &["-X", "-f"] };
const CADDY: Kind = Kind {
    program: "/usr/bin/caddy",
    package: Some("caddy"),
    block: "caddyfile",
    arguments: &["run", "--adapter", "caddyfile", "--config"],
};

impl Kind {
    /// Installs it if need be; false, after a loud word, where that cannot be done.
    async fn installed(&self) -> bool {
        let mut install = Command::new(repository("tests/debian-packages"));
        install.arg("/usr/bin/curl=curl").args(self.package.map(|package| format!("{}={package}", self.program)));
        let there = install.status().await.is_ok_and(|status| status.success());
        if !there {
            skipped(&format!("{} is not installed and cannot be: docs/proxies.md was not tried with it", self.program));
        }
        there
    }

    /// Starts it in front of a gateway with the documented configuration, in which `change` replaces one text by another.
    async fn start(&self, gateway: &Gateway, change: Option<(&str, &str)>) -> Proxy {
        let directory = tempfile::tempdir().expect("a directory");
        let here = directory.path();
        let [crt, key] = ["first.crt", "first.key"].map(|name| repository("tests/tls").join(name));
        let read = |path: &Path| std::fs::read_to_string(path).expect("a file");
        std::fs::write(here.join("chat.pem"), read(&crt) + &read(&key)).expect("written");
        let address = free_address();
        let mut block = documented(self.block);
        if let Some((documented, changed)) = change {
            assert!(block.contains(documented), "{documented} in {block}");
            block = block.replace(documented, changed);
        }
        let block = block
            .replace("lastword-gateway:80", gateway.clients.strip_prefix("http://").expect("a URL"))
            .replace("/etc/ssl/chat.crt", &crt.to_string_lossy())
            .replace("/etc/ssl/chat.key", &key.to_string_lossy())
            .replace("/etc/ssl/chat.pem", &here.join("chat.pem").to_string_lossy());
        let configuration = here.join("configuration");
        std::fs::write(&configuration, self.whole(&block, address, here)).expect("written");
        let log = std::fs::File::create(here.join("log")).expect("a log");
        let process = Command::new(self.program)
            .args(self.arguments)
            .arg(&configuration)
            .env("HOME", here)
            .env("XDG_DATA_HOME", here)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let proxy = Proxy { _process: process, _directory: directory, address };
        let listens = async || match TcpStream::connect(address).await {
            Ok(_) => Ok(()),
            Err(_) => Err(read(&proxy._directory.path().join("log"))),
        };
        eventually("the proxy listens", listens).await;
        proxy
    }

    /// A block in the configuration that the proxy's own package would put around it, and listening here.
    fn whole(&self, block: &str, address: SocketAddr, here: &Path) -> String {
        let here = here.display();
        match self.block {
            "nginx" => format!(
                "daemon off; master_process off; pid {here}/pid; error_log stderr; events {{}}\nhttp {{ access_log off;\n\
                 client_body_temp_path {here}/b; proxy_temp_path {here}/p; fastcgi_temp_path {here}/f;\n\
                 uwsgi_temp_path {here}/u; scgi_temp_path {here}/s;\n{}}}\n",
                block.replace("listen 443", &format!("listen {address}"))
            ),
            "haproxy" => block.replace("bind :443", &format!("bind {address}")),
            "apache" => {
                let modules = ["mpm_event", "authz_core", "ssl", "http2", "proxy", "proxy_http"];
                let modules = modules.map(|m| format!("LoadModule {m}_module modules/mod_{m}.so\n")).concat();
                let block = block.replace("*:443", &address.to_string());
                format!(
                    "ServerRoot /usr/lib/apache2\nPidFile {here}/pid\nErrorLog {here}/error\nMutex sem\nListen {address}\n\
                     ServerName localhost\n{modules}User www-data\nGroup www-data\n{block}"
                )
            }
            "caddyfile" => {
                let name = format!("https://localhost:{}", address.port());
                format!("{{\n admin off\n auto_https off\n}}\n{}", block.replace("chat.example.com", &name))
            }
            other => panic!("{other} has no wrapping"),
        }
    }
}

/// The configuration of this kind on the page.
fn documented(kind: &str) -> String {
    let page = std::fs::read_to_string(repository("docs/proxies.md")).expect("the page");
    let (_, rest) = page.split_once(&format!("```{kind}\n")).unwrap_or_else(|| panic!("no block of {kind}"));
    rest.split_once("```").expect("the block's end").0.to_owned()
}

/// curl on a turn's stream.
struct Curl {
    child: Child,
    said: Arc<Mutex<String>>,
    reader: tokio::task::JoinHandle<()>,
}

/// How curl ended.
#[derive(Debug, PartialEq)]
enum Ended {
    /// Exit status 0 behind the event `complete`.
    Whole,
    /// Another exit status, without `complete`.
    Abruptly,
    /// Exit status 0 without `complete`: the cut was hidden from it.
    AsIfWhole,
}

impl Curl {
    fn start(proxy: &Proxy, version: &str, turn: TurnId, key: &str) -> Curl {
        let url = format!("https://localhost:{}/v1/turns/{turn}/events", proxy.address.port());
        let mut child = Command::new("curl")
            .args(["-sSNk", "--noproxy", "*", "--max-time", "100", version, "-w", "\n%{http_version} %{http_code}\n"])
            .args(["--header", &format!("authorization: Bearer {key}")])
            .arg(url)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("curl starts");
        let mut output = child.stdout.take().expect("piped");
        let said = Arc::new(Mutex::new(String::new()));
        let seen = said.clone();
        let reader = tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok(read @ 1..) = output.read(&mut buffer).await {
                seen.lock().expect("unpoisoned").push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
        });
        Curl { child, said, reader }
    }

    fn said(&self) -> String {
        self.said.lock().expect("unpoisoned").clone()
    }

    /// Waits until it was shown this, while the turn goes on: nothing on the way holds it back.
    async fn shows(&self, text: &str) {
        let shown = async || if self.said().contains(text) { Ok(()) } else { Err(self.said()) };
        eventually(&format!("curl shows {text}"), shown).await;
    }

    /// Its end, and what it says of the version and the status.
    async fn ended(mut self) -> (Ended, String) {
        let status = within("curl's end", self.child.wait()).await.expect("it ran");
        within("all that it said", self.reader).await.expect("no panic");
        let said = self.said.lock().expect("unpoisoned").clone();
        let complete = said.contains("event: complete");
        let ended = match (status.success(), complete) {
            (true, true) => Ended::Whole,
            (true, false) => Ended::AsIfWhole,
            (false, false) => Ended::Abruptly,
            (false, true) => panic!("{status} behind its end: {said}"),
        };
        (ended, said.trim_end().rsplit('\n').next().unwrap_or_default().to_owned())
    }
}

const VERSIONS: [(&str, &str); 2] = [("--http1.1", "1.1 200"), ("--http2", "2 200")];

/// A gateway that asks for keys, and a key: some proxies run as a user of their own, who needs one.
async fn guarded(db: &Db) -> (Gateway, String) {
    let gateway = Gateway::with(db.options(), |config| config.auth = AuthMode::Keys).await;
    let (_, key) = api_key(&db.store, ORGANIZATION, "ada", KeyRole::User).await;
    (gateway, key)
}

/// Through a proxy with HTTP/1.1 and with HTTP/2 in front: a whole stream, and one whose gateway is killed. How the two cut
/// ones ended.
async fn cut(db: &Db, kind: &Kind, change: Option<(&str, &str)>, versions: [(&str, &str); 2]) -> [Ended; 2] {
    let (gateway, key) = guarded(db).await;
    let proxy = kind.start(&gateway, change).await;
    let mut worker = FakeWorker::on(&db.store, &gateway).await;
    let mut begun = Vec::new();
    // Two that will be whole, and two that will be cut.
    for _ in 0..2 {
        for (flag, spoken) in versions {
            let turn = gateway.client_with(&key).submit(&Uuid::new_v4().to_string(), "m", "hello").await.turn_id;
            worker.this_turn(turn).await;
            let curl = Curl::start(&proxy, flag, turn, &key);
            worker.say(turn, 0, "the beginning").await;
            curl.shows("the beginning").await;
            begun.push((turn, curl, spoken));
        }
    }
    let cut = begun.split_off(2);
    for (turn, curl, spoken) in begun {
        assert_eq!(worker.end(turn, "the beginning".len() as u64).await, Ok(FinishResult::Accepted));
        assert_eq!(curl.ended().await, (Ended::Whole, spoken.to_owned()), "a whole stream");
    }
    gateway.kill();
    let mut ends = Vec::new();
    for (_, curl, _) in cut {
        ends.push(curl.ended().await.0);
    }
    ends.try_into().expect("two of them")
}

async fn nginx_passes_a_cut_on(db: Db) {
    if NGINX.installed().await {
        assert_eq!(cut(&db, &NGINX, None, VERSIONS).await, [Ended::Abruptly, Ended::Abruptly]);
    }
}

/// The client is told why, and which setting mends it.
async fn nginx_as_it_comes_is_refused(db: Db) {
    if !NGINX.installed().await {
        return;
    }
    let (gateway, key) = guarded(&db).await;
    let proxy = NGINX.start(&gateway, Some(("proxy_http_version 1.1;", "proxy_http_version 1.0;"))).await;
    let turn = gateway.client_with(&key).submit("c", "m", "hello").await.turn_id;
    for (flag, spoken) in [("--http1.1", "1.1 426"), ("--http2", "2 426")] {
        let curl = Curl::start(&proxy, flag, turn, &key);
        curl.shows("proxy_http_version 1.1").await;
        assert_eq!(curl.ended().await, (Ended::AsIfWhole, spoken.to_owned()));
    }
}

/// The documented configuration offers HTTP/1.1 alone, also to a client that can speak HTTP/2. With HTTP/2 in front, HAProxy 2.6
/// hides the cut, as the page says; another version may do better.
async fn haproxy_passes_a_cut_on_by_http_1_1_alone(db: Db) {
    if !HAPROXY.installed().await {
        return;
    }
    let as_offered = VERSIONS.map(|(flag, _)| (flag, "1.1 200"));
    assert_eq!(cut(&db, &HAPROXY, None, as_offered).await, [Ended::Abruptly, Ended::Abruptly]);
    let both = Some(("alpn http/1.1", "alpn h2,http/1.1"));
    let [first, second] = cut(&db, &HAPROXY, both, VERSIONS).await;
    assert_eq!(first, Ended::Abruptly);
    known_to_hide(&HAPROXY, "-v", " 2.6.", second).await;
}

async fn apache_passes_a_cut_on(db: Db) {
    if APACHE.installed().await {
        assert_eq!(cut(&db, &APACHE, None, VERSIONS).await, [Ended::Abruptly, Ended::Abruptly]);
    }
}

/// Debian's Caddy hides a cut whatever is in front. Nothing of the page is a promise for another version.
async fn caddy_of_debian_passes_no_cut_on(db: Db) {
    if !CADDY.installed().await {
        return;
    }
    for ended in cut(&db, &CADDY, None, VERSIONS).await {
        known_to_hide(&CADDY, "version", "2.6.", ended).await;
    }
}

/// Building it takes many minutes, so only who asks for it gets it.
async fn caddy_of_today_passes_a_cut_on(db: Db) {
    if std::env::var_os("LASTWORD_TEST_CADDY").is_none() {
        return left_out(
            "Caddy 2.11 takes many minutes to build: docs/proxies.md was not tried with it (LASTWORD_TEST_CADDY=1)",
        );
    }
    let built =
        Command::new(repository("tests/proxies/caddy")).stderr(Stdio::inherit()).output().await.expect("it runs");
    if !built.status.success() {
        return skipped("Caddy could not be built: docs/proxies.md was not tried with it");
    }
    let program = String::from_utf8(built.stdout).expect("a path").trim_end().to_owned();
    let caddy = Kind { program: program.leak(), package: None, ..CADDY };
    if caddy.installed().await {
        assert_eq!(cut(&db, &caddy, None, VERSIONS).await, [Ended::Abruptly, Ended::Abruptly]);
    }
}

/// The page names the version that hides cuts; in another one, whichever way it ended is only told.
async fn known_to_hide(kind: &Kind, ask: &str, version: &str, ended: Ended) {
    let answer = Command::new(kind.program).arg(ask).output().await.expect("its version");
    let said = String::from_utf8_lossy(&answer.stdout).lines().next().unwrap_or_default().to_owned();
    if said.contains(version) {
        assert_eq!(ended, Ended::AsIfWhole, "{said} passes cuts on: docs/proxies.md says otherwise");
    } else {
        println!("{said}: a cut stream ended {ended:?}; docs/proxies.md speaks of {version}");
    }
}

/// Each stream that there is, and nothing was done for it: no session, no live worker. What is no stream is served.
async fn a_stream_asked_for_by_http_1_0_is_refused_on_every_port(db: Db) {
    let gateway = Gateway::start(&db).await;
    let client = gateway.client();
    let turn = client.submit("c", "m", "hello").await.turn_id;
    let worker = FakeWorker::new(&db.store, |_: &mut NewStart| {}).await;
    for path in ["/v1/conversations/c/events".to_owned(), format!("/v1/turns/{turn}/events")] {
        refused(client.request(reqwest::Method::GET, &path)).await;
    }
    for path in [
        "/worker/v1/turns?capacity=1&turns=&history=0&together=false".to_owned(),
        format!("/peer/v1/turns/{turn}/frames?after=0"),
    ] {
        let request = worker.http.get(format!("{}{path}", gateway.workers));
        refused(request.bearer_auth(worker.credential.reveal()).header(INCARNATION, worker.incarnation.to_string()))
            .await;
    }
    assert_eq!((db.count("session").await, db.count("lease WHERE phase = 'live'").await), (0, 0));
    let record = client.request(reqwest::Method::GET, &format!("/v1/turns/{turn}")).version(Version::HTTP_10);
    assert_eq!(answer(record.send().await.expect("an answer")).await.0, StatusCode::OK);
}

async fn refused(request: reqwest::RequestBuilder) {
    let response = within("an answer", request.version(Version::HTTP_10).send()).await.expect("an answer");
    let (status, problem): (StatusCode, Value) = answer(response).await;
    assert_eq!(status, StatusCode::UPGRADE_REQUIRED);
    assert!(problem["detail"].as_str().expect("a detail").contains("proxy_http_version 1.1"), "{problem}");
}
