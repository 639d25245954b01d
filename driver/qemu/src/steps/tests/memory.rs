//! Memory in files of its own, on a real QEMU.

use std::os::unix::fs::MetadataExt;

use virtsnap_block::testing::io;
use virtsnap_engine::facts::MemoryFile;
use virtsnap_xml::domain::to_inactive;

use super::*;
use crate::migration::{Guest, Room};
use crate::save_image::{Damage, Format as Stream, Head, Saved};

fn save(file: &Path, live: bool, overwrite: bool, instance: &Instance) -> Step {
    let definition = to_inactive(instance.live());
    Step::SaveMemory { file: file.to_owned(), live, overwrite, definition }
}

async fn status(instance: &Instance) -> String {
    let status = instance.qmp.execute("query-status", serde_json::Value::Null).await.unwrap();
    status["status"].as_str().unwrap().to_owned()
}

/// By the debugger's door of the monitor: where the BIOS leaves memory alone.
async fn byte_at(instance: &Instance, address: u64) -> String {
    let answer = instance.qmp.human(&format!("xp /1xb {address}")).await.unwrap();
    answer.rsplit("0x").next().unwrap().trim().to_owned()
}

impl Bed {
    async fn start_from(
        &self,
        from: StartFrom,
        paused: bool,
        definition: Element,
    ) -> Arc<Instance> {
        let start = Start { paused, from };
        let started = self.qemu.start_domain(definition, start).await;
        started.unwrap_or_else(|err| panic!("{}", err.chain()));
        self.qemu.instance(self.uuid).unwrap()
    }

    fn events(&self) -> Vec<Event> {
        let mut told = std::mem::take(&mut *self.told.0.lock().unwrap());
        told.retain(|event| !matches!(event, Event::MigrationIteration(_)));
        told
    }
}

fn snapshot(overlay: &Path, tag: &str) -> Pivot {
    Pivot::SnapshotDisks {
        overlays: vec![("vdb".to_owned(), overlay.to_owned())],
        internal: vec!["vda".to_owned()],
        tag: tag.to_owned(),
    }
}

#[tokio::test]
async fn a_paused_guest_is_saved_twice_and_its_disks_stay_usable() {
    let Some(bed) = Bed::new() else { return };
    let (a, b) = (bed.image("a").await, bed.image("b").await);
    let instance = bed.start(&[&a, &b]).await;
    for n in 1..=2 {
        let (file, overlay) = (bed.at(&format!("m{n}")), bed.at(&format!("b{n}")));
        let below = instance.chain("vdb").unwrap().layers[0].image.clone();
        for step in new_overlay("vdb", &overlay, &below) {
            bed.act(&step).await;
        }
        bed.act(&save(&file, false, false, &instance)).await;
        let head = Saved::open(&file).unwrap().head;
        assert!(!head.was_running && head.format == Stream::Raw);
        assert_eq!(head.definition, to_inactive(instance.live()).to_string());
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        let pivot = snapshot(&overlay, &format!("s{n}"));
        assert!(!bed.pivoted(&pivot).await);
        if !crate::migration::activate(&instance.qmp).await.unwrap() {
            // Before QEMU 10 the internal half is refused, and all goes back.
            let refused = bed.pivot(&pivot).await;
            assert!(matches!(refused, Err(PivotError::Refused(_))), "{refused:?}");
            assert!(!bed.pivoted(&pivot).await);
            bed.undo(&save(&file, false, false, &instance)).await;
            for step in new_overlay("vdb", &overlay, &below).iter().rev() {
                bed.undo(step).await;
            }
            assert!(guest(&instance, 0, "write -P 9 0 64k").await);
            assert_eq!(
                (instance.state(), bed.events()),
                (State::Paused(PausedReason::User), vec![])
            );
            assert_eq!(bed.names(), ["a", "b"]);
            continue;
        }
        bed.pivot(&pivot).await.unwrap_or_else(|err| panic!("{err:?}"));
        assert!(bed.pivoted(&pivot).await);
        for kept in [file, overlay] {
            bed.finish(&Finish::KeepImage(kept)).await;
        }
        assert!(guest(&instance, 1, "write -P 9 0 64k").await);
    }
    assert_eq!(instance.state(), State::Paused(PausedReason::User));
    if instance.chain("vdb").unwrap().layers.len() == 1 {
        return;
    }
    bed.finish(&Finish::DeleteSnapshot { image: a.clone(), tag: "s1".to_owned() }).await;
    bed.finish(&commit_vdb(&bed.at("b2"), &bed.at("b1"))).await;
    assert_eq!(bed.events().len(), 2, "the two ends of the commit");
    let b2 = bed.at("b2");
    let facts = bed.qemu.domain_facts(&bed.subject(None, &[&b2])).await.unwrap();
    assert_eq!(facts.images[&a].snapshots.iter().map(|s| &s.tag).collect::<Vec<_>>(), ["s2"]);
    bed.stop().await;
    bed.check(&[&a, &b, &bed.at("b1")]).await;
    assert_eq!(bed.names(), ["a", "b", "b1", "b2", "m1", "m2"]);
}

