//! Histories from outside: what Jepsen or a test harness of another store recorded, judged by the same
//! search as the simulator's own ([`crate::checker::linearizability`]).
//!
//! A history is one map per line, EDN or JSON (told apart by the first key), or one vector of them:
//!
//! ```text
//! {:process 0 :type :invoke :f :write :value 3}
//! {:process 1 :type :invoke :f :read  :value nil}
//! {:process 0 :type :ok     :f :write :value 3}
//! {:process 1 :type :ok     :f :read  :value 3}
//! ```
//!
//! - `:ok` happened between its `:invoke` and here. `:fail` surely did not happen. `:info`, or no completion
//!   at all: unknown; it may happen at any time after its `:invoke`, or never. Such a read is dropped.
//! - What a write sets is what its `:invoke` says, what a read saw is what its `:ok` says.
//! - A number and a string of its digits are the same value. In a map, absence and `""` are the same.
//! - Operations of the process `:nemesis` are skipped, and so are keys of the map that mean nothing here.
//!
//! A failing history is cut to its shortest failing prefix: every beginning of a linearizable history is
//! linearizable, if what is unanswered by then counts as unknown, so halving finds where it broke.

use crate::checker::edn::{BadInput, Form, Reader, Syntax};
use crate::checker::linearizability::{Operation, Verdict, check_texts};
use crate::checker::model::{Action, Texts, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// What the store under test claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Model {
    /// A register, or one for each `:key`: `:read`, `:write 3`, `:cas [3 4]`; nil at first.
    Register,
    /// A map of texts: `:get`, `:put`, `:append`, with `:key` and `:value` or with `:value ["key" "value"]`.
    Map,
}

/// Which object of the history; ordered as one would list them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// The only register.
    Only,
    Number(i64),
    Text(String),
}

impl Key {
    fn new(text: String) -> Self {
        text.parse().map_or(Self::Text(text), Self::Number)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Only => write!(f, "the register"),
            Self::Number(number) => write!(f, "key {number}"),
            Self::Text(text) => write!(f, "key {text:?}"),
        }
    }
}

/// A value as it was printed; `None` is nil.
type Content = Option<String>;

/// What was asked.
#[derive(Clone, Debug)]
enum Call {
    Read,
    Write(Content),
    Cas(Content, Content),
    Append(String),
}

/// What came of it.
#[derive(Clone, Debug)]
enum Outcome {
    /// It happened; a read saw this.
    Ok(Content),
    Failed,
    Unknown,
}

/// The point where something was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    /// Which of the recorded events, from 0.
    event: u64,
    /// Where in the file.
    line: usize,
}

/// One operation: a call and, perhaps, its completion.
#[derive(Clone, Debug)]
struct Recorded {
    process: i64,
    /// How the file names it.
    f: String,
    call: Call,
    called: Point,
    completed: Option<(Point, Outcome)>,
}

impl Recorded {
    /// What is known of it when the history is cut after the event `last`.
    fn outcome(&self, last: u64) -> &Outcome {
        let known = self.completed.as_ref().filter(|(at, _)| at.event <= last);
        known.map_or(&Outcome::Unknown, |(_, outcome)| outcome)
    }

    /// When it was answered for sure, if not after the event `last`.
    fn answered(&self, last: u64) -> Option<Point> {
        let is_ok = matches!(self.outcome(last), Outcome::Ok(_));
        self.completed.as_ref().filter(|_| is_ok).map(|(at, _)| *at)
    }

    /// As the search takes it; `None` if it tells nothing.
    fn operation(&self, last: u64, texts: &mut Texts) -> Option<Operation> {
        let mut number = |content: &Content| -> Value { content.as_ref().map(|text| texts.number(text)) };
        let action = match (&self.call, self.outcome(last)) {
            (_, Outcome::Failed) | (Call::Read, Outcome::Unknown) => return None,
            (Call::Read, Outcome::Ok(seen)) => Action::Read(number(seen)),
            (Call::Write(new), _) => Action::Write(number(new)),
            (Call::Cas(expected, new), _) => Action::Cas { expected: number(expected), new: number(new) },
            (Call::Append(piece), _) => Action::Append(texts.number(piece)),
        };
        let answered = self.answered(last).map(|at| at.event);
        // Who called is told from the record, not from what the search shows.
        Some(Operation { client: 0, called: self.called.event, answered, action })
    }

