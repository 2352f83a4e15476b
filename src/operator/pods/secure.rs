//! Defaults of a worker's pod that hold where its template says nothing: they pass the Pod Security Standard `restricted`.
//! A `null` in the template means: leave it unset.

use serde_json::{Map, Value, json};

/// The user and group of worker pods, where the template names none: nobody's, by convention of distroless images.
const UID: u32 = 65532;
const TMP: &str = "/tmp";

/// The pod's own defaults.
pub(super) fn pod(spec: &mut Map<String, Value>) {
    within(spec, "securityContext", |context| {
        default(context, "runAsNonRoot", json!(true));
        default(context, "runAsUser", json!(UID));
        default(context, "runAsGroup", json!(UID));
        default(context, "fsGroup", json!(UID));
        default(context, "seccompProfile", json!({"type": "RuntimeDefault"}));
    });
    default(spec, "automountServiceAccountToken", json!(false));
    default(spec, "enableServiceLinks", json!(false));
}

/// Each container's defaults, and a /tmp of its own for one that cannot write to its image; `group` tells the names of
/// their volumes apart.
pub(super) fn containers(containers: &mut [Value], volumes: &mut Vec<Value>, group: &str) {
    for (index, container) in containers.iter_mut().enumerate() {
        let Some(container) = container.as_object_mut() else { continue };
        let read_only = within(container, "securityContext", |context| {
            if context.get("privileged") != Some(&json!(true)) {
                default(context, "allowPrivilegeEscalation", json!(false));
            }
            within(context, "capabilities", |capabilities| default(capabilities, "drop", json!(["ALL"])));
            default(context, "readOnlyRootFilesystem", json!(true));
            context.get("readOnlyRootFilesystem") == Some(&json!(true))
        });
        let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
        let Some(mounts) = mounts.as_array_mut().filter(|_| read_only) else { continue };
        let has_tmp = |m: &Value| m["mountPath"].as_str().is_some_and(|p| p.trim_end_matches('/') == TMP);
        if !mounts.iter().any(has_tmp) {
            let volume = format!("lastword-tmp-{group}-{index}");
            mounts.push(json!({"name": volume, "mountPath": TMP}));
            volumes.push(json!({"name": volume, "emptyDir": {}}));
        }
    }
}

/// Changes a member that is an object; it is made where there is none.
fn within<T>(object: &mut Map<String, Value>, key: &str, change: impl FnOnce(&mut Map<String, Value>) -> T) -> T {
    let mut child = match object.remove(key) {
        Some(Value::Object(child)) => child,
        _ => Map::new(),
    };
    let done = change(&mut child);
    object.insert(key.into(), child.into());
    done
}

/// Sets what is unset; takes an explicit null out.
fn default(object: &mut Map<String, Value>, key: &str, value: Value) {
    match object.get(key) {
        None => drop(object.insert(key.into(), value)),
        Some(Value::Null) => drop(object.remove(key)),
        Some(_) => {}
    }
}
