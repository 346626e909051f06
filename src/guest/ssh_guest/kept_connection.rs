//! The connection that is kept from one call to the next, because connecting takes longer than most calls.

use std::sync::{Arc, MutexGuard, PoisonError, Weak};

use super::SshGuest;
use crate::guest::shell::Shell;
use crate::guest::stale_scripts;
use crate::world::{Failure, Generation, Interrupt, Machine, Result};

impl SshGuest {
    /// Runs `act` on a connection, until it ends or the VM is gone. Keeps the connection if `act` succeeds.
    pub(super) async fn with<T>(
        &self,
        machine: &Machine,
        act: impl AsyncFnOnce(&Shell) -> Result<T>,
    ) -> Result<T> {
        let mut used = self.acquire(machine).await?;
        let done = self.while_there(machine, act(&used.shell)).await;
        used.keep = done.is_ok();
        done
    }

    /// Returns the kept connection, or a new one. When this returns, no script of another nixbox runs in the guest.
    /// Scripts of this nixbox run only on connections that are in use.
    async fn acquire(&self, machine: &Machine) -> Result<UsedConnection<'_>> {
        // Without the lock, two calls that connect at once would each kill the scripts of the other.
        let mut living = self.living.lock().await;
        let kept = self.kept().take().filter(|(vmm, shell)| *vmm == machine.vmm && shell.session.lives());
        let shell = match kept {
            Some((_, shell)) => shell,
            None => {
                let shell = self.connect(machine, &Interrupt::new()).await?;
                living.retain(|shell| shell.strong_count() > 0);
                let spared: Vec<_> = living.iter().filter_map(Weak::upgrade).collect();
                let marks: Vec<_> = spared.iter().map(|shell| &shell.mark).collect();
                let ended = async { stale_scripts::end_others(&shell, &marks).await.map_err(Failure::world) };
                self.while_there(machine, ended).await?;
                let shell = Arc::new(shell);
                living.push(Arc::downgrade(&shell));
                shell
            }
        };
        // Other calls may use the same connection at the same time.
        *self.kept() = Some((machine.vmm, Arc::clone(&shell)));
        Ok(UsedConnection { guest: self, shell, keep: false })
    }

    /// Like [`SshGuest::with`], and closes the connection afterwards.
    pub(super) async fn with_last<T>(
        &self,
        machine: &Machine,
        act: impl AsyncFnOnce(&Shell) -> Result<T>,
    ) -> Result<T> {
        let done = self.with(machine, act).await;
        let kept = self.kept().take();
        if let Some(shell) = kept.and_then(|(_, shell)| Arc::into_inner(shell)) {
            shell.session.close().await;
        }
        done
    }

    fn kept(&self) -> MutexGuard<'_, Option<(Generation, Arc<Shell>)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection in use. If the call on it fails or is dropped, the connection is not used again, because its script may
/// continue in the guest; the next connection ends that script.
struct UsedConnection<'a> {
    guest: &'a SshGuest,
    shell: Arc<Shell>,
    keep: bool,
}

impl Drop for UsedConnection<'_> {
    fn drop(&mut self) {
        if !self.keep {
            self.guest.kept().take_if(|(_, kept)| Arc::ptr_eq(kept, &self.shell));
        }
    }
}
