//! How nixbox speaks to nft: batches and questions as JSON, and the parts that rules are made of.

use std::borrow::Cow;
use std::time::Duration;

use nftables::batch::Batch;
use nftables::expr::{Expression, Meta, MetaKey, NamedExpression};
use nftables::stmt::{Match, Operator, Statement};
use serde_json::Value;

use super::plan::NetworkPlan;
use super::tool::NetworkTool;
use crate::host::process::ProcessMark;
use crate::host::program::ProgramError;

/// Replacing a table takes 15 ms; on a host with large rulesets nft first reads all of them.
const LIMIT: Duration = Duration::from_secs(20);

/// Carries out a batch, all of it or nothing. nft gets a mark, so that an nft that outlives nixbox can be ended.
pub(super) async fn change(plan: &NetworkPlan, batch: &Batch<'_>) -> Result<(), ProgramError> {
    let input = serde_json::to_vec(&batch.clone().to_nftables()).map_err(json)?;
    // nft reads /dev/stdin if it is given `-`, and a bare devtmpfs has no /dev/stdin.
    run(&["-j", "-f", "/proc/self/fd/0"], Some(&plan.firewall_mark()), &input).await.map(drop)
}

/// Asks for a listing, in nft's own words.
pub(super) async fn ask(question: &str) -> Result<Value, ProgramError> {
    let arguments: Vec<&str> = std::iter::once("-j").chain(question.split(' ')).collect();
    serde_json::from_slice(&run(&arguments, None, &[]).await?).map_err(json)
}

fn json(source: serde_json::Error) -> ProgramError {
    ProgramError::Json { name: "nft", source }
}

async fn run(arguments: &[&str], mark: Option<&ProcessMark>, input: &[u8]) -> Result<Vec<u8>, ProgramError> {
    let program = NetworkTool { name: "nft", arguments, mark, input, limit: LIMIT };
    Ok(program.run().await?.stdout)
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
