//! Guardrails in CEL: one expression over the message; true lets the message pass.
//!
//! Here is what an expression may be, and how one is evaluated. When it is compiled, its length, its depth and the nesting of
//! its loops are limited, and it may name known variables only. That does not bound the work of an evaluation, and an
//! evaluation cannot be interrupted. So expressions are evaluated in processes of their own, which can be killed: see
//! [`evaluators`](super::evaluators).

use std::sync::{Arc, LazyLock};

use cel::common::ast::{EntryExpr, Expr, IdedExpr};
use cel::{Context, Env, Program, Value};
use serde::{Deserialize, Serialize};

use crate::turn::objects::objects_only;

/// The longest expression, in bytes.
pub const MAX_SOURCE_BYTES: usize = 2048;
/// The deepest syntax tree: evaluation recurses, and a stack that overflows would end the process.
const MAX_DEPTH: usize = 64;
/// The deepest nesting of `all`, `exists`, `map` and the like: each multiplies the cost of an evaluation by the length of
/// its list.
const MAX_LOOPS: usize = 2;

const VARIABLES: [&str; 6] = ["message", "user", "conversation", "platform", "metadata", "size"];
/// Names that are no variables: types, and the namespace of optional values.
const NAMES: [&str; 11] =
    ["bool", "bytes", "double", "dyn", "int", "list", "map", "null_type", "optional", "string", "uint"];

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// An expression and the values of its variables, as one process hands them to another.
#[derive(Debug, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub(super) struct Question {
    pub source: String,
    pub message: String,
    pub user: String,
    pub conversation: String,
    pub platform: String,
    /// JSON. It is text here, so that metadata may be nested as deep as in a request, and not a level less.
    pub metadata: String,
}

objects_only!(both Question);

/// Compiles `source`; refuses an expression that is too large or names an unknown variable.
pub(super) fn compile(source: &str) -> Result<Program, String> {
    if source.len() > MAX_SOURCE_BYTES {
        return Err(format!("longer than {MAX_SOURCE_BYTES} bytes"));
    }
    let program = ENV.compile(source).map_err(|errors| errors.to_string())?;
    visit(program.expression(), &mut Vec::new(), 0, 0)?;
    Ok(program)
}

/// Evaluates an expression. It takes the time and the memory that the expression takes.
///
/// # Errors
/// What the expression cannot do.
pub(super) fn evaluate(question: Question) -> Result<bool, String> {
    let program = compile(&question.source)?;
    let mut context = Context::with_env(ENV.clone());
    context.add_variable_from_value("size", i64::try_from(question.message.len()).unwrap_or(i64::MAX));
    context.add_variable_from_value("message", question.message);
    context.add_variable_from_value("user", question.user);
    context.add_variable_from_value("conversation", question.conversation);
    context.add_variable_from_value("platform", question.platform);
    let metadata: serde_json::Value = serde_json::from_str(&question.metadata).map_err(|error| error.to_string())?;
    let metadata = match metadata {
        // A message without metadata gets an empty map, so that `has(metadata.x)` is false and not an error.
        serde_json::Value::Null => serde_json::json!({}),
        told => told,
    };
    let metadata = cel::to_value(metadata).map_err(|error| error.to_string())?;
    context.add_variable_from_value("metadata", metadata);
    match program.execute(&context) {
        Ok(Value::Bool(allow)) => Ok(allow),
        Ok(other) => Err(format!("the result is a {}, not a bool", other.type_of())),
        Err(error) => Err(error.to_string()),
    }
}

/// Walks the syntax tree. Refuses one that is too deep, loops nested too deep, and a name that is neither a known one nor
/// bound by a loop.
fn visit<'e>(node: &'e IdedExpr, bound: &mut Vec<&'e str>, depth: usize, loops: usize) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!("nested deeper than {MAX_DEPTH}"));
    }
    if loops > MAX_LOOPS {
        return Err(format!("loops nested deeper than {MAX_LOOPS}"));
    }
    let next = depth + 1;
    match &node.expr {
        Expr::Unspecified | Expr::Literal(_) => Ok(()),
        Expr::Ident(name) => {
            let name = name.trim_start_matches('.');
            let known = name.starts_with('@') || VARIABLES.contains(&name) || NAMES.contains(&name);
            if known || bound.contains(&name) {
                return Ok(());
            }
            Err(format!("unknown variable {name}; known: {}", VARIABLES.join(", ")))
        }
        Expr::Select(select) => visit(&select.operand, bound, next, loops),
        Expr::List(list) => list.elements.iter().try_for_each(|item| visit(item, bound, next, loops)),
        Expr::Call(call) => {
            call.target.iter().try_for_each(|target| visit(target, bound, next, loops))?;
            call.args.iter().try_for_each(|argument| visit(argument, bound, next, loops))
        }
        Expr::Map(map) => map.entries.iter().try_for_each(|entry| visit_entry(&entry.expr, bound, next, loops)),
        Expr::Struct(fields) => {
            fields.entries.iter().try_for_each(|entry| visit_entry(&entry.expr, bound, next, loops))
        }
        Expr::Comprehension(each) => {
            visit(&each.iter_range, bound, next, loops)?;
            visit(&each.accu_init, bound, next, loops)?;
            let outer = bound.len();
            bound.extend([each.iter_var.as_str(), each.accu_var.as_str()]);
            bound.extend(each.iter_var2.as_deref());
            let inside = [&each.loop_cond, &each.loop_step, &each.result];
            let result = inside.into_iter().try_for_each(|part| visit(part, bound, next, loops + 1));
            bound.truncate(outer);
            result
        }
    }
}

fn visit_entry<'e>(entry: &'e EntryExpr, bound: &mut Vec<&'e str>, depth: usize, loops: usize) -> Result<(), String> {
    match entry {
        EntryExpr::StructField(field) => visit(&field.value, bound, depth, loops),
        EntryExpr::MapEntry(entry) => {
            visit(&entry.key, bound, depth, loops)?;
            visit(&entry.value, bound, depth, loops)
        }
    }
}
