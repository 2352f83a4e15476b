//! A client that comes and goes, a store that fails, pages that end anywhere: in each run a client must see every terminal that
//! its session owes once, with all of its text.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::Value;

use super::super::sse::NativeWriter;
use super::*;
use crate::store::Terminal;
use crate::turn::frame::Frame;
use crate::turn::keys::ConversationId;
use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// What happens to a conversation. Turns are named by their numbers.
#[derive(Debug, Clone)]
enum Event {
    Arm,
    Say(i64, &'static str),
    /// One reply to these turns; the first holds it.
    Reply(Vec<i64>),
    Fail(i64),
}
use Event::{Arm, Fail, Reply, Say};

struct World {
    conversation: ConversationId,
    turns: Vec<TurnView>,
    logs: BTreeMap<TurnId, String>,
}

impl World {
    fn new() -> Self {
        World { conversation: ConversationId::new(), turns: Vec::new(), logs: BTreeMap::new() }
    }

    fn turn(&mut self, number: i64) -> &mut TurnView {
        &mut self.turns[number as usize - 1]
    }

    fn named(&self, turn: TurnId) -> &TurnView {
        self.turns.iter().find(|v| v.turn_id == turn).expect("a turn")
    }

    fn happens(&mut self, event: &Event) {
        match event {
            Arm => {
                let number = self.turns.len() as i64 + 1;
                let (turn_id, message_id) = (TurnId::new(), number.to_string());
                let conversation_id = self.conversation;
                self.turns.push(TurnView {
                    turn_id,
                    conversation_id,
                    number,
                    message_id,
                    worker: None,
                    lease_seconds: None,
                    terminal: None,
                });
            }
            Say(number, text) => {
                let turn = self.turn(*number).turn_id;
                self.logs.entry(turn).or_default().push_str(text);
            }
            Reply(numbers) => self.end(numbers, None),
            Fail(number) => self.end(&[*number], Some(Failure::new(Reason::AgentError))),
        }
    }

    fn end(&mut self, numbers: &[i64], failure: Option<Failure>) {
        let holder = self.turn(numbers[0]).turn_id;
        let mut answered = numbers.to_vec();
        answered.sort();
        let end = self.logs.get(&holder).map_or(0, String::len) as u64;
        for &number in numbers {
            let (failure, answered) = (failure.clone(), answered.clone());
            let holder_number = numbers[0];
            let terminal =
                Terminal { failure, finish_reason: None, holder, holder_number, end, answered, log_gone: false };
            self.turn(number).terminal = Some(terminal);
        }
    }

    fn page(&self, behind: i64, size: usize) -> Vec<TurnView> {
        self.turns.iter().filter(|v| v.number > behind).take(size).cloned().collect()
    }

    /// At most two characters, so that a reply is several frames.
    fn log(&self, owed: Owed) -> Span {
        let text = self.logs.get(&owed.log).map_or("", String::as_str);
        let end = owed.until.unwrap_or(text.len() as u64).min(owed.from + 2).min(text.len() as u64);
        let piece = text.get(owed.from as usize..end as usize).unwrap_or_default();
        Span::new(owed.from, if piece.is_empty() { Vec::new() } else { vec![Frame::text(piece)] })
    }

    fn answered(&self, view: &TurnView) -> Vec<(TurnId, String)> {
        let numbers = view.terminal.as_ref().map(|t| t.answered.clone()).unwrap_or_default();
        let one = |n: &i64| (self.turns[*n as usize - 1].turn_id, n.to_string());
        if numbers.len() > 1 { numbers.iter().map(one).collect() } else { Vec::new() }
    }
}

/// A client, and the progress of its present stream.
struct Client {
    progress: StreamProgress,
    cursor: String,
    text: BTreeMap<i64, String>,
    /// For each terminal that was completed: the numbers of the turns that it ends, and of the one it was shown with.
    completed: Vec<(BTreeSet<i64>, i64)>,
}

impl Client {
    fn behind(world: &World, base: i64) -> Self {
        let cursor = Cursor::after(world.conversation, base);
        let text = cursor.to_string();
        let progress = StreamProgress::new(StreamKind::Session, cursor, Box::new(NativeWriter));
        Client { progress, cursor: text, text: BTreeMap::new(), completed: Vec::new() }
    }

