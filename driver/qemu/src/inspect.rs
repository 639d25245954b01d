//! Questions about a running guest, and small acts on it, through the monitor and `/proc`.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use serde_json::{Value, json};
use uuid::Uuid;
use virtsnap_block::survey;
use virtsnap_engine::domain::BlockJobKind;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::inspect::{
    BlockJob, BlockStats, CpuParts, CpuTimes, DiskStats, ImageSize, MemoryStat, Screenshot,
    VcpuState, VcpuTime,
};
use virtsnap_xml::element::Element;

use crate::blocks::job;
use crate::client_jobs::{self, ClientJob};
use crate::confine::failed;
use crate::events::alias_of;
use crate::hypervisor::Qemu;
use crate::image::header;
use crate::instance::Instance;
use crate::setup::devices;

/// Of `sysconf(_SC_CLK_TCK)`, which is 100 on every Linux that QEMU runs on.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

impl Qemu {
    pub(crate) fn process_times(&self, domain: Uuid) -> Result<CpuTimes> {
        let instance = self.running(domain)?;
        let pid = instance.process.pid();
        let (user, system, _) = stat_times(&format!("/proc/{pid}/stat"))
            .map_err(|err| failed("read the times of", Path::new("/proc"), err))?;
        let mut vcpus = Vec::new();
        for (number, thread) in instance.vcpu_threads() {
            if let Ok((user, system, cpu)) = stat_times(&format!("/proc/{pid}/task/{thread}/stat"))
            {
                vcpus.push(VcpuTime {
                    number,
                    state: VcpuState::Running,
                    nanoseconds: user + system,
                    host_cpu: cpu,
                    affinity: None,
                });
            }
        }
        let parts = Some(CpuParts { user, system });
        Ok(CpuTimes { total: user + system, parts, vcpus })
    }

