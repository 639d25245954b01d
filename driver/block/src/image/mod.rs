//! The one door to `qemu-img`, and what image files tell of themselves.
//!
//! - [`info`]: facts of one image, and its backing chain;
//! - [`edit`]: internal snapshots, commit, rebase, check;
//! - [`claim`]: new files that can be told from everybody else's: create, copy, keep, remove;
//! - [`marker`]: what is said durably beside an image, for whoever comes after a crash;
//! - [`fill`]: overlays in places that a user prepared;
//! - [`header`]: our own small reader of a qcow2 header, for files nobody vouches for;
//! - [`copy`]: one layer byte for byte, by reflink where the file system can;
//! - [`tag`]: internal snapshots as a step of a plan;
//! - [`tool`]: the child process, its deadline and its words.
//!
//! Formats are always given, never probed: the content of a raw image belongs to the guest, and
//! must not become a backing file. Paths are absolute, so that QEMU cannot take one for a protocol
//! (it looks for a colon before the first slash), and reach QEMU as `file.filename=` options with
//! commas doubled wherever the command takes options.

pub mod blank;
pub mod claim;
pub mod copy;
pub mod edit;
pub mod fill;
pub mod header;
pub mod info;
pub mod marker;
pub mod tag;
pub mod tool;

pub use tool::QemuImg;

use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::{Format, Target};
use virtsnap_xml::domain::{Nbd, Server};

/// An error about one file. To a client it is the driver's, as where libvirt makes an overlay.
pub fn failure(condition: Condition, message: impl Into<String>) -> Error {
    Error::new(condition, message)
}

/// A system call on a file failed.
pub fn system(what: &str, path: &Path, err: io::Error) -> Error {
    let errno = err.raw_os_error().unwrap_or(libc::EIO);
    failure(Condition::System(errno), format!("cannot {what} '{}'", path.display())).caused_by(err)
}

/// Runs file-system work where it may block.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|err| {
        Err(failure(Condition::Internal, "a file operation was torn down").caused_by(err))
    })
}

/// Removes a file, durably; gone is done.
pub async fn remove_durably(file: &Path) -> Result<()> {
    let path = file.to_owned();
    blocking(move || {
        match std::fs::remove_file(&path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
            _ => std::fs::File::open(path.parent().unwrap_or(Path::new("/")))
                .and_then(|directory| directory.sync_all()),
        }
        .map_err(|err| system("remove", &path, err))
    })
    .await
}

/// The path as QEMU can be given it: absolute, UTF-8, and not one that QEMU reads as something
/// else.
pub fn plain_path(path: &Path) -> Result<&str> {
    let refuse = |why: &str| {
        Err(failure(Condition::InvalidArgument, format!("image '{}': {why}", path.display())))
    };
    let Some(text) = path.to_str() else {
        return refuse("the path is not valid UTF-8");
    };
    if !path.is_absolute() {
        return refuse("the path is not absolute");
    }
    if text.contains('\0') {
        return refuse("the path holds a zero byte");
    }
    if text.starts_with("/dev/fdset/") {
        return refuse("QEMU takes such a path for a passed descriptor");
    }
    Ok(text)
}

/// The name of a format as a QEMU driver.
pub fn driver(format: &Format) -> Result<&str> {
    let name = format.as_str();
    let plain = !name.is_empty()
        && name.len() <= 32
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if plain {
        Ok(name)
    } else {
        Err(failure(Condition::InvalidArgument, format!("'{name}' is not an image format")))
    }
}

/// What a file or block device is known by, whatever its name.
pub fn identity(meta: &Metadata) -> (u64, u64, u64) {
    // A block device is the same by its number, not by the inode that leads to it.
    if meta.file_type().is_block_device() {
        (0, 0, meta.rdev())
    } else {
        (meta.dev(), meta.ino(), 0)
    }
}

/// Two names of one image.
pub fn is_same(one: &Path, other: &Path) -> bool {
    let of = |path: &Path| std::fs::metadata(path).ok().map(|meta| identity(&meta));
    of(one).is_some_and(|one| of(other) == Some(one))
}

/// QEMU's driver for the storage under a format: a file or a block device.
pub fn storage_driver(path: &Path) -> &'static str {
    match std::fs::metadata(path) {
        Ok(meta) if meta.file_type().is_block_device() => "host_device",
        _ => "file",
    }
}

/// An export of an NBD server, named by its URI.
pub fn network(path: &Path) -> Option<Nbd> {
    Nbd::from_uri(path.to_str()?)
}

pub fn is_network(path: &Path) -> bool {
    network(path).is_some()
}

/// Not there any more. Of a server that cannot be told, and its first use does.
pub fn is_gone(path: &Path) -> bool {
    !is_network(path) && !path.exists()
}

/// The image as a header names what it stands on.
pub fn name(path: &Path) -> Result<&str> {
    match path.to_str().filter(|_| is_network(path)) {
        Some(uri) => Ok(uri),
        None => plain_path(path),
    }
}

/// The refusal of what cannot be done to an image that a running guest has.
pub fn in_use(image: &Path, target: &str, what: &str) -> Error {
    failure(
        Condition::OperationInvalid,
        format!(
            "image '{}' cannot be {what} while disk '{target}' of the running domain uses it; \
             shut the domain down first",
            image.display()
        ),
    )
}

/// The guest has written to one of these overlays of its disks.
pub async fn were_written(tool: &QemuImg, overlays: &[(Target, PathBuf)]) -> Result<bool> {
    for (_, overlay) in overlays {
        if was_written(tool, overlay).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The guest has written to this overlay. One that is gone has nothing.
async fn was_written(tool: &QemuImg, overlay: &Path) -> Result<bool> {
    let path = overlay.to_owned();
    let pristine = blocking(move || {
        let read = |err| system("read", &path, err);
        match std::fs::File::open(&path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Some(true)),
            Err(err) => Err(read(err)),
            Ok(file) => match header::read(&file).map_err(read)? {
                Some(head) => Ok(Some(head.is_pristine(&file).map_err(read)?)),
                None => Ok(None),
            },
        }
    })
    .await?;
    match pristine {
        Some(pristine) => Ok(!pristine),
        // qed: its own tool counts.
        None => {
            let check = tool.check(overlay, &format_of(overlay)?).await?;
            Ok(check.allocated_clusters > 0)
        }
    }
}

/// The format of an image that stands on another one.
pub fn format_of(image: &Path) -> Result<Format> {
    header::overlay_format(image).map_err(|err| system("read", image, err))?.ok_or_else(|| {
        let what = format!("image '{}' is not qcow2 or qed", image.display());
        failure(Condition::OperationInvalid, what)
    })
}

/// The image for a command with `--image-opts`.
fn image_options(path: &Path, format: &Format) -> Result<OsString> {
    if let Some(nbd) = network(path) {
        let escape = |text: &str| text.replace(',', ",,");
        let server = match &nbd.server {
            Server::Tcp { host, port } => format!(
                "file.server.type=inet,file.server.host={},file.server.port={}",
                escape(host),
                escape(port)
            ),
            Server::Unix(socket) => {
                format!("file.server.type=unix,file.server.path={}", escape(socket))
            }
        };
        let (format, export) = (driver(format)?, escape(&nbd.export));
        return Ok(format!("driver={format},file.driver=nbd,{server},file.export={export}").into());
    }
    let name = plain_path(path)?.replace(',', ",,");
    let format = driver(format)?;
    let storage = storage_driver(path);
    Ok(format!("driver={format},file.driver={storage},file.filename={name}").into())
}

#[cfg(test)]
mod tests;