    /// Takes one step of the stream; false when there is none to take. Of the step's frames at most `arriving` reach it.
    fn step(&mut self, world: &World, page: usize, arriving: usize) -> bool {
        let frames = match self.progress.next() {
            Next::Page(behind) => {
                let turns = world.page(behind, page);
                let full = turns.len() == page;
                self.progress.took_page(turns, full, true);
                Vec::new()
            }
            Next::Holder { of, holder } => {
                self.progress.took_holder(of, Some(world.named(holder).clone()));
                Vec::new()
            }
            Next::Log(view, owed) => self.progress.took_log(view.turn_id, world.log(owed)),
            Next::Terminal(view) => self.progress.shows_terminal(view.turn_id, &world.answered(&view)).0,
            Next::Gone { .. } => panic!("no log is gone"),
            Next::Wait => return false,
        };
        assert!(!self.progress.is_erased());
        frames.iter().take(arriving).for_each(|frame| self.takes(world, frame));
        true
    }

    fn takes(&mut self, world: &World, frame: &Bytes) {
        let text = String::from_utf8_lossy(frame);
        let line = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).expect("a line").to_string();
        let data: Value = serde_json::from_str(&line("data: ")).expect("JSON");
        self.cursor = line("id: ");
        let number: i64 = data["messageId"].as_str().and_then(|m| m.parse().ok()).expect("a number");
        match line("event: ").as_str() {
            "text" => self.text.entry(number).or_default().push_str(data["text"].as_str().expect("text")),
            "complete" => {
                let ids = data["turnIds"].as_array().expect("ids").iter().map(|id| id.as_str().expect("an id").parse());
                let ids = ids.map(|id| world.named(id.expect("an id")).number).collect();
                self.completed.push((ids, number));
            }
            _ => {}
        }
    }

    /// The connection broke; it comes back with the last cursor that it has.
    fn comes_back(&mut self, world: &World) {
        let cursor = Cursor::parse(&self.cursor, world.conversation).expect("our own");
        self.progress = StreamProgress::new(StreamKind::Session, cursor, Box::new(NativeWriter));
    }

    /// Whether it was shown what a session behind `base` owes, and nothing besides.
    fn has_seen_all(&self, world: &World, base: i64) {
        let mut owed = BTreeMap::new();
        for view in world.turns.iter().filter(|v| v.number > base) {
            let terminal = view.terminal.as_ref().expect("ended");
            owed.entry(terminal.holder_number).or_insert((terminal.answered.iter().copied().collect(), terminal));
        }
        let mut shown: Vec<BTreeSet<i64>> = self.completed.iter().map(|(ids, _)| ids.clone()).collect();
        let mut expected: Vec<BTreeSet<i64>> = owed.values().map(|(ids, _)| ids).cloned().collect();
        shown.sort();
        expected.sort();
        assert_eq!(shown, expected, "each once");
        let mut texts = BTreeMap::new();
        for (ids, with) in &self.completed {
            let terminal = owed.values().find(|(all, _)| all == ids).expect("owed").1;
            let text = world.logs.get(&terminal.holder).cloned().unwrap_or_default();
            if !text.is_empty() {
                texts.insert(*with, text);
            }
        }
        assert_eq!(self.text, texts);
    }
}

/// What goes wrong, once, at the step of this number.
#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    StoreFails(usize),
    /// So many frames of that step arrive still.
    ConnectionBreaks(usize, usize),
}

