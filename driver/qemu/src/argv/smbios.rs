//! `-smbios` and `-fw_cfg`.

use std::path::PathBuf;

use virtsnap_engine::error::Result;

use super::props::escape_comma;
use super::read::View;
use super::{Build, refuse};

/// Element, SMBIOS type, and the order in which libvirt gives the entries.
const TABLES: [(&str, u8, &[&str]); 4] = [
    ("bios", 0, &["vendor", "version", "date", "release"]),
    ("system", 1, &["manufacturer", "product", "version", "serial", "uuid", "sku", "family"]),
    ("baseBoard", 2, &["manufacturer", "product", "version", "serial", "asset", "location"]),
    ("chassis", 3, &["manufacturer", "version", "serial", "asset", "sku"]),
];

impl Build<'_> {
    pub(super) fn smbios(&mut self) -> Result<()> {
        let mode = self.domain.at(&["os", "smbios"]).and_then(|smbios| smbios.attr("mode"));
        let shown = match mode {
            None | Some("emulate") => false,
            Some("sysinfo") => true,
            Some(other) => return refuse(format!("<smbios mode='{other}'/> is not supported")),
        };
        for info in self.domain.children("sysinfo") {
            match info.attr("type") {
                Some("smbios") | None if shown => self.tables(info)?,
                // libvirt too keeps the tables and shows them only if <os> asks.
                Some("smbios") | None => info.pass_over(),
                Some("fwcfg") => self.firmware_files(info)?,
                Some(other) => return refuse(format!("<sysinfo type='{other}'> is not supported")),
            }
        }
        Ok(())
    }

    fn tables(&mut self, info: View<'_>) -> Result<()> {
        for (element, kind, order) in TABLES {
            let tables = info.children(element);
            if tables.len() > 1 {
                return refuse(format!("QEMU takes one <{element}> in <sysinfo>"));
            }
            for table in tables {
                let mut option = format!("type={kind}");
                for (name, value) in said(table, order)? {
                    option.push_str(&format!(",{name}={}", escape_comma(&value)));
                }
                // libvirt too knows no empty entries, and no tables without entries.
                if option.contains(',') {
                    self.arg("-smbios", option);
                }
            }
        }
        if let Some(strings) = info.child("oemStrings") {
            let mut option = "type=11".to_owned();
            for entry in strings.children("entry") {
                option.push_str(&format!(",value={}", escape_comma(&entry.text())));
            }
            self.arg("-smbios", option);
        }
        Ok(())
    }

    fn firmware_files(&mut self, info: View<'_>) -> Result<()> {
        for entry in info.children("entry") {
            let name = escape_comma(entry.need("name")?);
            match entry.attr("file") {
                Some(file) => {
                    self.out.files.push(PathBuf::from(file));
                    self.arg("-fw_cfg", format!("name={name},file={}", escape_comma(file)));
                }
                None => {
                    let text = entry.text();
                    self.arg("-fw_cfg", format!("name={name},string={}", escape_comma(&text)));
                }
            }
        }
        Ok(())
    }
}

/// The entries that say something, in the order given.
fn said(table: View<'_>, order: &[&'static str]) -> Result<Vec<(&'static str, String)>> {
    let mut found = Vec::new();
    for entry in table.children("entry") {
        let name = entry.need("name")?;
        let Some(at) = order.iter().position(|known| *known == name) else {
            return refuse(format!("<sysinfo>: <{}> has no '{name}'", table.name()));
        };
        found.push((at, entry.text()));
    }
    found.retain(|(_, value)| !value.is_empty());
    found.sort_by_key(|(at, _)| *at);
    Ok(found.into_iter().filter_map(|(at, text)| Some((*order.get(at)?, text))).collect())
}
