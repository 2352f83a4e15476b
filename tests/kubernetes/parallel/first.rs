//! What a person does first, and images that know nothing of Lastword.

use kube::ResourceExt;
use serde_json::json;

use crate::scene::agents::{COUNT, counted, custom, exec, openai, server_config, shell, worker_config};
use crate::scene::cluster::Cluster;
use crate::scene::command;
use crate::scene::place::Place;

const FIRST_CHAT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/kubernetes/first-chat.yaml");

/// One file, one wait, one look.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_and_its_turn_in_one_file_are_answered() {
    let Some(cluster) = Cluster::connect().await else { return };
    let place = Place::new(cluster, "first").await;
    let namespace = place.name.as_str();
    command("kubectl", &["apply", "-n", namespace, "-f", FIRST_CHAT]).await;
    let wait = ["wait", "-n", namespace, "--for=condition=Terminal", "--timeout=90s", "turns", "--all"];
    command("kubectl", &wait).await;
    let turn = &place.turns().list(&Default::default()).await.unwrap().items[0];
    let status = turn.status.clone().unwrap_or_default();
    assert_eq!(status.phase.map(|p| format!("{p:?}")).as_deref(), Some("Succeeded"), "{status:?}");
    assert!(status.reply.as_deref().is_some_and(|r| !r.is_empty()), "{status:?}");

    let table = command("kubectl", &["get", "turns", "-n", namespace]).await;
    let lines: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "AGENT", "PHASE", "REASON", "WORKER", "AGE"], "{table}");
    let worker = status.worker_pod.expect("the pod that ran it");
    assert_eq!(
        lines[1][..5],
        [&turn.name_any(), &turn.spec.agent_ref.name, "Succeeded", "Succeeded", &worker],
        "{table}"
    );
    assert!(
        command("kubectl", &["get", "lastword", "-n", namespace]).await.contains("agent"),
        "the category lists both"
    );
    let selected = ["get", "turns", "-n", namespace, "--field-selector=status.phase=Failed", "-o", "name"];
    assert_eq!(command("kubectl", &selected).await, "", "the phase is selectable");
    place.done().await;
}

/// Busybox serves, under `restricted`, and its pod carries nothing that it did not ask for.
#[tokio::test(flavor = "multi_thread")]
async fn busybox_serves_under_restricted() {
    let Some(cluster) = Cluster::connect().await else { return };
    let place = Place::new(cluster, "busybox").await;
    // A file, the environment, who it is, and the message.
    let script = "read m; echo $m > /tmp/note; cat /tmp/note; id -u; env | grep -c CREDENTIAL; \
                  ls /var/run/secrets/kubernetes.io 2>/dev/null; touch /no 2>/dev/null || echo read-only";
    place.agent("busybox", shell(script)).await;
    let chat = place.chat("busybox", "hello").await;
    chat.replied(&place, "hello\n65532\n0\nread-only\n").await;
    let object = place.object("busybox", "as an object").await;
    object.replied(&place, "as an object\n65532\n0\nread-only\n").await;
    place.done().await;
}

/// A reply that comes slowly is shown as it comes, and whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reply_is_streamed() {
    let Some(cluster) = Cluster::connect().await else { return };
    let place = Place::new(cluster, "stream").await;
    place.agent("count", shell(COUNT)).await;
    let chat = place.chat("count", "30").await;
    chat.replied(&place, &counted(30)).await;
    let frames: Vec<_> = chat.session.frames().into_iter().filter(|f| f.event == "text").collect();
    let spread = frames.last().unwrap().at - frames[0].at;
    assert!(frames.len() > 5 && spread.as_millis() > 1500, "{} pieces in {spread:?}", frames.len());
    place.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_adapter_replies() {
    let Some(cluster) = Cluster::connect().await else { return };
    let place = Place::new(cluster, "adapters").await;
    place.apply(&worker_config()).await;
    place.apply(&server_config()).await;
    place.agent("exec", exec(&["cat"])).await;
    place.agent("custom", custom()).await;
    place.agent("openai", openai()).await;
    let (exec, custom) = (place.chat("exec", "one two").await, place.chat("custom", "one two").await);
    let openai = place.chat("openai", "one two").await;
    exec.replied(&place, "one two\n").await;
    custom.replied(&place, "two one ").await;
    openai.replied(&place, "one two ").await;
    place.done().await;
}

/// Turns of a conversation are answered in order, by one worker; another conversation has another one.
#[tokio::test(flavor = "multi_thread")]
async fn each_conversation_has_a_pod_of_its_own() {
    let Some(cluster) = Cluster::connect().await else { return };
    let place = Place::new(cluster, "scope").await;
    let mut spec = shell("read m; echo $m of $LASTWORD_TURN_CONVERSATION_NAME from $HOSTNAME");
    spec["scope"] = json!("Conversation");
    spec["limits"] = json!({"maxWorkers": 3});
    place.agent("own", spec).await;
    let mut pods = Vec::new();
    for (conversation, message) in [("a", "1"), ("b", "1"), ("a", "2")] {
        let chat = place.chat_on(conversation, "own", message).await;
        chat.session.complete(&chat.turn).await;
        let text = chat.session.text(&chat.turn);
        let pod = text.trim().strip_prefix(&format!("{message} of {conversation} from ")).map(str::to_owned);
        pods.push(pod.unwrap_or_else(|| panic!("{text:?}: {:#?}", chat.session.frames())));
    }
    assert!(pods[0] == pods[2] && pods[0] != pods[1], "{pods:?}");
    assert!(place.pods().get(&pods[0]).await.is_ok(), "the name is the pod's");
    place.done().await;
}
