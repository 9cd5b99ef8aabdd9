//! Many members in one process: each joins, beats, holds a credential, and reconnects when the daemon is gone.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use leasehold::{
    internals::backoff::Backoff,
    limits::{BEAT, CALL},
    proto::v1::{self, Half, notice::Kind},
    secret::Secret,
};
use tokio::{task::JoinSet, time::Instant};
use tonic::{Code, Response, Status};
use tonic_types::StatusExt;

use super::process::Place;
use crate::harness::*;

/// The greatest number of members of one job, which is the wide job.
const WIDE: usize = 400;
/// Members of each other job.
const NARROW: usize = 50;
/// The number of members that share a connection, which is below its limit of streams.
const ON_ONE_CONNECTION: usize = 20;

/// Members of several jobs, alive until their jobs are closed.
pub struct Fleet {
    pub jobs: Vec<String>,
    seats: Arc<Mutex<Vec<Seat>>>,
    tasks: JoinSet<()>,
}

/// The state of one member.
#[derive(Clone, Default)]
struct Seat {
    holder: String,
    /// The last run of the daemon in which it was attached with a credential, and the time of that.
    epoch: u64,
    at: Option<Instant>,
    token: String,
    /// Tries that came to nothing.
    failed: u64,
    /// The reason that it got at the end.
    over: Option<String>,
    /// An error that no member should get.
    fault: Option<String>,
}

impl Fleet {
    /// Creates the jobs, and starts all members at once.
    pub async fn launch(place: &Place, size: usize) -> Self {
        let launcher = place.client(LAUNCHER);
        let mut fleet = Fleet { jobs: Vec::new(), seats: Arc::default(), tasks: JoinSet::new() };
        let mut left = size;
        while left > 0 {
            let width = if fleet.jobs.is_empty() { WIDE } else { NARROW }.min(left);
            left -= width;
            let n = fleet.jobs.len();
            let holders: Vec<String> = (0..width.div_ceil(ON_ONE_CONNECTION))
                .map(|c| format!("spiffe://k8s.acme.example/ns/ml/job/fleet-{n}-{c}"))
                .collect();
            let count = u32::try_from(width).unwrap();
            let members =
                v1::Members { join: holders.clone(), expect: count, max: count, ..Default::default() };
            let spec = v1::JobSpec { members: Some(members), ..spec() };
            let key = format!("fleet {n}");
            let job = answered(async || launcher.create(spec.clone(), &key).await).await.job.unwrap().id;
            let began = answered(async || launcher.begin(&job, "run-1").await).await;
            fleet.man(place, &job, &began.ticket, &holders, width);
            fleet.jobs.push(job);
        }
        fleet
    }

    fn man(&mut self, place: &Place, job: &str, ticket: &str, holders: &[String], width: usize) {
        let clients: Vec<Client> = holders.iter().map(|id| place.client(id)).collect();
        for rank in 0..width {
            let client = clients[rank / ON_ONE_CONNECTION].clone();
            let number = {
                let mut seats = self.seats.lock().unwrap();
                seats.push(Seat { holder: client.id.clone(), ..Seat::default() });
                seats.len() - 1
            };
            let worker = Worker {
                client,
                job: job.to_owned(),
                attempt: 1,
                instance: format!("rank-{rank}"),
                secret: Secret::random().unwrap().expose().to_vec(),
                ticket: ticket.to_owned(),
                joined: v1::JoinAttemptResponse::default(),
                stream: None,
            };
            let member = Member { worker, number, seats: self.seats.clone() };
            self.tasks.spawn(member.live());
        }
    }

    /// How many are attached in this run of the daemon.
    pub fn back(&self, epoch: u64) -> usize {
        let seats = self.seats.lock().unwrap();
        if let Some(fault) = seats.iter().find_map(|s| s.fault.as_ref()) {
            panic!("a member met what none should: {fault}");
        }
        seats.iter().filter(|s| s.epoch == epoch).count()
    }

    /// When each came back.
    pub fn times(&self) -> Vec<Instant> {
        self.seats.lock().unwrap().iter().filter_map(|s| s.at).collect()
    }

    /// The sum of their failed tries.
    pub fn failed(&self) -> u64 {
        self.seats.lock().unwrap().iter().map(|s| s.failed).sum()
    }

    /// The newest token of each member, with its holder.
    pub fn tokens(&self) -> Vec<(String, String)> {
        self.seats.lock().unwrap().iter().map(|s| (s.token.clone(), s.holder.clone())).collect()
    }

    /// Waits until each knows that its job is closed.
    pub async fn is_over(&mut self) {
        soon("the end of the fleet", async {
            while let Some(done) = self.tasks.join_next().await {
                done.unwrap();
            }
        })
        .await;
        for seat in self.seats.lock().unwrap().iter() {
            assert_eq!((seat.over.as_deref(), &seat.fault), (Some("JOB_CLOSED"), &None), "{}", seat.holder);
        }
    }
}

