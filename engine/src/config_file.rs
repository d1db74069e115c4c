//! A node's settings as a TOML file: `floe node` reads one, `floe config` prints one with the defaults.
//!
//! Both come from one table per section, so that no setting can be read without being explained, or the other way
//! round. Bounds are checked where the engine checks them ([`Config::validate`]), under the same names.

use crate::boot::cluster_text;
use crate::{Config, Driver, LsmSettings, Member, NodeId, Store, WalSettings};
use serde::de::{Deserialize, Deserializer, Error};
use std::fmt::{self, Write};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// More than any configuration has, and little enough that a parser which is given something else soon says so.
const FILE_BYTES_MAX: usize = 1 << 20;

/// One section: the struct that serde fills, how it changes a configuration, and how it is explained.
macro_rules! section {
    (
        $name:ident of $config:ty {
            $($(#[doc = $doc:literal])+ $field:ident: $type:ty,)+
        }
        $($extra:ident: $extra_type:ty,)*
    ) => {
        #[derive(serde::Deserialize, Default)]
        #[serde(deny_unknown_fields, default)]
        struct $name {
            $($field: Option<$type>,)+
            $($extra: $extra_type,)*
        }

        impl $name {
            fn apply(self, config: &mut $config) {
                $(if let Some(value) = self.$field {
                    config.$field = value.into();
                })+
            }

            #[allow(clippy::clone_on_copy, reason = "some fields are Copy, some are not")]
            fn explain(config: &$config, out: &mut String) {
                $(
                    $(out.push_str(concat!("#", $doc, "\n"));)+
                    // Writing to a String can't fail.
                    let _ = writeln!(out, "{} = {}\n", stringify!($field), <$type>::from(config.$field.clone()));
                )+
            }
        }
    };
}

section! {
    NodeSection of Config {
        /// Names the cluster: nodes of different clusters refuse each other. A number, or up to 32 digits as "0x...".
        cluster: ClusterNumber,
        /// This node's number: above 0, unique in the cluster, never used again for another data directory.
        node: NodeNumber,
        /// The data directory; made if it is missing. A relative one is relative to where the node is started.
        dir: Dir,
        /// Where to listen, as "host:port"; "auto" = this node's address in `members`.
        listen: Auto<Text>,
        /// What does input and output: "ring" (a bare io_uring per core) or "glommio".
        driver: DriverName,
        /// Threads that own shards: 1 to 1024. May change between starts.
        cores: u16,
        /// Shards into which the key space is split evenly when the cluster first starts: 1 to 65536, the same on all nodes and
        /// at every start.
        shards: u32,
        /// Replicas of each shard: 1 to 7; the number of nodes, if there are fewer. The same on all nodes and at every start.
        replication: usize,
        /// Pins each core's thread to a processor.
        pin_cores: bool,
        /// How long a core spins before it sleeps: wake-ups in 5 us instead of 25 to 55, for a busy processor.
        spin_before_park: Span,
        /// Bounds between which election timeouts are drawn.
        election_timeout_min: Span,
        /// See `election_timeout_min`, which it must exceed.
        election_timeout_max: Span,
        /// How often a leader is heard at the least: below half of `election_timeout_min`.
        heartbeat_interval: Span,
        /// A shard that nobody uses for so long goes quiet, and costs nothing until somebody does. "never" is possible.
        quiet_after: Span,
        /// Reads under leader leases: no round over the network. Turn it off where machines may be suspended, or their
        /// monotonic clocks run more than 1 % apart.
        leases: bool,
        /// Deadline of calls that name none. Above 0.
        timeout: Span,
        /// Requests under way per core: 1 to 16777216; beyond it they are refused as busy.
        requests_max: usize,
        /// Remote clients at once: 0 to 4096; further ones are refused. Each takes two threads.
        clients_max: usize,
        /// Bytes that may wait to be sent to one peer core, at least "32 MiB"; beyond it frames are dropped and sent again.
        send_queue_bytes_max: Size,
        /// In-memory log of a shard that makes it flush its state. Above 0.
        flush_log_bytes: Size,
        /// In-memory log of a shard beyond which slow followers are left to catch up by a dump, unless it is less than half
        /// of the shard's state; at least `flush_log_bytes`.
        log_bytes_max: Size,
        /// In-memory logs of all shards, divided among the cores: from half of it on slow followers are left to catch up by
        /// dumps, at all of it writes are refused as busy. At least twice `flush_log_bytes` per core.
        log_memory_bytes: Size,
    }
    wal: WalSection,
    store: StoreSection,
    members: Vec<MemberSection>,
}

section! {
    WalSection of WalSettings {
        /// Size of a log's first segment, a multiple of 4096 of at least "64 KiB"; doubles up to `segment_bytes_max`.
        segment_bytes_min: Size,
        /// Size of a segment at the most, a multiple of 4096.
        segment_bytes_max: Size,
        /// Synced writes under way at once: 1 to 64.
        frames_in_flight: u32,
        /// Size of one such write at the most: "16 KiB" to "4 MiB".
        frame_bytes_max: Size,
        /// Zeroed segments kept ready.
        spares: u32,
        /// Size of a node's log in use beyond which shards that hold back old segments are flushed, and at four times which
        /// writes are refused as busy: at least four times `segment_bytes_max`. Divided among the cores, each of which may use
        /// four segments at least. A restart reads all of it.
        bytes_max: Size,
        /// Bytes that may wait for the log before requests are refused as busy.
        queued_bytes_max: Size,
        /// A core whose write hasn't come back after so long stops leading until it does: at least `heartbeat_interval`.
        /// "auto" = `election_timeout_max`.
        stuck_after: Auto<Span>,
    }
}

section! {
    StoreSection of LsmSettings {
        /// For "lsm", all shards together. Memory for what isn't in tables yet: from half of it on the largest are flushed,
        /// at all of it writers are refused as busy. At least "1 MiB".
        write_buffer_bytes: Size,
        /// Memory for blocks of tables that were read. At least "1 MiB".
        cache_bytes: Size,
        /// Files of tables kept open: at least 16.
        open_files_max: usize,
        /// Bytes that flushes and compaction together write per second at the most, at least "1 MiB"; flushes go beyond while
        /// memory is short.
        background_bytes_per_second: Size,
    }
    kind: StoreKind,
}

#[derive(serde::Deserialize, Clone, Copy, Default)]
#[serde(rename_all = "lowercase")]
enum StoreKind {
    Memory,
    #[default]
    Lsm,
}

impl StoreSection {
    fn store(self) -> Store {
        let mut settings = LsmSettings::default();
        match self.kind {
            StoreKind::Memory => Store::Memory,
            StoreKind::Lsm => {
                self.apply(&mut settings);
                Store::Lsm(settings)
            }
        }
    }

    fn explain_store(store: &Store, out: &mut String) {
        let (kind, settings) = match store {
            Store::Memory => ("memory", LsmSettings::default()),
            Store::Lsm(settings) => ("lsm", *settings),
        };
        out.push_str("# The shards' state. The same kind at each start of a node.\n[store]\n");
        out.push_str(
            "# \"memory\": in memory, dumped whole from time to time. \"lsm\": in tables on disk.\n",
        );
        let _ = writeln!(out, "kind = \"{kind}\"\n");
        Self::explain(&settings, out);
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct MemberSection {
    node: NodeNumber,
    address: String,
}

/// What a node's configuration file says.
///
/// # Errors
/// A sentence that names the file, the field, and what is wrong with it.
pub fn read(path: &Path) -> Result<Config, String> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => format!("; `floe config > {name}` makes one to begin with"),
            _ => String::new(),
        };
        format!("can't read the configuration {name}: {error}{hint}")
    })?;
    if text.len() > FILE_BYTES_MAX {
        return Err(format!(
            "{name} has {} bytes: that is no configuration; `floe config` prints one",
            text.len()
        ));
    }
    let config = parse(&text).map_err(|reason| format!("configuration {name}: {reason}"))?;
    config.validate().map_err(|error| format!("configuration {name}: {error}"))?;
    Ok(config)
}

