//! Clients that make as many calls as they can, and a record of the answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use leasehold::proto::v1::{self, Half, Outcome};
use tokio::task::JoinSet;

use super::{
    dice::Dice,
    process::{Place, durable},
};
use crate::harness::*;

/// The daemon's answers, which are promises.
#[derive(Default)]
pub struct Book {
    /// Jobs that were created, by their keys.
    pub jobs: BTreeMap<String, String>,
    /// The greatest attempt that began, by job.
    pub attempts: BTreeMap<String, u64>,
    /// Jobs whose end was reported as durable.
    pub closed: BTreeSet<String>,
    pub locks: BTreeMap<String, Fate>,
    /// Tokens, with their holders.
    pub tokens: Vec<(String, String)>,
    /// Leases that were renewed.
    pub renewed: u64,
}

/// What is known of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was reported as durable.
    Stands,
    /// Its lifting was confirmed.
    Lifted,
    /// Something is under way.
    Open,
}

/// Shared by all clients.
#[derive(Clone, Default)]
pub struct Books(Arc<Mutex<Book>>);

impl Books {
    pub fn open(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap()
    }
}

/// How many clients launch jobs, and how many lock, at the same time.
const LAUNCHERS: u64 = 3;
const LOCKERS: u64 = 2;
/// The greatest number of jobs of one launching client between two kills. Each job has a worker with its own identity.
const JOBS: u64 = 40;

/// Starts the clients; each goes on until a call fails.
pub fn begin(place: &Place, books: &Books, round: u64, dice: &mut Dice) -> JoinSet<()> {
    let mut work = JoinSet::new();
    for n in 0..LAUNCHERS {
        let holder = |job| format!("spiffe://k8s.acme.example/ns/ml/job/crash-{round}-{n}-{job}");
        let clients = Clients {
            launcher: place.client(LAUNCHER),
            operator: place.client(OPERATOR),
            workers: (0..JOBS).map(|job| place.client(&holder(job))).collect(),
        };
        let (books, dice, name) = (books.clone(), dice.split(), format!("{round}-{n}"));
        work.spawn(async move {
            let _ = clients.launch(&books, dice, &name).await;
        });
    }
    for n in 0..LOCKERS {
        let (operator, books) = (place.client(OPERATOR), books.clone());
        work.spawn(async move {
            let _ = lock(&operator, &books, &format!("{round}-{n}")).await;
        });
    }
    work
}

struct Clients {
    launcher: Client,
    operator: Client,
    workers: Vec<Client>,
}

impl Clients {
    /// Creates jobs one after the other: each is begun, joined, used, and ended in one of the possible ways.
    async fn launch(&self, books: &Books, mut dice: Dice, name: &str) -> Result<(), tonic::Status> {
        for (turn, worker) in self.workers.iter().enumerate() {
            let key = format!("{name}-{turn}");
            let spec = v1::JobSpec {
                members: Some(v1::Members {
                    join: vec![worker.id.clone()],
                    attempts: 2,
                    ..Default::default()
                }),
                ..spec()
            };
            let job = self.launcher.create(spec, &key).await?.into_inner().job.unwrap().id;
            books.open().jobs.insert(key, job.clone());
            let began = self.launcher.begin(&job, "run-1").await?.into_inner();
            books.open().attempts.insert(job.clone(), 1);
            let mut worker = Worker::join(worker.clone(), &job, 1, "rank-0", &began.ticket).await?;
            worker.stream = Some(worker.open_stream().await?);
            for half in [Half::Reading, Half::Writing] {
                let issued = worker.try_issue(half).await?.into_inner();
                books.open().tokens.push((issued.token.clone(), worker.client.id.clone()));
                let lease = issued.lease.unwrap().id;
                for _ in 0..dice.roll(4) {
                    let renewed = worker.renew(&lease).await?.into_inner();
                    let mut book = books.open();
                    book.tokens.push((renewed.token, worker.client.id.clone()));
                    book.renewed += 1;
                }
            }
            let ending = match dice.roll(5) {
                0 => self.launcher.end(&job, 1, Outcome::Completed).await?.into_inner().ending,
                1 => self.operator.revoke(&format!("job:{job}")).await?.into_inner().ending,
                2 => {
                    let outcome = Outcome::Cancelled as i32;
                    let request = v1::CloseJobRequest { job: job.clone(), outcome, reason: "enough".into() };
                    self.launcher.jobs().close_job(request).await?.into_inner().ending
                }
                3 => {
                    let failed = self.launcher.end(&job, 1, Outcome::Failed).await?.into_inner();
                    self.launcher.begin(&job, "run-2").await?;
                    books.open().attempts.insert(job.clone(), 2);
                    drop(failed);
                    self.launcher.end(&job, 2, Outcome::Interrupted).await?.into_inner().ending
                }
                // It goes on: the kill finds it running.
                _ => continue,
            };
            if durable(&self.operator, &ending.unwrap()).await {
                books.open().closed.insert(job);
            }
        }
        Ok(())
    }
}

/// Sets locks, and lifts every second one again.
async fn lock(operator: &Client, books: &Books, name: &str) -> Result<(), tonic::Status> {
    for turn in 0.. {
        let name = format!("identity:spiffe://k8s.acme.example/ns/ml/job/locked-{name}-{turn}");
        books.open().locks.insert(name.clone(), Fate::Open);
        let ending = operator.lock(&name).await?.into_inner().ending.unwrap();
        if !durable(operator, &ending).await {
            return Ok(());
        }
        books.open().locks.insert(name.clone(), Fate::Stands);
        if turn % 2 == 1 {
            books.open().locks.insert(name.clone(), Fate::Open);
            operator.unlock(&name).await?;
            books.open().locks.insert(name, Fate::Lifted);
        }
    }
    Ok(())
}
