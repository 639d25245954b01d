//! Where the daemon listens, where it keeps things, and how it runs guests.
//!
//! System mode (root): `/etc/virtsnap/virtsnapd.toml`, `/run/virtsnap`, `/var/lib/virtsnap`.
//! Session mode (anyone else): the XDG directories. A missing configuration file is the defaults;
//! a key that is not known, or not of this hypervisor, is an error, so that nothing that somebody
//! wrote is silently ignored.
//!
//! A daemon has one hypervisor. Two may run on one host, one with each: told by `--hypervisor xen`,
//! the daemon reads `virtsnapd-xen.toml`, and on Xen it has directories of its own below.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use serde::Deserialize;
use virtsnap_engine::options::Meanwhile;
use virtsnap_qemu::hypervisor::MergeLimits;
use virtsnap_store::Store;
use virtsnap_xen::hypervisor::SNAPSHOTS;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    #[error("{} is not a valid configuration", .0.display())]
    Parse(PathBuf, #[source] toml::de::Error),
    #[error("{0} is not set; in session mode it says where the daemon keeps its {1}")]
    Environment(&'static str, &'static str),
    #[error("{what} must be an absolute path, not '{}'", .path.display())]
    Relative { what: &'static str, path: PathBuf },
    #[error("max_clients must be between 1 and {MOST_CLIENTS}, not {0}")]
    Clients(usize),
    #[error("--hypervisor says {asked}, {} says {said}", file.display())]
    Contradiction { asked: Hypervisor, said: Hypervisor, file: PathBuf },
    #[error("'{key}' means nothing to a daemon for {hypervisor}: remove it")]
    Foreign { key: &'static str, hypervisor: Hypervisor },
    #[error("Xen obeys root alone: run virtsnapd as root, and without --session")]
    XenSession,
}

/// Everything the daemon needs to know, with nothing left open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) hypervisor: Hypervisor,
    pub(crate) mode: Mode,
    pub(crate) listen: Listen,
    /// Holds the sockets, unless `libvirt` listening says otherwise, and what lives as long as
    /// a guest does.
    pub(crate) run_dir: PathBuf,
    /// Definitions, snapshots, journals.
    pub(crate) state_dir: PathBuf,
    pub(crate) guests: Guests,
    pub(crate) max_clients: usize,
    /// A filter as `RUST_LOG` takes it.
    pub(crate) log: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    System,
    Session,
}

/// Whose guests the daemon runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Hypervisor {
    #[default]
    Qemu,
    Xen,
}

impl Hypervisor {
    /// In the names of libvirt's directories.
    pub(crate) fn libvirt_name(self) -> &'static str {
        match self {
            Hypervisor::Qemu => "qemu",
            Hypervisor::Xen => "libxl",
        }
    }
}

impl std::fmt::Display for Hypervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Hypervisor::Qemu => "qemu",
            Hypervisor::Xen => "xen",
        })
    }
}

/// Which socket names are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Listen {
    /// `virtsnap-sock` in the run directory: clients say `qemu:///system?socket=PATH`.
    #[default]
    Private,
    /// Where `qemu:///system` looks first, `virtqemud-sock` in libvirt's own run directory, or
    /// `xen:///system`: `virtxend-sock`.
    Libvirt,
}

/// How guests are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Guests {
    pub(crate) emulator: Option<PathBuf>,
    /// User and group of the hypervisor's processes. None: in system mode `virtsnap-qemu` where
    /// there is such a user, else the daemon's own, without capabilities.
    pub(crate) user: Option<String>,
    pub(crate) group: Option<String>,
    /// Give images to that user while a guest runs, and back afterwards.
    pub(crate) dynamic_ownership: bool,
    pub(crate) sandbox: bool,
    /// How long a guest may take to freeze its file systems for a snapshot with QUIESCE.
    pub(crate) freeze_deadline: Duration,
    pub(crate) merges: MergeLimits,
    /// While its memory goes into a file.
    pub(crate) meanwhile: Meanwhile,
    /// On Xen: the host's bridge behind each network that definitions name; none: as libvirt makes
    /// its default network.
    pub(crate) network_bridges: Option<BTreeMap<String, String>>,
    /// On Xen: what of a domain's snapshots stands beside no image, by the domain's uuid.
    pub(crate) snapshot_dir: PathBuf,
}