    /// In words, as known after the event `last`.
    fn describe(&self, last: u64) -> String {
        let show = |content: &Content| content.clone().map_or("nil".to_owned(), |text| format!("{text:?}"));
        let asked = match &self.call {
            Call::Read => String::new(),
            Call::Write(new) => format!(" {}", show(new)),
            Call::Cas(expected, new) => format!(" {} to {}", show(expected), show(new)),
            Call::Append(piece) => format!(" {piece:?}"),
        };
        let from = self.called.line;
        let (to, came) = match (self.outcome(last), &self.completed) {
            (Outcome::Ok(seen), Some((at, _))) if matches!(self.call, Call::Read) => {
                (at.line.to_string(), format!("saw {}", show(seen)))
            }
            (Outcome::Ok(_), Some((at, _))) => (at.line.to_string(), "ok".to_owned()),
            _ => ("?".to_owned(), "unknown".to_owned()),
        };
        format!("lines {from} to {to}: process {} {}{asked}, {came}", self.process, self.f)
    }
}

/// A history that was read, key by key.
#[derive(Clone, Debug)]
pub struct History {
    keys: BTreeMap<Key, Vec<Recorded>>,
}

/// What was found out about a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Every key is linearizable.
    Linearizable,
    /// The first key that isn't, and the operations around where it fails.
    NotLinearizable(String),
    /// No key is known to fail, but these aren't known to pass.
    Unknown(String),
}

/// Steps of the search between two looks at the clock.
const STEPS: u64 = 20_000;

/// What the search of one key may remember, in words of 64 bits: 1 GiB.
const REMEMBERED_MAX: usize = 1 << 27;

/// Operations that are shown of a failing prefix.
const SHOWN_MAX: usize = 24;

impl History {
    /// Reads a history.
    ///
    /// # Errors
    /// The first line that isn't understood, and what was expected there.
    pub fn read(text: &str, model: Model) -> Result<Self, BadInput> {
        let mut reader = Reader::new(text, syntax_of(text));
        let is_vector = reader.skip('[')?;
        let mut recorder = Recorder { model, events: 0, calls: Vec::new(), open: BTreeMap::new() };
        loop {
            if is_vector && reader.skip(']')? {
                match reader.next_form()? {
                    None => return recorder.finish(),
                    Some((line, form)) => {
                        let detail = format!("expected nothing after the vector of operations, found {form}");
                        return Err(BadInput::new(line, detail));
                    }
                }
            }
            match reader.next_form()? {
                Some((line, form)) => recorder.record(line, &form)?,
                None if is_vector => {
                    let line = text.lines().count().max(1);
                    return Err(BadInput::new(line, "expected ']' after the last operation"));
                }
                None => return recorder.finish(),
            }
        }
    }

    /// How many operations of how many keys, and of how many the outcome is unknown.
    pub fn summary(&self) -> String {
        let all = || self.keys.values().flatten();
        let unknown = all().filter(|recorded| matches!(recorded.outcome(u64::MAX), Outcome::Unknown)).count();
        let (count, keys) = (all().count(), self.keys.len());
        format!("operations: {count}, keys: {keys}, unknown outcomes: {unknown}")
    }

    /// Judges the history, in about this time. Every key gets an equal share of what is left of it.
    pub fn judge(&self, limit: Duration) -> Judgement {
        let started = Instant::now();
        let mut undecided = Vec::new();
        for (at, (key, calls)) in self.keys.iter().enumerate() {
            let elapsed = started.elapsed();
            let keys_left = u32::try_from(self.keys.len() - at).unwrap_or(u32::MAX);
            let share = elapsed + limit.saturating_sub(elapsed) / keys_left;
            match verdict(calls, u64::MAX, &|| started.elapsed() < share) {
                Verdict::Linearizable => {}
                Verdict::Unknown => undecided.push(format!("{key} ({} operations)", calls.len())),
                Verdict::NotLinearizable { .. } => {
                    let explained = explain(calls, &|| started.elapsed() < limit);
                    return Judgement::NotLinearizable(format!("{key}: {explained}"));
                }
            }
        }
        if undecided.is_empty() {
            return Judgement::Linearizable;
        }
        let (count, keys) = (undecided.len(), self.keys.len());
        undecided.truncate(8);
        let first = undecided.join(", ");
        Judgement::Unknown(format!("no verdict on {count} of {keys} in the time and memory given: {first}"))
    }
}

/// JSON begins with a string for a key, in a vector or not.
fn syntax_of(text: &str) -> Syntax {
    let trim = |text: &'_ str| text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']).to_owned();
    // The beginning is enough, and cheap to copy.
    let beginning = trim(&text.chars().take(4096).collect::<String>());
    let first = trim(beginning.strip_prefix('[').unwrap_or(&beginning));
    match first.strip_prefix('{') {
        Some(inside) if trim(inside).starts_with('"') => Syntax::Json,
        _ => Syntax::Edn,
    }
}