    pub(crate) fn process_memory(&self, domain: Uuid) -> Result<u64> {
        let instance = self.running(domain)?;
        let path = format!("/proc/{}/status", instance.process.pid());
        let text =
            fs::read_to_string(&path).map_err(|err| failed("read", Path::new(&path), err))?;
        let resident = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        Ok(resident
            .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok())
            .unwrap_or(0))
    }

    pub(crate) async fn balloon_size(&self, domain: Uuid) -> Result<Option<u64>> {
        let instance = self.running(domain)?;
        if !has_balloon(&instance.live()) {
            return Ok(None);
        }
        let answer = instance.qmp.execute("query-balloon", Value::Null).await?;
        Ok(answer.get("actual").and_then(Value::as_u64).map(|bytes| bytes / 1024))
    }

    pub(crate) async fn set_balloon_size(&self, domain: Uuid, kib: u64) -> Result<()> {
        let instance = self.running(domain)?;
        if !has_balloon(&instance.live()) {
            let message = "the domain has no memory balloon: its memory cannot be changed now";
            return Err(Error::new(Condition::OperationInvalid, message));
        }
        let value = kib.saturating_mul(1024);
        instance.qmp.execute("balloon", json!({ "value": value })).await?;
        Ok(())
    }

    pub(crate) async fn all_disk_stats(&self, domain: Uuid) -> Result<Vec<DiskStats>> {
        let instance = self.running(domain)?;
        let answer = instance.qmp.execute("query-blockstats", Value::Null).await?;
        let live = instance.live();
        let disks = devices(&live, "disk").filter_map(|disk| {
            let target = disk.child("target")?.attr("dev")?.to_owned();
            let alias = alias_of(disk)?;
            let found = answer.as_array()?.iter().find(|device| is_of(device, alias))?;
            Some(DiskStats { target, stats: block_stats(found.get("stats")?) })
        });
        Ok(disks.collect())
    }

    pub(crate) async fn resize_active_layer(
        &self,
        domain: Uuid,
        target: &str,
        size: u64,
    ) -> Result<()> {
        let instance = self.running(domain)?;
        let Some(layer) = instance.chain(target).and_then(|chain| chain.layers.first().cloned())
        else {
            let message = format!("disk '{target}' has no image that could be resized");
            return Err(Error::new(Condition::InvalidArgument, message));
        };
        let arguments = json!({ "node-name": layer.format_node(), "size": size });
        instance.qmp.execute("block_resize", arguments).await?;
        Ok(())
    }

    /// `guest-stats` of the balloon, as it last told; where it never did, what the host knows.
    pub(crate) async fn balloon_stats(&self, domain: Uuid) -> Result<Vec<(MemoryStat, u64)>> {
        let instance = self.running(domain)?;
        let mut found = Vec::new();
        if let Some(actual) = self.balloon_size(domain).await? {
            found.push((MemoryStat::ActualBalloon, actual));
            let live = instance.live();
            let alias =
                live.at(&["devices", "memballoon"]).and_then(alias_of).unwrap_or("balloon0");
            let arguments = json!({
                "path": format!("/machine/peripheral/{alias}"),
                "property": "guest-stats",
            });
            // Before the guest has told anything QEMU refuses.
            if let Ok(answer) = instance.qmp.execute("qom-get", arguments).await {
                found.extend(guest_stats(&answer));
            }
        }
        found.push((MemoryStat::ResidentSet, self.process_memory(domain)?));
        Ok(found)
    }

    /// `allocation` is what QEMU has written to, where it runs; else what the host has allocated.
    pub(crate) async fn size_of_image(&self, domain: &Element, target: &str) -> Result<ImageSize> {
        let mut size = survey::size(&self.image_tool(), domain, target).await?;
        if let Some(instance) = virtsnap_xml::domain::uuid(domain).and_then(|u| self.instance(u))
            && let Some(highest) = highest_write(&instance, target).await?
        {
            size.allocation = highest;
        }
        Ok(size)
    }

    pub(crate) async fn running_block_job(
        &self,
        domain: Uuid,
        target: &str,
    ) -> Result<Option<BlockJob>> {
        let instance = self.running(domain)?;
        let answer = instance.qmp.execute("query-block-jobs", Value::Null).await?;
        let client = instance.lock().jobs.get(target).map(ClientJob::kind);
        let ids = [client_jobs::id(target), job::id("merge", target)];
        let is_ours = |job: &&Value| {
            let id = job.get("device").and_then(Value::as_str).unwrap_or_default();
            ids.iter().any(|ours| ours == id)
        };
        let job = answer.as_array().into_iter().flatten().find(is_ours);
        let number = |job: &Value, key: &str| job.get(key).and_then(Value::as_u64).unwrap_or(0);
        Ok(job.map(|job| {
            let (done, total) = progress(
                (number(job, "offset"), number(job, "len")),
                job.get("ready").and_then(Value::as_bool),
            );
            let kind = client.unwrap_or(match job.get("type").and_then(Value::as_str) {
                Some("stream") => BlockJobKind::Pull,
                _ => BlockJobKind::Commit,
            });
            BlockJob { kind, bandwidth: number(job, "speed"), done, total }
        }))
    }

    /// PNG where this QEMU can write it, otherwise PPM.
    pub(crate) async fn take_screenshot(&self, domain: Uuid, screen: u32) -> Result<Screenshot> {
        let instance = self.running(domain)?;
        let live = instance.live();
        let videos: Vec<_> = devices(&live, "video").filter_map(alias_of).collect();
        let screen = usize::try_from(screen).unwrap_or(usize::MAX);
        let Some(device) = videos.get(screen) else {
            let message = format!("the domain has no screen {screen}");
            return Err(Error::new(Condition::InvalidArgument, message));
        };
        let path = instance.qemu_dir().join(format!("screenshot-{}", Uuid::new_v4()));
        let arguments = json!({ "filename": path, "device": device, "format": "png" });
        let mut mime = "image/png";
        let mut outcome = instance.qmp.execute("screendump", arguments).await;
        if outcome.is_err() {
            mime = "image/x-portable-pixmap";
            let arguments = json!({ "filename": path, "device": device });
            outcome = instance.qmp.execute("screendump", arguments).await;
        }
        let image = take(&path);
        outcome?;
        let image = image.map_err(|err| failed("read the screenshot", &path, err))?;
        Ok(Screenshot { mime, image: OwnedFd::from(image) })
    }

    pub(crate) async fn press_keys(&self, domain: Uuid, codes: &[u32], hold: u32) -> Result<()> {
        let instance = self.running(domain)?;
        let keys = codes
            .iter()
            .map(|&code| {
                let number = xt_number(code).ok_or_else(|| {
                    let message = format!("key code {code} has no counterpart on a PC keyboard");
                    Error::new(Condition::InvalidArgument, message)
                })?;
                Ok(json!({ "type": "number", "data": number }))
            })
            .collect::<Result<Vec<_>>>()?;
        let mut arguments = json!({ "keys": keys });
        if hold > 0 {
            arguments["hold-time"] = json!(hold);
        }
        instance.qmp.execute("send-key", arguments).await?;
        Ok(())
    }

    pub(crate) async fn nmi(&self, domain: Uuid) -> Result<()> {
        self.running(domain)?.qmp.execute("inject-nmi", Value::Null).await?;
        Ok(())
    }

    /// One end of a socket pair goes to QEMU's display server, the other to the client.
    pub(crate) async fn graphics_connection(&self, domain: Uuid, index: u32) -> Result<OwnedFd> {
        let instance = self.running(domain)?;
        let live = instance.live();
        let graphics: Vec<_> = devices(&live, "graphics").collect();
        let wanted = graphics.get(usize::try_from(index).unwrap_or(usize::MAX));
        let protocol = match wanted.and_then(|graphics| graphics.attr("type")) {
            Some("vnc") => "vnc",
            Some("spice") => "spice",
            Some(other) => {
                let message = format!("a display of type '{other}' takes no connections");
                return Err(Error::new(Condition::InvalidArgument, message));
            }
            None => {
                let message = format!("the domain has no display {index}");
                return Err(Error::new(Condition::InvalidArgument, message));
            }
        };
        let pair = std::os::unix::net::UnixStream::pair();
        let (ours, theirs) = pair.map_err(|err| failed("connect to", Path::new(protocol), err))?;
        let fdname = format!("graphics-{}", Uuid::new_v4());
        let qmp = &instance.qmp;
        qmp.execute_with_fd("getfd", json!({ "fdname": fdname }), theirs.into()).await?;
        let arguments = json!({ "protocol": protocol, "fdname": fdname, "skipauth": true });
        if let Err(err) = qmp.execute("add_client", arguments).await {
            let _ = qmp.execute("closefd", json!({ "fdname": fdname })).await;
            return Err(err.into());
        }
        Ok(ours.into())
    }
}

