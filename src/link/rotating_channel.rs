//! A gRPC channel that is replaced after our SVID is rotated.

use std::sync::{Mutex, PoisonError};

use tonic::transport::Channel;

use super::connect::Connector;

/// Gives a gRPC channel that was opened with our present SVID. After a rotation, the next call uses a new channel, and pending
/// calls finish on the old channel. With one channel, the first call after the old SVID's NotAfter would fail.
pub struct RotatingChannel {
    connector: Connector,
    current: Mutex<OpenedChannel>,
}

struct OpenedChannel {
    /// The digest of the SVID with which the channel was opened.
    svid: Option<[u8; 32]>,
    channel: Channel,
}

impl RotatingChannel {
    /// Makes a channel that connects at the first call. Must be called inside a Tokio runtime, like [`RotatingChannel::channel`].
    pub fn new(connector: Connector) -> Self {
        let opened = OpenedChannel { svid: connector.own_svid_digest(), channel: connector.channel() };
        RotatingChannel { connector, current: Mutex::new(opened) }
    }

    /// Returns the connector that opens the channels.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Returns the channel for the next call.
    pub fn channel(&self) -> Channel {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let svid = self.connector.own_svid_digest();
        // If our SVID was revoked, the open connection stays.
        if svid.is_some() && svid != current.svid {
            *current = OpenedChannel { svid, channel: self.connector.channel() };
        }
        current.channel.clone()
    }
}
