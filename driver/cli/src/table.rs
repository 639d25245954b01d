//! What is printed: tables and trees.

use chrono::{DateTime, Local};
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::{Definition, Memory};

/// Where the daemon puts what images hold.
const IMAGES: &str = "urn:virtsnap:images:1";

const COLUMNS: [&str; 5] = ["ID", "TAG", "VM SIZE", "DATE", "VM CLOCK"];

/// The snapshots inside the images, from a domain's XML.
pub(crate) fn images(xml: &str) -> Result<String, String> {
    let mut text = String::new();
    for image in inside_images(xml)?.elements() {
        let disk = image.attr("disk").unwrap_or("no disk now");
        text.push_str(&format!("{} ({disk})\n", image.attr("file").unwrap_or_default()));
        let row = |cells: [String; 5], known: &str| {
            let [id, tag, size, date, clock] = cells;
            [id, tag, size, date, clock, known.to_owned()]
        };
        let mut rows = vec![row(COLUMNS.map(str::to_owned), "KNOWN")];
        rows.extend(image.elements().map(|one| {
            let known = one.attr("known").unwrap_or_default();
            row(cells(one), known)
        }));
        text.push_str(&aligned(&rows));
    }
    Ok(text)
}

/// The same of those images that disks are on, by disk.
pub(crate) fn disk_snapshots(xml: &str) -> Result<String, String> {
    let row = |disk: &str, cells: [String; 5]| {
        let [id, tag, size, date, clock] = cells;
        [disk.to_owned(), id, tag, size, date, clock]
    };
    let mut rows = vec![row("DEVICE", COLUMNS.map(str::to_owned))];
    for image in inside_images(xml)?.elements() {
        let Some(disk) = image.attr("disk") else { continue };
        rows.extend(image.elements().map(|one| row(disk, cells(one))));
    }
    Ok(aligned(&rows))
}

fn inside_images(xml: &str) -> Result<Element, String> {
    let domain = Element::parse(xml).map_err(|err| err.to_string())?;
    let list = domain::metadata(&domain, IMAGES);
    list.ok_or_else(|| "the daemon does not tell; it is not virtsnapd".to_owned())
}

fn cells(snapshot: &Element) -> [String; 5] {
    let said = |name: &str| snapshot.attr(name).unwrap_or_default().to_owned();
    let number =
        |name: &str| -> u64 { snapshot.attr(name).and_then(|text| text.parse().ok()).unwrap_or(0) };
    [
        said("id"),
        said("tag"),
        size(number("vmStateSize")),
        date(i64::try_from(number("date")).unwrap_or(i64::MAX)),
        clock(number("vmClock")),
    ]
}

/// The domain's snapshots, from their XML; with each, whether it is the current one.
pub(crate) fn snapshots(list: &[(String, bool)], tree: bool) -> Result<String, String> {
    let mut found = Vec::new();
    for (xml, is_current) in list {
        let root = Element::parse(xml).map_err(|err| err.to_string())?;
        found.push((Definition::parse(&root).map_err(|err| err.to_string())?, *is_current));
    }
    if tree {
        return Ok(branches(&found, None, ""));
    }
    let mut rows = vec![["NAME", "DATE", "STATE", "MEMORY", "PARENT", ""].map(str::to_owned)];
    for (moment, is_current) in &found {
        let memory = match moment.memory {
            Memory::No | Memory::Unsaid => "no",
            Memory::Internal { .. } => "internal",
            Memory::External { .. } => "external",
        };
        rows.push([
            moment.name.clone(),
            date(moment.creation_time),
            moment.state.as_str().to_owned(),
            memory.to_owned(),
            moment.parent.clone().unwrap_or_default(),
            if *is_current { "current".to_owned() } else { String::new() },
        ]);
    }
    Ok(aligned(&rows))
}

fn branches(found: &[(Definition, bool)], parent: Option<&str>, indent: &str) -> String {
    let mut text = String::new();
    // A parent that is not in the list makes its children roots; one above itself is never reached.
    let is_listed = |name: &str| found.iter().any(|(moment, _)| moment.name == name);
    for (moment, is_current) in found {
        let above = moment.parent.as_deref().filter(|name| is_listed(name));
        if above != parent {
            continue;
        }
        let mark = if *is_current { "  (current)" } else { "" };
        text.push_str(&format!("{indent}{}{mark}\n", moment.name));
        text.push_str(&branches(found, Some(&moment.name), &format!("{indent}  ")));
    }
    text
}

/// Columns as wide as what is in them.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("  {}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn date(seconds: i64) -> String {
    let at = DateTime::from_timestamp(seconds, 0).map(|at| at.with_timezone(&Local));
    at.map_or_else(|| seconds.to_string(), |at| at.format("%Y-%m-%d %H:%M:%S").to_string())
}

/// Hours, minutes, seconds, milliseconds, as qemu-img shows them.
fn clock(nanoseconds: u64) -> String {
    let milliseconds = nanoseconds / 1_000_000;
    let (seconds, rest) = (milliseconds / 1000, milliseconds % 1000);
    format!("{:02}:{:02}:{:02}.{rest:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut tenths = u128::from(bytes) * 10;
    while tenths >= 10240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    let unit = UNITS.get(unit).copied().unwrap_or_default();
    match (bytes, tenths % 10) {
        (0..1024, _) => format!("{bytes} {unit}"),
        (_, rest) => format!("{}.{rest} {unit}", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_images_hold_is_a_table() {
        let xml = "<domain><name>vm</name><metadata>\
                   <v:images xmlns:v='urn:virtsnap:images:1'><v:image disk='vda' file='/i/a'>\
                   <v:snapshot id='1' tag='my own' vmStateSize='1572864' date='0' \
                   vmClock='3661001000000' known='no'/></v:image></v:images></metadata></domain>";
        let text = images(xml).unwrap();
        assert!(text.starts_with("/i/a (vda)\n  ID  TAG     VM SIZE"), "{text}");
        assert!(text.contains("  1   my own  1.5 MiB  19") && text.contains("01:01:01.001  no\n"));
        let text = disk_snapshots(xml).unwrap();
        assert!(text.starts_with("  DEVICE  ID  TAG     VM SIZE"), "{text}");
        assert!(text.contains("  vda     1   my own  1.5 MiB  19"), "{text}");
        assert!(images("<domain><name>vm</name></domain>").is_err());
    }

    #[test]
    fn a_tree_is_indented() {
        let moment = |name: &str, parent: &str| {
            format!(
                "<domainsnapshot><name>{name}</name><state>shutoff</state>{parent}\
                 <creationTime>5</creationTime></domainsnapshot>"
            )
        };
        let below = |name: &str| format!("<parent><name>{name}</name></parent>");
        let list = [
            (moment("a", ""), false),
            (moment("b", &below("a")), true),
            (moment("c", &below("a")), false),
            (moment("d", &below("gone")), false),
        ];
        assert_eq!(snapshots(&list, true).unwrap(), "a\n  b  (current)\n  c\nd\n");
        assert!(snapshots(&list, false).unwrap().contains("b     "));
    }

    #[test]
    fn sizes_have_a_unit() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(u64::MAX), "16777215.9 TiB");
    }
}