/// What the text of such a file says; its values are yet to be validated.
///
/// # Errors
/// What is wrong with it: no TOML, an unknown field, a value of another kind, no members.
pub fn parse(text: &str) -> Result<Config, String> {
    let mut file: NodeSection = toml::from_str(text).map_err(|error| error.to_string())?;
    let mut config = Config::embedded("floe-data");
    let members = std::mem::take(&mut file.members);
    config.members = members
        .into_iter()
        .map(|member| Member { node: member.node.into(), address: member.address })
        .collect();
    std::mem::take(&mut file.wal).apply(&mut config.wal);
    config.store = std::mem::take(&mut file.store).store();
    file.apply(&mut config);
    if config.members.is_empty() {
        return Err("`members` is missing: it lists every node of the cluster, this one too, as \
                    [[members]] with `node` and `address`"
            .into());
    }
    Ok(config)
}

/// A configuration as a file, each setting with its meaning.
pub fn explain(config: &Config) -> String {
    let mut out = String::from(
        "# Configuration of a Floe node. What isn't named has the value that `floe config` prints.\n\
         # Durations: \"150ms\", \"10s\" (ns, us, ms, s). Sizes: a number of bytes, or \"64 MiB\" (KiB, MiB, GiB).\n\n",
    );
    NodeSection::explain(config, &mut out);
    out.push_str("# The log.\n[wal]\n");
    WalSection::explain(&config.wal, &mut out);
    StoreSection::explain_store(&config.store, &mut out);
    out.push_str("# Every node of the cluster, this one included; the same on all nodes.\n");
    for Member { node, address } in &config.members {
        let address = quoted(address);
        let _ = writeln!(out, "[[members]]\nnode = {}\naddress = {address}\n", node.0);
    }
    out
}

