//! `nixbox forward list` and `nixbox forward stop`.
//!
//! Both go by the processes that live, whether or not a VM runs, and take no lock.

use super::background::DescribedForward;
use crate::cli::command::{OutputOptions, block_on};
use crate::cli::error::{self, ExitKind, Outcome, Problem};
use crate::cli::{WorkspaceLocation, success};
use crate::host::clock::utc;
use crate::host::forwards::{ForwardDaemon, ForwardDaemons};

/// List what is forwarded in the background
///
/// VM is the generation of the VM's RAM: its VMM may be of a later one since a live snapshot.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox forward list --json | jq -r '.[].pid'")]
pub(super) struct ListArguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Stop forwarding in the background
///
/// A process ends with all of its ports, and with their connections. The command returns when nothing listens on the ports any
/// more.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox forward stop 8080\n\
    Example: nixbox forward stop --all")]
pub(super) struct StopArguments {
    /// The number of a process, or a port or path that it listens on, as `nixbox forward list` shows them; without one, the
    /// only process
    #[arg(value_name = "NUMBER|PORT", conflicts_with = "all")]
    which: Vec<String>,
    /// Stop all of them
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    output: OutputOptions,
}

/// Why nothing was stopped.
#[derive(Debug, thiserror::Error)]
enum StopError {
    #[error("nothing is forwarded in the background on {0:?}, and no process that forwards has this number")]
    Unknown(String),
    #[error("nothing is forwarded in the background")]
    Nothing,
    #[error("{word:?} means several processes: {}; nothing was stopped", numbers(.pids))]
    Ambiguous { word: String, pids: Vec<u32> },
    #[error("several processes forward in the background, and none was named: {}; nothing was stopped", numbers(.0))]
    Several(Vec<u32>),
}

fn numbers(pids: &[u32]) -> String {
    pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl From<StopError> for Problem {
    fn from(error: StopError) -> Self {
        let (exit, hint) = match error {
            StopError::Unknown(_) => {
                (ExitKind::NotFound, "nothing was stopped; `nixbox forward list` shows the ports")
            }
            StopError::Nothing => (ExitKind::NotFound, "`nixbox forward list` shows what is"),
            StopError::Ambiguous { .. } | StopError::Several(_) => {
                (ExitKind::Usage, "`nixbox forward list` shows the ports of each; --all stops all of them")
            }
        };
        Self::new(exit, error).or_hint(hint)
    }
}

/// A process and what it forwards, if that can be read.
struct ListedForward {
    daemon: ForwardDaemon,
    described: Option<DescribedForward>,
}

impl ListedForward {
    fn all(forwards: &ForwardDaemons) -> Result<Vec<Self>, Problem> {
        let listed = |daemon| Self { described: DescribedForward::of(&daemon), daemon };
        Ok(forwards.find()?.into_iter().map(listed).collect())
    }

    fn is_meant_by(&self, word: &str) -> bool {
        let has_port = |described: &DescribedForward| {
            let wanted = &described.wanted;
            wanted.pairs.iter().any(|pair| pair.is_meant_by(word, wanted.listening))
        };
        word == self.daemon.pid().to_string() || self.described.as_ref().is_some_and(has_port)
    }

    fn json(&self) -> serde_json::Value {
        let described = self.described.as_ref();
        serde_json::json!({
            "pid": self.daemon.pid(),
            "since": described.map(|described| utc(described.since_ms)),
            "generation": described.map(|described| described.vm.0),
            "ports": described.map(|described| described.wanted.json().collect::<Vec<_>>()),
        })
    }

    /// A line for each port.
    fn lines(&self) -> Vec<String> {
        let pid = self.daemon.pid();
        let Some(DescribedForward { vm, since_ms, wanted }) = &self.described else {
            return vec![format!(
                "{pid:>7}  (it is being started, or another version of nixbox has started it)"
            )];
        };
        let (since, vm) = (utc(*since_ms), vm.to_string());
        wanted.sentences().map(|sentence| format!("{pid:>7}  {since:20}  {vm:>4}  {sentence}")).collect()
    }
}

pub(super) fn list(location: &WorkspaceLocation, arguments: &ListArguments) -> Outcome {
    let listed = ListedForward::all(&ForwardDaemons::new(location.workspace()?.id()))?;
    if arguments.json {
        error::print_json(&listed.iter().map(ListedForward::json).collect::<Vec<_>>())?;
    } else if listed.is_empty() {
        error::print_stderr(
            "nixbox: nothing is forwarded in the background; `nixbox forward --background PORT` forwards a port\n",
        );
    } else {
        let mut lines = vec![format!("{:>7}  {:20}  {:>4}  PORTS", "NUMBER", "SINCE", "VM")];
        lines.extend(listed.iter().flat_map(ListedForward::lines));
        error::print(&lines.join("\n"))?;
    }
    success()
}

pub(super) fn stop(location: &WorkspaceLocation, arguments: &StopArguments) -> Outcome {
    let forwards = ForwardDaemons::new(location.workspace()?.id());
    let chosen = choose(ListedForward::all(&forwards)?, arguments)?;
    block_on(async {
        for forward in &chosen {
            forwards.end(&forward.daemon).await?;
        }
        Ok(())
    })?;
    let pids: Vec<u32> = chosen.iter().map(|forward| forward.daemon.pid()).collect();
    let sentence = match pids.as_slice() {
        [] => "nothing was forwarded in the background".to_owned(),
        [pid] => format!("process {pid} has ended, and nothing listens on its ports"),
        pids => format!("the processes {} have ended, and nothing listens on their ports", numbers(pids)),
    };
    arguments.output.report(&serde_json::json!({ "stopped": pids }), &sentence)?;
    success()
}

/// The processes that are to be stopped, each once.
fn choose(
    mut listed: Vec<ListedForward>,
    arguments: &StopArguments,
) -> Result<Vec<ListedForward>, StopError> {
    let pids =
        |listed: &[ListedForward]| listed.iter().map(|forward| forward.daemon.pid()).collect::<Vec<_>>();
    if arguments.all {
        return Ok(listed);
    }
    if arguments.which.is_empty() {
        return match listed.len() {
            0 => Err(StopError::Nothing),
            1 => Ok(listed),
            _ => Err(StopError::Several(pids(&listed))),
        };
    }
    let mut chosen = Vec::new();
    for word in &arguments.which {
        let meant: Vec<u32> = listed
            .iter()
            .filter(|forward| forward.is_meant_by(word))
            .map(|forward| forward.daemon.pid())
            .collect();
        match meant.as_slice() {
            [] => return Err(StopError::Unknown(word.clone())),
            [pid] => chosen.push(*pid),
            _ => return Err(StopError::Ambiguous { word: word.clone(), pids: meant }),
        }
    }
    listed.retain(|forward| chosen.contains(&forward.daemon.pid()));
    Ok(listed)
}
