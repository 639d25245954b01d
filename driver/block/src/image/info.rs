//! What an image tells of itself, and the chain it stands on.
//!
//! Source: QEMU's `ImageInfo`, the same from `qemu-img info --output=json` and from a running
//! QEMU's `query-named-block-nodes`.

use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use virtsnap_engine::error::{Condition, Result};
use virtsnap_engine::facts::{Format, ImageFacts, InternalSnapshot};

use super::header::can_be_image;
use super::tool::{Patience, QemuImg};
use super::{blocking, failure, header, image_options, system};

/// As libvirt's limit on the depth of a chain.
pub const MAX_DEPTH: usize = 200;

impl QemuImg {
    /// What one image tells, without opening its backing file.
    pub async fn info(&self, path: &Path, format: &Format) -> Result<ImageFacts> {
        if *format == Format::Qcow2 {
            refuse_data_file(path).await?;
        }
        let arguments = vec![
            "--output=json".into(),
            "--force-share".into(),
            "--image-opts".into(),
            image_options(path, format)?,
        ];
        let printed = self.run("info", arguments, Patience::Short, path).await?;
        let image: ImageInfo = serde_json::from_slice(&printed).map_err(|err| {
            let what = format!("qemu-img info of '{}' printed no image", path.display());
            failure(Condition::Internal, what).caused_by(err)
        })?;
        let mut facts = image.facts(path);
        facts.format = format.clone();
        facts.is_block_device = super::storage_driver(path) == "host_device";
        if facts.backing.is_some() && facts.backing_format.is_none() {
            facts.backing_format = backing_format_unsaid(path, &facts).await?;
        }
        Ok(facts)
    }

    /// The chain from `path` down, `path` first. All of it must be there.
    pub async fn chain(&self, path: &Path, format: &Format) -> Result<Vec<(PathBuf, ImageFacts)>> {
        let mut layers: Vec<(PathBuf, ImageFacts)> = Vec::new();
        let mut seen = HashSet::new();
        let mut next = Some((path.to_owned(), format.clone()));
        while let Some((path, format)) = next {
            let named_by = layers.last().map(|(path, _)| path.as_path());
            if !seen.insert(identity(&path, named_by)?) || layers.len() == MAX_DEPTH {
                return Err(failure(
                    Condition::OperationFailed,
                    format!("the backing chain of '{}' loops or is too deep", path.display()),
                ));
            }
            let facts = self.info(&path, &format).await?;
            next = match (&facts.backing, &facts.backing_format) {
                (Some(backing), Some(format)) => Some((backing.clone(), format.clone())),
                (Some(backing), None) => return Err(format_unsaid(&path, backing)),
                (None, _) => None,
            };
            layers.push((path, facts));
        }
        Ok(layers)
    }
}

fn identity(path: &Path, named_by: Option<&Path>) -> Result<(u64, u64, u64)> {
    if super::is_network(path) {
        let mut hasher = std::hash::DefaultHasher::new();
        path.hash(&mut hasher);
        return Ok((u64::MAX, hasher.finish(), 0));
    }
    let meta = std::fs::metadata(path).map_err(|err| match named_by {
        None => system("open image", path, err),
        Some(by) => system(&format!("open the backing file of '{}',", by.display()), path, err),
    })?;
    if !can_be_image(&meta) {
        let what = format!("'{}' is neither a regular file nor a block device", path.display());
        return Err(failure(Condition::OperationFailed, what));
    }
    Ok(super::identity(&meta))
}

/// A second file beside the image, that a header names: nobody vouches for it, and copies of the
/// image would share it.
async fn refuse_data_file(path: &Path) -> Result<()> {
    let Some(header) = header_of(path.to_owned()).await? else { return Ok(()) };
    if header.has_data_file {
        let what = format!(
            "image '{}' keeps its content in an external data file, which is not supported; \
             convert it with qemu-img convert",
            path.display()
        );
        return Err(failure(Condition::ConfigUnsupported, what));
    }
    Ok(())
}

/// None: not qcow2, or gone: whoever needs it will say so.
async fn header_of(path: PathBuf) -> Result<Option<header::Header>> {
    blocking(move || match header::open_image(&path) {
        Ok(Some(file)) => header::read(&file).map_err(|err| system("read", &path, err)),
        Ok(None) | Err(_) => Ok(None),
    })
    .await
}

