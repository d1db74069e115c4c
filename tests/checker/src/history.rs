//! Histories from outside: what Jepsen or a test harness of another store recorded, judged by the same
//! search as the simulator's own ([`crate::linearizability`]).
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

use crate::edn::{BadInput, Form, Reader, Syntax};
use crate::linearizability::{Operation, Verdict, check_texts};
use crate::model::{Action, Texts, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// What the store under test claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
mod tests;