/// Whether what was recorded until the event `last` is linearizable, as far as time allows.
fn verdict(calls: &[Recorded], last: u64, has_time: &dyn Fn() -> bool) -> Verdict {
    let mut texts = Texts::default();
    let until = calls.iter().filter(|recorded| recorded.called.event <= last);
    let operations: Vec<_> = until.filter_map(|recorded| recorded.operation(last, &mut texts)).collect();
    check_texts(&operations, texts, STEPS, &mut |words| words < REMEMBERED_MAX && has_time())
}

/// The shortest failing prefix of a failing history, in words.
fn explain(calls: &[Recorded], has_time: &dyn Fn() -> bool) -> String {
    let mut answers: Vec<Point> = calls.iter().filter_map(|recorded| recorded.answered(u64::MAX)).collect();
    answers.sort_unstable();
    assert!(!answers.is_empty(), "{} operations without an answer fail", calls.len());
    let (mut low, mut high, mut is_shortest) = (0, answers.len() - 1, true);
    while low < high {
        let middle = low + (high - low) / 2;
        match verdict(calls, answers[middle].event, has_time) {
            Verdict::NotLinearizable { .. } => high = middle,
            Verdict::Linearizable => low = middle + 1,
            Verdict::Unknown => {
                is_shortest = false;
                low = middle + 1;
            }
        }
    }
    describe(calls, answers[high], is_shortest)
}

/// A failing prefix that ends with this answer, in words.
fn describe(calls: &[Recorded], broken: Point, is_shortest: bool) -> String {
    let last = broken.event;
    let mut prefix: Vec<&Recorded> = calls.iter().filter(|recorded| recorded.called.event <= last).collect();
    let (count, all, line) = (prefix.len(), calls.len(), broken.line);
    // What surely didn't happen explains nothing, and a read that saw nothing neither.
    prefix.retain(|recorded| recorded.operation(last, &mut Texts::default()).is_some());
    // By the last that was recorded of each, so that the broken one, which comes last, is always shown.
    prefix.sort_by_key(|recorded| recorded.answered(last).unwrap_or(recorded.called));
    let left_out = prefix.len().saturating_sub(SHOWN_MAX);
    let mut shown = prefix.split_off(left_out);
    shown.sort_by_key(|recorded| recorded.called);
    let which = if is_shortest { "the shortest failing prefix" } else { "a failing prefix" };
    let mut text = format!("no order of its operations explains line {line}\n");
    text.push_str(&format!("{which} ends there, with {count} of {all} operations:"));
    if left_out > 0 {
        text.push_str(&format!("\n  ({left_out} earlier ones)"));
    }
    for recorded in shown {
        let mark = if recorded.answered(last) == Some(broken) { "  <-- not explained" } else { "" };
        text.push_str(&format!("\n  {}{mark}", recorded.describe(last)));
    }
    text
}

/// Puts calls and completions together.
struct Recorder {
    model: Model,
    events: u64,
    calls: Vec<(Key, Recorded)>,
    /// The call, by its place in `calls`, that each process waits for.
    open: BTreeMap<i64, usize>,
}

impl Recorder {
    fn record(&mut self, line: usize, form: &Form) -> Result<(), BadInput> {
        let bad = |expected: String| BadInput::new(line, expected);
        if !matches!(form, Form::Map(_)) {
            let example = "{:process 0 :type :invoke :f :read :value nil}";
            return Err(bad(format!("expected an operation such as {example}, found {form}")));
        }
        let process = field(form, "process", line)?;
        if process.name() == Some("nemesis") {
            return Ok(());
        }
        let number = process.name().and_then(|name| name.parse().ok());
        let process: i64 =
            number.ok_or_else(|| bad(format!("expected a number as :process, found {process}")))?;
        let kind = field(form, "type", line)?;
        let f = field(form, "f", line)?;
        let f = f.name().ok_or_else(|| bad(format!("expected a name as :f, found {f}")))?;
        let at = Point { event: self.events, line };
        self.events += 1;
        match kind.name() {
            Some("invoke") => self.call(process, f, form, at),
            Some("ok" | "fail" | "info") => {
                self.complete(process, kind.name().unwrap_or_default(), f, form, at)
            }
            _ => Err(bad(format!("expected :invoke, :ok, :fail or :info as :type, found {kind}"))),
        }
    }

