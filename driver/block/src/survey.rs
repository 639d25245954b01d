//! The survey of a domain's disks and images that every plan is made from.
//!
//! What a running guest's device model knows of its chains, the driver gives: those files may be
//! locked, and what is in memory is newer. Of all other images `qemu-img info` tells.
//!
//! An image's format comes from whoever names it: the definition, or the header of the image above
//! it, or the moment that names it. What says it is a qcow2 and is none counts as not there.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::{
    DiskDevice, DiskFacts, DiskSource, Format, ImageFacts, InternalSnapshot, MemoryFile, PathKind,
};
use virtsnap_engine::inspect::ImageSize;
use virtsnap_engine::ports::{Needed, Subject};
use virtsnap_xml::domain::{self, DiskView};
use virtsnap_xml::element::Element;

use crate::image::info::{MAX_DEPTH, resolve};
use crate::image::{self, QemuImg, blocking, header, system};
use crate::job;
use crate::qmp::Qmp;

pub type Images = BTreeMap<PathBuf, ImageFacts>;

/// A directory with more entries is not searched; its images count as read by others.
const MAX_NEIGHBOURS: usize = 65536;

/// Adds to `images`, those that the device model has open, all others that the disks (of the live
/// definition, if there is one) and what is known of the domain reach. Each has one name.
pub async fn gather(
    tool: &QemuImg,
    subject: &Subject,
    disks: &[DiskFacts],
    images: &mut Images,
) -> Result<()> {
    let configured: Vec<DiskFacts> = subject.config.iter().flat_map(self::disks).collect();
    for disk in disks.iter().chain(&configured) {
        if let Some(path) = disk.image() {
            walk(tool, path, &disk.format, images).await?;
        }
    }
    named_only(tool, subject, images).await?;
    let active = disks.iter().filter_map(|disk| disk.image().cloned());
    let named: BTreeSet<PathBuf> =
        active.chain(subject.images.keys().chain(&subject.owned).cloned()).collect();
    unify(images, &named);
    Ok(())
}

/// The internal snapshots in the images of a definition's disks, in those below, and in `named`;
/// images without any are left out. `images` are known already. Nothing is changed, and one that
/// cannot be read just now is left out, too.
pub async fn snapshots(
    tool: &QemuImg,
    definition: &Element,
    named: &BTreeMap<PathBuf, Format>,
    mut images: Images,
) -> BTreeMap<PathBuf, Vec<InternalSnapshot>> {
    let disks = disks(definition).into_iter();
    let active: Vec<(PathBuf, Format)> =
        disks.filter_map(|disk| Some((disk.image()?.clone(), disk.format))).collect();
    for (path, format) in active.iter().map(|(p, f)| (p, f)).chain(named) {
        if let Err(err) = walk(tool, path, format, &mut images).await {
            tracing::warn!("{}", err.chain());
        }
    }
    let found = images.into_iter().map(|(path, facts)| (path, facts.snapshots));
    found.filter(|(_, snapshots)| !snapshots.is_empty()).collect()
}

/// Files beside our images that are none of them, were not given up, and stand on one of them; and
/// other domains that have one, or stand on it. Each of ours with a word on who.
pub async fn foreign_readers(
    images: &Images,
    others: &BTreeMap<PathBuf, Needed>,
    is_given_up: impl Fn(&Metadata) -> bool + Send + 'static,
) -> Result<BTreeMap<PathBuf, String>> {
    let ours: BTreeSet<PathBuf> = images.keys().cloned().collect();
    let others = others.clone();
    blocking(move || {
        let mut found = readers(&ours, is_given_up);
        found.extend(other_domains(&ours, &others));
        Ok(found)
    })
    .await
}

