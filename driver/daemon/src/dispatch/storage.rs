//! As much of storage as clients need to name an image by its path.
//!
//! virt-install and virt-manager take a `--disk path=` only from a connection that can look the
//! path up, so a file that is there is a volume, and its directory is a pool: the pool's name is
//! the directory, its uuid the directory's device and inode. Nothing is kept, no pool is ever
//! listed, and a client with a read-only connection, whom the host's files do not concern, is
//! told nothing.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;
use virtsnap_engine::inspect::Inspect;
use virtsnap_engine::plan::moment_image;
use virtsnap_rpc::remote::*;
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use super::{Context, Failure, Outcome};
use crate::service::{ERR_INTERNAL, ERR_OPERATION_DENIED, RpcError};

const FROM_STORAGE: i32 = 18;
const NO_STORAGE_POOL: i32 = 49;
const NO_STORAGE_VOL: i32 = 50;
const OPERATION_INVALID: i32 = 55;

fn refused(code: i32, message: String) -> Failure {
    RpcError::new(code, FROM_STORAGE, message).into()
}

/// A file or block device of the host.
#[derive(Debug)]
struct Volume {
    path: String,
    block: bool,
    format: &'static str,
    capacity: u64,
    allocation: u64,
}

impl Volume {
    fn open(path: &str) -> Outcome<Self> {
        let missing = |why: String| {
            let message = format!("Storage volume not found: no storage vol at '{path}': {why}");
            refused(NO_STORAGE_VOL, message)
        };
        if !path.starts_with('/') {
            return Err(missing("the path is not absolute".to_owned()));
        }
        // Without this check, opening a FIFO waits and opening a device may do things.
        let found = std::fs::metadata(path).map_err(|err| missing(err.to_string()))?;
        let block = found.file_type().is_block_device();
        if !block && !found.is_file() {
            return Err(missing("it is neither a file nor a block device".to_owned()));
        }
        let mut head = Vec::new();
        File::open(path)
            .and_then(|file| file.take(HEAD).read_to_end(&mut head))
            .map_err(|err| missing(err.to_string()))?;
        let (format, capacity) = match qcow2_capacity(&head) {
            Some(capacity) => ("qcow2", capacity),
            None => ("raw", size(path, &found).map_err(|err| missing(err.to_string()))?),
        };
        let allocation = if block { capacity } else { found.blocks().saturating_mul(512) };
        Ok(Self { path: path.to_owned(), block, format, capacity, allocation })
    }

    fn directory(&self) -> &str {
        match self.path.rsplit_once('/') {
            Some(("", _)) | None => "/",
            Some((directory, _)) => directory,
        }
    }

    fn name(&self) -> &str {
        self.path.rsplit_once('/').map_or(self.path.as_str(), |(_, name)| name)
    }

    fn reference(&self) -> VolumeRef {
        VolumeRef {
            pool: self.directory().to_owned(),
            name: self.name().to_owned(),
            key: self.path.clone(),
        }
    }

    fn describe(&self) -> Element {
        let target = Element::new("target")
            .with_child(text("path", &self.path))
            .with_child(Element::new("format").with_attr("type", self.format));
        Element::new("volume")
            .with_attr("type", if self.block { "block" } else { "file" })
            .with_child(text("name", self.name()))
            .with_child(text("key", &self.path))
            .with_child(bytes("capacity", self.capacity))
            .with_child(bytes("allocation", self.allocation))
            .with_child(target)
    }
}

/// Magic, version and, at byte 24, the virtual size: all that is read of an image.
const HEAD: u64 = 32;

fn qcow2_capacity(head: &[u8]) -> Option<u64> {
    let rest = head.strip_prefix(b"QFI\xfb")?;
    let size = rest.get(20..28)?;
    Some(u64::from_be_bytes(size.try_into().ok()?))
}

