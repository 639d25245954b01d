//! New image files that can be told from everybody else's.
//!
//! A plan may remove a file only if this very plan made it. The name alone does not say: a client,
//! another domain or an earlier run may have put a file there, before the act or after it. So a
//! new file is made under a name of its own in the same directory, the *claim*
//! (`.NAME.virtsnap-UUID`, the UUID being the domain's, which has one modifying job at a time),
//! completed, made durable, and only then hard-linked to its final name; the link fails if anybody
//! has that name. The claim stays until the plan keeps the file. Hence at every point of time:
//!
//! - no claim: nothing of this plan is there, undo touches nothing;
//! - a claim, and the final name is another file or none: only the claim is ours;
//! - a claim, and both are one inode: the final name was given by us, since a link to the claim is
//!   made by nobody else. Undo removes the final name first, the claim last, so that it can be
//!   broken off and repeated anywhere.
//!
//! An old claim that a new act finds is dropped before anything else, so that a file that was kept
//! but whose claim was not dropped is never taken for the new act's.
//!
//! File systems without hard links: the claim is renamed to its final name without replacing
//! (`renameat2`), and before that a second marker (`…-at`) durably holds its device and inode.
//! Undo then compares the final name's with it. Where a file system numbers inodes anew at each
//! mount, the comparison fails and the file stays: the safe side.
//!
//! Another marker (`…-reused`) says that the file was there before and is written by this plan:
//! undo empties it, and leaves it where it is. What else is said beside an image is in
//! [`super::marker`].

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use uuid::Uuid;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::Format;

use super::marker::write_marker;
use super::tool::{Patience, QemuImg};
use super::{blocking, copy, driver, failure, is_network, name, plain_path, system};

/// A new image on a backing file, which is not opened.
pub async fn create_overlay(
    tool: &QemuImg,
    domain: Uuid,
    overlay: &Path,
    format: &Format,
    backing: &Path,
    backing_format: &Format,
    virtual_size: u64,
) -> Result<()> {
    let claim = Claim::new(domain, overlay)?;
    let arguments = new_overlay(&claim.file, format, backing, backing_format, virtual_size)?;
    let (begun, like) = (claim.clone(), backing.to_owned());
    blocking(move || begun.begin(Some(&like))).await?;
    let made = tool.run("create", arguments, Patience::Short, overlay).await;
    blocking(move || made.map(|_| ()).and_then(|()| claim.publish()).inspect_err(|_| claim.drop()))
        .await
}

/// What `qemu-img create` is told, to write a new image on a backing file, which is not opened.
pub(super) fn new_overlay(
    file: &Path,
    format: &Format,
    backing: &Path,
    backing_format: &Format,
    virtual_size: u64,
) -> Result<Vec<OsString>> {
    if !matches!(format, Format::Qcow2 | Format::Qed) {
        let what = format!("'{}' cannot be the format of an overlay", format.as_str());
        return Err(failure(Condition::ConfigUnsupported, what));
    }
    Ok(vec![
        "-q".into(),
        "-u".into(),
        "-f".into(),
        driver(format)?.into(),
        "-b".into(),
        name(backing)?.into(),
        "-F".into(),
        driver(backing_format)?.into(),
        plain_path(file)?.into(),
        virtual_size.to_string().into(),
    ])
}

/// A copy of one layer, byte for byte.
pub async fn copy_image(domain: Uuid, from: &Path, to: &Path) -> Result<()> {
    plain_path(from)?;
    let claim = Claim::new(domain, to)?;
    let from = from.to_owned();
    blocking(move || {
        let file = claim.begin(Some(&from))?;
        copy::contents(&from, &file)
            .map_err(|err| system(&format!("copy '{}' to", from.display()), &claim.last, err))
            .and_then(|()| claim.publish())
            .inspect_err(|_| claim.drop())
    })
    .await
}

