//! Requests and definitions from XML, by the rules of `virDomainSnapshotDefParse`.
//!
//! As libvirt's XPath does: of several elements of one name the first counts, an empty text is no
//! text, and every child of `<disks>` is a disk, whatever its name.

use super::{
    Definition, Disk, DiskRequest, ErrorKind, KeptState, Location, Memory, MemoryRequest, Request,
    SnapshotXmlError, State, Survivor, check_name, source_path,
};
use crate::domain::scaled_bytes;
use crate::element::Element;

type Result<T> = std::result::Result<T, SnapshotXmlError>;

/// What stands directly in `<domainsnapshot>` and has its own field.
const KNOWN: [&str; 15] = [
    "name",
    "description",
    "state",
    "parent",
    "creationTime",
    "memory",
    "disks",
    "revertDisks",
    "domain",
    "inactiveDomain",
    "cookie",
    "nvram",
    "tpm",
    "snapshotDeleteInProgress",
    "active",
];

const SOURCE_TYPES: [&str; 6] = ["file", "block", "network", "nvme", "vhostuser", "vhostvdpa"];

const FORMATS: [&str; 16] = [
    "raw", "dir", "bochs", "cloop", "dmg", "iso", "vpc", "vdi", "fat", "vhd", "ploop", "cow",
    "qcow", "qcow2", "qed", "vmdk",
];

impl Request {
    /// What the user wrote.
    pub fn parse(root: &Element) -> Result<Self> {
        check_root(root)?;
        let name = first_text(root, "name");
        if let Some(name) = &name {
            check_name(name)?;
        }
        Ok(Self {
            name,
            description: first_text(root, "description"),
            memory: memory_request(root, false)?,
            disks: disk_requests(root, "disks")?,
            cookie: root.child("cookie").cloned(),
        })
    }
}

impl Definition {
    /// A whole definition: what REDEFINE is given, and what we printed.
    pub fn parse(root: &Element) -> Result<Self> {
        check_root(root)?;
        let name =
            first_text(root, "name").ok_or_else(|| xml("a redefined snapshot needs its <name>"))?;
        check_name(&name)?;
        let creation_time = first_text(root, "creationTime")
            .and_then(|text| text.trim_start().parse().ok())
            .ok_or_else(|| internal("a redefined snapshot needs its <creationTime> in seconds"))?;
        let state = first_text(root, "state")
            .ok_or_else(|| xml("a redefined snapshot needs its <state>"))?;
        let state = State::from_name(&state)
            .ok_or_else(|| unsupported(format!("there is no snapshot of state '{state}'")))?;
        let memory = recorded_memory(root, state)?;
        let listed = disk_requests(root, "disks")?;
        // libvirt's default for a disk of which nothing is said.
        let external = matches!(memory, Memory::External { .. })
            || state == State::DiskSnapshot
            || listed.iter().any(|disk| disk.snapshot == Some(Location::External));
        let default = if external { Location::External } else { Location::Internal };
        Ok(Self {
            description: first_text(root, "description"),
            parent: root.child("parent").and_then(|parent| first_text(parent, "name")),
            creation_time,
            disks: recorded_disks(root, "disks", listed, default),
            // Old snapshots recorded no more than the domain's uuid.
            domain: root
                .child("domain")
                .filter(|domain| domain.attr("type").is_some_and(|kind| !kind.is_empty()))
                .cloned(),
            inactive_domain: root
                .child("inactiveDomain")
                .map(|inactive| inactive.clone().renamed("domain")),
            revert_disks: {
                let listed = disk_requests(root, "revertDisks")?;
                recorded_disks(root, "revertDisks", listed, default)
            },
            cookie: root.child("cookie").filter(|_| !state.is_offline()).cloned(),
            nvram: kept_state(root, "nvram")?,
            tpm: kept_state(root, "tpm")?,
            delete_in_progress: root.child("snapshotDeleteInProgress").is_some(),
            extra: root.elements().filter(|e| !KNOWN.contains(&e.name())).cloned().collect(),
            name,
            state,
            memory,
        })
    }

    /// What [`Definition::to_stored_element`] printed; with it, whether it is the current one.
    pub fn parse_stored(root: &Element) -> Result<(Self, bool)> {
        let active = first_text(root, "active")
            .and_then(|text| text.trim_start().parse::<i32>().ok())
            .ok_or_else(|| internal("a stored snapshot needs <active>"))?;
        Ok((Self::parse(root)?, active != 0))
    }
}

