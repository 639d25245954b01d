//! What a domain is to Xen, and what its three names are.

use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

/// How a guest is virtualised (`libxl_domain_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// It knows Xen and has no emulated machine.
    Pv,
    /// As PV, in a hardware container.
    Pvh,
    /// A whole machine, which QEMU emulates.
    Hvm,
}

impl Guest {
    pub const ALL: [Self; 3] = [Self::Pv, Self::Pvh, Self::Hvm];

    /// By `<os><type>`; libvirt reads `xen` where it writes `linux`.
    pub fn of(definition: &Element) -> Option<Self> {
        let os_type = domain::os_type(definition)?;
        match os_type.trim() {
            "xen" => Some(Self::Pv),
            other => Self::ALL.into_iter().find(|guest| guest.os_type() == other),
        }
    }

    /// By libxl's name.
    pub fn called(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|guest| guest.name() == name)
    }

    /// The text of `<os><type>`.
    pub fn os_type(self) -> &'static str {
        match self {
            Self::Pv => "linux",
            Self::Pvh => "xenpvh",
            Self::Hvm => "hvm",
        }
    }

    pub fn machine(self) -> &'static str {
        match self {
            Self::Pv => "xenpv",
            Self::Pvh => "xenpvh",
            Self::Hvm => "xenfv",
        }
    }

    /// libxl's own name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pv => "pv",
            Self::Pvh => "pvh",
            Self::Hvm => "hvm",
        }
    }

    pub fn is_hvm(self) -> bool {
        self == Self::Hvm
    }
}
