//! How commands print: tables as kubectl's, JSON, and lines. What a server, a database or an agent said is printed here, or has
//! gone through [`printable`], so that a terminal obeys none of it.

use std::io::{self, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use console::StyledObject;

use super::text::{printable, printable_json};

/// How a command prints its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum PrintFormat {
    /// Columns for people.
    Table,
    /// The same with more columns.
    Wide,
    /// JSON for programs.
    Json,
}

/// A table with these headings and rows: columns without lines, as kubectl prints them.
pub(super) fn columns(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).force_no_tty();
    table.set_header(headings);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table
}

/// Prints indented JSON on stdout, with a newline at the end.
pub(super) fn print_json(value: &impl serde::Serialize) -> io::Result<()> {
    let json = serde_json::to_string_pretty(value).map_err(io::Error::from)?;
    writeln!(io::stdout(), "{}", printable_json(&json))
}

/// Prints a line of text that may be somebody else's.
pub(super) fn line(out: &mut impl Write, text: &str) -> io::Result<()> {
    writeln!(out, "{}", printable(text))
}

/// Prints a line of text that may be somebody else's behind a word of ours.
pub(super) fn labelled(out: &mut impl Write, label: &StyledObject<&str>, text: &str) -> io::Result<()> {
    writeln!(out, "{label} {}", printable(text))
}
