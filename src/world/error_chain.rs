//! An error and its causes, for a message that is one line.

use std::error::Error;

/// The error and its causes, each after a colon. The message of a transparent error is that of its cause, and stands once.
#[must_use]
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    messages(error).join(": ")
}

/// The messages of an error and of its causes.
#[must_use]
pub fn messages(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut messages: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let message = error.to_string();
        if !messages.last().is_some_and(|last| last.ends_with(&message)) {
            messages.push(message);
        }
        next = error.source();
    }
    messages
}
