//! What the monitor tells of a running domain, as states and events in libvirt's words.
//!
//! Runs in the monitor's reader: a state has changed and its event is told before the reply to the
//! command that caused it. What takes a command itself (the second half of a reboot, the end of a
//! domain that shut down) is done by a task of its own.

use std::sync::{Arc, Weak};

use rustix::process::Signal;
use serde_json::Value;
use virtsnap_engine::domain::{
    Event, IoErrorAction, PausedReason, Resumed, RunningReason, ShutOffReason, ShutdownBy, Started,
    State, Suspended,
};
use virtsnap_xml::element::Element;

use crate::hotplug;
use crate::hypervisor::Shared;
use crate::instance::{Inner, Instance};
use crate::qmp::QmpEvent;

/// The name of the port that the guest agent sits on.
pub(crate) const AGENT_PORT: &str = "org.qemu.guest_agent.0";

/// What follows from an event beyond telling it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Put away what stood behind devices that are gone.
    PutAway,
    Nothing,
    /// Reset the machine and let it run.
    Restart,
    /// End the process.
    End,
}

/// A gate between the monitor and an instance that is not there yet when the monitor connects.
pub(crate) type Gate = Arc<std::sync::OnceLock<(Weak<Shared>, Weak<Instance>)>>;

pub(crate) fn listener(gate: Gate) -> crate::qmp::Listener {
    Box::new(move |event| {
        let Some((shared, instance)) = gate.get() else { return };
        if let (Some(shared), Some(instance)) = (shared.upgrade(), instance.upgrade()) {
            shared.handle(&instance, event);
        }
    })
}

impl Shared {
    fn handle(self: &Arc<Self>, instance: &Arc<Instance>, event: &QmpEvent) {
        let mut told = Vec::new();
        let next = {
            let mut inner = instance.lock();
            let before = (inner.state, inner.rebooting);
            let next = translate(&mut inner, event, &mut told);
            let is_kept = !told.is_empty() || before != (inner.state, inner.rebooting);
            if is_kept && let Err(err) = instance.save_locked(&inner) {
                tracing::error!(domain = instance.name, "{}", err.chain());
            }
            next
        };
        for event in told {
            self.tell(instance, event);
        }
        match next {
            Next::Nothing => {}
            Next::PutAway => {
                let instance = Arc::clone(instance);
                tokio::spawn(async move {
                    let gone = instance.lock().unplugged.clone();
                    for device in gone {
                        hotplug::put_away(&instance, device).await;
                    }
                });
            }
            Next::End => instance.process.signal(Signal::TERM),
            Next::Restart => {
                let instance = Arc::clone(instance);
                tokio::spawn(async move { restart(&instance).await });
            }
        }
    }

    pub(crate) fn tell(&self, instance: &Instance, event: Event) {
        self.events.emit(instance.uuid, &instance.name, instance.id, event);
    }
}

/// The second half of a reboot: the guest has shut down, the process waits.
async fn restart(instance: &Instance) {
    let outcome = async {
        instance.qmp.execute("system_reset", Value::Null).await?;
        instance.resume(RunningReason::Booted).await
    };
    let outcome = outcome.await;
    instance.lock().rebooting = false;
    if let Err(err) = outcome {
        tracing::error!(domain = instance.name, "cannot reboot: {}", err.chain());
        instance.process.signal(Signal::KILL);
    }
}

