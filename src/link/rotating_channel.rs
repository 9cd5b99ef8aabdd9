//! A channel that is made anew when our SVID was rotated.

use std::sync::{Mutex, PoisonError};

use tonic::transport::Channel;

use super::connect::Connector;

/// Gives a gRPC channel whose connection was made with our present SVID: after a rotation the next call goes over a new one,
/// while calls under way end on the old. A connection that the server ends at its SVID's NotAfter would fail one call first.
pub struct RotatingChannel {
    connector: Connector,
    made: Mutex<Made>,
}

struct Made {
    /// The digest of the SVID that there was then.
    svid: Option<[u8; 32]>,
    channel: Channel,
}

impl RotatingChannel {
    /// Connects at the first call. Must be called inside a Tokio runtime, as [`RotatingChannel::channel`] must.
    pub fn new(connector: Connector) -> Self {
        let made = Made { svid: connector.own_svid(), channel: connector.channel() };
        RotatingChannel { connector, made: Mutex::new(made) }
    }

    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// The channel for the next call.
    pub fn channel(&self) -> Channel {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let svid = self.connector.own_svid();
        // One that was taken away is no reason to leave a connection that stands.
        if svid.is_some() && svid != made.svid {
            *made = Made { svid, channel: self.connector.channel() };
        }
        made.channel.clone()
    }
}
