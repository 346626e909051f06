//! Refusals of the simulated API: an HTTP status, and an error chain as Cloud Hypervisor writes it.

use serde_json::json;

use crate::world::capability::Capability;

/// The answer to a call that is refused.
#[derive(Debug)]
pub(super) struct ApiRefusal {
    pub(super) status: u16,
    /// Outermost first.
    chain: Vec<String>,
}

impl ApiRefusal {
    pub(super) fn new(status: u16, chain: &[&str]) -> Self {
        Self { status, chain: chain.iter().map(|text| (*text).to_owned()).collect() }
    }

    /// The refusal that an error of the system causes: the chain is `doing`, then the text of the error.
    pub(super) fn of(doing: &[&str], error: &dyn std::error::Error) -> Self {
        let mut refusal = Self::new(500, doing);
        refusal.chain.push(error.to_string());
        refusal
    }

    /// The same, with `what` before the text of the error if this version says what was done to which file.
    pub(super) fn with_file(
        version: &Capability,
        doing: &[&str],
        what: &str,
        error: &dyn std::error::Error,
    ) -> Self {
        let mut refusal = Self::of(doing, error);
        if version.snapshot_errors_name_the_file {
            refusal.chain.insert(doing.len(), what.to_owned());
        }
        refusal
    }

    /// The same as the answer to a call: two messages more at the outer end of the chain.
    pub(super) fn to(mut self, call: &str) -> Self {
        self.chain.splice(0..0, ["Error from API".to_owned(), call.to_owned()]);
        self
    }

    /// Adds words to the inner end of the chain.
    pub(super) fn extend(&mut self, words: &[&str]) {
        self.chain.extend(words.iter().map(|word| (*word).to_owned()));
    }

    /// The body of the answer, as JSON.
    pub(super) fn body(&self) -> String {
        json!(self.chain).to_string()
    }
}
