//! One option's properties, as JSON or as `key=value`.

use std::fmt;

use serde_json::{Map, Value};

/// Properties of a device, object or block node.
#[derive(Debug, Clone, Default)]
pub(super) struct Props(Map<String, Value>);

impl Props {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn device(driver: impl Into<String>) -> Self {
        Self::new().with("driver", driver.into())
    }

    pub(super) fn object(kind: &str, id: impl Into<String>) -> Self {
        Self::new().with("qom-type", kind).with("id", id.into())
    }

    #[must_use]
    pub(super) fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.insert(key.to_owned(), value.into());
        self
    }

    #[must_use]
    pub(super) fn some(self, key: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }

    /// Left out when zero, as QEMU's default.
    #[must_use]
    pub(super) fn positive(self, key: &str, value: Option<u64>) -> Self {
        self.some(key, value.filter(|value| *value > 0))
    }

    /// `"on"` or `"off"`, for properties with a third value.
    #[must_use]
    pub(super) fn on_off(self, key: &str, value: Option<bool>) -> Self {
        self.some(key, value.map(on_off))
    }

    pub(super) fn into_value(self) -> Value {
        Value::Object(self.0)
    }
}

impl fmt::Display for Props {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = serde_json::to_string(&self.0).map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

pub(super) fn on_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

/// QEMU ends a value at a comma unless it is doubled.
pub(super) fn escape_comma(text: &str) -> String {
    text.replace(',', ",,")
}
