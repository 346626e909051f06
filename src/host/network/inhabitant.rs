//! A thread that stays in a network namespace and starts programs there, for a process that has given up the capability to
//! enter namespaces.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;

use rustix::thread::LinkNameSpaceType;

type Act = Box<dyn FnOnce() + Send>;

/// The thread. It ends with this value.
pub(super) struct Inhabitant(mpsc::Sender<Act>);

impl fmt::Debug for Inhabitant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Inhabitant")
    }
}

impl Inhabitant {
    /// Starts a thread that enters the namespace and then runs `settle`, which gives up what the thread no longer needs.
    ///
    /// # Errors
    /// If the thread cannot be started, or one of the two fails.
    pub(super) fn new(
        namespace: OwnedFd,
        settle: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let (acts, to_do) = mpsc::channel::<Act>();
        let (settled, has_settled) = mpsc::channel();
        std::thread::Builder::new().name("inhabitant".to_owned()).spawn(move || {
            let network = Some(LinkNameSpaceType::Network);
            let entered = rustix::thread::move_into_link_name_space(namespace.as_fd(), network);
            let entered = entered.map_err(io::Error::from).and_then(|()| settle());
            let stays = entered.is_ok();
            if settled.send(entered).is_ok() && stays {
                to_do.into_iter().for_each(|act| act());
            }
        })?;
        has_settled.recv().map_err(|_| io::ErrorKind::BrokenPipe)??;
        Ok(Self(acts))
    }

    /// Runs this on the thread, and waits for it; `None` if the thread has ended.
    pub(super) fn run<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (sender, answer) = mpsc::channel();
        // The receiver waits until it has the answer.
        self.0.send(Box::new(move || drop(sender.send(act())))).ok()?;
        answer.recv().ok()
    }
}