    fn call(&mut self, process: i64, f: &str, form: &Form, called: Point) -> Result<(), BadInput> {
        let line = called.line;
        let (key, value) = self.key_and_value(form, line)?;
        let given = || value.ok_or_else(|| BadInput::new(line, "expected :value"));
        let call = match (self.model, f) {
            (Model::Register, "read") | (Model::Map, "get") => Call::Read,
            (Model::Register, "write") | (Model::Map, "put") => Call::Write(self.content(given()?, line)?),
            (Model::Register, "cas") => {
                let Form::List(pair) = given()? else {
                    return Err(BadInput::new(line, "expected two values [old new] as :value of a :cas"));
                };
                let [expected, new] = pair.as_slice() else {
                    let detail =
                        format!("expected two values [old new] as :value of a :cas, found {}", pair.len());
                    return Err(BadInput::new(line, detail));
                };
                Call::Cas(self.content(expected, line)?, self.content(new, line)?)
            }
            (Model::Map, "append") => Call::Append(self.content(given()?, line)?.unwrap_or_default()),
            (Model::Register, _) => {
                let detail = format!("expected :read, :write or :cas as :f (or --model map), found {f}");
                return Err(BadInput::new(line, detail));
            }
            (Model::Map, _) => {
                let detail = format!("expected :get, :put or :append as :f (or --model register), found {f}");
                return Err(BadInput::new(line, detail));
            }
        };
        if let Some(open) = self.open.insert(process, self.calls.len()) {
            let before = self.calls[open].1.called.line;
            let detail = format!("expected the completion of what process {process} called in line {before}");
            return Err(BadInput::new(line, format!("{detail}, found another call")));
        }
        self.calls.push((key, Recorded { process, f: f.to_owned(), call, called, completed: None }));
        Ok(())
    }

    fn complete(
        &mut self,
        process: i64,
        kind: &str,
        f: &str,
        form: &Form,
        at: Point,
    ) -> Result<(), BadInput> {
        let line = at.line;
        let Some(open) = self.open.remove(&process) else {
            let detail = format!("expected an :invoke of process {process} before this :{kind}");
            return Err(BadInput::new(line, detail));
        };
        let (key, Recorded { f: called_f, called, call, .. }) = &self.calls[open];
        if f != called_f {
            let detail = format!("expected the :f of line {}, :{called_f}, found {f}", called.line);
            return Err(BadInput::new(line, detail));
        }
        let outcome = match (kind, call) {
            ("fail", _) => Outcome::Failed,
            ("ok", Call::Read) => {
                let (seen_key, seen) = self.key_and_value(form, line)?;
                if seen_key != *key {
                    let detail = format!("expected {key} as in line {}, found {seen_key}", called.line);
                    return Err(BadInput::new(line, detail));
                }
                let seen = seen.ok_or_else(|| BadInput::new(line, "expected the :value that was seen"))?;
                Outcome::Ok(self.content(seen, line)?)
            }
            ("ok", _) => Outcome::Ok(None),
            _ => Outcome::Unknown,
        };
        self.calls[open].1.completed = Some((at, outcome));
        Ok(())
    }

    /// Which object, and the value, if there is one.
    fn key_and_value<'a>(&self, form: &'a Form, line: usize) -> Result<(Key, Option<&'a Form>), BadInput> {
        let value = form.get("value");
        let (key, value) = match (form.get("key"), value, self.model) {
            (Some(Form::Nil) | None, _, Model::Register) => return Ok((Key::Only, value)),
            (Some(key), _, _) => (key, value),
            (None, Some(Form::List(pair)), Model::Map) if pair.len() == 2 => (&pair[0], Some(&pair[1])),
            (None, _, Model::Map) => {
                return Err(BadInput::new(line, "expected :key, or [key value] as :value"));
            }
        };
        match key {
            Form::Text(text) | Form::Word(text) => Ok((Key::new(text.clone()), value)),
            _ => Err(BadInput::new(line, format!("expected a name or number as key, found {key}"))),
        }
    }

    fn content(&self, form: &Form, line: usize) -> Result<Content, BadInput> {
        match form {
            Form::Nil => Ok(None),
            Form::Text(text) if text.is_empty() && self.model == Model::Map => Ok(None),
            Form::Text(text) | Form::Word(text) => Ok(Some(text.clone())),
            Form::List(_) | Form::Map(_) => {
                Err(BadInput::new(line, format!("expected a value such as nil, 3 or \"a\", found {form}")))
            }
        }
    }

    fn finish(self) -> Result<History, BadInput> {
        if self.calls.is_empty() {
            return Err(BadInput::new(1, "expected at least one operation"));
        }
        let mut keys: BTreeMap<Key, Vec<Recorded>> = BTreeMap::new();
        for (key, recorded) in self.calls {
            keys.entry(key).or_default().push(recorded);
        }
        Ok(History { keys })
    }
}