/// The file as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    hypervisor: Option<Hypervisor>,
    listen: Option<Listen>,
    run_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    max_clients: Option<usize>,
    log: Option<String>,
    emulator: Option<PathBuf>,
    user: Option<String>,
    group: Option<String>,
    dynamic_ownership: Option<bool>,
    sandbox: Option<bool>,
    freeze_seconds: Option<u64>,
    /// A merge of layers that moves nothing for so long is ended.
    merge_stall_seconds: Option<u64>,
    /// A guest that writes so long without letting a merge come nearer to its end is held back.
    merge_window_seconds: Option<u64>,
    /// So often, each time more, before the merge is ended.
    merge_throttles: Option<u32>,
    /// What one merge moves at most; 0: no limit.
    merge_bytes_per_second: Option<u64>,
    /// Whether a running guest goes on while a snapshot puts its memory into a file.
    live_memory: Option<bool>,
    network_bridges: Option<BTreeMap<String, String>>,
    snapshot_dir: Option<PathBuf>,
}

impl File {
    /// Refuses what another hypervisor's daemon would have to be told.
    fn check_keys(&self, hypervisor: Hypervisor) -> Result<(), ConfigError> {
        let of_qemu = [
            ("emulator", self.emulator.is_some()),
            ("user", self.user.is_some()),
            ("group", self.group.is_some()),
            ("dynamic_ownership", self.dynamic_ownership.is_some()),
            ("sandbox", self.sandbox.is_some()),
            ("freeze_seconds", self.freeze_seconds.is_some()),
        ];
        let of_xen = [
            ("network_bridges", self.network_bridges.is_some()),
            ("snapshot_dir", self.snapshot_dir.is_some()),
        ];
        let foreign = match hypervisor {
            Hypervisor::Qemu => &of_xen[..],
            Hypervisor::Xen => &of_qemu[..],
        };
        match foreign.iter().find(|(_, is_said)| *is_said) {
            Some((key, _)) => Err(ConfigError::Foreign { key, hypervisor }),
            None => Ok(()),
        }
    }

    fn merges(&self) -> MergeLimits {
        let default = MergeLimits::default();
        let seconds =
            |said: Option<u64>, default| said.map_or(default, |s| Duration::from_secs(s.max(1)));
        MergeLimits {
            stall: seconds(self.merge_stall_seconds, default.stall),
            window: seconds(self.merge_window_seconds, default.window),
            throttles: self.merge_throttles.unwrap_or(default.throttles),
            speed: self.merge_bytes_per_second.unwrap_or(default.speed),
        }
    }
}

const DEFAULT_MAX_CLIENTS: usize = 500;
/// Each client takes a descriptor, and there are not more.
const MOST_CLIENTS: usize = 1 << 20;

