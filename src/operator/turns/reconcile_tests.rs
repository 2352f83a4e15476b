//! Operations against an API server that answers as it is told.

use std::sync::{Arc, Mutex};

use axum::http::{Request, Response};
use k8s_openapi::jiff::Timestamp;
use kube::client::Body;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::super::status::DesiredStatus;
use super::*;
use crate::agents::Agents;
use crate::egress::{Egress, Outbound, Reach};
use crate::guard::{Evaluators, Services};
use crate::secrets::NoSecrets;
use crate::store::{AgentTurnProgress, AgentTurnState};
use crate::turn::keys::{GatewayId, TurnId};

/// Calls as `METHOD path`, with their answers in order.
type Calls = Arc<Mutex<Vec<(&'static str, u16, Value)>>>;

const STATUS: &str = "PATCH /apis/lastword.dev/v1alpha1/namespaces/team/agentturns/t/status";
const READ: &str = "GET /apis/lastword.dev/v1alpha1/namespaces/team/agentturns/t";
const AGENT: &str = "GET /apis/lastword.dev/v1alpha1/namespaces/team/agents/bot";
const REMOVE: &str = "DELETE /apis/lastword.dev/v1alpha1/namespaces/team/agentturns/t";

fn answer(code: u16, body: &Value) -> Response<Body> {
    let body = serde_json::to_vec(body).expect("JSON");
    Response::builder().status(code).body(Body::from(body)).expect("an answer")
}

/// A context whose API server expects these calls; its database is away.
fn context_with(script: Vec<(&'static str, u16, Value)>) -> (TurnContext, Calls) {
    let calls: Calls = Arc::new(Mutex::new(script));
    let left = calls.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (expected, code, body) = left.lock().expect("no panic").remove(0);
        assert_eq!(format!("{} {}", request.method(), request.uri().path()), expected);
        async move { Ok::<_, std::convert::Infallible>(answer(code, &body)) }
    });
    let store = Store::away();
    let outbound = Outbound::new(Egress::default(), Reach::Cluster).expect("a client");
    let services = Services::new(outbound, Arc::new(NoSecrets), Evaluators::default());
    let submitter = Submitter { store: store.clone(), agents: Agents::default(), gateway: GatewayId::new(), services };
    (TurnContext { store, submitter, client: Client::new(service, "team") }, calls)
}

fn object(uid: &str, version: &str, phase: &str) -> Value {
    json!({"apiVersion": "lastword.dev/v1alpha1", "kind": "AgentTurn",
           "metadata": {"namespace": "team", "name": "t", "uid": uid, "resourceVersion": version},
           "spec": {"agentRef": {"name": "bot"}, "input": "hi"}, "status": {"phase": phase}})
}

fn refused(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason})
}

fn known() -> TurnObject {
    TurnObject::read(serde_json::from_value(object("u", "1", "Armed")).expect("an object")).expect("has a UID")
}

fn patch() -> TurnOperation {
    let state = AgentTurnState {
        turn_id: TurnId::new(),
        object: None,
        armed_at: None,
        claimed_at: None,
        worker: None,
        progress: AgentTurnProgress::Running,
    };
    TurnOperation::PatchStatus(Box::new(DesiredStatus::OfTurn { state, at: OffsetDateTime::UNIX_EPOCH }))
}

#[tokio::test]
async fn a_status_goes_to_the_object_that_it_is_for() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let conflict = || (STATUS, 409, refused(409, "Conflict"));
    let not_found = || refused(404, "NotFound");
    let cases = [
        ("written", vec![(STATUS, 200, object("u", "2", "Running"))]),
        ("gone", vec![(STATUS, 404, not_found())]),
        ("stale", vec![conflict(), (READ, 200, object("u", "2", "Succeeded"))]),
        ("gone", vec![conflict(), (READ, 404, not_found())]),
        ("gone", vec![conflict(), (READ, 200, object("another", "2", ""))]),
        ("again", vec![conflict(), (READ, 500, refused(500, "InternalError"))]),
        ("again", vec![(STATUS, 500, refused(500, "InternalError"))]),
        ("again", vec![(STATUS, 429, refused(429, "TooManyRequests"))]),
        ("unwritable", vec![(STATUS, 422, refused(422, "Invalid"))]),
        ("unwritable", vec![(STATUS, 403, refused(403, "Forbidden"))]),
        ("unwritable", vec![conflict(), (READ, 403, refused(403, "Forbidden"))]),
        // This conflict is not about the version, so a repeat at once would be repeated without end.
        ("unwritable", vec![conflict(), (READ, 200, object("u", "1", "Armed"))]),
    ];
    for (expected, script) in cases {
        let said = format!("{script:?}");
        let (context, left) = context_with(script);
        let done = match reconcile(known(), patch(), &context).await {
            TurnReconciled::StatusPatched(object) => (object.version.as_deref() == Some("2")).then_some("written"),
            TurnReconciled::Changed(object) => object.has_ended().then_some("stale"),
            TurnReconciled::Deleted => Some("gone"),
            TurnReconciled::Requeue(_) => Some("again"),
            TurnReconciled::PatchRefused(_) => Some("unwritable"),
            _ => None,
        };
        assert_eq!(done, Some(expected), "{said}");
        assert!(left.lock().expect("no panic").is_empty(), "{said}");
    }
    // One that only the store knows is read first.
    let (context, _) = context_with(vec![(READ, 200, object("u", "7", "Armed"))]);
    let unseen = TurnObject::known_to_store("team", "t", "u", TurnId::new());
    assert!(
        matches!(reconcile(unseen, patch(), &context).await, TurnReconciled::Changed(object) if object.version.as_deref() == Some("7"))
    );
}