fn field<'a>(form: &'a Form, name: &str, line: usize) -> Result<&'a Form, BadInput> {
    form.get(name).ok_or_else(|| BadInput::new(line, format!("expected :{name} in this operation")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn judge(text: &str, model: Model) -> Judgement {
        let history = History::read(text, model);
        history.unwrap_or_else(|error| panic!("{error:?} in\n{text}")).judge(Duration::from_secs(20))
    }

    /// `process type f value` per line, in EDN; in a map `process type f key value`.
    fn edn(short: &str) -> String {
        let line = |line: &str| {
            let [process, kind, f, value] = line.trim().splitn(4, ' ').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            match value.split_once(' ').filter(|_| matches!(f, "get" | "put" | "append")) {
                Some((key, value)) => {
                    format!("{{:process {process}, :type :{kind}, :f :{f}, :key {key}, :value {value}}}")
                }
                None => format!("{{:process {process} :type :{kind} :f :{f} :value {value} :index 7}}"),
            }
        };
        short.trim().lines().map(line).collect::<Vec<_>>().join("\n")
    }

    /// The same in JSON, the pair of key and value together.
    fn json(short: &str) -> String {
        let line = |line: &str| {
            let [process, kind, f, value] = line.trim().splitn(4, ' ').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            let value = value.replace("nil", "null");
            let value = match value.strip_prefix('[') {
                Some(pair) => format!("[{}", pair.replace(' ', ", ")),
                None if value.contains(' ') => format!("[{}]", value.replace(' ', ", ")),
                None => value,
            };
            format!(r#"{{"process": {process}, "type": "{kind}", "f":"{f}","value": {value}, "time": 1.5}}"#)
        };
        short.trim().lines().map(line).collect::<Vec<_>>().join("\n")
    }

    /// Judges it in both syntaxes, as lines and as a vector.
    fn is_linearizable(short: &str, model: Model) -> bool {
        let array = format!("[{}]", json(short).replace("}\n", "},\n"));
        let texts = [edn(short), format!("[{}\n]\n", edn(short)), json(short), array];
        let judged = texts.map(|text| match judge(&text, model) {
            Judgement::Linearizable => true,
            Judgement::NotLinearizable(_) => false,
            Judgement::Unknown(why) => panic!("{why}"),
        });
        assert!(judged.iter().all(|each| *each == judged[0]), "{judged:?} of\n{short}");
        judged[0]
    }

    /// The last lines vary.
    fn register(last: &str) -> bool {
        let first = "0 invoke write 1\n0 ok write 1\n1 invoke write 2\n";
        is_linearizable(&format!("{first}{last}"), Model::Register)
    }

    #[test]
    fn a_register_is_judged_in_both_syntaxes() {
        assert!(register("2 invoke read nil\n2 ok read 1\n1 ok write 2\n2 invoke read nil\n2 ok read 2"));
        assert!(!register("1 ok write 2\n2 invoke read nil\n2 ok read 1"), "stale");
        assert!(!register("2 invoke read nil\n2 ok read 2\n2 invoke read nil\n2 ok read 1"), "back again");
        assert!(!register("2 invoke read nil\n2 ok read nil"), "it was written");
        assert!(register("1 ok write 2\n2 invoke cas [2 3]\n2 ok cas [2 3]\n0 invoke read nil\n0 ok read 3"));
        assert!(!register("1 ok write 2\n2 invoke cas [1 3]\n2 ok cas [1 3]"), "not what was expected");
        let twice = "2 invoke cas [2 1]\n3 invoke cas [2 4]\n2 ok cas [2 1]\n3 ok cas [2 4]\n1 ok write 2";
        assert!(!register(twice), "only one can win");
        assert!(register(&format!("4 invoke write 2\n{twice}")), "unless it is written again");
    }

    #[test]
    fn values_may_be_written_again() {
        let again = "1 ok write 2\n0 invoke write 1\n0 ok write 1\n2 invoke read nil\n2 ok read 1";
        assert!(register(again));
        assert!(!register(&format!("{again}\n2 invoke read nil\n2 ok read 2")));
    }

    #[test]
    fn unknown_outcomes_may_happen_later_or_never_and_failed_ones_did_not() {
        for unknown in ["1 info write 2\n", ""] {
            let read = |value: u32| format!("2 invoke read nil\n2 ok read {value}\n");
            assert!(register(&format!("{unknown}{}", read(1))), "never");
            assert!(register(&format!("{unknown}{}{}", read(1), read(2))), "later");
            assert!(!register(&format!("{unknown}{}{}", read(2), read(1))), "not undone");
        }
        assert!(!register("1 fail write 2\n2 invoke read nil\n2 ok read 2"));
        assert!(register(
            "1 fail write 2\n2 invoke cas [7 8]\n2 fail cas [7 8]\n2 invoke read nil\n2 ok read 1"
        ));
        assert!(register("2 invoke read nil\n2 info read nil\n3 invoke read nil\n3 fail read nil"), "reads");
        assert!(!register("1 ok write 2\n3 invoke read nil\n3 ok read 1\n2 invoke write 1\n2 info write 1"));
    }

    #[test]
    fn a_map_is_judged_key_by_key() {
        let map = |text: &str| {
            let first = "0 invoke append \"x\" \"a\"\n0 ok append \"x\" \"a\"\n1 invoke append \"x\" \"b\"\n";
            is_linearizable(&format!("{first}{text}"), Model::Map)
        };
        assert!(map(
            "2 invoke get \"x\" nil\n2 ok get \"x\" \"ab\"\n2 invoke get \"y\" nil\n2 ok get \"y\" \"\""
        ));
        assert!(map("2 invoke get \"x\" nil\n2 ok get \"x\" \"a\"\n1 info append \"x\" \"b\""));
        assert!(!map("2 invoke get \"x\" nil\n2 ok get \"x\" \"ba\""), "a was first");
        assert!(!map("2 invoke get \"x\" nil\n2 ok get \"x\" \"abb\""), "twice");
        assert!(!map("1 ok append \"x\" \"b\"\n2 invoke get \"x\" nil\n2 ok get \"x\" \"a\""), "lost");
        let put = "1 ok append \"x\" \"b\"\n1 invoke put \"x\" \"a\"\n1 ok put \"x\" \"a\"\n";
        assert!(map(&format!("{put}2 invoke get \"x\" nil\n2 ok get \"x\" \"a\"")));
        assert!(!map(&format!("{put}2 invoke get \"x\" nil\n2 ok get \"x\" \"ab\"")));
        assert!(!map("2 invoke get \"y\" nil\n2 ok get \"y\" \"a\""), "of another key");
    }

    #[test]
    fn the_smallest_key_and_its_shortest_failing_prefix_are_shown() {
        let key = |key: u32| {
            format!(
                "0 invoke put {key} \"a\"\n0 ok put {key} \"a\"\n0 invoke get {key} nil\n0 ok get {key} \"b\"\n"
            )
        };
        let text = edn(&format!("{}{}{}1 invoke get 9 nil\n1 ok get 9 \"c\"", key(10), key(9), key(11)));
        let Judgement::NotLinearizable(why) = judge(&text, Model::Map) else { panic!("{text}") };
        let lines: Vec<&str> = why.lines().collect();
        assert_eq!(
            lines,
            [
                "key 9: no order of its operations explains line 8",
                "the shortest failing prefix ends there, with 2 of 3 operations:",
                "  lines 5 to 6: process 0 put \"a\", ok",
                "  lines 7 to 8: process 0 get, saw \"b\"  <-- not explained",
            ]
        );
    }

    #[test]
    fn what_is_not_explained_is_shown_among_many_unknown_operations() {
        let unknown: String = (2..32).map(|n| format!("{n} invoke write {n}\n")).collect();
        let text = edn(&format!("1 invoke read nil\n{unknown}1 ok read 99"));
        let Judgement::NotLinearizable(why) = judge(&text, Model::Register) else { panic!("{text}") };
        assert!(why.contains("\n  lines 1 to 32: process 1 read, saw \"99\"  <-- not explained"), "{why}");
        assert!(why.contains("\n  (7 earlier ones)\n") && why.lines().count() == 3 + SHOWN_MAX, "{why}");
    }

    #[test]
    fn what_is_recorded_by_jepsen_is_read() {
        let text = "\u{feff}; a run\n#jepsen.history.Op{:index 0, :time 12, :type :invoke, :process 0, :f :write, :value 3}\n\
            {:type :info, :process :nemesis, :f :start-partition, :value [:isolated {\"n1\" #{\"n2\"}}]}\n\
            {:type :ok, :process 0, :f :write, :value 3}\n\n\
            {:type :invoke, :process 5, :f :read, :value nil}{:type :ok :process 5 :f :read :value \"3\"}\n\
            {:type :invoke :process 6 :f :read :value nil :exception {:via [{:at [clojure.lang.Var \"x\" 1]}]}}";
        assert_eq!(judge(text, Model::Register), Judgement::Linearizable);
        assert_eq!(
            History::read(text, Model::Register).unwrap().summary(),
            "operations: 3, keys: 1, unknown outcomes: 1"
        );
    }

    #[test]
    fn bad_input_is_named_with_its_line() {
        let ok = "{:process 0 :type :invoke :f :write :value 1}\n";
        for (text, line, expected) in [
            ("", 1, "at least one operation"),
            ("7", 1, "an operation such as"),
            ("[", 1, "']' after the last"),
            ("[{:process 0 :type :invoke :f :read}]\n\n 7", 3, "nothing after the vector"),
            (&format!("{ok}\n{ok}"), 3, "the completion of what process 0 called in line 1"),
            (
                &format!("{ok}{{:process 1 :type :ok :f :write}}"),
                2,
                "an :invoke of process 1 before this :ok",
            ),
            (&format!("{ok}{{:process 0 :type :ok :f :read :value 1}}"), 2, "the :f of line 1, :write"),
            (
                &format!("{ok}{{:process 0 :type :done :f :write}}"),
                2,
                ":invoke, :ok, :fail or :info as :type, found :done",
            ),
            (&format!("{ok}{{:type :ok :f :write}}"), 2, ":process"),
            (&format!("{ok}{{:process 0 :f :write}}"), 2, ":type"),
            (&format!("{ok}{{:process :x :type :ok :f :write}}"), 2, "a number as :process, found :x"),
            (&format!("{ok}{{:process 0 :type :ok :f :write"), 2, "'}'"),
            ("{:process 0 :type :invoke :f :get :key 1}", 1, "(or --model map), found get"),
            ("{:process 0 :type :invoke :f :write}", 1, ":value"),
            ("{:process 0 :type :invoke :f :write :value {}}", 1, "a value such as"),
            ("{:process 0 :type :invoke :f :cas :value 1}", 1, "two values [old new]"),
            (
                "{:process 0 :type :invoke :f :cas :value [1 2 3]}",
                1,
                "two values [old new] as :value of a :cas, found 3",
            ),
            ("{\"process\": 0, \"type\": \"invoke\"}", 1, ":f"),
        ] {
            let error = History::read(text, Model::Register).expect_err(text);
            assert_eq!(error.line, line, "{text}: {error:?}");
            assert!(
                error.expected.starts_with("expected ") && error.expected.contains(expected),
                "{error:?}"
            );
        }
        let map = |rest: &str| {
            let get = "{:process 0 :type :invoke :f :get :key 1}\n";
            History::read(&format!("{get}{rest}"), Model::Map).expect_err(rest)
        };
        let another = map("{:process 0 :type :ok :f :get :key 2 :value nil}");
        assert_eq!(another, BadInput::new(2, "expected key 1 as in line 1, found key 2"));
        let keyless = map("{:process 1 :type :invoke :f :put :value 3}");
        assert_eq!(keyless, BadInput::new(2, "expected :key, or [key value] as :value"));
        assert!(map("{:process 0 :type :ok :f :get :key 1}").expected.contains("that was seen"));
    }

    #[test]
    fn what_takes_too_long_is_unknown() {
        // Two writes of one value, thirty overlapping conditional writes from each of six to each other, then a read that no order explains.
        let calls = (0..30).map(|n| format!("{n} invoke cas [{} {}]\n", n % 6, (n + n / 6 + 1) % 6));
        let answers = (0..30).map(|n| format!("{n} ok cas [{} {}]\n", n % 6, (n + n / 6 + 1) % 6));
        let text: String = calls.chain(answers).collect();
        let first = "94 invoke write 9\n94 ok write 9\n94 invoke write 9\n94 ok write 9\n90 invoke write 0\n91 invoke write 0\n92 invoke write 1\n93 invoke write 2\n";
        let last =
            "90 ok write 0\n91 ok write 0\n92 ok write 1\n93 ok write 2\n90 invoke read nil\n90 ok read 9";
        let history = History::read(&edn(&format!("{first}{text}{last}")), Model::Register).unwrap();
        let started = Instant::now();
        let judged = history.judge(Duration::ZERO);
        let seconds = started.elapsed().as_secs();
        assert!(seconds < 5, "it went on for {seconds} s");
        let Judgement::Unknown(why) = judged else { panic!("{judged:?}") };
        assert!(why.contains("1 of 1") && why.contains("the register (37 operations)"), "{why}");
    }

    /// Operations of a real sequential store, of which each takes effect at a drawn moment between its call
    /// and its answer, or later if the answer is `info`; the result is in the short form.
    struct Store {
        random: Random,
        model: Model,
        values: BTreeMap<u64, String>,
        text: Vec<String>,
        calls: u64,
    }

    /// An operation under way: key, name, value, and what is printed as its answer once it took effect.
    #[derive(Clone)]
    struct Pending {
        key: u64,
        f: &'static str,
        value: String,
        answer: Option<String>,
    }

    impl Store {
        fn line(&mut self, process: u64, kind: &str, pending: &Pending, value: &str) {
            let key = if self.model == Model::Map { format!("{} ", pending.key) } else { String::new() };
            self.text.push(format!("{process} {kind} {} {key}{value}", pending.f));
        }

        fn draw(&mut self) -> Pending {
            self.calls += 1;
            let small = |random: &mut Random| random.below(4).to_string();
            let (f, value) = match (self.model, self.random.below(8)) {
                (Model::Register, 0..4) => ("read", "nil".into()),
                (Model::Register, 4..6) => ("write", small(&mut self.random)),
                (Model::Register, _) => {
                    ("cas", format!("[{} {}]", small(&mut self.random), small(&mut self.random)))
                }
                (Model::Map, 0..4) => ("get", "nil".into()),
                (Model::Map, 4) => ("put", format!("\"<{}>\"", self.calls)),
                (Model::Map, _) => ("append", format!("\"<{}>\"", self.calls)),
            };
            let key = if self.model == Model::Map { self.random.below(2) } else { 0 };
            Pending { key, f, value, answer: None }
        }

        /// The operation takes effect now.
        fn apply(&mut self, pending: &Pending) -> String {
            let now = self.values.get(&pending.key).cloned();
            let piece = pending.value.trim_matches('"').to_owned();
            let after = match pending.f {
                "read" => return format!("ok {}", now.unwrap_or("nil".into())),
                "get" => return format!("ok {}", now.map_or("nil".into(), |text| format!("{text:?}"))),
                "append" => now.unwrap_or_default() + &piece,
                "cas" => {
                    let (expected, new) = piece[1..piece.len() - 1].split_once(' ').expect("a pair");
                    if now.as_deref() != Some(expected) {
                        return format!("fail {}", pending.value);
                    }
                    new.to_owned()
                }
                _ => piece,
            };
            self.values.insert(pending.key, after);
            format!("ok {}", pending.value)
        }

        fn run(seed: u64, model: Model) -> Vec<String> {
            let random = Random::new(seed);
            let mut store = Self { random, model, values: BTreeMap::new(), text: Vec::new(), calls: 0 };
            let mut processes: BTreeMap<u64, Option<Pending>> =
                (0..5).map(|process| (process, None)).collect();
            let mut lost: Vec<Pending> = Vec::new();
            while store.calls < 60 {
                let process = *store.random.pick(&processes.keys().copied().collect::<Vec<_>>());
                let state = match processes.remove(&process).flatten() {
                    None => {
                        let pending = store.draw();
                        store.line(process, "invoke", &pending, &pending.value.clone());
                        Some(pending)
                    }
                    Some(pending) if pending.answer.is_none() && store.random.percent(5) => {
                        store.line(process, "info", &pending, &pending.value.clone());
                        lost.push(pending);
                        None
                    }
                    Some(mut pending) => match pending.answer.take() {
                        None => {
                            pending.answer = Some(store.apply(&pending));
                            Some(pending)
                        }
                        Some(answer) => {
                            let (kind, value) = answer.split_once(' ').expect("two words");
                            store.line(process, kind, &pending, value);
                            None
                        }
                    },
                };
                processes.insert(process, state);
                if !lost.is_empty() && store.random.percent(10) {
                    let late = lost.remove(0);
                    store.apply(&late);
                }
            }
            store.text
        }
    }

    /// Makes a history wrong for certain: a value that is written once is seen after it was overwritten, or
    /// won by two; a text that is appended once is seen twice.
    fn spoil(text: &mut Vec<String>, seed: u64, model: Model) {
        let mut random = Random::new(seed);
        let wrong = match (model, random.below(2)) {
            (Model::Register, 0) => {
                "9 invoke write 70|9 ok write 70|9 invoke write 71|9 ok write 71|\
                8 invoke read nil|8 ok read 70"
            }
            (Model::Register, _) => {
                "9 invoke write 70|9 ok write 70|9 invoke cas [70 1]|8 invoke cas [70 2]|\
                8 ok cas [70 2]|9 ok cas [70 1]"
            }
            (Model::Map, 0) => {
                "9 invoke append 1 \"x\"|9 ok append 1 \"x\"|9 invoke append 1 \"y\"|\
                9 ok append 1 \"y\"|8 invoke get 1 nil|8 ok get 1 \"yx\""
            }
            (Model::Map, _) => {
                "9 invoke put 1 \"x\"|9 ok put 1 \"x\"|9 invoke put 1 \"y\"|9 ok put 1 \"y\"|\
                8 invoke get 1 nil|8 ok get 1 \"x\""
            }
        };
        // Anywhere, other operations in between.
        let mut at = random.index(text.len() / 2);
        for line in wrong.split('|') {
            at += random.index(4);
            text.insert(at.min(text.len()), line.to_owned());
            at += 1;
        }
    }

    #[test]
    fn random_histories_pass_and_spoiled_ones_fail() {
        for model in [Model::Register, Model::Map] {
            for seed in 0..200 {
                let mut text = Store::run(seed, model);
                let is_spoiled = seed % 2 == 1;
                if is_spoiled {
                    spoil(&mut text, seed, model);
                }
                let short = text.join("\n");
                let judged = judge(&if seed % 4 < 2 { edn(&short) } else { json(&short) }, model);
                match (&judged, is_spoiled) {
                    (Judgement::Linearizable, false) | (Judgement::NotLinearizable(_), true) => {}
                    _ => panic!("{model:?}, seed {seed}, spoiled: {is_spoiled}: {judged:?}\n{short}"),
                }
            }
        }
    }
}
