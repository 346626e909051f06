//! `nixbox config`.

use super::error::{self, CliError, Outcome};
use super::{WorkspaceLocation, success};
use crate::config::DecidedDefaults;

/// Show the configuration, with defaults filled in and secrets masked
///
/// The defaults of vm.vcpus and vm.memory follow the host until a VM is started from them. They stay the same from then on,
/// and `decided-at-first-up` names them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox config --json | jq .vm.memory")]
pub(super) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let workspace = location.workspace()?;
    let config = WorkspaceLocation::config(&workspace)?;
    let decided = DecidedDefaults::read(workspace.state())?.keys(&config);
    let mut value = serde_json::to_value(&config).map_err(|error| CliError::Stdout(error.into()))?;
    if let Some(top) = value.as_object_mut().filter(|_| !decided.is_empty()) {
        top.insert("decided-at-first-up".to_owned(), decided.into());
    }
    if arguments.json {
        error::print_json(&value)?;
        return success();
    }
    let mut lines = Vec::new();
    flatten(&mut lines, "", &value);
    error::print(&lines.join("\n"))?;
    success()
}

/// Adds a line `key = value` for every value. The key names the tables that contain the value.
fn flatten(lines: &mut Vec<String>, key: &str, value: &serde_json::Value) {
    use serde_json::Value;
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, member) in members {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                flatten(lines, &key, member);
            }
        }
        Value::Array(members) if members.iter().any(Value::is_object) => {
            for (index, member) in members.iter().enumerate() {
                flatten(lines, &format!("{key}[{index}]"), member);
            }
        }
        Value::Null => lines.push(format!("{key} (none)")),
        value => lines.push(format!("{key} = {value}")),
    }
}