/// `<nvram snapshot= file=>`, `<tpm …>`.
fn kept_state(root: &Element, name: &str) -> Result<Option<KeptState>> {
    let Some(element) = root.child(name) else { return Ok(None) };
    match (location(element)?, element.attr("file")) {
        (Some(Location::No), None) => Ok(Some(KeptState::No)),
        (Some(Location::Internal), None) if name == "nvram" => Ok(Some(KeptState::Internal)),
        (None | Some(Location::External), Some(file)) if file.starts_with('/') => {
            Ok(Some(KeptState::External { file: file.to_owned() }))
        }
        _ => Err(xml(format!(
            "<{name}> of a snapshot says snapshot='no', or snapshot='external' with an absolute \
             file"
        ))),
    }
}

fn check_root(root: &Element) -> Result<()> {
    match root.name() {
        "domainsnapshot" => Ok(()),
        other => Err(SnapshotXmlError {
            kind: ErrorKind::WrongRoot,
            message: format!("the root element is <{other}>, not <domainsnapshot>"),
        }),
    }
}

/// The first child's text, if there is any.
fn first_text(parent: &Element, name: &str) -> Option<String> {
    parent.child(name).map(Element::deep_text).filter(|text| !text.is_empty())
}

/// A file of internal memory is ours, and only in what is recorded: it has no other place where all
/// disks are external.
fn memory_request(root: &Element, recorded: bool) -> Result<Option<MemoryRequest>> {
    let Some(element) = root.child("memory") else { return Ok(None) };
    let file = element.attr("file").map(str::to_owned);
    let location = match location(element)? {
        None if file.is_some() => Location::External,
        None => return Ok(None),
        Some(location) => location,
    };
    if let Some(file) = &file {
        if location == Location::No || (location == Location::Internal && !recorded) {
            return Err(xml(format!("memory file '{file}' needs snapshot='external'")));
        }
        if location != Location::Manual && !file.starts_with('/') {
            return Err(xml(format!("memory file '{file}' is not an absolute path")));
        }
    }
    match location {
        Location::No => Ok(Some(MemoryRequest::No)),
        Location::Internal => Ok(Some(MemoryRequest::Internal)),
        Location::External => Ok(Some(MemoryRequest::External { file })),
        Location::Manual => Err(xml("memory cannot be snapshot='manual'")),
    }
}

fn recorded_memory(root: &Element, state: State) -> Result<Memory> {
    let image = || root.child("memory")?.attr("file").map(str::to_owned);
    let memory = match memory_request(root, true)? {
        None if state.is_offline() => Memory::No,
        None => Memory::Internal { image: None },
        Some(MemoryRequest::No) => Memory::No,
        Some(MemoryRequest::Internal) => Memory::Internal { image: image() },
        Some(MemoryRequest::External { file }) => Memory::External {
            file: file.ok_or_else(|| xml("a recorded external memory needs its file="))?,
        },
    };
    if state.is_offline() && memory != Memory::No {
        return Err(no_memory());
    }
    Ok(memory)
}

fn no_memory() -> SnapshotXmlError {
    xml("there is no memory to save with an offline or disk-only snapshot: use \
         <memory snapshot='no'/>")
}

fn disk_requests(root: &Element, list: &str) -> Result<Vec<DiskRequest>> {
    let mut disks: Vec<DiskRequest> = Vec::new();
    for element in root.children(list).flat_map(Element::elements) {
        let disk = disk_request(element)?;
        if disks.iter().any(|other| other.name == disk.name) {
            return Err(unsupported(format!("disk '{}' is listed twice", disk.name)));
        }
        disks.push(disk);
    }
    Ok(disks)
}

