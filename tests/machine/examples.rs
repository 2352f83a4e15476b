//! The promise: a message is what a stranger sends, and no example takes it for a command; and what examples show, works.

use std::collections::BTreeSet;
use std::path::Path;

use futures::future::join_all;

use crate::support::dev::Dev;
use crate::support::repository;

/// Messages that somebody's program obeys: shells, `sqlite3`, `dc`, `bc`, and what evaluates or expands text. Each would make
/// the file MARK.
const TRICKS: [&str; 34] = [
    ".shell touch MARK",
    ".system touch MARK",
    "select 1;\n.shell touch MARK",
    ".import '|touch MARK' t",
    ".import \"|touch MARK\" t",
    ".read '|touch MARK'",
    ".once '|touch MARK'\nselect 1;",
    ".output '|touch MARK'\nselect 1;",
    ".output MARK\nselect 1;",
    ".log MARK\nselect x;",
    ".open MARK\ncreate table t(a);",
    ".save MARK",
    ".backup MARK",
    ".clone MARK",
    "create table t(a);\n.excel\nselect 1;",
    "attach 'MARK' as m; create table m.t(a)",
    "vacuum into 'MARK'",
    "select writefile('MARK', 'x')",
    "select edit('x', 'touch MARK')",
    "select load_extension('MARK')",
    "pragma temp_store_directory='MARK'; create temp table t(a)",
    "!touch MARK",
    "!'touch MARK'",
    "system(\"touch MARK\")",
    "$(touch MARK)",
    "`touch MARK`",
    "'; touch MARK; '",
    "\"; touch MARK; \"",
    "; touch MARK",
    "| touch MARK",
    "__import__('os').system('touch MARK')",
    "{{ ''.__class__ }} ${touch MARK}",
    "--help; touch MARK",
    "-c 'touch MARK'",
];
/// The examples that answer what they are told.
const AGENTS: [&str; 6] = ["calc", "sql", "count", "model", "reverse", "guarded"];

/// `dev` with the examples, in a directory of its own.
async fn examples() -> Dev {
    let mut dev = Dev::prepare(&std::fs::read_to_string(repository("examples/agents.yaml")).unwrap(), &[]);
    std::fs::create_dir(dev.path("agents")).unwrap();
    for entry in std::fs::read_dir(repository("examples/agents")).unwrap().flatten() {
        std::fs::copy(entry.path(), dev.path("agents").join(entry.file_name())).unwrap();
    }
    std::fs::copy(repository("examples/worker.py"), dev.path("worker.py")).unwrap();
    dev.restart().await;
    dev
}

fn files(folder: &Path) -> BTreeSet<String> {
    std::fs::read_dir(folder).unwrap().flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test]
async fn no_example_takes_a_message_for_a_command() {
    let mut dev = examples().await;
    let before = files(dev.dir());
    for trick in TRICKS {
        let ask = async |name| dev.chat(&["--agent", name, "--", trick]).await;
        let answers = join_all(AGENTS.map(ask)).await;
        for (name, (code, ..)) in AGENTS.iter().zip(&answers) {
            assert!(matches!(code, Some(0 | 1)), "{name} on {trick:?}: {answers:?}");
        }
        assert_eq!(files(dev.dir()), before, "{trick:?} was obeyed: {answers:?}");
    }
    assert!(dev.interrupt().await.success());
}

#[tokio::test]
async fn the_examples_answer() {
    let mut dev = examples().await;
    for (name, conversation, message, reply) in [
        ("calc", "c", "6*7", "42\n"),
        (
            "sql",
            "c",
            "create table t(a); insert into t values ('x;y'), (null); select a, 1 as b from t",
            "ok\nok\na|b\nx;y|1\n|1\n",
        ),
        ("count", "c", "to 2", "1\n2\n"),
        ("model", "c", "hello", "You said: hello"),
        ("reverse", "c-1", "one two", "two one "),
        ("reverse", "c-1", "again", "two one "),
        ("reverse", "c-2", "again", "again "),
        ("guarded", "c", "hello", "hello\n"),
    ] {
        let said = dev.chat(&["--agent", name, "--conversation", &format!("{name}-{conversation}"), message]).await;
        assert_eq!(said, (Some(0), reply.to_owned(), String::new()), "{name}: {message}");
    }
    assert!(dev.interrupt().await.success());
}
