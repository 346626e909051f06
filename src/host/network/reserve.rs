//! Accepts connections in a process that may have no descriptor left.
//!
//! A client that cannot be accepted for want of a descriptor stays in the queue, and the listening socket stays ready. A loop
//! that only tries again would use a whole processor until a descriptor is free. So one descriptor is reserved: it is given
//! up for such a client, who is sent away with it.

use std::fs::File;
use std::io;

use rustix::io::Errno;

/// A descriptor that stands for a client.
pub(super) struct Reserve(Option<File>);

impl Reserve {
    /// Reserves a descriptor.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Some(Self::open()?)))
    }

    fn open() -> io::Result<File> {
        File::open("/dev/null")
    }

    /// Waits for a client with `accept`. `None` stands for a client who was gone already, or who was sent away because there
    /// was no descriptor for it.
    ///
    /// # Errors
    /// If the host has no descriptors or memory left, so that not even a client can be sent away, or if nobody
    /// can connect to the listening socket any more. Trying again would change nothing.
    pub(super) fn accept<T>(&mut self, accept: impl Fn() -> io::Result<T>) -> io::Result<Option<T>> {
        match accept() {
            Ok(client) => Ok(Some(client)),
            Err(error) if is(&error, &[Errno::MFILE, Errno::NFILE]) => {
                self.0 = None;
                drop(accept()?);
                self.0 = Some(Self::open()?);
                Ok(None)
            }
            // accept(2) lists these as errors of the connection that was waiting.
            Err(error)
                if is(
                    &error,
                    &[
                        Errno::INTR,
                        Errno::CONNABORTED,
                        Errno::NETDOWN,
                        Errno::PROTO,
                        Errno::NOPROTOOPT,
                        Errno::HOSTDOWN,
                        Errno::HOSTUNREACH,
                        Errno::OPNOTSUPP,
                        Errno::NETUNREACH,
                    ],
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

fn is(error: &io::Error, errnos: &[Errno]) -> bool {
    errnos.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Accepts as the kernel does for a process with so many descriptors left.
    fn accept_with(left: &Cell<u32>) -> impl Fn() -> io::Result<()> {
        move || if left.get() > 0 { Ok(()) } else { Err(Errno::MFILE.into()) }
    }

    #[test]
    fn a_client_without_a_descriptor_is_sent_away_with_the_reserved_one() {
        let mut reserve = Reserve::new().unwrap();
        let calls = Cell::new(0);
        let none_then_one = || {
            calls.set(calls.get() + 1);
            if calls.get() == 1 { Err(Errno::MFILE.into()) } else { Ok(()) }
        };
        assert_eq!(reserve.accept(none_then_one).unwrap(), None);
        assert_eq!(calls.get(), 2, "the client was taken from the queue");
        assert!(reserve.0.is_some(), "the descriptor is reserved again");
        assert_eq!(reserve.accept(accept_with(&Cell::new(1))).unwrap(), Some(()));
    }

    #[test]
    fn a_process_without_any_descriptor_gives_up_instead_of_spinning() {
        let mut reserve = Reserve::new().unwrap();
        let error = reserve.accept(accept_with(&Cell::new(0))).unwrap_err();
        assert!(is(&error, &[Errno::MFILE]));
    }

    #[test]
    fn a_client_that_is_gone_is_no_failure() {
        let mut reserve = Reserve::new().unwrap();
        assert_eq!(reserve.accept(|| Err::<(), _>(Errno::CONNABORTED.into())).unwrap(), None);
    }
}
