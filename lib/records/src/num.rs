//! Numbers that may be NaN or infinite: JSON has no word for them, so they travel as strings.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;

/// An `f64` written as a JSON number when finite, else as `"NaN"`, `"Infinity"` or `"-Infinity"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Num(pub f64);

impl From<f64> for Num {
    fn from(x: f64) -> Self {
        Num(x)
    }
}

impl From<f32> for Num {
    fn from(x: f32) -> Self {
        Num(f64::from(x))
    }
}

impl Serialize for Num {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            x if x.is_finite() => s.serialize_f64(x),
            x if x.is_nan() => s.serialize_str("NaN"),
            x if x > 0.0 => s.serialize_str("Infinity"),
            _ => s.serialize_str("-Infinity"),
        }
    }
}

impl<'de> Deserialize<'de> for Num {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(f64),
            Word(String),
        }
        match Either::deserialize(d)? {
            Either::Number(x) => Ok(Num(x)),
            Either::Word(w) => match w.as_str() {
                "NaN" => Ok(Num(f64::NAN)),
                "Infinity" => Ok(Num(f64::INFINITY)),
                "-Infinity" => Ok(Num(f64::NEG_INFINITY)),
                _ => Err(de::Error::custom(format!(
                    "{w:?} is not a number: expected a JSON number, \"NaN\", \"Infinity\" or \"-Infinity\""
                ))),
            },
        }
    }
}

impl JsonSchema for Num {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Num".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number; NaN and the infinities travel as strings.",
            "anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]
        })
    }
}

/// Largest whole number that every reader of JSON keeps: 2⁵³ − 1.
pub const MOST: u64 = (1 << 53) - 1;

/// A whole number of a JSON value, up to [`MOST`].
pub fn whole(value: &Value) -> Option<u64> {
    value.as_u64().filter(|n| *n <= MOST)
}

/// Reads a position or a count of a record, up to [`MOST`].
pub(crate) fn bounded<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    let n = u64::deserialize(d)?;
    let beyond = || de::Error::custom(format!("{n} counts nothing: expected at most {MOST}"));
    (n <= MOST).then_some(n).ok_or_else(beyond)
}

/// The same, or null.
pub(crate) fn bounded_option<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    struct Bounded(#[serde(deserialize_with = "bounded")] u64);
    Ok(Option::<Bounded>::deserialize(d)?.map(|n| n.0))
}

#[cfg(test)]
mod tests {
    use super::Num;

    #[test]
    fn nan_and_the_infinities_survive_a_round_trip() {
        for x in [0.1, -0.0, 1e308, f64::INFINITY, f64::NEG_INFINITY] {
            let text = serde_json::to_string(&Num(x)).unwrap();
            assert_eq!(serde_json::from_str::<Num>(&text).unwrap().0.to_bits(), x.to_bits(), "{text}");
        }
        assert_eq!(serde_json::to_string(&Num(f64::NAN)).unwrap(), "\"NaN\"");
        assert!(serde_json::from_str::<Num>("\"NaN\"").unwrap().0.is_nan());
        assert!(serde_json::from_str::<Num>("null").is_err());
    }
}
