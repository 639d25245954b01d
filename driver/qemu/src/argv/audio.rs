//! Audio backends and sound cards.

use virtsnap_engine::error::{Condition, Error, Result};

use super::props::Props;
use super::read::View;
use super::{Build, lacks, refuse};

impl<'a> Build<'a> {
    pub(super) fn audiodevs(&mut self) -> Result<()> {
        for audio in self.devices.children("audio") {
            let driver = match audio.need("type")? {
                "pulseaudio" => "pa",
                "file" => "wav",
                same @ ("none" | "alsa" | "jack" | "oss" | "sdl" | "spice" | "dbus"
                | "pipewire" | "coreaudio") => same,
                other => return refuse(format!("audio of type '{other}' is not supported")),
            };
            if audio.elements().any(|child| child.name() != "alias") {
                return refuse("<audio>: settings of input and output are not supported");
            }
            let props = Props::new()
                .with("id", format!("audio{}", audio.need("id")?))
                .with("driver", driver)
                .positive("timer-period", audio.number("timerPeriod")?)
                .some("server", audio.attr("serverName"))
                .some("path", audio.attr("path"));
            self.json("-audiodev", props);
        }
        Ok(())
    }

    /// The backend that a sound card or a VNC server names, or else the first one.
    pub(super) fn audio_id(&self, user: View<'_>) -> Result<u64> {
        let said = user.child("audio").map(|audio| audio.number("id")).transpose()?.flatten();
        let ids = self.devices.children("audio").into_iter().map(|audio| audio.number("id"));
        let ids = ids.collect::<Result<Vec<_>>>()?;
        match said {
            Some(id) if ids.contains(&Some(id)) => Ok(id),
            Some(id) => Err(Error::new(
                Condition::XmlError,
                format!("a <{}> names the audio backend {id}, which is not there", user.name()),
            )),
            None => ids.into_iter().flatten().next().ok_or_else(|| lacks("<audio>")),
        }
    }

    /// The PC speaker is part of the machine.
    pub(super) fn speaker(&self) -> Option<View<'a>> {
        let sounds = self.devices.children("sound");
        sounds.into_iter().find(|sound| sound.attr("model") == Some("pcspk"))
    }

    pub(super) fn sounds(&mut self) -> Result<()> {
        for sound in self.devices.children("sound") {
            let model = sound.need("model")?;
            let alias = sound.alias()?;
            let driver = match model {
                "pcspk" => continue,
                "es1370" => "ES1370",
                "ac97" => "AC97",
                "ich6" => "intel-hda",
                "ich9" => "ich9-intel-hda",
                "usb" => "usb-audio",
                "sb16" => "sb16",
                "virtio" => "virtio-sound-pci",
                other => return refuse(format!("the sound card '{other}' is not supported")),
            };
            let has_codecs = matches!(model, "ich6" | "ich9");
            let mut props = match model {
                "virtio" => self.virtio(sound, "virtio-sound")?,
                _ => Props::device(driver),
            }
            .with("id", alias);
            if !has_codecs {
                props = props.with("audiodev", format!("audio{}", self.audio_id(sound)?));
            }
            let props = props
                .some("multi", sound.switch("multichannel")?)
                .positive("streams", sound.number("streams")?);
            self.device(self.place(sound, props)?);
            if has_codecs {
                self.codecs(sound, alias)?;
            }
        }
        Ok(())
    }

    fn codecs(&mut self, sound: View<'_>, alias: &str) -> Result<()> {
        let mut codecs =
            sound.children("codec").into_iter().map(|c| c.attr("type")).collect::<Vec<_>>();
        if codecs.is_empty() {
            codecs.push(Some("duplex"));
        }
        let audio = format!("audio{}", self.audio_id(sound)?);
        for (at, codec) in codecs.into_iter().enumerate() {
            let driver = match codec {
                Some("duplex") => "hda-duplex",
                Some("micro") => "hda-micro",
                Some("output") => "hda-output",
                other => return refuse(format!("the sound codec {other:?} is not supported")),
            };
            let props = Props::device(driver)
                .with("id", format!("{alias}-codec{at}"))
                .with("bus", format!("{alias}.0"))
                .with("cad", at)
                .with("audiodev", audio.as_str());
            self.device(props);
        }
        Ok(())
    }
}
