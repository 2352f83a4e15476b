//! Agents for the rows: small programs in images that know nothing of Lastword.

use serde_json::{Value, json};

/// busybox, and nothing of ours.
pub fn busybox() -> String {
    std::env::var("LASTWORD_BUSYBOX_IMAGE").unwrap_or_else(|_| "localhost/busybox:1".to_owned())
}

/// Python's standard library.
fn python() -> String {
    std::env::var("LASTWORD_PYTHON_IMAGE").unwrap_or_else(|_| "localhost/python:1".to_owned())
}

/// Lastword's own image, where `lastword worker` is.
fn lastword() -> String {
    let given = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let repository = given("LASTWORD_IMAGE_REPOSITORY", "localhost/lastword");
    format!("{repository}:{}", given("LASTWORD_IMAGE_TAG", "dev"))
}

/// Says that it has begun, then does as the signal says: USR1 replies, USR2 exits 1, HUP wants more memory than there is.
/// Only its own `wait` is interrupted by a trapped signal, so what it does, it does at once.
pub const ACTOR: &str = "\
trap 'echo done; exit 0' USR1
trap 'echo oops >&2; exit 1' USR2
trap 'exec dd if=/dev/zero of=/dev/null bs=512M count=1' HUP
echo begun
sleep 3600 >/dev/null 2>&1 &
wait";

/// Counts slowly: a line a tenth of a second, as many as the message says.
pub const COUNT: &str = "read n; i=1; while [ $i -le $n ]; do echo $i; i=$((i + 1)); sleep 0.1; done";

/// What [`COUNT`] says in full.
pub fn counted(n: usize) -> String {
    (1..=n).map(|i| format!("{i}\n")).collect()
}

/// The spec of an `Exec` agent that runs this shell script for each turn, all turns on one worker.
pub fn shell(script: &str) -> Value {
    exec(&["sh", "-c", script])
}

/// The spec of an `Exec` agent with this command.
pub fn exec(command: &[&str]) -> Value {
    json!({
        "adapter": "Exec",
        "scope": "Agent",
        "limits": {"maxWorkers": 1, "turnsPerWorker": 4},
        "timing": {"leaseSeconds": 10, "startSeconds": 80, "drainSeconds": 20},
        "template": {"spec": {"containers": [{
            "name": "agent", "image": busybox(), "imagePullPolicy": "IfNotPresent", "command": command,
        }]}},
    })
}

/// The spec of an agent that replies with the message, without a program of its own.
pub fn echo() -> Value {
    let mut spec = exec(&["/lastword", "worker", "echo"]);
    spec["adapter"] = "Custom".into();
    spec["template"]["spec"]["containers"][0]["image"] = lastword().into();
    spec
}

/// Our worker in standard-library Python, from a ConfigMap `worker`; see [`worker_config`].
pub fn custom() -> Value {
    let mut spec = exec(&["python3", "/worker/worker.py"]);
    spec["adapter"] = "Custom".into();
    mount(&mut spec, "worker", "/worker");
    spec
}

/// `examples/worker.py`, with words for the rows: a message `wait` is held in hand; `later` is not begun beside another, and
/// handed back at the drain; SIGUSR1 exits 0.
pub fn worker_config() -> Value {
    let mut text = include_str!("../../../examples/worker.py").to_owned();
    for (before, added) in [
        (
            "    for word in reversed(message.split()):\n",
            "    if message == \"wait\":\n        yield {\"type\": \"text\", \"text\": \"begun\\n\"}\n        cancelled.wait(3600)\n",
        ),
        ("        self.draining = False\n", "        self.later = []\n"),
        (
            "            late = self.draining\n",
            "            if push[\"message\"] == \"later\" and self.turns:\n                return self.later.append(push[\"turnId\"])\n",
        ),
        (
            "            return list(self.turns)\n",
            "            if self.later:\n                return list(self.turns) + self.later\n",
        ),
        (
            "        self.goodbye(\"draining\", reason=reason)\n",
            "        self.goodbye(\"draining\", self.later, reason)\n        self.later = []\n",
        ),
        ("        signal.signal(signal.SIGTERM,", "        signal.signal(signal.SIGUSR1, lambda *_: os._exit(0))\n"),
    ] {
        assert_eq!(text.matches(before).count(), 1, "examples/worker.py has changed: {before:?}");
        text = text.replace(before, &format!("{added}{before}"));
    }
    config("worker", "worker.py", &text)
}

/// A model server in the container `agent`: what OpenAI-compatible clients need, in few lines of Python.
pub fn openai() -> Value {
    let mut spec = exec(&["python3", "/server/server.py"]);
    spec["adapter"] = "OpenAI".into();
    spec["openai"] = json!({"baseURL": "http://localhost:8000/v1", "model": "echo"});
    spec["template"]["spec"]["containers"][0]["readinessProbe"] =
        json!({"tcpSocket": {"port": 8000}, "periodSeconds": 1});
    mount(&mut spec, "server", "/server");
    spec
}

/// The model server of [`openai`]: it streams the last message back, word by word; `wait` is never finished.
pub fn server_config() -> Value {
    let text = r#"
import http.server, json, time

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"object":"list","data":[{"id":"echo","object":"model"}]}')

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = body["messages"][-1]["content"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        words = ["begun\n"] if message == "wait" else [word + " " for word in message.split()]
        for word in words:
            chunk = {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": word}}]}
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            self.wfile.flush()
        while message == "wait":
            time.sleep(1)
        chunk["choices"] = [{"index": 0, "delta": {}, "finish_reason": "stop"}]
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\ndata: [DONE]\n\n")

http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"#;
    config("server", "server.py", text)
}

fn config(name: &str, file: &str, text: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {file: text}})
}

fn mount(spec: &mut Value, config: &str, path: &str) {
    let pod = &mut spec["template"]["spec"];
    pod["volumes"] = json!([{"name": config, "configMap": {"name": config}}]);
    let container = &mut pod["containers"][0];
    container["image"] = python().into();
    container["volumeMounts"] = json!([{"name": config, "mountPath": path, "readOnly": true}]);
    container["env"] = json!([{"name": "PYTHONDONTWRITEBYTECODE", "value": "1"}]);
}

/// A spec with changes: as a JSON merge patch (RFC 7386).
pub fn with(mut spec: Value, change: Value) -> Value {
    merge(&mut spec, change);
    spec
}

/// A spec whose container `agent` is changed by a merge patch.
pub fn with_agent(mut spec: Value, change: Value) -> Value {
    merge(&mut spec["template"]["spec"]["containers"][0], change);
    spec
}

/// A spec whose pod is changed by a merge patch.
pub fn with_pod(mut spec: Value, change: Value) -> Value {
    merge(&mut spec["template"]["spec"], change);
    spec
}

fn merge(target: &mut Value, change: Value) {
    let Value::Object(change) = change else {
        *target = change;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in change {
        match value {
            Value::Null => drop(target.as_object_mut().and_then(|t| t.remove(&name))),
            value => merge(&mut target[&name], value),
        }
    }
}
