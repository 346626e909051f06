//! The API of Cloud Hypervisor as far as nixbox uses it: states, status codes and error chains are those of the version
//! that is simulated. A conformance suite compares them with the real versions.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::refusal::ApiRefusal;
use super::vm::{self, SimulatedVm, VmmContext};

fn not_running() -> ApiRefusal {
    ApiRefusal::new(500, &["VM is not running"])
}

/// The VMM: it has a configuration after `vm.create`, and a VM after `vm.boot` or `vm.restore`.
pub(super) struct SimulatedVmm {
    context: VmmContext,
    config: Option<Value>,
    vm: Option<SimulatedVm>,
    /// Whether the serial file of the configuration could be made.
    console: bool,
    /// Ids of the devices that the guest was asked to let go of.
    leaving: BTreeSet<String>,
}

/// The answer to a call: status and body.
pub(super) type ApiAnswer = Result<(u16, String), ApiRefusal>;

fn nothing() -> ApiAnswer {
    Ok((204, String::new()))
}

fn parse(body: &[u8]) -> Result<Value, ApiRefusal> {
    serde_json::from_slice(body)
        .map_err(|error| ApiRefusal::new(400, &["Failed to deserialize JSON", &error.to_string()]))
}

/// The body and the field `key`, which it must have.
fn need(body: &[u8], key: &str) -> Result<(Value, String), ApiRefusal> {
    if body.is_empty() {
        return Err(ApiRefusal::new(400, &["Bad Request"]));
    }
    let value = parse(body)?;
    match value.get(key).and_then(Value::as_str).map(str::to_owned) {
        Some(text) => Ok((value, text)),
        None => {
            let column = body.len();
            let missing = format!("missing field `{key}` at line 1 column {column}");
            Err(ApiRefusal::new(400, &["Failed to deserialize JSON", &missing]))
        }
    }
}

impl SimulatedVmm {
    pub(super) fn new(context: VmmContext) -> Self {
        Self { context, config: None, vm: None, console: false, leaving: BTreeSet::new() }
    }

    /// Answers one call. `vmm.shutdown` is answered by [`super::vmm`].
    pub(super) fn call(&mut self, method: &str, path: &str, body: &[u8]) -> ApiAnswer {
        let call = path.strip_prefix("/api/v1/").unwrap_or_default();
        match (method, call) {
            ("GET", "vmm.ping") => Ok((200, self.ping())),
            ("GET", "vm.info") => self.info().map_err(|refusal| refusal.to("The VM info is not available")),
            ("PUT", "vm.create") => self.create(body),
            ("PUT", "vm.boot") => self.boot().map_err(|refusal| refusal.to("The VM could not boot")),
            ("PUT", "vm.pause") => self.pause().map_err(|refusal| refusal.to("The VM could not be paused")),
            ("PUT", "vm.resume") => self.resume().map_err(|refusal| refusal.to("The VM could not resume")),
            ("PUT", "vm.snapshot") => self.snapshot(body),
            ("PUT", "vm.restore") => self.restore(body),
            ("PUT", "vm.power-button") => {
                self.power_button().map_err(|refusal| refusal.to("Error triggering power button"))
            }
            ("PUT", "vm.shutdown") => match self.vm.take() {
                Some(_stopped) => nothing(),
                None => Err(not_running().to("The VM could not shutdown")),
            },
            ("PUT", "vm.delete") => {
                (self.vm, self.config) = (None, None);
                nothing()
            }
            ("PUT", "vm.add-fs") => self.add_fs(body),
            ("PUT", "vm.remove-device") => self.remove_device(body),
            ("GET" | "PUT", known) if KNOWN.contains(&known) => Err(ApiRefusal::new(400, &["Bad Request"])),
            _ => Err(ApiRefusal::new(404, &["Not Found"])),
        }
    }

    fn not_created(&self) -> ApiRefusal {
        ApiRefusal::new(self.context.version.missing_vm_status, &["VM is not created"])
    }

    fn ping(&self) -> String {
        json!({
            "build_version": self.context.version.simulator_version(),
            "version": self.context.version.package_version(),
            "pid": std::process::id(),
            "features": ["simulator"],
        })
        .to_string()
    }

    fn info(&mut self) -> ApiAnswer {
        let config = self.config.clone().ok_or_else(|| self.not_created())?;
        let state = match &mut self.vm {
            None => "Created",
            Some(vm) => {
                vm.let_go(&self.leaving);
                if vm.paused { "Paused" } else { "Running" }
            }
        };
        let mut info = json!({ "config": config, "state": state });
        if let (Some(vm), Some(map)) = (&self.vm, info.as_object_mut()) {
            let devices = vm.devices().into_iter().map(|id| (id.to_owned(), json!({ "id": id })));
            map.insert("device_tree".to_owned(), Value::Object(devices.collect()));
        }
        Ok((200, info.to_string()))
    }

