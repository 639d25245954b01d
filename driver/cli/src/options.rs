//! The command line.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use virtsnap_xml::snapshot::{Location, Survivor};

/// The daemon for QEMU, and that for Xen.
const SYSTEM: [(&str, &str); 2] =
    [("qemu", "/run/virtsnap/virtsnap-sock"), ("xen", "/run/virtsnap/xen/virtsnap-sock")];

/// Snapshots of virtual machines, with what libvirt's own tools have no option for.
///
/// virsh and every other libvirt client work with virtsnapd as they are; this program names the
/// options that virtsnapd adds to libvirt's calls.
#[derive(Debug, Parser)]
#[command(name = "virtsnap", version, max_term_width = 100, after_long_help = AFTER)]
pub(crate) struct Options {
    /// The daemon: a libvirt URI.
    ///
    /// Without it, VIRTSNAP_URI counts, then the system daemon of this host: that for QEMU, and
    /// that for Xen where there is no other.
    #[arg(short, long, global = true, value_name = "URI")]
    connect: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER: &str = "\
Examples:
  virtsnap create vm before-upgrade --disk vda,on-delete=overlay
  virtsnap revert vm before-upgrade --stop
  virtsnap delete vm before-upgrade --consolidate --keep base
  virtsnap images vm
  virtsnap disk-snapshot list vm

Exit status: 0 when it was done, 1 when it was refused or failed, 2 when the command line is wrong.";

impl Options {
    pub(crate) fn uri(&self, only_reads: bool) -> String {
        let said = self.connect.clone();
        let said =
            said.or_else(|| std::env::var("VIRTSNAP_URI").ok().filter(|uri| !uri.is_empty()));
        said.unwrap_or_else(|| system(only_reads, Path::exists))
    }
}

fn system(only_reads: bool, exists: impl Fn(&Path) -> bool) -> String {
    // The socket that everybody may read from is another one.
    let suffix = if only_reads { "-ro" } else { "" };
    let [qemu, xen] = SYSTEM.map(|(scheme, socket)| (scheme, format!("{socket}{suffix}")));
    let is_there = |socket: &str| exists(Path::new(socket));
    let (scheme, socket) = if !is_there(&qemu.1) && is_there(&xen.1) { xen } else { qemu };
    format!("{scheme}:///system?socket={socket}")
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Create(Create),
    Revert(Revert),
    Delete(Delete),
    /// List the snapshots inside a domain's images, known to the daemon or not.
    ///
    /// For each image of the domain's disks, backing files included: id, tag, size of the memory
    /// saved with it, date, and how long the guest had run.
    Images {
        /// The domain's name.
        domain: String,
    },
    /// Snapshots of single disks, inside their images.
    #[command(subcommand)]
    DiskSnapshot(DiskSnapshot),
    /// List a domain's snapshots.
    List {
        /// The domain's name.
        domain: String,
        /// As a tree, children below their parents; the current one is marked.
        #[arg(long)]
        tree: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DiskSnapshot {
    /// List what the images of a domain's disks hold: device, id, tag, size of the memory saved
    /// with it, date, and how long the guest had run.
    List {
        /// The domain's name.
        domain: String,
    },
}

/// Take a snapshot of a domain.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The domain's name.
    pub(crate) domain: String,
    /// The snapshot's name; without one, the time in seconds.
    #[arg(conflicts_with = "xml")]
    pub(crate) name: Option<String>,
    /// A `<domainsnapshot>` in a file, instead of what the options below say.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["description", "memory", "disk"])]
    pub(crate) xml: Option<PathBuf>,
    /// A text to remember it by.
    #[arg(long)]
    pub(crate) description: Option<String>,
    /// Where the guest's memory goes: no, internal, external, or external,file=PATH.
    #[arg(long, value_name = "WHERE", value_parser = memory)]
    pub(crate) memory: Option<Memory>,
    /// What becomes of one disk, and may be given for each:
    /// `TARGET[,snapshot=no|internal|external|manual][,file=PATH][,format=FORMAT][,on-delete=base|overlay]`
    ///
    /// on-delete says which of the two files is left when the snapshot is deleted: the one it froze
    /// (base), or the one written to since (overlay).
    #[arg(long, value_name = "DISK", value_parser = disk)]
    pub(crate) disk: Vec<Disk>,
    /// Disks without memory.
    #[arg(long)]
    pub(crate) disk_only: bool,
    /// Let the guest agent flush and freeze file systems first (with --disk-only).
    #[arg(long)]
    pub(crate) quiesce: bool,
    /// Save external memory while the guest runs.
    #[arg(long)]
    pub(crate) live: bool,
    /// Use overlay files that exist.
    #[arg(long)]
    pub(crate) reuse_external: bool,
    /// All or nothing; it always is.
    #[arg(long)]
    pub(crate) atomic: bool,
    /// Check the description against the schema.
    #[arg(long)]
    pub(crate) validate: bool,
    /// Shut the domain off once it is taken.
    #[arg(long)]
    pub(crate) halt: bool,
    /// Do not record it: the files are yours.
    #[arg(long, conflicts_with = "no_current")]
    pub(crate) no_metadata: bool,
    /// Do not make it the domain's current snapshot, which stays the parent of the next.
    #[arg(long)]
    pub(crate) no_current: bool,
}

/// Go back to a snapshot.
#[derive(Debug, Args)]
pub(crate) struct Revert {
    /// The domain's name.
    pub(crate) domain: String,
    /// The snapshot's name.
    pub(crate) snapshot: String,
    /// Run the domain afterwards.
    #[arg(long, conflicts_with_all = ["paused", "stop"])]
    pub(crate) running: bool,
    /// Leave the domain paused.
    #[arg(long, conflicts_with = "stop")]
    pub(crate) paused: bool,
    /// Only the disks go back, also of a snapshot with memory, and the domain is off afterwards.
    #[arg(long)]
    pub(crate) stop: bool,
    /// Go back onto the files that the snapshot froze: overlays are removed, and the snapshot is
    /// used up and deleted. Refused where another snapshot stands on such a file.
    #[arg(long)]
    pub(crate) discard: bool,
    /// Delete all snapshots below this one in the same act.
    #[arg(long)]
    pub(crate) delete_children: bool,
    /// Start with fresh firmware variables.
    #[arg(long)]
    pub(crate) reset_nvram: bool,
    /// Accept the risks that a refusal named.
    #[arg(long)]
    pub(crate) force: bool,
}

/// Delete a snapshot; what it holds is merged with what was written since.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The domain's name.
    pub(crate) domain: String,
    /// The snapshot's name.
    pub(crate) snapshot: String,
    /// All snapshots below it, too.
    #[arg(long, conflicts_with = "children_only")]
    pub(crate) children: bool,
    /// Only the snapshots below it.
    #[arg(long)]
    pub(crate) children_only: bool,
    /// Forget it, and leave all files as they are.
    #[arg(long, conflicts_with_all = ["consolidate", "keep"])]
    pub(crate) metadata: bool,
    /// Refuse, rather than leave a file unmerged or another one than asked for.
    #[arg(long)]
    pub(crate) consolidate: bool,
    /// Which file is left: base (the one the snapshot froze) or overlay (the one written to since).
    #[arg(long, value_name = "FILE", value_parser = survivor)]
    pub(crate) keep: Option<Survivor>,
}

/// `--memory`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) location: Location,
    pub(crate) file: Option<String>,
}