/// What the save images hold, as `read` tells; those that are missing are left out.
pub async fn memory_files(
    paths: BTreeSet<PathBuf>,
    read: impl Fn(&Path) -> MemoryFile + Send + 'static,
) -> Result<BTreeMap<PathBuf, MemoryFile>> {
    let look = move |path: &Path| match probe(path) {
        Ok(PathKind::Missing) => None,
        Ok(PathKind::Regular(_) | PathKind::BlockDevice) => Some(read(path)),
        // A pipe or a terminal would keep us waiting.
        Ok(PathKind::Other) | Err(_) => {
            Some(MemoryFile::Damaged("it is no regular file or block device".to_owned()))
        }
    };
    blocking(move || {
        Ok(paths
            .into_iter()
            .filter_map(|path| Some((look(&path)?, path)))
            .map(|(what, path)| (path, what))
            .collect())
    })
    .await
}

/// What the image of one of a definition's disks takes.
pub async fn size(tool: &QemuImg, definition: &Element, target: &str) -> Result<ImageSize> {
    let disk = disks(definition).into_iter().find(|disk| disk.target == target);
    let Some((image, format)) = disk.and_then(|disk| Some((disk.image()?.clone(), disk.format)))
    else {
        let what = format!("disk '{target}' has no image on this host");
        return Err(Error::new(Condition::InvalidArgument, what));
    };
    let facts = tool.info(&image, &format).await?;
    let length = fs::metadata(&image).map_err(|err| system("look at", &image, err))?.len();
    Ok(ImageSize {
        virtual_size: facts.virtual_size,
        allocation: facts.actual_size,
        physical: if facts.is_block_device { facts.virtual_size } else { length },
    })
}

pub fn disks(definition: &Element) -> Vec<DiskFacts> {
    domain::disks(definition).map(disk_facts).collect()
}

/// Disks that a device model's jobs work on.
pub async fn mark_jobs(qmp: &Qmp, disks: &mut [DiskFacts]) -> Result<()> {
    for found in job::all(qmp).await? {
        if found.is_concluded() || found.status == "null" {
            continue;
        }
        let is_ours = found.id.starts_with("virtsnap-");
        for disk in &mut *disks {
            // Which disk somebody else's job works on is not told, so none may be touched.
            if !is_ours || found.id == job::id("merge", &disk.target) {
                disk.block_job = true;
            }
        }
    }
    Ok(())
}

/// What is at a path; nothing is opened.
pub fn probe(path: &Path) -> Result<PathKind> {
    match fs::symlink_metadata(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(PathKind::Missing),
        Err(err) => return Err(system("look at", path, err)),
        Ok(_) => {}
    }
    // A link that leads nowhere is in the way all the same.
    Ok(match fs::metadata(path) {
        Ok(meta) if meta.is_file() => PathKind::Regular(meta.len()),
        Ok(meta) if meta.file_type().is_block_device() => PathKind::BlockDevice,
        Ok(_) | Err(_) => PathKind::Other,
    })
}

/// Seconds since the epoch.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn disk_facts(disk: DiskView<'_>) -> DiskFacts {
    let path = || disk.path().map(PathBuf::from);
    let source = match disk.source_type() {
        _ if disk.is_empty() => None,
        "file" => path().map(DiskSource::File),
        "block" => path().map(DiskSource::Block),
        "network" => Some(DiskSource::Network(disk.image().map(PathBuf::from))),
        other => Some(DiskSource::Other(other.to_owned())),
    };
    DiskFacts {
        target: disk.target().to_owned(),
        device: match disk.device() {
            "cdrom" => DiskDevice::Cdrom,
            "floppy" => DiskDevice::Floppy,
            "lun" => DiskDevice::Lun,
            _ => DiskDevice::Disk,
        },
        source,
        // As libvirt: what is not said is raw, never probed.
        format: Format::from(disk.format().unwrap_or("raw")),
        readonly: disk.is_readonly() || disk.device() == "cdrom",
        shareable: disk.is_shareable(),
        transient: disk.is_transient(),
        snapshot: disk.snapshot(),
        block_job: false,
        bypass: None,
    }
}