    fn create(&mut self, body: &[u8]) -> ApiAnswer {
        if body.is_empty() {
            return Ok((400, String::new()));
        }
        let config = parse(body)?;
        if self.config.is_some() {
            return Err(ApiRefusal::new(500, &["VM is already created"]).to("The VM could not be created"));
        }
        // The VM counts as created even if its console cannot be made.
        let console = vm::console(&config);
        (self.config, self.console) = (Some(config), console.is_ok());
        console.map_err(|refusal| refusal.to("The VM could not be created"))?;
        nothing()
    }

    fn boot(&mut self) -> ApiAnswer {
        let version = self.context.version;
        let missing = || ApiRefusal::new(version.missing_vm_status, &["VM config is missing"]);
        let config = self.config.clone().ok_or_else(missing)?;
        if config.pointer("/payload/kernel").is_none() {
            return Err(ApiRefusal::new(
                500,
                &[
                    "Failed to validate config",
                    "Payload configuration is not bootable",
                    "No bootitem provided: neither firmware nor kernel",
                ],
            ));
        }
        match &mut self.vm {
            Some(vm) if version.boot_resumes_paused_vm && vm.paused => self.resume(),
            Some(_) if version.boot_resumes_paused_vm => {
                Err(ApiRefusal::new(500, &["invalid VM state transition: Running to Running"]))
            }
            Some(_) => Err(ApiRefusal::new(500, &["VM is already created"])),
            vm @ None => {
                if !self.console {
                    vm::console(&config)?;
                }
                *vm = Some(SimulatedVm::boot(&config, &self.context)?);
                nothing()
            }
        }
    }

    /// Boots the same configuration again, as a reboot of the guest does.
    pub(super) fn reboot(&mut self) -> ApiAnswer {
        self.vm = None;
        self.boot()
    }

    fn pause(&mut self) -> ApiAnswer {
        match &mut self.vm {
            None => Err(not_running()),
            Some(vm) if vm.paused => Err(ApiRefusal::new(
                500,
                &[
                    "Cannot pause VM",
                    "Failed to pause migratable component",
                    "Invalid transition: InvalidStateTransition(Paused, Paused)",
                ],
            )),
            Some(vm) => vm.pause().and_then(|()| nothing()),
        }
    }

    fn resume(&mut self) -> ApiAnswer {
        match &mut self.vm {
            None => Err(not_running()),
            Some(vm) if !vm.paused => Err(ApiRefusal::new(
                500,
                &[
                    "Cannot resume VM",
                    "Failed to resume migratable component",
                    "Invalid transition: InvalidStateTransition(Running, Running)",
                ],
            )),
            Some(vm) => vm.resume(self.context.version).and_then(|()| nothing()),
        }
    }

    fn snapshot(&mut self, body: &[u8]) -> ApiAnswer {
        const CALL: &str = "The VM could not be snapshotted";
        let (_, url) = need(body, "destination_url")?;
        let (Some(vm), Some(config)) = (&mut self.vm, &self.config) else {
            return Err(not_running().to(CALL));
        };
        if !vm.paused {
            let words = [
                "Cannot snapshot VM",
                "Failed to snapshot migratable component",
                "Trying to snapshot while VM is running",
            ];
            return Err(ApiRefusal::new(500, &words).to(CALL));
        }
        let saved = directory(&url, "Cannot send VM snapshot")
            .and_then(|directory| vm.save(config, &directory, self.context.version));
        saved.map_err(|refusal| refusal.to(CALL))?;
        nothing()
    }

    fn restore(&mut self, body: &[u8]) -> ApiAnswer {
        let (value, url) = need(body, "source_url")?;
        if self.config.is_some() {
            return Err(ApiRefusal::new(500, &["VM is already created"]).to("The VM could not be restored"));
        }
        let restored =
            directory(&url, "Cannot restore VM").and_then(|directory| self.restore_from(&directory));
        restored.map_err(|refusal| refusal.to("The VM could not be restored"))?;
        let resume = value.get("resume").and_then(Value::as_bool).unwrap_or_default();
        if resume && self.context.version.restore_takes_resume_field { self.resume() } else { nothing() }
    }

    fn restore_from(&mut self, directory: &Path) -> Result<(), ApiRefusal> {
        const CANNOT: &str = "Cannot restore VM";
        const RECEIVE: &str = "Failed to receive migratable component snapshot";
        let version = self.context.version;
        let path = directory.join("config.json");
        let bytes = std::fs::read(&path).map_err(|error| {
            let opening = format!("Error opening VM config snapshot file {path:?}");
            ApiRefusal::with_file(version, &[CANNOT, RECEIVE], &opening, &error)
        })?;
        let config: Value = serde_json::from_slice(&bytes).map_err(|error| {
            ApiRefusal::with_file(
                version,
                &[CANNOT, RECEIVE],
                "Error deserialising VM config snapshot",
                &error,
            )
        })?;
        self.vm = Some(SimulatedVm::restore(&config, directory, &self.context)?);
        self.config = Some(config);
        Ok(())
    }

