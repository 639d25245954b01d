//! Changes to images that no QEMU has open.
//!
//! Doing any of these twice is doing it once, unless said otherwise.

use std::ffi::OsString;
use std::path::Path;

use serde::Deserialize;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::{Format, InternalSnapshot};
use virtsnap_engine::ports::MergeError;

use super::tool::{Patience, QemuImg, Watch};
use super::{driver, failure, image_options, is_gone, is_network, name, plain_path, system};

impl QemuImg {
    /// A new internal snapshot. Refused if the tag is there: qemu-img itself would make a second one.
    pub async fn snapshot(&self, path: &Path, format: &Format, tag: &str) -> Result<()> {
        if self.tagged(path, format, tag).await?.is_some() {
            return Err(failure(
                Condition::OperationInvalid,
                format!("image '{}' already has an internal snapshot '{tag}'", path.display()),
            ));
        }
        let made = self.edit(&["-c", tag], "snapshot", path, format, Patience::WhileBusy).await;
        made.map_err(|err| if is_network(path) { cannot_grow(path, err) } else { err })?;
        sync(path)
    }

    /// The image's content becomes that of the snapshot.
    pub async fn apply(&self, path: &Path, format: &Format, tag: &str) -> Result<()> {
        let facts = self.info(path, format).await?;
        let id = match id_of(&facts.snapshots, tag) {
            Ok(id) => id,
            Err(why) => {
                let what = format!("image '{}' {why} an internal snapshot '{tag}'", path.display());
                return Err(failure(Condition::OperationInvalid, what));
            }
        };
        // `-a` looks for an id first, so that a tag "1" would find another one's id.
        self.edit(&["-a", id], "snapshot", path, format, Patience::WhileBusy).await?;
        sync(path)
    }

    /// Every internal snapshot of that tag goes; none is done, and so is an image that is gone.
    pub async fn delete_snapshot(&self, path: &Path, format: &Format, tag: &str) -> Result<()> {
        if is_gone(path) {
            return Ok(());
        }
        let mut deleted = false;
        // `-d` goes by name only, and takes the first one of that name.
        while self.tagged(path, format, tag).await?.is_some() {
            self.edit(&["-d", tag], "snapshot", path, format, Patience::WhileBusy).await?;
            deleted = true;
        }
        if deleted { sync(path) } else { Ok(()) }
    }

    /// The first internal snapshot of that tag.
    pub async fn tagged(
        &self,
        path: &Path,
        format: &Format,
        tag: &str,
    ) -> Result<Option<InternalSnapshot>> {
        let facts = self.info(path, format).await?;
        Ok(facts.snapshots.into_iter().find(|snapshot| snapshot.tag == tag))
    }

    /// What `top` and the layers between hold over `base` is written into `base`, which grows if it
    /// must. `top` stays as it is.
    /// `speed` in bytes a second; 0: no limit.
    pub async fn commit(
        &self,
        (top, format): (&Path, &Format),
        base: &Path,
        speed: u64,
        watch: Watch<'_>,
    ) -> Result<(), MergeError> {
        let base_name = name(base).map_err(MergeError::NotMerged)?;
        let speed = speed.to_string();
        // -d: leave the top alone; -t none would fail on file systems without O_DIRECT.
        let mut arguments = vec!["-p", "-d", "-t", "writeback", "-b", base_name];
        if speed != "0" {
            arguments.extend(["-r", &speed]);
        }
        let merged = self.watched(&arguments, "commit", top, format, watch).await;
        if is_over(&merged) {
            // Its own content does not say what it is: of a raw one that is the guest's.
            let chain = self.chain(top, format).await.unwrap_or_default();
            if let Some((_, facts)) = chain.iter().find(|(path, _)| path == base) {
                self.tidy(base, &facts.format).await;
            }
        }
        merged?;
        sync(base).map_err(MergeError::InDoubt)
    }

    /// Copies up into `top` what its backing files hold down to (not including) `base`.
    pub async fn stream(
        &self,
        top: &Path,
        format: &Format,
        base: Option<(&Path, &Format)>,
        watch: Watch<'_>,
    ) -> Result<(), MergeError> {
        let facts = self.info(top, format).await.map_err(MergeError::NotMerged)?;
        if facts.backing.as_deref() == base.map(|(path, _)| path) {
            return Ok(());
        }
        let mut arguments = vec!["-p", "-t", "writeback"];
        match base.map(|(path, format)| Ok::<_, Error>((name(path)?, driver(format)?))) {
            None => arguments.extend(["-b", ""]),
            Some(Ok((path, format))) => arguments.extend(["-b", path, "-F", format]),
            Some(Err(err)) => return Err(MergeError::NotMerged(err)),
        }
        let merged = self.watched(&arguments, "rebase", top, format, watch).await;
        if is_over(&merged) {
            self.tidy(top, format).await;
        }
        merged?;
        sync(top).map_err(MergeError::InDoubt)
    }

