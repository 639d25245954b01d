//! Block nodes of a running QEMU, and the internal snapshots in them.
//!
//! Source: `query-named-block-nodes`, which must not be asked at any time: QEMU (10.0.2) dies of it
//! (SIGSEGV) while a `block-stream` that has closed images is over and its job not yet dismissed.
//! Until then the block graph tells who stands on whom.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, sleep};
use virtsnap_engine::error::Result;

use crate::image::info::ImageInfo;
use crate::image::is_same;
use crate::job::{self, Job};
use crate::qmp::{Qmp, QmpError};

const DELETION: &str = "virtsnap-delete";

/// Streams are dismissed by whoever has begun them, at once.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// An image that the device model has open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    pub image: PathBuf,
    /// The node of its format.
    pub node: String,
}

impl Open {
    /// Is this the image, by whatever name?
    pub fn is(&self, image: &Path) -> bool {
        self.image == image || is_same(&self.image, image)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Node {
    #[serde(default)]
    pub node_name: String,
    pub drv: String,
    /// The file's name as QEMU renders it.
    pub file: String,
    #[serde(rename = "ro")]
    pub read_only: bool,
    pub cache: Cache,
    #[serde(rename = "detect_zeroes")]
    pub detect_zeroes: String,
    pub image: ImageInfo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cache {
    pub direct: bool,
    pub no_flush: bool,
}

/// Waits until no stream is about to end, or over and not dismissed.
pub async fn all(qmp: &Qmp) -> Result<Vec<Node>, QmpError> {
    wait_for_streams(qmp).await?;
    let answer = qmp.execute("query-named-block-nodes", json!({ "flat": true })).await?;
    serde_json::from_value(answer).map_err(|err| QmpError::Protocol(err.to_string()))
}

async fn wait_for_streams(qmp: &Qmp) -> Result<(), QmpError> {
    let end = Instant::now() + PATIENCE;
    loop {
        let jobs = job::all(qmp).await?;
        let is = |status| jobs.iter().any(|job| job.kind == "stream" && job.status == status);
        let is_late = Instant::now() > end;
        match (is("concluded"), is("pending")) {
            (false, false) => return Ok(()),
            // It is somebody else's, who takes his time.
            (false, true) if is_late => return Ok(()),
            (true, _) if is_late => {
                return Err(QmpError::Timeout { command: "job-dismiss".to_owned() });
            }
            _ => sleep(LOOK_EVERY).await,
        }
    }
}

/// The nodes whose image has a snapshot of that tag.
pub async fn tagged(qmp: &Qmp, tag: &str) -> Result<Vec<String>, QmpError> {
    let has = all(qmp).await?.into_iter().filter(|node| node.image.has_tag(tag));
    Ok(has.map(|node| node.node_name).collect())
}

/// Every internal snapshot of that tag goes from the image, which is open for writing; none is done.
///
/// `snapshot-delete` rather than `blockdev-snapshot-delete-internal-sync`: that one refuses every
/// node that something else stands on.
pub async fn delete_snapshot(qmp: &Qmp, node: &str, image: &Path, tag: &str) -> Result<()> {
    if job::wait(qmp, DELETION, Job::is_concluded).await?.is_some() {
        job::dismiss(qmp, DELETION).await?;
    }
    // Two of one tag are possible; each deletion takes the first.
    while tagged(qmp, tag).await?.iter().any(|tagged| tagged == node) {
        let arguments = json!({ "job-id": DELETION, "tag": tag, "devices": [node] });
        qmp.execute("snapshot-delete", arguments).await?;
        let Some(done) = job::wait(qmp, DELETION, Job::is_concluded).await? else { continue };
        job::dismiss(qmp, DELETION).await?;
        let what = format!("deleting snapshot '{tag}' of '{}'", image.display());
        job::outcome(&done, &what)?;
    }
    Ok(())
}
