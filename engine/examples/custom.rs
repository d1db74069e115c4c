//! A state machine of your own, replicated by Floe: counters that only add. `cargo run --example custom`
//!
//! A command is `amount (8 bytes, little-endian) | key`; a get answers with the counter as text. Everything that the
//! machine does is a function of the commands applied so far: no clock, no randomness, no order of a hash map.

use bytes::Bytes;
use floe::state_machine::{BadPayload, CommandResult, Dump, QueryResult, StateMachine};
use floe::{Client, Config, Engine, KeyRange, Mark, Query, Row, Versioned};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

/// A counter, and the log index of what last changed it.
#[derive(Clone, Copy, Default)]
struct Counter {
    value: i64,
    version: u64,
}

#[derive(Clone, Default)]
struct Counters(BTreeMap<Vec<u8>, Counter>);

/// Amount and key of a command.
fn parse(payload: &[u8]) -> Option<(i64, &[u8])> {
    let (amount, key) = payload.split_first_chunk()?;
    (!key.is_empty()).then_some((i64::from_le_bytes(*amount), key))
}

fn versioned(counter: &Counter) -> Versioned {
    Versioned { version: counter.version, value: counter.value.to_string().into() }
}

impl StateMachine for Counters {
    fn check(&self, payload: &[u8], range: &KeyRange) -> Result<(), BadPayload> {
        match parse(payload) {
            Some((_, key)) if range.contains(key) => Ok(()),
            Some(_) => Err(BadPayload::OutOfRange),
            None => Err(BadPayload::Malformed("not an amount and a key".into())),
        }
    }

    fn apply(&mut self, at: Mark, payload: &[u8], range: &KeyRange) -> CommandResult {
        let Some((amount, key)) = parse(payload) else { return CommandResult::Malformed };
        if !range.contains(key) {
            return CommandResult::OutOfRange;
        }
        let counter = self.0.entry(key.to_vec()).or_default();
        *counter = Counter { value: counter.value.wrapping_add(amount), version: at.index };
        CommandResult::Written
    }

    fn read(&self, query: &Query, range: &KeyRange) -> QueryResult {
        match query {
            Query::Get { key } => QueryResult::Value(self.0.get(&key[..]).map(versioned)),
            // This one has few counters and answers with all of them: limits would be kept here.
            Query::Scan { start, end, reverse, .. } => {
                let inside = |key: &Vec<u8>| {
                    key[..] >= start[..] && (end.is_empty() || key[..] < end[..]) && range.contains(key)
                };
                let counters = self.0.iter().filter(|(key, _)| inside(key));
                let row = |(key, counter): (&Vec<u8>, &Counter)| Row {
                    key: Bytes::copy_from_slice(key),
                    value: versioned(counter),
                };
                let mut rows: Vec<_> = counters.map(row).collect();
                if *reverse {
                    rows.reverse();
                }
                QueryResult::Rows(rows, false)
            }
        }
    }

    fn dump(&self) -> Box<dyn Dump> {
        Box::new(self.clone())
    }

    fn restore(&mut self, dump: &Bytes) -> Result<(), BadPayload> {
        self.0.clear();
        let mut rest = &dump[..];
        while !rest.is_empty() {
            let bad = || BadPayload::Malformed("not a dump of counters".into());
            let (numbers, after) = rest.split_first_chunk::<20>().ok_or_else(bad)?;
            let number = |at: usize| {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&numbers[at..at + 8]);
                bytes
            };
            let (value, version) = (i64::from_le_bytes(number(0)), u64::from_le_bytes(number(8)));
            let len = u32::from_le_bytes([numbers[16], numbers[17], numbers[18], numbers[19]]) as usize;
            let key = after.get(..len).ok_or_else(bad)?;
            self.0.insert(key.to_vec(), Counter { value, version });
            rest = &after[len..];
        }
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.0.keys().map(|key| key.len() as u64 + 64).sum()
    }

    fn state_hash(&self) -> u64 {
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        let mut bytes = Vec::new();
        self.write_to(&mut bytes).expect("memory takes what it is given");
        bytes.into_iter().fold(0xCBF2_9CE4_8422_2325, mix)
    }
}

impl Counters {
    /// Value, version, length of the key, key; in order of the keys.
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        for (key, Counter { value, version }) in &self.0 {
            out.write_all(&value.to_le_bytes())?;
            out.write_all(&version.to_le_bytes())?;
            out.write_all(&(key.len() as u32).to_le_bytes())?;
            out.write_all(key)?;
        }
        Ok(())
    }
}

/// A picture of the counters is a copy of them.
impl Dump for Counters {
    fn write(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        self.write_to(out)
    }
}

fn add(client: &Client, key: &str, amount: i64) -> Result<(), floe::WriteError> {
    let payload = [&amount.to_le_bytes()[..], key.as_bytes()].concat();
    client.command(key, &payload).wait().map(drop)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::embedded("floe-data/custom");
    let engine = Engine::open_with(config, Arc::new(|_shard| Box::new(Counters::default())))?;
    let client = engine.client();
    for visit in 1..=3 {
        add(&client, "visits", 1)?;
        add(&client, "weight", visit * 10)?;
    }
    for row in client.scan_blocking(floe::ScanOptions::default())? {
        println!("{}: {}", row.key.escape_ascii(), row.value.value.escape_ascii());
    }
    engine.shutdown();
    Ok(())
}
