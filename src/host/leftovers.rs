//! Whatever bears the mark of a workspace on this machine: processes, RAM files, disk images.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;

use super::disk::Disks;
use super::memory::RamFiles;
use super::process::Daemons;
use crate::world::{Failure, Generation, Leftovers, Result};

/// [`Leftovers`] of one workspace.
pub struct HostLeftovers {
    /// Its processes.
    pub daemons: Daemons,
    /// Its RAM files.
    pub memory: Arc<RamFiles>,
    /// Its disk images.
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