/// One run: a session behind `base`, pages of this size, the events each before a step of its own, and a fault.
fn run(script: &[Event], before_steps: &[usize], base: i64, page: usize, fault: Fault) {
    let mut world = World::new();
    let mut events = script.iter().zip(before_steps).peekable();
    while let Some((event, _)) = events.next_if(|(_, at)| **at == 0) {
        world.happens(event);
    }
    let mut client = Client::behind(&world, base);
    for step in 0.. {
        let mut arriving = usize::MAX;
        match fault {
            Fault::StoreFails(at) if at == step => client.progress.look_anew(),
            Fault::ConnectionBreaks(at, frames) if at == step => arriving = frames,
            _ => {}
        }
        let went_on = client.step(&world, page, arriving);
        if arriving < usize::MAX {
            client.comes_back(&world);
        } else if !went_on && events.peek().is_none() {
            break;
        }
        while let Some((event, _)) = events.next_if(|(_, at)| !went_on || **at <= step + 1) {
            world.happens(event);
            match event {
                Say(..) => client.progress.go_through(),
                _ => client.progress.look_anew(),
            }
            if !went_on {
                break;
            }
        }
        assert!(step < 500, "it ends");
    }
    client.has_seen_all(&world, base);
}

fn scripts() -> Vec<Vec<Event>> {
    let armed = |n: usize, rest: Vec<Event>| std::iter::repeat_n(Arm, n).chain(rest).collect();
    vec![
        armed(3, vec![Say(1, "abc"), Reply(vec![1, 2, 3])]),
        armed(3, vec![Say(2, "abc"), Reply(vec![2, 1, 3])]),
        armed(3, vec![Say(3, "abc"), Reply(vec![3, 1]), Fail(2)]),
        armed(4, vec![Say(1, "ab"), Reply(vec![1, 3]), Reply(vec![2, 4])]),
        armed(4, vec![Fail(2), Say(4, "abc"), Reply(vec![4, 1, 3])]),
    ]
}

/// Every script, behind every base, with pages of one and of two turns, the last two events before any two steps, and one
/// fault at any step.
#[test]
fn a_reply_to_several_is_shown_once_whatever_fails() {
    const STEPS: usize = 10;
    let mut runs = 0;
    for script in scripts() {
        let turns = script.iter().filter(|e| matches!(e, Arm)).count();
        let early = script.len() - 2;
        let faults = (0..STEPS)
            .flat_map(|at| [Fault::StoreFails(at), Fault::ConnectionBreaks(at, 0), Fault::ConnectionBreaks(at, 1)]);
        for fault in faults.chain([Fault::None]) {
            for base in 0..=turns as i64 {
                for page in 1..=2 {
                    for first in 0..STEPS {
                        for second in first..STEPS {
                            let mut at = vec![0; early];
                            at.extend([first, second]);
                            run(&script, &at, base, page, fault);
                            runs += 1;
                        }
                    }
                }
            }
        }
    }
    println!("{runs} runs");
}

/// Turns that are dealt into replies and errors at random, in any order, any of them the holder.
fn any_script() -> impl Strategy<Value = Vec<Event>> {
    let replies = prop::collection::vec(0usize..4, 1..9);
    (replies, any::<u64>()).prop_map(|(reply_of, seed)| {
        let mut script = vec![Arm; reply_of.len()];
        for reply in 0..4 {
            let mut its: Vec<i64> = (1..).zip(&reply_of).filter(|(_, r)| **r == reply).map(|(n, _)| n).collect();
            let Some(turns) = std::num::NonZero::new(its.len()) else { continue };
            its.rotate_left((seed >> (8 * reply)) as usize % turns);
            script.push(Say(its[0], ["", "a", "abc", "abcdefg"][(seed >> (4 * reply)) as usize % 4]));
            match reply {
                0 => script.extend(its.into_iter().map(Fail)),
                _ => script.push(Reply(its)),
            }
        }
        script
    })
}

