//! Streams: bytes that flow beside a call, under its serial.

use std::fmt;

use tokio::io::{AsyncRead, AsyncWrite};

pub(crate) type Source = Box<dyn AsyncRead + Send + Unpin>;
pub(crate) type Sink = Box<dyn AsyncWrite + Send + Unpin>;

/// What a call hands over to be streamed: where the client's data comes from and goes to.
#[derive(Default)]
pub(crate) struct ServerStream {
    pub(crate) source: Option<Source>,
    pub(crate) sink: Option<Sink>,
}

impl ServerStream {
    /// Server to client, as for a screenshot.
    pub(crate) fn download(source: impl AsyncRead + Send + Unpin + 'static) -> Self {
        Self { source: Some(Box::new(source)), sink: None }
    }

    /// Both ways, as for a console.
    pub(crate) fn duplex(
        source: impl AsyncRead + Send + Unpin + 'static,
        sink: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Self { source: Some(Box::new(source)), sink: Some(Box::new(sink)) }
    }
}

impl fmt::Debug for ServerStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerStream")
            .field("source", &self.source.is_some())
            .field("sink", &self.sink.is_some())
            .finish()
    }
}
