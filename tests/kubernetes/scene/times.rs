//! How long it takes from a fault to the client's terminal, beside the API server's own news of the pod.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::{Duration, Instant};

/// What a row measured, one entry a repetition.
#[derive(Default)]
pub struct Times {
    client: Vec<Duration>,
    news: Vec<Duration>,
}

impl Times {
    /// One repetition: when the fault was made, when the client was told, and when the API server told of the pod.
    pub fn note(&mut self, fault: Instant, client: Instant, news: Option<Instant>) {
        self.client.push(client.saturating_duration_since(fault));
        self.news.extend(news.map(|at| at.saturating_duration_since(fault)));
    }

    pub fn client_p50(&self) -> Option<Duration> {
        median(&self.client)
    }

    pub fn news_p50(&self) -> Option<Duration> {
        median(&self.news)
    }

    /// Adds the row to the table that `run` prints at its end.
    pub fn tell(&self, row: &str, reason: &str) {
        let shown =
            |time: Option<Duration>| time.map_or("-".to_owned(), |t| format!("{:.1}", t.as_secs_f64() * 1000.0));
        let (client, news) = (shown(self.client_p50()), shown(self.news_p50()));
        tell("fault", &format!("{row:<44} {reason:<18} {client:>10} {news:>10} {:>3}", self.client.len()));
    }
}

/// Adds a line to what `run` prints at its end; `LASTWORD_KUBERNETES_TOLD` names the file.
pub fn tell(row: &str, line: &str) {
    println!("{row}: {line}");
    let Some(path) = std::env::var_os("LASTWORD_KUBERNETES_TOLD") else { return };
    let file = OpenOptions::new().create(true).append(true).open(path);
    // One write: rows end at the same time.
    file.and_then(|mut f| f.write_all(format!("{row}: {line}\n").as_bytes())).expect("the file can be written");
}

pub fn median(times: &[Duration]) -> Option<Duration> {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied()
}
