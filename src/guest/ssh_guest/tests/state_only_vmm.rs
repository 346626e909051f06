//! The VMM of the guests in these tests.

use super::*;
use crate::world::Cpuid;

/// A VMM that answers only questions about the state of its VM.
pub(super) struct StateOnlyVmm(pub(super) Mutex<VmmState>);

#[async_trait]
impl Vmm for StateOnlyVmm {
    async fn find(&self, _: Generation) -> Result<VmmState> {
        Ok(*self.0.lock().unwrap())
    }
    async fn ability(&self, _: Option<Generation>) -> Result<Ability> {
        unreachable!()
    }
    async fn version(&self, _: Option<Generation>) -> Result<VmmVersion> {
        unreachable!()
    }
    async fn start(&self, _: Generation) -> Result<()> {
        unreachable!()
    }
    async fn boot(&self, _: &Machine) -> Result<()> {
        unreachable!()
    }
    async fn pause(&self, _: Generation) -> Result<()> {
        unreachable!()
    }
    async fn resume(&self, _: Generation) -> Result<()> {
        unreachable!()
    }
    async fn save(&self, _: Generation, _: SnapshotId) -> Result<()> {
        unreachable!()
    }
    async fn saved_cpuid(&self, _: SnapshotId) -> Result<Option<Cpuid>> {
        unreachable!()
    }
    async fn load(&self, _: &Machine, _: SnapshotId) -> Result<()> {
        unreachable!()
    }
    async fn load_without_shares(&self, _: &Machine, _: SnapshotId) -> Result<()> {
        unreachable!()
    }
    async fn power_button(&self, _: Generation) -> Result<()> {
        unreachable!()
    }
    async fn ends(&self, _: Generation, _: Duration) -> Result<bool> {
        unreachable!()
    }
    async fn stop(&self, _: Generation) -> Result<()> {
        unreachable!()
    }
    async fn attach_shares(&self, _: Generation) -> Result<()> {
        unreachable!()
    }
    async fn detach_shares(&self, _: Generation) -> Result<()> {
        unreachable!()
    }
    async fn shares_attached(&self, _: Generation) -> Result<Presence> {
        unreachable!()
    }
}
