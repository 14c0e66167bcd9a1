//! The formats of an output, and the types of its keys.

use std::fmt;

use clip::{Error, Kind, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Csv,
    Binary,
    Parquet,
}

/// The type of the table's key column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Key {
    Text,
    Bigint,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Csv => "csv",
            Self::Binary => "binary",
            Self::Parquet => "parquet",
        })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Text { "text" } else { "bigint" })
    }
}

impl Key {
    /// The key as the table returns it: "007" becomes 7 in a bigint column.
    ///
    /// # Errors
    /// If it is not a value of the column's type, or if it would make COPY reject the whole file.
    pub fn canonical(self, key: &str, format: Format) -> Result<String> {
        let unfit = |why: &str| Error::new(Kind::InvalidInput, format!("key {key:?} cannot be loaded")).detail(why);
        match self {
            Self::Text if key.contains('\0') => {
                Err(unfit("No text of PostgreSQL has a NUL character.").hint("Take another --key-column."))
            }
            // Quotes don't help: psql searches for this line before it parses CSV.
            Self::Text if format == Format::Csv && ["\n\\.\n", "\n\\.\r\n"].iter().any(|line| key.contains(line)) => {
                Err(unfit("Up to PostgreSQL 17 psql takes its line \"\\.\" for the end of the file.")
                    .hint("Take --format binary, or rename the file."))
            }
            Self::Text => Ok(key.to_owned()),
            Self::Bigint => bigint(key).map(|number| number.to_string()),
        }
    }
}

pub fn bigint(key: &str) -> Result<i64> {
    key.parse().map_err(|_| {
        Error::new(Kind::InvalidInput, format!("key \"{key}\" is not a bigint"))
            .hint("Take another --key-column, or --key-type text.")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_must_be_of_its_type() {
        assert_eq!(Key::Bigint.canonical("007", Format::Csv).unwrap(), "7");
        assert_eq!(Key::Text.canonical("007", Format::Csv).unwrap(), "007");
        for key in ["x", "9223372036854775808", "1.5"] {
            let error = Key::Bigint.canonical(key, Format::Csv).unwrap_err();
            assert_eq!(error.message, format!("key \"{key}\" is not a bigint"));
        }
    }
}
