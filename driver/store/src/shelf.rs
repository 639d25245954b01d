//! The directory of one domain: its definition, its moments, and what we know of it besides.
//!
//! At most one moment is marked current, whatever happens: the old mark is taken away before the
//! new one is written. A moment that others name as parent is removed after they were rewritten.
//! What xl's users read of a moment is written after it and removed before it, so that what stands
//! alone is never ours.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use virtsnap_engine::book::Book;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::moment::MomentList;
use virtsnap_engine::plan::MomentChange;
use virtsnap_xml::domain;
use virtsnap_xml::element::{Element, MAX_BYTES};
use virtsnap_xml::snapshot::Definition;

use crate::atomic::Disk;
use crate::information::{self, Information};
use crate::names::file_name;
use crate::v1::{self, OwnV1, Versioned};
use crate::{BadFile, StoredDomain, atomic, failed};

const CONFIG: &str = "domain.xml";
const OWN: &str = "domain.json";
const MOMENTS: &str = "moments";
const JOURNAL: &str = "journal.jsonl";
const MANAGED_SAVE: &str = "managed.save";
/// Added to the name of a file that could not be read, before another takes its place.
const ASIDE: &str = ".unreadable";

/// What is remembered of a domain's directory, so that a change need not read it all.
#[derive(Debug)]
pub(crate) struct Shelf {
    disk: Disk,
    directory: PathBuf,
    uuid: Uuid,
    /// Beside each moment stands what xl's users read of it.
    informs: bool,
    own: OwnV1,
    own_is_bad: bool,
    /// A write of it failed, and may have changed it all the same.
    own_is_unsure: bool,
    /// The persistent definition cannot be read: what belongs to the domain is not known.
    config_is_bad: bool,
    /// Some moment cannot be read.
    moments_are_bad: bool,
    /// Each readable moment's file.
    files: BTreeMap<String, PathBuf>,
    current: Option<String>,
    has_config: bool,
    /// Its directories are there, durably.
    is_prepared: bool,
}

impl Shelf {
    /// Reads what is there. None: the domain cannot be listed, for what `bad` says.
    pub(crate) fn read(
        disk: &Disk,
        (directory, informs): (PathBuf, bool),
        uuid: Uuid,
        bad: &mut Vec<BadFile>,
    ) -> Result<(Self, Option<StoredDomain>)> {
        let mut shelf = Self {
            disk: disk.clone(),
            directory,
            uuid,
            informs,
            own: OwnV1::default(),
            own_is_bad: false,
            own_is_unsure: false,
            config_is_bad: false,
            moments_are_bad: false,
            files: BTreeMap::new(),
            current: None,
            has_config: false,
            is_prepared: false,
        };
        shelf.read_own(bad)?;
        let config = shelf.read_config(bad)?;
        let mut moments = shelf.read_moments(bad)?;
        shelf.complete_information(&moments);
        shelf.has_config = config.is_some();
        if let Some(name) = config.as_ref().and_then(domain::name) {
            moments.iter_mut().for_each(|moment| finish_rename(moment, uuid, &name));
        }
        if shelf.config_is_bad {
            return Ok((shelf, None));
        }
        let name = config.as_ref().and_then(domain::name).unwrap_or_else(|| shelf.own.name.clone());
        if name.is_empty() {
            if !moments.is_empty() {
                let what = "it says nowhere what the domain's name is".to_owned();
                bad.push(BadFile { path: shelf.directory.clone(), what });
            }
            return Ok((shelf, None));
        }
        let book = Book {
            uuid,
            name,
            config,
            moments: MomentList::load(moments, shelf.current.clone()),
            owned: shelf.own.owned.clone(),
            has_managed_save: shelf.managed_save().exists(),
            has_unreadable_moments: shelf.moments_are_bad,
            left: None,
        };
        let autostart = shelf.has_config && shelf.own.autostart;
        Ok((shelf, Some(StoredDomain { book, autostart })))
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.directory.join(JOURNAL)
    }

    pub(crate) fn managed_save(&self) -> PathBuf {
        self.directory.join(MANAGED_SAVE)
    }

    /// Refused while the definition cannot be read: the domain is not listed, so whoever writes
    /// or removes here means another one of the same uuid and does not know what is there.
    pub(crate) fn check_known(&self) -> Result<()> {
        if !self.config_is_bad {
            return Ok(());
        }
        Err(Error::new(
            Condition::OperationFailed,
            format!(
                "'{}' cannot be read, and nothing of its domain is touched: repair it, or move \
                 its directory away, and restart the daemon",
                self.directory.join(CONFIG).display()
            ),
        ))
    }