impl Config {
    /// `file` as named on the command line must exist; the default one need not. `asked` is the
    /// command line's choice, too.
    pub(crate) fn load(
        mode: Mode,
        file: Option<&Path>,
        asked: Option<Hypervisor>,
    ) -> Result<Self, ConfigError> {
        let environment = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let (path, required) = match file {
            Some(path) => (path.to_owned(), true),
            None => {
                let places = Places::of(mode, asked.unwrap_or_default(), environment)?;
                (places.config_file, false)
            }
        };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(err) if !required && err.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(err) => return Err(ConfigError::Read(path, err)),
        };
        let file: File = match toml::from_str(&text) {
            Ok(file) => file,
            Err(err) => return Err(ConfigError::Parse(path, err)),
        };
        if let (Some(asked), Some(said)) = (asked, file.hypervisor)
            && asked != said
        {
            return Err(ConfigError::Contradiction { asked, said, file: path });
        }
        Self::new(mode, asked, environment, file)
    }

    fn new(
        mode: Mode,
        asked: Option<Hypervisor>,
        environment: impl Fn(&str) -> Option<PathBuf>,
        file: File,
    ) -> Result<Self, ConfigError> {
        let system = mode == Mode::System;
        let hypervisor = asked.or(file.hypervisor).unwrap_or_default();
        let places = Places::of(mode, hypervisor, environment)?;
        file.check_keys(hypervisor)?;
        let merges = file.merges();
        let config = Self {
            hypervisor,
            mode,
            listen: file.listen.unwrap_or_default(),
            run_dir: file.run_dir.unwrap_or(places.run_dir),
            state_dir: file.state_dir.unwrap_or(places.state_dir),
            guests: Guests {
                emulator: file.emulator,
                user: file.user,
                group: file.group,
                dynamic_ownership: file.dynamic_ownership.unwrap_or(system),
                sandbox: file.sandbox.unwrap_or(true),
                freeze_deadline: Duration::from_secs(file.freeze_seconds.unwrap_or(60)),
                merges,
                meanwhile: match file.live_memory {
                    None | Some(true) => Meanwhile::GoesOn,
                    Some(false) => Meanwhile::StandsStill,
                },
                network_bridges: file.network_bridges,
                snapshot_dir: file.snapshot_dir.unwrap_or_else(|| SNAPSHOTS.into()),
            },
            max_clients: file.max_clients.unwrap_or(DEFAULT_MAX_CLIENTS),
            log: file.log.unwrap_or_else(|| "info".to_owned()),
        };
        if !(1..=MOST_CLIENTS).contains(&config.max_clients) {
            return Err(ConfigError::Clients(config.max_clients));
        }
        for (what, path) in [
            ("run_dir", Some(&config.run_dir)),
            ("state_dir", Some(&config.state_dir)),
            ("emulator", config.guests.emulator.as_ref()),
            ("snapshot_dir", Some(&config.guests.snapshot_dir)),
        ] {
            if let Some(path) = path.filter(|path| !path.is_absolute()) {
                return Err(ConfigError::Relative { what, path: path.clone() });
            }
        }
        Ok(config)
    }

    /// Where definitions and snapshots are.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub(crate) fn open_store(&self) -> virtsnap_engine::error::Result<Store> {
        let store = Store::open(&self.state_dir)?;
        Ok(match self.hypervisor {
            Hypervisor::Qemu => store,
            Hypervisor::Xen => store.informing().with_strays_in(&self.guests.snapshot_dir),
        })
    }

    /// The read-write socket, and the read-only one where there is such a thing.
    pub(crate) fn sockets(&self) -> (PathBuf, Option<PathBuf>) {
        let libvirts = match self.hypervisor {
            Hypervisor::Qemu => "virtqemud-sock",
            Hypervisor::Xen => "virtxend-sock",
        };
        let (dir, name) = match (self.listen, self.mode) {
            (Listen::Private, _) => (self.run_dir.clone(), "virtsnap-sock"),
            (Listen::Libvirt, Mode::System) => ("/run/libvirt".into(), libvirts),
            (Listen::Libvirt, Mode::Session) => {
                let runtime = self.run_dir.parent().unwrap_or(&self.run_dir);
                (runtime.join("libvirt"), libvirts)
            }
        };
        let read_only = (self.mode == Mode::System).then(|| dir.join(format!("{name}-ro")));
        (dir.join(name), read_only)
    }
}

/// The default places of a mode.
struct Places {
    config_file: PathBuf,
    run_dir: PathBuf,
    state_dir: PathBuf,
}