/// What `floe config` prints: a single node that clients can reach.
pub fn defaults() -> Config {
    let mut config = Config::embedded("floe-data");
    config.members = vec![Member { node: config.node, address: "127.0.0.1:7401".into() }];
    config
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.into()).to_string()
}

// ---- kinds of values

/// A value with a text of its own in the file: how it is read, printed, and turned into the engine's type.
macro_rules! kind {
    ($name:ident($inner:ty), $parse:expr, $print:expr, $($target:ty: $into:expr, $from:expr;)+) => {
        struct $name($inner);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let parse: fn(toml::Value) -> Result<$inner, String> = $parse;
                parse(toml::Value::deserialize(deserializer)?).map(Self).map_err(D::Error::custom)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let print: fn(&$inner) -> String = $print;
                f.write_str(&print(&self.0))
            }
        }

        $(
            impl From<$name> for $target {
                fn from(value: $name) -> Self {
                    let into: fn($inner) -> Self = $into;
                    into(value.0)
                }
            }

            impl From<$target> for $name {
                fn from(value: $target) -> Self {
                    let from: fn($target) -> $inner = $from;
                    Self(from(value))
                }
            }
        )+
    };
}

kind!(Span(Duration), parse_span, print_span, Duration: |span| span, |span| span;);
kind!(Size(u64), parse_size, print_size,
    u64: |size| size, |size| size;
    // 64-bit systems alone are supported: io_uring is used everywhere.
    usize: |size| size as usize, |size| size as u64;);
kind!(Text(String), parse_text, |text| quoted(text), String: |text| text, |text| text;);
kind!(Dir(String), parse_text, |text| quoted(text),
    PathBuf: PathBuf::from, |dir| dir.to_string_lossy().into_owned(););