/// A new qcow2 image that has no room for disks: for memory alone.
pub async fn create_blank(tool: &QemuImg, domain: Uuid, image: &Path) -> Result<()> {
    let claim = Claim::new(domain, image)?;
    let begun = claim.clone();
    blocking(move || begun.begin(None)).await?;
    let arguments: Vec<OsString> =
        vec!["-q".into(), "-f".into(), "qcow2".into(), plain_path(&claim.file)?.into(), "0".into()];
    let made = tool.run("create", arguments, Patience::Short, image).await;
    blocking(move || made.map(|_| ()).and_then(|()| claim.publish()).inspect_err(|_| claim.drop()))
        .await
}

/// A file that is being written, to be [`published`](Writing::publish).
#[derive(Debug)]
pub struct Writing {
    claim: Claim,
    file: File,
    is_new: bool,
}

/// Opens a file for all of its content: a new one for us alone, or one that the user made, if it is
/// empty or may be overwritten.
pub async fn write_anew(domain: Uuid, path: &Path, overwrite: bool) -> Result<Writing> {
    let claim = Claim::new(domain, path)?;
    blocking(move || {
        let there = match fs::metadata(&claim.last) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => None,
            Err(err) => return Err(system("look at", &claim.last, err)),
            Ok(meta) => Some(meta),
        };
        let Some(meta) = there else {
            let file = claim.begin(None)?;
            return Ok(Writing { claim, file, is_new: true });
        };
        if !overwrite && (!meta.is_file() || meta.len() > 0) {
            return Err(claim.taken());
        }
        claim.forget()?;
        if meta.is_file() {
            write_marker(&claim.reused, b"", &claim.directory)?;
        } else if !meta.file_type().is_block_device() {
            let what = format!("'{}' is no regular file or block device", claim.last.display());
            return Err(failure(Condition::OperationFailed, what));
        }
        let file = OpenOptions::new().write(true).truncate(meta.is_file()).open(&claim.last);
        let file = file.map_err(|err| system("open", &claim.last, err))?;
        Ok(Writing { claim, file, is_new: false })
    })
    .await
}

impl Writing {
    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn path(&self) -> &Path {
        &self.claim.last
    }

    /// All of it is written: makes it durable, under its name.
    pub fn publish(self) -> Result<()> {
        if self.is_new {
            return self.claim.publish().inspect_err(|_| self.claim.drop());
        }
        self.file.sync_all().map_err(|err| system("write", &self.claim.last, err))?;
        // Its name may be as new as its content.
        sync_directory(&self.claim.directory)
    }
}

/// Undo of any: removes the file if it is the one that was made, empties it if it was there before
/// and was written to.
pub async fn undo(domain: Uuid, path: &Path) -> Result<()> {
    let claim = Claim::new(domain, path)?;
    blocking(move || claim.undo()).await
}

/// The file is in use now: nothing of this plan may remove it any more.
pub async fn keep(domain: Uuid, path: &Path) -> Result<()> {
    let claim = Claim::new(domain, path)?;
    blocking(move || claim.forget()).await
}

/// Removes an image file; absent is done. A block device is left as it is; links and directories
/// are refused.
pub async fn remove(domain: Uuid, path: &Path) -> Result<()> {
    let claim = Claim::new(domain, path)?;
    blocking(move || {
        let gone = match fs::symlink_metadata(&claim.last) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(err) => Err(system("look at", &claim.last, err)),
            // Nobody looks for it again once it is told to be gone.
            Ok(meta) if meta.is_file() => {
                unlink(&claim.last).and_then(|()| sync_directory(&claim.directory))
            }
            // Its host's, whatever stands on it.
            Ok(_) if is_block_device(&claim.last) => Ok(()),
            Ok(_) => Err(failure(
                Condition::OperationInvalid,
                format!("'{}' is not a regular file and is not removed", claim.last.display()),
            )),
        };
        gone.and_then(|()| claim.forget())
    })
    .await
}

/// Whether this plan has made the file, and not yet kept it.
pub async fn is_claimed(domain: Uuid, path: &Path) -> Result<bool> {
    let claim = Claim::new(domain, path)?;
    let is_there = |marker: &Path| fs::symlink_metadata(marker).is_ok();
    blocking(move || Ok(is_there(&claim.file) || is_there(&claim.renamed))).await
}

