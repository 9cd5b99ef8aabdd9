//! How long a download goes on after its lease is revoked.

use tokio::{sync::oneshot, task::spawn_blocking, time::Instant};

use super::{
    GatewayCuts,
    lab::{ENDLESS, GatewayLab},
    light_client::LightTarget,
};
use crate::{
    dev::{Role, bench::figure::Sample, demo::describe},
    proto::v1,
};

/// Bytes that a client has read when the lease is revoked.
const UNDER_WAY: u64 = 1 << 20;

impl GatewayLab<'_> {
    /// Revokes leases in the middle of a download, and measures when each download ends.
    pub(super) async fn measure_cuts(&mut self, times: usize) -> Result<GatewayCuts, String> {
        let (mut confirmed, mut cut) = (Sample::new()?, Sample::new()?);
        let mut operator = self.stage.operator_client(Role::Operator)?;
        let target = self.gateway_target()?;
        for _ in 0..times {
            let (lease, token) = self.issue(v1::Half::Reading).await?;
            let request = self.read_request(ENDLESS.0, &token).whole();
            let (begun, is_begun) = oneshot::channel();
            let target = target.clone();
            let reader = spawn_blocking(move || read_until_cut(&target, &request, begun));
            if is_begun.await.is_err() {
                reader.await.map_err(|e| e.to_string())??;
                return Err("a download did not begin".to_owned());
            }
            let request = v1::RevokeRequest {
                name: format!("lease:{lease}"),
                reason: "bench".into(),
                ..Default::default()
            };
            let from = Instant::now();
            operator.revoke(request).await.map_err(|status| describe(&status))?;
            confirmed.record(from.elapsed());
            let ended = reader.await.map_err(|e| e.to_string())??;
            cut.record(ended.saturating_duration_since(from));
        }
        Ok(GatewayCuts { confirmed: confirmed.measured(), cut: cut.measured() })
    }
}

/// Reads until the connection ends, and returns the time of its end.
fn read_until_cut(
    target: &LightTarget,
    request: &[u8],
    begun: oneshot::Sender<()>,
) -> Result<Instant, String> {
    let mut client = target.connect().map_err(|e| e.to_string())?;
    let head = client.begin(request).map_err(|e| e.to_string())?;
    let (mut got, mut begun) = (head.got, Some(begun));
    loop {
        match client.read_some() {
            Ok(read) => got = got.saturating_add(read as u64),
            // A timeout of a read shows that nothing cut the download.
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) =>
            {
                return Err("a download stood still and was not cut".to_owned());
            }
            Err(_) if begun.is_none() => return Ok(Instant::now()),
            Err(error) => return Err(format!("a download ended before its lease was revoked: {error}")),
        }
        if got >= UNDER_WAY
            && let Some(begun) = begun.take()
            && begun.send(()).is_err()
        {
            return Err("the bench was stopped".to_owned());
        }
        if got >= head.length {
            return Err("a download was not cut".to_owned());
        }
    }
}
