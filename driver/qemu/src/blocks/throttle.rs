//! A guest's writes to one disk, held back while layers are merged under it, and let go again with
//! the limits there were.
//!
//! Those are in the status file first, so that a daemon that comes back can let go as well.

use virtsnap_block::throttle::{self, Limits};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_xml::domain;

use crate::inspect::is_of;
use crate::instance::Instance;

/// The guest writes at most so many bytes a second to the disk, until [`lift`].
pub(crate) async fn hold(instance: &Instance, target: &str, bytes: u64) -> Result<()> {
    let (device, now) = find(instance, target).await?;
    let before = {
        let mut inner = instance.lock();
        let before = inner.throttled.entry(target.to_owned()).or_insert(now).clone();
        instance.save_locked(&inner)?;
        before
    };
    Ok(throttle::set(&instance.qmp, &device, before.held_to(bytes)).await?)
}

/// The disk has the limits again that it had before [`hold`]; none is done.
pub(crate) async fn lift(instance: &Instance, target: &str) -> Result<()> {
    let Some(before) = instance.lock().throttled.get(target).cloned() else { return Ok(()) };
    let (device, _) = find(instance, target).await?;
    throttle::set(&instance.qmp, &device, before).await?;
    let mut inner = instance.lock();
    inner.throttled.remove(target);
    instance.save_locked(&inner)
}

/// What QEMU calls the disk's device, and its limits now.
async fn find(instance: &Instance, target: &str) -> Result<(String, Limits)> {
    let live = instance.live();
    let alias = domain::disk(&live, target).and_then(|disk| disk.element.at(&["alias"]));
    let alias = alias.and_then(|alias| alias.attr("name")).unwrap_or_default();
    throttle::find(&instance.qmp, |device| is_of(device, alias)).await?.ok_or_else(|| {
        let what = format!("QEMU knows no device of disk '{target}' whose writes it could limit");
        Error::new(Condition::Internal, what)
    })
}