kind!(ClusterNumber(u128), parse_cluster, print_cluster, u128: |number| number, |number| number;);
kind!(NodeNumber(u64), parse_number, |number| number.to_string(), NodeId: NodeId, |node| node.0;);
kind!(DriverName(Driver), parse_driver, |driver| match driver {
    Driver::Ring => quoted("ring"),
    Driver::Glommio => quoted("glommio"),
}, Driver: |driver| driver, |driver| driver;);

/// "auto", or a value.
struct Auto<T>(Option<T>);

impl<'de, T: serde::de::DeserializeOwned> Deserialize<'de> for Auto<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match toml::Value::deserialize(deserializer)? {
            toml::Value::String(text) if text == "auto" => Ok(Self(None)),
            value => T::deserialize(value).map(|value| Self(Some(value))).map_err(D::Error::custom),
        }
    }
}

impl<T: fmt::Display> fmt::Display for Auto<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("\"auto\""),
        }
    }
}

impl From<Auto<Span>> for Option<Duration> {
    fn from(value: Auto<Span>) -> Self {
        value.0.map(|Span(span)| span)
    }
}

impl From<Option<Duration>> for Auto<Span> {
    fn from(value: Option<Duration>) -> Self {
        Self(value.map(Span))
    }
}

impl From<Auto<Text>> for Option<String> {
    fn from(value: Auto<Text>) -> Self {
        value.0.map(|Text(text)| text)
    }
}

impl From<Option<String>> for Auto<Text> {
    fn from(value: Option<String>) -> Self {
        Self(value.map(Text))
    }
}

fn parse_text(value: toml::Value) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| format!("{value} is not a text in quotes"))
}

fn parse_number(value: toml::Value) -> Result<u64, String> {
    let number = value.as_integer().and_then(|number| u64::try_from(number).ok());
    number.ok_or_else(|| format!("{value} is not a number from 0"))
}

fn parse_cluster(value: toml::Value) -> Result<u128, String> {
    match value.as_str().and_then(|text| text.strip_prefix("0x")) {
        Some(digits) => u128::from_str_radix(digits, 16)
            .map_err(|_| format!("{value} is not a number of up to 32 hexadecimal digits")),
        None => parse_number(value).map(u128::from),
    }
}

fn print_cluster(number: &u128) -> String {
    let text = cluster_text(*number);
    if text.starts_with("0x") { format!("\"{text}\"") } else { text }
}

fn parse_driver(value: toml::Value) -> Result<Driver, String> {
    match value.as_str() {
        Some("ring") => Ok(Driver::Ring),
        Some("glommio") => Ok(Driver::Glommio),
        _ => Err(format!("{value} is no driver: choose \"ring\" or \"glommio\"")),
    }
}

const SPAN_UNITS: [(&str, u64); 4] = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1000), ("ns", 1)];
const SIZE_UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// Splits "150ms" into 150 and what "ms" stands for.
fn number_and_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(at);
    let scale = units.iter().find(|(name, _)| *name == unit.trim())?.1;
    number.parse::<u64>().ok()?.checked_mul(scale)
}

fn parse_span(value: toml::Value) -> Result<Duration, String> {
    if value.as_str() == Some("never") {
        return Ok(Duration::MAX);
    }
    let nanos = value.as_str().and_then(|text| number_and_unit(text, &SPAN_UNITS));
    nanos.map(Duration::from_nanos).ok_or_else(|| {
        format!(
            "{value} is no duration: write a whole number and a unit in quotes, as \"150ms\" (ns, us, ms, s)"
        )
    })
}

fn print_span(span: &Duration) -> String {
    let Ok(nanos) = u64::try_from(span.as_nanos()) else { return quoted("never") };
    let fits = |(_, scale): &&(&str, u64)| nanos.is_multiple_of(*scale);
    let (unit, scale) = SPAN_UNITS.iter().find(fits).expect("every number is a multiple of 1");
    format!("\"{}{unit}\"", nanos / scale)
}

