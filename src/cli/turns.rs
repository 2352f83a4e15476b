//! `lastword turns`: lists, shows and cancels turns, through the gateway.

use std::io::{self, Write};
use std::process::ExitCode;

use comfy_table::Table;
use console::style;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::args::ClientArgs;
use super::client::ApiClient;
use super::error::CliError;
use super::print::{self, PrintFormat, columns, print_json};
use super::text::{age, between, one_line, printable, took};
use super::types::{TurnFilter, TurnRecord};
use crate::turn::cause::rule::TEXT_GONE;
use crate::turn::keys::TurnId;

/// How many records one call asks for at most: the gateway gives no more.
const PAGE: u32 = 100;

/// See what became of turns, and cancel them.
#[derive(Debug, Clone, clap::Args)]
pub struct TurnsArgs {
    #[command(flatten)]
    pub gateway: ClientArgs,
    #[command(subcommand)]
    pub command: TurnsCommand,
}

/// What to do with turns.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum TurnsCommand {
    /// List turns, newest first (needs an operator's key).
    List(ListArgs),
    /// Show all that is known of turns.
    Show {
        /// The turns' ids.
        #[arg(required = true, value_name = "TURN")]
        turns: Vec<TurnId>,
        /// How to print them.
        #[arg(long, short, env = "LASTWORD_OUTPUT", value_name = "FORMAT", default_value = "table")]
        output: PrintFormat,
    },
    /// Cancel turns that have no last word yet.
    Cancel {
        /// The turns' ids.
        #[arg(required = true, value_name = "TURN")]
        turns: Vec<TurnId>,
        /// How to print what they are now.
        #[arg(long, short, env = "LASTWORD_OUTPUT", value_name = "FORMAT", default_value = "table")]
        output: PrintFormat,
    },
}

/// Which turns to list.
#[derive(Debug, Clone, clap::Args)]
pub struct ListArgs {
    /// Only this agent's.
    #[arg(long, env = "LASTWORD_AGENT", value_name = "NAME")]
    pub agent: Option<String>,
    /// Only this conversation's.
    #[arg(long, env = "LASTWORD_CONVERSATION", value_name = "NAME")]
    pub conversation: Option<String>,
    /// Only this user's.
    #[arg(long, env = "LASTWORD_USER", value_name = "NAME")]
    pub user: Option<String>,
    /// Only those in this phase.
    #[arg(long, env = "LASTWORD_PHASE", value_name = "PHASE", ignore_case = true,
          value_parser = ["Armed", "Running", "Succeeded", "Failed"])]
    pub phase: Option<String>,
    /// At most so many.
    #[arg(long, env = "LASTWORD_LIMIT", value_name = "COUNT", default_value_t = 50,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// Only those older than this turn.
    #[arg(long, env = "LASTWORD_BEFORE", value_name = "TURN")]
    pub before: Option<TurnId>,
    /// How to print them.
    #[arg(long, short, env = "LASTWORD_OUTPUT", value_name = "FORMAT", default_value = "table")]
    pub output: PrintFormat,
}

