//! A device model as libxl starts one, without a guest: the disk's node has a name, those of the
//! images below have none.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use uuid::Uuid;
use virtsnap_engine::domain::{BlockJobKind, BlockJobStatus, Event};
use virtsnap_engine::merging::Merging;
use virtsnap_engine::plan::Finish;
use virtsnap_engine::ports::MergeError;

use super::*;
use crate::merge::{LiveDisk, Merge, MergeLimits, repoint};
use crate::testing::{base, holds, tool, write};
use crate::throttle::{self, Limits};

const DEVICE: &str = "/machine/peripheral/xvda/virtio-backend";

struct Model {
    process: Child,
    dir: tempfile::TempDir,
    qmp: Qmp,
    told: Mutex<Vec<(BlockJobKind, BlockJobStatus)>>,
    switched: Mutex<Vec<PathBuf>>,
    /// As it was when the merge began.
    merged: Mutex<Option<Drive>>,
}

impl Drop for Model {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Model {
    /// `top` on `mid` on `base`; `base` is all 1 at 0, `mid` all 2 at 64k, `top` all 3 at 128k.
    async fn start() -> Option<Self> {
        tool()?;
        if Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "qemu-system-x86_64 is missing");
            eprintln!("SKIPPED: qemu-system-x86_64 is missing");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        base(&at("base")).await;
        let made =
            Command::new("qemu-img").args(["snapshot", "-c", "old"]).arg(at("base")).status();
        assert!(made.unwrap().success());
        write(&at("base"), 1, "0 64k");
        overlay(&at("mid"), "base");
        write(&at("mid"), 2, "64k 64k");
        overlay(&at("top"), "mid");
        write(&at("top"), 3, "128k 64k");
        let node = format!(
            "driver=qcow2,node-name=xvda-qcow2,discard=unmap,file.driver=file,file.locking=off,\
             file.discard=unmap,file.filename={}",
            at("top").display()
        );
        let process = Command::new("qemu-system-x86_64")
            .args(["-M", "pc,accel=tcg", "-nodefaults", "-display", "none", "-S", "-m", "16"])
            .args(["-blockdev", &node, "-device", "virtio-blk-pci,id=xvda,drive=xvda-qcow2"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", at("qmp").display())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut connected = Qmp::connect(&at("qmp")).await;
        for _ in 0..500 {
            if connected.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            connected = Qmp::connect(&at("qmp")).await;
        }
        let (told, switched, merged) = (Mutex::default(), Mutex::default(), Mutex::default());
        Some(Self { process, dir, qmp: connected.unwrap(), told, switched, merged })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn drive(&self) -> Drive {
        let drives = query(&self.qmp).await.unwrap();
        let [drive] = drives.as_slice() else { panic!("{drives:?}") };
        drive.clone()
    }

    async fn chain(&self) -> Vec<String> {
        let layers = self.drive().await.layers;
        let name = |layer: Layer| layer.image.file_name().unwrap().to_str().unwrap().to_owned();
        layers.into_iter().map(name).collect()
    }

    /// A new top, as a snapshot makes it.
    async fn push(&self, name: &str) {
        let below = self.chain().await.remove(0);
        overlay(&self.at(name), &below);
        let node = self.drive().await.layers.remove(0).node;
        let add = json!({
            "driver": "qcow2", "node-name": name, "backing": null,
            "file": { "driver": "file", "filename": self.at(name) }
        });
        self.qmp.execute("blockdev-add", add).await.unwrap();
        let switch = json!({ "node": node, "overlay": name });
        self.qmp.execute("blockdev-snapshot", switch).await.unwrap();
    }

    /// As the guest.
    async fn guest_writes(&self, pattern: u8, at: &str) {
        let line = format!("qemu-io -d {DEVICE} \"write -P {pattern} {at}\"");
        let asked = json!({ "command-line": line });
        assert_eq!(self.qmp.execute("human-monitor-command", asked).await.unwrap(), "");
    }

    async fn merge(&self, merge: Finish) -> Result<(), MergeError> {
        let drive = self.drive().await;
        *self.merged.lock().unwrap() = Some(drive);
        let merging = Merging::default();
        let limits = MergeLimits::default();
        let state_dir = self.dir.path();
        let act = Merge { domain: Uuid::nil(), state_dir, limits, merging: &merging };
        act.carry_out(&tool().unwrap(), Some(self), &merge).await
    }
}

impl LiveDisk for Model {
    fn domain(&self) -> &str {
        "vm"
    }

    fn target(&self) -> &str {
        "xvda"
    }

    fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    async fn follow(&self) -> Result<Vec<Open>> {
        let begun = self.merged.lock().unwrap().clone();
        let drive = match begun {
            Some(begun) => begun.follow(&self.qmp).await?,
            None => self.drive().await,
        };
        Ok(drive.layers.iter().map(Open::from).collect())
    }

    fn lend(&self, _image: &Path) -> Result<()> {
        Ok(())
    }

    async fn flush(&self, chain: &[Open], depth: usize) -> Result<()> {
        let drive = self.drive().await;
        assert_eq!(drive.layers[depth].node, chain[depth].node);
        let read_only = depth > 0;
        flush(&self.qmp, &drive, depth, Reopen { read_only, discard: !read_only }).await
    }

    async fn flush_grown(&self, _chain: &[Open], depth: usize) -> Result<()> {
        let begun = self.merged.lock().unwrap().clone().unwrap();
        let drive = begun.follow(&self.qmp).await?;
        flush(&self.qmp, &drive, depth, Reopen { read_only: false, discard: false }).await
    }

    async fn switch_to(&self, base: &Path) -> Result<()> {
        self.switched.lock().unwrap().push(base.to_owned());
        Ok(())
    }

    async fn hold_back(&self, _bytes: u64) -> Result<()> {
        Ok(())
    }

    async fn let_go(&self) -> Result<()> {
        Ok(())
    }

    async fn sweep(&self) -> Result<()> {
        sweep(&self.qmp).await
    }

    fn source(&self) -> Option<PathBuf> {
        None
    }

    fn tell(&self, event: Event) {
        let Event::BlockJob { kind, status, .. } = event else { panic!("{event:?}") };
        self.told.lock().unwrap().push((kind, status));
    }
}

fn overlay(path: &Path, backing: &str) {
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing])
        .arg(path)
        .status()
        .unwrap();
    assert!(made.success());
}

fn commit(top: PathBuf, base: PathBuf) -> Finish {
    Finish::Commit { disk: "xvda".to_owned(), top, base }
}

#[tokio::test]
async fn disks_are_found_by_their_files() {
    let Some(model) = Model::start().await else { return };
    let drive = model.drive().await;
    assert_eq!(drive.device, DEVICE);
    assert_eq!(model.chain().await, ["top", "mid", "base"]);
    let names: Vec<bool> = drive.layers.iter().map(Layer::has_name).collect();
    assert_eq!(names, [true, false, false]);
    let images = images(std::slice::from_ref(&drive));
    assert_eq!(images[&model.at("mid")].backing, Some(model.at("base")));
    assert_eq!(images[&model.at("mid")].backing_format, Some(Format::Qcow2));
    assert_eq!(images[&model.at("base")].backing, None);
    for depth in 0..3 {
        let how = Reopen { read_only: depth > 0, discard: depth == 0 };
        flush(&model.qmp, &drive, depth, how).await.unwrap();
    }
    assert_eq!(model.drive().await, drive, "a flush leaves all as it was");
    // One that is gone is in no plan.
    fs::rename(model.at("base"), model.at("elsewhere")).unwrap();
    assert!(!super::images(&[drive]).contains_key(&model.at("base")));
}

#[tokio::test]
async fn inner_layers_are_merged_down() {
    let Some(model) = Model::start().await else { return };
    model.merge(commit(model.at("mid"), model.at("base"))).await.unwrap();
    assert_eq!(model.chain().await, ["top", "base"]);
    let again = model.merge(commit(model.at("mid"), model.at("base"))).await;
    again.unwrap();
    let facts = tool().unwrap().info(&model.at("top"), &Format::Qcow2).await.unwrap();
    assert_eq!(facts.backing, Some(model.at("base")));
    // The device model may die now.
    let mut model = model;
    model.process.kill().unwrap();
    model.process.wait().unwrap();
    for (pattern, at) in [(1, "0 64k"), (2, "64k 64k"), (3, "128k 64k")] {
        assert!(holds(&model.at("top"), pattern, at), "{at}");
    }
    let told = (BlockJobKind::Commit, BlockJobStatus::Completed);
    assert_eq!(*model.told.lock().unwrap(), [told]);
    assert!(model.switched.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_top_is_merged_down_and_its_node_goes() {
    let Some(model) = Model::start().await else { return };
    model.push("new").await;
    model.guest_writes(4, "192k 64k").await;
    model.merge(commit(model.at("new"), model.at("top"))).await.unwrap();
    assert_eq!(model.chain().await, ["top", "mid", "base"]);
    assert_eq!(*model.switched.lock().unwrap(), [model.at("top")]);
    let nodes = nodes::all(&model.qmp).await.unwrap();
    assert!(nodes.iter().all(|node| node.node_name != "new"), "{nodes:?}");
    model.guest_writes(5, "256k 64k").await;
    // Over the nodes without names.
    model.merge(commit(model.at("top"), model.at("base"))).await.unwrap();
    assert_eq!(model.chain().await, ["base"]);
    model.guest_writes(6, "320k 64k").await;
    let drive = model.drive().await;
    flush(&model.qmp, &drive, 0, Reopen { read_only: false, discard: true }).await.unwrap();
    for (pattern, at) in [(1, 0), (2, 64), (3, 128), (4, 192), (5, 256), (6, 320)] {
        assert!(holds_shared(&model.at("base"), pattern, &format!("{at}k 64k")), "{at}");
    }
}

#[tokio::test]
async fn layers_are_merged_up() {
    let Some(model) = Model::start().await else { return };
    model.push("new").await;
    let stream = |top, base| Finish::Stream { disk: "xvda".to_owned(), top, base };
    model.merge(stream(model.at("top"), Some(model.at("base")))).await.unwrap();
    assert_eq!(model.chain().await, ["new", "top", "base"]);
    model.merge(stream(model.at("new"), None)).await.unwrap();
    assert_eq!(model.chain().await, ["new"]);
    let nodes = nodes::all(&model.qmp).await.unwrap();
    assert!(nodes.iter().all(|node| node.node_name != "xvda-qcow2"), "{nodes:?}");
    for (pattern, at) in [(1, "0 64k"), (2, "64k 64k"), (3, "128k 64k")] {
        assert!(holds_shared(&model.at("new"), pattern, at), "{at}");
    }
}

/// QEMU 10.0.2 would die of the question.
#[tokio::test]
async fn nodes_are_not_asked_for_while_a_stream_is_over_and_not_dismissed() {
    let Some(model) = Model::start().await else { return };
    let stream = json!({ "job-id": "pull", "device": "xvda-qcow2", "auto-dismiss": false });
    model.qmp.execute("block-stream", stream).await.unwrap();
    let over = crate::job::wait(&model.qmp, "pull", |job| job.is_concluded()).await.unwrap();
    assert_eq!(over.map(|job| job.kind).as_deref(), Some("stream"));
    let dismissed = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        crate::job::dismiss(&model.qmp, "pull").await
    };
    let (drives, dismissed) = tokio::join!(query(&model.qmp), dismissed);
    dismissed.unwrap();
    assert_eq!(drives.unwrap()[0].layers.len(), 1);
}

#[tokio::test]
async fn headers_are_rewritten_under_a_guest() {
    let Some(model) = Model::start().await else { return };
    let (top, mid) = (model.at("top"), model.at("mid"));
    fs::hard_link(&mid, model.at("other")).unwrap();
    let other = model.at("other");
    let tool = tool().unwrap();
    repoint(&tool, Some(&model), &top, (&other, &Format::Qcow2)).await.unwrap();
    let facts = tool.info(&top, &Format::Qcow2).await.unwrap();
    assert_eq!(facts.backing, Some(other));
}

#[tokio::test]
async fn snapshots_are_deleted_where_the_layer_can_be_opened() {
    let Some(model) = Model::start().await else { return };
    let take = json!({ "device": "xvda-qcow2", "name": "s" });
    model.qmp.execute("blockdev-snapshot-internal-sync", take).await.unwrap();
    model.push("new").await;
    let drive = model.drive().await;
    let can: Vec<bool> = (0..4).map(|depth| drive.can_delete_in(depth)).collect();
    assert_eq!(can, [true, true, false, false]);
    let take = json!({ "device": "new", "name": "s" });
    model.qmp.execute("blockdev-snapshot-internal-sync", take).await.unwrap();
    for depth in [0, 1] {
        for _ in 0..2 {
            delete_snapshot(&model.qmp, &model.drive().await, depth, "s").await.unwrap();
        }
    }
    assert!(
        model
            .drive()
            .await
            .layers
            .iter()
            .all(|layer| { layer.facts.snapshots.iter().all(|snapshot| snapshot.tag != "s") })
    );
}

#[tokio::test]
async fn writes_are_held_back_and_let_go() {
    let Some(model) = Model::start().await else { return };
    let is = |device: &Value| device.get("qdev").and_then(Value::as_str) == Some(DEVICE);
    let (device, free) = throttle::find(&model.qmp, is).await.unwrap().unwrap();
    assert_eq!(free, Limits::none());
    throttle::set(&model.qmp, &device, free.held_to(1 << 20)).await.unwrap();
    let (_, held) = throttle::find(&model.qmp, is).await.unwrap().unwrap();
    assert_ne!(held, Limits::none());
    throttle::set(&model.qmp, &device, Limits::none()).await.unwrap();
    let (_, free) = throttle::find(&model.qmp, is).await.unwrap().unwrap();
    assert_eq!(free, Limits::none());
}

/// As [`holds`], of an image that is in use.
fn holds_shared(path: &Path, pattern: u8, at: &str) -> bool {
    let out = Command::new("qemu-io")
        .args(["-U", "-r", "-f", "qcow2", "-c", &format!("read -P {pattern} {at}")])
        .arg(path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    out.status.success() && !text.contains("Pattern verification failed")
}
