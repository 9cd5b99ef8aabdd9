//! The connection of a member to the daemon: how it is lost, replaced and restored.

use std::time::Duration;

use super::{
    live::LiveMember,
    stream::{BeatStream, Connected},
};
use crate::{
    agent::access::access_end::AccessEnd,
    backoff::Backoff,
    clock::LeaseTime,
    identity::Trust,
    limits::RETRY_MAX,
    proto::v1,
    reason::{MemberStep, Reason, Refusal},
    written::span_text,
};

/// Whether the member has an open stream.
pub(super) enum MemberConnection {
    Up(BeatStream),
    Down(Disconnection),
}

pub(super) struct Disconnection {
    since: LeaseTime,
    pub(super) retry_at: Option<LeaseTime>,
    backoff: Backoff,
    is_reported: bool,
}

impl MemberConnection {
    /// Waits for the next message. Does not return while the connection is down.
    pub(super) async fn next_message(&mut self) -> Result<Option<v1::KeepAliveResponse>, tonic::Status> {
        match self {
            MemberConnection::Up(stream) => stream.message().await,
            MemberConnection::Down(_) => std::future::pending().await,
        }
    }

    /// Notes that a message has arrived.
    pub(super) fn mark_alive(&mut self, now: LeaseTime) {
        if let MemberConnection::Up(stream) = self {
            stream.mark_alive(now);
        }
    }
}

impl LiveMember {
    /// Notes that the stream is lost. The daemon counts this member as away and ends its leases.
    pub(super) fn lose_connection(&mut self, now: LeaseTime) {
        if matches!(self.connection, MemberConnection::Down(_)) {
            return;
        }
        let mut backoff = Backoff::default();
        let retry_at = Some(now.plus(backoff.next_wait()));
        self.replace_at = None;
        self.connection =
            MemberConnection::Down(Disconnection { since: now, retry_at, backoff, is_reported: false });
    }

    /// Connects again if the SVID was renewed.
    pub(super) fn on_identity(&mut self, trust: &Trust) {
        let svid = certificate_digest(trust);
        if svid.is_some() && svid != self.svid_digest {
            self.svid_digest = svid;
            let now = self.context.clock.now().lease;
            match &mut self.connection {
                MemberConnection::Up(_) => self.replace_at = Some(now),
                MemberConnection::Down(outage) => outage.retry_at = outage.retry_at.map(|_| now),
            }
        }
    }

    pub(super) fn on_connected(&mut self, connected: Connected) {
        let now = self.context.clock.now().lease;
        self.is_connecting = false;
        self.replace_at = None;
        self.calls = connected.calls;
        self.lead_ms = connected.stream.lead_ms;
        self.credentials.update_offers(connected.offers, &self.session, now);
        // The old stream is dropped only now: a member that has a stream is never away.
        let before = std::mem::replace(&mut self.connection, MemberConnection::Up(connected.stream));
        if connected.epoch == self.epoch {
            self.credentials.request_now(now);
        } else {
            self.epoch = connected.epoch;
            self.credentials.replace_leases(now);
        }
        if let MemberConnection::Down(Disconnection { is_reported: true, .. }) = before {
            self.context.messages.send("the daemon is back: requesting new credentials");
        }
    }

    pub(super) fn on_connect_refused(&mut self, refusal: Refusal) -> Option<AccessEnd> {
        let now = self.context.clock.now().lease;
        self.is_connecting = false;
        let MemberConnection::Down(outage) = &mut self.connection else {
            // The old stream is still open. If access ends, that stream reports it. Try the replacement again later.
            self.replace_at = Some(now.plus(RETRY_MAX));
            return None;
        };
        if !matches!(refusal.reason.member_step(), MemberStep::TryLater | MemberStep::ReplaceLease) {
            return Some(AccessEnd::of_refusal(refusal));
        }
        if now.since(outage.since) >= self.context.rejoin_window {
            outage.retry_at = None;
            self.context.messages.send(&format!(
                "the daemon has been away for {}, longer than `rejoin` allows: no longer trying to reconnect; your program is not at fault and goes on without access; start it again to get new access",
                span_text(Duration::from_secs(self.context.rejoin_window.as_secs()))
            ));
            return None;
        }
        outage.retry_at = Some(now.plus(outage.backoff.next_wait()));
        if !std::mem::replace(&mut outage.is_reported, true) {
            self.report_outage(&refusal);
        }
        None
    }

    fn report_outage(&self, refusal: &Refusal) {
        let what = match refusal.reason {
            Reason::Unreachable | Reason::ShuttingDown => "the daemon is away",
            _ => "the daemon does not let this member rejoin yet",
        };
        let until = self.credentials.last_expiry().map_or_else(
            || "no credentials are left".to_owned(),
            |at| {
                let at = self.context.clock.now().wall_at(at);
                format!(
                    "servers that follow or ask the daemon refuse your credentials until it is back, and other servers accept them until {at} at the latest"
                )
            },
        );
        self.context.messages.send(&format!(
            "{what} ({}: {refusal}): {until}; your program goes on; trying to reconnect",
            refusal.reason
        ));
    }
}

/// The SHA-256 digest of the present certificate.
pub(super) fn certificate_digest(trust: &Trust) -> Option<[u8; 32]> {
    trust.svid.as_ref().map(|svid| svid.leaf().x5t_s256)
}
