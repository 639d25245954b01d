//! A disk on NBD: as `<source protocol='nbd'>`, and as the URI that QEMU and image headers have
//! for it.

use std::fmt;

use crate::element::Element;

const PORT: &str = "10809";

/// An export of an NBD server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nbd {
    pub server: Server,
    /// Empty: the server's default.
    pub export: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    Tcp {
        host: String,
        port: String,
    },
    /// The path of a socket.
    Unix(String),
}

impl Nbd {
    /// None: not NBD, or not one host that can be named.
    pub fn from_source(source: &Element) -> Option<Self> {
        let mut hosts = source.children("host");
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return None };
        let server = match host.attr("transport") {
            None | Some("tcp") => Server::Tcp {
                host: host.attr("name").filter(|name| !name.is_empty())?.to_owned(),
                port: host.attr("port").unwrap_or(PORT).to_owned(),
            },
            Some("unix") => Server::Unix(host.attr("socket")?.to_owned()),
            Some(_) => return None,
        };
        let export = source.attr("name").unwrap_or_default().to_owned();
        (source.attr("protocol") == Some("nbd")).then_some(Self { server, export })
    }

    /// Of the URIs that [`Display`](fmt::Display) writes, and of others that QEMU takes.
    pub fn from_uri(uri: &str) -> Option<Self> {
        if let Some(rest) = uri.strip_prefix("nbd+unix:///") {
            let (export, socket) = rest.split_once("?socket=")?;
            return Some(Self { server: Server::Unix(decode(socket)?), export: decode(export)? });
        }
        let rest = uri.strip_prefix("nbd://").or_else(|| uri.strip_prefix("nbd+tcp://"))?;
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']')?;
                (host, port.strip_prefix(':').unwrap_or(PORT))
            }
            None => authority.split_once(':').unwrap_or((authority, PORT)),
        };
        let server = Server::Tcp { host: decode(host)?, port: port.to_owned() };
        (!host.is_empty()).then_some(Self { server, export: decode(export)? })
    }

    /// `<source>` as libvirt prints it.
    pub fn to_source(&self) -> Element {
        let mut source = Element::new("source").with_attr("protocol", "nbd");
        if !self.export.is_empty() {
            source.set_attr("name", self.export.clone());
        }
        let host = Element::new("host");
        source.with_child(match &self.server {
            Server::Tcp { host: name, port } => {
                host.with_attr("name", name.clone()).with_attr("port", port.clone())
            }
            Server::Unix(socket) => {
                host.with_attr("transport", "unix").with_attr("socket", socket.clone())
            }
        })
    }
}

/// The URI.
impl fmt::Display for Nbd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = encode(&self.export);
        match &self.server {
            Server::Tcp { host, port } if host.contains(':') => {
                write!(f, "nbd://[{host}]:{port}/{export}")
            }
            Server::Tcp { host, port } => write!(f, "nbd://{}:{port}/{export}", encode(host)),
            Server::Unix(socket) => write!(f, "nbd+unix:///{export}?socket={}", encode(socket)),
        }
    }
}

fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let value = digit(rest.next())? * 16 + digit(rest.next())?;
        bytes.push(u8::try_from(value).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_and_the_uri_say_the_same() {
        for (source, uri) in [
            (
                "<source protocol='nbd' name='disk 1'><host name='h.example' port='10810'/></source>",
                "nbd://h.example:10810/disk%201",
            ),
            ("<source protocol='nbd'><host name='::1' port='1'/></source>", "nbd://[::1]:1/"),
            (
                "<source protocol='nbd' name='a,b'><host transport='unix' socket='/s ?'/></source>",
                "nbd+unix:///a%2Cb?socket=/s%20%3F",
            ),
        ] {
            let source = Element::parse(source).unwrap();
            let nbd = Nbd::from_source(&source).unwrap();
            assert_eq!(nbd.to_string(), uri);
            assert_eq!(Nbd::from_uri(uri).unwrap(), nbd);
            assert_eq!(nbd.to_source(), source);
        }
        let other = Nbd::from_uri("nbd+tcp://h").unwrap();
        assert_eq!(other.to_string(), "nbd://h:10809/");
        for uri in ["/a/b", "nbd:///x", "rbd://h/x", "nbd+unix:///x", "nbd://h/%zz"] {
            assert_eq!(Nbd::from_uri(uri), None, "{uri}");
        }
    }
}