/// `--disk`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) target: String,
    pub(crate) location: Option<Location>,
    pub(crate) file: Option<String>,
    pub(crate) format: Option<String>,
    pub(crate) on_delete: Option<Survivor>,
}

fn memory(text: &str) -> Result<Memory, String> {
    let (place, file) = match text.split_once(",file=") {
        Some((place, file)) => (place, Some(file.to_owned())),
        None => (text, None),
    };
    let location = match (place, &file) {
        ("no", None) => Location::No,
        ("internal", _) => Location::Internal,
        ("external", _) => Location::External,
        _ => return Err("memory goes: no, internal, external, or external,file=PATH".to_owned()),
    };
    Ok(Memory { location, file })
}

fn disk(text: &str) -> Result<Disk, String> {
    let mut parts = text.split(',');
    let target = parts.next().filter(|target| !target.is_empty()).ok_or("a disk has a target")?;
    let (mut location, mut file, mut format, mut on_delete) = (None, None, None, None);
    for part in parts {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("'{part}' has no value"))?;
        match key {
            "snapshot" => {
                let found = Location::from_name(value);
                location = Some(found.ok_or("snapshot is no, internal, external or manual")?);
            }
            "file" => file = Some(value.to_owned()),
            "format" => format = Some(value.to_owned()),
            "on-delete" => on_delete = Some(survivor(value)?),
            other => return Err(format!("a disk has no '{other}'")),
        }
    }
    Ok(Disk { target: target.to_owned(), location, file, format, on_delete })
}

fn survivor(text: &str) -> Result<Survivor, String> {
    Survivor::from_name(text).ok_or_else(|| "it is base or overlay".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::bits;

    fn read(line: &str) -> Result<Command, clap::Error> {
        Options::try_parse_from(line.split(' ')).map(|options| options.command)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn without_a_uri_the_daemon_that_is_there_is_asked() {
        let xen = "/run/virtsnap/xen/virtsnap-sock-ro";
        let only_xen = |path: &Path| path == Path::new(xen);
        assert_eq!(system(true, only_xen), format!("xen:///system?socket={xen}"));
        let qemu = "qemu:///system?socket=/run/virtsnap/virtsnap-sock";
        assert_eq!(system(false, only_xen), qemu);
        assert_eq!(system(false, |_| true), qemu);
    }

    #[test]
    fn options_become_bits() {
        let Command::Revert(revert) =
            read("virtsnap revert vm s --stop --discard --delete-children --force").unwrap()
        else {
            panic!("a revert");
        };
        assert_eq!(bits::revert(&revert), 4 | 7 << 16);
        let Command::Delete(delete) =
            read("virtsnap delete vm s --children --consolidate --keep overlay").unwrap()
        else {
            panic!("a deletion");
        };
        assert_eq!(bits::delete(&delete), 1 | 1 << 16 | 1 << 18);
        let Command::Create(create) =
            read("virtsnap create vm s --disk-only --no-current --disk vda,on-delete=base")
                .unwrap()
        else {
            panic!("a creation");
        };
        assert_eq!(bits::create(&create), 16 | 1 << 16);
        assert_eq!(create.disk[0].on_delete, Some(Survivor::Base));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "virtsnap",
            "virtsnap revert vm s --stop --running",
            "virtsnap delete vm s --keep both",
            "virtsnap delete vm s --metadata --consolidate",
            "virtsnap create vm s --disk vda,on-delete=all",
            "virtsnap create vm s --disk vda,place=x",
            "virtsnap create vm s --memory ram",
        ] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
