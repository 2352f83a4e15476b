use serde_json::{Value, json};

use super::*;

/// A pod on a node whose container `agent` has this state; `change` changes its JSON.
fn with_state(state: Value, change: impl FnOnce(&mut Value)) -> Pod {
    let mut pod = json!({
        "metadata": {"name": "bot-1", "namespace": "team", "uid": "u"},
        "spec": {"nodeName": "node-1", "containers": [{"name": "agent"}, {"name": "side"}],
                 "initContainers": [{"name": "lastword-install"}, {"name": "mesh", "restartPolicy": "Always"}]},
        "status": {"phase": "Running", "containerStatuses": [status("agent", state)]},
    });
    change(&mut pod);
    serde_json::from_value(pod).expect("a pod")
}

fn status(name: &str, state: Value) -> Value {
    json!({"name": name, "image": "i", "imageID": "i", "ready": false, "restartCount": 0, "state": state})
}

fn ended(code: i32, reason: &str) -> Value {
    json!({"terminated": {"exitCode": code, "reason": reason, "startedAt": "2026-01-01T00:00:00Z",
                          "finishedAt": "2026-01-01T00:01:00Z"}})
}

fn waiting(reason: &str) -> Value {
    json!({"waiting": {"reason": reason, "message": "the kubelet's message"}})
}

fn running() -> Value {
    json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}})
}

fn disrupted(reason: &str) -> Value {
    json!({"type": "DisruptionTarget", "status": "True", "reason": reason, "message": ""})
}

/// `Dead(Reason)`, `Waiting(Reason)`, `Running` or `Starting`.
fn said(pod: &Pod, events: &[PodEvent]) -> String {
    match classify(pod, events) {
        PodVerdict::Dead(cause) => format!("Dead({})", cause.reason),
        PodVerdict::Waiting(cause) => format!("Waiting({})", cause.reason),
        other => format!("{other:?}"),
    }
}

fn none(_: &mut Value) {}

#[test]
fn the_adapters_container_decides() {
    let other = |state: Value| {
        move |p: &mut Value| {
            p["status"]["containerStatuses"].as_array_mut().expect("a list").push(status("side", state))
        }
    };
    for (pod, verdict) in [
        (with_state(running(), none), "Running"),
        (with_state(running(), other(ended(1, "Error"))), "Running"),
        (with_state(running(), other(waiting("ImagePullBackOff"))), "Running"),
        (with_state(ended(1, "Error"), other(running())), "Dead(WorkerExited)"),
        (with_state(ended(0, "Completed"), none), "Dead(WorkerExited)"),
        (with_state(ended(137, "Error"), none), "Dead(WorkerExited)"),
        (with_state(ended(137, "OOMKilled"), none), "Dead(OutOfMemory)"),
        (with_state(ended(128, "StartError"), none), "Dead(StartFailed)"),
        (with_state(ended(127, "ContainerCannotRun"), none), "Dead(StartFailed)"),
        (with_state(ended(137, "ContainerStatusUnknown"), none), "Dead(WorkerExited)"),
        (with_state(waiting("ContainerCreating"), none), "Starting"),
        (with_state(waiting("PodInitializing"), none), "Starting"),
        (with_state(waiting("ErrImagePull"), none), "Waiting(ImagePull)"),
        (with_state(waiting("ImagePullBackOff"), none), "Waiting(ImagePull)"),
        (with_state(waiting("InvalidImageName"), none), "Dead(ImagePull)"),
        (with_state(waiting("ErrImageNeverPull"), none), "Dead(ImagePull)"),
        (with_state(waiting("CreateContainerConfigError"), none), "Waiting(StartFailed)"),
        (with_state(waiting("CreateContainerError"), none), "Waiting(StartFailed)"),
        (with_state(waiting("RunContainerError"), none), "Dead(StartFailed)"),
        (with_state(json!({}), none), "Starting"),
        (with_state(running(), |p| p["status"]["phase"] = json!("Unknown")), "Running"),
        (with_state(running(), |p| p["status"] = Value::Null), "Starting"),
    ] {
        assert_eq!(said(&pod, &[]), verdict, "{:?}", pod.status);
    }
}

