//! Content for tests: one of everything that is stored.

use std::path::PathBuf;

use uuid::Uuid;
use virtsnap_engine::domain::{ShutOffReason, Start, StartFrom, VmStateIn};
use virtsnap_engine::facts::Format;
use virtsnap_engine::plan::{
    Conclude, Finish, MomentChange, Operation, Pivot, Plan, ResumeReason, Step,
};
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::{Definition, Disk, Location, State};

pub(crate) const SHOP: Uuid = Uuid::from_u128(0x5f2b_1c1e_0a5c_4d8e_9a57_3c1b_7a0d_4e11);
pub(crate) const TRANSIENT: Uuid = Uuid::from_u128(0x0c0f_fee0_0000_4000_8000_0000_0000_0001);

pub(crate) fn config(uuid: Uuid, name: &str) -> Element {
    Element::new("domain")
        .with_attr("type", "qemu")
        .with_child(Element::new("name").with_text(name))
        .with_child(Element::new("uuid").with_text(uuid.to_string()))
        .with_child(Element::new("memory").with_attr("unit", "KiB").with_text("24576"))
}

pub(crate) fn moment(name: &str, parent: Option<&str>) -> Definition {
    Definition {
        parent: parent.map(str::to_owned),
        disks: vec![
            Disk::overlay("vda", format!("/srv/images/a.{name}"), "qcow2"),
            Disk::new("vdb", Location::No),
        ],
        domain: Some(config(SHOP, "shop & co")),
        ..Definition::new(name, State::DiskSnapshot, 1_795_309_776)
    }
}

fn path(path: &str) -> PathBuf {
    PathBuf::from(path)
}

/// A snapshot of a running domain into an overlay, as it is often taken.
pub(crate) fn plan() -> Plan {
    let overlay = path("/srv/images/a.s3");
    Plan {
        operation: Operation::Create { moment: "s3".to_owned() },
        prepare: vec![
            Step::CreateOverlay {
                overlay: overlay.clone(),
                format: Format::Qcow2,
                backing: path("/srv/images/a.s2"),
                backing_format: Format::Qcow2,
                virtual_size: 8 << 20,
            },
            Step::AttachOverlay {
                disk: "vda".to_owned(),
                overlay: overlay.clone(),
                format: Format::Qcow2,
            },
        ],
        pivot: Pivot::SwitchToOverlays { disks: vec![("vda".to_owned(), overlay.clone())] },
        finish: vec![
            Finish::KeepImage(overlay),
            Finish::SetConfig(config(SHOP, "shop & co")),
            Finish::Record(MomentChange {
                write: vec![moment("s3", Some("s2"))],
                forget: Vec::new(),
                current: Some("s3".to_owned()),
            }),
        ],
        conclude: Vec::new(),
    }
}

/// Plans that have every word of the format in them.
pub(crate) fn every_word() -> Vec<Plan> {
    let (image, tag) = (path("/i"), "t".to_owned());
    let disks = || vec!["vda".to_owned()];
    let on_disk = || VmStateIn::Disk("vda".to_owned());
    let start = |from| Conclude::Start {
        definition: config(TRANSIENT, "t"),
        start: Start { paused: true, from },
    };
    let finish = |finish| Plan {
        operation: Operation::Revert { moment: "m".to_owned() },
        prepare: Vec::new(),
        pivot: Pivot::Record,
        finish,
        conclude: Vec::new(),
    };
    let mut plans = vec![plan()];
    plans.push(Plan {
        prepare: vec![
            Step::Pause,
            Step::FreezeFilesystems,
            Step::CopyImage { from: image.clone(), to: path("/j") },
            Step::SnapshotImage { image: image.clone(), tag: tag.clone() },
        ],
        pivot: Pivot::SaveVmState { tag: tag.clone(), vmstate: on_disk(), disks: disks() },
        conclude: vec![
            start(StartFrom::Boot),
            start(StartFrom::BootSnapshot),
            start(StartFrom::VmState { tag: tag.clone(), vmstate: on_disk(), disks: disks() }),
        ],
        ..finish(vec![
            Finish::ThawFilesystems,
            Finish::Resume(ResumeReason::Unpaused),
            Finish::Resume(ResumeReason::FromSnapshot),
            Finish::ApplySnapshot { image: image.clone(), tag: tag.clone() },
            Finish::DeleteSnapshot { image: image.clone(), tag: tag.clone() },
            Finish::Commit { disk: "vda".to_owned(), top: image.clone(), base: path("/b") },
            Finish::Stream { disk: "vda".to_owned(), top: image.clone(), base: Some(path("/b")) },
            Finish::Stream { disk: "vda".to_owned(), top: image.clone(), base: None },
            Finish::Repoint {
                image: image.clone(),
                backing: path("/b"),
                backing_format: Format::Other("luks".to_owned()),
            },
            Finish::SetLive(config(TRANSIENT, "t")),
            Finish::RemoveImage(image.clone()),
            Finish::HandOver(image.clone()),
        ])
    });
    let reasons = [
        ShutOffReason::Unknown,
        ShutOffReason::Shutdown,
        ShutOffReason::Destroyed,
        ShutOffReason::Crashed,
        ShutOffReason::Migrated,
        ShutOffReason::Saved,
        ShutOffReason::Failed,
        ShutOffReason::FromSnapshot,
        ShutOffReason::Daemon,
    ];
    plans.push(Plan {
        operation: Operation::Delete { moments: vec!["m".to_owned(), "n".to_owned()] },
        pivot: Pivot::LoadVmState { tag, vmstate: on_disk(), disks: disks() },
        ..finish(reasons.map(Finish::Stop).to_vec())
    });
    plans.push(finish(Vec::new()));
    plans.push(added());
    plans
}

/// The words that came after the fixtures were frozen.
fn added() -> Plan {
    let vmstate = VmStateIn::Image(path("/v"));
    let start = |from| Conclude::Start {
        definition: config(TRANSIENT, "t"),
        start: Start { paused: false, from },
    };
    Plan {
        operation: Operation::Create { moment: "m".to_owned() },
        prepare: vec![
            Step::FillOverlay {
                overlay: path("/i"),
                format: Format::Qed,
                backing: path("/b"),
                backing_format: Format::Raw,
                virtual_size: 1,
            },
            Step::SaveMemory {
                file: path("/m"),
                live: true,
                overwrite: false,
                definition: config(TRANSIENT, "t"),
            },
            Step::CreateVmStateImage { image: path("/v") },
            Step::SaveVmState { tag: "t".to_owned(), vmstate: vmstate.clone(), disks: Vec::new() },
        ],
        pivot: Pivot::SnapshotDisks {
            overlays: vec![("vda".to_owned(), path("/o"))],
            internal: vec!["vdb".to_owned()],
            tag: "t".to_owned(),
        },
        finish: vec![
            Finish::PutBack { file: path("/n"), to: path("/o") },
            Finish::Overwrite { image: path("/o"), from: path("/n") },
            Finish::SetSaved { file: path("/m"), definition: config(TRANSIENT, "t") },
            Finish::ForgetSave(path("/m")),
        ],
        conclude: vec![
            start(StartFrom::VmState { tag: "t".to_owned(), vmstate, disks: Vec::new() }),
            start(StartFrom::Memory { file: path("/m") }),
        ],
    }
}
