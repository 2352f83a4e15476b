//! What Lastword tells of itself: metrics, traces, and the one line about a turn that failed.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use lastword::turn::keys::TurnId;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Said;
use prost::Message;
use serde_json::json;

use crate::support::dev::{Dev, agent};
use crate::support::wait::eventually;
use crate::support::{crypto, http};

/// A span as a collector gets it.
#[derive(Debug, Clone, PartialEq)]
struct Got {
    name: String,
    trace: String,
    id: String,
    parent: String,
    turn: Option<String>,
}

/// A collector that keeps what it gets.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Got>>>);

impl Collector {
    async fn serve(&self) -> String {
        http::serve(Router::new().route("/v1/traces", post(take)).with_state(self.clone())).await
    }

    fn of(&self, trace: &str) -> Vec<Got> {
        self.0.lock().unwrap().iter().filter(|span| span.trace == trace).cloned().collect()
    }
}

async fn take(State(collector): State<Collector>, body: Bytes) {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let request = ExportTraceServiceRequest::decode(body).expect("OTLP");
    let spans = request.resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans);
    collector.0.lock().unwrap().extend(spans.map(|span| {
        let turn = span.attributes.iter().find(|a| a.key == "lastword.turn.id").and_then(|a| a.value.clone()?.value);
        Got {
            turn: turn.and_then(|said| match said {
                Said::StringValue(text) => Some(text),
                _ => None,
            }),
            name: span.name,
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
        }
    }));
}

/// Submits with a trace of the client's, reads the turn's stream to its end, and answers with the turn's id and its text.
async fn turn(dev: &Dev, agent: &str, conversation: &str, traceparent: &str) -> (TurnId, String) {
    crypto();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/v1/conversations/{conversation}/turns", dev.url());
    let body = json!({"agent": agent, "message": "hello"});
    let submitted = client.post(url).header("traceparent", traceparent).json(&body).send().await.unwrap();
    let answer: serde_json::Value = submitted.json().await.unwrap();
    let id = answer["turnId"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
    let stream = client.get(format!("{}/v1/turns/{id}/events", dev.url())).send().await.unwrap();
    (id.parse().unwrap(), stream.text().await.unwrap())
}

/// From the client's request over gateway, worker and the agent's own calls to whoever is shown the end.
#[tokio::test]
async fn a_turns_spans_have_one_trace_id_over_all_processes() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let collector = Collector::default();
    let url = collector.serve().await;
    let says = agent("says", json!({"scope": "Agent"}), &["sh", "-c", "cat >/dev/null; echo \"<$TRACEPARENT>\""]);
    let mut dev = Dev::prepare(&says, &["--otlp-endpoint", &url]);
    dev.env("OTEL_BSP_SCHEDULE_DELAY", "100");
    dev.restart().await;
    let client = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let (id, events) = turn(&dev, "says", "c", &client).await;
    let wanted = ["lastword.claim", "lastword.deliver", "lastword.finish", "lastword.run", "lastword.submit"];
    let spans = eventually("all spans come", async || {
        let mut spans = collector.of(TRACE);
        spans.sort_by(|a, b| a.name.cmp(&b.name));
        let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
        if names == wanted { Ok(spans) } else { Err(format!("{names:?}")) }
    })
    .await;
    let submit = &spans[4];
    assert_eq!(submit.parent, "00f067aa0ba902b7", "the client's span");
    for span in &spans[..4] {
        assert_eq!(span.parent, submit.id, "{span:?}");
    }
    assert!(spans.iter().all(|span| span.turn.as_deref() == Some(id.to_string().as_str())), "{spans:?}");
    // What the agent does is within its run.
    let run = &spans[3];
    assert!(events.contains(&format!("<00-{TRACE}-{}-01>", run.id)), "{events}");
    // A client without a trace gets one that begins here.
    let (other, _) = turn(&dev, "says", "d", "").await;
    let begun = async || {
        let spans = collector.0.lock().unwrap().clone();
        let mine: Vec<Got> = spans.into_iter().filter(|s| s.turn.as_deref() == Some(&other.to_string())).collect();
        (mine.len() == wanted.len() && mine.iter().all(|s| s.trace == mine[0].trace && s.trace != TRACE)).then_some(())
    };
    eventually("another trace is whole", begun).await;
    // Without whoever collects, turns go on.
    assert!(dev.interrupt().await.success());
    let mut dev = Dev::prepare(&says, &["--otlp-endpoint", "http://127.0.0.1:1"]);
    dev.restart().await;
    let (_, events) = turn(&dev, "says", "c", &client).await;
    assert!(events.contains("event: complete"), "{events}");
    assert!(dev.interrupt().await.success(), "{}", dev.log());
}

/// The reason, the detail, the turn and its Agent, in one line and only one.
#[tokio::test]
async fn a_failed_turn_is_one_line_at_warn() {
    let fails =
        agent("fails", json!({"scope": "Agent"}), &["sh", "-c", "cat >/dev/null; echo out of cheese >&2; exit 3"]);
    let dev = Dev::start(&fails).await;
    let (id, events) = turn(&dev, "fails", "c", "").await;
    assert!(events.contains("AgentError"), "{events}");
    let lines = || -> Vec<String> {
        let log = dev.log();
        log.lines().filter(|l| l.contains(" WARN ") && l.contains(&id.to_string())).map(str::to_owned).collect()
    };
    let seen = eventually("it is told", async || lines().first().cloned()).await;
    for part in ["AgentError", "exit code 3", "out of cheese", "default/fails"] {
        assert!(seen.contains(part), "{part}: {seen}");
    }
    // A second turn is over behind it, so that all was told of the first.
    let (second, _) = turn(&dev, "fails", "c", "").await;
    eventually("the second is told", async || dev.log().contains(&format!("turn {second} of default/fails failed")))
        .await;
    assert_eq!(lines().len(), 1, "{:#?}", lines());
}
