//! A plan as a person reads it: in logs, in golden tests.

use std::fmt;

use super::{Conclude, Finish, MomentChange, Operation, Pivot, Plan, Step};
use crate::domain::{StartFrom, VmStateIn};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.operation {
            Operation::Create { moment } => writeln!(f, "create {moment}")?,
            Operation::Revert { moment } => writeln!(f, "revert to {moment}")?,
            Operation::Delete { moments } => writeln!(f, "delete {}", moments.join(", "))?,
        }
        for step in &self.prepare {
            writeln!(f, "  prepare   {step}")?;
        }
        writeln!(f, "  pivot     {}", self.pivot)?;
        for finish in &self.finish {
            writeln!(f, "  finish    {finish}")?;
        }
        for conclude in &self.conclude {
            writeln!(f, "  conclude  {conclude}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Pause => f.write_str("pause"),
            Step::FreezeFilesystems => f.write_str("freeze file systems"),
            Step::CreateOverlay { overlay, format, backing, .. } => write!(
                f,
                "create {} overlay {} on {}",
                format.as_str(),
                overlay.display(),
                backing.display()
            ),
            Step::FillOverlay { overlay, format, backing, .. } => write!(
                f,
                "fill {} with a {} overlay on {}",
                overlay.display(),
                format.as_str(),
                backing.display()
            ),
            Step::CopyImage { from, to } => {
                write!(f, "copy {} to {}", from.display(), to.display())
            }
            Step::AttachOverlay { disk, overlay, .. } => {
                write!(f, "attach {} to {disk}", overlay.display())
            }
            Step::SnapshotImage { image, tag } => {
                write!(f, "snapshot {tag} in {}", image.display())
            }
            Step::SaveMemory { file, live, overwrite, .. } => {
                let live = if *live { ", live" } else { "" };
                let over = if *overwrite { ", over what is there" } else { "" };
                write!(f, "save memory to {}{live}{over}", file.display())
            }
            Step::CreateVmStateImage { image } => {
                write!(f, "create {} for memory", image.display())
            }
            Step::SaveVmState { tag, vmstate, disks } => save_vm_state(f, tag, vmstate, disks),
        }
    }
}

impl fmt::Display for Pivot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pivot::Record => f.write_str("record"),
            Pivot::SwitchToOverlays { disks } => {
                let disks = disks.iter().map(|(disk, to)| format!("{disk} to {}", to.display()));
                write!(f, "switch {}", disks.collect::<Vec<_>>().join(", "))
            }
            Pivot::SnapshotDisks { overlays, internal, tag } => {
                write!(f, "snapshot {} as {tag}", internal.join(", "))?;
                overlays
                    .iter()
                    .try_for_each(|(disk, to)| write!(f, ", switch {disk} to {}", to.display()))
            }
            Pivot::SaveVmState { tag, vmstate, disks } => save_vm_state(f, tag, vmstate, disks),
            Pivot::LoadVmState { tag, vmstate, disks } => {
                write!(f, "load {} from {tag}, memory from {vmstate}", disks.join(", "))
            }
        }
    }
}

fn save_vm_state(
    f: &mut fmt::Formatter<'_>,
    tag: &str,
    vmstate: &VmStateIn,
    disks: &[String],
) -> fmt::Result {
    if disks.is_empty() {
        return write!(f, "save memory as {tag} in {vmstate}");
    }
    write!(f, "save {} as {tag}, memory in {vmstate}", disks.join(", "))
}

impl fmt::Display for VmStateIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VmStateIn::Disk(target) => f.write_str(target),
            VmStateIn::Image(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Display for Finish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finish::ThawFilesystems => f.write_str("thaw file systems"),
            Finish::Resume(_) => f.write_str("resume"),
            Finish::Stop(reason) => write!(f, "stop ({reason:?})"),
            Finish::ApplySnapshot { image, tag } => write!(f, "apply {tag} in {}", image.display()),
            Finish::DeleteSnapshot { image, tag } => {
                write!(f, "delete {tag} from {}", image.display())
            }
            Finish::Commit { disk, top, base } => {
                write!(f, "commit {} down into {} ({disk})", top.display(), base.display())
            }
            Finish::Stream { disk, top, base } => {
                write!(f, "stream up into {} ({disk})", top.display())?;
                match base {
                    Some(base) => write!(f, ", down to {}", base.display()),
                    None => Ok(()),
                }
            }
            Finish::Repoint { image, backing, .. } => {
                write!(f, "back {} on {}", image.display(), backing.display())
            }
            Finish::Overwrite { image, from } => {
                write!(f, "write {} over {}", from.display(), image.display())
            }
            Finish::PutBack { file, to } => {
                write!(f, "put {} in the place of {}", file.display(), to.display())
            }
            Finish::SetLive(_) => f.write_str("set the live definition"),
            Finish::SetConfig(_) => f.write_str("set the persistent definition"),
            Finish::SetSaved { file, .. } => {
                write!(f, "set the definition in {}", file.display())
            }
            Finish::ForgetSave(file) => write!(f, "forget the managed save {}", file.display()),
            Finish::Record(change) => write!(f, "record {change}"),
            Finish::RemoveImage(path) => write!(f, "remove {}", path.display()),
            Finish::KeepImage(path) => write!(f, "keep {}", path.display()),
            Finish::HandOver(path) => write!(f, "hand over {}", path.display()),
        }
    }
}

impl fmt::Display for MomentChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let written: Vec<&str> = self.write.iter().map(|def| def.name.as_str()).collect();
        write!(
            f,
            "[{}], forget [{}], current {}",
            written.join(", "),
            self.forget.join(", "),
            self.current.as_deref().unwrap_or("none")
        )
    }
}

impl fmt::Display for Conclude {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Conclude::Start { start, .. } = self;
        let paused = if start.paused { ", paused" } else { "" };
        match &start.from {
            StartFrom::Boot | StartFrom::BootSnapshot => write!(f, "boot{paused}"),
            StartFrom::VmState { tag, vmstate, .. } => {
                write!(f, "start from {tag}, memory from {vmstate}{paused}")
            }
            StartFrom::Memory { file } => {
                write!(f, "start from memory in {}{paused}", file.display())
            }
        }
    }
}
