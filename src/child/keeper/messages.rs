//! What a keeper and the process that started it tell each other, over one socket: five bytes a message.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

/// The variable that tells a keeper the number of its control descriptor and its [`Keep`]: `NUMBER KEEP`.
pub(super) const CONTROL: &str = "LASTWORD_KEEPER";

/// When a keeper ends what its program leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// When it is told to, after the program has ended: until then others may still print.
    UntilTold,
    /// The same, but processes in a session of their own live on. They end with the process that started the keeper.
    ButDetached,
    /// As soon as the program has ended.
    WithProgram,
}

const KEEPS: [(Keep, &str); 3] =
    [(Keep::UntilTold, "until-told"), (Keep::ButDetached, "but-detached"), (Keep::WithProgram, "with-program")];

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(KEEPS.iter().find(|(keep, _)| keep == self).map_or("", |(_, name)| name))
    }
}

impl FromStr for Keep {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        KEEPS.iter().find(|(_, name)| *name == text).map(|(keep, _)| *keep).ok_or(())
    }
}

/// What a keeper is told. The end of the connection means: end everything, and yourself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Start the program.
    Start,
    /// Send this signal to the program alone.
    Signal(i32),
    /// Send it to the program's process group.
    SignalGroup(i32),
    /// End what is to be ended, the program too if it still runs.
    End,
}

/// What a keeper tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Report {
    /// The program runs.
    Started,
    /// The program cannot be started, for this error number; 0 if there is none.
    Failed(i32),
    /// The program has ended, with this wait status.
    Exited(i32),
    /// What was to be ended is gone.
    Ended,
}

/// The length of a message in bytes: a letter and a number.
pub(super) const LENGTH: usize = 5;

fn message(letter: u8, number: i32) -> [u8; LENGTH] {
    let [a, b, c, d] = number.to_le_bytes();
    [letter, a, b, c, d]
}

fn parts(bytes: [u8; LENGTH]) -> (u8, i32) {
    let [letter, a, b, c, d] = bytes;
    (letter, i32::from_le_bytes([a, b, c, d]))
}

impl Order {
    pub(super) fn bytes(self) -> [u8; LENGTH] {
        match self {
            Order::Start => message(b's', 0),
            Order::Signal(signal) => message(b'p', signal),
            Order::SignalGroup(signal) => message(b'g', signal),
            Order::End => message(b'e', 0),
        }
    }

    pub(super) fn parse(bytes: [u8; LENGTH]) -> Option<Order> {
        match parts(bytes) {
            (b's', _) => Some(Order::Start),
            (b'p', signal) => Some(Order::Signal(signal)),
            (b'g', signal) => Some(Order::SignalGroup(signal)),
            (b'e', _) => Some(Order::End),
            _ => None,
        }
    }
}

impl Report {
    pub(super) fn bytes(self) -> [u8; LENGTH] {
        match self {
            Report::Started => message(b'S', 0),
            Report::Failed(number) => message(b'F', number),
            Report::Exited(status) => message(b'X', status),
            Report::Ended => message(b'E', 0),
        }
    }

    /// The next one; an error at the end of the connection, and at what is no report.
    pub(super) fn read(mut from: impl Read) -> io::Result<Report> {
        let mut bytes = [0; LENGTH];
        from.read_exact(&mut bytes)?;
        match parts(bytes) {
            (b'S', _) => Ok(Report::Started),
            (b'F', number) => Ok(Report::Failed(number)),
            (b'X', status) => Ok(Report::Exited(status)),
            (b'E', _) => Ok(Report::Ended),
            _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_their_bytes() {
        for order in [Order::Start, Order::Signal(15), Order::SignalGroup(9), Order::End] {
            assert_eq!(Order::parse(order.bytes()), Some(order));
        }
        for report in [Report::Started, Report::Failed(2), Report::Exited(-1), Report::Ended] {
            assert_eq!(Report::read(&report.bytes()[..]).expect("a report"), report);
        }
        assert_eq!(Order::parse([0; LENGTH]), None);
        assert!(Report::read(&[b'E', 0][..]).is_err());
        for (keep, _) in KEEPS {
            assert_eq!(keep.to_string().parse(), Ok(keep));
        }
    }
}
