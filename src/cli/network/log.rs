//! `nixbox network log`: what the guest of a VM that runs wanted to reach and was refused. It changes nothing, and takes no lock.

use std::time::Duration;

use serde::Serialize;

use crate::cli::age::age;
use crate::cli::command::{OpenWorkspace, block_on};
use crate::cli::error::{self, CliError, Outcome};
use crate::cli::{WorkspaceLocation, preflight, success};
use crate::world::{RefusedDestination, RefusedName, RefusedTraffic, Transport};

/// Show what the guest was refused: names in filtered mode, and addresses with ports in every mode, the last first
///
/// Names are those that network.domains does not allow, since the network was built or repaired; at most 256 are kept.
/// Addresses are those to which packets of the last day were refused; a guest that does not learn the address of a name sends
/// none.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox network log\n\
    Example: nixbox network log --json | jq -r '.names[].name'")]
pub(super) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was refused, in the form of the JSON output.
#[derive(Debug, Serialize)]
struct RefusalReport {
    /// `None` if no process notes names: in other modes than "filtered".
    names: Option<Vec<NameReport>>,
    destinations: Vec<DestinationReport>,
}

#[derive(Debug, Serialize)]
struct NameReport {
    name: String,
    times: u64,
    /// How long ago the guest asked last, in milliseconds.
    ago_ms: u64,
}

#[derive(Debug, Serialize)]
struct DestinationReport {
    address: String,
    protocol: &'static str,
    port: u16,
    /// How long ago the last packet was refused, in milliseconds.
    ago_ms: u64,
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<RefusedTraffic> for RefusalReport {
    fn from(RefusedTraffic { destinations, names }: RefusedTraffic) -> Self {
        let name = |RefusedName { name, times, last }| NameReport { name, times, ago_ms: milliseconds(last) };
        let destination = |RefusedDestination { address, transport, port, last }| DestinationReport {
            address: address.to_string(),
            protocol: match transport {
                Transport::Tcp => "tcp",
                Transport::Udp => "udp",
            },
            port,
            ago_ms: milliseconds(last),
        };
        Self {
            names: names.map(|names| names.into_iter().map(name).collect()),
            destinations: destinations.into_iter().map(destination).collect(),
        }
    }
}

impl RefusalReport {
    /// The tables for people; empty if nothing was refused.
    fn tables(&self) -> String {
        let mut text = String::new();
        let names = self.names.as_deref().unwrap_or_default();
        if !names.is_empty() {
            text += &format!("{:40}  {:>6}  LAST\n", "NAME", "TIMES");
            for NameReport { name, times, ago_ms } in names {
                text += &format!("{name:40}  {times:>6}  {}\n", age(0, *ago_ms));
            }
        }
        if !self.destinations.is_empty() {
            text += &format!("{:40}  {:>6}  LAST\n", "ADDRESS", "PORT");
            for DestinationReport { address, protocol, port, ago_ms } in &self.destinations {
                text +=
                    &format!("{:40}  {port:>6}  {}\n", format!("{address} ({protocol})"), age(0, *ago_ms));
            }
        }
        text
    }
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let (open, vm) = OpenWorkspace::of_running_vm(location)?;
    let wiring = open.wire()?;
    if !wiring.simulated {
        preflight::check_network_rights(&wiring)?;
    }
    let refused = block_on(async {
        wiring
            .world
            .network
            .refused_traffic(vm.machine.slot)
            .await
            .map_err(|failure| CliError::Network(failure).into())
    })?;
    let report = RefusalReport::from(refused);
    if arguments.json {
        error::print_json(&report)?;
        return success();
    }
    let tables = report.tables();
    if tables.is_empty() {
        error::print_stderr("nixbox: the guest was refused nothing that was noted\n");
        return success();
    }
    error::print(tables.trim_end())?;
    if report.names.is_some_and(|names| !names.is_empty()) {
        error::print_stderr(
            "nixbox: to allow a name, add it to network.domains and run `nixbox network reload`; `nixbox run` may have to \
             repeat what failed\n",
        );
    }
    success()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn tables_have_what_was_refused_and_nothing_else() {
        assert_eq!(RefusalReport::from(RefusedTraffic::default()).tables(), "");
        let destination = RefusedDestination {
            address: Ipv4Addr::new(192, 0, 2, 7),
            transport: Transport::Udp,
            port: 123,
            last: Duration::from_secs(90),
        };
        let name = RefusedName { name: "repo.test".to_owned(), times: 3, last: Duration::from_millis(1500) };
        let both = RefusedTraffic { destinations: vec![destination], names: Some(vec![name]) };
        let tables = RefusalReport::from(both).tables();
        let lines: Vec<Vec<&str>> = tables.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["NAME", "TIMES", "LAST"]);
        assert_eq!(lines[1], ["repo.test", "3", "1", "s", "ago"]);
        assert_eq!(lines[3][..3], ["192.0.2.7", "(udp)", "123"]);
        assert_eq!(lines.len(), 4);
    }
}
