//! Where the values of `[env]` come from. What is secret in them prints as `***`.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, Serializer};

use super::value::{HostPath, VariableName};

/// What stands for a secret wherever one is printed.
pub const MASK: &str = "***";

/// A source of a value that may be a credential. The value itself is read when it is injected, and never kept.
#[derive(Clone)]
pub enum Source {
    /// A variable of the environment that nixbox runs in.
    FromEnv(VariableName),
    /// The content of a file on the host.
    File(HostPath),
    /// What a command prints.
    Command(SecretCommand),
    /// Written down in the configuration itself.
    Plain(SecretString),
}

/// A program and its arguments, which may be as secret as what it prints.
#[derive(Clone)]
pub struct SecretCommand {
    program: String,
    arguments: Vec<SecretString>,
}

impl SecretCommand {
    pub(super) fn new(program: String, arguments: Vec<SecretString>) -> Self {
        Self { program, arguments }
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> &str {
        &self.program
    }

    /// Its arguments.
    pub fn arguments(&self) -> impl Iterator<Item = &str> {
        self.arguments.iter().map(SecretString::expose_secret)
    }
}

/// A source with its secrets masked: what JSON has of it, and what Debug prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Masked<'a> {
    FromEnv(&'a VariableName),
    File(&'a HostPath),
    Command(Vec<&'a str>),
}

impl Source {
    fn masked(&self) -> Option<Masked<'_>> {
        match self {
            Self::FromEnv(name) => Some(Masked::FromEnv(name)),
            Self::File(path) => Some(Masked::File(path)),
            Self::Command(command) => {
                let arguments = command.arguments.iter().map(|_| MASK);
                Some(Masked::Command(std::iter::once(command.program()).chain(arguments).collect()))
            }
            Self::Plain(_) => None,
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.masked() {
            Some(masked) => masked.fmt(formatter),
            None => formatter.write_str(MASK),
        }
    }
}

impl fmt::Debug for SecretCommand {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?} and {} arguments", self.program, self.arguments.len())
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.masked() {
            Some(masked) => masked.serialize(serializer),
            None => serializer.serialize_str(MASK),
        }
    }
}