fn parse_size(value: toml::Value) -> Result<u64, String> {
    let from_number = value.as_integer().and_then(|number| u64::try_from(number).ok());
    let from_text = || value.as_str().and_then(|text| number_and_unit(text, &SIZE_UNITS));
    from_number.or_else(from_text).ok_or_else(|| {
        format!("{value} is no size: write a number of bytes, or as \"64 MiB\" (KiB, MiB, GiB)")
    })
}

fn print_size(size: &u64) -> String {
    let fits = |(_, scale): &&(&str, u64)| *size > 0 && size.is_multiple_of(*scale);
    match SIZE_UNITS.iter().find(fits) {
        Some((unit, scale)) => format!("\"{} {unit}\"", size / scale),
        None => size.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_defaults_are_a_valid_file_that_means_the_defaults() {
        let text = explain(&defaults());
        let config = parse(&text).expect("what is printed can be read");
        config.validate().expect("the defaults are valid");
        assert_eq!(format!("{config:?}"), format!("{:?}", defaults()));
    }

    #[test]
    fn every_setting_comes_back_changed() {
        let mut config = defaults();
        config.cluster = u128::MAX;
        config.dir = "a \"quoted\" dir".into();
        config.listen = Some("0.0.0.0:1".into());
        config.driver = Driver::Glommio;
        (config.cores, config.shards, config.replication) = (3, 77, 5);
        (config.pin_cores, config.leases) = (true, false);
        config.quiet_after = Duration::MAX;
        config.timeout = Duration::from_micros(1_500);
        config.log_bytes_max = (32 << 20) + 1;
        config.log_memory_bytes = (512 << 20) + 1;
        config.wal.stuck_after = Some(Duration::from_secs(2));
        config.wal.bytes_max = 5 << 30;
        config.store = Store::Lsm(LsmSettings { cache_bytes: 7 << 20, ..LsmSettings::default() });
        let back = parse(&explain(&config)).expect("what is printed can be read");
        assert_eq!(format!("{back:?}"), format!("{config:?}"));
    }

    #[test]
    fn units_mean_what_they_say() {
        let config = parse(
            "timeout = \"3s\"\nspin_before_park = \"7us\"\nlog_bytes_max = \"3 GiB\"\nflush_log_bytes = \"5 KiB\"\n\
             send_queue_bytes_max = \"64 MiB\"\n[[members]]\nnode = 1\naddress = \"h:1\"",
        )
        .expect("it is right");
        assert_eq!(config.timeout, Duration::from_secs(3));
        assert_eq!(config.spin_before_park, Duration::from_nanos(7000));
        assert_eq!((config.log_bytes_max, config.flush_log_bytes), (3 << 30, 5 << 10));
        assert_eq!(config.send_queue_bytes_max, 64 << 20);
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| {
            let config = parse(&format!("{text}\n[[members]]\nnode = 1\naddress = \"h:1\"\n"));
            config
                .and_then(|config| config.validate().map_err(|error| error.to_string()))
                .err()
                .unwrap_or_default()
        };
        assert_eq!(error("cores = 2"), "");
        for (text, names) in [
            ("colour = 2", "colour"),
            ("[store]\nkind = \"tape\"", "`lsm`"),
            ("[store]\nkind = \"lsm\"\nopen_files_max = 3", "store.open_files_max"),
            ("timeout = 3", "is no duration"),
            ("timeout = \"3 weeks\"", "\"150ms\""),
            ("cores = -1", "cores"),
            ("cores = 0", "cores: must be 1 to 1024"),
            ("node = 2", "members: must name this node"),
            ("driver = \"steam\"", "\"ring\""),
            ("send_queue_bytes_max = \"1 MiB\"", "send_queue_bytes_max: must be at least 32 MiB"),
            ("[wal]\nsegment_bytes_min = \"3 KB\"", "is no size"),
            ("[wal]\nframes_in_flight = 65", "wal.frames_in_flight: must be 1 to 64"),
        ] {
            assert!(error(text).contains(names), "{text}: {}", error(text));
        }
        assert!(parse("node = 1").expect_err("a node alone can't be reached").contains("members"));
    }
}