proptest! {
    #[test]
    fn every_terminal_is_shown_once(
        script in any_script(),
        at in prop::collection::vec(0usize..40, 40),
        base in 0i64..9,
        page in 1usize..5,
        breaks in prop::collection::vec((0usize..60, 0usize..4), 0..6),
        failures in prop::collection::vec(0usize..60, 0..6),
    ) {
        let turns = script.iter().filter(|e| matches!(e, Arm)).count();
        let base = base.min(turns as i64);
        // All are armed by the beginning; what else happens, in order.
        let mut at: Vec<usize> = at[..script.len() - turns].to_vec();
        at.sort();
        let mut world = World::new();
        script[..turns].iter().for_each(|e| world.happens(e));
        let mut events = script[turns..].iter().zip(at).peekable();
        let mut client = Client::behind(&world, base);
        for step in 0.. {
            if failures.contains(&step) {
                client.progress.look_anew();
            }
            let arriving = breaks.iter().find(|(b, _)| *b == step).map(|b| b.1);
            let went_on = client.step(&world, page, arriving.unwrap_or(usize::MAX));
            if arriving.is_some() {
                client.comes_back(&world);
            } else if !went_on && events.peek().is_none() {
                break;
            }
            if let Some((event, _)) = events.next_if(|(_, at)| !went_on || *at <= step) {
                world.happens(event);
                client.progress.look_anew();
            }
            prop_assert!(step < 1000);
        }
        client.has_seen_all(&world, base);
    }
}

/// A cursor of the holder's own stream, and one that a client made: what they mark is not shown again, on whatever page.
#[test]
fn a_follower_whose_holder_is_marked_counts_as_shown() {
    let mut world = World::new();
    [Arm, Arm, Arm, Say(1, "abc"), Reply(vec![1, 3]), Fail(2)].iter().for_each(|e| world.happens(e));
    for page in 1..4 {
        let mut client = Client::behind(&world, 0);
        client.cursor += ".1-d";
        client.comes_back(&world);
        while client.step(&world, page, usize::MAX) {}
        assert_eq!(client.completed, [([2].into(), 2)], "pages of {page}");
        assert_eq!(client.progress.cursor().base(), 3);
    }
}

/// What the stream of a reply, or of an error, comes to when its log reads short: from the second reading on, from the third
/// on, or because all was erased meanwhile.
#[test]
fn a_log_that_reads_short_is_read_again_and_then_it_is_gone() {
    #[derive(Debug, PartialEq)]
    enum End {
        Shown(String),
        Gone,
        Erased,
    }
    let ends = |failed: bool, short_readings: usize, erased: bool| {
        let mut world = World::new();
        [Arm, Say(1, "abcdef")].iter().for_each(|e| world.happens(e));
        world.happens(&if failed { Fail(1) } else { Reply(vec![1]) });
        let mut client = Client::behind(&world, 0);
        let (mut readings, mut pages) = (0, 0);
        loop {
            match client.progress.next() {
                Next::Page(behind) => {
                    pages += 1;
                    let gone = erased && pages > 1;
                    let turns = if gone { Vec::new() } else { world.page(behind, 9) };
                    client.progress.took_page(turns, false, !gone);
                }
                Next::Log(view, owed) => {
                    readings += 1;
                    // The first reading of all gives two characters.
                    let short = readings > 1 && readings <= 1 + short_readings;
                    let span = if short { Span::new(owed.from, Vec::new()) } else { world.log(owed) };
                    let frames = client.progress.took_log(view.turn_id, span);
                    frames.iter().for_each(|f| client.takes(&world, f));
                }
                Next::Terminal(view) => {
                    let (frames, _) = client.progress.shows_terminal(view.turn_id, &[]);
                    frames.iter().for_each(|f| client.takes(&world, f));
                }
                Next::Gone { noted, .. } => {
                    assert!(!noted);
                    return End::Gone;
                }
                Next::Wait if client.progress.is_erased() => return End::Erased,
                Next::Wait => return End::Shown(client.text.remove(&1).unwrap_or_default()),
                Next::Holder { .. } => panic!("no shared reply"),
            }
        }
    };
    let whole = || End::Shown("abcdef".into());
    assert_eq!((ends(false, 0, false), ends(false, 1, false)), (whole(), whole()));
    assert_eq!((ends(false, 2, false), ends(false, 9, false)), (End::Gone, End::Gone));
    assert_eq!((ends(false, 1, true), ends(true, 1, true)), (End::Erased, End::Erased));
    assert_eq!((ends(true, 1, false), ends(true, 9, false)), (whole(), End::Shown("ab".into())));
}
