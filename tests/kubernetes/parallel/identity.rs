//! What a worker may. Its token and its secret open nothing of another worker group; a token that is not the one of a
//! pod that we made opens nothing at all. And what the chart's roles may.

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use reqwest::StatusCode;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::scene::agents::{ACTOR, busybox, exec, shell, with};
use crate::scene::cluster::{Cluster, SYSTEM};
use crate::scene::jwt;
use crate::scene::place::Place;
use crate::scene::{processes, until};

const AUDIENCE: &str = "lastword.dev";
const TOKEN_FILE: &str = "var/run/secrets/lastword.dev/token";

/// The worker port, as a worker knows it.
struct Port {
    url: String,
    http: reqwest::Client,
}

impl Port {
    async fn of(cluster: &Cluster) -> Port {
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().expect("a client");
        Port { url: cluster.worker_port().await, http }
    }

    /// Exchanges a token for a credential.
    async fn exchange(&self, token: &str) -> (StatusCode, Value) {
        self.post("credential", token, json!({})).await
    }

    async fn post(&self, path: &str, bearer: &str, body: Value) -> (StatusCode, Value) {
        self.post_as(&uuid::Uuid::new_v4().to_string(), path, bearer, body).await
    }

    /// As an incarnation, which need not be the credential's.
    async fn post_as(&self, incarnation: &str, path: &str, bearer: &str, body: Value) -> (StatusCode, Value) {
        let call = self.http.post(format!("{}/worker/v1/{path}", self.url)).bearer_auth(bearer);
        let call = call.header("Lastword-Incarnation", incarnation).json(&body);
        let answer = call.timeout(std::time::Duration::from_secs(30)).send().await.expect("the port answers");
        (answer.status(), serde_json::from_slice(&answer.bytes().await.unwrap_or_default()).unwrap_or(Value::Null))
    }

    /// Opens a stream of turns as a new incarnation that claims to hold a turn; what comes first on it, and the incarnation.
    /// It is connected for as long as the answer lives.
    async fn connect(&self, bearer: &str, turn: &str) -> (String, String, reqwest::Response) {
        let incarnation = uuid::Uuid::new_v4().to_string();
        let call = self.http.get(format!("{}/worker/v1/turns?capacity=4&turns={turn}", self.url)).bearer_auth(bearer);
        let mut stream = call.header("Lastword-Incarnation", &incarnation).send().await.expect("the port answers");
        assert_eq!(stream.status(), StatusCode::OK, "a worker may connect to its own worker group");
        let mut said = String::new();
        let until = tokio::time::Instant::now() + std::time::Duration::from_secs(3);
        while let Ok(Ok(Some(chunk))) = tokio::time::timeout_at(until, stream.chunk()).await {
            said += &String::from_utf8_lossy(&chunk);
        }
        (incarnation, said, stream)
    }

    /// A token that opens nothing: refused, with no credential.
    async fn refuses(&self, what: &str, token: &str) {
        let (status, body) = self.exchange(token).await;
        assert!(status.is_client_error() && body["credential"].is_null(), "{what}: {status} {body}");
        let (status, body) = self.post("heartbeat", token, json!({"turns": []})).await;
        assert!(status.is_client_error(), "{what}, in place of a credential: {status} {body}");
    }
}

/// The token that the kubelet gave a pod.
fn token_of(pod: &Pod) -> String {
    let adapter = processes::first_of(pod, "agent");
    std::fs::read_to_string(format!("/proc/{}/root/{TOKEN_FILE}", adapter.pid))
        .expect("the projected token")
        .trim()
        .to_owned()
}

async fn worker_of(place: &Place, agent: &str) -> Pod {
    until(&format!("the running worker of {agent}"), async || {
        let pods = place.living_pods().await;
        let is = |p: &&Pod| {
            p.labels().get("lastword.dev/agent").is_some_and(|a| a == agent)
                && p.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Running"))
        };
        pods.iter()
            .find(is)
            .cloned()
            .ok_or_else(|| format!("{:?}", pods.iter().map(|p| p.name_any()).collect::<Vec<_>>()))
    })
    .await
}