/// The chain from `path` down, as far as it is there and not yet known.
pub async fn walk(tool: &QemuImg, path: &Path, format: &Format, images: &mut Images) -> Result<()> {
    let mut next = Some((path.to_owned(), format.clone()));
    for _ in 0..MAX_DEPTH {
        let Some((path, format)) = next else { break };
        if images.contains_key(&path) || !is_there(&path) {
            break;
        }
        let facts = tool.info(&path, &format).await?;
        next = facts.backing.clone().zip(facts.backing_format.clone());
        images.insert(path, facts);
    }
    Ok(())
}

fn is_there(path: &Path) -> bool {
    // Whether a server answers, its first use will tell.
    image::is_network(path)
        || path.is_absolute()
            && matches!(probe(path), Ok(PathKind::Regular(_) | PathKind::BlockDevice))
}

/// QEMU goes on with a file that was moved away, written over or cut short; whoever opens it next
/// will not.
pub fn is_still_there(path: &Path, format: &Format) -> bool {
    let has_header = || match header::open_image(path)? {
        Some(file) => header::read(&file),
        None => Ok(None),
    };
    is_there(path)
        && (image::is_network(path)
            || *format != Format::Qcow2
            || has_header().is_ok_and(|header| header.is_some()))
}

/// Images that moments name or that we made, and that no disk stands on.
async fn named_only(tool: &QemuImg, subject: &Subject, images: &mut Images) -> Result<()> {
    let named = subject.images.keys().chain(&subject.owned);
    let unknown = named.filter(|path| !images.contains_key(*path) && is_there(path));
    let mut left: BTreeSet<PathBuf> = unknown.cloned().collect();
    // Those that another one stands on come after it, and so have their format from it.
    let below: HashSet<PathBuf> = left.iter().filter_map(|path| backing(path)).collect();
    let (last, first): (Vec<_>, Vec<_>) =
        std::mem::take(&mut left).into_iter().partition(|path| below.contains(path));
    for path in first.into_iter().chain(last) {
        if images.contains_key(&path) {
            continue;
        }
        let format = match subject.images.get(&path) {
            Some(format) => Some(format.clone()),
            // An overlay that we made: no guest has written its header.
            None => header::overlay_format(&path).map_err(|err| system("read", &path, err))?,
        };
        if let Some(format) = format
            && is_still_there(&path, &format)
        {
            walk(tool, &path, &format, images).await?;
        }
    }
    Ok(())
}

/// An image that headers call by another name than definitions and moments do has the latter.
fn unify(images: &mut Images, named: &BTreeSet<PathBuf>) {
    let mut known: BTreeMap<(u64, u64, u64), PathBuf> = BTreeMap::new();
    for path in named.iter().chain(images.keys()) {
        if let Ok(meta) = fs::metadata(path) {
            known.entry(image::identity(&meta)).or_insert_with(|| path.clone());
        }
    }
    let known_as = |path: &PathBuf| {
        let meta = fs::metadata(path).ok()?;
        known.get(&image::identity(&meta)).filter(|name| *name != path).cloned()
    };
    let others: Vec<(PathBuf, PathBuf)> =
        images.keys().filter_map(|path| Some((path.clone(), known_as(path)?))).collect();
    for (other, name) in &others {
        if let Some(facts) = images.remove(other) {
            images.entry(name.clone()).or_insert(facts);
        }
    }
    let renamed: BTreeMap<PathBuf, PathBuf> = others.into_iter().collect();
    for image in images.values_mut() {
        if let Some(name) = image.backing.as_ref().and_then(|backing| renamed.get(backing)) {
            image.backing = Some(name.clone());
        }
    }
}

