//! Request bodies as the Go core reads them (contract A.0, "Strictness"): unknown names refused, names
//! matched whatever their case, the last duplicate wins, `null` and an empty body leave zero values.

use std::collections::HashMap;
use std::fmt;

use serde::Deserialize as _;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The body is not the object expected here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unreadable;

/// What a member may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Integer,
    Texts,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Text(String),
    Integer(i64),
    Texts(Vec<String>),
}

/// Whether names outside the list are refused (requests) or skipped (claims).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    Refused,
    Skipped,
}

/// A read body: absent members are zero values.
#[derive(Debug, Default)]
pub(crate) struct Object(HashMap<&'static str, Value>);

impl Object {
    /// Reads a request body.
    pub(crate) fn request(body: &[u8], members: &'static [(&'static str, Kind)]) -> Result<Self, Unreadable> {
        let text = String::from_utf8_lossy(body);
        if text.trim_matches(|c| matches!(c, ' ' | '\t' | '\r' | '\n')).is_empty() {
            return Ok(Self::default());
        }
        Self::read(&text, Schema { members, unknown: Unknown::Refused })
    }

    /// Reads the payload of a capability.
    pub(crate) fn claims(body: &[u8], members: &'static [(&'static str, Kind)]) -> Result<Self, Unreadable> {
        Self::read(&String::from_utf8_lossy(body), Schema { members, unknown: Unknown::Skipped })
    }

    fn read(text: &str, schema: Schema) -> Result<Self, Unreadable> {
        let mut reader = serde_json::Deserializer::from_str(text);
        let object = schema.deserialize(&mut reader).map_err(|_| Unreadable)?;
        reader.end().map_err(|_| Unreadable)?;
        Ok(object)
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        match self.0.get(name) {
            Some(Value::Text(text)) => text,
            _ => "",
        }
    }

    /// Trimmed, and `None` if nothing is left.
    pub(crate) fn word(&self, name: &str) -> Option<&str> {
        Some(self.text(name).trim()).filter(|text| !text.is_empty())
    }

    pub(crate) fn integer(&self, name: &str) -> Option<i64> {
        match self.0.get(name) {
            Some(Value::Integer(number)) => Some(*number),
            _ => None,
        }
    }

    pub(crate) fn texts(&self, name: &str) -> &[String] {
        match self.0.get(name) {
            Some(Value::Texts(texts)) => texts,
            _ => &[],
        }
    }
}

#[derive(Clone, Copy)]
struct Schema {
    members: &'static [(&'static str, Kind)],
    unknown: Unknown,
}

impl Schema {
    fn find(self, name: &str) -> Option<(&'static str, Kind)> {
        self.members.iter().copied().find(|(known, _)| known.eq_ignore_ascii_case(name))
    }
}

impl<'de> DeserializeSeed<'de> for Schema {
    type Value = Object;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Object, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Schema {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<Object, E> {
        Ok(Object::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let mut members = HashMap::new();
        while let Some(name) = map.next_key::<String>()? {
            match (self.find(&name), self.unknown) {
                (Some((known, kind)), _) => {
                    if let Some(value) = map.next_value_seed(kind)? {
                        members.insert(known, value);
                    }
                }
                (None, Unknown::Skipped) => {
                    map.next_value::<IgnoredAny>()?;
                }
                (None, Unknown::Refused) => return Err(serde::de::Error::custom("unknown name")),
            }
        }
        Ok(Object(members))
    }
}

impl<'de> DeserializeSeed<'de> for Kind {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Option<Value>, D::Error> {
        Ok(match self {
            Self::Text => Option::<String>::deserialize(d)?.map(Value::Text),
            Self::Integer => d.deserialize_any(IntegerOrNull)?.map(Value::Integer),
            Self::Texts => d.deserialize_any(TextsOrNull)?.map(Value::Texts),
        })
    }
}

struct IntegerOrNull;

impl Visitor<'_> for IntegerOrNull {
    type Value = Option<i64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a 64-bit integer")
    }

    fn visit_i64<E>(self, number: i64) -> Result<Option<i64>, E> {
        Ok(Some(number))
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Option<i64>, E> {
        i64::try_from(number).map(Some).map_err(|_| E::custom("too large"))
    }

    fn visit_unit<E>(self) -> Result<Option<i64>, E> {
        Ok(None)
    }
}

struct TextsOrNull;

impl<'de> Visitor<'de> for TextsOrNull {
    type Value = Option<Vec<String>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of strings")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = seq.next_element::<Option<String>>()? {
            texts.push(text.unwrap_or_default());
        }
        Ok(Some(texts))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBERS: &[(&str, Kind)] = &[("text", Kind::Text), ("number", Kind::Integer), ("texts", Kind::Texts)];

    #[test]
    fn reads_as_the_go_core_does() {
        let read = |body: &str| Object::request(body.as_bytes(), MEMBERS);
        assert_eq!(read("").unwrap().text("text"), "");
        assert_eq!(read(" \n").unwrap().integer("number"), None);
        assert_eq!(read("null").unwrap().texts("texts").len(), 0);
        assert_eq!(read(r#"{"TEXT":"a","Text":"b"}"#).unwrap().text("text"), "b");
        assert_eq!(read(r#"{"text":"a","text":null}"#).unwrap().text("text"), "a");
        assert_eq!(read(r#"{"number":7}"#).unwrap().integer("number"), Some(7));
        assert_eq!(read(r#"{"number":-7}"#).unwrap().integer("number"), Some(-7));
        assert_eq!(read(r#"{"texts":["a",null]}"#).unwrap().texts("texts"), ["a", ""]);
        for refused in [
            r#"{"other":1}"#,
            r#"{"number":"1"}"#,
            r#"{"number":1.0}"#,
            r#"{"number":1e0}"#,
            r#"{"number":9223372036854775808}"#,
            r#"{"text":1}"#,
            r#"{"text":1,"text":"a"}"#,
            r#"{"texts":"a"}"#,
            "{} {}",
            "{}x",
            "[]",
            "\"a\"",
            "1",
            "{",
        ] {
            assert_eq!(read(refused).err(), Some(Unreadable), "{refused}");
        }
    }

    #[test]
    fn claims_skip_what_they_do_not_know() {
        let claims = Object::claims(br#"{"x":{"y":[1]},"number":1}"#, MEMBERS).unwrap();
        assert_eq!(claims.integer("number"), Some(1));
        assert!(Object::claims(b"", MEMBERS).is_err());
        assert!(Object::claims(br#"{"number":1}{}"#, MEMBERS).is_err());
    }
}
