//! What is said durably of an image, beside it.
//!
//! Of a device or a server's export it is said in the state directory: what stands in `/dev` is
//! gone with the next boot.

use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use virtsnap_engine::error::Result;

use super::claim::{Claim, gone, hash, sync_directory, unlink};
use super::{blocking, is_network, name, system};

/// Says durably that `base` holds all that the active layer `top` holds.
///
/// To be said while the guest's writes to the disk are held back, between the end of an active
/// commit and its pivot. From then on the commit must not be made again from the files: the guest
/// may have written to the base since, and `top` would overwrite that with old data.
pub async fn mark_committed(state_dir: &Path, domain: Uuid, top: &Path, base: &Path) -> Result<()> {
    let (marker, directory) = lasting(state_dir, domain, top, "committed")?;
    let base = name(base)?.to_owned();
    blocking(move || write_marker(&marker, base.as_bytes(), &directory)).await
}

pub async fn is_committed(state_dir: &Path, domain: Uuid, top: &Path, base: &Path) -> Result<bool> {
    let (marker, _) = lasting(state_dir, domain, top, "committed")?;
    let base = name(base)?.to_owned();
    blocking(move || match fs::read(&marker) {
        Ok(said) => Ok(said == base.as_bytes()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(err) => Err(system("read", &marker, err)),
    })
    .await
}

/// No commit of `top` is under way.
pub async fn unmark_committed(state_dir: &Path, domain: Uuid, top: &Path) -> Result<()> {
    let (marker, directory) = lasting(state_dir, domain, top, "committed")?;
    blocking(move || match fs::symlink_metadata(&marker) {
        Err(err) if gone(&err) => Ok(()),
        _ => {
            unlink(&marker)?;
            sync_directory(&directory)
        }
    })
    .await
}

/// Says that the tag was in the image before the step that was to make it.
pub async fn mark_foreign_tag(
    state_dir: &Path,
    domain: Uuid,
    image: &Path,
    tag: &str,
) -> Result<()> {
    let (marker, directory) = lasting(state_dir, domain, image, "foreign")?;
    let tag = tag.to_owned();
    blocking(move || write_marker(&marker, tag.as_bytes(), &directory)).await
}

/// Whether that was said of the tag; it is said no more.
pub async fn take_foreign_tag(
    state_dir: &Path,
    domain: Uuid,
    image: &Path,
    tag: &str,
) -> Result<bool> {
    let (marker, directory) = lasting(state_dir, domain, image, "foreign")?;
    let tag = tag.to_owned();
    blocking(move || match fs::read(&marker) {
        Ok(said) => {
            unlink(&marker)?;
            sync_directory(&directory)?;
            Ok(said == tag.as_bytes())
        }
        Err(err) if gone(&err) => Ok(false),
        Err(err) => Err(system("read", &marker, err)),
    })
    .await
}

/// A marker that outlives a boot of the host, and its directory.
fn lasting(state_dir: &Path, domain: Uuid, image: &Path, what: &str) -> Result<(PathBuf, PathBuf)> {
    if is_network(image) || image.starts_with("/dev") {
        let name = format!("{domain}-{:016x}.{what}", hash(image.as_os_str().as_bytes()));
        return Ok((state_dir.join(name), state_dir.to_owned()));
    }
    let claim = Claim::new(domain, image)?;
    let marker = if what == "foreign" { claim.foreign } else { claim.committed };
    Ok((marker, claim.directory))
}

/// Whole or not at all: what is half written was never renamed.
pub(super) fn write_marker(path: &Path, text: &[u8], directory: &Path) -> Result<()> {
    let fail = |err| system("write", path, err);
    let mut file = tempfile::Builder::new()
        .prefix(".virtsnap-marker.virtsnap-")
        .tempfile_in(directory)
        .map_err(fail)?;
    file.write_all(text).map_err(fail)?;
    file.as_file().sync_all().map_err(fail)?;
    file.persist(path).map_err(|err| fail(err.error))?;
    sync_directory(directory)
}
