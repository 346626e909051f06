//! A second person edits the configuration, the environment and the place of a workspace at random while its VM is used:
//! neither the VM nor a snapshot is lost, and `down` always works.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::workspace::{SECRET, Said, Workspace, tell};

/// The variable that one credential is read from.
const VARIABLE: &str = "NIXBOX_TEST_UNREST";
const STEPS: usize = 60;

/// What the workspace is, by what was done to it.
struct Model {
    workspace: Workspace,
    /// Where its directory is now.
    place: PathBuf,
    /// Whether the variable of the credential is set.
    variable: bool,
    memory: usize,
    /// What the guest's file has, if the VM runs.
    running: Option<String>,
    /// What the guest's history has, if the VM runs. No snapshot has anything of it.
    history: String,
    /// The memory of the VM that was running when the snapshot was made, and what the guest's file had.
    snapshot: Option<(usize, String)>,
    random: u64,
}

const MEMORIES: [&str; 2] = ["64MiB", "96MiB"];

impl Model {
    fn new(seed: u64) -> Self {
        let workspace = Workspace::new("simulator-v53", true);
        let config = workspace.nixbox().join("config.toml");
        let text = fs::read_to_string(&config).unwrap();
        let source = format!("[env]\nOTHER = {{ from-env = \"{VARIABLE}\" }}\n");
        fs::write(&config, text.replace("[env]\n", &source).replace("[env]   ", &format!("{source}#")))
            .unwrap();
        let place = workspace.path().to_owned();
        let random = seed | 1;
        Self {
            workspace,
            place,
            variable: true,
            memory: 0,
            running: None,
            history: String::new(),
            snapshot: None,
            random,
        }
    }

    /// A number below `limit` (xorshift64).
    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    fn nixbox(&self, arguments: &[&str]) -> Said {
        let mut command = self.workspace.command(arguments);
        command.current_dir(&self.place);
        if self.variable {
            command.env(VARIABLE, "other-secret");
        }
        command.output().unwrap().into()
    }

    fn edit(&self, from: &str, to: &str) {
        let config = self.place.join(".nixbox/config.toml");
        let text = fs::read_to_string(&config).unwrap();
        assert!(text.contains(from), "{from}: {text}");
        fs::write(config, text.replace(from, to)).unwrap();
    }

    /// One thing that a person does.
    fn act(&mut self, number: usize) -> String {
        match self.below(11) {
            0 | 1 => {
                let said = self.nixbox(&["up"]);
                let works = self.running.is_some() || self.variable;
                assert_eq!(said.code == Some(0), works, "{said:?}");
                if self.running.is_none() && works {
                    self.running = Some(self.file());
                    self.history = self.typed();
                }
                "up".to_owned()
            }
            2 => {
                let said = self.nixbox(&["down"]);
                assert_eq!(said.code, Some(0), "{said:?}");
                self.running = None;
                "down".to_owned()
            }
            3 if self.running.is_some() => {
                let text = format!("written at {number}");
                let script = format!("echo {text} > ~/file; echo {text} >> ~/.bash_history");
                let said = self.nixbox(&["run", "--", "sh", "-c", &script]);
                assert_eq!(said.code, Some(0), "{said:?}");
                self.history.push_str(&format!("{text}\n"));
                self.running = Some(text);
                "write".to_owned()
            }
            4 | 5 if self.running.is_some() => {
                let listed = self.snapshots();
                let said = self.nixbox(&["snapshot"]);
                assert_eq!(said.code == Some(0), self.variable, "{said:?}");
                assert_eq!(self.snapshots(), listed + usize::from(self.variable));
                if self.variable {
                    let built = self.status()["pending_edits"].as_array().unwrap().is_empty();
                    let memory = if built { self.memory } else { 1 - self.memory };
                    self.snapshot = self.running.clone().map(|file| (memory, file));
                }
                "snapshot".to_owned()
            }
            6 if self.snapshot.is_some() => {
                let (memory, file) = self.snapshot.clone().unwrap();
                let newest = self.newest();
                let said = self.nixbox(&["restore", &newest, "--replace"]);
                let works = self.variable && memory == self.memory;
                assert_eq!(said.code == Some(0), works, "{said:?}");
                if works {
                    self.running = Some(file);
                    self.history.clear();
                }
                "restore".to_owned()
            }
            7 => {
                self.variable = !self.variable;
                format!("the variable is set: {}", self.variable)
            }
            8 => {
                let (from, to) = (MEMORIES[self.memory], MEMORIES[1 - self.memory]);
                self.edit(from, to);
                self.memory = 1 - self.memory;
                format!("memory from {from} to {to}")
            }
            9 => {
                let home = self.workspace.path().to_owned();
                let aside = home.with_extension("aside");
                let to = if self.place == home { aside } else { home };
                fs::rename(&self.place, &to).unwrap();
                self.place = to;
                "rename".to_owned()
            }
            10 => {
                self.in_a_copy();
                "copy".to_owned()
            }
            _ => "nothing".to_owned(),
        }
    }