fn backing(path: &Path) -> Option<PathBuf> {
    let file = header::open_image(path).ok()??;
    Some(resolve(path, &header::read(&file).ok()??.backing?))
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Wherever their images are, the uppermost of ours below each.
fn other_domains(
    ours: &BTreeSet<PathBuf>,
    others: &BTreeMap<PathBuf, Needed>,
) -> BTreeMap<PathBuf, String> {
    let known: BTreeMap<(u64, u64), &PathBuf> =
        ours.iter().filter_map(|path| Some((identity(path)?, path))).collect();
    let mut found = BTreeMap::new();
    for (path, needed) in others {
        let mut at = Some(path.clone());
        let mut depth = 0;
        while let Some(path) = at.filter(|_| depth < MAX_DEPTH) {
            let image = identity(&path).and_then(|identity| known.get(&identity).copied());
            if let Some(image) = image.or_else(|| ours.get(&path)) {
                found.insert(image.clone(), format!("domain '{}'", needed.by));
                break;
            }
            // A guest may have written anything into a raw one.
            let stands_alone = depth == 0 && needed.format == Format::Raw;
            at = if stands_alone { None } else { backing(&path) };
            depth += 1;
        }
    }
    found
}

fn readers(
    ours: &BTreeSet<PathBuf>,
    is_given_up: impl Fn(&Metadata) -> bool,
) -> BTreeMap<PathBuf, String> {
    let known: BTreeMap<(u64, u64), &PathBuf> =
        ours.iter().filter_map(|path| Some((identity(path)?, path))).collect();
    // The same image by its other end.
    let under_loops: BTreeSet<(u64, u64)> =
        ours.iter().filter_map(|path| identity(&loop_file(path)?)).collect();
    let directories: BTreeSet<&Path> = ours
        .iter()
        .filter_map(|path| path.parent())
        .filter(|path| !path.starts_with("/dev"))
        .collect();
    let mut readers = BTreeMap::new();
    for directory in directories {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        let mut seen = 0;
        for entry in entries.flatten() {
            seen += 1;
            if seen > MAX_NEIGHBOURS {
                let unsearched = ours.iter().filter(|path| path.parent() == Some(directory));
                let why = format!("'{}' has too many files to search", directory.display());
                readers.extend(unsearched.map(|path| (path.clone(), why.clone())));
                break;
            }
            let path = entry.path();
            let Ok(Some(file)) = header::open_regular(&path) else { continue };
            let is_ours =
                file.metadata().map(|meta| (meta.dev(), meta.ino())).is_ok_and(|identity| {
                    known.contains_key(&identity) || under_loops.contains(&identity)
                });
            if is_ours {
                continue;
            }
            if file.metadata().is_ok_and(|meta| is_given_up(&meta)) {
                continue;
            }
            let Ok(Some(head)) = header::read(&file) else { continue };
            let Some(backing) = head.backing.map(|name| resolve(&path, &name)) else { continue };
            if let Some(image) = identity(&backing).and_then(|identity| known.get(&identity)) {
                let who = format!("the image '{}'", path.display());
                readers.entry((*image).clone()).or_insert(who);
            } else if ours.contains(&backing) {
                // By its name, where it is no file.
                let who = format!("the image '{}'", path.display());
                readers.entry(backing).or_insert(who);
            }
        }
    }
    readers
}

/// The file that a loop device stands for.
fn loop_file(device: &Path) -> Option<PathBuf> {
    let meta = fs::metadata(device).ok()?;
    if !meta.file_type().is_block_device() {
        return None;
    }
    let number = meta.rdev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let file = format!("/sys/dev/block/{major}:{minor}/loop/backing_file");
    Some(PathBuf::from(fs::read_to_string(file).ok()?.trim_end_matches('\n')))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::testing::{base, tool};

    fn overlay(path: &Path, backing: &str) {
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", backing])
            .arg(path)
            .arg("4M")
            .status()
            .unwrap();
        assert!(made.success());
    }

    #[tokio::test]
    async fn neighbours_that_stand_on_our_images_are_found() {
        if tool().is_none() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        base(&at("base")).await;
        base(&at("stranger")).await;
        overlay(&at("ours"), "base");
        overlay(&at("theirs"), "./base");
        overlay(&at("elsewhere"), "stranger");
        fs::hard_link(at("ours"), at("link")).unwrap();
        fs::write(at("noise"), b"QFI\xfb\0\0\0\x03").unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RUSR).unwrap();
        let ours = BTreeSet::from([at("base"), at("ours")]);
        let found = readers(&ours, |_| false);
        assert_eq!(found.keys().collect::<Vec<_>>(), [&at("base")]);
        assert!(found[&at("base")].contains("theirs"), "{found:?}");
    }

    #[tokio::test]
    async fn domains_that_stand_on_our_images_are_found_wherever_they_are() {
        if tool().is_none() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for place in ["here", "there", "yonder"] {
            fs::create_dir(at(place)).unwrap();
        }
        base(&at("here/base")).await;
        overlay(&at("here/ours"), "base");
        overlay(&at("there/mid"), at("here/base").to_str().unwrap());
        overlay(&at("yonder/theirs"), at("there/mid").to_str().unwrap());
        let ours = BTreeSet::from([at("here/base"), at("here/ours")]);
        let of = |image: &str, format: Format| {
            let needed = Needed { format, by: "clone".to_owned() };
            other_domains(&ours, &BTreeMap::from([(at(image), needed)]))
        };
        let expected = BTreeMap::from([(at("here/base"), "domain 'clone'".to_owned())]);
        assert_eq!(of("yonder/theirs", Format::Qcow2), expected);
        assert_eq!(of("here/base", Format::Raw), expected);
        assert_eq!(of("there/mid", Format::Raw), BTreeMap::new(), "a guest wrote that");
        assert_eq!(of("there/gone", Format::Qcow2), BTreeMap::new());
        std::os::unix::fs::symlink(at("here/ours"), at("link")).unwrap();
        assert!(of("link", Format::Qcow2).contains_key(&at("here/ours")));
    }

    #[tokio::test]
    async fn images_are_gathered_and_those_that_are_gone_are_absent() {
        let Some(tool) = tool() else { return };
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        base(&at("base")).await;
        overlay(&at("mid"), at("base").to_str().unwrap());
        overlay(&at("top"), "mid");
        overlay(&at("branch"), "mid");
        overlay(&at("orphan"), "gone");
        let mut images = Images::new();
        walk(&tool, &at("top"), &Format::Qcow2, &mut images).await.unwrap();
        assert_eq!(images.len(), 3);
        let subject = Subject {
            uuid: uuid::Uuid::from_u128(1),
            name: "vm".to_owned(),
            config: None,
            images: [at("mid"), at("branch"), at("absent")]
                .map(|path| (path, Format::Qcow2))
                .into(),
            memory_files: BTreeSet::new(),
            owned: BTreeSet::from([at("orphan")]),
            others: BTreeMap::new(),
        };
        named_only(&tool, &subject, &mut images).await.unwrap();
        let names: Vec<_> =
            images.keys().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["base", "branch", "mid", "orphan", "top"]);
        assert_eq!(images[&at("branch")].backing, Some(at("mid")));
        assert_eq!(images[&at("orphan")].backing, Some(at("gone")));
    }

    #[tokio::test]
    async fn a_raw_layer_is_raw_whatever_the_guest_writes() {
        let Some(tool) = tool() else { return };
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        base(&at("secret")).await;
        // The guest's disk, with a header of its making.
        overlay(&at("disk"), "secret");
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "disk"])
            .arg(at("zz-overlay"))
            .arg("4M")
            .status()
            .unwrap();
        assert!(made.success());
        let subject = Subject {
            uuid: uuid::Uuid::from_u128(1),
            name: "vm".to_owned(),
            config: None,
            images: BTreeMap::from([(at("disk"), Format::Raw), (at("zz-overlay"), Format::Qcow2)]),
            memory_files: BTreeSet::new(),
            owned: BTreeSet::new(),
            others: BTreeMap::new(),
        };
        let mut images = Images::new();
        named_only(&tool, &subject, &mut images).await.unwrap();
        assert_eq!(images.len(), 2);
        assert_eq!(
            (&images[&at("disk")].format, &images[&at("disk")].backing),
            (&Format::Raw, &None)
        );
    }
}
