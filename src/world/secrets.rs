//! Secret values, and where they come from.
//!
//! A secret has one type from the configuration to the guest. It cannot be printed, and its bytes are overwritten when
//! its last owner drops it; clones share the bytes instead of copying them. A value that is given as text has its only
//! other copy in the text of the configuration, which `config` overwrites as soon as it is read.

use std::fmt;
use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretBox};
use serde::{Serialize, Serializer};

use super::{HostPath, VariableName};

/// What stands for a secret wherever one would be printed.
pub const MASK: &str = "***";

/// A secret value.
#[derive(Clone)]
pub struct Secret(Arc<SecretBox<Vec<u8>>>);

impl Secret {
    /// The secret in these bytes, which are not copied.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(SecretBox::new(Box::new(bytes))))
    }

    /// Its bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(MASK)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}

/// A program that prints a secret. Its arguments may be as secret as what it prints.
#[derive(Debug, Clone)]
pub struct SecretCommand {
    /// The program: a path, or a name that is looked up on PATH.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<Secret>,
}

/// As a list of the program and its masked arguments.
impl Serialize for SecretCommand {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let arguments = self.arguments.iter().map(|_| MASK);
        serializer.collect_seq(std::iter::once(self.program.as_str()).chain(arguments))
    }
}

/// Where a value comes from that may be secret. It is read before the operation that needs it begins.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretSource {
    /// A variable of the environment that nixbox runs in.
    FromEnv(VariableName),
    /// The content of a file on the host.
    File(HostPath),
    /// What a command prints.
    Command(SecretCommand),
    /// The configuration itself.
    #[serde(untagged)]
    Plain(Secret),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_form_of_a_secret_shows_it() {
        let secret = || Secret::new(b"hunter2".to_vec());
        let command = SecretCommand { program: "op".to_owned(), arguments: vec![secret()] };
        for (source, json) in [
            (SecretSource::Plain(secret()), serde_json::json!(MASK)),
            (SecretSource::Command(command), serde_json::json!({ "command": ["op", MASK] })),
        ] {
            assert!(!format!("{source:?} {source:#?}").contains("hunter2"));
            assert_eq!(serde_json::to_value(&source).unwrap(), json);
        }
        let variable = SecretSource::FromEnv("TOKEN".parse().unwrap());
        assert_eq!(serde_json::to_value(variable).unwrap(), serde_json::json!({ "from-env": "TOKEN" }));
    }

    #[test]
    fn clones_share_the_bytes() {
        let secret = Secret::new(b"hunter2".to_vec());
        assert_eq!(secret.clone().expose().as_ptr(), secret.expose().as_ptr());
    }
}
