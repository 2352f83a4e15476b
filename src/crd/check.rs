//! Checks a spec by the schema and the CEL rules of its own CRD, as the API server does.

use std::fmt;

use kube::core::cel::Validator;
use serde_json::Value;

use super::definitions::agent_schema;

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The field's path from the object's root, e.g. `spec.template.spec.containers[0].name`.
    pub path: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.problem)
    }
}

/// Everything that is wrong with an Agent; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidAgent(pub Vec<FieldError>);

impl fmt::Display for InvalidAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let problems: Vec<String> = self.0.iter().map(FieldError::to_string).collect();
        f.write_str(&problems.join("; "))
    }
}

impl std::error::Error for InvalidAgent {}

/// Checks an Agent's raw spec and answers with all that is wrong. The structure is checked first, and the CEL rules only if the
/// structure is right, since they rest on it.
pub fn check_spec(spec: &Value) -> Vec<FieldError> {
    check_part(&agent_schema()["properties"]["spec"], spec, "spec")
}

/// Checks a part of an object, at `path` in it, by that part's schema.
pub fn check_part(schema: &Value, value: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    check_value(schema, value, path, &mut errors);
    if errors.is_empty()
        && let Err(broken) = Validator::new().validate(schema, value, None)
    {
        errors.extend(broken.into_vec().into_iter().map(|e| FieldError {
            path: if e.field_path.is_empty() { path.into() } else { format!("{path}.{}", e.field_path) },
            problem: e.message,
        }));
    }
    errors
}

/// Interprets as much of OpenAPI as the CRDs here use: no references, no patterns, no alternatives.
fn check_value(schema: &Value, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut problem = |problem: String| errors.push(FieldError { path: path.into(), problem });
    if let Some(expected) = schema["type"].as_str()
        && !has_type(value, expected)
    {
        return problem(format!("must be of type {expected}, is {}", type_name(value)));
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        let allowed: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
        return problem(format!("unsupported value {value}; supported: {}", allowed.join(", ")));
    }
    let (measure, low, high, unit) = match value {
        Value::Number(number) => (number.as_f64(), "minimum", "maximum", ""),
        Value::String(text) => (Some(text.chars().count() as f64), "minLength", "maxLength", " characters"),
        Value::Array(items) => (Some(items.len() as f64), "minItems", "maxItems", " items"),
        _ => (None, "", "", ""),
    };
    if let Some((measure, low)) = measure.zip(schema[low].as_f64()).filter(|(measure, low)| measure < low) {
        problem(format!("must be at least {low}{unit}, is {measure}"));
    }
    if let Some((measure, high)) = measure.zip(schema[high].as_f64()).filter(|(measure, high)| measure > high) {
        problem(format!("must be at most {high}{unit}, is {measure}"));
    }
    match value {
        Value::Object(object) => check_object(schema, object, path, errors),
        Value::Array(items) => check_items(schema, items, path, errors),
        _ => {}
    }
}

fn check_object(schema: &Value, object: &serde_json::Map<String, Value>, path: &str, errors: &mut Vec<FieldError>) {
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !object.contains_key(name) {
            errors.push(FieldError { path: format!("{path}.{name}"), problem: "is required".into() });
        }
    }
    let preserves = schema["x-kubernetes-preserve-unknown-fields"] == true;
    for (name, value) in object {
        let path = format!("{path}.{name}");
        if let Some(property) = schema["properties"].get(name) {
            check_value(property, value, &path, errors);
        } else if schema["additionalProperties"].is_object() {
            check_value(&schema["additionalProperties"], value, &path, errors);
        } else if !preserves {
            let known: Vec<&String> = schema["properties"].as_object().into_iter().flat_map(|p| p.keys()).collect();
            let known = known.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            errors.push(FieldError { path, problem: format!("unknown field; known here: {known}") });
        }
    }
}

fn check_items(schema: &Value, items: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    let key = schema["x-kubernetes-list-map-keys"][0].as_str();
    for (index, item) in items.iter().enumerate() {
        let path = format!("{path}[{index}]");
        check_value(&schema["items"], item, &path, errors);
        if let Some(key) = key
            && items[..index].iter().any(|other| other.get(key).is_some() && other.get(key) == item.get(key))
        {
            errors.push(FieldError { path: format!("{path}.{key}"), problem: format!("duplicate {}", item[key]) });
        }
    }
}

fn has_type(value: &Value, expected: &str) -> bool {
    match expected {
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        other => type_name(value) == other,
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
