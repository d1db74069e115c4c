//! What was found of a shard at start becomes its replica again.

use crate::boot::WITHOUT_IT;
use crate::seam::Failure;
use crate::start::Found;
use crate::worker::WorkerConfig;
use floe_raft::{Entry, EntryKind, Mark, Membership, Nanos};
use floe_shard::output::ShardState;
use floe_shard::{MultiRaft, open_dump};

/// The machine's own files hold more than the record of their last flush says: a crash came between the two. What they
/// hold was in the log before it was applied, so it must be there. False if it isn't.
fn skip_applied(state: &mut ShardState, to: Mark) -> bool {
    if to != state.flushed {
        let Some(at) = state.entries.iter().position(|entry| entry.mark == to) else { return false };
        state.entries.drain(..=at);
        state.flushed = to;
    }
    true
}

/// Adds the replica, with its state restored from the dump that the log names.
///
/// # Errors
/// The dump, the machine's own files and the log don't fit together.
pub(crate) fn restore(
    now: Nanos,
    config: &WorkerConfig,
    found: Found,
    multi: &mut MultiRaft,
) -> Result<(), Failure> {
    let Found { mut state, dump, moved } = found;
    let mut machine = (config.machines)(state.shard);
    if let Some(dump) = dump {
        let name = crate::dumps::dump_name(state.shard, state.replica, state.generation);
        let damaged =
            |why: String| Failure::Corrupt(format!("dump/{name}: {why}; restore the file. {WITHOUT_IT}",));
        let (head, body) = open_dump(&dump).map_err(|error| damaged(error.to_string()))?;
        machine.restore(&body).map_err(|error| damaged(format!("{error:?}")))?;
        let (head, fits) = match machine.newer() {
            Some(newer) => {
                let fits = skip_applied(&mut state, newer.mark);
                (newer, fits)
            }
            None => {
                let fits = head.mark == state.flushed;
                (head, fits)
            }
        };
        if !fits {
            return Err(damaged(format!("it stands at {}, the log says {}", head.mark, state.flushed)));
        }
        // A flush is one record that names the dump; the descriptor of that moment lies in the dump.
        state.descriptor = head.descriptor.encode();
    }
    let no_membership =
        |entry: &&Entry| entry.kind == EntryKind::Membership && Membership::decode(&entry.data).is_none();
    if let Some(entry) = state.entries.iter().find(no_membership) {
        let why = format!("shard {}: entry {} holds no sound membership", state.shard, entry.mark);
        return Err(Failure::Corrupt(why));
    }
    multi.restore(now, state, machine, moved);
    Ok(())
}
