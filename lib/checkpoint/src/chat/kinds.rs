//! Tests of what a value is (`is iterable`, `is sequence`, `is mapping`) as Jinja2 has them:
//! Python asks what a value can do, so a string is a sequence, and none, macros and namespaces are not iterable.

use minijinja::Value;
use minijinja::value::ValueKind;

/// `iter(value)` works.
pub(super) fn iterable(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Iterable => true,
        ValueKind::Map => mapping(value),
        _ => false,
    }
}

/// It has a length and items; a string and a dict have.
pub(super) fn sequence(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Undefined | ValueKind::String | ValueKind::Seq => true,
        ValueKind::Map => mapping(value),
        _ => false,
    }
}

/// It is a dict, not a macro or namespace, which minijinja counts among the maps.
pub(super) fn mapping(value: &Value) -> bool {
    let other = |name: &str| name.ends_with("::Macro") || name.ends_with("::Namespace");
    value.kind() == ValueKind::Map && !value.as_object().is_some_and(|object| other(object.type_name()))
}