fn disk_request(element: &Element) -> Result<DiskRequest> {
    let name = element
        .attr("name")
        .ok_or_else(|| internal("a <disk> of a snapshot needs its name="))?
        .to_owned();
    let snapshot = location(element)?;
    let source_type = element.attr("type").map(str::to_owned);
    if let Some(kind) = &source_type {
        check_source_type(&name, kind)?;
    }
    let source = element.child("source").cloned();
    if source_type.as_deref() == Some("network") {
        let protocol = source.as_ref().and_then(|source| source.attr("protocol"));
        if source.is_some() && protocol.is_none() {
            return Err(xml(format!("<source> of network disk '{name}' needs protocol=")));
        }
    }
    // As libvirt: one that says nothing is as none, and a name is made up.
    let source = source.filter(|source| source.attributes().next().is_some());
    let format = element
        .child("driver")
        .and_then(|driver| driver.attr("type"))
        .filter(|format| !format.is_empty())
        .map(str::to_owned);
    if let Some(format) = &format
        && !FORMATS.contains(&format.as_str())
    {
        return Err(unsupported(format!("disk '{name}' asks for unknown format '{format}'")));
    }
    let path = source_path(source_type.as_deref(), source.as_ref());
    if let Some(path) = path.filter(|path| !path.starts_with('/')) {
        return Err(xml(format!("'{path}' for disk '{name}' is not an absolute path")));
    }
    let snapshot = match snapshot {
        None if path.is_some() || format.is_some() => Some(Location::External),
        said => said,
    };
    if let (Some(path), Some(location)) = (path, snapshot)
        && location != Location::External
    {
        return Err(unsupported(format!(
            "'{path}' for disk '{name}' needs snapshot='external', not '{}'",
            location.as_str()
        )));
    }
    let driver = element.child("driver").map(metadata_cache).transpose()?.flatten();
    let extra = element
        .elements()
        .filter(|child| {
            !matches!(child.name(), "driver" | "source" | "snapshotDeleteInProgress" | "on_delete")
        })
        .cloned()
        .collect();
    let on_delete = on_delete(element, &name)?;
    Ok(DiskRequest { name, snapshot, source_type, source, format, driver, on_delete, extra })
}

fn on_delete(disk: &Element, name: &str) -> Result<Option<Survivor>> {
    let Some(element) = disk.child("on_delete") else { return Ok(None) };
    let keep = element.attr("keep").unwrap_or_default();
    Survivor::from_name(keep).map(Some).ok_or_else(|| {
        unsupported(format!(
            "<on_delete> of disk '{name}' has keep='{keep}'; it keeps 'base' or 'overlay'"
        ))
    })
}

fn check_source_type(name: &str, kind: &str) -> Result<()> {
    if matches!(kind, "volume" | "dir") {
        return Err(xml(format!("disk '{name}' cannot have its snapshot in a {kind}")));
    }
    if !SOURCE_TYPES.contains(&kind) {
        let message = format!("disk '{name}' is of unknown type '{kind}'");
        return Err(refused(ErrorKind::XmlValue, message));
    }
    Ok(())
}

/// `<driver>` with nothing but `<metadata_cache>` and its size in bytes.
fn metadata_cache(driver: &Element) -> Result<Option<Element>> {
    let Some(size) = driver.at(&["metadata_cache", "max_size"]) else { return Ok(None) };
    let bytes = scaled_bytes(size, 1)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| xml(format!("<max_size> '{}' is not a size", size.text())))?;
    let size = Element::new("max_size").with_attr("unit", "bytes").with_text(bytes.to_string());
    let cache = Element::new("metadata_cache").with_child(size);
    Ok(Some(Element::new("driver").with_child(cache)))
}

/// `listed`, with what only a record has; `root` and `list` are where it was read from.
fn recorded_disks(
    root: &Element,
    list: &str,
    listed: Vec<DiskRequest>,
    default: Location,
) -> Vec<Disk> {
    let elements = root.children(list).flat_map(Element::elements);
    let recorded = elements.zip(listed).map(|(element, disk)| {
        // As libvirt prints: the type only beside what it describes.
        let described = disk.source.is_some() || disk.format.is_some() || disk.driver.is_some();
        let source_type = disk.source_type.unwrap_or_else(|| "file".to_owned());
        Disk {
            name: disk.name,
            snapshot: disk.snapshot.unwrap_or(default),
            source_type: described.then_some(source_type),
            source: disk.source,
            format: disk.format,
            driver: disk.driver,
            tag: element.attr("tag").map(str::to_owned),
            on_delete: disk.on_delete,
            delete_in_progress: element.child("snapshotDeleteInProgress").is_some(),
            extra: disk.extra,
        }
    });
    recorded.collect()
}

fn location(element: &Element) -> Result<Option<Location>> {
    let Some(name) = element.attr("snapshot") else { return Ok(None) };
    Location::from_name(name).map(Some).ok_or_else(|| {
        let element = element.name();
        let message = format!("<{element} snapshot='{name}'>: there is no such kind of snapshot");
        refused(ErrorKind::XmlValue, message)
    })
}

fn refused(kind: ErrorKind, message: impl Into<String>) -> SnapshotXmlError {
    SnapshotXmlError { kind, message: message.into() }
}

fn xml(message: impl Into<String>) -> SnapshotXmlError {
    refused(ErrorKind::Xml, message)
}

fn internal(message: impl Into<String>) -> SnapshotXmlError {
    refused(ErrorKind::Internal, message)
}

fn unsupported(message: impl Into<String>) -> SnapshotXmlError {
    refused(ErrorKind::ConfigUnsupported, message)
}
