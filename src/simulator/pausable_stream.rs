//! What stands still while a VM is paused: nothing gets in or out of it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Open,
    Closed,
    /// The VM is gone.
    Gone,
}

/// Open while the VM runs.
pub(super) struct Gate(Mutex<(Is, Vec<Waker>)>);

impl Gate {
    pub(super) fn closed() -> Self {
        Self(Mutex::new((Is::Closed, Vec::new())))
    }

    fn set(&self, is: Is) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 != Is::Gone {
            state.0 = is;
        }
        state.1.drain(..).for_each(Waker::wake);
    }

    pub(super) fn open(&self) {
        self.set(Is::Open);
    }

    pub(super) fn close(&self) {
        self.set(Is::Closed);
    }

    pub(super) fn end(&self) {
        self.set(Is::Gone);
    }

    fn poll(&self, context: &Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.0 {
            Is::Open => Poll::Ready(Ok(())),
            Is::Gone => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Is::Closed => {
                state.1.push(context.waker().clone());
                Poll::Pending
            }
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 == Is::Gone
    }

    /// Waits until the VM is gone.
    pub(super) async fn gone(&self) {
        poll_fn(|context| {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if state.0 == Is::Gone {
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
    /// If it is gone.
    pub(super) async fn passed(&self) -> io::Result<()> {
        poll_fn(|context| self.poll(context)).await
    }
}

/// A connection to the guest.
pub(super) struct Gated {
    pub(super) stream: TcpStream,
    pub(super) gate: Arc<Gate>,
}

macro_rules! pass {
    ($self:ident, $context:ident) => {
        match $self.gate.poll($context) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => return Poll::Pending,
        }
    };
}

impl AsyncRead for Gated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        pass!(self, context);
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Gated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        pass!(self, context);
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        pass!(self, context);
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