#[test]
fn the_adapters_own_words_say_more_than_an_exit_code() {
    let message = |text: &str| {
        let text = text.to_owned();
        move |p: &mut Value| p["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = json!(text)
    };
    let words = r#"{"reason":"OutOfMemory","detail":"killed by the kernel"}"#;
    let pod = with_state(ended(137, "Error"), message(words));
    let PodVerdict::Dead(cause) = classify(&pod, &[]) else { panic!("dead") };
    assert_eq!(cause.reason, Reason::OutOfMemory);
    let detail = cause.detail.expect("a detail");
    assert_eq!(detail, "pod bot-1 on node node-1: container agent: exit code 137 (signal 9): killed by the kernel");
    assert_eq!(cause.message, Reason::OutOfMemory.client_message(), "no internals for clients");
    let agent_error = message(r#"{"reason":"AgentError","detail":"exit code 1"}"#);
    assert_eq!(said(&with_state(ended(137, "OOMKilled"), agent_error), &[]), "Dead(OutOfMemory)");
    for unread in ["Traceback", r#"{"reason":"Nonsense"}"#, "{}"] {
        assert_eq!(said(&with_state(ended(1, "Error"), message(unread)), &[]), "Dead(WorkerExited)", "{unread}");
    }
}

#[test]
fn a_pod_that_never_ran() {
    let over = |reason: &str| {
        let reason = reason.to_owned();
        move |p: &mut Value| p["status"] = json!({"phase": "Failed", "reason": reason, "message": "Pod was rejected"})
    };
    for (reason, verdict) in [
        ("OutOfcpu", "Dead(StartFailed)"),
        ("UnexpectedAdmissionError", "Dead(StartFailed)"),
        ("NodeAffinity", "Dead(StartFailed)"),
        ("Evicted", "Dead(Evicted)"),
        ("Terminated", "Dead(NodeShutdown)"),
        ("NodeShutdown", "Dead(NodeShutdown)"),
        ("", "Dead(StartFailed)"),
    ] {
        assert_eq!(said(&with_state(json!({}), over(reason)), &[]), verdict, "{reason}");
    }
    let init = |name: &'static str, state: Value| {
        move |p: &mut Value| p["status"]["initContainerStatuses"] = json!([status(name, state)])
    };
    for (change, verdict) in [
        (init("lastword-install", ended(1, "Error")), "Dead(StartFailed)"),
        (init("lastword-install", ended(137, "OOMKilled")), "Dead(OutOfMemory)"),
        (init("lastword-install", ended(0, "Completed")), "Starting"),
        (init("lastword-install", waiting("ImagePullBackOff")), "Waiting(ImagePull)"),
        (init("lastword-install", waiting("ErrImageNeverPull")), "Dead(ImagePull)"),
        (init("mesh", ended(1, "Error")), "Starting"),
        (init("mesh", waiting("CrashLoopBackOff")), "Waiting(StartFailed)"),
    ] {
        assert_eq!(said(&with_state(waiting("PodInitializing"), change), &[]), verdict);
    }
}

#[test]
fn what_keeps_a_pod_from_its_node_or_its_volumes() {
    let scheduled = |status: &'static str| {
        move |p: &mut Value| {
            let message = "0/2 nodes are available";
            let condition =
                json!({"type": "PodScheduled", "status": status, "reason": "Unschedulable", "message": message});
            p["status"] = json!({"phase": "Pending", "conditions": [condition]});
        }
    };
    assert_eq!(said(&with_state(json!({}), scheduled("False")), &[]), "Waiting(Unschedulable)");
    assert_eq!(said(&with_state(json!({}), scheduled("True")), &[]), "Starting");
    let event = |reason: &str| PodEvent { reason: reason.into(), message: "secret \"s\" not found".into() };
    let pod = with_state(waiting("ContainerCreating"), none);
    assert_eq!(said(&pod, &[event("FailedMount")]), "Waiting(StartFailed)");
    assert_eq!(said(&pod, &[event("FailedCreatePodSandBox")]), "Waiting(StartFailed)");
    assert_eq!(said(&pod, &[event("Unhealthy")]), "Starting");
    assert_eq!(said(&pod, &[event("FailedMount"), event("Pulling")]), "Waiting(ImagePull)", "the latest");
    let failed = PodEvent { reason: "Failed".into(), message: "Error: ErrImagePull".into() };
    assert_eq!(said(&pod, &[event("Pulling"), failed]), "Waiting(ImagePull)", "before the status says so");
    let never = PodEvent { reason: "Failed".into(), message: "Error: ErrImageNeverPull".into() };
    assert_eq!(said(&pod, &[event("Started"), event("ErrImageNeverPull"), never]), "Waiting(ImagePull)");
    let healed = [event("FailedMount"), event("Pulling"), event("Pulled"), event("Created")];
    assert_eq!(said(&pod, &healed), "Starting", "what was before it came forward");
    assert_eq!(said(&with_state(running(), none), &[event("FailedMount")]), "Running", "what is over is over");
    let waits = with_state(waiting("ErrImagePull"), none);
    assert_eq!(said(&waits, &[event("FailedMount")]), "Waiting(ImagePull)", "the status knows better");
}