pub(crate) fn translate(inner: &mut Inner, event: &QmpEvent, told: &mut Vec<Event>) -> Next {
    match event.name.as_str() {
        "STOP" | "RESUME" if inner.is_stepping => {}
        "STOP" => stopped(inner, event, told),
        "RESUME" => resumed(inner, event, told),
        "SHUTDOWN" => return shut_down(inner, event, told),
        "RESET" if inner.state != State::Paused(PausedReason::StartingUp) => {
            inner.rebooting = false;
            told.push(Event::Reboot);
        }
        "GUEST_PANICKED" => return panicked(inner, told),
        "SUSPEND" | "SUSPEND_DISK" if inner.state.is_active() => {
            inner.state = State::PmSuspended;
            told.push(Event::PmSuspended);
        }
        "WAKEUP" if inner.state == State::PmSuspended => {
            inner.state = State::Running(RunningReason::Wakeup);
            told.push(Event::Started(Started::Wakeup));
        }
        "RTC_CHANGE" => rtc_changed(inner, event, told),
        "WATCHDOG" => watchdog(inner, event, told),
        "BLOCK_IO_ERROR" => io_error(inner, event, told),
        "DEVICE_DELETED" => {
            if let Some(alias) = event.text("device") {
                told.push(Event::DeviceRemoved { alias: alias.to_owned() });
                let gone = hotplug::take_out(&mut inner.live, &mut inner.chains, alias);
                inner.unplugged.extend(gone);
                return Next::PutAway;
            }
        }
        "DEVICE_TRAY_MOVED" => tray_moved(inner, event, told),
        "BALLOON_CHANGE" => balloon_changed(inner, event, told),
        "VSERPORT_CHANGE" => port_changed(inner, event, told),
        "MIGRATION_PASS" => {
            let pass = event.data.get("pass").and_then(Value::as_i64).unwrap_or(0);
            told.push(Event::MigrationIteration(i32::try_from(pass).unwrap_or(i32::MAX)));
        }
        _ => {}
    }
    Next::Nothing
}

fn stopped(inner: &mut Inner, event: &QmpEvent, told: &mut Vec<Event>) {
    let reason = inner.pausing.take().unwrap_or(PausedReason::Unknown);
    if !matches!(inner.state, State::Running(_)) || inner.rebooting {
        return;
    }
    inner.standing.begin(event.time());
    inner.state = State::Paused(reason);
    told.push(Event::Suspended(match reason {
        PausedReason::IoError => Suspended::IoError,
        PausedReason::Watchdog => Suspended::Watchdog,
        PausedReason::FromSnapshot => Suspended::FromSnapshot,
        _ => Suspended::Paused,
    }));
}

fn resumed(inner: &mut Inner, event: &QmpEvent, told: &mut Vec<Event>) {
    let reason = inner.resuming.take().unwrap_or(RunningReason::Unpaused);
    if matches!(inner.state, State::Running(_)) {
        return;
    }
    inner.standing.end(event.time());
    inner.state = State::Running(reason);
    told.push(Event::Resumed(match reason {
        // As libvirt.
        RunningReason::FromSnapshot | RunningReason::Restored => Resumed::FromSnapshot,
        _ => Resumed::Unpaused,
    }));
}

fn action<'a>(live: &'a Element, of: &str) -> Option<&'a str> {
    live.child(of)?.nodes().iter().find_map(|node| match node {
        virtsnap_xml::element::Node::Text(text) => Some(text.trim()),
        _ => None,
    })
}

fn shut_down(inner: &mut Inner, event: &QmpEvent, told: &mut Vec<Event>) -> Next {
    if matches!(inner.state, State::Shutdown | State::ShutOff(_)) {
        return Next::Nothing;
    }
    let by_signal = event.text("reason") == Some("host-signal");
    let restarts = inner.rebooting || action(&inner.live, "on_poweroff") == Some("restart");
    if restarts && !by_signal {
        inner.rebooting = true;
        return Next::Restart;
    }
    inner.state = State::Shutdown;
    told.push(Event::Shutdown(match event.data.get("guest").and_then(Value::as_bool) {
        Some(true) => ShutdownBy::Guest,
        Some(false) => ShutdownBy::Host,
        None => ShutdownBy::Unknown,
    }));
    inner.stopping.get_or_insert(ShutOffReason::Shutdown);
    if by_signal { Next::Nothing } else { Next::End }
}

fn panicked(inner: &mut Inner, told: &mut Vec<Event>) -> Next {
    if inner.state == State::Crashed {
        return Next::Nothing;
    }
    inner.state = State::Crashed;
    told.push(Event::Crashed);
    match action(&inner.live, "on_crash") {
        Some("preserve" | "coredump-preserve") => Next::Nothing,
        Some("restart" | "rename-restart" | "coredump-restart") => {
            inner.rebooting = true;
            Next::Restart
        }
        _ => {
            inner.stopping = Some(ShutOffReason::Crashed);
            Next::End
        }
    }
}

