//! Connections to a guest that may not be SSH-ready yet.

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::settings::GuestSettings;
use super::{SshGuest, WATCH, failure};
use crate::guest::channel::{Limits, SshSession};
use crate::guest::ready::{Patience, until_ready};
use crate::guest::shell::Shell;
use crate::guest::wall_clock;
use crate::world::{Interrupt, Machine, Result};

impl SshGuest {
    /// Waits until a command has run in the guest, and returns the connection that it ran on.
    ///
    /// # Errors
    /// [`Failure::Lost`](crate::world::Failure::Lost) if the VM is lost;
    /// [`Failure::Interrupted`](crate::world::Failure::Interrupted); otherwise the error of the last attempt.
    pub async fn connect(&self, machine: &Machine, interrupt: &Interrupt) -> Result<Shell> {
        let since = Instant::now();
        let waiting = || (self.settings.on_waiting)(machine, since.elapsed());
        self.reach(machine, self.settings.limits, interrupt, waiting).await
    }

    /// Does the same for a command that may run long. The connection is not given up while the guest of a paused VM is
    /// silent, so the command has to run in [`SshGuest::until_vm_is_gone`].
    ///
    /// # Errors
    /// Those of [`SshGuest::connect`].
    pub async fn connect_for_long(&self, machine: &Machine, interrupt: &Interrupt) -> Result<Shell> {
        let since = Instant::now();
        let waiting = || (self.settings.on_waiting)(machine, since.elapsed());
        let limits = Limits { endless: true, ..self.settings.limits };
        self.reach(machine, limits, interrupt, waiting).await
    }

    /// A new connection to the guest's SSH server, for another program.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub async fn dial(&self, machine: &Machine) -> std::io::Result<TcpStream> {
        let GuestSettings { address, dial, .. } = &self.settings;
        dial(address(machine.slot)).await
    }

    /// Sets the clock of the guest if it was off when this connection was made, as after a suspend of the host. Tells the
    /// observer why it cannot be set.
    pub async fn put_clock_right(&self, shell: &Shell) {
        if let Err(unsettled) = wall_clock::put_right(shell).await {
            (self.settings.on_unsettled)(&unsettled);
        }
    }

    /// Does the same as [`SshGuest::connect`], and calls `waiting` from time to time.
    pub(super) async fn reach(
        &self,
        machine: &Machine,
        limits: Limits,
        interrupt: &Interrupt,
        waiting: impl Fn(),
    ) -> Result<Shell> {
        let GuestSettings { ready, console, .. } = &self.settings;
        let endpoint = self.endpoint(machine)?;
        let endpoint = &endpoint;
        let attempt = async move |limits: Limits| {
            let session = SshSession::open(endpoint, limits).await?;
            Ok(Shell::greet(session, limits.connect).await?)
        };
        let signs = || console(machine);
        let patience = Patience { within: ready.duration(), signs: &signs };
        let connected = async { until_ready(patience, limits, interrupt, attempt).await.map_err(failure) };
        self.watching(machine, WATCH, connected, waiting).await
    }
}
