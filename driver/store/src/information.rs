//! `snapshotdata-NAME.xl`: what whoever works with xl has to know of a snapshot, in the layout that
//! Xen's developers were asked for in 2014.
//!
//! ```text
//!   snapshot_name="before"
//!   snapshot_creationtime="1397207577"
//!   snapshot_save="/srv/vm.before.save"
//! ```
//!
//! `snapshot_save` is there if memory was saved, for `xl restore`. The syntax is that of xl's own
//! configurations (`libxlu_cfg_l.l`): settings in lines, strings in quotes of either kind. Nothing
//! but strings has a meaning here; settings that are not known are passed over.
//!
//! One stands beside the record of each moment, and says nothing that the record does not. One that
//! stands alone was put there by somebody, to be made a moment.

use std::path::{Path, PathBuf};

use virtsnap_xml::snapshot::{Definition, Memory};

const PREFIX: &str = "snapshotdata-";
const EXTENSION: &str = "xl";
/// The longest that is read.
pub(crate) const MAX_BYTES: u64 = 64 << 10;

const NAME: &str = "snapshot_name";
const CREATED: &str = "snapshot_creationtime";
const SAVE: &str = "snapshot_save";

/// What such a file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Information {
    pub name: String,
    /// Seconds since the epoch.
    pub creation_time: i64,
    /// The guest's memory.
    pub save: Option<PathBuf>,
}

/// Of the moment whose record is `record`.
pub(crate) fn beside(record: &Path) -> Option<PathBuf> {
    let stem = record.file_stem()?.to_str()?;
    Some(record.with_file_name(format!("{PREFIX}{stem}.{EXTENSION}")))
}

/// A file of that name in the directory of moments is one of these.
pub(crate) fn is_information(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with(PREFIX) && path.extension().is_some_and(|extension| extension == EXTENSION)
}

pub(crate) fn text(moment: &Definition) -> String {
    let mut text = setting(NAME, &moment.name);
    text.push_str(&setting(CREATED, &moment.creation_time.to_string()));
    if let Memory::External { file } = &moment.memory {
        text.push_str(&setting(SAVE, file));
    }
    text
}

fn setting(key: &str, value: &str) -> String {
    let mut quoted = String::new();
    for c in value.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c => quoted.push(c),
        }
    }
    format!("{key}=\"{quoted}\"\n")
}

/// # Errors
/// What is wrong, and in which line.
pub(crate) fn parse(text: &str) -> Result<Information, String> {
    let (mut name, mut created, mut save) = (None, None, None);
    for (number, line) in text.lines().enumerate() {
        let wrong = |what: &str| format!("line {}: {what}", number + 1);
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, value) = line.split_once('=').ok_or_else(|| wrong("it is no setting"))?;
        let place = match key.trim() {
            NAME => &mut name,
            CREATED => &mut created,
            SAVE => &mut save,
            _ => continue,
        };
        let value = unquoted(value.trim()).map_err(wrong)?;
        if place.replace(value).is_some() {
            return Err(wrong("it is said twice"));
        }
    }
    let missing = |key: &str| format!("it does not say {key}");
    let name = name.filter(|name| !name.is_empty()).ok_or_else(|| missing(NAME))?;
    let created = created.ok_or_else(|| missing(CREATED))?;
    let creation_time =
        created.parse().map_err(|_| format!("{CREATED} is not a number of seconds"))?;
    let save = save.filter(|save| !save.is_empty()).map(PathBuf::from);
    if save.as_ref().is_some_and(|save| !save.is_absolute()) {
        return Err(format!("{SAVE} is not an absolute path"));
    }
    Ok(Information { name, creation_time, save })
}

fn unquoted(text: &str) -> Result<String, &'static str> {
    let mut chars = text.chars();
    let quote = chars.next().filter(|c| matches!(c, '"' | '\'')).ok_or("it is not in quotes")?;
    let mut value = String::new();
    while let Some(c) = chars.next() {
        if c == quote {
            let rest = chars.as_str().trim_start();
            let ends = rest.is_empty() || rest.starts_with(['#', ';']);
            return if ends { Ok(value) } else { Err("there is more after the string") };
        }
        if c != '\\' {
            value.push(c);
            continue;
        }
        value.push(match chars.next() {
            Some(c @ ('"' | '\'' | '\\')) => c,
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            _ => return Err("what is after the backslash is not known"),
        });
    }
    Err("the string does not end")
}

