//! JSON objects from outside, read so that no two readers can understand them differently: no key
//! twice on any level and none that means something else elsewhere, no number out of range, bounded depth.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Levels of nesting. A token entry has one or two.
const DEPTH_MAX: usize = 16;

/// A key that changes what an object is for those who read it with JavaScript, as gateways do.
const PROTOTYPE: &str = "__proto__";

/// Why bytes are not an object that is taken. Never repeats a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotStrict {
    #[error(
        "the body is not JSON, holds a key twice or `__proto__`, or is nested too deeply (line {line}, column {column})"
    )]
    Json { line: usize, column: usize },
    #[error("the body is not a JSON object")]
    NotAnObject,
}

/// Reads an object.
///
/// # Errors
/// See [`NotStrict`].
pub fn object(bytes: &[u8]) -> Result<Map<String, Value>, NotStrict> {
    match serde_json::from_slice::<Strict>(bytes) {
        Ok(Strict(Value::Object(map))) => Ok(map),
        Ok(_) => Err(NotStrict::NotAnObject),
        Err(error) => Err(NotStrict::Json { line: error.line(), column: error.column() }),
    }
}

/// A value on the outermost level.
struct Strict(Value);

/// The level that a value stands on.
struct Level(usize);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Level(0)).map(Self)
    }
}

impl<'de> serde::de::DeserializeSeed<'de> for Level {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Level {
    fn down<E: serde::de::Error>(&self) -> Result<usize, E> {
        if self.0 < DEPTH_MAX { Ok(self.0 + 1) } else { Err(E::custom("nested too deeply")) }
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let level = self.down()?;
        let mut all = Vec::new();
        while let Some(item) = items.next_element_seed(Level(level))? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let level = self.down()?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if key == PROTOTYPE {
                return Err(A::Error::custom("a key that no object may have"));
            }
            let value = entries.next_value_seed(Level(level))?;
            if map.insert(key, value).is_some() {
                return Err(A::Error::custom("a key stands twice"));
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_that_stands_twice_is_refused_on_every_level() {
        assert_eq!(object(br#"{"a":1,"b":{"a":null,"c":[true,1.5,-2,"x"]}}"#).unwrap().len(), 2);
        for bad in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"x":{"__proto__":{}}}"#,
            r#"{"x":{"a":1,"a":2}}"#,
            r#"{"x":[{"a":1,"a":2}]}"#,
            r#"{"a":1e999}"#,
            "{\"a\":1",
            "{\"a\":\"\u{1}\"}",
            "{} {}",
            "",
        ] {
            assert!(matches!(object(bad.as_bytes()), Err(NotStrict::Json { .. })), "{bad}");
        }
        for bad in ["[]", "7", "null", "\"x\""] {
            assert_eq!(object(bad.as_bytes()), Err(NotStrict::NotAnObject), "{bad}");
        }
        let deep = |n: usize| format!("{}{}", "{\"a\":".repeat(n), "1}".to_owned() + &"}".repeat(n - 1));
        assert!(object(deep(DEPTH_MAX).as_bytes()).is_ok() && object(deep(DEPTH_MAX + 1).as_bytes()).is_err());
        assert!(object("[".repeat(100_000).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = object(&bytes);
        }

        #[test]
        fn what_it_takes_reads_the_same_elsewhere(text in r#"\{("[ab]":([0-9]{1,3}|"[a-z]{0,3}"|\{"c":null\}),?){0,3}\}"#) {
            if let Ok(map) = object(text.as_bytes()) {
                let other: Value = serde_json::from_str(&text).unwrap();
                prop_assert_eq!(Value::Object(map), other);
            }
        }
    }
}
