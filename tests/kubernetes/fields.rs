//! Every field of both CRDs with a valid and a rejected value, as data: `fields/*.yaml`. Used by the rows `parallel::fields` on a real API
//! server, and by the crate's own tests against the interpreter of the schema.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

/// A table of one resource.
#[derive(Debug, Deserialize)]
pub struct Table {
    base: Value,
    fields: Vec<Field>,
}

#[derive(Debug, Deserialize)]
struct Field {
    path: String,
    valid: Value,
    rejected: Value,
    #[serde(default)]
    also: Map<String, Value>,
}

/// One object to create (fields of `spec` and `metadata`), or whose status to write.
#[derive(Debug)]
pub struct Case {
    pub path: String,
    pub valid: bool,
    pub object: Value,
}

impl Case {
    /// Whether the field lies in the status, which is written through its subresource.
    pub fn is_status(&self) -> bool {
        self.path.starts_with("status")
    }
}

impl Table {
    /// Reads `agent` or `agentturn`.
    pub fn read(kind: &str) -> Table {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubernetes/fields").join(format!("{kind}.yaml"));
        let text = std::fs::read_to_string(&path).expect("the table is there");
        serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// What each case changes in one place.
    pub fn base(&self) -> &Value {
        &self.base
    }

    /// The paths that it holds.
    pub fn paths(&self) -> Vec<&str> {
        self.fields.iter().map(|field| field.path.as_str()).collect()
    }

    /// Two objects a field.
    pub fn cases(&self) -> Vec<Case> {
        let case = |field: &Field, valid: bool| {
            let mut object = self.base.clone();
            for (path, value) in &field.also {
                set(&mut object, path, value.clone());
            }
            set(&mut object, &field.path, if valid { &field.valid } else { &field.rejected }.clone());
            Case { path: field.path.clone(), valid, object }
        };
        self.fields.iter().flat_map(|field| [case(field, true), case(field, false)]).collect()
    }
}

/// Sets the value at a path such as `spec.list[0].field`, making what is missing on the way.
fn set(object: &mut Value, path: &str, value: Value) {
    let mut place = object;
    for step in path.split('.') {
        let (name, index) = match step.split_once('[') {
            Some((name, rest)) => (name, Some(rest.trim_end_matches(']').parse::<usize>().expect("an index"))),
            None => (step, None),
        };
        place = &mut place[name];
        if let Some(index) = index {
            if !place.is_array() {
                *place = Value::Array(Vec::new());
            }
            let items = place.as_array_mut().expect("a list");
            items.resize(items.len().max(index + 1), Value::Null);
            place = &mut items[index];
        }
    }
    *place = value;
}