fn size(path: &str, found: &Metadata) -> std::io::Result<u64> {
    if found.is_file() {
        return Ok(found.len());
    }
    std::io::Seek::seek(&mut File::open(path)?, std::io::SeekFrom::End(0))
}

fn text(name: &str, text: &str) -> Element {
    Element::new(name).with_text(text)
}

fn bytes(name: &str, count: u64) -> Element {
    text(name, &count.to_string()).with_attr("unit", "bytes")
}

/// A directory of the host.
#[derive(Debug)]
struct Pool {
    directory: String,
    uuid: Uuid,
    capacity: u64,
    available: u64,
}

impl Pool {
    fn open(directory: &str) -> Outcome<Self> {
        let missing = |why: String| {
            let message = format!("Storage pool not found: no storage pool '{directory}': {why}");
            refused(NO_STORAGE_POOL, message)
        };
        if !directory.starts_with('/') {
            return Err(missing("the only pools are directories, named by their path".to_owned()));
        }
        let found = std::fs::metadata(directory).map_err(|err| missing(err.to_string()))?;
        if !found.is_dir() {
            return Err(missing("it is no directory".to_owned()));
        }
        let space = rustix::fs::statvfs(Path::new(directory))
            .map_err(|err| missing(std::io::Error::from(err).to_string()))?;
        Ok(Self {
            directory: directory.to_owned(),
            uuid: Uuid::from_u64_pair(found.dev(), found.ino()),
            capacity: space.f_blocks.saturating_mul(space.f_frsize),
            available: space.f_bavail.saturating_mul(space.f_frsize),
        })
    }

    fn reference(&self) -> PoolRef {
        PoolRef { name: self.directory.clone(), uuid: self.uuid }
    }

    fn allocation(&self) -> u64 {
        self.capacity.saturating_sub(self.available)
    }

    fn describe(&self) -> Element {
        Element::new("pool")
            .with_attr("type", "dir")
            .with_child(text("name", &self.directory))
            .with_child(text("uuid", &self.uuid.to_string()))
            .with_child(bytes("capacity", self.capacity))
            .with_child(bytes("allocation", self.allocation()))
            .with_child(bytes("available", self.available))
            .with_child(Element::new("source"))
            .with_child(Element::new("target").with_child(text("path", &self.directory)))
    }
}

/// Files may lie on a server that does not answer.
async fn looked_up<H: Inspect, T: Send + 'static>(
    cx: &Context<'_, H>,
    open: impl FnOnce() -> Outcome<T> + Send + 'static,
) -> Outcome<T> {
    if cx.session.read_only() {
        let message = "operation forbidden: read only access prevents looking up files";
        return Err(refused(ERR_OPERATION_DENIED, message.to_owned()));
    }
    tokio::task::spawn_blocking(open)
        .await
        .unwrap_or_else(|err| Err(refused(ERR_INTERNAL, format!("internal error: {err}"))))
}

async fn volume<H: Inspect>(cx: &Context<'_, H>, path: String) -> Outcome<Volume> {
    looked_up(cx, move || Volume::open(&path)).await
}

async fn pool<H: Inspect>(cx: &Context<'_, H>, directory: String) -> Outcome<Pool> {
    looked_up(cx, move || Pool::open(&directory)).await
}

/// None is kept, so none is listed.
pub(super) async fn list_pools<H: Inspect>(
    _: Context<'_, H>,
    _: ConnectListAllStoragePoolsArgs,
) -> Outcome<ConnectListAllStoragePoolsRet> {
    Ok(ConnectListAllStoragePoolsRet { pools: Vec::new().into(), ret: 0 })
}

pub(super) async fn pool_by_name<H: Inspect>(
    cx: Context<'_, H>,
    args: StoragePoolLookupByNameArgs,
) -> Outcome<StoragePoolLookupByNameRet> {
    Ok(StoragePoolLookupByNameRet { pool: pool(&cx, args.name).await?.reference() })
}

