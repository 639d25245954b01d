//! A new image at a place of the client's choosing, which is the client's from the start: the
//! destination of a copy.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use virtsnap_engine::error::Result;
use virtsnap_engine::facts::Format;

use super::tool::{Patience, QemuImg};
use super::{driver, plain_path, system};

/// Made with the owner of `like`, and nobody else may read it. An empty file that is there is used
/// as it is; whether what is there is empty was looked at before.
pub async fn create(
    tool: &QemuImg,
    path: &Path,
    format: &Format,
    backing: Option<(&Path, Format)>,
    virtual_size: u64,
    like: &Path,
) -> Result<()> {
    let is_new = make_file(path, like).map_err(|err| system("create", path, err))?;
    let mut arguments: Vec<OsString> = vec!["-q".into(), "-f".into(), driver(format)?.into()];
    if let Some((backing, backing_format)) = &backing {
        let name = plain_path(backing)?.into();
        let more = ["-u".into(), "-b".into(), name, "-F".into(), driver(backing_format)?.into()];
        arguments.extend(more);
    }
    arguments.push(plain_path(path)?.into());
    arguments.push(virtual_size.to_string().into());
    let made = tool.run("create", arguments, Patience::Short, path).await;
    if made.is_err() && is_new {
        fs::remove_file(path).map_err(|err| system("remove", path, err))?;
    }
    made.map(drop)
}

fn make_file(path: &Path, like: &Path) -> io::Result<bool> {
    let file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => file,
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(err) => return Err(err),
    };
    let meta = fs::metadata(like)?;
    // As an ordinary user this fails, and the file is ours as the other one was.
    let _ = fchown(&file, Some(meta.uid()), Some(meta.gid()));
    Ok(true)
}
