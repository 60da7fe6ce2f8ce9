//! JSON Schemas (2020-12) of the record types, derived from the Rust types.

use crate::record::{Body, TYPES};
use serde_json::{Value, json};

/// The schema of one record type, or `None` when there is no such type.
pub fn schema_of(kind: &str) -> Option<Value> {
    let mut schema = Body::schema(kind)?.to_value();
    let object = schema.as_object_mut()?;
    let properties = object.entry("properties").or_insert_with(|| json!({})).as_object_mut()?;
    properties.insert("type".into(), json!({"const": kind}));
    properties.insert("v".into(), json!({"const": crate::VERSION}));
    let required = object.entry("required").or_insert_with(|| json!([])).as_array_mut()?;
    required.extend([json!("type"), json!("v")]);
    object.insert("title".into(), json!(kind));
    Some(schema)
}

/// One schema for a line of the stream: any of the record types.
pub fn schema_all() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "record",
        "anyOf": TYPES.iter().filter_map(|kind| schema_of(kind)).collect::<Vec<_>>(),
    })
}
