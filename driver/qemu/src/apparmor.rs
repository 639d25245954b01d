//! AppArmor: does the profile that confines a QEMU let it have the images that a plan needs?
//!
//! We make no profile. An administrator may attach one to the emulator, and what it denies QEMU tells
//! as "Permission denied", when a guest is down or a merge under way. So the kernel is asked before,
//! and what it denies is named: the file, which layer it is, the profile, what to allow.
//!
//! Only advice: what cannot be asked (no AppArmor, no `securityfs`, a daemon of an ordinary user, to
//! whom `owner` rules are not told truly) is not refused here, but by QEMU.
//!
//! Sources: `/proc/PID/attr/apparmor/current` (apparmor(7)); `.access` of the kernel's apparmorfs, as
//! aa_query_label(2) describes it; MAY_READ, MAY_WRITE and AA_MAY_LOCK of the kernel's masks.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use uuid::Uuid;
use virtsnap_block::child::confine_tool;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::plan::access::{Access, By, How};

use crate::hypervisor::Qemu;
use crate::image::{blocking, is_network};
use crate::instance::Instance;

const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const QUERY: &str = "/sys/kernel/security/apparmor/.access";

const MAY_WRITE: u32 = 2;
const MAY_READ: u32 = 4;
/// QEMU locks each image that it opens.
const MAY_LOCK: u32 = 0x8000;
/// AA_CLASS_FILE: what the query is about.
const CLASS_FILE: u8 = 2;

/// A profile that denies what it does not allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Profile(String);

impl Profile {
    /// What confines a process; none: nothing does, or it is only watched.
    pub(crate) fn of_process(pid: i32) -> Option<Self> {
        if !is_enabled() {
            return None;
        }
        let attr = |name: &str| fs::read_to_string(format!("/proc/{pid}/attr/{name}"));
        let label = attr("apparmor/current").or_else(|_| attr("current")).ok()?;
        Self::parse(&label)
    }

    /// What confines the emulator when it is started: which profile is attached to it the kernel
    /// tells of a process only. A process that has ended keeps its label until it is reaped.
    fn of_program(emulator: &Path) -> Option<Self> {
        if !is_enabled() {
            return None;
        }
        let mut command = Command::new(emulator);
        command.arg("--version").env("LC_ALL", "C").current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        confine_tool(&mut command);
        let mut child = command.spawn().ok()?;
        let profile = i32::try_from(child.id()).ok().and_then(Self::of_process);
        let _ = child.kill();
        let _ = child.wait();
        profile
    }

    /// `NAME (MODE)`, as the kernel writes it.
    fn parse(label: &str) -> Option<Self> {
        let label = label.trim_end_matches(['\n', '\0']);
        let (name, mode) = label.strip_suffix(')')?.rsplit_once(" (")?;
        matches!(mode, "enforce" | "kill" | "mixed").then(|| Self(name.to_owned()))
    }

    /// None: the kernel did not say.
    fn allows(&self, image: &Path, how: How) -> Option<bool> {
        let wanted = MAY_READ | MAY_LOCK | if how == How::Write { MAY_WRITE } else { 0 };
        let image = resolved(image);
        let allowed = self.ask(&image).inspect_err(|err| {
            tracing::debug!(profile = self.0, image = %image.display(), %err, "AppArmor");
        });
        Some(allowed.ok()? & wanted == wanted)
    }

    /// What may be done with a path: the first line of the answer is `allow 0x…`.
    fn ask(&self, path: &Path) -> io::Result<u32> {
        use std::os::unix::ffi::OsStrExt;
        let mut query = b"label\0".to_vec();
        query.extend(self.0.as_bytes());
        query.extend([0, CLASS_FILE]);
        query.extend(path.as_os_str().as_bytes());
        let mut file = fs::OpenOptions::new().read(true).write(true).open(QUERY)?;
        // It is one question only in one write.
        if file.write(&query)? != query.len() {
            return Err(io::Error::other("the question is too long"));
        }
        let mut answer = [0; 256];
        let length = file.read(&mut answer)?;
        let answer = String::from_utf8_lossy(answer.get(..length).unwrap_or_default());
        let number = answer.lines().find_map(|line| line.strip_prefix("allow 0x"));
        let number = number.and_then(|digits| u32::from_str_radix(digits.trim(), 16).ok());
        number.ok_or_else(|| io::Error::other("the answer is not understood"))
    }