/// QEMU tells the distance from the clock it was started with.
fn rtc_changed(inner: &mut Inner, event: &QmpEvent, told: &mut Vec<Event>) {
    let Some(mut offset) = event.data.get("offset").and_then(Value::as_i64) else { return };
    let base = inner.clock_base;
    if let Some(clock) = inner.live.child_mut("clock")
        && clock.attr("offset") == Some("variable")
    {
        offset = offset.saturating_add(base);
        clock.set_attr("adjustment", offset.to_string());
    }
    told.push(Event::RtcChange { offset });
}

fn watchdog(inner: &mut Inner, event: &QmpEvent, told: &mut Vec<Event>) {
    let action = event.text("action").unwrap_or("none").to_owned();
    let pauses = action == "pause" && matches!(inner.state, State::Running(_));
    told.push(Event::Watchdog { action });
    if pauses {
        inner.state = State::Paused(PausedReason::Watchdog);
        told.push(Event::Suspended(Suspended::Watchdog));
    }
}

fn io_error(inner: &mut Inner, event: &QmpEvent, told: &mut Vec<Event>) {
    let by_node = event.text("node-name").and_then(|node| {
        inner.chains.values().find_map(|chain| {
            let layer = chain
                .layers
                .iter()
                .find(|layer| layer.format_node() == node || layer.storage_node() == node)?;
            Some((chain.target.clone(), layer.image.to_string_lossy().into_owned()))
        })
    });
    let by_alias = event.text("qom-path").and_then(|path| disk_by_qom_path(&inner.live, path));
    let disk = match &by_node {
        Some((target, _)) => disk_by_target(&inner.live, target),
        None => by_alias,
    };
    let alias = disk.and_then(alias_of).unwrap_or_default().to_owned();
    let source = by_node.map(|(_, image)| image).unwrap_or_default();
    let is_no_space = event.data.get("nospace").and_then(Value::as_bool) == Some(true);
    let reason = if is_no_space {
        "enospc"
    } else if event.text("reason").is_some() {
        "message"
    } else {
        ""
    };
    let action = match event.text("action") {
        Some("stop") => IoErrorAction::Pause,
        Some("report") => IoErrorAction::Report,
        _ => IoErrorAction::None,
    };
    told.push(Event::IoError { source, alias, action, reason: reason.to_owned() });
    if action == IoErrorAction::Pause && matches!(inner.state, State::Running(_)) {
        inner.state = State::Paused(PausedReason::IoError);
        told.push(Event::Suspended(Suspended::IoError));
    }
}

fn tray_moved(inner: &mut Inner, event: &QmpEvent, told: &mut Vec<Event>) {
    let opened = event.data.get("tray-open").and_then(Value::as_bool) == Some(true);
    let Some(id) = event.text("id") else { return };
    let name = id.rsplit('/').find(|part| !part.is_empty()).unwrap_or(id).to_owned();
    let Some(devices) = inner.live.child_mut("devices") else { return };
    let Some(disk) = devices.children_mut("disk").find(|disk| alias_of(disk) == Some(&name)) else {
        return;
    };
    let alias = alias_of(disk).unwrap_or_default().to_owned();
    if let Some(target) = disk.child_mut("target") {
        if opened {
            target.set_attr("tray", "open");
        } else {
            target.remove_attr("tray");
        }
    }
    told.push(Event::TrayChange { alias, opened });
}

fn balloon_changed(inner: &mut Inner, event: &QmpEvent, told: &mut Vec<Event>) {
    let Some(bytes) = event.data.get("actual").and_then(Value::as_u64) else { return };
    let actual = bytes / 1024;
    let current = inner.live.child_or_insert("currentMemory");
    current.set_attr("unit", "KiB");
    current.set_text(actual.to_string());
    told.push(Event::BalloonChange { actual });
}

