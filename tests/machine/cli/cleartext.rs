//! What would send a credential to another machine in cleartext refuses, and names the flag that allows it.

use std::process::Stdio;

use tokio::process::Command;

use super::finish;
use crate::support::LASTWORD;

/// No host of this name exists (RFC 6761), so that what is not refused fails at once, and otherwise.
const NOWHERE: &str = "nowhere.invalid";

async fn run(args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(LASTWORD);
    let directory = tempfile::tempdir().unwrap();
    command.args(args).env_clear().current_dir(directory.path()).env("XDG_CONFIG_HOME", directory.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let (code, _, stderr) = finish(command.spawn().unwrap()).await;
    (code, stderr)
}

async fn refuses(args: &[&str]) {
    let (code, stderr) = run(args).await;
    assert!(code == Some(1) && stderr.contains("--allow-cleartext"), "{args:?}: {code:?} {stderr}");
}

const GATEWAY: [&str; 5] = ["gateway", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
const CONTROLLER: [&str; 5] = ["controller", "--admin-listen", "127.0.0.1:0", "--injector-image", "i"];

#[tokio::test]
async fn a_database_of_another_machine_needs_tls() {
    for mode in ["", "?sslmode=disable", "?sslmode=prefer", "?sslmode=allow"] {
        let url = format!("postgres://u:secret@{NOWHERE}/d{mode}");
        for role in [&["migrate"][..], &["keys", "list"], &["dev"], &GATEWAY, &CONTROLLER] {
            let mut args = [role, &["--database-url", &url]].concat();
            if role[0] == "controller" {
                args.extend(["--worker-gateway", "https://workers:8081"]);
            }
            if role[0] == "dev" {
                args.extend([
                    "--listen",
                    "127.0.0.1:0",
                    "--worker-listen",
                    "127.0.0.1:0",
                    "--admin-listen",
                    "127.0.0.1:0",
                ]);
            }
            if role[0] == "gateway" {
                args.extend(["--worker-listen", "127.0.0.1:0"]);
            }
            refuses(&args).await;
        }
        refuses(&["init", "--database-url", &url]).await;
        let direct = ["migrate", "--database-url", "postgres://127.0.0.1:1/d", "--database-direct-url", &url];
        refuses(&direct).await;
    }
    for (mode, flag) in [("?sslmode=require", None), ("?sslmode=verify-full", None), ("", Some("--allow-cleartext"))] {
        let url = format!("postgres://u:secret@{NOWHERE}/d{mode}");
        for role in [&["migrate"][..], &["init"]] {
            let args: Vec<&str> = role.iter().copied().chain(["--database-url", &url]).chain(flag).collect();
            let (code, stderr) = run(&args).await;
            assert!(code == Some(1) && !stderr.contains("cleartext"), "{args:?}: {stderr}");
        }
    }
}

#[tokio::test]
async fn a_worker_port_for_other_machines_needs_tls() {
    let here = ["--database-url", "postgres://127.0.0.1:1/d"];
    for address in ["0.0.0.0:0", "[::]:0"] {
        refuses(&[&GATEWAY[..], &here, &["--worker-listen", address]].concat()).await;
        let dev = ["dev", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--worker-listen", address];
        refuses(&[&dev[..], &here].concat()).await;
    }
    refuses(&[&CONTROLLER[..], &here, &["--worker-gateway", "https://a:8081,http://b:8081"]].concat()).await;
}

#[tokio::test]
async fn a_key_is_sent_to_another_machine_by_tls_alone() {
    let gateway = format!("http://{NOWHERE}");
    for command in [&["chat", "--agent", "a", "x"][..], &["turns", "list"]] {
        let of = |more: &[&'static str], url: &str| -> Vec<String> {
            let first = command[0].to_owned();
            let flags = ["--gateway", url, "--retry-seconds", "0"].map(str::to_owned);
            let flags = flags.into_iter().chain(more.iter().map(|word| word.to_string()));
            std::iter::once(first).chain(flags).chain(command[1..].iter().map(|word| word.to_string())).collect()
        };
        let words = of(&["--api-key", "lwk_x"], &gateway);
        refuses(&words.iter().map(String::as_str).collect::<Vec<_>>()).await;
        for args in [
            of(&["--api-key", "lwk_x", "--allow-cleartext"], &gateway),
            of(&["--api-key", "lwk_x"], &gateway.replace("http:", "https:")),
            of(&[], &gateway),
        ] {
            let (code, stderr) = run(&args.iter().map(String::as_str).collect::<Vec<_>>()).await;
            assert!(code == Some(1) && stderr.contains("cannot reach"), "{args:?}: {stderr}");
        }
    }
}
