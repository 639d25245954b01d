//! A guest's writes to one disk, limited (`query-block`, `block_set_io_throttle`).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::qmp::{Qmp, QmpError};

/// QEMU writes at least so much for each write of the guest's to a disk that is being merged.
const GRANULARITY: u64 = 64 << 10;

/// What QEMU was told about one disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits(Map<String, Value>);

const RATES: [&str; 6] = ["bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"];
const BURSTS: [&str; 13] = [
    "bps_max",
    "bps_rd_max",
    "bps_wr_max",
    "iops_max",
    "iops_rd_max",
    "iops_wr_max",
    "bps_max_length",
    "bps_rd_max_length",
    "bps_wr_max_length",
    "iops_max_length",
    "iops_rd_max_length",
    "iops_wr_max_length",
    "iops_size",
];

impl Limits {
    pub fn none() -> Self {
        Self::of(&Value::Null)
    }

    /// Of `inserted` in an answer to `query-block`.
    fn of(inserted: &Value) -> Self {
        let mut limits = Map::new();
        for key in RATES {
            let number = inserted.get(key).and_then(Value::as_u64).unwrap_or(0);
            limits.insert(key.to_owned(), number.into());
        }
        for key in BURSTS {
            if let Some(number) = inserted.get(key).and_then(Value::as_u64).filter(|n| *n > 0) {
                limits.insert(key.to_owned(), number.into());
            }
        }
        if let Some(group) = inserted.get("group").and_then(Value::as_str) {
            limits.insert("group".to_owned(), group.into());
        }
        Self(limits)
    }

    fn number(&self, key: &str) -> u64 {
        self.0.get(key).and_then(Value::as_u64).unwrap_or(0)
    }

    /// The same, with at most so many bytes written in a second. QEMU takes a limit of all
    /// requests or one of writes, not both, and no burst below its limit.
    pub fn held_to(&self, bytes: u64) -> Self {
        let mut limits = Map::new();
        for (all, write, most) in
            [("bps", "bps_wr", bytes), ("iops", "iops_wr", (bytes / GRANULARITY).max(1))]
        {
            let key = if self.number(all) > 0 { all } else { write };
            let old = self.number(key);
            limits.insert(key.to_owned(), if old > 0 { old.min(most) } else { most }.into());
        }
        for key in RATES {
            limits.entry(key).or_insert_with(|| self.number(key).into());
        }
        limits.extend(self.0.get("group").map(|group| ("group".to_owned(), group.clone())));
        Self(limits)
    }
}

/// What QEMU calls the device, and its limits now; `is` knows the device in an answer to
/// `query-block`.
pub async fn find(
    qmp: &Qmp,
    is: impl Fn(&Value) -> bool,
) -> Result<Option<(String, Limits)>, QmpError> {
    let answer = qmp.execute("query-block", Value::Null).await?;
    let found = answer.as_array().into_iter().flatten().find(|device| is(device));
    let id = found.and_then(|device| device.get("qdev")?.as_str());
    let inserted = found.and_then(|device| device.get("inserted"));
    Ok(id.zip(inserted).map(|(id, inserted)| (id.to_owned(), Limits::of(inserted))))
}

pub async fn set(qmp: &Qmp, device: &str, limits: Limits) -> Result<(), QmpError> {
    let mut arguments = json!(limits.0);
    arguments["id"] = device.into();
    qmp.execute("block_set_io_throttle", arguments).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_there_was_is_kept_where_it_is_tighter_and_bursts_wait() {
        let free = Limits::of(&json!({ "bps": 0, "iops_wr": 0, "ro": false }));
        let held = free.held_to(1 << 20);
        assert_eq!((held.number("bps_wr"), held.number("iops_wr")), (1 << 20, 16));
        assert_eq!(free.held_to(100).number("iops_wr"), 1);

        let users = Limits::of(&json!({
            "bps": 1000, "iops": 0, "iops_wr": 9000, "bps_max": 4000, "group": "g"
        }));
        let held = users.held_to(1 << 20);
        let numbers = |key: &str| held.number(key);
        assert_eq!((numbers("bps"), numbers("bps_wr"), numbers("bps_max")), (1000, 0, 0));
        assert_eq!((numbers("iops"), numbers("iops_wr")), (0, 16));
        assert_eq!(held.0.get("group"), users.0.get("group"));
        assert_eq!(users.number("bps_max"), 4000);
    }
}
