//! `<transient/>` disks: what the guest writes goes with it.
//!
//! As libvirt does it: an overlay beside the image, `IMAGE.TRANSIENT-DOMAIN`, made before QEMU
//! starts and removed when it has ended. One that a crash of the host left is made anew.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use virtsnap_engine::error::{Condition, Result};
use virtsnap_engine::facts::{Format, Target};
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use crate::blocks::{Chain, Layer};
use crate::image::info::resolve;
use crate::image::{QemuImg, blocking, claim, failure, header, system};

/// Gives every transient disk its overlay, as the active layer.
pub(crate) async fn add(
    tool: &QemuImg,
    domain: (Uuid, &str),
    live: &Element,
    chains: &mut BTreeMap<Target, Chain>,
) -> Result<()> {
    let (uuid, name) = domain;
    let layers = chains.values().flat_map(|chain| &chain.layers);
    let mut number = layers.map(|layer| layer.number).max().unwrap_or(0);
    for disk in domain::disks(live).filter(|disk| disk.is_transient()) {
        let Some(chain) = chains.get_mut(disk.target()) else { continue };
        let Some(base) = chain.layers.first().cloned() else { continue };
        let overlay = overlay(&base.image, name);
        drop_leftover(&overlay, &base.image).await?;
        let size = tool.info(&base.image, &base.format()).await?.virtual_size;
        let format = Format::Qcow2;
        claim::create_overlay(tool, uuid, &overlay, &format, &base.image, &base.format(), size)
            .await?;
        claim::keep(uuid, &overlay).await?;
        number += 1;
        let format = format.as_str().to_owned();
        chain.layers.insert(0, Layer { image: overlay, format, is_block_device: false, number });
    }
    Ok(())
}

/// Removes the overlays of a domain whose QEMU has ended.
pub(crate) fn remove<'a>(name: &str, chains: impl Iterator<Item = &'a Chain>) {
    for chain in chains {
        let [top, base, ..] = chain.layers.as_slice() else { continue };
        if top.image != overlay(&base.image, name) {
            continue;
        }
        match fs::remove_file(&top.image) {
            Ok(()) => {}
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => {
                let path = top.image.display();
                tracing::warn!(%path, %err, "cannot remove the overlay of a transient disk");
            }
        }
    }
}

fn overlay(image: &Path, name: &str) -> PathBuf {
    let mut path = image.as_os_str().to_owned();
    path.push(format!(".TRANSIENT-{name}"));
    path.into()
}

/// Nothing but an overlay on this very image is taken for one.
async fn drop_leftover(overlay: &Path, image: &Path) -> Result<()> {
    let (overlay, image) = (overlay.to_owned(), image.to_owned());
    blocking(move || {
        let fail = |err| system("look at", &overlay, err);
        let file = match header::open_regular(&overlay) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
            found => found.map_err(fail)?,
        };
        let head = file.map(|file| header::read(&file)).transpose().map_err(fail)?.flatten();
        let backing = head.and_then(|head| head.backing);
        if backing.is_some_and(|name| resolve(&overlay, &name) == image) {
            return fs::remove_file(&overlay).map_err(|err| system("remove", &overlay, err));
        }
        let what = format!(
            "'{}' is in the place of the overlay of a transient disk, and is none; remove it",
            overlay.display()
        );
        Err(failure(Condition::OperationFailed, what))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_an_overlay_of_ours_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let at = overlay(&image, "vm");
        assert_eq!(at, dir.path().join("image.TRANSIENT-vm"));
        drop_leftover(&at, &image).await.unwrap();
        fs::write(&at, "precious").unwrap();
        drop_leftover(&at, &image).await.unwrap_err();
        assert_eq!(fs::read(&at).unwrap(), b"precious");
        let layer = |image: &Path| Layer {
            image: image.to_owned(),
            format: "qcow2".to_owned(),
            is_block_device: false,
            number: 1,
        };
        let chain = |images: &[&Path]| Chain {
            target: "vda".to_owned(),
            layers: images.iter().copied().map(layer).collect(),
        };
        remove("vm", [chain(&[&at]), chain(&[&at, dir.path()])].iter());
        assert!(at.exists(), "it stands on another image");
        remove("vm", [chain(&[&at, &image])].iter());
        assert!(!at.exists());
    }
}