#[tokio::test]
async fn a_removal_names_its_object_and_the_database_is_waited_for() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    for (code, body) in [(200, object("u", "1", "")), (404, refused(404, "NotFound")), (409, refused(409, "Conflict"))]
    {
        let (context, _) = context_with(vec![(REMOVE, code, body)]);
        assert!(matches!(reconcile(known(), TurnOperation::Delete, &context).await, TurnReconciled::Deleted));
    }
    let (context, _) = context_with(Vec::new());
    let spec: AgentTurnSpec =
        serde_json::from_value(json!({"agentRef": {"name": "bot"}, "input": "hi"})).expect("a spec");
    assert!(matches!(
        reconcile(known(), TurnOperation::Arm(Ok(Arc::new(spec))), &context).await,
        TurnReconciled::Requeue(_)
    ));
    assert!(matches!(reconcile(known(), TurnOperation::Cancel, &context).await, TurnReconciled::Requeue(_)));
}

/// The store may not know an Agent that was applied while nobody led.
#[tokio::test]
async fn an_agent_is_missing_only_if_the_api_server_says_so() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let agent = json!({"apiVersion": "lastword.dev/v1alpha1", "kind": "Agent",
                       "metadata": {"namespace": "team", "name": "bot", "uid": "a"}, "spec": {}});
    let cases = [
        ("refused", 404, refused(404, "NotFound")),
        ("waits", 200, agent),
        ("again", 403, refused(403, "Forbidden")),
        ("again", 500, refused(500, "InternalError")),
    ];
    for (expected, code, body) in cases {
        let (context, _) = context_with(vec![(AGENT, code, body)]);
        let refused = TurnReconciled::Refused(Failure::new(Reason::AgentNotFound), OffsetDateTime::UNIX_EPOCH);
        let done = match context.unless_agent_exists(&known(), "bot", refused).await {
            TurnReconciled::Refused(..) => "refused",
            TurnReconciled::AgentNotReady => "waits",
            TurnReconciled::Requeue(_) => "again",
            other => panic!("{other:?}"),
        };
        assert_eq!(done, expected, "{code}");
    }
}

#[test]
fn what_the_api_refuses_with_4xx_is_a_terminal() {
    use crate::store::ArmError;
    use crate::submit::SubmitError;
    let cases = [
        (SubmitError::NoAgent, Some(Reason::AgentNotFound)),
        (SubmitError::QueueFull(1), Some(Reason::QuotaExceeded)),
        (SubmitError::TooManyOpen, Some(Reason::QuotaExceeded)),
        (SubmitError::ShareFull(1), Some(Reason::QuotaExceeded)),
        (SubmitError::Refused(ArmError::TooManyOpen(1)), Some(Reason::QuotaExceeded)),
        (SubmitError::Refused(ArmError::TooManyConversations(1)), Some(Reason::QuotaExceeded)),
        (SubmitError::Refused(ArmError::OtherAgent("x".into())), Some(Reason::Conflict)),
        (SubmitError::Refused(ArmError::OtherContent), Some(Reason::Conflict)),
        (SubmitError::Store(StoreError::Refused("x".into())), Some(Reason::Internal)),
        (SubmitError::Store(StoreError::Unavailable("x".into())), None),
        (SubmitError::Store(StoreError::Raced("x".into())), None),
    ];
    for (error, reason) in cases {
        assert_eq!(error.reason(), reason, "{error}");
    }
    let created = Timestamp::from_second(1_800_000_000).expect("in range");
    let later = |seconds: i64| OffsetDateTime::from_unix_timestamp(1_800_000_000 + seconds).expect("in range");
    assert!(may_wait(created, later(0)) && may_wait(created, later(59)) && !may_wait(created, later(60)));
}