    fn power_button(&mut self) -> ApiAnswer {
        let vm = self.vm.as_ref().ok_or_else(not_running)?;
        // A guest that is paused notices the button when it is resumed.
        let guest = std::sync::Arc::clone(&vm.guest);
        tokio::spawn(async move {
            if guest.pause_control.until_running().await.is_ok() {
                guest.settle();
                guest.power(super::guest::PowerRequest::Off);
            }
        });
        nothing()
    }

    fn add_fs(&mut self, body: &[u8]) -> ApiAnswer {
        const CALL: &str = "The fs could not be added to the VM";
        need(body, "tag")?;
        let (fs, _) = need(body, "socket")?;
        let config = self.config.as_ref().ok_or_else(|| self.not_created().to(CALL))?;
        let invalid = |words: &[&str]| {
            let mut refusal = ApiRefusal::new(500, &["Failed to validate config"]);
            refusal.extend(words);
            refusal.to(CALL)
        };
        if config.pointer("/payload/kernel").is_none() {
            return Err(invalid(&[
                "Payload configuration is not bootable",
                "No bootitem provided: neither firmware nor kernel",
            ]));
        }
        let id = fs.get("id").cloned().unwrap_or(Value::Null);
        let is_taken = |config: &Value| {
            let listed = config.get("fs").and_then(Value::as_array).into_iter().flatten();
            listed.filter_map(|fs| fs.get("id")).any(|listed| *listed == id)
        };
        if is_taken(config) {
            return Err(invalid(&[&format!("Identifier {} is not unique", id.as_str().unwrap_or_default())]));
        }
        if let Some(vm) = &mut self.vm {
            vm.add_share(&fs).map_err(|refusal| refusal.to(CALL))?;
            self.leaving.remove(id.as_str().unwrap_or_default());
        }
        let config = self.config.as_mut().and_then(Value::as_object_mut);
        let list = config.map(|config| config.entry("fs").or_insert_with(|| json!([])));
        match list.and_then(Value::as_array_mut) {
            Some(list) => list.push(fs),
            None => return Err(ApiRefusal::new(500, &["fs is no list"]).to(CALL)),
        }
        if self.vm.is_some() {
            Ok((200, json!({ "id": id, "bdf": "0000:00:07.0" }).to_string()))
        } else {
            nothing()
        }
    }

    fn remove_device(&mut self, body: &[u8]) -> ApiAnswer {
        const CALL: &str = "The device could not be removed from the VM";
        let (_, id) = need(body, "id")?;
        let config = match &mut self.config {
            Some(config) => config,
            None => return Err(self.not_created().to(CALL)),
        };
        let mut found = false;
        for kind in ["disks", "fs", "net"] {
            if let Some(list) = config.get_mut(kind).and_then(Value::as_array_mut) {
                let before = list.len();
                list.retain(|device| device.get("id").and_then(Value::as_str) != Some(&id));
                found |= list.len() != before;
            }
        }
        let version = self.context.version;
        found |= version.removal_can_be_repeated && self.vm.is_some() && self.leaving.contains(&id);
        if !found {
            let refusal = if self.vm.is_some() {
                let of = if version.removal_errors_name_the_id { format!(": {id}") } else { String::new() };
                let words = format!("Failed to find device corresponding to the given identifier{of}");
                ApiRefusal::new(500, &["Error from device manager", &words])
            } else {
                ApiRefusal::new(500, &[&format!("No device with id {id:?} to remove")])
            };
            return Err(refusal.to(CALL));
        }
        self.leaving.insert(id);
        nothing()
    }

    /// Makes shares hang whose daemons have gone. To be called from time to time.
    pub(super) fn hang_shares_of_lost_daemons(&mut self) -> io::Result<()> {
        self.vm.as_ref().map_or(Ok(()), SimulatedVm::hang_shares_of_lost_daemons)
    }
}

const KNOWN: [&str; 13] = [
    "vmm.ping",
    "vm.info",
    "vm.create",
    "vm.boot",
    "vm.pause",
    "vm.resume",
    "vm.snapshot",
    "vm.restore",
    "vm.power-button",
    "vm.shutdown",
    "vm.delete",
    "vm.add-fs",
    "vm.remove-device",
];

/// The directory that a `file://` URL names. `what` is the outermost message of the refusal.
fn directory(url: &str, what: &str) -> Result<PathBuf, ApiRefusal> {
    let refuse =
        |why: String| ApiRefusal::new(500, &[what, "Failed to send migratable component snapshot", &why]);
    let path = url.strip_prefix("file://").map(PathBuf::from);
    let path = path.ok_or_else(|| refuse(format!("Could not extract path from URL: {url}")))?;
    if path.is_dir() { Ok(path) } else { Err(refuse(format!("Destination is not a directory: {path:?}"))) }
}
