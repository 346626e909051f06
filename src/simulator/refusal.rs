//! Refusals of the simulated API: an HTTP status, and an error chain as Cloud Hypervisor writes it.

use serde_json::json;

use crate::world::capability::Capability;

/// What the API says no with.
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

    /// An error of the system, below what was being done.
    pub(super) fn of(doing: &[&str], error: &dyn std::error::Error) -> Self {
        let mut refusal = Self::new(500, doing);
        refusal.chain.push(error.to_string());
        refusal
    }

    /// The same, with the file that it was done to, if this version names it.
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

    /// The same as the answer to a call.
    pub(super) fn to(mut self, call: &str) -> Self {
        self.chain.splice(0..0, ["Error from API".to_owned(), call.to_owned()]);
        self
    }

    /// Adds words to the inner end of the chain.
    pub(super) fn extend(&mut self, words: &[&str]) {
        self.chain.extend(words.iter().map(|word| (*word).to_owned()));
    }

    pub(super) fn body(&self) -> String {
        json!(self.chain).to_string()
    }
}