/// A worker whose pod runs and that never asks for a credential: its token is good.
fn never_connects() -> Value {
    let change =
        json!({"adapter": "Custom", "limits": {"minWorkers": 1, "maxWorkers": 1}, "timing": {"startSeconds": 600}});
    with(exec(&["sleep", "3600"]), change)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_touches_nothing_of_another_worker_group() {
    let Some(cluster) = Cluster::connect_local("a pod's token").await else { return };
    let port = Port::of(&cluster).await;
    let place = Place::new(cluster, "thief").await;
    place.agent("victim", shell(ACTOR)).await;
    place.agent("thief", never_connects()).await;
    let chat = place.chat("victim", "secret").await;
    chat.begun().await;
    let (status, body) = port.exchange(&token_of(&worker_of(&place, "victim").await)).await;
    assert_eq!(status, StatusCode::GONE, "its adapter has used its credential: {body}");
    let thief = worker_of(&place, "thief").await;
    let (status, answer) = port.exchange(&token_of(&thief)).await;
    assert_eq!(status, StatusCode::OK, "its own token is good: {answer}");
    let credential = answer["credential"].as_str().expect("a credential");

    let turn = &chat.turn;
    // As itself, connected like any worker; as a process that nobody knows; as the very incarnation that holds the turn.
    let (itself, said, _stream) = port.connect(credential, turn).await;
    assert!(!said.contains("\"message\":\"secret\""), "a claim: {said}");
    let victim = place.api.record(turn).await["worker"].as_str().expect("an incarnation").to_owned();
    for incarnation in [&uuid::Uuid::new_v4().to_string(), &victim, &itself] {
        let call = async |path: &str, body: Value| port.post_as(incarnation, path, credential, body).await;
        let refused = |status: StatusCode| matches!(status.as_u16(), 401 | 403 | 404 | 410);
        let finish = json!({"turnIds": [turn], "replyId": "r", "outcome": {"type": "reply"}, "end": 6});
        let (status, body) = call("finish", finish).await;
        assert!(refused(status), "finish: {status} {body}");
        let frames = json!({"frames": [{"type": "text", "text": "forged"}]});
        let (status, body) = call(&format!("turns/{turn}/output?offset=6"), frames).await;
        assert!(refused(status), "output: {status} {body}");
        let (status, body) = call("heartbeat", json!({"turns": [turn]})).await;
        assert!(refused(status) || !body["push"].to_string().contains(turn.as_str()), "heartbeat: {status} {body}");
        let (status, body) = call("goodbye", json!({"phase": "draining", "handBack": [turn]})).await;
        assert!(status == StatusCode::NO_CONTENT || refused(status), "goodbye: {status} {body}");
    }

    assert_eq!(place.api.record(turn).await["phase"], "Running");
    processes::program_of(turn).await.0.signal(Signal::USR1);
    chat.replied(&place, "begun\ndone\n").await;
    place.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_our_pods_opens_nothing() {
    let Some(cluster) = Cluster::connect_local("a pod's token").await else { return };
    let port = Port::of(&cluster).await;
    let place = Place::new(cluster, "tokens").await;
    place.agent("agent", never_connects()).await;
    let pod = worker_of(&place, "agent").await;
    let ours = token_of(&pod);

    port.refuses("nonsense", "nonsense").await;
    port.refuses("another audience", &request(&place, "other", Some(&pod)).await).await;
    port.refuses(
        "the API server's audience",
        &request(&place, "https://kubernetes.default.svc.cluster.local", Some(&pod)).await,
    )
    .await;
    port.refuses("a ServiceAccount's, of no pod", &request(&place, AUDIENCE, None).await).await;
    let foreign = foreign_pod(&place, &pod).await;
    port.refuses("a pod's that we did not make", &request(&place, AUDIENCE, Some(&foreign)).await).await;
    // Signed by the cluster's own key; only its time differs from one that is good. (A minute is forgiven.)
    let (expired, good) = (jwt::like(&ours, -300), jwt::like(&ours, 600));
    port.refuses("expired", &expired).await;
    let (status, body) = port.exchange(&good).await;
    assert_eq!(status, StatusCode::OK, "the expired one's twin is good: {body}");
    let credential = body["credential"].as_str().expect("a credential").to_owned();

    place.pods().delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await.expect("deletes");
    until("the pod to be gone", async || match place.pods().get_opt(&pod.name_any()).await {
        Ok(None) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    // The API server itself believes a token that it has just seen for 10 s more.
    until("the deleted pod's token to be refused", async || match port.exchange(&ours).await {
        (status, body) if status.is_client_error() && body["credential"].is_null() => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    until("the end of the deleted pod's session", async || {
        let (status, body) = port.post("heartbeat", &credential, json!({"turns": []})).await;
        if status.is_client_error() { Ok(()) } else { Err(format!("{status} {body}")) }
    })
    .await;
    place.done().await;
}

/// A token of the namespace's ServiceAccount, bound to a pod or to none.
async fn request(place: &Place, audience: &str, pod: Option<&Pod>) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(place.cluster.kube.clone(), &place.name);
    let mut spec = json!({"audiences": [audience], "expirationSeconds": 600});
    if let Some(pod) = pod {
        spec["boundObjectRef"] =
            json!({"apiVersion": "v1", "kind": "Pod", "name": pod.name_any(), "uid": pod.metadata.uid});
    }
    let request: TokenRequest = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
    let made = accounts.create_token_request("default", &PostParams::default(), &request).await.expect("a token");
    made.status.expect("a token").token
}

/// A pod with all labels and annotations of a real one, made by somebody else.
async fn foreign_pod(place: &Place, real: &Pod) -> Pod {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "forged", "labels": real.metadata.labels, "annotations": real.metadata.annotations},
        "spec": {
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "agent", "image": busybox(), "imagePullPolicy": "IfNotPresent", "command": ["sleep", "3600"],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    }))
    .unwrap();
    place.pods().create(&PostParams::default(), &pod).await.expect("a pod")
}

/// `kubectl auth can-i`, for what the chart's ServiceAccounts need and for what they must not have.
#[tokio::test(flavor = "multi_thread")]
async fn the_charts_roles_may_what_they_need_and_no_more() {
    let Some(cluster) = Cluster::connect().await else { return };
    // Who, verb, resource (with its group and subresource), namespace.
    let table = [
        (true, "controller", "watch agents.lastword.dev", "default"),
        (true, "controller", "patch agents.lastword.dev/status", "default"),
        (true, "controller", "watch agentturns.lastword.dev", "default"),
        (true, "controller", "delete agentturns.lastword.dev", "default"),
        (true, "controller", "patch agentturns.lastword.dev/status", "default"),
        (true, "controller", "create pods", "default"),
        (true, "controller", "delete pods", "default"),
        (true, "controller", "create events.events.k8s.io", "default"),
        (true, "controller", "patch leases.coordination.k8s.io/lastword-controller", SYSTEM),
        (true, "gateway", "create tokenreviews.authentication.k8s.io", ""),
        (false, "controller", "create agents.lastword.dev", "default"),
        (false, "controller", "delete agents.lastword.dev", "default"),
        (false, "controller", "create agentturns.lastword.dev", "default"),
        (false, "controller", "list secrets", "default"),
        (false, "controller", "watch secrets", SYSTEM),
        (false, "controller", "create pods/exec", "default"),
        (false, "controller", "get pods/log", "default"),
        (false, "controller", "create deployments.apps", "default"),
        (false, "controller", "create tokenreviews.authentication.k8s.io", ""),
        (false, "controller", "patch leases.coordination.k8s.io/another", SYSTEM),
        (false, "controller", "create leases.coordination.k8s.io", "default"),
        (false, "controller", "create serviceaccounts/token", "default"),
        (false, "controller", "list nodes", ""),
        (false, "controller", "create clusterroles.rbac.authorization.k8s.io", ""),
        (false, "gateway", "get pods", "default"),
        (false, "gateway", "get agents.lastword.dev", "default"),
        (false, "gateway", "get secrets", SYSTEM),
        (false, "gateway", "create subjectaccessreviews.authorization.k8s.io", ""),
    ];
    let mut wrong = Vec::new();
    for (allowed, who, what, namespace) in table {
        if may(&cluster, who, what, namespace).await != allowed {
            wrong.push(format!("{who} {} {what} in {namespace:?}", if allowed { "may not" } else { "may" }));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

async fn may(cluster: &Cluster, who: &str, what: &str, namespace: &str) -> bool {
    let (verb, resource) = what.split_once(' ').expect("a verb and a resource");
    let (resource, rest) = resource.split_once('/').unwrap_or((resource, ""));
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    // Behind the slash stands a subresource, or for Leases a name.
    let (name, subresource) = if resource == "leases" { (rest, "") } else { ("", rest) };
    let review: SubjectAccessReview = serde_json::from_value(json!({
        "metadata": {},
        "spec": {
            "user": format!("system:serviceaccount:{SYSTEM}:lastword-{who}"),
            "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{SYSTEM}"), "system:authenticated"],
            "resourceAttributes": {
                "verb": verb, "resource": resource, "group": group, "subresource": subresource, "name": name, "namespace": namespace,
            },
        },
    }))
    .unwrap();
    let reviews: Api<SubjectAccessReview> = Api::all(cluster.kube.clone());
    let review = reviews.create(&PostParams::default(), &review).await.expect("a review");
    review.status.is_some_and(|s| s.allowed)
}
