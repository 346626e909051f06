//! Connections to the guest that transfer nothing while the VM is paused, and break when the VM is gone.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RunState {
    Running,
    Paused,
    Gone,
}

/// Whether the VM runs, and who waits for that to change. A VM that is gone stays gone.
pub(super) struct PauseControl(Mutex<(RunState, Vec<Waker>)>);

impl PauseControl {
    pub(super) fn paused() -> Self {
        Self(Mutex::new((RunState::Paused, Vec::new())))
    }

    fn set(&self, new: RunState) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 != RunState::Gone {
            state.0 = new;
        }
        state.1.drain(..).for_each(Waker::wake);
    }

    pub(super) fn resume(&self) {
        self.set(RunState::Running);
    }

    pub(super) fn pause(&self) {
        self.set(RunState::Paused);
    }

    pub(super) fn end(&self) {
        self.set(RunState::Gone);
    }

    fn poll(&self, context: &Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.0 {
            RunState::Running => Poll::Ready(Ok(())),
            RunState::Gone => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            RunState::Paused => {
                state.1.push(context.waker().clone());
                Poll::Pending
            }
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 == RunState::Gone
    }

    /// Waits until the VM is gone.
    pub(super) async fn until_gone(&self) {
        poll_fn(|context| {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if state.0 == RunState::Gone {
                return Poll::Ready(());
            }
            state.1.push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Waits until the VM runs.
    ///
    /// # Errors
    /// `ConnectionReset` if the VM is gone.
    pub(super) async fn until_running(&self) -> io::Result<()> {
        poll_fn(|context| self.poll(context)).await
    }
}

/// A connection to the guest, in the hands of the guest.
pub(super) struct PausableStream {
    pub(super) stream: TcpStream,
    pub(super) pause_control: Arc<PauseControl>,
}

/// Returns from a poll function unless the VM runs.
macro_rules! ready_if_running {
    ($self:ident, $context:ident) => {
        match $self.pause_control.poll($context) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => return Poll::Pending,
        }
    };
}

impl AsyncRead for PausableStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready_if_running!(self, context);
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for PausableStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready_if_running!(self, context);
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready_if_running!(self, context);
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