    /// Commands in a copy are refused.
    fn in_a_copy(&self) {
        // A directory that was renamed is known at its new path once a command that changes something has run there.
        assert_eq!(self.nixbox(&["recover"]).code, Some(0));
        let copy = self.workspace.path().with_extension("copy");
        let copied = Command::new("cp").arg("-a").args([&self.place, &copy]).status().unwrap();
        assert!(copied.success());
        for arguments in [&["up"] as &[&str], &["down"], &["recover"]] {
            let said: Said = self.workspace.command(arguments).current_dir(&copy).output().unwrap().into();
            assert!(said.code == Some(1) && said.stderr.contains("is a copy of"), "{said:?}");
        }
        fs::remove_dir_all(copy).unwrap();
    }

    fn status(&self) -> serde_json::Value {
        self.nixbox(&["status", "--json"]).json()
    }

    fn file(&self) -> String {
        self.nixbox(&["run", "--", "sh", "-c", "cat ~/file 2> /dev/null || true"]).stdout.trim().to_owned()
    }

    fn typed(&self) -> String {
        self.nixbox(&["run", "--", "sh", "-c", "cat ~/.bash_history 2> /dev/null || true"]).stdout
    }

    fn listed(&self) -> Vec<serde_json::Value> {
        self.nixbox(&["snapshot", "list", "--json"]).json().as_array().unwrap().clone()
    }

    fn snapshots(&self) -> usize {
        self.listed().len()
    }

    fn newest(&self) -> String {
        self.listed().iter().map(|one| one["id"].as_u64().unwrap()).max().unwrap().to_string()
    }

    /// The VM is as the model says, with its credentials.
    fn check(&self) {
        let status = self.status();
        let state = if self.running.is_some() { "running" } else { "down" };
        assert_eq!(status["state"], state, "{status}");
        assert_eq!(status["operation"], serde_json::Value::Null, "{status}");
        if let Some(file) = &self.running {
            assert_eq!(self.file(), *file);
            assert_eq!(self.typed(), self.history);
            let said = self.nixbox(&["run", "--", "sh", "-c", "echo $TOKEN $OTHER"]);
            assert_eq!(said.stdout.trim(), format!("{SECRET} other-secret"), "{said:?}");
        }
        assert!(self.listed().iter().all(|one| one.get("damaged").is_none()));
    }
}

#[test]
fn a_person_who_edits_everything_loses_neither_a_vm_nor_a_snapshot() {
    let seed = std::env::var("NIXBOX_SEED").ok().map_or(20_261_126, |text| text.parse().unwrap());
    let mut model = Model::new(seed);
    let mut done = Vec::new();
    for number in 0..STEPS {
        done.push(model.act(number));
        tell_on_panic(&done, || model.check());
    }
    // What was edited is put back. Then every snapshot is whole, and the newest fits.
    model.variable = true;
    if model.place != model.workspace.path() {
        fs::rename(&model.place, model.workspace.path()).unwrap();
        model.place = model.workspace.path().to_owned();
    }
    if let Some((memory, file)) = model.snapshot.clone() {
        if memory != model.memory {
            model.edit(MEMORIES[model.memory], MEMORIES[memory]);
        }
        let newest = model.newest();
        let said = model.nixbox(&["restore", &newest, "--replace"]);
        assert_eq!(said.code, Some(0), "{said:?}");
        assert_eq!(model.file(), file);
    }
    for one in model.listed() {
        let said = model.nixbox(&["snapshot", "verify", &one["id"].to_string()]);
        assert_eq!(said.code, Some(0), "{said:?}");
    }
    assert_eq!(model.nixbox(&["down"]).code, Some(0));
    assert!(!model.workspace.check());
}

fn tell_on_panic(done: &[String], check: impl FnOnce()) {
    if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)) {
        tell(&format!("after {done:?}"));
        std::panic::resume_unwind(panic);
    }
}
