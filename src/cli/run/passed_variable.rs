//! A variable that `nixbox run -e` passes on.

use std::os::unix::ffi::OsStringExt as _;
use std::str::FromStr;

use crate::cli::error::CliError;
use crate::world::{InvalidValue, Secret, VariableName};

/// A name, with a value if it is not that of nixbox's own environment.
#[derive(Debug, Clone)]
pub(super) struct PassedVariable {
    name: VariableName,
    value: Option<Secret>,
}

impl FromStr for PassedVariable {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(Secret::new(value.as_bytes().to_vec()))),
            None => (text, None),
        };
        Ok(Self { name: name.parse()?, value })
    }
}

impl PassedVariable {
    /// The name and the value.
    ///
    /// # Errors
    /// If nixbox has no such variable.
    pub(super) fn read(&self) -> Result<(VariableName, Secret), CliError> {
        let Self { name, value } = self;
        let own = || std::env::var_os(name.as_str()).map(|value| Secret::new(value.into_vec()));
        let value = value.clone().or_else(own).ok_or_else(|| CliError::NoVariable(name.clone()))?;
        Ok((name.clone(), value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_a_name_with_or_without_a_value() {
        let read = |text: &str| text.parse::<PassedVariable>().unwrap().read();
        let value = |text: &str| read(text).map(|(name, value)| (name.to_string(), value.expose().to_vec()));
        assert_eq!(value("A=").unwrap(), ("A".to_owned(), Vec::new()));
        assert_eq!(value("A=b=c").unwrap(), ("A".to_owned(), b"b=c".to_vec()));
        assert_eq!(value("PATH").unwrap().1, std::env::var_os("PATH").unwrap().into_vec());
        assert!(matches!(read("NIXBOX_TESTS_NEVER_SET_THIS"), Err(CliError::NoVariable(_))));
        for bad in ["", "=", "=x", "1A", "A-B", "A B=c"] {
            assert!(bad.parse::<PassedVariable>().is_err(), "{bad:?}");
        }
    }
}