fn commit_vdb(top: &Path, base: &Path) -> Finish {
    Finish::Commit { disk: "vdb".to_owned(), top: top.to_owned(), base: base.to_owned() }
}

#[tokio::test]
async fn memory_comes_back_from_its_file() {
    let Some(bed) = Bed::new() else { return };
    let a = bed.image("a").await;
    let instance = bed.start(&[&a]).await;
    let definition = to_inactive(instance.live());
    // The firmware writes to memory as soon as it runs.
    instance.resume(RunningReason::Unpaused).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    bed.events();

    let (paused, live) = (bed.at("paused"), bed.at("live"));
    bed.act(&Step::Pause).await;
    bed.act(&save(&paused, false, false, &instance)).await;
    assert!(Saved::open(&paused).unwrap().head.was_running);
    assert_eq!(instance.state(), State::Paused(PausedReason::Snapshot));
    bed.finish(&Finish::Resume(ResumeReason::Unpaused)).await;
    assert_eq!(status(&instance).await, "running");
    bed.act(&save(&live, true, false, &instance)).await;
    assert!(!matches!(instance.state(), State::Running(_)), "{:?}", instance.state());
    let mut seen = Vec::new();
    for address in (0xe0000..0x100000).step_by(0x1011) {
        seen.push((address, byte_at(&instance, address).await));
    }
    assert!(seen.iter().any(|(_, byte)| byte != "00"), "an empty memory proves nothing");
    bed.undo(&save(&live, true, false, &instance)).await;
    assert!(!live.exists());
    assert_eq!(status(&instance).await, "running");
    let told = bed.events();
    let stops = |event: &&Event| **event == Event::Suspended(Suspended::Paused);
    assert_eq!((told.len(), told.iter().filter(stops).count()), (4, 2), "{told:?}");
    bed.act(&save(&live, true, false, &instance)).await;
    for file in [&paused, &live] {
        bed.finish(&Finish::KeepImage(file.clone())).await;
    }
    bed.stop().await;
    bed.events();

    for file in [&paused, &live] {
        for is_paused in [true, false] {
            let from = StartFrom::Memory { file: file.clone() };
            let instance = bed.start_from(from, is_paused, definition.clone()).await;
            let expected = if is_paused { "paused" } else { "running" };
            assert_eq!(status(&instance).await, expected);
            let second = if is_paused {
                Event::Suspended(Suspended::FromSnapshot)
            } else {
                Event::Resumed(Resumed::FromSnapshot)
            };
            assert_eq!(bed.events(), [Event::Started(Started::FromSnapshot), second]);
            if is_paused {
                for (address, byte) in &seen {
                    assert_eq!(byte_at(&instance, *address).await, *byte, "{address:#x}");
                }
                // It can be saved again as it stands, and its disks be written to.
                let again = save(&bed.at("again"), false, false, &instance);
                bed.act(&again).await;
                bed.undo(&again).await;
                assert!(guest(&instance, 0, "write -P 3 0 64k").await);
            }
            bed.stop().await;
            bed.events();
        }
    }
    assert_eq!(bed.names(), ["a", "live", "paused"]);
}

#[tokio::test]
async fn what_is_at_the_files_path_is_not_lost_unasked() {
    let Some(bed) = Bed::new() else { return };
    let a = bed.image("a").await;
    let instance = bed.start(&[&a]).await;
    let file = bed.at("m");
    fs::write(&file, "precious").unwrap();
    let step = save(&file, false, false, &instance);
    assert!(bed.qemu.act_step(bed.uuid, &step).await.is_err());
    bed.undo(&step).await;
    assert_eq!(fs::read(&file).unwrap(), b"precious");

    // Made by the user for this: it stays theirs, whatever becomes of the step.
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    bed.act(&step).await;
    assert!(Saved::open(&file).is_ok());
    bed.undo(&step).await;
    assert_eq!(fs::metadata(&file).unwrap().len(), 0);
    fs::write(&file, "worthless").unwrap();
    let step = save(&file, false, true, &instance);
    bed.act(&step).await;
    bed.finish(&Finish::KeepImage(file.clone())).await;
    bed.undo(&step).await;
    assert!(Saved::open(&file).is_ok());
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o640);
    assert_eq!(bed.names(), ["a", "m"]);
}

