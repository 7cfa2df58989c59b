//! Options of a method or a task, which become command-line options and keys of configuration files. A plugin declares
//! them once, with [`options!`](crate::options!).

use crate::Error;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// What the host knows about an option.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptionInfo {
    /// Its name in kebab case, without leading dashes: `lora-alpha`, `density`.
    pub name: String,
    /// One sentence for `--help`.
    pub help: String,
    /// Its type and range.
    pub kind: OptionKind,
    /// The default value; `None`: the user must give one.
    pub default: Option<Json>,
}

/// The type and range of an option; the host checks them before the plugin sees a value. NaN is never in range.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum OptionKind {
    /// A number.
    Float {
        /// The smallest value.
        min: f64,
        /// The largest value.
        max: f64,
        /// Whether the smallest value itself is excluded.
        #[serde(default)]
        min_open: bool,
    },
    /// A whole number.
    Int {
        /// The smallest value.
        min: i64,
        /// The largest value.
        max: i64,
    },
    /// On or off.
    Bool,
    /// Any text.
    Text,
}

/// Checked values of all options of the plugin, with defaults filled in.
pub type Options = BTreeMap<String, Json>;

/// A type that an option can have: whole numbers, `f64`, `bool` and `String`.
pub trait OptionType: Sized {
    /// The Rust type that a default is written in.
    type Literal: Into<Json>;
    /// The kind of an option that allows every value of the type.
    const ANY: OptionKind;
    /// What errors call a value of the type.
    const EXPECTED: &'static str;

    /// The value, if it has this type.
    fn read(value: &Json) -> Option<Self>;
}

/// A range of values for an option of type `T`.
pub trait OptionRange<T> {
    /// The kind of an option with this range.
    fn kind(self) -> OptionKind;
}

/// Numbers above the first, up to and including the second: a range for an option of type `f64`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Above(pub f64, pub f64);

impl OptionRange<f64> for Above {
    fn kind(self) -> OptionKind {
        OptionKind::Float { min: self.0, max: self.1, min_open: true }
    }
}

impl OptionRange<f64> for RangeInclusive<f64> {
    fn kind(self) -> OptionKind {
        OptionKind::Float { min: *self.start(), max: *self.end(), min_open: false }
    }
}

impl OptionType for f64 {
    type Literal = f64;
    const ANY: OptionKind = OptionKind::Float { min: f64::MIN, max: f64::MAX, min_open: false };
    const EXPECTED: &'static str = "a number";

    fn read(value: &Json) -> Option<f64> {
        value.as_f64()
    }
}

macro_rules! whole_numbers {
    ($($number:ty),*) => {$(
        impl OptionRange<$number> for RangeInclusive<$number> {
            fn kind(self) -> OptionKind {
                let bound = |n: $number| i64::try_from(n).unwrap_or(i64::MAX);
                OptionKind::Int { min: bound(*self.start()), max: bound(*self.end()) }
            }
        }

        impl OptionType for $number {
            type Literal = $number;
            const ANY: OptionKind = OptionKind::Int {
                min: if <$number>::MIN == 0 { 0 } else { i64::MIN },
                max: if <$number>::BITS < 64 { <$number>::MAX as i64 } else { i64::MAX },
            };
            const EXPECTED: &'static str = "a whole number";

            fn read(value: &Json) -> Option<$number> {
                value.as_i64().and_then(|n| n.try_into().ok())
            }
        }
    )*};
}

whole_numbers!(usize, u32, u64, i64);

impl OptionType for bool {
    type Literal = bool;
    const ANY: OptionKind = OptionKind::Bool;
    const EXPECTED: &'static str = "true or false";

    fn read(value: &Json) -> Option<bool> {
        value.as_bool()
    }
}

impl OptionType for String {
    type Literal = &'static str;
    const ANY: OptionKind = OptionKind::Text;
    const EXPECTED: &'static str = "a text";

    fn read(value: &Json) -> Option<String> {
        value.as_str().map(str::to_owned)
    }
}

/// The value of a field's option.
#[doc(hidden)]
pub fn __value<T: OptionType>(options: &Options, field: &str, default: Option<T::Literal>) -> Result<T, Error> {
    let name = __name(field);
    let value = options.get(&name).cloned().or_else(|| default.map(Into::into));
    value.as_ref().and_then(T::read).ok_or_else(|| {
        let got = value.map_or("nothing".to_owned(), |value| value.to_string());
        Error(format!("option `{name}`: expected {}, got {got}", T::EXPECTED))
    })
}

/// What [`options!`](crate::options!) makes of a field, from its name, its documentation line by line, its type, range
/// and default.
#[doc(hidden)]
pub fn __declared<T: OptionType>(
    field: &str,
    help: &[&str],
    kind: OptionKind,
    default: Option<T::Literal>,
) -> OptionInfo {
    let help: Vec<&str> = help.iter().map(|line| line.trim()).collect();
    OptionInfo { name: __name(field), help: help.join(" "), kind, default: default.map(Into::into) }
}

/// The name of a field's option.
#[doc(hidden)]
pub fn __name(field: &str) -> String {
    field.trim_start_matches("r#").replace('_', "-")
}

