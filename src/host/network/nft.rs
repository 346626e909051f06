//! How nixbox changes tables: batches for nft as JSON, and the parts that rules are made of.

use std::borrow::Cow;
use std::time::Duration;

use nftables::batch::Batch;
use nftables::expr::{Expression, Meta, MetaKey, NamedExpression};
use nftables::stmt::{Match, Operator, Statement};
use serde_json::Value;

use super::tables::{Tables, TablesError};
use super::tool::{Entrance, NetworkTool};
use crate::host::process::ProcessMark;
use crate::host::program::ProgramError;

/// Replacing a table takes 15 ms; on a host with large rulesets nft first reads all of them.
const LIMIT: Duration = Duration::from_secs(20);

/// Why rules cannot be looked at or changed.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Tables(#[from] TablesError),
}

/// The tables of one network, and nft, which changes them.
pub(super) struct Nft {
    pub(super) tables: Tables,
    /// `None` for the namespace of this thread.
    pub(super) inside: Option<Entrance>,
    /// The mark of an nft that changes something, so that an nft that outlives nixbox can be ended.
    pub(super) mark: ProcessMark,
}

impl Nft {
    /// Carries out a batch, all of it or nothing.
    pub(super) async fn change(&self, batch: &Batch<'_>) -> Result<(), RulesError> {
        let input = serde_json::to_vec(&batch.clone().to_nftables()).map_err(json)?;
        // nft reads /dev/stdin if it is given `-`, and a bare devtmpfs has no /dev/stdin.
        let program = NetworkTool {
            name: "nft",
            arguments: &["-j", "-f", "/proc/self/fd/0"],
            mark: Some(&self.mark),
            confinement: None,
            scope: None,
            input: &input,
            limit: LIMIT,
            inside: self.inside.clone(),
        };
        program.run().await?;
        Ok(())
    }
}

fn json(source: serde_json::Error) -> ProgramError {
    ProgramError::Json { name: "nft", source }
}

/// The objects of one kind in what nft lists.
pub(super) fn objects<'a>(listing: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    let all = listing["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().filter_map(move |object| object.get(kind))
}

pub(super) fn is(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op: Operator::EQ })
}

pub(super) fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

pub(super) fn text(value: impl ToString) -> Expression<'static> {
    Expression::String(Cow::Owned(value.to_string()))
}