/// What the fuzz targets drive: the reader, and the writer it has to agree with.
#[doc(hidden)]
pub fn fuzz(text: &str) -> bool {
    let Ok(read) = parse(text) else { return false };
    let mut written = setting(NAME, &read.name);
    written.push_str(&setting(CREATED, &read.creation_time.to_string()));
    if let Some(save) = read.save.as_ref().and_then(|save| save.to_str()) {
        written.push_str(&setting(SAVE, save));
    }
    assert_eq!(parse(&written).as_ref(), Ok(&read), "{written}");
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtsnap_xml::snapshot::State;

    use super::*;

    /// As in the proposal.
    const EXAMPLE: &str = "snapshot_name=\"1397207577\"\nsnapshot_creationtime=\"1397207577\"\n\
        snapshot_save=\"/var/lib/xen/snapshots/5c84adcc-bd59-788a-96d2-195f9b599cfe/1397207577.save\"\n";

    fn moment(name: &str, memory: Memory) -> Definition {
        let mut moment = Definition::new(name, State::Running, 1_397_207_577);
        moment.memory = memory;
        moment
    }

    #[test]
    fn the_proposals_own_example() {
        let file = "/var/lib/xen/snapshots/5c84adcc-bd59-788a-96d2-195f9b599cfe/1397207577.save";
        let memory = Memory::External { file: file.to_owned() };
        assert_eq!(text(&moment("1397207577", memory)), EXAMPLE);
        let read = parse(EXAMPLE).unwrap();
        assert_eq!((read.name.as_str(), read.creation_time), ("1397207577", 1_397_207_577));
        assert_eq!(read.save.as_deref(), Some(Path::new(file)));
    }

    #[test]
    fn people_write_it_in_other_ways() {
        let text =
            "# mine\n\n name = 'x'\nsnapshot_creationtime = '7' # then\nsnapshot_name='a\\'b'";
        let read = parse(text).unwrap();
        assert_eq!(read, Information { name: "a'b".to_owned(), creation_time: 7, save: None });
    }

    #[test]
    fn what_is_not_one_is_refused_by_its_line() {
        let with = |line: &str| format!("snapshot_name='a'\nsnapshot_creationtime='7'\n{line}");
        for (text, why) in [
            (String::new(), "snapshot_name"),
            ("snapshot_name='a'".to_owned(), "snapshot_creationtime"),
            ("snapshot_name=''\nsnapshot_creationtime='7'".to_owned(), "snapshot_name"),
            ("snapshot_name='a'\nsnapshot_creationtime='now'".to_owned(), "seconds"),
            (with("what is this"), "line 3: it is no setting"),
            (with("snapshot_name='b'"), "line 3: it is said twice"),
            (with("snapshot_save=/m"), "line 3: it is not in quotes"),
            (with("snapshot_save='/m"), "does not end"),
            (with("snapshot_save='/m' + 'n'"), "more after"),
            (with("snapshot_save='\\x41'"), "backslash"),
            (with("snapshot_save='m'"), "absolute"),
        ] {
            let told = parse(&text).unwrap_err();
            assert!(told.contains(why), "{text}: {told}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(name in "[^\0-\u{8}\u{b}\u{c}\u{e}-\u{1f}]{1,40}", file in "/[ -~]*") {
            let memory = Memory::External { file: file.clone() };
            let read = parse(&text(&moment(&name, memory))).unwrap();
            prop_assert_eq!(read.name, name);
            prop_assert_eq!(read.save, Some(PathBuf::from(file)));
        }

        #[test]
        fn nothing_is_read_badly(text in "(snapshot_(name|save|creationtime) *= *['\"\\\\a7/ ]{0,8}\n|\\PC){0,20}") {
            let _ = parse(&text);
        }
    }
}