pub(super) async fn pool_by_volume<H: Inspect>(
    cx: Context<'_, H>,
    args: StoragePoolLookupByVolumeArgs,
) -> Outcome<StoragePoolLookupByVolumeRet> {
    let directory = volume(&cx, args.vol.key).await?.directory().to_owned();
    Ok(StoragePoolLookupByVolumeRet { pool: pool(&cx, directory).await?.reference() })
}

pub(super) async fn pool_info<H: Inspect>(
    cx: Context<'_, H>,
    args: StoragePoolGetInfoArgs,
) -> Outcome<StoragePoolGetInfoRet> {
    const RUNNING: u8 = 2;
    let pool = pool(&cx, args.pool.name).await?;
    Ok(StoragePoolGetInfoRet {
        state: RUNNING,
        capacity: pool.capacity,
        allocation: pool.allocation(),
        available: pool.available,
    })
}

pub(super) async fn pool_xml<H: Inspect>(
    cx: Context<'_, H>,
    args: StoragePoolGetXmlDescArgs,
) -> Outcome<StoragePoolGetXmlDescRet> {
    let xml = pool(&cx, args.pool.name).await?.describe().to_string();
    Ok(StoragePoolGetXmlDescRet { xml })
}

pub(super) async fn pool_is_active<H: Inspect>(
    cx: Context<'_, H>,
    args: StoragePoolIsActiveArgs,
) -> Outcome<StoragePoolIsActiveRet> {
    pool(&cx, args.pool.name).await?;
    Ok(StoragePoolIsActiveRet { active: 1 })
}

pub(super) async fn pool_is_persistent<H: Inspect>(
    cx: Context<'_, H>,
    args: StoragePoolIsPersistentArgs,
) -> Outcome<StoragePoolIsPersistentRet> {
    pool(&cx, args.pool.name).await?;
    Ok(StoragePoolIsPersistentRet { persistent: 0 })
}

/// Every look is a fresh one.
pub(super) async fn refresh<H: Inspect>(
    cx: Context<'_, H>,
    args: StoragePoolRefreshArgs,
) -> Outcome<()> {
    pool(&cx, args.pool.name).await.map(drop)
}

pub(super) async fn volume_by_path<H: Inspect>(
    cx: Context<'_, H>,
    args: StorageVolLookupByPathArgs,
) -> Outcome<StorageVolLookupByPathRet> {
    Ok(StorageVolLookupByPathRet { vol: volume(&cx, args.path).await?.reference() })
}

pub(super) async fn volume_by_name<H: Inspect>(
    cx: Context<'_, H>,
    args: StorageVolLookupByNameArgs,
) -> Outcome<StorageVolLookupByNameRet> {
    if args.name.contains('/') {
        let message = format!("Storage volume not found: '{}' is no file name", args.name);
        return Err(refused(NO_STORAGE_VOL, message));
    }
    let path = format!("{}/{}", args.pool.name.trim_end_matches('/'), args.name);
    Ok(StorageVolLookupByNameRet { vol: volume(&cx, path).await?.reference() })
}

pub(super) async fn volume_info<H: Inspect>(
    cx: Context<'_, H>,
    args: StorageVolGetInfoArgs,
) -> Outcome<StorageVolGetInfoRet> {
    let volume = volume(&cx, args.vol.key).await?;
    Ok(StorageVolGetInfoRet {
        kind: volume.block.into(),
        capacity: volume.capacity,
        allocation: volume.allocation,
    })
}

pub(super) async fn volume_xml<H: Inspect>(
    cx: Context<'_, H>,
    args: StorageVolGetXmlDescArgs,
) -> Outcome<StorageVolGetXmlDescRet> {
    Ok(StorageVolGetXmlDescRet { xml: volume(&cx, args.vol.key).await?.describe().to_string() })
}

pub(super) async fn volume_path<H: Inspect>(
    cx: Context<'_, H>,
    args: StorageVolGetPathArgs,
) -> Outcome<StorageVolGetPathRet> {
    Ok(StorageVolGetPathRet { name: volume(&cx, args.vol.key).await?.path })
}

