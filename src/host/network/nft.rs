//! How nixbox speaks to nft: batches and questions as JSON, and the parts that rules are made of.

use std::borrow::Cow;
use std::time::Duration;

use nftables::batch::Batch;
use nftables::expr::{Expression, Meta, MetaKey, NamedExpression};
use nftables::stmt::{Match, Operator, Statement};
use serde_json::Value;

use super::tool::{Entrance, NetworkTool};
use crate::host::process::ProcessMark;
use crate::host::program::ProgramError;

/// Replacing a table takes 15 ms; on a host with large rulesets nft first reads all of them.
const LIMIT: Duration = Duration::from_secs(20);

/// nft, which works in one network.
pub(super) struct Nft {
    /// `None` for the namespace of this thread.
    pub(super) inside: Option<Entrance>,
    /// The mark of an nft that changes something, so that an nft that outlives nixbox can be ended.
    pub(super) mark: ProcessMark,
}

impl Nft {
    /// Carries out a batch, all of it or nothing.
    pub(super) async fn change(&self, batch: &Batch<'_>) -> Result<(), ProgramError> {
        let input = serde_json::to_vec(&batch.clone().to_nftables()).map_err(json)?;
        // nft reads /dev/stdin if it is given `-`, and a bare devtmpfs has no /dev/stdin.
        self.run(&["-j", "-f", "/proc/self/fd/0"], Some(&self.mark), &input).await.map(drop)
    }

    /// Asks for a listing, in nft's own words.
    pub(super) async fn ask(&self, question: &str) -> Result<Value, ProgramError> {
        let arguments: Vec<&str> = std::iter::once("-j").chain(question.split(' ')).collect();
        serde_json::from_slice(&self.run(&arguments, None, &[]).await?).map_err(json)
    }

    /// Whether there is a table of this name.
    pub(super) async fn has_table(&self, family: &str, name: &str) -> Result<bool, ProgramError> {
        let tables = self.ask("list tables").await?;
        Ok(objects(&tables, "table").any(|table| table["family"] == family && table["name"] == name))
    }

    async fn run(
        &self,
        arguments: &[&str],
        mark: Option<&ProcessMark>,
        input: &[u8],
    ) -> Result<Vec<u8>, ProgramError> {
        let inside = self.inside.clone();
        let program = NetworkTool {
            name: "nft",
            arguments,
            mark,
            confinement: None,
            scope: None,
            input,
            limit: LIMIT,
            inside,
        };
        Ok(program.run().await?.stdout)
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
