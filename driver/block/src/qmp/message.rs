//! What the monitor says, one JSON object a line. Fields, events and error classes that we do
//! not know are tolerated: a newer QEMU must not cost us the connection.

use std::time::Duration;

use serde_json::{Map, Value};

/// An event, as sent. `data` is null where QEMU sends none.
#[derive(Debug, Clone, PartialEq)]
pub struct QmpEvent {
    pub name: String,
    pub data: Value,
    /// QEMU's clock: seconds since the epoch, -1 where it could not tell.
    pub seconds: i64,
    pub micros: i64,
}

impl QmpEvent {
    /// Since the epoch, by QEMU's clock.
    pub fn time(&self) -> Duration {
        let micros = Duration::from_micros(u64::try_from(self.micros).unwrap_or_default());
        Duration::from_secs(u64::try_from(self.seconds).unwrap_or_default()).saturating_add(micros)
    }

    /// A string among the event's data.
    pub fn text(&self, field: &str) -> Option<&str> {
        self.data.get(field).and_then(Value::as_str)
    }
}

/// An error as the monitor words it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub class: String,
    pub desc: String,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    Greeting,
    Event(QmpEvent),
    Reply {
        id: Option<u64>,
        outcome: Result<Value, Refusal>,
    },
    /// An object of a kind that we do not know.
    Unknown,
}

impl Message {
    /// None where the line is no JSON object.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let Ok(Value::Object(mut object)) = serde_json::from_slice(line) else { return None };
        if let Some(Value::String(name)) = object.remove("event") {
            return Some(Message::Event(event(name, &mut object)));
        }
        let id = object.get("id").and_then(Value::as_u64);
        if let Some(value) = object.remove("return") {
            return Some(Message::Reply { id, outcome: Ok(value) });
        }
        if let Some(error) = object.get("error") {
            let text = |field: &str, otherwise: &str| {
                error.get(field).and_then(Value::as_str).unwrap_or(otherwise).to_owned()
            };
            let refusal = Refusal {
                class: text("class", "GenericError"),
                desc: text("desc", "no description was given"),
            };
            return Some(Message::Reply { id, outcome: Err(refusal) });
        }
        if object.contains_key("QMP") {
            return Some(Message::Greeting);
        }
        Some(Message::Unknown)
    }
}

fn event(name: String, object: &mut Map<String, Value>) -> QmpEvent {
    let stamp = |field: &str| {
        object.get("timestamp").and_then(|t| t.get(field)).and_then(Value::as_i64).unwrap_or(-1)
    };
    let (seconds, micros) = (stamp("seconds"), stamp("microseconds"));
    QmpEvent { name, data: object.remove("data").unwrap_or(Value::Null), seconds, micros }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_fields_and_kinds_are_tolerated() {
        let line = br#"{"return": {"a": 1}, "id": 7, "novel": [1]}"#;
        let reply = Message::Reply { id: Some(7), outcome: Ok(json!({"a": 1})) };
        assert_eq!(Message::parse(line), Some(reply));
        assert_eq!(Message::parse(br#"{"novel": 1}"#), Some(Message::Unknown));
        assert_eq!(Message::parse(b"[1, 2]"), None);
        assert_eq!(Message::parse(b"\xff\xfe"), None);
    }

    #[test]
    fn an_event_without_data_or_time_is_still_an_event() {
        let event =
            QmpEvent { name: "NOVEL".to_owned(), data: Value::Null, seconds: -1, micros: -1 };
        assert_eq!(Message::parse(br#"{"event": "NOVEL"}"#), Some(Message::Event(event)));
    }
}
