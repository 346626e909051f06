//! What the values have in common: the error that refuses one, and the code that all types of text need.

use std::fmt;

/// Why something is not a value of its type: the text, if it may be shown, and the rule that it breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidValue {
    text: Option<String>,
    rule: &'static str,
    reason: &'static str,
}

impl InvalidValue {
    /// A text that breaks the rule of its type. `rule` goes on from the text: "is not a size".
    #[must_use]
    pub fn new(text: &str, rule: &'static str) -> Self {
        Self { text: Some(text.to_owned()), rule, reason: "" }
    }

    /// Something that is not to be quoted, because it may be secret, or because quoting it says nothing.
    #[must_use]
    pub fn unquoted(rule: &'static str) -> Self {
        Self { text: None, rule, reason: "" }
    }

    /// Says which part of the rule is broken, or what to write instead.
    #[must_use]
    pub(super) fn because(self, reason: &'static str) -> Self {
        Self { reason, ..self }
    }
}

impl fmt::Display for InvalidValue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = &self.text {
            write!(formatter, "{text:?} ")?;
        }
        formatter.write_str(self.rule)?;
        if self.reason.is_empty() { Ok(()) } else { write!(formatter, ": {}", self.reason) }
    }
}

impl std::error::Error for InvalidValue {}

/// Makes a type of text. `$parse` turns any text into the one form that the type holds, or refuses it.
macro_rules! text_value {
    ($(#[$attribute:meta])* $name:ident, $parse:expr) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::borrow::Cow<'static, str>);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::world::InvalidValue;

            fn from_str(text: &str) -> Result<Self, $crate::world::InvalidValue> {
                let parse: fn(&str) -> Result<String, $crate::world::InvalidValue> = $parse;
                parse(text).map(|text| Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = $crate::world::InvalidValue;

            fn try_from(text: String) -> Result<Self, $crate::world::InvalidValue> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0.into_owned()
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

/// Gives a type whose values are written as one of a few words its text forms.
macro_rules! words {
    ($name:ident, $first:literal => $first_value:expr $(, $word:literal => $value:expr)* $(,)?) => {
        impl std::str::FromStr for $name {
            type Err = $crate::world::InvalidValue;

            fn from_str(text: &str) -> Result<Self, $crate::world::InvalidValue> {
                match text {
                    $first => Ok($first_value),
                    $($word => Ok($value),)*
                    _ => Err($crate::world::InvalidValue::new(
                        text,
                        concat!("is not one of ", $first $(, ", ", $word)*),
                    )),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let words = [($first, $first_value) $(, ($word, $value))*];
                let word = words.iter().find(|(_, value)| value == self).map(|(word, _)| *word);
                // Every value has its word: a test goes through them.
                formatter.write_str(word.unwrap_or_default())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::world::value::from_text(deserializer)
            }
        }
    };
}

/// Reads a value from its text form, with the same checks as `FromStr`.
pub(super) fn from_text<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: std::str::FromStr<Err = InvalidValue>,
    D: serde::Deserializer<'de>,
{
    let text = <String as serde::Deserialize>::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

pub(super) use {text_value, words};

#[cfg(test)]
mod tests {
    use std::fmt::{Debug, Display};
    use std::str::FromStr;

    use crate::world::{Backing, InvalidValue, NetworkMode, VmmChoice};

    fn read_and_written<T: FromStr<Err = InvalidValue> + Display + Debug>(list: &str) {
        for word in list.split(", ") {
            assert_eq!(word.parse::<T>().unwrap().to_string(), word);
        }
        let refused = "other".parse::<T>().unwrap_err();
        assert_eq!(refused.to_string(), format!("\"other\" is not one of {list}"));
    }

    #[test]
    fn every_word_is_read_as_it_is_written() {
        read_and_written::<Backing>("auto, tmpfs, disk, vmm");
        read_and_written::<NetworkMode>("off, filtered, open");
        read_and_written::<VmmChoice>(
            "cloud-hypervisor, simulator, simulator-v51, simulator-v52, simulator-v53, simulator-v54",
        );
    }
}
