//! The resolved configuration: every argument, its value and where it came from.

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use cute_records::{Origin, Run, Setting};
use serde_json::{Value, json};
use std::any::TypeId;
use std::collections::BTreeMap;

/// What goes into a `run` record.
#[derive(Clone, Debug, Default)]
pub struct Config {
    tool: String,
    version: String,
    settings: BTreeMap<String, Setting>,
}

impl Config {
    /// Takes every argument's value and source from what clap parsed.
    pub fn from_matches(command: &Command, matches: &ArgMatches) -> Self {
        let mut settings = BTreeMap::new();
        for arg in command.get_arguments() {
            let id = arg.get_id().as_str();
            if matches!(id, "help" | "version" | "schema" | "completions" | "man") {
                continue;
            }
            let Some(source) = matches.value_source(id) else { continue };
            let origin = match source {
                ValueSource::CommandLine => Origin::Flag,
                ValueSource::EnvVariable => Origin::Environment,
                _ => Origin::Default,
            };
            let value = if arg.get_action().takes_values() {
                let values: Vec<Value> = matches
                    .get_raw(id)
                    .into_iter()
                    .flatten()
                    .map(|raw| typed(arg, &raw.to_string_lossy()))
                    .collect();
                let single = values.len() == 1 && !matches!(arg.get_action(), clap::ArgAction::Append);
                if single { values.into_iter().next().unwrap_or_default() } else { Value::Array(values) }
            } else {
                json!(matches.get_raw(id).is_none_or(|mut v| v.next().is_none_or(|v| v != "false")))
            };
            settings.insert(id.to_owned(), Setting { value, origin });
        }
        Config {
            tool: command.get_name().to_owned(),
            version: command.get_version().unwrap_or_default().to_owned(),
            settings,
        }
    }

    /// Name of the tool.
    pub fn tool(&self) -> &str {
        &self.tool
    }

    /// Replaces a value by what the program made of it, keeping its origin.
    pub fn resolve(&mut self, name: &str, value: impl Into<Value>) {
        let value = value.into();
        self.settings
            .entry(name.to_owned())
            .and_modify(|s| s.value = value.clone())
            .or_insert(Setting { value, origin: Origin::Derived });
    }

    /// Leaves out what changes nothing of the work and of what is written.
    pub fn forget(&mut self, name: &str) {
        self.settings.remove(name);
    }

    /// Sets a value that was computed from others.
    pub fn derive(&mut self, name: &str, value: impl Into<Value>) {
        self.settings.insert(name.to_owned(), Setting { value: value.into(), origin: Origin::Derived });
    }

    /// A `run` record with this configuration; the caller adds digests and device.
    pub fn run(&self) -> Run {
        Run {
            tool: self.tool.clone(),
            version: self.version.clone(),
            config: self.settings.clone(),
            ..Run::default()
        }
    }
}

/// A raw value in the type its argument parses to: numbers as numbers, everything else as text.
fn typed(arg: &Arg, raw: &str) -> Value {
    let id = arg.get_value_parser().type_id();
    let integers = [TypeId::of::<u64>(), TypeId::of::<u32>(), TypeId::of::<usize>()];
    let floats = [TypeId::of::<f64>(), TypeId::of::<f32>()];
    let number = if integers.into_iter().any(|t| id == t) {
        raw.parse::<u64>().ok().map(Value::from)
    } else if floats.into_iter().any(|t| id == t) {
        raw.parse::<f64>().ok().map(Value::from)
    } else {
        None
    };
    number.unwrap_or_else(|| raw.into())
}
