//! `<loader>`, `<nvram>` and `<os firmware='efi'>`: which firmware a machine gets.
//!
//! The first description of the host that fits is taken, and what was found is written down, so
//! that a later host with other descriptions starts the same guest.

use virtsnap_engine::definition::{set_default, unsupported};
use virtsnap_engine::error::Result;
use virtsnap_xml::element::Element;

use super::draft::Draft;
use super::host::Firmware;

pub(super) fn complete(draft: &mut Draft<'_>) -> Result<()> {
    let wanted = Wanted::of(draft);
    let os = draft.root.child_or_insert("os");
    let auto = os.attr("firmware") == Some("efi");
    if let Some(loader) = os.child_mut("loader")
        && !loader.text().trim().is_empty()
    {
        set_default(loader, "type", "rom");
    }
    let path = os.child_text("loader").unwrap_or_default();
    let rom = os.child("loader").is_some_and(|l| l.attr("type") == Some("rom"));
    if rom || (path.trim().is_empty() && !auto) {
        for loader in os.children_mut("loader") {
            set_default(loader, "format", "raw");
        }
        return Ok(());
    }
    let found = draft.host.firmware.iter().find(|firmware| wanted.accepts(firmware, path.trim()));
    match found {
        Some(firmware) => write_down(draft, firmware),
        None if path.trim().is_empty() => Err(unsupported(
            "this host has no UEFI firmware that fits <os firmware='efi'> and this machine",
        )),
        None => {
            keep_explicit(draft);
            Ok(())
        }
    }
}

/// What the definition says about the firmware it wants.
#[derive(Debug)]
struct Wanted {
    machine: String,
    secure: Option<bool>,
    smm: Option<bool>,
    secure_boot: Option<bool>,
    enrolled_keys: Option<bool>,
    format: Option<String>,
}

impl Wanted {
    fn of(draft: &Draft<'_>) -> Self {
        let root = &draft.root;
        let os = root.child("os");
        let loader = os.and_then(|os| os.child("loader"));
        let feature = |name: &str| {
            let features = os.and_then(|os| os.child("firmware"));
            let feature = features?.children("feature").find(|f| f.attr("name") == Some(name));
            feature.map(|feature| feature.attr("enabled") == Some("yes"))
        };
        let machine = root.at(&["os", "type"]).and_then(|t| t.attr("machine")).unwrap_or_default();
        Self {
            machine: machine.to_owned(),
            secure: loader.and_then(|l| l.attr("secure")).map(|value| value == "yes"),
            smm: root.at(&["features", "smm"]).map(|smm| smm.attr("state").unwrap_or("on") == "on"),
            secure_boot: feature("secure-boot"),
            enrolled_keys: feature("enrolled-keys"),
            format: loader.and_then(|l| l.attr("format")).map(str::to_owned),
        }
    }

    fn accepts(&self, firmware: &Firmware, path: &str) -> bool {
        firmware.fits(&self.machine)
            && (path.is_empty() || firmware.code.as_os_str() == path)
            && self.secure.is_none_or(|secure| secure == firmware.secure_boot)
            && !(self.smm == Some(false) && firmware.secure_boot)
            && self.secure_boot.is_none_or(|wanted| wanted == firmware.secure_boot)
            && self.enrolled_keys.is_none_or(|wanted| wanted == firmware.enrolled_keys)
            && self.format.as_ref().is_none_or(|format| *format == firmware.format)
    }
}

fn write_down(draft: &mut Draft<'_>, firmware: &Firmware) -> Result<()> {
    let nvram_path = nvram_path(draft);
    let os = draft.root.child_or_insert("os");
    os.set_attr("firmware", "efi");
    let mut features = Element::new("firmware");
    for (name, has) in
        [("enrolled-keys", firmware.enrolled_keys), ("secure-boot", firmware.secure_boot)]
    {
        let enabled = if has { "yes" } else { "no" };
        features
            .push(Element::new("feature").with_attr("enabled", enabled).with_attr("name", name));
    }
    os.remove_children("firmware");
    os.push(features);

    let loader = os.child_or_insert("loader");
    loader.set_attr("readonly", "yes");
    loader.set_attr("type", "pflash");
    loader.set_attr("format", firmware.format.clone());
    if firmware.secure_boot {
        loader.set_attr("secure", "yes");
    }
    let stateless = loader.attr("stateless") == Some("yes");
    loader.set_text(firmware.code.to_string_lossy());
    if !stateless {
        let nvram = os.child_or_insert("nvram");
        set_default(nvram, "template", &firmware.template.to_string_lossy());
        set_default(nvram, "templateFormat", &firmware.format);
        set_default(nvram, "format", &firmware.format);
        if nvram.text().trim().is_empty() {
            nvram.set_text(nvram_path);
        }
    }
    if firmware.secure_boot {
        let smm = draft.root.child_or_insert("features").child_or_insert("smm");
        set_default(smm, "state", "on");
    }
    Ok(())
}

/// A loader that no description of this host knows: taken as it is written.
fn keep_explicit(draft: &mut Draft<'_>) {
    let nvram_path = nvram_path(draft);
    let os = draft.root.child_or_insert("os");
    let loader = os.child_or_insert("loader");
    set_default(loader, "format", "raw");
    let stateless = loader.attr("stateless") == Some("yes");
    let format = loader.attr("format").unwrap_or("raw").to_owned();
    if stateless || os.child("nvram").is_none() {
        return;
    }
    let nvram = os.child_or_insert("nvram");
    if nvram.attr("template").is_some() {
        set_default(nvram, "templateFormat", &format);
    }
    set_default(nvram, "format", &format);
    if nvram.text().trim().is_empty() {
        nvram.set_text(nvram_path);
    }
}

fn nvram_path(draft: &Draft<'_>) -> String {
    let name = draft.root.child_text("name").unwrap_or_default();
    draft.host.nvram_dir.join(format!("{name}_VARS.fd")).to_string_lossy().into_owned()
}