#[test]
fn stops() {
    let deleted = |p: &mut Value| {
        p["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:30Z");
        p["metadata"]["deletionGracePeriodSeconds"] = json!(30);
    };
    let disrupted = |reason: &'static str| move |p: &mut Value| p["status"]["conditions"] = json!([disrupted(reason)]);
    let both = |reason: &'static str| {
        move |p: &mut Value| {
            deleted(p);
            p["status"]["conditions"] = json!([self::disrupted(reason)]);
        }
    };
    let stopped = |reason, within_seconds| Some(PodStop { reason, within_seconds });
    for (pod, gone, expected) in [
        (with_state(running(), none), false, None),
        (with_state(running(), deleted), false, stopped(Reason::Deleted, Some(30))),
        (with_state(running(), none), true, stopped(Reason::Deleted, Some(2))),
        (with_state(running(), deleted), true, stopped(Reason::Deleted, Some(2))),
        (with_state(running(), both("EvictionByEvictionAPI")), false, stopped(Reason::Evicted, Some(30))),
        (with_state(running(), both("PreemptionByScheduler")), false, stopped(Reason::Preempted, Some(30))),
        (with_state(running(), both("DeletionByTaintManager")), false, stopped(Reason::NodeLost, Some(30))),
        (with_state(running(), both("DeletionByPodGC")), false, stopped(Reason::NodeLost, Some(30))),
        (with_state(running(), both("SomethingNew")), false, stopped(Reason::Deleted, Some(30))),
        (with_state(running(), disrupted("PreemptionByScheduler")), false, None),
        (with_state(running(), disrupted("TerminationByKubelet")), false, stopped(Reason::Evicted, None)),
    ] {
        assert_eq!(stop_of_pod(&pod, gone), expected, "{:?} {gone}", pod.metadata);
    }
    let shutdown = with_state(ended(137, "Error"), |p| {
        p["status"]["phase"] = json!("Failed");
        p["status"]["reason"] = json!("Terminated");
        p["status"]["conditions"] = json!([self::disrupted("TerminationByKubelet")]);
    });
    assert_eq!(stop_of_pod(&shutdown, false), stopped(Reason::NodeShutdown, None));
    assert_eq!(said(&shutdown, &[]), "Dead(NodeShutdown)");
    assert_eq!(said(&with_state(ended(137, "Error"), both("EvictionByEvictionAPI")), &[]), "Dead(Evicted)");
    assert_eq!(said(&with_state(ended(143, "Error"), deleted), &[]), "Dead(Deleted)");
    assert_eq!(said(&with_state(ended(137, "OOMKilled"), deleted), &[]), "Dead(OutOfMemory)");
    let evicted = with_state(ended(137, "Error"), |p| p["status"]["reason"] = json!("Evicted"));
    assert_eq!(said(&evicted, &[]), "Dead(Evicted)");
}

/// The garbage collector calls the pods of a lost node Failed: it has not seen them end.
#[test]
fn a_lost_node_is_no_proof() {
    let lost = with_state(running(), |p| {
        p["status"]["phase"] = json!("Failed");
        p["status"]["conditions"] = json!([disrupted("DeletionByPodGC")]);
    });
    assert_eq!(said(&lost, &[]), "Running");
    assert!(!is_over(&lost));
}

#[test]
fn beside_a_model_server() {
    let openai = |adapter: Value, server: Value| {
        with_state(Value::Null, move |p| {
            p["spec"]["containers"] = json!([{"name": "agent"}, {"name": "lastword"}]);
            p["status"]["containerStatuses"] = json!([status("agent", server), status("lastword", adapter)]);
        })
    };
    for (adapter, server, verdict) in [
        (running(), running(), "Running"),
        (ended(5, "Error"), running(), "Dead(WorkerExited)"),
        (ended(5, "Error"), ended(137, "OOMKilled"), "Dead(OutOfMemory)"),
        (running(), ended(137, "OOMKilled"), "Dead(OutOfMemory)"),
        (running(), waiting("ImagePullBackOff"), "Waiting(ImagePull)"),
        (running(), waiting("InvalidImageName"), "Waiting(ImagePull)"),
        (waiting("ContainerCreating"), running(), "Starting"),
        (waiting("ErrImageNeverPull"), running(), "Dead(ImagePull)"),
    ] {
        assert_eq!(said(&openai(adapter, server), &[]), verdict);
    }
}
