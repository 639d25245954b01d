//! Disks: every layer of the chain as block nodes, and the device in front.

use virtsnap_engine::error::{Condition, Error, Result};

use super::address::Chipset;
use super::block::{Cache, DiskOptions, blockdev};
use super::props::Props;
use super::read::View;
use super::{Build, refuse};

impl Build<'_> {
    pub(super) fn disks(&mut self) -> Result<()> {
        let disks = self.devices.children("disk");
        self.floppy_controller(&disks)?;
        for disk in disks {
            self.disk(disk)?;
        }
        Ok(())
    }

    fn disk(&mut self, disk: View<'_>) -> Result<()> {
        let target = disk.child("target").map(|target| target.need("dev")).transpose()?;
        let target =
            target.ok_or_else(|| Error::new(Condition::XmlError, "a <disk> lacks its <target>"))?;
        let options = options(disk)?;
        let node = match has_source(disk)? {
            false => None,
            true => Some(self.images(target, &options)?),
        };
        let bus = disk.child("target").and_then(|target| target.attr("bus")).unwrap_or("");
        let props = self.disk_device(disk, bus)?;
        let props = self.disk_properties(disk, bus, target, props.some("drive", node))?;
        self.device(props.some("write-cache", write_cache(disk, &options)));
        Ok(())
    }

    /// One pair of nodes a layer, from the base up. Returns the node that the device takes.
    fn images(&mut self, target: &str, options: &DiskOptions) -> Result<String> {
        let Some(chain) = self.chains.get(target).filter(|chain| !chain.layers.is_empty()) else {
            return Err(Error::new(
                Condition::Internal,
                format!("the backing chain of disk {target} is not known"),
            ));
        };
        let mut backing: Option<String> = None;
        for (depth, layer) in chain.layers.iter().enumerate().rev() {
            let options = if depth == 0 { options.clone() } else { options.for_backing() };
            for node in blockdev(layer, &options, backing.as_deref()) {
                self.arg("-blockdev", node.to_string());
            }
            backing = Some(layer.format_node());
        }
        backing.ok_or_else(|| Error::new(Condition::Internal, "an empty chain"))
    }

    /// The driver, what is special to it, and where it sits.
    fn disk_device(&self, disk: View<'_>, bus: &str) -> Result<Props> {
        let device = disk.attr("device").unwrap_or("disk");
        let is_cdrom = device == "cdrom";
        let product = disk.child_text("product");
        let props = match (bus, device) {
            ("virtio", "disk") => self.virtio_block(disk)?,
            ("ide" | "sata", "cdrom") => Props::device("ide-cd").some("model", product.as_deref()),
            ("ide" | "sata", "disk") => Props::device("ide-hd").some("model", product.as_deref()),
            ("scsi", "lun") => Props::device("scsi-block").some("product", product.as_deref()),
            ("scsi", "disk" | "cdrom") => {
                let driver = if is_cdrom { "scsi-cd" } else { "scsi-hd" };
                let serial = disk.child_text("serial");
                let identity = match &serial {
                    Some(serial) => serial.clone(),
                    // The name of the -drive that QEMU had in the days of -drive.
                    None => format!("drive-{}", disk.alias()?),
                };
                let props = Props::device(driver)
                    .some("product", product.as_deref())
                    .with("device_id", identity);
                if is_cdrom { props } else { props.some("removable", removable(disk)?) }
            }
            ("usb", "disk" | "cdrom") => {
                Props::device("usb-storage").with("removable", removable(disk)?.unwrap_or(false))
            }
            ("fdc", "floppy") => Props::device("floppy"),
            _ => return refuse(format!("a {device} on the bus '{bus}' is not supported")),
        };
        self.place_drive(disk, bus, props)
    }

    fn virtio_block(&self, disk: View<'_>) -> Result<Props> {
        let props = self.virtio(disk, "virtio-blk")?;
        let Some(driver) = disk.child("driver") else {
            return Ok(props);
        };
        Ok(io_driver(driver, props)?
            .positive("num-queues", driver.number("queues")?)
            .positive("queue-size", driver.number("queue_size")?))
    }

    /// What all drivers share.
    fn disk_properties(
        &self,
        disk: View<'_>,
        bus: &str,
        target: &str,
        props: Props,
    ) -> Result<Props> {
        let mut props = props
            .with("id", disk.alias()?)
            .some("share-rw", disk.child("shareable").map(|_| true))
            .some("vendor", disk.child_text("vendor"))
            .some("serial", disk.child_text("serial").map(|serial| escape_space(&serial)));
        // A floppy's boot index is set on its controller.
        if bus != "fdc" {
            props = props.positive("bootindex", self.boot_index(disk)?);
        }
        if let Some(wwn) = disk.child_text("wwn") {
            let number = u64::from_str_radix(wwn.trim_start_matches("0x"), 16).map_err(|err| {
                let message = format!("the wwn '{wwn}' of disk {target} is not a number");
                Error::new(Condition::XmlError, message).caused_by(err)
            })?;
            props = props.with("wwn", number);
        }
        if let Some(sizes) = disk.child("blockio") {
            props = props
                .positive("logical_block_size", sizes.number("logical_block_size")?)
                .positive("physical_block_size", sizes.number("physical_block_size")?)
                .positive("discard_granularity", sizes.number("discard_granularity")?);
        }
        if let Some(geometry) = disk.child("geometry") {
            props = props
                .positive("cyls", geometry.number("cyls")?)
                .positive("heads", geometry.number("heads")?)
                .positive("secs", geometry.number("secs")?)
                .some("bios-chs-trans", geometry.attr("trans"));
        }
        let rate = disk.child("target").map(|target| target.number("rotation_rate")).transpose()?;
        props = props.positive("rotation_rate", rate.flatten());
        error_policy(disk, props)
    }

    /// On q35 the floppy controller has to be added; elsewhere it is there and takes its boot
    /// indices by `-global`.
    fn floppy_controller(&mut self, disks: &[View<'_>]) -> Result<()> {
        let mut boot = [None, None];
        let mut any = false;
        for disk in disks {
            let is_floppy = disk.child("target").and_then(|t| t.attr("bus")) == Some("fdc");
            if !is_floppy {
                continue;
            }
            any = true;
            let unit = disk.child("address").map(|address| address.number("unit")).transpose()?;
            let index = self.boot_index(*disk)?;
            match unit.flatten() {
                Some(1) => boot[1] = index,
                _ => boot[0] = index,
            }
        }
        let [a, b] = boot;
        if !any {
            return Ok(());
        }
        if self.topology.chipset == Chipset::Q35 {
            let props =
                Props::device("isa-fdc").positive("bootindexA", a).positive("bootindexB", b);
            self.device(props);
            return Ok(());
        }
        for (name, index) in [("bootindexA", a), ("bootindexB", b)] {
            if let Some(index) = index {
                self.arg("-global", format!("isa-fdc.{name}={index}"));
            }
        }
        Ok(())
    }
}