/// Clients take all done of all for the end of a job: so it is told only of one that is there.
fn progress((done, total): (u64, u64), ready: Option<bool>) -> (u64, u64) {
    match (done, total, ready) {
        (0, 0, Some(ready)) => (u64::from(ready), 1),
        (done, total, Some(false)) if done == total => (done - 1, total),
        other => (other.0, other.1),
    }
}

fn has_balloon(live: &Element) -> bool {
    let balloon = live.at(&["devices", "memballoon"]);
    balloon.is_some_and(|balloon| balloon.attr("model") != Some("none"))
}

/// `"qdev": "/machine/peripheral/virtio-disk0/virtio-backend"`, or the id alone.
pub(crate) fn is_of(device: &Value, alias: &str) -> bool {
    let path = device.get("qdev").and_then(Value::as_str).unwrap_or_default();
    path.split('/').any(|part| part == alias)
}

fn block_stats(stats: &Value) -> BlockStats {
    let number = |key: &str| stats.get(key).and_then(Value::as_u64).unwrap_or(0);
    BlockStats {
        read_requests: number("rd_operations"),
        read_bytes: number("rd_bytes"),
        read_nanoseconds: number("rd_total_time_ns"),
        write_requests: number("wr_operations"),
        write_bytes: number("wr_bytes"),
        write_nanoseconds: number("wr_total_time_ns"),
        flush_requests: number("flush_operations"),
        flush_nanoseconds: number("flush_total_time_ns"),
    }
}

