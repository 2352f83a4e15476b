//! What makes an Agent valid: the schema and the CEL rules of its CRD, and what a schema cannot say, such as that an expression
//! compiles or that a text is a quantity.

use crate::crd::{Agent, FieldError, InvalidAgent, check_spec};
use crate::guard::Guards;

impl Agent {
    /// Checks the spec by the CRD's schema and CEL rules, then the guardrails' expressions, quantities and the object's name. It
    /// is pure: it asks no cluster and reads no file.
    ///
    /// # Errors
    /// All that is wrong, with the fields' paths.
    pub fn validate(&self) -> Result<(), InvalidAgent> {
        let mut errors = match serde_json::to_value(&self.spec) {
            Ok(spec) => check_spec(&spec),
            Err(error) => vec![FieldError { path: "spec".into(), problem: error.to_string() }],
        };
        errors.extend(self.beyond_schema());
        if errors.is_empty() { Ok(()) } else { Err(InvalidAgent(errors)) }
    }

    fn beyond_schema(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut problem = |path: &str, problem: String| errors.push(FieldError { path: path.into(), problem });
        if !self.metadata.name.as_deref().is_some_and(is_dns_label) {
            let rule = "must be 1 to 63 of a-z, 0-9 and -, and begin and end with a letter or digit";
            problem("metadata.name", rule.into());
        }
        if !self.metadata.namespace.as_deref().is_none_or(is_dns_label) {
            problem("metadata.namespace", "is not a valid namespace".into());
        }
        if let Err(error) = Guards::compile(&self.spec.guardrails) {
            problem(&format!("spec.guardrails.input[{}]", error.index), error.problem.to_string());
        }
        for container in self.spec.template.iter().flat_map(|template| &template.spec.containers) {
            if let Err(error) = container.memory_limit_bytes() {
                let path = "spec.template.spec.containers[name=";
                problem(&format!("{path}{}].resources.limits.memory", container.name), error.to_string());
            }
        }
        errors
    }
}

fn is_dns_label(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len()) && name.chars().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}
