//! What is where a user wants an overlay: who uses it, and whether it is one already.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use virtsnap_engine::error::Result;
use virtsnap_engine::facts::{DomainFacts, Format, PathKind, Place, Room};

use crate::image::{QemuImg, blocking, header, identity, is_same, system};
use crate::survey::probe;

/// What is at `at`, for an overlay on `below`. `in_use` are the images that running guests have,
/// each with a word on which guest.
pub async fn overlay(
    tool: &QemuImg,
    at: &Path,
    below: &Path,
    facts: &DomainFacts,
    in_use: BTreeMap<PathBuf, String>,
) -> Result<Place> {
    let kind = probe(at)?;
    if !matches!(kind, PathKind::Regular(_) | PathKind::BlockDevice) {
        return Ok(kind.into());
    }
    let used_by = user_of(at, facts, in_use)?;
    let mut place = Place { used_by, ..Place::from(kind) };
    if place.used_by.is_some() || kind == PathKind::Regular(0) {
        return Ok(place);
    }
    let Some(format) = header::overlay_format(at).map_err(|err| system("read", at, err))? else {
        return Ok(place);
    };
    match tool.info(at, &format).await {
        Ok(mut image) => {
            if image.backing.as_ref().is_some_and(|backing| is_same(backing, below)) {
                image.backing = Some(below.to_owned());
            }
            place.is_blank = image.snapshots.is_empty() && is_blank(tool, at, &format).await?;
            place.image = Some(image);
        }
        // What cannot be read is no overlay; a device may hold anything.
        Err(err) => tracing::debug!(path = %at.display(), "{}", err.chain()),
    }
    Ok(place)
}

fn user_of(
    at: &Path,
    facts: &DomainFacts,
    mut users: BTreeMap<PathBuf, String>,
) -> Result<Option<String>> {
    let meta = fs::metadata(at).map_err(|err| system("look at", at, err))?;
    let wanted = identity(&meta);
    let own = || format!("the domain '{}' or its snapshots", facts.name);
    users.extend(facts.images.keys().map(|path| (path.clone(), own())));
    users.extend(facts.disks.iter().filter_map(|disk| Some((disk.image()?.clone(), own()))));
    let user = users.into_iter().find(|(path, _)| {
        path == at || fs::metadata(path).is_ok_and(|meta| identity(&meta) == wanted)
    });
    if user.is_some() || !meta.file_type().is_block_device() {
        return Ok(user.map(|(_, who)| who));
    }
    // The kernel gives a device to one exclusive holder: a mount, a volume group, swap.
    let flags = libc::O_EXCL | libc::O_NONBLOCK | libc::O_NOCTTY;
    match OpenOptions::new().read(true).custom_flags(flags).open(at) {
        Err(err) if err.raw_os_error() == Some(libc::EBUSY) => {
            Ok(Some("the host, which has mounted it or made it part of a volume".to_owned()))
        }
        Err(err) => Err(system("open", at, err)),
        Ok(_) => Ok(None),
    }
}

/// Of a directory that is yet to be made, what the nearest one above it has. None: a file system
/// that does not say, or one that is gone: whoever writes will hear of it.
pub async fn room(directory: &Path) -> Option<Room> {
    let directory = directory.to_owned();
    let asked = blocking(move || {
        let there = directory.ancestors().find(|path| path.exists()).unwrap_or(&directory);
        let fail = |err| system("look at", there, err);
        let room = rustix::fs::statvfs(there).map_err(|err| fail(err.into()))?;
        let meta = fs::metadata(there).map_err(fail)?;
        Ok((room, meta.dev()))
    });
    let (room, file_system) = asked.await.ok()?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    (room.f_blocks > 0).then_some(Room { file_system, free })
}

/// Nothing was ever written to the guest's disk in this image.
async fn is_blank(tool: &QemuImg, path: &Path, format: &Format) -> Result<bool> {
    if *format != Format::Qcow2 {
        return Ok(tool.check(path, format).await?.allocated_clusters == 0);
    }
    let path = path.to_owned();
    blocking(move || {
        let read = || match header::open_image(&path)? {
            Some(file) => match header::read(&file)? {
                Some(head) => head.is_pristine(&file),
                None => Ok(false),
            },
            None => Ok(false),
        };
        read().map_err(|err| system("read", &path, err))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_that_is_yet_to_be_made_has_the_room_above_it() {
        let home = tempfile::tempdir().unwrap();
        let there = room(home.path()).await.unwrap();
        let later = room(&home.path().join("not/yet")).await.unwrap();
        assert_eq!(later.file_system, there.file_system);
    }
}