    fn rule(image: &Path, how: How) -> String {
        let rights = if how == How::Write { "rwk" } else { "rk" };
        format!("\"{}\" {rights},", resolved(image).display())
    }
}

fn is_enabled() -> bool {
    fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with('Y'))
}

/// As AppArmor sees it: links followed, also of a file that is yet to be made.
fn resolved(image: &Path) -> PathBuf {
    let parent = || Some(image.parent()?.canonicalize().ok()?.join(image.file_name()?));
    image.canonicalize().ok().or_else(parent).unwrap_or_else(|| image.to_owned())
}

impl Qemu {
    /// Refuses a plan that a profile would not let QEMU carry out.
    pub(crate) async fn refuse_denied(&self, domain: Uuid, needs: &[Access]) -> Result<()> {
        if !rustix::process::geteuid().is_root() || !is_enabled() {
            return Ok(());
        }
        let running = self.instance(domain).map(|instance| instance.process.pid());
        let default = self.config().emulator.clone();
        let needs = needs.to_vec();
        blocking(move || {
            let running = running.and_then(Profile::of_process);
            let program = needs.iter().find_map(|need| match &need.by {
                By::Started(emulator) => Some(emulator.as_ref().unwrap_or(&default)),
                By::Running => None,
            });
            let started = program.and_then(|program| Profile::of_program(program));
            for by_started in [false, true] {
                let profile = if by_started { &started } else { &running };
                let Some(profile) = profile else { continue };
                let ours = needs.iter().filter(|n| matches!(n.by, By::Started(_)) == by_started);
                refuse(profile, ours)?;
            }
            Ok(())
        })
        .await
    }

    /// Says of an error that is a denial what it was about: which layer, and what denies it.
    pub(crate) fn explain(&self, domain: Uuid, err: Error) -> Error {
        let text = err.chain();
        if !text.contains("Permission denied") {
            return err;
        }
        let instance = self.instance(domain);
        let layers = instance.iter().flat_map(|instance| layers_named(instance, &text));
        let profile = match &instance {
            Some(instance) => Profile::of_process(instance.process.pid()),
            None => Profile::of_program(&self.config().emulator),
        };
        let profile = profile.map(|profile| {
            format!(
                "QEMU is confined by the AppArmor profile '{}', which denies what it does not \
                 name (the kernel's log has each denial)",
                profile.0
            )
        });
        let notes: Vec<String> = layers.chain(profile).collect();
        if notes.is_empty() {
            return err;
        }
        Error::new(err.condition, notes.join("; ")).from_origin(err.origin).caused_by(err)
    }
}

fn refuse<'a>(profile: &Profile, needs: impl Iterator<Item = &'a Access>) -> Result<()> {
    let denied = needs
        .filter(|need| !is_network(&need.image))
        .filter(|need| profile.allows(&need.image, need.how) == Some(false));
    let (mut what, mut rules) = (Vec::new(), Vec::new());
    for need in denied {
        let verb = if need.how == How::Write { "write to" } else { "read" };
        what.push(format!("{verb} '{}' ({})", need.image.display(), need.role));
        rules.push(Profile::rule(&need.image, need.how));
    }
    if what.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Condition::System(libc::EACCES),
        format!(
            "the AppArmor profile '{}' does not let QEMU {}; nothing was changed: add to the \
             profile what it is to allow ({}), load it with apparmor_parser -r, and call again",
            profile.0,
            what.join(", nor "),
            rules.join(" ")
        ),
    ))
}

/// The layers of a running guest that a text names.
fn layers_named(instance: &Instance, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for chain in instance.chains().values() {
        for (depth, layer) in chain.layers.iter().enumerate() {
            let image = layer.image.display().to_string();
            if text.contains(&format!("'{image}'")) {
                found.push(match depth {
                    0 => format!("'{image}' is the top of disk '{}'", chain.target),
                    _ => format!(
                        "'{image}' is layer {depth} below the top of disk '{}'",
                        chain.target
                    ),
                });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_denies_is_a_profile() {
        let profile = |name: &str| Some(Profile(name.to_owned()));
        assert_eq!(
            Profile::parse("/usr/bin/qemu-system-x86_64 (enforce)\n"),
            profile("/usr/bin/qemu-system-x86_64")
        );
        assert_eq!(Profile::parse("a (b) (kill)"), profile("a (b)"));
        for other in ["unconfined\n", "qemu (complain)\n", "qemu (unconfined)\n", "", "qemu"] {
            assert_eq!(Profile::parse(other), None, "{other}");
        }
    }
}
