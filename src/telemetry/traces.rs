//! Traces: the spans of a turn, from its acceptance over its worker to whoever is shown its end, under one trace id. They are
//! sent by OTLP over HTTP to a collector, if one is named; without one, nothing is made.
//!
//! A turn goes through several processes, and most of what is told of it is known only when a transaction has committed. So a
//! span is made when it is over, with the times that the database measured, and its parent is the `traceparent` that is stored
//! with the turn. What cannot be sent is dropped: the queue is bounded, and a collector that is away delays nobody.

use std::fmt;
use std::pin::Pin;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use axum::http::{Request, Response};
use bytes::Bytes;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
    Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};
use tokio::runtime::Handle;

/// What spans have as their service, unless `OTEL_SERVICE_NAME` says otherwise.
const SERVICE: &str = "lastword";
/// The variable that names a collector for traces alone, with its whole path.
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
/// The collector has so long for a batch, unless `OTEL_EXPORTER_OTLP_TIMEOUT` says otherwise.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a process that ends waits for its last spans to be sent.
const FLUSH: Duration = Duration::from_secs(2);

/// This process's, once they are begun.
static TRACES: OnceLock<Traces> = OnceLock::new();

struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// Begins to send spans, if a collector is named: by its base URL, or by the variables of OpenTelemetry, which say the rest too.
/// A mistake is told and costs the traces alone.
pub(super) fn init(endpoint: Option<&str>) {
    let of_traces = std::env::var(TRACES_ENDPOINT).is_ok_and(|url| !url.is_empty());
    let endpoint = endpoint.filter(|url| !url.is_empty());
    if endpoint.is_none() && !of_traces {
        return;
    }
    let made = client().map_err(|error| error.to_string()).and_then(|client| {
        let exporter = SpanExporter::builder().with_http().with_http_client(client).with_protocol(Protocol::HttpBinary);
        let exporter = match endpoint.filter(|_| !of_traces) {
            Some(base) => exporter.with_endpoint(format!("{}/v1/traces", base.trim_end_matches('/'))),
            None => exporter,
        };
        exporter.build().map_err(|error| error.to_string())
    });
    let exporter = match made {
        Ok(exporter) => exporter,
        Err(error) => return tracing::error!(%error, "no traces are sent: {error}"),
    };
    let mut resource = Resource::builder();
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name(SERVICE);
    }
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
    let tracer = provider.tracer(SERVICE);
    let _ = TRACES.set(Traces { provider, tracer });
}

/// Sends what waits, before the process ends.
pub(super) async fn flush() {
    let Some(traces) = TRACES.get() else { return };
    // It blocks, and what it waits for runs on this runtime.
    let _ = tokio::task::spawn_blocking(|| traces.provider.shutdown_with_timeout(FLUSH)).await;
}

/// What a span is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnStep {
    /// A message comes in, and is accepted.
    Submit,
    /// From the acceptance until a worker has taken the turn.
    Claim,
    /// A worker runs it.
    Run,
    /// From the claim, or the acceptance, to the terminal.
    Finish,
    /// From the terminal until it was shown.
    Deliver,
}

impl TurnStep {
    fn name(self) -> &'static str {
        match self {
            TurnStep::Submit => "lastword.submit",
            TurnStep::Claim => "lastword.claim",
            TurnStep::Run => "lastword.run",
            TurnStep::Finish => "lastword.finish",
            TurnStep::Deliver => "lastword.deliver",
        }
    }

    fn kind(self) -> SpanKind {
        match self {
            TurnStep::Submit => SpanKind::Server,
            TurnStep::Claim => SpanKind::Producer,
            TurnStep::Run => SpanKind::Consumer,
            TurnStep::Finish | TurnStep::Deliver => SpanKind::Internal,
        }
    }
}

/// A span that is not over. Dropped, it ends.
pub struct TurnSpan(Option<Span>);

impl TurnSpan {
    /// Begins a step under this parent, or a trace of its own. Without a collector it is nothing.
    pub fn begin(step: TurnStep, parent: Option<&str>) -> Self {
        TurnSpan::since(step, parent, SystemTime::now())
    }

    fn since(step: TurnStep, parent: Option<&str>, start: SystemTime) -> Self {
        let Some(traces) = TRACES.get() else { return TurnSpan(None) };
        let parent = parent.and_then(context).map_or_else(Context::new, |p| Context::new().with_remote_span_context(p));
        let builder = SpanBuilder::from_name(step.name()).with_kind(step.kind()).with_start_time(start);
        TurnSpan(Some(traces.tracer.build_with_context(builder, &parent)))
    }

    /// The `traceparent` of what happens within this step.
    pub fn traceparent(&self) -> Option<String> {
        let context = self.0.as_ref()?.span_context();
        let (trace, span) = (context.trace_id(), context.span_id());
        Some(format!("00-{trace}-{span}-{:02x}", context.trace_flags().to_u8()))
    }

    /// Says something of it.
    pub fn says(&mut self, key: &'static str, value: impl fmt::Display) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(key, value.to_string()));
        }
    }

    /// It failed, for this reason.
    pub fn failed(&mut self, reason: &str) {
        if let Some(span) = &mut self.0 {
            span.set_status(Status::error(reason.to_owned()));
        }
    }
}

/// A step that is over, and took so many seconds. Only a turn that has a trace has further spans.
pub(super) fn step(step: TurnStep, parent: Option<&str>, seconds: f64, say: impl FnOnce(&mut TurnSpan)) {
    if TRACES.get().is_none() || parent.is_none() {
        return;
    }
    let now = SystemTime::now();
    let took = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    let mut span = TurnSpan::since(step, parent, now.checked_sub(took).unwrap_or(now));
    say(&mut span);
}

/// Reads a `traceparent` of the form that is kept with turns.
fn context(traceparent: &str) -> Option<SpanContext> {
    let mut fields = traceparent.split('-').skip(1);
    let trace = TraceId::from_hex(fields.next()?).ok()?;
    let span = SpanId::from_hex(fields.next()?).ok()?;
    let flags = u8::from_str_radix(fields.next()?, 16).ok()?;
    Some(SpanContext::new(trace, span, TraceFlags::new(flags), true, TraceState::default()))
}

/// An HTTP client whose requests run on this runtime: the exporter calls it from a thread of its own, which has none.
#[derive(Debug, Clone)]
struct OnRuntime {
    client: reqwest::Client,
    runtime: Handle,
}

fn client() -> Result<OnRuntime, reqwest::Error> {
    let client = crate::tls::http().timeout(PATIENCE).build()?;
    Ok(OnRuntime { client, runtime: Handle::current() })
}

impl HttpClient for OnRuntime {
    fn send_bytes<'life0, 'async_trait>(
        &'life0 self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        let client = self.client.clone();
        let sent = self.runtime.spawn(async move {
            let answer = client.execute(reqwest::Request::try_from(request)?).await?;
            let mut response = Response::builder().status(answer.status());
            if let Some(after) = answer.headers().get("retry-after") {
                response = response.header("retry-after", after);
            }
            // What a collector says beside its status is of no use here.
            Ok::<_, HttpError>(response.body(Bytes::new())?)
        });
        Box::pin(async move { sent.await? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_a_context() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = context(text).expect("a context");
        assert_eq!(context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(context.is_sampled() && context.is_remote());
        assert!(super::context("00-x-y-01").is_none());
    }

    #[test]
    fn without_a_collector_nothing_is_made() {
        let span = TurnSpan::begin(TurnStep::Submit, None);
        assert_eq!(span.traceparent(), None);
    }
}