/// Declares the options of a plugin as a struct. Each field is an option: its name in kebab case is the option's, its
/// documentation the help text. Types are those of [`OptionType`](crate::options::OptionType). An option without a
/// default must be given by the user, and a range limits what the host accepts.
///
/// ```
/// use sparta_plugin::method::{Above, Options};
///
/// sparta_plugin::options! {
///     /// Options of this method.
///     pub struct Settings {
///         /// Rank of the additions
///         pub my_rank: usize = 8, 1..=1024;
///         /// Scale of the additions
///         pub my_scale: f64 = 1.0, Above(0.0, 100.0);
///         /// Also train the norms
///         pub norms: bool = false;
///         /// Layers to change: all, or a list such as q,v
///         pub my_layers: String = "all";
///         /// Seed of the additions, which has no default
///         pub my_seed: u64;
///     }
/// }
///
/// // For `describe`:
/// let declared = Settings::declared();
/// assert_eq!((declared[0].name.as_str(), declared[0].help.as_str()), ("my-rank", "Rank of the additions"));
/// // In `select`, `forward` and `merge`, from the options that the host hands over:
/// let json = r#"{"my-rank": 4, "my-scale": 2.0, "norms": true, "my-layers": "q", "my-seed": 1}"#;
/// let options: Options = serde_json::from_str(json)?;
/// let settings = Settings::read(&options).unwrap();
/// assert_eq!((settings.my_rank, settings.my_layers.as_str()), (4, "q"));
/// // The host fills in defaults; without a host, in tests, `read` does.
/// assert!(Settings::read(&Options::new()).unwrap_err().0.contains("`my-seed`: expected a whole number"));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[macro_export]
macro_rules! options {
    (
        $(#[$attribute:meta])*
        $visibility:vis struct $name:ident {
            $($(#[doc = $help:literal])+ $see:vis $field:ident: $type:ty $(= $default:expr)? $(, $range:expr)?;)*
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Debug, PartialEq)]
        $visibility struct $name {
            $($(#[doc = $help])+ $see $field: $type,)*
        }

        impl $name {
            /// The declared options, for the plugin's description.
            $visibility fn declared() -> ::std::vec::Vec<$crate::options::OptionInfo> {
                ::std::vec![$($crate::options::__declared::<$type>(
                    ::core::stringify!($field),
                    &[$($help),+],
                    $crate::options!(@kind $type $(, $range)?),
                    $crate::options!(@default $($default)?),
                )),*]
            }

            /// Reads the values that the host hands over; one that is missing gets its default.
            ///
            /// Errors: a value has the wrong type, or is missing and has no default.
            $visibility fn read(
                options: &$crate::options::Options,
            ) -> ::core::result::Result<Self, $crate::Error> {
                ::core::result::Result::Ok(Self {
                    $($field: $crate::options::__value::<$type>(
                        options,
                        ::core::stringify!($field),
                        $crate::options!(@default $($default)?),
                    )?,)*
                })
            }
        }
    };
    (@kind $type:ty) => { <$type as $crate::options::OptionType>::ANY };
    (@kind $type:ty, $range:expr) => { $crate::options::OptionRange::<$type>::kind($range) };
    (@default) => { ::core::option::Option::None };
    (@default $default:expr) => { ::core::option::Option::Some($default) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    crate::options! {
        struct Example {
            /// A rank,
            /// in two lines
            a_rank: usize = 8, 1..=64;
            /// Scale
            scale: f64 = 2.0, 0.0..=4.0;
            /// Share
            share: f64 = 0.5, Above(0.0, 1.0);
            /// Seed
            seed: u32;
            /// Offset
            offset: i64 = -1;
            /// On
            on: bool = true;
            /// Name
            r#type: String = "all";
        }
    }

    #[test]
    fn a_struct_declares_what_a_plugin_would_write_by_hand() {
        let declared = serde_json::to_value(Example::declared()).unwrap();
        assert_eq!(
            declared,
            json!([
                {"name": "a-rank", "help": "A rank, in two lines", "kind": {"type": "int", "min": 1, "max": 64}, "default": 8},
                {"name": "scale", "help": "Scale", "default": 2.0,
                 "kind": {"type": "float", "min": 0.0, "max": 4.0, "min_open": false}},
                {"name": "share", "help": "Share", "default": 0.5,
                 "kind": {"type": "float", "min": 0.0, "max": 1.0, "min_open": true}},
                {"name": "seed", "help": "Seed", "kind": {"type": "int", "min": 0, "max": u32::MAX}, "default": null},
                {"name": "offset", "help": "Offset", "kind": {"type": "int", "min": i64::MIN, "max": i64::MAX}, "default": -1},
                {"name": "on", "help": "On", "kind": {"type": "bool"}, "default": true},
                {"name": "type", "help": "Name", "kind": {"type": "text"}, "default": "all"},
            ])
        );
    }

    #[test]
    fn values_are_read_by_type() {
        let good = json!({"a-rank": 3, "scale": 1.0, "share": 0.25, "seed": 7, "offset": -5, "on": false, "type": "x"});
        let options: Options = serde_json::from_value(good.clone()).unwrap();
        let r#type = "x".to_owned();
        let expected = Example { a_rank: 3, scale: 1.0, share: 0.25, seed: 7, offset: -5, on: false, r#type };
        assert_eq!(Example::read(&options).unwrap(), expected);
        for (name, value, part) in [
            ("a-rank", json!(-1), "option `a-rank`: expected a whole number, got -1"),
            ("scale", json!("1"), "option `scale`: expected a number, got \"1\""),
            ("seed", json!(5_000_000_000_u64), "option `seed`: expected a whole number, got 5000000000"),
            ("on", json!(null), "option `on`: expected true or false, got null"),
        ] {
            let mut options = options.clone();
            options.insert(name.into(), value);
            assert_eq!(Example::read(&options).unwrap_err().0, part);
        }
        let missing = Example::read(&Options::new()).unwrap_err().0;
        assert_eq!(missing, "option `seed`: expected a whole number, got nothing");
        let seed = Options::from([("seed".to_owned(), json!(1))]);
        assert_eq!((Example::read(&seed).unwrap().a_rank, Example::read(&seed).unwrap().r#type), (8, "all".to_owned()));
    }
}
