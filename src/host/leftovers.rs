//! Finds what a workspace has left on this machine: processes, RAM files and disk images, by generation.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;

use super::disk::Disks;
use super::memory::RamFiles;
use super::process::Daemons;
use crate::world::{Failure, Generation, Leftovers, Result};

/// [`Leftovers`] of one workspace.
#[allow(missing_docs, reason = "the types say it")]
pub struct HostLeftovers {
    pub daemons: Daemons,
    pub memory: Arc<RamFiles>,
    pub disk: Arc<Disks>,
}

#[async_trait]
impl Leftovers for HostLeftovers {
    async fn generations(&self) -> Result<BTreeSet<Generation>> {
        let mut all = self.daemons.generations().map_err(Failure::world)?;
        all.extend(self.memory.generations()?);
        all.extend(self.disk.generations()?);
        Ok(all)
    }
}