/// A header without a format for its backing file, as QEMU before 6.1 wrote them, and as all of qed
/// are but those on raw images. Probing is harmless for a file that leads nowhere else, so only
/// this is done.
async fn backing_format_unsaid(path: &Path, facts: &ImageFacts) -> Result<Option<Format>> {
    let Some(backing) = facts.backing.clone() else { return Ok(None) };
    if !backing.is_absolute() {
        return Err(format_unsaid(path, &backing));
    }
    if std::fs::metadata(&backing).is_ok_and(|meta| !can_be_image(&meta)) {
        return Err(format_unsaid(path, &backing));
    }
    match header_of(backing.clone()).await? {
        None if is_overlay(backing.clone()).await? => Err(format_unsaid(path, &backing)),
        None => Ok(Some(Format::Raw)),
        Some(header) if header.backing.is_none() && !header.has_data_file => {
            Ok(Some(Format::Qcow2))
        }
        Some(_) => Err(format_unsaid(path, &backing)),
    }
}

/// It has the mark of a format that can stand on another image. Gone: it has not.
async fn is_overlay(path: PathBuf) -> Result<bool> {
    blocking(move || Ok(header::overlay_format(&path).is_ok_and(|format| format.is_some()))).await
}

fn format_unsaid(image: &Path, backing: &Path) -> virtsnap_engine::error::Error {
    failure(
        Condition::OperationFailed,
        format!(
            "image '{}' does not say the format of its backing file '{}'; \
             write it with qemu-img rebase -u -F",
            image.display(),
            backing.display()
        ),
    )
}

/// QEMU's `ImageInfo`, as much of it as we use.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageInfo {
    format: String,
    virtual_size: i64,
    #[serde(default)]
    actual_size: Option<i64>,
    #[serde(default)]
    backing_filename: Option<String>,
    #[serde(default)]
    backing_filename_format: Option<String>,
    #[serde(default)]
    snapshots: Vec<SnapshotInfo>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SnapshotInfo {
    id: String,
    name: String,
    vm_state_size: i64,
    date_sec: i64,
    vm_clock_sec: i64,
    vm_clock_nsec: i64,
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

impl ImageInfo {
    pub fn has_tag(&self, tag: &str) -> bool {
        self.snapshots.iter().any(|snapshot| snapshot.name == tag)
    }

    /// `path` is what the image is called by us; a relative backing file is relative to it.
    pub fn facts(self, path: &Path) -> ImageFacts {
        ImageFacts {
            format: Format::from(self.format.as_str()),
            virtual_size: unsigned(self.virtual_size),
            actual_size: self.actual_size.map_or(0, unsigned),
            backing: self.backing_filename.map(|name| resolve(path, &name)),
            backing_format: self.backing_filename_format.as_deref().map(Format::from),
            snapshots: self.snapshots.into_iter().map(SnapshotInfo::facts).collect(),
            is_block_device: false,
        }
    }
}

impl SnapshotInfo {
    fn facts(self) -> InternalSnapshot {
        InternalSnapshot {
            id: self.id,
            tag: self.name,
            vm_state_size: unsigned(self.vm_state_size),
            date: self.date_sec,
            vm_clock: unsigned(self.vm_clock_sec)
                .saturating_mul(1_000_000_000)
                .saturating_add(unsigned(self.vm_clock_nsec)),
        }
    }
}

/// The path a header's backing file name means. One that is no local file is given as written:
/// no image of that name will be found.
pub fn resolve(image: &Path, name: &str) -> PathBuf {
    let local = match name.strip_prefix("json:") {
        Some(json) => serde_json::from_str(json).ok().and_then(|value| json_filename(&value)),
        None => Some(name.to_owned()),
    };
    let Some(local) = local else { return PathBuf::from(name) };
    let before_slash = local.split('/').next().unwrap_or_default();
    let plain = match before_slash.split_once(':') {
        None => local.as_str(),
        Some(("file" | "host_device", _)) => local.split_once(':').map_or("", |(_, rest)| rest),
        Some(_) => return PathBuf::from(name),
    };
    match image.parent() {
        Some(directory) => directory.join(plain),
        None => PathBuf::from(plain),
    }
}

/// The one local file in a `json:` name: `file.filename`, `file: {filename}` or `filename`.
fn json_filename(value: &Value) -> Option<String> {
    let local = |driver: Option<&Value>| match driver.and_then(Value::as_str) {
        None => true,
        Some(name) => matches!(name, "file" | "host_device"),
    };
    if let Some(file) = value.get("file") {
        return match file {
            Value::Object(_) => json_filename(file),
            _ => None,
        };
    }
    if let Some(name) = value.get("file.filename") {
        return name.as_str().filter(|_| local(value.get("file.driver"))).map(str::to_owned);
    }
    let name = value.get("filename")?.as_str()?;
    local(value.get("driver")).then(|| name.to_owned())
}
