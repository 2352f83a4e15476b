//! Security defaults of a worker's pod, for what its template leaves open. A pod with these defaults passes the Pod Security
//! Standard `restricted`. A `null` in the template keeps a field unset.

use serde_json::{Map, Value, json};

/// The user and group of worker pods whose template names none. By convention of distroless images this id is nobody's.
const UID: u32 = 65532;
const TMP: &str = "/tmp";

/// Sets the defaults of the pod's own fields.
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

/// Sets each container's defaults. A container that cannot write to its root filesystem gets an `emptyDir` at `/tmp`;
/// `group` tells the volumes of init containers and of other containers apart by name.
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

/// Changes the object under `key`. An empty one is made if there is none.
fn within<T>(object: &mut Map<String, Value>, key: &str, change: impl FnOnce(&mut Map<String, Value>) -> T) -> T {
    let mut child = match object.remove(key) {
        Some(Value::Object(child)) => child,
        _ => Map::new(),
    };
    let done = change(&mut child);
    object.insert(key.into(), child.into());
    done
}

/// Sets `key` if it is absent. Removes it if it is null, which stands for "unset" in a template.
fn default(object: &mut Map<String, Value>, key: &str, value: Value) {
    match object.get(key) {
        None => drop(object.insert(key.into(), value)),
        Some(Value::Null) => drop(object.remove(key)),
        Some(_) => {}
    }
}
