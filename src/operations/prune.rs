//! What a session does after a snapshot was made: it deletes old snapshots that have no name.
//!
//! Three limits of the configuration decide which: a number of unnamed snapshots, an age, and the bytes that all snapshots
//! occupy together. A snapshot that one of the limits does not allow goes. The snapshot that was made last stays whatever the
//! limits are, and so do all with a name, the damaged ones, which may have had a name, and the one that the VM came from.
//!
//! Uses the session.

use std::collections::BTreeSet;
use std::time::Duration;

use super::outcome::{OperationResult, Refusal, Retention};
use super::session::Session;
use crate::engine::journal::Storage;
use crate::world::{ListedSnapshot, SnapshotId};

impl<S: Storage> Session<'_, S> {
    /// Deletes the unnamed snapshots that are not to be kept, oldest first. `from` is the one that the VM came from. Returns
    /// what all snapshots still occupy, in bytes, if that is above the limit and no other may be deleted.
    pub(super) async fn prune(
        &mut self,
        retention: Retention,
        from: Option<SnapshotId>,
        pruned: &mut Vec<SnapshotId>,
    ) -> Result<Option<u64>, Refusal> {
        if retention == Retention::default() {
            return Ok(None);
        }
        let now = self.world.clock.unix_ms();
        let Prunable { ids, above_limit } = to_prune(self.listed().await?, retention, from, now)?;
        for id in ids {
            match self.remove(id).await? {
                OperationResult::Done => pruned.push(id),
                OperationResult::Stuck(failure) => return Err(Refusal::Stuck(failure)),
                // A person asked to stop: the next snapshot prunes the others.
                _ => return Ok(None),
            }
        }
        Ok(above_limit)
    }
}

/// What is to be pruned.
#[derive(Debug, PartialEq, Eq)]
struct Prunable {
    /// The snapshots, oldest first.
    ids: BTreeSet<SnapshotId>,
    /// The bytes that all others occupy, if they are above the limit.
    above_limit: Option<u64>,
}

/// Which of the listed snapshots are not to be kept at this time, in milliseconds since 1970. `listed` is oldest first.
///
/// # Errors
/// If there is a limit on bytes, and it is not known what a snapshot occupies.
fn to_prune(
    listed: Vec<ListedSnapshot>,
    retention: Retention,
    from: Option<SnapshotId>,
    now: u64,
) -> Result<Prunable, Refusal> {
    let Retention { keep, keep_for, keep_bytes } = retention;
    let last = listed.last().map(|one| one.id);
    let unnamed: Vec<&ListedSnapshot> = listed.iter().filter(|one| one.is_unnamed()).collect();
    let may_go = |one: &ListedSnapshot| Some(one.id) != last && Some(one.id) != from;
    let mut ids = BTreeSet::new();
    if let Some(keep) = keep {
        ids.extend(unnamed.iter().rev().skip(keep as usize).filter(|one| may_go(one)).map(|one| one.id));
    }
    if let Some(longest) = keep_for {
        let old = |one: &&&ListedSnapshot| may_go(one) && is_older(one, longest, now);
        ids.extend(unnamed.iter().filter(old).map(|one| one.id));
    }
    let mut above_limit = None;
    if let Some(most) = keep_bytes {
        let candidates: BTreeSet<SnapshotId> =
            unnamed.iter().filter(|one| may_go(one)).map(|one| one.id).collect();
        let mut left = Vec::new();
        for ListedSnapshot { id, occupied, .. } in listed {
            let bytes = occupied.map_err(Refusal::Look)?;
            left.extend((!ids.contains(&id)).then_some((id, bytes)));
        }
        let mut total: u128 = left.iter().map(|(_, bytes)| u128::from(*bytes)).sum();
        for (id, bytes) in left.into_iter().filter(|(id, _)| candidates.contains(id)) {
            if total <= most.into() {
                break;
            }
            total -= u128::from(bytes);
            ids.insert(id);
        }
        above_limit = (total > most.into()).then_some(u64::try_from(total).unwrap_or(u64::MAX));
    }
    Ok(Prunable { ids, above_limit })
}

/// Whether a snapshot was made longer ago. A snapshot that the clock of this host has not reached is not old.
fn is_older(one: &ListedSnapshot, longest: Duration, now: u64) -> bool {
    let made = one.manifest.as_ref().map_or(u64::MAX, |manifest| manifest.created_ms);
    now.checked_sub(made).is_some_and(|passed| Duration::from_millis(passed) > longest)
}

#[cfg(test)]
mod tests;
