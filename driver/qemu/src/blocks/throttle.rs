//! A guest's writes to one disk, held back while layers are merged under it (`query-block`,
//! `block_set_io_throttle`), and let go again with the limits there were.
//!
//! Those are in the status file first, so that a daemon that comes back can let go as well.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_xml::domain;

use crate::inspect::is_of;
use crate::instance::Instance;

/// QEMU writes at least so much for each write of the guest's to a disk that is being merged.
const GRANULARITY: u64 = 64 << 10;

/// What QEMU was told about one disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Limits(Map<String, Value>);

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
    fn held_to(&self, bytes: u64) -> Self {
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

/// The guest writes at most so many bytes a second to the disk, until [`lift`].
pub(crate) async fn hold(instance: &Instance, target: &str, bytes: u64) -> Result<()> {
    let (device, now) = find(instance, target).await?;
    let before = {
        let mut inner = instance.lock();
        let before = inner.throttled.entry(target.to_owned()).or_insert(now).clone();
        instance.save_locked(&inner)?;
        before
    };
    set(instance, &device, before.held_to(bytes)).await
}

/// The disk has the limits again that it had before [`hold`]; none is done.
pub(crate) async fn lift(instance: &Instance, target: &str) -> Result<()> {
    let Some(before) = instance.lock().throttled.get(target).cloned() else { return Ok(()) };
    let (device, _) = find(instance, target).await?;
    set(instance, &device, before).await?;
    let mut inner = instance.lock();
    inner.throttled.remove(target);
    instance.save_locked(&inner)
}

/// What QEMU calls the disk's device, and its limits now.
async fn find(instance: &Instance, target: &str) -> Result<(String, Limits)> {
    let live = instance.live();
    let alias = domain::disk(&live, target).and_then(|disk| disk.element.at(&["alias"]));
    let alias = alias.and_then(|alias| alias.attr("name")).unwrap_or_default();
    let answer = instance.qmp.execute("query-block", Value::Null).await?;
    let found = answer.as_array().into_iter().flatten().find(|device| is_of(device, alias));
    let id = found.and_then(|device| device.get("qdev")?.as_str());
    let (Some(id), Some(inserted)) = (id, found.and_then(|device| device.get("inserted"))) else {
        let what = format!("QEMU knows no device of disk '{target}' whose writes it could limit");
        return Err(Error::new(Condition::Internal, what));
    };
    Ok((id.to_owned(), Limits::of(inserted)))
}

async fn set(instance: &Instance, device: &str, limits: Limits) -> Result<()> {
    let mut arguments = json!(limits.0);
    arguments["id"] = device.into();
    instance.qmp.execute("block_set_io_throttle", arguments).await?;
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
