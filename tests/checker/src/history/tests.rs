//! Histories from outside: what is read, what is refused, and how it is judged.

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
    assert!(register("1 fail write 2\n2 invoke cas [7 8]\n2 fail cas [7 8]\n2 invoke read nil\n2 ok read 1"));
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
        (&format!("{ok}{{:process 1 :type :ok :f :write}}"), 2, "an :invoke of process 1 before this :ok"),
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
        assert!(error.expected.starts_with("expected ") && error.expected.contains(expected), "{error:?}");
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
    let last = "90 ok write 0\n91 ok write 0\n92 ok write 1\n93 ok write 2\n90 invoke read nil\n90 ok read 9";
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
        let mut processes: BTreeMap<u64, Option<Pending>> = (0..5).map(|process| (process, None)).collect();
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
