//! Values inside devices: the number in a disk's name, how a MAC address and a number are written.

/// `vda` → 0, `sdaa` → 26: the letters after the bus prefix, and a partition's digits ignored.
pub fn disk_index(target: &str) -> Option<u32> {
    const PREFIXES: [&str; 6] = ["fd", "hd", "vd", "sd", "xvd", "ubd"];
    let letters = PREFIXES.iter().find_map(|prefix| target.strip_prefix(prefix))?;
    let letters = letters.trim_end_matches(|c: char| c.is_ascii_digit());
    if letters.is_empty() || !letters.bytes().all(|b| b.is_ascii_lowercase()) {
        return None;
    }
    letters
        .bytes()
        .try_fold(0_u32, |index, letter| {
            index.checked_mul(26)?.checked_add(u32::from(letter - b'a') + 1)
        })?
        .checked_sub(1)
}

/// Six octets, two lower-case digits each; what is no address of one card is none.
pub fn normal_mac(text: &str) -> Option<String> {
    let octets: Vec<u8> = text
        .split(':')
        .map(|octet| u8::from_str_radix(octet, 16).ok().filter(|_| octet.len() <= 2))
        .collect::<Option<_>>()?;
    let multicast = octets.first().is_some_and(|first| first & 1 == 1);
    if octets.len() != 6 || multicast {
        return None;
    }
    Some(octets.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":"))
}

/// A number as libvirt reads one: decimal, or hexadecimal after `0x`.
pub fn parse_number(text: &str) -> Option<u32> {
    let text = text.trim();
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_have_numbers() {
        assert_eq!(disk_index("vda"), Some(0));
        assert_eq!(disk_index("hdc"), Some(2));
        assert_eq!(disk_index("sdz"), Some(25));
        assert_eq!(disk_index("vdaa"), Some(26));
        assert_eq!(disk_index("sda1"), Some(0));
        assert_eq!(disk_index("nvme0"), None);
        assert_eq!(disk_index("vd"), None);
        assert_eq!(disk_index("vdzzzzzzzzzzzz"), None);
    }

    #[test]
    fn addresses_are_of_one_card() {
        assert_eq!(normal_mac("0:16:3E:a:0B:c").as_deref(), Some("00:16:3e:0a:0b:0c"));
        assert_eq!(normal_mac("01:16:3e:00:00:00"), None);
        assert_eq!(normal_mac("00:16:3e:00:00"), None);
        assert_eq!(normal_mac("00:16:3e:00:00:100"), None);
    }
}
