//! Reads TOML strictly: unknown keys and values of a wrong type are refused, and every error names its place.
//!
//! The reader works on the tree that `toml` parses, whose values have spans. It does not use serde's `Deserialize`,
//! because serde's errors cannot name the nearest key or the full path of a key in a nested table, and because they
//! quote the value, which may be a secret of `[env]`.

use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Position, Result};
use super::keys;
use crate::world::InvalidValue;

/// The text of a file.
#[derive(Clone, Copy)]
pub(super) struct SourceText<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl<'a> SourceText<'a> {
    pub(super) fn position(self, span: &Range<usize>) -> Position {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Position {
            path: self.path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    /// Parses the text into a tree.
    pub(super) fn parse(self) -> Result<Spanned<DeTable<'a>>> {
        DeTable::parse(self.text).map_err(|error| ConfigError::Syntax {
            at: self.position(&error.span().unwrap_or(0..0)),
            // The error keeps only the message of `toml`, because the full text quotes the line, which may be a line of
            // `[env]`.
            message: error.message().to_owned(),
        })
    }
}

/// A value with its full key and its place.
pub(super) struct TomlValue<'a> {
    text: SourceText<'a>,
    key: String,
    span: Range<usize>,
    value: &'a DeValue<'a>,
}

impl<'a> TomlValue<'a> {
    /// An error which says that this value breaks the rule of its type.
    pub(super) fn refuse(&self, source: InvalidValue) -> ConfigError {
        ConfigError::Value { at: self.position(), key: self.key.clone(), source }
    }

    /// An error which says that this value conflicts with another value, or with this host.
    pub(super) fn conflict(&self, problem: String) -> ConfigError {
        ConfigError::Conflict { at: self.position(), key: self.key.clone(), problem }
    }

    pub(super) fn position(&self) -> Position {
        self.text.position(&self.span)
    }

    pub(super) fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn wrong_type(&self, wanted: &'static str) -> ConfigError {
        let found = self.value.type_str();
        ConfigError::Type { at: self.position(), key: self.key.clone(), found, wanted }
    }

    pub(super) fn text(&self) -> Result<&'a str> {
        self.value.as_str().ok_or_else(|| self.wrong_type("string"))
    }

    pub(super) fn parse<T: FromStr<Err = InvalidValue>>(&self) -> Result<T> {
        self.text()?.parse().map_err(|error| self.refuse(error))
    }

    pub(super) fn truth(&self) -> Result<bool> {
        self.value.as_bool().ok_or_else(|| self.wrong_type("boolean"))
    }

    /// Reads a whole number from `least` to `most`, both included.
    pub(super) fn number(&self, least: u32, most: u32) -> Result<u32> {
        let number = self.value.as_integer().ok_or_else(|| self.wrong_type("integer"))?;
        // A number that does not fit into 64 bits is outside every range, so its exact value does not matter.
        let number =
            i64::from_str_radix(&number.as_str().replace('_', ""), number.radix()).unwrap_or(i64::MAX);
        u32::try_from(number)
            .ok()
            .filter(|number| (least..=most).contains(number))
            .ok_or_else(|| self.conflict(format!("{number} is not from {least} to {most}")))
    }

    pub(super) fn list(&self) -> Result<Vec<Self>> {
        let list = self.value.as_array().ok_or_else(|| self.wrong_type("array"))?;
        Ok(list.iter().map(|entry| self.inner(self.key.clone(), entry)).collect())
    }

    pub(super) fn is_text(&self) -> bool {
        self.value.is_str()
    }

    /// A table with these keys and no others.
    pub(super) fn table(&self, known: &'static [&'static str]) -> Result<TomlTable<'a>> {
        let section = self.open_table()?;
        section.check_keys(known)?;
        Ok(section)
    }

    /// A table with any keys.
    pub(super) fn open_table(&self) -> Result<TomlTable<'a>> {
        let table = self.value.as_table().ok_or_else(|| self.wrong_type("table"))?;
        Ok(TomlTable { text: self.text, key: self.key.clone(), span: self.span.clone(), table })
    }

    fn inner(&self, key: String, entry: &'a Spanned<DeValue<'a>>) -> Self {
        Self { text: self.text, key, span: entry.span(), value: entry.get_ref() }
    }
}

/// A table with its full key and its place.
pub(super) struct TomlTable<'a> {
    text: SourceText<'a>,
    key: String,
    span: Range<usize>,
    table: &'a DeTable<'a>,
}

impl<'a> TomlTable<'a> {
    /// The whole file.
    pub(super) fn whole(
        text: SourceText<'a>,
        table: &'a DeTable<'a>,
        known: &'static [&'static str],
    ) -> Result<Self> {
        let section = Self { text, key: String::new(), span: 0..0, table };
        section.check_keys(known)?;
        Ok(section)
    }

    fn path_of(&self, key: &str) -> String {
        if self.key.is_empty() { key.to_owned() } else { format!("{}.{key}", self.key) }
    }

    fn check_keys(&self, known: &'static [&'static str]) -> Result<()> {
        // The error names the first unknown key in the order of the file, not by name.
        let unknown = self.table.keys().filter(|key| !known.contains(&key.get_ref().as_ref()));
        let Some(key) = unknown.min_by_key(|key| key.span().start) else {
            return Ok(());
        };
        Err(ConfigError::UnknownKey {
            at: self.text.position(&key.span()),
            key: self.path_of(key.get_ref()),
            nearest: keys::nearest(key.get_ref(), known),
            known,
        })
    }

    pub(super) fn get(&self, key: &str) -> Option<TomlValue<'a>> {
        let value = self.table.get(key)?;
        Some(TomlValue {
            text: self.text,
            key: self.path_of(key),
            span: value.span(),
            value: value.get_ref(),
        })
    }

    /// The value of a required key.
    pub(super) fn need(&self, key: &'static str) -> Result<TomlValue<'a>> {
        self.get(key).ok_or_else(|| ConfigError::Missing { at: self.position(), key: self.path_of(key) })
    }

    pub(super) fn position(&self) -> Position {
        self.text.position(&self.span)
    }

    /// The list of an optional key. The list is empty if the key is absent.
    pub(super) fn list(&self, key: &str) -> Result<Vec<TomlValue<'a>>> {
        self.get(key).map_or(Ok(Vec::new()), |value| value.list())
    }

    /// All entries in the order of their names, with the place of each name.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a str, Position, TomlValue<'a>)> {
        self.table.iter().map(|(key, value)| {
            let name: &str = key.get_ref();
            let path = self.path_of(name);
            let value = TomlValue { text: self.text, key: path, span: value.span(), value: value.get_ref() };
            (name, self.text.position(&key.span()), value)
        })
    }
}