    /// The directory is there for what is to be written.
    pub(crate) fn prepare(&mut self) -> Result<()> {
        self.check_known()?;
        if self.is_prepared {
            return Ok(());
        }
        let made = self.disk.make_directory(&self.directory);
        made.and_then(|()| self.disk.make_directory(&self.directory.join(MOMENTS)))
            .map_err(failed("make the directory", &self.directory))?;
        self.is_prepared = true;
        Ok(())
    }

    /// What cannot be read back is not written: the domain would be gone at the next start.
    pub(crate) fn set_config(&mut self, config: &Element) -> Result<()> {
        self.prepare()?;
        let text = config.to_string();
        let read = Element::parse(&text).map_err(|err| err.to_string());
        read.and_then(|read| check_config(&read, self.uuid)).map_err(|what| {
            let message = format!("the definition cannot be stored: {what}");
            Error::new(Condition::ConfigUnsupported, message)
        })?;
        if !self.has_config && self.own.autostart {
            // Of a definition that is gone.
            self.change_own(|own| own.autostart = false)?;
        }
        self.write(&self.directory.join(CONFIG), &text)?;
        self.has_config = true;
        Ok(())
    }

    /// The name is known without it, and with it goes autostart, which says nothing without.
    pub(crate) fn remove_config(&mut self) -> Result<()> {
        self.check_known()?;
        let path = self.directory.join(CONFIG);
        if exists(&path)? {
            let config = read_element(&path).ok();
            if let Some(name) = config.as_ref().and_then(domain::name) {
                self.change_own(|own| own.name = name)?;
            }
        }
        self.disk.remove(&path).map_err(failed("remove", &path))?;
        self.has_config = false;
        Ok(())
    }

    /// Changes what we know besides; no change is no write.
    pub(crate) fn change_own(&mut self, change: impl FnOnce(&mut OwnV1)) -> Result<()> {
        let mut own = self.own.clone();
        change(&mut own);
        if own == self.own && !self.own_is_bad && !self.own_is_unsure {
            return Ok(());
        }
        self.prepare()?;
        let path = self.directory.join(OWN);
        let text = serde_json::to_string_pretty(&Versioned::new(&own)).map_err(|err| {
            let message = format!("'{}' cannot hold the domain's files", path.display());
            Error::new(Condition::Internal, message).caused_by(err)
        })?;
        if self.own_is_bad {
            self.set_aside(&path)?;
            self.own_is_bad = false;
        }
        self.own_is_unsure = true;
        self.write(&path, &(text + "\n"))?;
        self.own_is_unsure = false;
        self.own = own;
        Ok(())
    }

    /// Doing it twice is doing it once.
    pub(crate) fn record(&mut self, change: &MomentChange) -> Result<()> {
        self.prepare()?;
        let written = |name: &str| change.write.iter().any(|def| def.name == name);
        if let Some(old) = self.current.clone()
            && change.current.as_ref() != Some(&old)
        {
            self.mark(&old, false)?;
            self.current = None;
        }
        for def in &change.write {
            let current = change.current.as_ref() == Some(&def.name);
            self.write_moment(def, current)?;
            if current {
                self.current = Some(def.name.clone());
            }
        }
        if let Some(new) = &change.current
            && self.current.as_ref() != Some(new)
            && !written(new)
        {
            self.mark(new, true)?;
            self.current = Some(new.clone());
        }
        // A name that is both forgotten and written was written anew.
        for name in change.forget.iter().filter(|name| !written(name)) {
            if let Some(path) = self.files.get(name) {
                self.stop_informing(path)?;
                self.disk.remove(path).map_err(failed("remove", path))?;
                self.files.remove(name);
            }
        }
        Ok(())
    }

    fn write_moment(&mut self, def: &Definition, current: bool) -> Result<()> {
        let path = self.directory.join(MOMENTS).join(file_name(&def.name));
        let owner = self.files.iter().find(|(_, file)| **file == path).map(|(name, _)| name);
        match owner {
            Some(name) if *name == def.name => {}
            Some(name) => {
                return Err(Error::new(
                    Condition::OperationFailed,
                    format!(
                        "'{}', where snapshot '{}' would be recorded, holds snapshot '{name}': \
                         rename the file",
                        path.display(),
                        def.name
                    ),
                ));
            }
            None if path.exists() => self.set_aside(&path)?,
            None => {}
        }
        let written = self.write(&path, &stored_text(def, current)?);
        if written.is_err() {
            // It may have changed the file all the same, which is ours then.
            if path.exists() {
                self.files.entry(def.name.clone()).or_insert(path);
            }
            return written;
        }
        // The moment had been read from a file of another name.
        if let Some(other) = self.files.insert(def.name.clone(), path.clone())
            && other != path
        {
            self.stop_informing(&other)?;
            self.disk.remove(&other).map_err(failed("remove", &other))?;
        }
        self.inform(def, &path)
    }

