//! What differs between legs, what was asked for and what took effect.

use crate::adapters::Error;
use cute_records::{Finding, Record};
use std::path::Path;

/// Everything known about the configuration of one leg.
#[derive(Clone, Debug, Default)]
pub struct Leg {
    /// name of the leg: its directory or arm
    pub name: String,
}

/// A table of knobs by leg.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// heading: `knob`, then one column a leg
    pub columns: Vec<String>,
    /// rows of cells, as many as columns; `-` where a leg says nothing
    pub rows: Vec<Vec<String>>,
    /// what the table shows and a reader should know
    pub findings: Vec<Finding>,
}

impl Leg {
    /// Gathers a leg from its directory: log, environment, verdict, results.
    ///
    /// # Errors
    /// When the directory holds nothing that is understood.
    pub fn read(path: &Path) -> Result<Leg, Error> {
        Err(Error::Bad { file: path.display().to_string(), message: "not read yet".to_owned() })
    }

    /// Gathers a leg from records.
    pub fn from_records<'a>(name: &str, _records: impl IntoIterator<Item = &'a Record>) -> Leg {
        Leg { name: name.to_owned() }
    }
}

/// Compares legs.
pub fn compare(_legs: &[Leg]) -> Comparison {
    Comparison::default()
}
