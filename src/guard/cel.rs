//! Guardrails in CEL: one expression over the message; true lets the message pass.
//!
//! An evaluation cannot be interrupted, so it is bounded in three ways. When an expression is compiled, its length, its
//! depth and the nesting of its loops are limited, and it may name known variables only. When it is evaluated, on a thread
//! of its own, the result is awaited for [`TIMEOUT`]; after that the guardrail is broken, while the thread runs on to the end of
//! the expression. And of all Agents together, [`MAX_RUNNING`] evaluations run at a time, those that nobody awaits any more
//! included; a guardrail that gets no place in time is broken.
//!
//! The thread is not one of tokio's blocking pool: a runtime that shuts down waits for those, so that a slow expression
//! would hold up the drain of a gateway. To start a thread takes some 20 µs.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use cel::common::ast::{EntryExpr, Expr, IdedExpr};
use cel::{Context, Env, Program, Value};
use tokio::sync::{Semaphore, oneshot};

use super::guardrail::{GuardrailAnswer, Input};

/// The longest expression, in bytes.
pub const MAX_SOURCE_BYTES: usize = 2048;
/// The time for one evaluation, waiting for a place included.
pub const TIMEOUT: Duration = Duration::from_secs(1);
/// The most evaluations at a time in this process.
pub const MAX_RUNNING: usize = 16;
/// The deepest syntax tree: evaluation recurses, and a stack that overflows would end the process.
const MAX_DEPTH: usize = 64;
/// The deepest nesting of `all`, `exists`, `map` and the like: each multiplies the cost of an evaluation by the length of
/// its list.
const MAX_LOOPS: usize = 2;

const VARIABLES: [&str; 6] = ["message", "user", "conversation", "platform", "metadata", "size"];
/// Names that are no variables: types, and the namespace of optional values.
const NAMES: [&str; 11] =
    ["bool", "bytes", "double", "dyn", "int", "list", "map", "null_type", "optional", "string", "uint"];

static RUNNING: Semaphore = Semaphore::const_new(MAX_RUNNING);
static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// A compiled expression.
#[derive(Clone, Debug)]
pub(super) struct Expression {
    program: Arc<Program>,
}

impl Expression {
    /// Compiles `source`; refuses an expression that is too large or names an unknown variable.
    pub(super) fn compile(source: &str) -> Result<Self, String> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(format!("longer than {MAX_SOURCE_BYTES} bytes"));
        }
        let program = ENV.compile(source).map_err(|errors| errors.to_string())?;
        visit(program.expression(), &mut Vec::new(), 0, 0)?;
        Ok(Self { program: Arc::new(program) })
    }

    /// Evaluates the expression for one message.
    pub(super) async fn ask(&self, input: Input<'_>) -> GuardrailAnswer {
        let variables = Variables {
            texts: [
                ("message", input.message.to_owned()),
                ("user", input.user.to_owned()),
                ("conversation", input.conversation.to_owned()),
                ("platform", input.platform.to_owned()),
            ],
            // A message without metadata gets an empty map, so that `has(metadata.x)` is false and not an error.
            metadata: match input.platform_metadata {
                serde_json::Value::Null => serde_json::json!({}),
                told => told.clone(),
            },
        };
        let program = self.program.clone();
        let evaluation = async {
            let place = RUNNING.acquire().await.map_err(|closed| closed.to_string())?;
            let (answer, result) = oneshot::channel();
            let run = move || {
                // The permit is given back when the thread ends, also by a panic, and also if nobody awaits the result
                // any more.
                let _place = place;
                let _ = answer.send(evaluate(&program, variables));
            };
            std::thread::Builder::new()
                .name("guard-cel".into())
                .spawn(run)
                .map_err(|error| format!("no thread for it: {error}"))?;
            result.await.map_err(|_| "evaluation panicked".to_owned())?
        };
        match tokio::time::timeout(TIMEOUT, evaluation).await {
            Ok(Ok(true)) => GuardrailAnswer::Allow,
            Ok(Ok(false)) => GuardrailAnswer::Reject(None),
            Ok(Err(cause)) => GuardrailAnswer::Broken(cause),
            Err(_) => GuardrailAnswer::Broken(format!("no result within {TIMEOUT:?}")),
        }
    }
}

struct Variables {
    texts: [(&'static str, String); 4],
    metadata: serde_json::Value,
}

fn evaluate(program: &Program, variables: Variables) -> Result<bool, String> {
    let mut context = Context::with_env(ENV.clone());
    for (name, text) in variables.texts {
        if name == "message" {
            context.add_variable_from_value("size", i64::try_from(text.len()).unwrap_or(i64::MAX));
        }
        context.add_variable_from_value(name, text);
    }
    let metadata = cel::to_value(variables.metadata).map_err(|error| error.to_string())?;
    context.add_variable_from_value("metadata", metadata);
    match program.execute(&context) {
        Ok(Value::Bool(allow)) => Ok(allow),
        Ok(other) => Err(format!("the result is a {}, not a bool", other.type_of())),
        // An error may quote values such as the message. Operators get its beginning, which names the operation.
        Err(error) => Err(error.to_string().chars().take(200).collect()),
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