/// Runs `lastword turns`.
pub async fn run(args: TurnsArgs) -> Result<ExitCode, CliError> {
    let client = args.gateway.client()?;
    match args.command {
        TurnsCommand::List(list) => self::list(&client, list).await?,
        TurnsCommand::Show { turns, output } => {
            let mut records = Vec::with_capacity(turns.len());
            for turn in turns {
                records.push(client.turn(turn).await?);
            }
            show(&records, output)?;
        }
        TurnsCommand::Cancel { turns, output } => {
            for turn in turns {
                cancelled(&client.cancel(turn).await?, output)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(client: &ApiClient, args: ListArgs) -> Result<(), CliError> {
    let mut query = TurnFilter {
        agent: args.agent,
        conversation: args.conversation,
        user: args.user,
        phase: args.phase.as_deref().map(canonical),
        limit: None,
        before: args.before.map(|turn| turn.to_string()),
    };
    let mut records: Vec<TurnRecord> = Vec::new();
    let mut next = None;
    while records.len() < args.limit as usize {
        query.limit = Some((args.limit - records.len() as u32).min(PAGE));
        let page = client.list(&query).await?;
        let came = page.turns.len();
        records.extend(page.turns);
        next = page.next;
        match next {
            Some(before) if came > 0 => query.before = Some(before.to_string()),
            _ => break,
        }
    }
    records.truncate(args.limit as usize);
    if args.output == PrintFormat::Json {
        return Ok(print_json(&serde_json::json!({"turns": records, "next": next}))?);
    }
    if records.is_empty() {
        eprintln!("no turns");
        return Ok(());
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{}", table(&records, args.output == PrintFormat::Wide, OffsetDateTime::now_utc()).trim_fmt())?;
    drop(out);
    if let Some(before) = next {
        eprintln!(
            "{}",
            style(format!("there are older ones: --before {before}, or a larger --limit")).for_stderr().dim()
        );
    }
    Ok(())
}

/// The phase's name as the API writes it, whatever the case in which it was typed.
fn canonical(phase: &str) -> String {
    let mut phase = phase.to_ascii_lowercase();
    phase[..1].make_ascii_uppercase();
    phase
}

fn table(records: &[TurnRecord], wide: bool, now: OffsetDateTime) -> Table {
    let mut headings = vec!["TURN", "AGENT", "CONVERSATION", "PHASE", "REASON", "AGE"];
    if wide {
        headings.extend(["TOOK", "USER", "PLATFORM", "WORKER GROUP", "WORKER", "MESSAGE"]);
    }
    let rows = records.iter().map(|record| row(record, wide, now));
    columns(&headings, rows)
}

fn row(record: &TurnRecord, wide: bool, now: OffsetDateTime) -> Vec<String> {
    let reason = record.error.as_ref().map_or("", |error| error.reason.as_str());
    let mut row = vec![
        record.turn_id.to_string(),
        one_line(&record.agent, 60),
        one_line(&record.conversation, 40),
        one_line(&record.phase, 20),
        one_line(reason, 40),
        age(between(record.armed_at, now)),
    ];
    if wide {
        let optional = |value: &Option<String>| one_line(value.as_deref().unwrap_or_default(), 60);
        row.push(record.ended_at.map(|ended| took(between(record.armed_at, ended))).unwrap_or_default());
        row.extend([&record.user, &record.platform, &record.worker_group, &record.worker].map(optional));
        row.push(one_line(record.message.as_deref().unwrap_or_default(), 40));
    }
    row.into_iter().map(|cell| if cell.is_empty() { "-".to_string() } else { cell }).collect()
}

fn show(records: &[TurnRecord], output: PrintFormat) -> Result<(), CliError> {
    if output == PrintFormat::Json {
        return Ok(match records {
            [record] => print_json(record),
            _ => print_json(&records),
        }?);
    }
    let mut out = io::stdout().lock();
    for (at, record) in records.iter().enumerate() {
        if at > 0 {
            writeln!(out)?;
        }
        describe(&mut out, record)?;
    }
    Ok(())
}

/// Prints a record as `kubectl describe` prints an object.
fn describe(out: &mut impl Write, record: &TurnRecord) -> io::Result<()> {
    let mut line = |name: &str, value: &str| match value {
        "" => Ok(()),
        value => writeln!(out, "{:<14} {}", format!("{name}:"), printable(value)),
    };
    let optional = |value: &Option<String>| value.clone().unwrap_or_default();
    line("Turn", &record.turn_id.to_string())?;
    line("Message ID", &record.message_id)?;
    line("Organization", &record.organization)?;
    line("Conversation", &format!("{} (turn {} of it)", record.conversation, record.number))?;
    line("Agent", &record.agent)?;
    line("Worker group", &optional(&record.worker_group))?;
    line("User", &optional(&record.user))?;
    line("Platform", &optional(&record.platform))?;
    line("Worker", &optional(&record.worker))?;
    line("Phase", &record.phase)?;
    line("Armed", &instant(record.armed_at))?;
    if let Some(claimed) = record.claimed_at {
        line("Claimed", &format!("{} (waited {})", instant(claimed), took(between(record.armed_at, claimed))))?;
    }
    if let Some(ended) = record.ended_at {
        let ran = took(between(record.claimed_at.unwrap_or(record.armed_at), ended));
        line("Ended", &format!("{} (after {ran})", instant(ended)))?;
    }
    if let Some(error) = &record.error {
        line("Reason", &error.reason)?;
        line("Retryable", if error.retryable { "yes" } else { "no" })?;
    }
    if let Some(reason) = &record.finish_reason {
        line("Model stopped", reason)?;
    }
    block(out, "Message", record.message.as_deref())?;
    block(out, "Reply", record.reply.as_ref().map(|reply| reply.text.as_deref().unwrap_or(TEXT_GONE)))?;
    if let Some(reply) = record.reply.as_ref().filter(|reply| reply.turn_ids.len() > 1) {
        let turns: Vec<_> = reply.turn_ids.iter().map(TurnId::to_string).collect();
        block(out, "Answers", Some(&turns.join("\n")))?;
    }
    block(out, "Error", record.error.as_ref().map(|error| error.message.as_str()))?;
    block(out, "Detail", record.error.as_ref().and_then(|error| error.detail.as_deref()))?;
    let superseded = record.superseded.as_ref().and_then(|late| serde_json::to_string_pretty(late).ok());
    block(out, "Superseded", superseded.as_deref())
}

/// Prints a heading and indented lines, or nothing if there is no text.
fn block(out: &mut impl Write, name: &str, text: Option<&str>) -> io::Result<()> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(()) };
    writeln!(out, "{name}:")?;
    printable(text).lines().try_for_each(|line| writeln!(out, "  {line}"))
}

fn instant(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}

fn cancelled(record: &TurnRecord, output: PrintFormat) -> Result<(), CliError> {
    if output == PrintFormat::Json {
        return Ok(print_json(record)?);
    }
    let turn = record.turn_id;
    let said = match &record.error {
        Some(error) if error.reason == "Cancelled" => format!("turn {turn} is cancelled"),
        Some(error) => format!("turn {turn} had ended before: {} ({})", record.phase, error.reason),
        None if record.is_open() => format!("turn {turn} is still {}", record.phase),
        None => format!("turn {turn} had ended before: {}", record.phase),
    };
    Ok(print::line(&mut io::stdout(), &said)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(phase: &str) -> TurnRecord {
        serde_json::from_value(serde_json::json!({
            "turnId": "01900000-0000-7000-8000-000000000001", "messageId": "m", "organization": "default",
            "conversation": "c", "number": 2, "agent": "bc", "phase": phase, "user": "local", "message": "6*7",
            "armedAt": "2026-01-01T00:00:00Z", "claimedAt": "2026-01-01T00:00:01.5Z", "endedAt": "2026-01-01T00:01:40Z"
        }))
        .unwrap()
    }

    fn failed() -> TurnRecord {
        let error = serde_json::json!({"reason": "OutOfMemory", "message": "m", "retryable": true, "detail": "a\nb"});
        TurnRecord { error: Some(serde_json::from_value(error).unwrap()), ..record("Failed") }
    }

    #[test]
    fn columns() {
        let now = record("").armed_at + time::Duration::minutes(5);
        let text = table(&[failed(), record("Succeeded")], false, now).trim_fmt();
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["TURN", "AGENT", "CONVERSATION", "PHASE", "REASON", "AGE"]);
        assert_eq!(rows[1][1..], ["bc", "c", "Failed", "OutOfMemory", "5m"]);
        assert_eq!(rows[2][1..], ["bc", "c", "Succeeded", "-", "5m"]);
        assert!(text.starts_with("TURN "), "{text:?}");
    }

    #[test]
    fn a_description() {
        let mut out = Vec::new();
        describe(&mut out, &failed()).unwrap();
        let text = String::from_utf8(out).unwrap();
        for part in
            ["(waited 1.5s)", "(after 98s)", "Reason:        OutOfMemory\n", "Detail:\n  a\n  b\n", "Message:\n  6*7\n"]
        {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        assert!(!text.contains("Reply"), "{text}");
    }

    #[test]
    fn phases_are_typed_in_any_case() {
        assert_eq!(canonical("rUNNING"), "Running");
    }
}