/// Unknown ones are left out; -1, as u64, stands for what the guest did not tell.
fn guest_stats(answer: &Value) -> Vec<(MemoryStat, u64)> {
    const KIB: u64 = 1024;
    let known = [
        ("stat-swap-in", MemoryStat::SwapIn, KIB),
        ("stat-swap-out", MemoryStat::SwapOut, KIB),
        ("stat-major-faults", MemoryStat::MajorFaults, 1),
        ("stat-minor-faults", MemoryStat::MinorFaults, 1),
        ("stat-free-memory", MemoryStat::Unused, KIB),
        ("stat-total-memory", MemoryStat::Available, KIB),
        ("stat-available-memory", MemoryStat::Usable, KIB),
        ("stat-disk-caches", MemoryStat::DiskCaches, KIB),
        ("stat-htlb-pgalloc", MemoryStat::HugetlbAllocations, 1),
        ("stat-htlb-pgfail", MemoryStat::HugetlbFailures, 1),
    ];
    let told = |name: &str| {
        let value = answer.get("stats")?.get(name)?.as_u64()?;
        (value != u64::MAX).then_some(value)
    };
    let mut found: Vec<_> = known
        .into_iter()
        .filter_map(|(name, stat, unit)| Some((stat, told(name)? / unit)))
        .collect();
    if let Some(when) = answer.get("last-update").and_then(Value::as_u64).filter(|when| *when > 0) {
        found.push((MemoryStat::LastUpdate, when));
    }
    found
}

/// `wr_highest_offset` of the storage node under the active layer.
async fn highest_write(instance: &Instance, target: &str) -> Result<Option<u64>> {
    let Some(layer) = instance.chain(target).and_then(|chain| chain.layers.first().cloned()) else {
        return Ok(None);
    };
    let arguments = json!({ "query-nodes": true });
    let answer = instance.qmp.execute("query-blockstats", arguments).await?;
    let node = layer.storage_node();
    let found = answer
        .as_array()
        .into_iter()
        .flatten()
        .find(|stats| stats.get("node-name").and_then(Value::as_str) == Some(&node));
    let highest = found.and_then(|stats| stats.get("stats")?.get("wr_highest_offset")?.as_u64());
    Ok(highest.filter(|highest| *highest > 0))
}

/// User and system time in nanoseconds, and the processor last run on.
fn stat_times(path: &str) -> io::Result<(u64, u64, Option<u32>)> {
    let text = fs::read_to_string(path)?;
    let rest = text.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    let cpu = fields.get(36).and_then(|field| field.parse().ok());
    let time = |at: usize| ticks(at).saturating_mul(NANOSECONDS_PER_TICK);
    Ok((time(11), time(12), cpu))
}

/// Linux' key codes are XT scan codes up to 88; of those above, the ones people send.
fn xt_number(code: u32) -> Option<u32> {
    Some(match code {
        1..=83 | 86..=88 => code,
        96 => 0xe01c,
        97 => 0xe01d,
        98 => 0xe035,
        99 => 0x54,
        100 => 0xe038,
        102 => 0xe047,
        103 => 0xe048,
        104 => 0xe049,
        105 => 0xe04b,
        106 => 0xe04d,
        107 => 0xe04f,
        108 => 0xe050,
        109 => 0xe051,
        110 => 0xe052,
        111 => 0xe053,
        116 => 0xe05e,
        119 => 0xe046,
        125 => 0xe05b,
        126 => 0xe05c,
        127 => 0xe05d,
        142 => 0xe05f,
        143 => 0xe063,
        _ => return None,
    })
}

/// Opens a file that QEMU made in its own directory, and removes it. QEMU may have put something
/// else there: a link is not followed.
pub(crate) fn take(path: &Path) -> io::Result<fs::File> {
    let opened = header::open_regular(path);
    let _ = fs::remove_file(path);
    opened?.ok_or_else(|| io::Error::other("it is not a regular file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_are_found_by_the_devices_alias() {
        let device = json!({ "qdev": "/machine/peripheral/virtio-disk1/virtio-backend" });
        assert!(is_of(&device, "virtio-disk1"));
        assert!(!is_of(&device, "virtio-disk"));
        assert_eq!(block_stats(&json!({ "rd_bytes": 7, "novel": 1 })).read_bytes, 7);
    }

    #[test]
    fn our_own_times_can_be_read() {
        stat_times("/proc/self/stat").unwrap();
        assert_eq!(
            (xt_number(28), xt_number(111), xt_number(9999)),
            (Some(28), Some(0xe053), None)
        );
    }
}