/// One member. Like a wrapper, it goes on until its access is over for good.
struct Member {
    worker: Worker,
    number: usize,
    seats: Arc<Mutex<Vec<Seat>>>,
}

impl Member {
    async fn live(mut self) {
        let mut backoff = Backoff::default();
        loop {
            match self.attach().await {
                Some(Ok(())) => {
                    backoff.reset();
                    if let Some(reason) = self.stay().await {
                        return self.seat(|s| s.over = Some(reason));
                    }
                }
                // It was on its way back when the job was closed.
                Some(Err(status)) if reason(&status).as_deref() == Some("JOB_CLOSED") => {
                    return self.seat(|s| s.over = reason(&status));
                }
                Some(Err(status)) if !is_passing(&status) => {
                    return self.seat(|s| s.fault = Some(format!("{status:?}")));
                }
                Some(Err(_)) | None => self.seat(|s| s.failed += 1),
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    /// Joins, and opens its stream. `None` if no answer came in time.
    async fn attach(&mut self) -> Option<Result<(), Status>> {
        match tokio::time::timeout(CALL, self.worker.rejoin()).await.ok()? {
            Ok(()) => {}
            refused => return Some(refused),
        }
        let stream = tokio::time::timeout(CALL, self.worker.open_stream()).await.ok()?;
        Some(stream.map(|stream| self.worker.stream = Some(stream)))
    }

    /// Obtains a credential and beats, until the stream is lost or the access is over. Returns the reason if it is
    /// over.
    async fn stay(&mut self) -> Option<String> {
        let mut stream = self.worker.stream.take()?;
        let mut pace = tokio::time::interval(BEAT);
        let mut beat = 1;
        let (mut obtaining, mut has_obtained) = (std::pin::pin!(self.obtain()), false);
        loop {
            tokio::select! {
                message = stream.rx.message() => match message {
                    Ok(Some(v1::KeepAliveResponse { notice: Some(notice), .. })) => match notice.kind() {
                        Kind::Revoked => return Some(notice.reason),
                        Kind::Reconnect => return None,
                        Kind::Drain | Kind::Reissue | Kind::Unspecified => {}
                    },
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return None,
                },
                _ = pace.tick() => {
                    beat += 1;
                    let _ = stream.tx.try_send(v1::KeepAliveRequest { session: None, beat, goodbye: false });
                }
                () = &mut obtaining, if !has_obtained => has_obtained = true,
            }
        }
    }

    async fn obtain(&self) {
        let mut backoff = Backoff::default();
        loop {
            match tokio::time::timeout(CALL, self.worker.try_issue(Half::Reading)).await {
                Ok(Ok(issued)) => {
                    let (epoch, token) = (self.worker.joined.epoch, issued.into_inner().token);
                    return self.seat(|s| (s.epoch, s.at, s.token) = (epoch, Some(Instant::now()), token));
                }
                // The stream reports the end.
                Ok(Err(status))
                    if !is_passing(&status) && reason(&status).as_deref() != Some("JOB_CLOSED") =>
                {
                    return self.seat(|s| s.fault = Some(format!("{status:?}")));
                }
                Ok(Err(_)) | Err(_) => self.seat(|s| s.failed += 1),
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    fn seat(&self, change: impl FnOnce(&mut Seat)) {
        change(&mut self.seats.lock().unwrap()[self.number]);
    }
}

fn reason(status: &Status) -> Option<String> {
    Some(status.get_error_details().error_info()?.reason.clone())
}

/// Returns the answer, or nothing if the request may be repeated. While many members come back, a connection whose pings are
/// not answered in time is cut, and a wrapper repeats its request.
pub async fn answered<T>(ask: impl AsyncFn() -> Result<Response<T>, Status>) -> T {
    let mut backoff = Backoff::default();
    loop {
        match ask().await {
            Ok(answer) => return answer.into_inner(),
            Err(status) => assert!(is_passing(&status), "{status:?}"),
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// Whether nothing was decided, so that the same request may be repeated.
pub fn is_passing(status: &Status) -> bool {
    match reason(status).as_deref() {
        // It was counted as lost while it came back, as happens on a slow machine. Its leases have ended, and it joins
        // again.
        Some("NOT_JOINED" | "REVOKED") => true,
        Some(reason) => {
            matches!(reason, "SHUTTING_DOWN" | "OVERLOADED" | "CONTENDED" | "LEDGER_UNAVAILABLE")
        }
        // Without a reason, the error is from the connection and not from the daemon.
        None => matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded | Code::Internal
        ),
    }
}

/// The median, the 99th percentile and the maximum, in seconds.
pub fn spread(mut spans: Vec<Duration>) -> String {
    spans.sort_unstable();
    let Some(last) = spans.len().checked_sub(1) else { return "none".to_owned() };
    let at = |percent: usize| spans[last * percent / 100].as_secs_f64();
    format!("p50 {:.2} s, p99 {:.2} s, max {:.2} s", at(50), at(99), at(100))
}