    /// What was killed while it wrote into a qcow2 image leaves clusters that nobody counts on.
    /// They are harmless, and take room until they are given back: here, or after the merge that
    /// goes on where one was killed together with the daemon.
    async fn tidy(&self, image: &Path, format: &Format) {
        if *format != Format::Qcow2 {
            return;
        }
        let repair = ["-q", "-r", "leaks"];
        let done = self.edit(&repair, "check", image, format, Patience::WhileBusy).await;
        if let Err(err) = done {
            tracing::warn!("{}", err.chain());
        }
    }

    async fn watched(
        &self,
        arguments: &[&str],
        command: &'static str,
        path: &Path,
        format: &Format,
        watch: Watch<'_>,
    ) -> Result<(), MergeError> {
        let mut all: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        all.push("--image-opts".into());
        all.push(image_options(path, format).map_err(MergeError::NotMerged)?);
        self.run_watched(command, all, watch, path).await
    }

    /// The guest-visible content of one image into a new one of another format.
    pub async fn convert(
        &self,
        from: (&Path, &Format),
        (to, format): (&Path, &Format),
    ) -> Result<()> {
        self.convert_with(&[], from, (to, format)).await
    }

    /// The same into an image that is there, whose internal snapshots stay as they are.
    pub async fn convert_into(
        &self,
        from: (&Path, &Format),
        (to, format): (&Path, &Format),
    ) -> Result<()> {
        self.convert_with(&["-n"], from, (to, format)).await
    }

    async fn convert_with(
        &self,
        options: &[&str],
        from: (&Path, &Format),
        (to, format): (&Path, &Format),
    ) -> Result<()> {
        let names = ["-f", driver(from.1)?, "-O", driver(format)?, plain_path(from.0)?];
        let all = options.iter().chain(&names).map(OsString::from);
        let all = all.chain([OsString::from(plain_path(to)?)]).collect();
        self.run("convert", all, Patience::WhileBusy, to).await?;
        sync(to)
    }

    /// Rewrites the name of the backing file, and nothing else.
    pub async fn repoint(
        &self,
        path: &Path,
        format: &Format,
        backing: &Path,
        backing_format: &Format,
    ) -> Result<()> {
        let arguments = ["-u", "-b", name(backing)?, "-F", driver(backing_format)?];
        self.edit(&arguments, "rebase", path, format, Patience::Short).await?;
        sync(path)
    }

    /// Fails on a corrupt image, as qemu-img does.
    pub async fn check(&self, path: &Path, format: &Format) -> Result<Check> {
        let arguments = ["--output=json"];
        let printed = self.edit(&arguments, "check", path, format, Patience::WhileBusy).await?;
        serde_json::from_slice(&printed).map_err(|err| {
            let what = format!("qemu-img check of '{}' printed no result", path.display());
            failure(Condition::Internal, what).caused_by(err)
        })
    }

    async fn edit(
        &self,
        arguments: &[&str],
        command: &'static str,
        path: &Path,
        format: &Format,
        patience: Patience,
    ) -> Result<Vec<u8>> {
        let mut all: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        all.push("--image-opts".into());
        all.push(image_options(path, format)?);
        self.run(command, all, patience, path).await
    }
}

pub fn id_of<'a>(snapshots: &'a [InternalSnapshot], tag: &str) -> Result<&'a str, &'static str> {
    let mut found = snapshots.iter().filter(|snapshot| snapshot.tag == tag);
    let Some(first) = found.next() else { return Err("does not have") };
    let same_id = snapshots.iter().filter(|snapshot| snapshot.id == first.id).count();
    if found.next().is_some() || same_id > 1 {
        return Err("has more than one");
    }
    Ok(&first.id)
}

/// Nobody writes into the image any more.
fn is_over(merged: &Result<(), MergeError>) -> bool {
    matches!(merged, Ok(()) | Err(MergeError::NotMerged(_)))
}

/// What `qemu-img check` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Check {
    pub corruptions: u64,
    pub leaks: u64,
    pub check_errors: u64,
    pub allocated_clusters: u64,
}

/// What a server's export has no room for, however much its file system has.
fn cannot_grow(path: &Path, err: Error) -> Error {
    let what = format!(
        "no snapshot inside '{}': a qcow2 image cannot grow past the size of its NBD export, and \
         a snapshot needs room in it; make the exported file larger than the image, or take an \
         external snapshot",
        path.display()
    );
    failure(Condition::OperationFailed, what).caused_by(err)
}

/// A server has flushed when qemu-img ended.
fn sync(path: &Path) -> Result<()> {
    if is_network(path) {
        return Ok(());
    }
    std::fs::File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|err| system("make durable", path, err))
}