/// Whether there is a medium. A source that is no file or block device, or that asks for what is
/// not rendered, is refused.
fn has_source(disk: View<'_>) -> Result<bool> {
    let target = disk.child("target").and_then(|target| target.attr("dev")).unwrap_or("?");
    for repeated in ["backingStore", "mirror"] {
        if let Some(element) = disk.child(repeated) {
            element.pass_over();
        }
    }
    if let Some(transient) = disk.child("transient") {
        transient.pass_over();
    }
    if disk.child("encryption").is_some() || disk.at(&["source", "encryption"]).is_some() {
        return refuse(format!("disk {target}: encrypted images are not supported"));
    }
    let kind = disk.attr("type").unwrap_or("file");
    let Some(source) = disk.child("source") else {
        return Ok(false);
    };
    let chain_says = ["index", "startupPolicy", "file", "dev", "append", "protocol", "name"];
    for said in chain_says {
        source.attr(said);
    }
    for host in source.children("host") {
        host.pass_over();
    }
    match kind {
        "file" => Ok(source.attr("file").is_some()),
        "block" => Ok(source.attr("dev").is_some()),
        "network" if source.attr("protocol") == Some("nbd") => Ok(true),
        other => refuse(format!("disk {target}: sources of type '{other}' are not supported")),
    }
}