#[tokio::test]
async fn a_file_that_cannot_be_written_leaves_the_guest_as_it_was() {
    let Some(bed) = Bed::new() else { return };
    let a = bed.image("a").await;
    let instance = bed.start(&[&a]).await;
    let full = Path::new("/dev/full");
    for (live, running) in [(false, false), (true, false), (true, true)] {
        if running {
            instance.resume(RunningReason::Unpaused).await.unwrap();
        } else {
            instance.pause(PausedReason::User).await.unwrap();
        }
        let state = instance.state();
        let missing = bed.at("no/such/directory");
        let step = save(&missing, live, false, &instance);
        assert!(bed.qemu.act_step(bed.uuid, &step).await.is_err());
        bed.undo(&step).await;
        // A device that takes nothing, in the place of a file system that is full.
        let target = std::fs::OpenOptions::new().write(true).open(full).unwrap();
        let (read, write) = crate::save_image::carry::pipe().unwrap();
        let passed = Default::default();
        let copy = tokio::task::spawn_blocking(move || {
            crate::save_image::carry::into_file(Stream::Raw, read, &target, &passed)
        });
        let passed = Default::default();
        // So small a guest may fit into the pipe, so that QEMU does not notice.
        let asked = if live { Guest::GoesOn(Room::Bytes(u64::MAX)) } else { Guest::Stands };
        let _ = crate::migration::save(&instance, write, asked, &passed).await;
        assert!(copy.await.unwrap().is_err());
        bed.undo(&step).await;
        assert_eq!(status(&instance).await == "running", running);
        assert_eq!(instance.state(), state, "live: {live}");
        assert!(guest(&instance, 0, "write -P 3 0 64k").await);
    }
}

