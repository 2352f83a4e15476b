//! A namespace of one row alone, with its operator's key: what the row makes, it makes here.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use kube::{Api, ResourceExt};
use lastword::crd::{Agent, AgentTurn};
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::news::News;
use super::turns::{Chat, Object};
use super::until;
use crate::support::api::Api as Client;

/// Every namespace of a row enforces this, unless the row says otherwise.
const RESTRICTED: [(&str, &str); 1] = [("pod-security.kubernetes.io/enforce", "restricted")];

/// A row's namespace.
pub struct Place {
    pub name: String,
    pub cluster: Cluster,
    /// As an operator of the namespace.
    pub api: Client,
    pub news: News,
}

impl Place {
    /// A new namespace, whose pods must meet the `restricted` Pod Security Standard.
    pub async fn new(cluster: Cluster, row: &str) -> Place {
        Place::labelled(cluster, row, &RESTRICTED).await
    }

    /// A new namespace with these labels alone.
    pub async fn labelled(cluster: Cluster, row: &str, labels: &[(&str, &str)]) -> Place {
        let suffix = &uuid::Uuid::new_v4().simple().to_string()[..6];
        let name = format!("e2e-{}-{suffix}", row.replace('_', "-"));
        let labels: BTreeMap<String, String> = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let namespace: Namespace = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": labels},
        }))
        .unwrap();
        let namespaces: Api<Namespace> = Api::all(cluster.kube.clone());
        namespaces.create(&PostParams::default(), &namespace).await.expect("a namespace");
        let key = cluster.operator_key(&name).await;
        let api = Client::new(&cluster.gateway, Some(&key));
        let news = News::watch(&cluster.kube, &name);
        Place { name, cluster, api, news }
    }

    /// The row has passed: its namespace goes away, unwaited. One that failed stays to be looked at.
    pub async fn done(self) {
        let namespaces: Api<Namespace> = Api::all(self.cluster.kube.clone());
        namespaces.delete(&self.name, &DeleteParams::default()).await.expect("the namespace can be deleted");
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.cluster.kube.clone(), &self.name)
    }

    pub fn agents(&self) -> Api<Agent> {
        Api::namespaced(self.cluster.kube.clone(), &self.name)
    }

    pub fn turns(&self) -> Api<AgentTurn> {
        Api::namespaced(self.cluster.kube.clone(), &self.name)
    }

    /// Objects of any kind that the rows use, without types: a type would drop what it does not know.
    pub fn any(&self, api_version: &str, kind: &str) -> Api<DynamicObject> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let plural = format!("{}s", kind.to_lowercase());
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), &plural);
        Api::namespaced_with(self.cluster.kube.clone(), &self.name, &resource)
    }

    /// Creates an object, or makes it so; as `kubectl apply --server-side`.
    pub async fn try_apply(&self, object: &Value) -> Result<DynamicObject, kube::Error> {
        let text = |value: &Value| value.as_str().expect("apiVersion, kind and name are given").to_owned();
        let api = self.any(&text(&object["apiVersion"]), &text(&object["kind"]));
        let apply = PatchParams::apply("e2e").force();
        api.patch(&text(&object["metadata"]["name"]), &apply, &Patch::Apply(object)).await
    }

    pub async fn apply(&self, object: &Value) -> DynamicObject {
        self.try_apply(object).await.unwrap_or_else(|e| panic!("{e}: {object}"))
    }

    /// Makes an Agent, or changes it, and waits until the controller has looked at it.
    pub async fn agent(&self, name: &str, spec: Value) {
        let object = json!({
            "apiVersion": "lastword.dev/v1alpha1", "kind": "Agent", "metadata": {"name": name}, "spec": spec,
        });
        let generation = self.apply(&object).await.metadata.generation.expect("an Agent has a generation");
        until(&format!("Ready of Agent {name}, be it True or False"), async || {
            let agent = self.agents().get(name).await.map_err(|e| e.to_string())?;
            let status = agent.status.unwrap_or_default();
            let known = status.conditions.iter().any(|c| c.type_ == "Ready" && c.status != "Unknown");
            match known && status.observed_generation >= Some(generation) {
                true => Ok(()),
                false => Err(format!("{status:?}")),
            }
        })
        .await;
    }

    pub async fn delete_agent(&self, name: &str) {
        self.agents().delete(name, &DeleteParams::default()).await.expect("the Agent can be deleted");
    }

    /// Submits a message on a new conversation; a session watches from before, and a stream of the turn's own.
    pub async fn chat(&self, agent: &str, message: &str) -> Chat {
        self.chat_on(&format!("c-{}", uuid::Uuid::new_v4().simple()), agent, message).await
    }

    pub async fn chat_on(&self, conversation: &str, agent: &str, message: &str) -> Chat {
        Chat::submit(&self.api, conversation, agent, message).await
    }

    /// Makes an AgentTurn with a name of its own.
    pub async fn object(&self, agent: &str, input: &str) -> Object {
        self.object_with(agent, input, json!({})).await
    }

    /// The same, with more in its spec.
    pub async fn object_with(&self, agent: &str, input: &str, mut spec: Value) -> Object {
        spec["agentRef"] = json!({"name": agent});
        spec["input"] = input.into();
        let name = format!("{agent}-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let turn = serde_json::from_value(json!({
            "apiVersion": "lastword.dev/v1alpha1", "kind": "AgentTurn", "metadata": {"name": name}, "spec": spec,
        }));
        let turn: AgentTurn = turn.expect("an AgentTurn");
        self.turns().create(&PostParams::default(), &turn).await.expect("the API server takes the AgentTurn");
        Object { name }
    }

    /// The pods of the namespace that are neither done nor being deleted.
    pub async fn living_pods(&self) -> Vec<Pod> {
        let pods = self.pods().list(&ListParams::default()).await.expect("the API server lists pods").items;
        pods.into_iter().filter(is_living).collect()
    }

    /// The one worker pod that lives and runs here.
    pub async fn worker(&self) -> Pod {
        until("one running worker pod", async || {
            let pods = self.living_pods().await;
            let names: Vec<String> = pods.iter().map(|p| format!("{} {:?}", p.name_any(), phase(p))).collect();
            match <[Pod; 1]>::try_from(pods) {
                Ok([pod]) if phase(&pod) == "Running" => Ok(pod),
                _ => Err(format!("{names:?}")),
            }
        })
        .await
    }

    /// Waits until no worker pod lives here.
    pub async fn no_workers(&self) {
        until("no worker pods", async || {
            let pods = self.living_pods().await;
            if pods.is_empty() {
                Ok(())
            } else {
                Err(format!("{:?}", pods.iter().map(|p| p.name_any()).collect::<Vec<_>>()))
            }
        })
        .await;
    }
}

pub fn phase(pod: &Pod) -> String {
    pod.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default()
}

fn is_living(pod: &Pod) -> bool {
    let over = matches!(phase(pod).as_str(), "Succeeded" | "Failed");
    pod.metadata.deletion_timestamp.is_none() && !over
}

/// What of a pod tells a failed row's reader most.
pub fn sketch(pod: &Pod) -> String {
    let status = pod.status.clone().unwrap_or_default();
    let containers: Vec<Value> = status.container_statuses.iter().flatten().map(|c| json!(c.state)).collect();
    format!("{}: {:?} {:?} {}", pod.name_any(), status.phase, status.reason, json!(containers))
}