#[derive(Debug, Clone)]
pub(super) struct Claim {
    /// The final name.
    pub(super) last: PathBuf,
    pub(super) directory: PathBuf,
    file: PathBuf,
    renamed: PathBuf,
    /// Of [`super::fill`].
    pub(super) filled: PathBuf,
    /// Of [`super::marker`].
    pub(super) committed: PathBuf,
    pub(super) foreign: PathBuf,
    reused: PathBuf,
}

impl Claim {
    pub(super) fn new(domain: Uuid, path: &Path) -> Result<Self> {
        plain_path(path)?;
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            let what = format!("'{}' does not name a file", path.display());
            return Err(failure(Condition::InvalidArgument, what));
        };
        let beside = |end: &str| {
            let whole = format!(".{}.virtsnap-{domain}{end}", name.to_string_lossy());
            // 255 bytes is the most a file name has; a name cut short is told apart by its hash.
            let fits = if whole.len() <= 255 {
                whole
            } else {
                format!(".{:016x}.virtsnap-{domain}{end}", hash(name.as_bytes()))
            };
            directory.join(fits)
        };
        Ok(Self {
            last: path.to_owned(),
            directory: directory.to_owned(),
            file: beside(""),
            renamed: beside("-at"),
            filled: beside("-filled"),
            committed: beside("-committed"),
            foreign: beside("-foreign"),
            reused: beside("-reused"),
        })
    }

    /// An empty file under the claim's name, owner and mode as those of `like`, but never
    /// executable and always its owner's to read and write. Without one it is for us alone.
    fn begin(&self, like: Option<&Path>) -> Result<File> {
        self.forget()?;
        match fs::symlink_metadata(&self.last) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(system("create", &self.last, err)),
            Ok(_) => return Err(self.taken()),
        }
        let look = |like: &Path| fs::metadata(like).map_err(|err| system("open", like, err));
        let like = like.filter(|like| !is_network(like)).map(look).transpose()?;
        let create = || -> io::Result<File> {
            let file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.file)?;
            let Some(meta) = &like else { return Ok(file) };
            // As an ordinary user this fails, and the file is ours as the other one was.
            let _ = std::os::unix::fs::fchown(&file, Some(meta.uid()), Some(meta.gid()));
            let mode = if meta.is_file() { shared_mode(meta, &file.metadata()?) } else { 0o600 };
            file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
            Ok(file)
        };
        create().inspect_err(|_| self.drop()).map_err(|err| system("create", &self.last, err))
    }

    /// Durable, then under its final name, durably.
    fn publish(&self) -> Result<()> {
        let fail = |err| system("create", &self.last, err);
        File::open(&self.file).and_then(|file| file.sync_all()).map_err(fail)?;
        sync_directory(&self.directory)?;
        match fs::hard_link(&self.file, &self.last) {
            Ok(()) => {}
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => return Err(self.taken()),
            Err(err) if no_hard_links(&err) => self.rename().map_err(|err| match err.kind() {
                io::ErrorKind::AlreadyExists => self.taken(),
                _ => fail(err),
            })?,
            Err(err) => return Err(fail(err)),
        }
        sync_directory(&self.directory)
    }

    fn rename(&self) -> io::Result<()> {
        let identity = identity(&fs::symlink_metadata(&self.file)?);
        write_marker(&self.renamed, identity.as_bytes(), &self.directory)
            .map_err(io::Error::other)?;
        renameat_with(CWD, &self.file, CWD, &self.last, RenameFlags::NOREPLACE)?;
        Ok(())
    }

    fn taken(&self) -> Error {
        failure(
            Condition::OperationFailed,
            format!("'{}' already exists; choose another file or remove it", self.last.display()),
        )
    }

    fn undo(&self) -> Result<()> {
        let look = |path: &Path| match fs::symlink_metadata(path) {
            Ok(meta) => Ok(Some(identity(&meta))),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(system("look at", path, err)),
        };
        let renamed = match fs::read_to_string(&self.renamed) {
            Ok(identity) => Some(identity),
            Err(err) if err.kind() == io::ErrorKind::NotFound => None,
            Err(err) => return Err(system("read", &self.renamed, err)),
        };
        if look(&self.reused)?.is_some() {
            let emptied = OpenOptions::new().write(true).truncate(true).open(&self.last);
            match emptied {
                Err(err) if !gone(&err) => return Err(system("empty", &self.last, err)),
                _ => return self.forget(),
            }
        }
        let ours = look(&self.file)?.or(renamed);
        if ours.is_some() && ours == look(&self.last)? {
            unlink(&self.last)?;
            sync_directory(&self.directory)?;
        }
        self.forget()
    }

    /// Drops every sign that the final name is this plan's doing.
    pub(super) fn forget(&self) -> Result<()> {
        let any = [&self.file, &self.renamed, &self.filled, &self.committed, &self.reused];
        if any.iter().all(|path| matches!(fs::symlink_metadata(path), Err(err) if gone(&err))) {
            return Ok(());
        }
        for path in any {
            unlink(path)?;
        }
        sync_directory(&self.directory)
    }

    /// After a failure, where there is nobody left to tell about a second one; undo tries again.
    fn drop(&self) {
        if let Err(err) = self.undo() {
            tracing::warn!(file = %self.last.display(), error = %err.chain(), "left a claim behind");
        }
    }
}