/// A guest that goes on is stopped at once where its file has room for no more than its memory, and
/// the pipe is filled only when it is: so nothing but that can have stopped it.
#[tokio::test]
async fn a_guest_stands_still_where_there_is_no_room_for_more() {
    let Some(bed) = Bed::new() else { return };
    let a = bed.image("a").await;
    let instance = bed.start(&[&a]).await;
    for (room, stops) in [(Room::Bytes(32 << 20), true), (Room::Bytes(u64::MAX), false)] {
        instance.resume(RunningReason::Unpaused).await.unwrap();
        bed.events();
        let (read, write) = crate::save_image::carry::pipe().unwrap();
        rustix::pipe::fcntl_setpipe_size(&write, 4096).unwrap();
        let passed = Default::default();
        let saving = crate::migration::save(&instance, write, Guest::GoesOn(room), &passed);
        let watching = async {
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
            let is_sending = || async {
                let now = crate::migration::progress(&instance.qmp).await.unwrap();
                now.status == "active" && now.ram.transferred > 0
            };
            while std::time::Instant::now() < deadline && !is_sending().await
                || stops && instance.state() == State::Running(RunningReason::Unpaused)
            {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            // Some looks later it still is as it was.
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            let state = instance.state();
            let all = tokio::task::spawn_blocking(move || {
                let mut read = fs::File::from(read);
                std::io::copy(&mut read, &mut std::io::sink()).unwrap()
            });
            (state, all.await.unwrap())
        };
        let (saved, (state, length)) = tokio::join!(saving, watching);
        saved.unwrap();
        assert!(length > 1 << 16, "{length}");
        let stood = State::Paused(PausedReason::Snapshot);
        assert_eq!(state == stood, stops, "{state:?}");
        assert_eq!(instance.state(), stood);
        assert_eq!(bed.events(), [Event::Suspended(Suspended::Paused)]);
    }
}

/// 512 KiB of memory, written to again and again: a boot sector.
///
/// ```text
///          cld
///   all:   mov bx, 0x1000
///   next:  mov es, bx
///          xor di, di
///          mov cx, 0x8000
///          inc ax
///          rep stosw
///          add bx, 0x1000
///          cmp bx, 0x9000
///          jb  next
///          jmp all
/// ```
const WRITES: [u8; 26] = [
    0xfc, 0xbb, 0x00, 0x10, 0x8e, 0xc3, 0x31, 0xff, 0xb9, 0x00, 0x80, 0x40, 0xf3, 0xab, 0x81, 0xc3,
    0x00, 0x10, 0x81, 0xfb, 0x00, 0x90, 0x72, 0xec, 0xeb, 0xe7,
];

/// What a guest writes to is never less than what the file takes in the time that QEMU would let it
/// stand still. So it is stopped, and what is saved is whole.
#[tokio::test]
async fn a_guest_that_writes_faster_than_its_file_takes_it_is_stopped() {
    let Some(bed) = Bed::new() else { return };
    let a = bed.image("a").await;
    let mut sector = WRITES.to_vec();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    fs::write(bed.at("sector"), sector).unwrap();
    assert!(io(&a, "qcow2", &format!("write -s {} 0 512", bed.at("sector").display())));
    let instance = bed.start(&[&a]).await;
    instance.resume(RunningReason::Unpaused).await.unwrap();
    let address = 0x8_0000;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let first = byte_at(&instance, address).await;
    while byte_at(&instance, address).await == first {
        assert!(std::time::Instant::now() < deadline, "it does not boot");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    bed.events();

    let (read, write) = crate::save_image::carry::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&write, 64 << 10).unwrap();
    let reading = tokio::task::spawn_blocking(move || {
        // About a MiB a second.
        let (mut read, mut chunk, mut length) = (fs::File::from(read), vec![0; 32 << 10], 0);
        loop {
            match std::io::Read::read(&mut read, &mut chunk).unwrap() {
                0 => return length,
                some => length += some as u64,
            }
            std::thread::sleep(std::time::Duration::from_millis(30));
        }
    });
    let passed = Default::default();
    let guest = Guest::GoesOn(Room::Bytes(u64::MAX));
    crate::migration::save(&instance, write, guest, &passed).await.unwrap();
    let now = crate::migration::progress(&instance.qmp).await.unwrap();
    assert!(now.ram.dirty_sync_count >= crate::migration::PASSES, "{now:?}");
    let (length, memory) = (reading.await.unwrap(), now.ram.total);
    assert!(length > 2 << 20 && length < 3 * memory, "{length} of {memory}");
    assert_eq!(instance.state(), State::Paused(PausedReason::Snapshot));
    assert_eq!(bed.events(), [Event::Suspended(Suspended::Paused)]);
}

#[tokio::test]
async fn memory_in_an_image_of_its_own_comes_back_with_the_internal_disks() {
    let Some(bed) = Bed::new() else { return };
    let a = bed.image("a").await;
    let instance = bed.start(&[&a]).await;
    assert!(guest(&instance, 0, "write -P 1 0 64k").await);
    let image = bed.at("vs");
    let vmstate = VmStateIn::Image(image.clone());
    let create = Step::CreateVmStateImage { image: image.clone() };
    bed.undo(&create).await;
    bed.act(&create).await;
    let step = |disks: &[&str]| Step::SaveVmState {
        tag: "s".to_owned(),
        vmstate: vmstate.clone(),
        disks: disks.iter().map(|&disk| disk.to_owned()).collect(),
    };
    let tool = bed.qemu.image_tool();
    for disks in [&[][..], &["vda"]] {
        bed.act(&step(disks)).await;
        assert_eq!(our_nodes(&instance).await, 2);
        assert!(tool.tagged(&image, &Qcow2, "s").await.unwrap().is_some());
        bed.undo(&step(disks)).await;
        assert!(tool.tagged(&image, &Qcow2, "s").await.unwrap().is_none());
    }
    // A tag that was there before is nobody's to undo.
    bed.pivot(&Pivot::SnapshotDisks {
        overlays: vec![],
        internal: vec!["vda".to_owned()],
        tag: "s".to_owned(),
    })
    .await
    .unwrap();
    assert!(bed.qemu.act_step(bed.uuid, &step(&["vda"])).await.is_err());
    bed.qemu.undo_step(bed.uuid, &step(&["vda"])).await.unwrap();
    let facts = bed.qemu.domain_facts(&bed.subject(None, &[])).await.unwrap();
    assert_eq!(facts.images[&a].snapshots.len(), 1);
    bed.finish(&Finish::DeleteSnapshot { image: a.clone(), tag: "s".to_owned() }).await;

    let pivot = Pivot::SaveVmState {
        tag: "s".to_owned(),
        vmstate: vmstate.clone(),
        disks: vec!["vda".to_owned()],
    };
    assert!(!bed.pivoted(&pivot).await);
    bed.pivot(&pivot).await.unwrap();
    assert!(bed.pivoted(&pivot).await);
    bed.finish(&Finish::KeepImage(image.clone())).await;

    assert!(guest(&instance, 0, "write -P 2 0 64k").await);
    let load = Pivot::LoadVmState {
        tag: "s".to_owned(),
        vmstate: vmstate.clone(),
        disks: vec!["vda".to_owned()],
    };
    bed.pivot(&load).await.unwrap();
    assert!(bed.pivoted(&load).await);
    assert!(guest(&instance, 0, "read -P 1 0 64k").await);
    assert!(guest(&instance, 0, "write -P 3 0 64k").await);
    assert_eq!(our_nodes(&instance).await, 2);
    let definition = to_inactive(instance.live());
    bed.stop().await;
    let from = StartFrom::VmState { tag: "s".to_owned(), vmstate, disks: vec!["vda".to_owned()] };
    let instance = bed.start_from(from, true, definition).await;
    assert!(guest(&instance, 0, "read -P 1 0 64k").await);
    assert_eq!(our_nodes(&instance).await, 2);
    bed.stop().await;
    bed.check(&[&a, &image]).await;
    assert_eq!(bed.names(), ["a", "vs"]);
}

#[tokio::test]
async fn a_torn_or_foreign_file_is_refused_before_there_is_a_process() {
    let Some(bed) = Bed::new() else { return };
    let a = bed.image("a").await;
    let instance = bed.start(&[&a]).await;
    let definition = to_inactive(instance.live());
    let whole = bed.at("whole");
    bed.act(&save(&whole, false, false, &instance)).await;
    bed.stop().await;
    let bytes = fs::read(&whole).unwrap();
    let at = Saved::open(&whole).unwrap().head.stream_at() as usize;
    let lzop = Head::new("<domain/>".to_owned(), None, true, Stream::Lzop).to_bytes(true);
    let mut partial = bytes.clone();
    partial[..16].copy_from_slice(b"LibvirtQemudPart");
    let mut paths = vec![whole.clone(), bed.at("missing")];
    for (name, bytes) in [
        ("partial", partial.as_slice()),
        ("empty", b""),
        ("head-only", &bytes[..at]),
        ("foreign", b"#!/bin/sh"),
        ("lzop", &lzop),
        ("cut", &bytes[..at + 5000]),
    ] {
        fs::write(bed.at(name), bytes).unwrap();
        paths.push(bed.at(name));
    }
    let mut subject = bed.subject(Some(definition.clone()), &[]);
    subject.memory_files = paths.iter().cloned().collect();
    let facts = bed.qemu.domain_facts(&subject).await.unwrap().memory_files;
    for path in &paths {
        let name = path.file_name().unwrap().to_str().unwrap();
        match (name, facts.get(path)) {
            ("missing", None) => {}
            ("whole", Some(MemoryFile::Whole { definition: saved, .. })) => {
                assert_eq!(*saved, definition)
            }
            (_, Some(MemoryFile::Damaged(_))) if name != "whole" => {}
            other => panic!("{other:?}"),
        }
        if name != "whole" {
            let start = Start { paused: true, from: StartFrom::Memory { file: path.clone() } };
            let err = bed.qemu.start_domain(definition.clone(), start).await.unwrap_err();
            assert_eq!(err.condition, Condition::OperationFailed, "{name}: {}", err.chain());
            assert!(bed.qemu.instance(bed.uuid).is_none());
        }
    }
    assert!(matches!(Saved::open(&bed.at("partial")), Err(Damage::Partial)));
}

#[tokio::test]
async fn a_save_can_be_watched_and_aborted() {
    use virtsnap_engine::inspect::Inspect;
    let Some(bed) = Bed::new() else { return };
    let a = bed.image("a").await;
    let instance = bed.start(&[&a]).await;
    assert_eq!(bed.qemu.memory_job(bed.uuid).await.unwrap(), None);
    assert!(bed.qemu.abort_memory_job(bed.uuid).await.is_err());
    // A pipe that nobody empties: the save goes on until it is aborted.
    let (read, write) = crate::save_image::carry::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&write, 4096).unwrap();
    let passed = Default::default();
    let saving = crate::migration::save(&instance, write, Guest::Stands, &passed);
    let watching = async {
        loop {
            if let Some(job) = bed.qemu.memory_job(bed.uuid).await.unwrap() {
                assert!(job.remaining <= job.total);
                return bed.qemu.abort_memory_job(bed.uuid).await;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let (saved, aborted) = tokio::join!(saving, watching);
    aborted.unwrap();
    assert_eq!(saved.unwrap_err().condition, Condition::Aborted);
    drop(read);
    crate::migration::end(&instance).await.unwrap();
    assert!(guest(&instance, 0, "write -P 3 0 64k").await);
    bed.act(&save(&bed.at("m"), false, false, &instance)).await;
    assert_eq!(instance.state(), State::Paused(PausedReason::User));
}