impl Places {
    fn of(
        mode: Mode,
        hypervisor: Hypervisor,
        env: impl Fn(&str) -> Option<PathBuf>,
    ) -> Result<Self, ConfigError> {
        match (mode, hypervisor) {
            (Mode::System, Hypervisor::Qemu) => {
                return Ok(Self {
                    config_file: "/etc/virtsnap/virtsnapd.toml".into(),
                    run_dir: "/run/virtsnap".into(),
                    state_dir: "/var/lib/virtsnap".into(),
                });
            }
            (Mode::System, Hypervisor::Xen) => {
                return Ok(Self {
                    config_file: "/etc/virtsnap/virtsnapd-xen.toml".into(),
                    run_dir: "/run/virtsnap/xen".into(),
                    state_dir: "/var/lib/virtsnap/xen".into(),
                });
            }
            (Mode::Session, Hypervisor::Xen) => return Err(ConfigError::XenSession),
            (Mode::Session, Hypervisor::Qemu) => {}
        }
        // An XDG variable that is empty or relative counts as not set.
        let absolute = |name| env(name).filter(|path| path.is_absolute());
        let under_home = |name, below: &str| match absolute(name) {
            Some(dir) => Some(dir),
            None => absolute("HOME").map(|home| home.join(below)),
        };
        let config = under_home("XDG_CONFIG_HOME", ".config")
            .ok_or(ConfigError::Environment("HOME", "configuration"))?;
        let state = under_home("XDG_STATE_HOME", ".local/state")
            .ok_or(ConfigError::Environment("HOME", "definitions"))?;
        // Without a login session there may be no run-time directory; libvirt then uses the
        // cache directory, and so do we.
        let runtime = absolute("XDG_RUNTIME_DIR")
            .or_else(|| under_home("XDG_CACHE_HOME", ".cache"))
            .ok_or(ConfigError::Environment("XDG_RUNTIME_DIR", "sockets"))?;
        Ok(Self {
            config_file: config.join("virtsnap/virtsnapd.toml"),
            run_dir: runtime.join("virtsnap"),
            state_dir: state.join("virtsnap"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(mode: Mode, text: &str, env: &[(&str, &str)]) -> Result<Config, String> {
        let look = |name: &str| {
            env.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value))
        };
        let file = toml::from_str(text).map_err(|err| err.to_string())?;
        Config::new(mode, None, look, file).map_err(|err| err.to_string())
    }

    const XEN: &str = "hypervisor = 'xen'\n";

    #[test]
    fn a_daemon_for_xen_shares_no_place_with_one_for_qemu() {
        let (qemu, xen) = (config(Mode::System, "", &[]), config(Mode::System, XEN, &[]));
        let (qemu, xen) = (qemu.unwrap(), xen.unwrap());
        assert_eq!((qemu.hypervisor, xen.hypervisor), (Hypervisor::Qemu, Hypervisor::Xen));
        assert_eq!(xen.state_dir, Path::new("/var/lib/virtsnap/xen"));
        assert_eq!(xen.sockets().0, Path::new("/run/virtsnap/xen/virtsnap-sock"));
        let listening = config(Mode::System, &format!("{XEN}listen = 'libvirt'"), &[]).unwrap();
        assert_eq!(
            listening.sockets(),
            ("/run/libvirt/virtxend-sock".into(), Some("/run/libvirt/virtxend-sock-ro".into()))
        );
    }

    #[test]
    fn xen_is_roots_alone_and_has_keys_of_its_own() {
        let env = [("HOME", "/home/u"), ("XDG_RUNTIME_DIR", "/run/user/7")];
        assert!(config(Mode::Session, XEN, &env).unwrap_err().contains("root"));
        let user = config(Mode::System, &format!("{XEN}user = 'u'"), &[]);
        assert!(user.unwrap_err().contains("'user'"));
        let bridges = "[network_bridges]\ndefault = 'virbr0'";
        let found = config(Mode::System, &format!("{XEN}{bridges}"), &[]).unwrap();
        assert_eq!(found.guests.network_bridges.unwrap()["default"], "virbr0");
        assert!(config(Mode::System, bridges, &[]).unwrap_err().contains("network_bridges"));
        assert_eq!(found.guests.snapshot_dir, Path::new("/var/lib/xen/snapshots"));
        let place = "snapshot_dir = '/srv/snapshots'";
        let found = config(Mode::System, &format!("{XEN}{place}"), &[]).unwrap();
        assert_eq!(found.guests.snapshot_dir, Path::new("/srv/snapshots"));
        assert!(config(Mode::System, place, &[]).unwrap_err().contains("snapshot_dir"));
        let relative = config(Mode::System, &format!("{XEN}snapshot_dir = 'x'"), &[]);
        assert!(relative.unwrap_err().contains("absolute"));
    }

    #[test]
    fn the_command_line_and_the_file_agree_on_the_hypervisor() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("virtsnapd.toml");
        let load = |asked| Config::load(Mode::System, Some(&file), asked);
        std::fs::write(&file, "log = 'debug'").unwrap();
        assert_eq!(load(None).unwrap().hypervisor, Hypervisor::Qemu);
        assert_eq!(load(Some(Hypervisor::Xen)).unwrap().run_dir, Path::new("/run/virtsnap/xen"));
        std::fs::write(&file, XEN).unwrap();
        assert_eq!(load(None).unwrap().hypervisor, Hypervisor::Xen);
        let err = load(Some(Hypervisor::Qemu)).unwrap_err().to_string();
        assert!(err.contains("says qemu") && err.contains("says xen"), "{err}");
    }

    #[test]
    fn system_mode_uses_the_system_directories() {
        let config = config(Mode::System, "", &[]).unwrap();
        assert_eq!(config.state_dir, Path::new("/var/lib/virtsnap"));
        assert_eq!(
            config.sockets(),
            ("/run/virtsnap/virtsnap-sock".into(), Some("/run/virtsnap/virtsnap-sock-ro".into()))
        );
        assert!(config.guests.dynamic_ownership);
    }

    #[test]
    fn session_mode_follows_xdg_and_has_no_read_only_socket() {
        let env = [("HOME", "/home/u"), ("XDG_RUNTIME_DIR", "/run/user/7"), ("XDG_STATE_HOME", "")];
        let config = config(Mode::Session, "", &env).unwrap();
        assert_eq!(config.state_dir, Path::new("/home/u/.local/state/virtsnap"));
        assert_eq!(config.sockets(), ("/run/user/7/virtsnap/virtsnap-sock".into(), None));
    }

    #[test]
    fn listens_where_libvirt_clients_look_when_told_to() {
        let system = config(Mode::System, "listen = 'libvirt'", &[]).unwrap();
        assert_eq!(system.sockets().0, Path::new("/run/libvirt/virtqemud-sock"));
        let env = [("HOME", "/home/u"), ("XDG_RUNTIME_DIR", "/run/user/7")];
        let session = config(Mode::Session, "listen = 'libvirt'", &env).unwrap();
        assert_eq!(session.sockets().0, Path::new("/run/user/7/libvirt/virtqemud-sock"));
    }

    #[test]
    fn a_mistyped_key_and_values_that_cannot_be_are_refused() {
        assert!(config(Mode::System, "statedir = '/x'", &[]).unwrap_err().contains("statedir"));
        assert!(config(Mode::System, "state_dir = 'x'", &[]).unwrap_err().contains("absolute"));
        for clients in ["0", "9223372036854775807"] {
            let text = format!("max_clients = {clients}");
            assert!(config(Mode::System, &text, &[]).unwrap_err().contains("max_clients"));
        }
    }

    #[test]
    fn guests_go_on_while_memory_is_saved_unless_told_otherwise() {
        let meanwhile = |text| config(Mode::System, text, &[]).unwrap().guests.meanwhile;
        assert_eq!(meanwhile(""), Meanwhile::GoesOn);
        assert_eq!(meanwhile("live_memory = true"), Meanwhile::GoesOn);
        assert_eq!(meanwhile("live_memory = false"), Meanwhile::StandsStill);
        assert!(config(Mode::System, "live_memory = 'no'", &[]).unwrap_err().contains("boolean"));
    }

    #[test]
    fn session_mode_without_a_home_says_what_is_missing() {
        assert!(config(Mode::Session, "", &[]).unwrap_err().contains("HOME"));
    }
}
