//! `floe wal`: looks at a stopped node's log.

use clap::{Args, Subcommand};
use floe::offline::{DirectorySurvey, survey_directory};
use floe::wal::{Finding, Survey};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Subcommand)]
pub enum WalCommand {
    /// Checks every byte of the log that a start would rely on.
    ///
    /// Reads all segments, replays the log as a start would, and reports everything that is wrong with it: the
    /// file, the offset, and the shards concerned. What a crash has torn off the end was never acknowledged and
    /// is no damage.
    ///
    /// Exit status: 0 = nothing acknowledged is lost (a lost copy of a segment's header, which the
    /// next start makes good, is reported nevertheless); 1 = the log is damaged; 2 = it can't be looked at.
    ///
    /// A damaged node doesn't start. Restore the file from the same disk, or leave the node down and give its
    /// replicas to other nodes of the cluster: their data is copied from the other replicas.
    Verify(Target),
    /// Shows what the log holds: segments, records, and where each shard stands. Checks it as well.
    ///
    /// A shard's log goes from the mark after `flushed` to `last`; what comes before is in its dump, the file
    /// of that generation. Exit status as of `verify`.
    Inspect(Target),
}

#[derive(Args)]
pub struct Target {
    /// The node's data directory: the one with `node.floe` in it.
    dir: PathBuf,
    /// Prints one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// Prints what was found; the exit status says whether the log is sound.
pub fn run(command: &WalCommand) -> ExitCode {
    let (target, in_full) = match command {
        WalCommand::Verify(target) => (target, false),
        WalCommand::Inspect(target) => (target, true),
    };
    let found = match survey_directory(&target.dir) {
        Ok(found) => found,
        Err(error) => {
            eprintln!("floe: {error}");
            return ExitCode::from(2);
        }
    };
    let text = if target.json { format!("{:#}\n", as_json(&found)) } else { as_text(&found, in_full) };
    // A reader that has seen enough may close the pipe; the status says the rest.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if found.is_sound() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn as_text(found: &DirectorySurvey, in_full: bool) -> String {
    let record = &found.record;
    let mut lines =
        vec![format!("node {}, store {:032x}, boot {}", record.node, record.store_uuid, record.boot_epoch)];
    for stream in &found.streams {
        lines.push(summary(stream));
        if in_full {
            lines.extend(contents(stream));
        }
        lines.extend(stream.findings.iter().map(finding_text));
    }
    lines.push(if found.is_sound() { "the log is sound".into() } else { "THE LOG IS DAMAGED".into() });
    lines.join("\n") + "\n"
}

fn summary(stream: &Survey) -> String {
    let frames: u64 = stream.segments.iter().map(|segment| segment.frames).sum();
    let bytes: u64 = stream.segments.iter().map(|segment| segment.frame_bytes).sum();
    let end = match stream.end {
        Some(end) => format!("ends at segment {}, offset {}, frame {}", end.segment, end.offset, end.seq),
        None => "can't be replayed".into(),
    };
    let (id, torn) = (stream.stream, stream.torn_bytes);
    let segments = stream.segments.len();
    format!(
        "stream {id}: {segments} segments, {frames} frames of {bytes} bytes, {end}, {torn} bytes torn off"
    )
}

fn contents(stream: &Survey) -> Vec<String> {
    let mut lines = Vec::new();
    for segment in &stream.segments {
        let file = &segment.file;
        lines.push(match segment.seqs {
            Some((first, last)) => format!(
                "  {}: {} bytes, boot {}, frames {first} to {last}",
                file.path,
                file.bytes,
                segment.boot_epoch.map_or("unknown".into(), |epoch| epoch.to_string())
            ),
            None => format!("  {}: {} bytes, spare", file.path, file.bytes),
        });
    }
    for (kind, count) in &stream.records {
        lines.push(format!("  {count} {kind} records"));
    }
    for (shard, state) in &stream.shards {
        let last = state.entries.last().map_or(state.flushed, |entry| entry.mark);
        let (hard, flushed, generation) = (&state.hard_state, state.flushed, state.generation);
        let vote = hard.vote.map_or("nobody".into(), |vote| vote.to_string());
        lines.push(format!(
            "  shard {shard}: replica {}, flushed {flushed} (generation {generation}), last {last}, term {}, voted for {vote}, commit {}",
            state.replica, hard.term, hard.commit
        ));
    }
    lines
}

fn finding_text(finding: &Finding) -> String {
    let Finding { file, offset, seq, shards, what, is_loss } = finding;
    let label = if *is_loss { "DAMAGED" } else { "worn" };
    let shards = match shards.as_slice() {
        [] => "shards unknown".into(),
        named => format!("shards {}", named.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    };
    format!("  {label}: {file} at offset {offset}, frame {seq}, {shards}: {what}")
}

fn as_json(found: &DirectorySurvey) -> Value {
    let record = &found.record;
    json!({
        "node": record.node.0,
        "store": format!("{:032x}", record.store_uuid),
        "boot_epoch": record.boot_epoch,
        "sound": found.is_sound(),
        "streams": found.streams.iter().map(stream_json).collect::<Vec<_>>(),
    })
}

fn stream_json(stream: &Survey) -> Value {
    let segments = stream.segments.iter().map(|segment| {
        json!({
            "file": *segment.file.path,
            "bytes": segment.file.bytes,
            "boot_epoch": segment.boot_epoch,
            "frames": segment.frames,
            "frame_bytes": segment.frame_bytes,
            "first_frame": segment.seqs.map(|(first, _)| first),
            "last_frame": segment.seqs.map(|(_, last)| last),
        })
    });
    let shards = stream.shards.iter().map(|(shard, state)| {
        let last = state.entries.last().map_or(state.flushed, |entry| entry.mark);
        json!({
            "shard": shard.0,
            "replica": state.replica.get(),
            "home_epoch": state.home_epoch,
            "generation": state.generation,
            "flushed": { "term": state.flushed.term, "index": state.flushed.index },
            "last": { "term": last.term, "index": last.index },
            "term": state.hard_state.term,
            "vote": state.hard_state.vote.map(floe_raft::ReplicaId::get),
            "commit": state.hard_state.commit,
        })
    });
    let findings = stream.findings.iter().map(|finding| {
        json!({
            "file": *finding.file,
            "offset": finding.offset,
            "frame": finding.seq,
            "shards": finding.shards.iter().map(|shard| shard.0).collect::<Vec<_>>(),
            "what": finding.what,
            "loss": finding.is_loss,
        })
    });
    json!({
        "stream": stream.stream,
        "end": stream.end.map(|end| json!({ "segment": end.segment, "offset": end.offset, "frame": end.seq })),
        "torn_bytes": stream.torn_bytes,
        "records": stream.records,
        "segments": segments.collect::<Vec<_>>(),
        "shards": shards.collect::<Vec<_>>(),
        "findings": findings.collect::<Vec<_>>(),
    })
}
