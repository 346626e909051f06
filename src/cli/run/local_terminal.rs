//! The terminal of the person who runs nixbox.

use std::io::{self, IsTerminal as _};

use rustix::termios::{self, OptionalActions, Termios};

use crate::guest::channel::TerminalSize;

/// The size that a guest's terminal gets if stdin is no terminal.
pub(super) const USUAL_SIZE: TerminalSize = TerminalSize { columns: 80, rows: 24 };

/// Returns the size of the terminal that stdin is. Returns `None` if stdin is no terminal, or if the terminal has no size.
pub(super) fn size() -> Option<TerminalSize> {
    let size = termios::tcgetwinsize(io::stdin()).ok()?;
    let size = TerminalSize { columns: size.ws_col.into(), rows: size.ws_row.into() };
    (size.columns > 0 && size.rows > 0).then_some(size)
}

/// A terminal that passes every key on, Ctrl-C too, and shows only what is written to it. When this is dropped, the terminal
/// is as it was before.
pub(super) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Changes the terminal that stdin is; `None` if stdin is no terminal.
    ///
    /// # Errors
    /// If the terminal cannot be changed. It is as before then.
    pub(super) fn of_stdin() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(io::stdin(), OptionalActions::Drain, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // This fails if the terminal is gone, and then there is nothing to put right.
        termios::tcsetattr(io::stdin(), OptionalActions::Drain, &self.before).ok();
    }
}
