//! `-rtc` and the timers.

use virtsnap_engine::error::{Condition, Error, Result};

use super::read::View;
use super::{Build, refuse};

impl<'a> Build<'a> {
    pub(super) fn timer_list(&self) -> Vec<View<'a>> {
        self.domain.child("clock").map(|clock| clock.children("timer")).unwrap_or_default()
    }

    pub(super) fn timer_present(&self, name: &str) -> Result<Option<bool>> {
        let timers = self.timer_list();
        let timer = timers.into_iter().find(|timer| timer.attr("name") == Some(name));
        Ok(timer.map(|timer| timer.switch("present")).transpose()?.flatten())
    }

    pub(super) fn clock(&mut self) -> Result<()> {
        let mut option = format!("base={}", self.base()?);
        let mut globals = Vec::new();
        for timer in self.timer_list() {
            let policy = timer.attr("tickpolicy");
            match timer.need("name")? {
                "rtc" => option.push_str(rtc_timer(timer, policy)?),
                "pit" => {
                    let lost = match policy {
                        None | Some("delay") => "delay",
                        Some("discard") => "discard",
                        Some("catchup") => continue,
                        Some(other) => {
                            return refuse(format!(
                                "the PIT tick policy '{other}' is not supported"
                            ));
                        }
                    };
                    if self.context.qemu.has_device("kvm-pit") {
                        globals.push(format!("kvm-pit.lost_tick_policy={lost}"));
                    }
                }
                "hpet" | "tsc" | "kvmclock" | "hypervclock" => {}
                other => return refuse(format!("the timer '{other}' is not supported")),
            }
            timer.switch("present")?;
        }
        self.arg("-rtc", option);
        for global in globals {
            self.arg("-global", global);
        }
        Ok(())
    }

    fn base(&mut self) -> Result<String> {
        let Some(clock) = self.domain.child("clock") else {
            return Ok("utc".to_owned());
        };
        clock.attr("adjustment0");
        let adjustment = clock.attr("adjustment");
        match clock.attr("offset") {
            Some("utc") | None => Ok("utc".to_owned()),
            Some("localtime") => Ok("localtime".to_owned()),
            Some("timezone") => {
                let zone = clock.need("timezone")?.to_owned();
                self.out.env.push(("TZ".to_owned(), zone));
                Ok("localtime".to_owned())
            }
            Some("variable") => {
                let mut seconds = signed(adjustment.unwrap_or("0"))?;
                if clock.attr("basis") == Some("localtime") {
                    seconds = seconds.saturating_add(self.context.local_offset);
                }
                date(self.context.now.saturating_add(seconds))
            }
            Some("absolute") => date(signed(clock.need("start")?)?),
            Some(other) => refuse(format!("the clock offset '{other}' is not supported")),
        }
    }
}

fn rtc_timer(timer: View<'_>, policy: Option<&str>) -> Result<&'static str> {
    let track = timer.attr("track");
    Ok(match (track, policy) {
        (None, None | Some("delay")) => "",
        (None, Some("catchup")) => ",driftfix=slew",
        (Some("guest"), None | Some("delay")) => ",clock=vm",
        (Some("guest"), Some("catchup")) => ",clock=vm,driftfix=slew",
        (Some("wall"), None | Some("delay")) => ",clock=host",
        (Some("wall"), Some("catchup")) => ",clock=host,driftfix=slew",
        (Some("realtime"), None | Some("delay")) => ",clock=rt",
        (Some("realtime"), Some("catchup")) => ",clock=rt,driftfix=slew",
        _ => {
            return refuse(format!(
                "the rtc timer's track {track:?} with tick policy {policy:?} is not supported"
            ));
        }
    })
}

fn signed(text: &str) -> Result<i64> {
    text.parse().map_err(|err| {
        Error::new(Condition::XmlError, format!("'{text}' in <clock> is not a number of seconds"))
            .caused_by(err)
    })
}

/// Seconds since the epoch as QEMU reads a date.
fn date(seconds: i64) -> Result<String> {
    let (days, in_day) = (seconds.div_euclid(86400), seconds.rem_euclid(86400));
    // Years beyond these are of no guest clock.
    if !(-719_162..=2_932_896).contains(&days) {
        return Err(Error::new(Condition::XmlError, "the guest clock's date is out of range"));
    }
    // Civil date from days, with years that start in March so that leap days come last.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (in_day / 3600, in_day / 60 % 60, in_day % 60);
    Ok(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(date(0).unwrap(), "1970-01-01T00:00:00");
        assert_eq!(date(951_782_400).unwrap(), "2000-02-29T00:00:00");
        assert_eq!(date(1_795_308_894).unwrap(), "2026-11-22T00:54:54");
        assert_eq!(date(-1).unwrap(), "1969-12-31T23:59:59");
        assert!(date(i64::MAX).is_err());
    }
}