/// What the group and others may do with a file made like another one. A group that the other one
/// does not have may do only what everybody may.
pub(super) fn shared_mode(like: &fs::Metadata, made: &fs::Metadata) -> u32 {
    let others = like.mode() & 0o006;
    let group = if like.gid() == made.gid() { like.mode() & 0o060 } else { others << 3 };
    0o600 | group | others
}

fn is_block_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device())
}

pub(super) fn gone(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn no_hard_links(err: &io::Error) -> bool {
    matches!(
        err.raw_os_error(),
        Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS | libc::EMLINK | libc::EINVAL)
    )
}

fn identity(meta: &fs::Metadata) -> String {
    format!("{} {}\n", meta.dev(), meta.ino())
}

pub(super) fn unlink(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(err) if gone(&err) => Ok(()),
        Err(err) => Err(system("remove", path, err)),
    }
}

/// A directory that is gone holds nothing to lose.
pub(super) fn sync_directory(path: &Path) -> Result<()> {
    match File::open(path) {
        Ok(directory) => directory.sync_all().map_err(|err| system("make durable", path, err)),
        Err(err) if gone(&err) => Ok(()),
        Err(err) => Err(system("open", path, err)),
    }
}

/// A number made from a path, the same in every run and release.
pub fn fingerprint(path: &Path) -> u64 {
    hash(path.as_os_str().as_bytes())
}

/// FNV-1a: the same in every run and release, as the names it makes are looked for after a crash.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_group_that_could_not_be_given_gets_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let meta = |name: &str, mode, gid: Option<u32>| {
            let path = dir.path().join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let given =
                gid.is_none_or(|gid| std::os::unix::fs::chown(&path, None, Some(gid)).is_ok());
            given.then(|| fs::metadata(&path).unwrap())
        };
        let made = meta("made", 0o600, None).unwrap();
        assert_eq!(shared_mode(&meta("a", 0o664, None).unwrap(), &made), 0o664);
        let Some(others) = meta("b", 0o664, Some(made.gid() + 1)) else {
            return eprintln!("SKIPPED: only root can give a file to another group");
        };
        assert_eq!(shared_mode(&others, &made), 0o644);
    }

    #[test]
    fn a_renamed_claim_is_undone_by_its_inode() {
        let dir = tempfile::tempdir().unwrap();
        let claim = Claim::new(Uuid::nil(), &dir.path().join("t")).unwrap();
        for _ in 0..2 {
            claim.begin(Some(dir.path())).unwrap();
            claim.rename().unwrap();
            assert!(claim.last.exists() && !claim.file.exists());
            claim.undo().unwrap();
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        }
        fs::write(&claim.last, "precious").unwrap();
        claim.begin(Some(dir.path())).unwrap_err();
        fs::write(&claim.file, "ours").unwrap();
        assert_eq!(claim.rename().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        claim.undo().unwrap();
        assert_eq!(fs::read(&claim.last).unwrap(), b"precious");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