fn port_changed(inner: &mut Inner, event: &QmpEvent, told: &mut Vec<Event>) {
    let connected = event.data.get("open").and_then(Value::as_bool) == Some(true);
    let Some(id) = event.text("id") else { return };
    let Some(devices) = inner.live.child_mut("devices") else { return };
    let Some(target) = devices
        .children_mut("channel")
        .find(|channel| alias_of(channel) == Some(id))
        .and_then(|channel| channel.child_mut("target"))
    else {
        return;
    };
    target.set_attr("state", if connected { "connected" } else { "disconnected" });
    if target.attr("name") == Some(AGENT_PORT) && inner.agent_connected != connected {
        inner.agent_connected = connected;
        told.push(Event::AgentLifecycle { connected });
    }
}

pub(crate) fn alias_of(device: &Element) -> Option<&str> {
    device.child("alias")?.attr("name")
}

fn disks(live: &Element) -> impl Iterator<Item = &Element> {
    live.child("devices").into_iter().flat_map(|devices| devices.children("disk"))
}

fn disk_by_target<'a>(live: &'a Element, target: &str) -> Option<&'a Element> {
    disks(live).find(|disk| disk.child("target").and_then(|t| t.attr("dev")) == Some(target))
}

/// `/machine/peripheral/ALIAS/virtio-backend` and the like.
fn disk_by_qom_path<'a>(live: &'a Element, path: &str) -> Option<&'a Element> {
    disks(live)
        .find(|disk| alias_of(disk).is_some_and(|alias| path.split('/').any(|part| part == alias)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use serde_json::json;
    use virtsnap_engine::inspect::Pauses;

    use super::*;

    const LIVE: &str = "<domain><clock offset='variable' adjustment='10'/><devices>\
        <disk><target dev='sda' bus='sata'/><alias name='sata0-0-0'/></disk>\
        <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/>\
        <alias name='channel0'/></channel></devices></domain>";

    fn running() -> Inner {
        let live = Element::parse(LIVE).unwrap();
        Inner::new(live, State::Running(RunningReason::Booted), BTreeMap::new())
    }

    fn event(name: &str, data: Value) -> QmpEvent {
        QmpEvent { name: name.to_owned(), data, seconds: 0, micros: 0 }
    }

    fn told(inner: &mut Inner, name: &str, data: Value) -> (Vec<Event>, Next) {
        let mut told = Vec::new();
        let next = translate(inner, &event(name, data), &mut told);
        (told, next)
    }

    #[test]
    fn stop_and_resume_carry_the_reason_that_was_said() {
        let mut inner = running();
        inner.pausing = Some(PausedReason::User);
        let suspended = vec![Event::Suspended(Suspended::Paused)];
        assert_eq!(told(&mut inner, "STOP", Value::Null).0, suspended);
        assert_eq!(inner.state, State::Paused(PausedReason::User));
        assert_eq!(told(&mut inner, "STOP", Value::Null).0, [], "told once");
        inner.resuming = Some(RunningReason::FromSnapshot);
        let resumed = vec![Event::Resumed(Resumed::FromSnapshot)];
        assert_eq!(told(&mut inner, "RESUME", Value::Null).0, resumed);
        assert_eq!(inner.state, State::Running(RunningReason::FromSnapshot));
    }

    #[test]
    fn pauses_are_counted_once_they_are_over() {
        let mut inner = running();
        let at = |inner: &mut Inner, name: &str, seconds, micros| {
            let event = QmpEvent { name: name.to_owned(), data: Value::Null, seconds, micros };
            translate(inner, &event, &mut Vec::new());
            inner.standing.pauses()
        };
        let pauses = |millis, is_on| Pauses { over: Duration::from_millis(millis), is_on };
        // One that was started paused was not stopped.
        assert_eq!(at(&mut inner, "RESUME", 5, 0), pauses(0, false));
        assert_eq!(at(&mut inner, "STOP", 10, 900_000), pauses(0, true));
        assert_eq!(at(&mut inner, "RESUME", 11, 0), pauses(100, false));
        assert_eq!(at(&mut inner, "STOP", 20, 0), pauses(100, true));
        // The clock was set back.
        assert_eq!(at(&mut inner, "RESUME", 12, 0), pauses(100, false));
        // A step that nobody is told of is one of a guest that stands.
        at(&mut inner, "STOP", 30, 0);
        inner.is_stepping = true;
        at(&mut inner, "RESUME", 31, 0);
        at(&mut inner, "STOP", 32, 0);
        inner.is_stepping = false;
        assert_eq!(at(&mut inner, "RESUME", 33, 0), pauses(3100, false));
        assert_eq!(pauses(300, false).since(pauses(100, false)), Some(Duration::from_millis(200)));
        assert_eq!(pauses(100, true).since(pauses(100, false)), None, "it is not over");
    }

    #[test]
    fn a_guest_that_shuts_down_ends() {
        let mut inner = running();
        let data = json!({ "guest": true, "reason": "guest-shutdown" });
        let (events, next) = told(&mut inner, "SHUTDOWN", data);
        assert_eq!(events, [Event::Shutdown(ShutdownBy::Guest)]);
        assert_eq!((next, inner.stopping), (Next::End, Some(ShutOffReason::Shutdown)));
    }

    #[test]
    fn a_reboot_hides_its_shutdown() {
        let mut inner = running();
        inner.rebooting = true;
        let data = json!({ "guest": true, "reason": "guest-shutdown" });
        assert_eq!(told(&mut inner, "SHUTDOWN", data), (vec![], Next::Restart));
        assert_eq!(told(&mut inner, "STOP", Value::Null).0, []);
        assert_eq!(told(&mut inner, "RESET", Value::Null).0, [Event::Reboot]);
        assert!(matches!(inner.state, State::Running(_)));
    }

    #[test]
    fn destroying_during_a_reboot_is_not_answered_by_a_reset() {
        let mut inner = running();
        inner.rebooting = true;
        let data = json!({ "guest": false, "reason": "host-signal" });
        let (events, next) = told(&mut inner, "SHUTDOWN", data);
        assert_eq!((events, next), (vec![Event::Shutdown(ShutdownBy::Host)], Next::Nothing));
    }

    #[test]
    fn a_panic_does_what_on_crash_says() {
        let mut inner = running();
        assert_eq!(
            told(&mut inner, "GUEST_PANICKED", json!({})),
            (vec![Event::Crashed], Next::End)
        );
        let mut inner = running();
        inner.live.child_or_insert("on_crash").set_text("preserve");
        let (events, next) = told(&mut inner, "GUEST_PANICKED", json!({}));
        assert_eq!((events, next), (vec![Event::Crashed], Next::Nothing));
        assert_eq!(inner.state, State::Crashed);
    }

    #[test]
    fn the_clock_of_a_variable_offset_follows_the_guest() {
        let mut inner = running();
        inner.clock_base = 10;
        let (events, _) = told(&mut inner, "RTC_CHANGE", json!({ "offset": 5 }));
        assert_eq!(events, [Event::RtcChange { offset: 15 }]);
        assert_eq!(inner.live.child("clock").unwrap().attr("adjustment"), Some("15"));
    }

    #[test]
    fn the_agent_and_the_tray_show_in_the_live_definition() {
        let mut inner = running();
        let (events, _) =
            told(&mut inner, "VSERPORT_CHANGE", json!({ "open": true, "id": "channel0" }));
        assert_eq!(events, [Event::AgentLifecycle { connected: true }]);
        let data =
            json!({ "device": "", "id": "/machine/peripheral/sata0-0-0", "tray-open": true });
        let (events, _) = told(&mut inner, "DEVICE_TRAY_MOVED", data);
        assert_eq!(events, [Event::TrayChange { alias: "sata0-0-0".to_owned(), opened: true }]);
        let text = inner.live.to_string();
        assert!(text.contains("state='connected'") && text.contains("tray='open'"), "{text}");
    }

    #[test]
    fn what_is_malformed_or_unknown_changes_nothing() {
        for name in [
            "RTC_CHANGE",
            "DEVICE_DELETED",
            "DEVICE_TRAY_MOVED",
            "BALLOON_CHANGE",
            "VSERPORT_CHANGE",
            "NOVEL",
        ] {
            let mut inner = running();
            assert_eq!(
                told(&mut inner, name, json!({ "id": 7 })),
                (vec![], Next::Nothing),
                "{name}"
            );
        }
    }
}