fn options(disk: View<'_>) -> Result<DiskOptions> {
    let device = disk.attr("device").unwrap_or("disk");
    let mut options = DiskOptions {
        read_only: disk.child("readonly").is_some() || device == "cdrom",
        ..DiskOptions::default()
    };
    let Some(driver) = disk.child("driver") else {
        return Ok(options);
    };
    options.cache = match driver.attr("cache") {
        None | Some("default") => None,
        Some(name) => Some(Cache::from_name(name).ok_or_else(|| {
            Error::new(Condition::XmlError, format!("the disk cache mode '{name}' is not known"))
        })?),
    };
    options.aio = driver.attr("io").map(str::to_owned);
    options.discard = driver.attr("discard").map(str::to_owned);
    options.detect_zeroes = driver.attr("detect_zeroes").map(str::to_owned);
    options.discard_no_unref = driver.switch("discard_no_unref")?;
    if let Some(size) = driver.at(&["metadata_cache", "max_size"]) {
        let unit = size.attr("unit").unwrap_or("bytes");
        options.metadata_cache = Some(super::memory::bytes(&size.text(), unit)?);
    }
    for acted_on_elsewhere in ["copy_on_read"] {
        if driver.attr(acted_on_elsewhere) == Some("on") {
            return refuse(format!("the disk driver's {acted_on_elsewhere}='on' is not supported"));
        }
    }
    Ok(options)
}

/// `iothread`, `ioeventfd`, `event_idx` and the mapping of queues to threads.
pub(super) fn io_driver(driver: View<'_>, props: Props) -> Result<Props> {
    let mut mapping = Vec::new();
    if let Some(threads) = driver.child("iothreads") {
        for thread in threads.children("iothread") {
            let id = thread.need("id")?;
            let mut entry = Props::new().with("iothread", format!("iothread{id}"));
            let mut queues = Vec::new();
            for queue in thread.children("queue") {
                queues.extend(queue.number("id")?);
            }
            if !queues.is_empty() {
                entry = entry.with("vqs", queues);
            }
            mapping.push(entry.into_value());
        }
    }
    let props = if mapping.is_empty() { props } else { props.with("iothread-vq-mapping", mapping) };
    let thread = driver.number("iothread")?.filter(|id| *id > 0);
    Ok(props
        .some("iothread", thread.map(|id| format!("iothread{id}")))
        .some("ioeventfd", driver.switch("ioeventfd")?)
        .some("event_idx", driver.switch("event_idx")?))
}

fn removable(disk: View<'_>) -> Result<Option<bool>> {
    Ok(disk.child("target").map(|target| target.switch("removable")).transpose()?.flatten())
}

fn write_cache(disk: View<'_>, options: &DiskOptions) -> Option<&'static str> {
    if disk.attr("device") == Some("lun") {
        return None;
    }
    options.cache.map(|cache| super::props::on_off(cache.write_cache()))
}

fn error_policy(disk: View<'_>, props: Props) -> Result<Props> {
    let Some(driver) = disk.child("driver") else {
        return Ok(props);
    };
    let write = driver.attr("error_policy");
    let read = driver.attr("rerror_policy");
    Ok(match (write, read) {
        // QEMU's word differs, and reading has no such policy.
        (Some("enospace"), read) => props.with("werror", "enospc").some("rerror", read),
        (write, read) => props.some("werror", write).some("rerror", read.or(write)),
    })
}

/// libvirt's guests see a backslash before each space, since the days of -drive.
fn escape_space(serial: &str) -> String {
    serial.replace(' ', "\\ ")
}