/// The images that somebody would lose, and who: running guests and snapshots. A definition alone
/// does not count, since clients remove a domain's images before they undefine it.
fn needed<H: Inspect>(cx: &Context<'_, H>) -> Vec<(PathBuf, String)> {
    let mut needed = Vec::new();
    for domain in cx.daemon.domains.table.all_with_waiting() {
        let (name, moments) = {
            let book = domain.book();
            (book.name.clone(), book.listed().into_owned())
        };
        for moment in moments.iter() {
            let who = format!("snapshot '{}' of domain '{name}'", moment.name);
            let images = moment.disks.iter().filter_map(|disk| moment_image(moment, &disk.name));
            needed.extend(images.map(|image| (image, who.clone())));
        }
        let Some(active) = cx.daemon.domains.active(&domain) else { continue };
        for disk in domain::disks(&active.live) {
            let chain = disk.path().into_iter().chain(disk.backing_paths());
            needed.extend(chain.map(|path| (path.into(), format!("the running domain '{name}'"))));
        }
    }
    needed
}

/// Which file it is, whatever its path.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// `vol-delete`, `undefine --remove-all-storage` and virt-manager's dialog: a file goes, unless
/// a snapshot or a running guest would lose it.
pub(super) async fn delete<H: Inspect>(
    cx: Context<'_, H>,
    args: StorageVolDeleteArgs,
) -> Outcome<()> {
    super::flags::only::<H>(args.flags, 0, "virtsnapStorageVolDelete")?;
    let needed = needed(&cx);
    looked_up(&cx, move || {
        let volume = Volume::open(&args.vol.key)?;
        let unable =
            |why: String| refused(ERR_INTERNAL, format!("cannot remove '{}': {why}", volume.path));
        if volume.block {
            return Err(unable("it is a block device".to_owned()));
        }
        let this = identity(Path::new(&volume.path));
        let is_this = |path: &Path| this.is_some() && identity(path) == this;
        if let Some((_, who)) = needed.iter().find(|(path, _)| is_this(path)) {
            let message = format!(
                "Requested operation is not valid: volume '{}' is still in use by {who}",
                volume.path
            );
            return Err(refused(OPERATION_INVALID, message));
        }
        std::fs::remove_file(&volume.path).map_err(|err| unable(err.to_string()))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_a_volume_with_the_size_that_its_guest_sees() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.img");
        let path = path.to_str().unwrap();
        std::fs::write(path, [0; 1000]).unwrap();
        let raw = Volume::open(path).unwrap();
        assert_eq!((raw.format, raw.capacity, raw.block), ("raw", 1000, false));
        assert_eq!((raw.directory(), raw.name()), (directory.path().to_str().unwrap(), "a.img"));
        let mut head = b"QFI\xfb\0\0\0\x03".to_vec();
        head.resize(24, 0);
        head.extend((64_u64 << 20).to_be_bytes());
        std::fs::write(path, &head).unwrap();
        let qcow2 = Volume::open(path).unwrap();
        assert_eq!((qcow2.format, qcow2.capacity), ("qcow2", 64 << 20));
        // Cut off before its size, it is nothing but bytes.
        std::fs::write(path, head.get(..31).unwrap()).unwrap();
        assert_eq!(Volume::open(path).unwrap().format, "raw");
        for none in ["a.img", "", "/dev/null", directory.path().to_str().unwrap(), "/nowhere/x"] {
            assert!(Volume::open(none).is_err(), "{none}");
        }
    }

    #[test]
    fn a_directory_is_a_pool() {
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().to_str().unwrap();
        let pool = Pool::open(name).unwrap();
        assert_eq!(pool.describe().at(&["target", "path"]).unwrap().text(), name);
        assert_eq!(Pool::open(name).unwrap().uuid, pool.uuid);
        assert!(Pool::open("default").is_err() && Pool::open("/nowhere").is_err());
    }
}
