//! The matrix: domain state × memory × disk kinds × storage × flags, and what is to be expected of
//! each cell, by rules. The test `matrix` holds a real daemon and QEMU against them, and
//! `docs/feature-table.md` counts them.

use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Off,
    Running,
    Paused,
    Transient,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Memory {
    Unsaid,
    No,
    Internal,
    External,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Unsaid,
    Internal,
    External,
    No,
    Manual,
}

/// What the first of the two disks is; the second is a qcow2 file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Storage {
    Qcow2File,
    RawFile,
    /// Raw, on a loop device.
    BlockDevice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flag {
    None,
    DiskOnly,
    Live,
    Halt,
    NoMetadata,
}

pub const STATES: [State; 4] = [State::Off, State::Running, State::Paused, State::Transient];
pub const STORAGE: [Storage; 3] = [Storage::Qcow2File, Storage::RawFile, Storage::BlockDevice];
pub const FLAGS: [Flag; 5] = [Flag::None, Flag::DiskOnly, Flag::Live, Flag::Halt, Flag::NoMetadata];
const MEMORY: [Memory; 4] = [Memory::Unsaid, Memory::No, Memory::Internal, Memory::External];
const KINDS: [[Kind; 2]; 10] = [
    [Kind::Unsaid, Kind::Unsaid],
    [Kind::Internal, Kind::Internal],
    [Kind::External, Kind::External],
    [Kind::Internal, Kind::External],
    [Kind::External, Kind::Internal],
    [Kind::External, Kind::No],
    [Kind::Internal, Kind::No],
    [Kind::External, Kind::Manual],
    [Kind::Internal, Kind::Manual],
    [Kind::No, Kind::No],
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    pub state: State,
    pub memory: Memory,
    pub kinds: [Kind; 2],
    pub storage: Storage,
    pub flag: Flag,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { state, memory, kinds: [vda, vdb], storage, flag } = self;
        write!(f, "{state:?}, memory {memory:?}, {vda:?} {storage:?} + {vdb:?}, {flag:?}")
    }
}

/// Every cell. Live, halt and no metadata are about memory and what follows, not about storage.
pub fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for storage in STORAGE {
        for flag in FLAGS {
            let of_storage = matches!(flag, Flag::None | Flag::DiskOnly);
            if !of_storage && storage != Storage::Qcow2File {
                continue;
            }
            for state in STATES {
                for memory in MEMORY {
                    for kinds in KINDS {
                        cells.push(Cell { state, memory, kinds, storage, flag });
                    }
                }
            }
        }
    }
    cells
}

/// What a snapshot that was taken comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Which disks go back on a revert.
    pub disks: [bool; 2],
    pub memory: bool,
}

// libvirt's numbers.
pub const XML_ERROR: u32 = 27;
pub const OPERATION_INVALID: u32 = 55;
pub const CONFIG_UNSUPPORTED: u32 = 67;
pub const OPERATION_UNSUPPORTED: u32 = 84;

impl Cell {
    pub fn is_active(&self) -> bool {
        self.state != State::Off
    }

    /// Where a disk's snapshot goes when all has been said.
    fn place(&self, disk: usize) -> Kind {
        let asked = self.kinds[disk];
        if asked != Kind::Unsaid {
            return asked;
        }
        let is_raw = disk == 0 && self.storage != Storage::Qcow2File;
        if self.goes_outside() || is_raw { Kind::External } else { Kind::Internal }
    }

    /// Are disks external of which nothing is said?
    fn goes_outside(&self) -> bool {
        let disk_only = self.flag == Flag::DiskOnly;
        match self.is_active() {
            false => disk_only || self.kinds.contains(&Kind::External),
            true => disk_only || self.memory == Memory::External,
        }
    }

    /// # Errors
    /// libvirt's number of the refusal.
    pub fn expected(&self) -> Result<Taken, u32> {
        let disk_only = self.flag == Flag::DiskOnly;
        let asks_memory = matches!(self.memory, Memory::Internal | Memory::External);
        if self.flag == Flag::Halt && self.state == State::Transient {
            return Err(OPERATION_INVALID);
        }
        if asks_memory && (disk_only || !self.is_active()) {
            return Err(XML_ERROR);
        }
        if self.flag == Flag::Live && !(self.is_active() && self.memory == Memory::External) {
            return Err(OPERATION_UNSUPPORTED);
        }
        let places = [self.place(0), self.place(1)];
        // No name can be made up for an overlay beside a device. One that goes outside only because
        // nothing fits inside goes beside the other disk.
        let unnamed = self.kinds[0] == Kind::Unsaid && self.goes_outside();
        if unnamed && self.storage == Storage::BlockDevice {
            return Err(CONFIG_UNSUPPORTED);
        }
        let disks = places.map(|place| matches!(place, Kind::Internal | Kind::External));
        if !asks_memory && disks == [false, false] {
            let without = self.is_active() && !disk_only && self.memory == Memory::No;
            return Err(if without { OPERATION_UNSUPPORTED } else { CONFIG_UNSUPPORTED });
        }
        if places[0] == Kind::Internal && self.storage != Storage::Qcow2File {
            return Err(CONFIG_UNSUPPORTED);
        }
        let memory = self.is_active() && !disk_only && self.memory != Memory::No;
        Ok(Taken { disks, memory })
    }
}

/// For the document: of each storage and state, how many are taken and how many refused.
pub fn counts() -> Vec<(String, usize, usize)> {
    let mut counts: Vec<(String, usize, usize)> = Vec::new();
    for cell in cells() {
        let group = format!("{:?}, {:?}", cell.storage, cell.state);
        if counts.last().is_none_or(|(last, ..)| *last != group) {
            match counts.iter().position(|(known, ..)| *known == group) {
                Some(at) => {
                    let known = counts.remove(at);
                    counts.push(known);
                }
                None => counts.push((group, 0, 0)),
            }
        }
        if let Some((_, taken, refused)) = counts.last_mut() {
            match cell.expected() {
                Ok(_) => *taken += 1,
                Err(_) => *refused += 1,
            }
        }
    }
    counts.sort();
    counts
}