    /// Writes what xl's users read of a moment, unless it stands there.
    fn inform(&self, def: &Definition, record: &Path) -> Result<()> {
        let Some(path) = information::beside(record).filter(|_| self.informs) else {
            return Ok(());
        };
        let text = information::text(def);
        let stands = read_text(&path).is_ok_and(|old| old == text);
        if stands { Ok(()) } else { self.write(&path, &text) }
    }

    fn stop_informing(&self, record: &Path) -> Result<()> {
        match information::beside(record).filter(|_| self.informs) {
            Some(path) => self.disk.remove(&path).map_err(failed("remove", &path)),
            None => Ok(()),
        }
    }

    /// After a crash that came between. The record is what counts.
    fn complete_information(&self, moments: &[Definition]) {
        for def in moments {
            let Some(record) = self.files.get(&def.name) else { continue };
            if let Err(err) = self.inform(def, record) {
                tracing::warn!("{}", err.chain());
            }
        }
    }

    /// What somebody put here for snapshots that are none of ours, and in which file.
    pub(crate) fn strays(&self, elsewhere: Option<PathBuf>) -> Result<Vec<(PathBuf, Information)>> {
        if !self.informs {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for directory in [self.directory.join(MOMENTS)].into_iter().chain(elsewhere) {
            let files = files(&directory).map_err(failed("read the directory", &directory))?;
            found.extend(files.into_iter().filter(|path| self.is_stray(path)));
        }
        let mut strays = Vec::new();
        for path in found {
            match read_information(&path) {
                Ok(stray) if self.files.contains_key(&stray.name) => {
                    tracing::warn!("'{}' says it is of '{}' too", path.display(), stray.name);
                }
                Ok(stray) => strays.push((path, stray)),
                Err(what) => tracing::warn!("'{}' is left alone: {what}", path.display()),
            }
        }
        Ok(strays)
    }

    fn is_stray(&self, path: &Path) -> bool {
        let is_beside = |record: &PathBuf| information::beside(record).is_some_and(|at| at == path);
        information::is_information(path) && !self.files.values().any(is_beside)
    }

    /// Its moment is recorded, and has information of its own.
    pub(crate) fn took_in(&self, stray: &Path) -> Result<()> {
        match self.is_stray(stray) {
            true => self.disk.remove(stray).map_err(failed("remove", stray)),
            false => Ok(()),
        }
    }

    /// Rewrites a moment with its mark; one that is not there needs none.
    fn mark(&mut self, name: &str, current: bool) -> Result<()> {
        let Some(path) = self.files.get(name).cloned() else { return Ok(()) };
        let (def, _) = read_moment(&path).map_err(|what| {
            let message = format!("'{}' cannot be read: {what}", path.display());
            Error::new(Condition::OperationFailed, message)
        })?;
        self.write(&path, &stored_text(&def, current)?)
    }

    /// Keeps a moment's record that cannot be read, under its own name: as one that was found so.
    pub(crate) fn keep_unreadable(&mut self, file: &OsStr, bytes: &[u8]) -> Result<()> {
        self.prepare()?;
        self.moments_are_bad = true;
        let path = self.directory.join(MOMENTS).join(file);
        self.disk.replace(&path, bytes).map_err(failed("write", &path))
    }

    fn set_aside(&self, path: &Path) -> Result<()> {
        let mut aside = path.as_os_str().to_owned();
        aside.push(ASIDE);
        let aside = PathBuf::from(aside);
        tracing::warn!("'{}' cannot be read: it is now '{}'", path.display(), aside.display());
        self.disk.rename(path, &aside).map_err(failed("set aside", path))
    }

    fn write(&self, path: &Path, text: &str) -> Result<()> {
        self.disk.replace(path, text.as_bytes()).map_err(failed("write", path))
    }

    fn read_own(&mut self, bad: &mut Vec<BadFile>) -> Result<()> {
        let path = self.directory.join(OWN);
        let Some(text) = exists(&path)?.then(|| read_text(&path)) else { return Ok(()) };
        match text.and_then(|text| v1::from_json(text.as_bytes())) {
            Ok(own) => self.own = own,
            Err(what) => {
                self.own_is_bad = true;
                bad.push(BadFile { path, what });
            }
        }
        Ok(())
    }

    fn read_config(&mut self, bad: &mut Vec<BadFile>) -> Result<Option<Element>> {
        let path = self.directory.join(CONFIG);
        if !exists(&path)? {
            return Ok(None);
        }
        let read = read_element(&path)
            .and_then(|config| check_config(&config, self.uuid).map(|()| config));
        match read {
            Ok(config) => Ok(Some(config)),
            Err(what) => {
                self.config_is_bad = true;
                bad.push(BadFile { path, what });
                Ok(None)
            }
        }
    }

    fn read_moments(&mut self, bad: &mut Vec<BadFile>) -> Result<Vec<Definition>> {
        let directory = self.directory.join(MOMENTS);
        let mut moments = Vec::new();
        for path in files(&directory).map_err(failed("read the directory", &directory))? {
            if path.extension().is_none_or(|extension| extension != "xml") {
                continue;
            }
            match read_moment(&path) {
                Ok((def, _)) if self.files.contains_key(&def.name) => {
                    let what = format!("snapshot '{}' stands in another file too", def.name);
                    bad.push(BadFile { path, what });
                    self.moments_are_bad = true;
                }
                Ok((def, current)) => {
                    if current && self.current.is_some() {
                        let what = format!("'{}' is a second current snapshot", def.name);
                        bad.push(BadFile { path: path.clone(), what });
                    } else if current {
                        self.current = Some(def.name.clone());
                    }
                    self.files.insert(def.name.clone(), path);
                    moments.push(def);
                }
                Err(what) => {
                    bad.push(BadFile { path, what });
                    self.moments_are_bad = true;
                }
            }
        }
        Ok(moments)
    }
}

/// Ordinary files of a directory that need not exist, in the order of their names.
fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(err) => return Err(err),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if !atomic::is_leftover(&entry.file_name()) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn exists(path: &Path) -> Result<bool> {
    path.try_exists().map_err(failed("look for", path))
}

fn read_text(path: &Path) -> std::result::Result<String, String> {
    let size = fs::metadata(path).map_err(|err| err.to_string())?.len();
    if size > MAX_BYTES as u64 {
        return Err(format!("it has {size} bytes"));
    }
    // A pipe would never end.
    match fs::metadata(path) {
        Ok(meta) if meta.is_file() => fs::read_to_string(path).map_err(|err| err.to_string()),
        Ok(_) => Err("it is no ordinary file".to_owned()),
        Err(err) => Err(err.to_string()),
    }
}

fn read_information(path: &Path) -> std::result::Result<Information, String> {
    let size = fs::metadata(path).map_err(|err| err.to_string())?.len();
    if size > information::MAX_BYTES {
        return Err(format!("it has {size} bytes"));
    }
    information::parse(&read_text(path)?)
}

fn read_element(path: &Path) -> std::result::Result<Element, String> {
    Element::parse(&read_text(path)?).map_err(|err| err.to_string())
}

fn check_config(config: &Element, uuid: Uuid) -> std::result::Result<(), String> {
    if config.name() != "domain" || domain::name(config).is_none() {
        return Err("it is not a <domain> with a name".to_owned());
    }
    if domain::uuid(config) != Some(uuid) {
        return Err(format!("its uuid is not {uuid}, that of its directory"));
    }
    Ok(())
}

fn read_moment(path: &Path) -> std::result::Result<(Definition, bool), String> {
    Definition::parse_stored(&read_element(path)?).map_err(|err| err.to_string())
}

/// What cannot be read back is not written.
fn stored_text(def: &Definition, current: bool) -> Result<String> {
    let text = def.to_stored_element(current).to_string();
    let read = Element::parse(&text).map_err(|err| err.to_string());
    match read.and_then(|root| Definition::parse_stored(&root).map_err(|err| err.to_string())) {
        Ok(_) => Ok(text),
        Err(what) => Err(Error::snapshot(
            Condition::Internal,
            format!("snapshot '{}' cannot be recorded: {what}", def.name),
        )),
    }
}

/// A rename is done when the definition has the new name. What it did not come to write is read as
/// if it had.
fn finish_rename(moment: &mut Definition, uuid: Uuid, name: &str) {
    let definitions = moment.domain.iter_mut().chain(&mut moment.inactive_domain);
    for definition in definitions.filter(|definition| domain::uuid(definition) == Some(uuid)) {
        if domain::name(definition).as_deref() != Some(name) {
            definition.child_or_insert("name").set_text(name);
        }
    }
}
