//! The story of one credential: how it is issued, what it opens, and every way in which its access ends.

use std::{sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    Claim, Stage,
    calls::{self, describe},
    story::Story,
    watch::{Checks, Observed, Stopwatch, within},
};
use crate::{
    dev::{Authority, FileClient, Role, Running, deployment::TENANT},
    proto::v1,
    secret::SecretText,
    token::Presenter,
};

/// The size of the file whose download is cut. It is larger than all buffers between the server and the client.
const BIG_FILE: u64 = 64 << 20;

pub(super) async fn run(stage: &Stage, report: &mut (dyn FnMut(&Claim) + Send)) -> Observed<bool> {
    let mut story = Story::new(stage, report);
    let big = stage.deployment.data.join("big.bin");
    let file = std::fs::File::create(&big).map_err(|e| e.to_string())?;
    file.set_len(BIG_FILE).map_err(|e| e.to_string())?;

    let (mut daemon, running) = story.open().await?;
    story.show_callers().await;
    story.show_policy().await;

    let holder = stage.trainer()?;
    let checks = Checks::of(&running.verifier, &holder)?;
    story.show_credential(&checks).await;
    story.show_download(&checks, &running).await;
    story.show_bucket().await;
    story.show_endings(&checks).await;
    story.show_second_attempt(&checks).await;
    story.show_expiry(&checks).await;
    let locked = story.show_lock(&checks).await;
    story.show_restart(&checks, &mut daemon, locked).await;
    story.close(daemon, running).await
}

impl Story<'_> {
    async fn show_callers(&mut self) {
        let start = Stopwatch::now();
        let seen = connect_without_certificate(self.stage).await;
        self.report("a caller without a certificate is refused", start, seen);

        let start = Stopwatch::now();
        let seen = async {
            let now = self.stage.clock.now().wall;
            let life = Duration::from_secs(600);
            let domain = "stranger.example".parse().map_err(|_| "no such domain")?;
            let stranger = Authority::generate(domain, now, life).map_err(|e| e.to_string())?;
            let id = stranger.id_at("/trainer").map_err(|e| e.to_string())?;
            match self.list_jobs_as(&stranger, &id).await? {
                Err(status) => Ok(describe(&status)),
                Ok(_) => Err("it was accepted".to_owned()),
            }
        }
        .await;
        self.report("a certificate from an unknown trust domain is refused", start, seen);

        let start = Stopwatch::now();
        let seen = async {
            let authority = self.stage.deployment.authority();
            let id = authority.id_at("/nobody").map_err(|e| e.to_string())?;
            match self.list_jobs_as(authority, &id).await? {
                Err(status) if calls::reason(&status) == "PRINCIPAL_UNKNOWN" => Ok(describe(&status)),
                Err(status) => Err(describe(&status)),
                Ok(_) => Err("it was served".to_owned()),
            }
        }
        .await;
        self.report("a certificate without a catalog entry may do nothing", start, seen);

        let start = Stopwatch::now();
        let seen = async {
            let mut client = self.stage.operator_client(Role::Trainer)?;
            let who = client.who_am_i(v1::WhoAmIRequest {}).await.map_err(|s| describe(&s))?.into_inner();
            if who.kind != "workload" {
                return Err(format!("its role is {:?}", who.kind));
            }
            Ok(format!("{} is a {} of {}, by {}", who.spiffe_id, who.kind, who.tenant, who.matched))
        }
        .await;
        self.report(
            "a job's program is recognised by its certificate, and needs no other secret",
            start,
            seen,
        );
    }

    /// Lists jobs with an SVID that is issued for this call.
    async fn list_jobs_as(
        &self,
        authority: &Authority,
        id: &crate::name::SpiffeId,
    ) -> Observed<Result<v1::ListJobsResponse, tonic::Status>> {
        let connector = self.stage.connector_as(authority, id)?;
        let mut jobs = v1::job_service_client::JobServiceClient::new(connector.channel());
        Ok(jobs.list_jobs(v1::ListJobsRequest::default()).await.map(tonic::Response::into_inner))
    }

    async fn show_policy(&mut self) {
        let start = Stopwatch::now();
        let spec = v1::JobSpec { purpose: "something-else".into(), ..self.stage.spec(1) };
        let seen = match self.stage.create_job(spec).await {
            Err(status) if calls::reason(&status) == "POLICY_DENIED" => Ok(describe(&status)),
            Err(status) => Err(describe(&status)),
            Ok(job) => Err(format!("{} was created", job.id)),
        };
        self.report("a purpose that the dataset does not allow is denied", start, seen);

        let start = Stopwatch::now();
        let seen = async {
            let mut spec = self.stage.spec(1);
            spec.read.push(format!("dataset:{TENANT}/people@v1"));
            let job = self.stage.create_job(spec).await.map_err(|s| describe(&s))?;
            if job.state() != v1::JobState::AwaitingApproval {
                return Err(format!("it is {:?}", job.state()));
            }
            let gates: Vec<String> = job
                .waiting_for
                .iter()
                .map(|g| format!("{} ({} of {})", g.id, g.approvals_needed, g.approver_group))
                .collect();
            match self.stage.join(&job.id, "too-early").await {
                Err(status) if calls::reason(&status) == "APPROVAL_REQUIRED" => {}
                Err(status) => return Err(describe(&status)),
                Ok(_) => return Err("it began without approval".to_owned()),
            }
            Ok((format!("waits for {}; cannot begin", gates.join(", ")), job))
        }
        .await;
        match seen {
            Ok((seen, job)) => {
                self.report("a job on personal data waits for approval", start, Ok(seen));
                self.show_approval(job).await;
            }
            Err(why) => self.report("a job on personal data waits for approval", start, Err(why)),
        }
    }

    /// Approves a job, runs it, and withdraws the approval.
    async fn show_approval(&mut self, job: v1::Job) {
        let start = Stopwatch::now();
        let run = async {
            let mut approvals = self.stage.approval_client()?;
            let request = v1::ApproveRequest {
                job: job.id.clone(),
                request_digest: job.request_digest.clone(),
                gates: Vec::new(),
                reason: "the demo".into(),
            };
            let answer = approvals.approve(request).await.map_err(|s| describe(&s))?.into_inner();
            let mut member = self.stage.join(&job.id, "approved").await.map_err(|s| describe(&s))?;
            let (lease, _) = member.issue(None).await.map_err(|s| describe(&s))?;
            Ok((format!("approved at {}; {} was issued", answer.gates.join(", "), lease.id), member))
        }
        .await;
        let mut member = match run {
            Ok((seen, member)) => {
                self.report("it runs once a person of the group has approved it", start, Ok(seen));
                member
            }
            Err(why) => {
                return self.report("it runs once a person of the group has approved it", start, Err(why));
            }
        };
        let start = Stopwatch::now();
        let seen = async {
            let mut approvals = self.stage.approval_client()?;
            let request = v1::WithdrawApprovalRequest {
                job: job.id,
                gate: String::new(),
                reason: "the demo has a doubt".into(),
            };
            let answer = approvals.withdraw_approval(request).await.map_err(|s| describe(&s))?.into_inner();
            let ended = answer.ending.unwrap_or_default().behind;
            match member.issue(None).await {
                Err(status) if ended > 0 => Ok(format!("{ended} lease ended; {}", describe(&status))),
                Err(status) => Err(format!("no lease ended; {}", describe(&status))),
                Ok(_) => Err("it was given access again".to_owned()),
            }
        }
        .await;
        self.report("its access ends when the approval is taken back", start, seen);
    }

    async fn show_credential(&mut self, checks: &Checks<'_>) {
        let begun = async {
            let job = self.stage.create_job(self.stage.spec(1)).await.map_err(|s| describe(&s))?;
            self.stage.join(&job.id, "first").await.map_err(|s| describe(&s))
        }
        .await;
        let mut member = match begun {
            Ok(member) => member,
            Err(why) => return self.report_ms("a job begins, and its worker joins", 0.0, Err(why)),
        };
        let start = Stopwatch::now();
        let issued = member.issue(None).await.map_err(|s| describe(&s));
        let (lease, token) = match issued {
            Ok(issued) => issued,
            Err(why) => return self.report("a credential is issued", start, Err(why)),
        };
        let names: Vec<&str> = lease.scopes.iter().map(|s| s.resource.as_str()).collect();
        self.report("a credential is issued", start, Ok(format!("{} for {}", lease.id, names.join(", "))));

        let start = Stopwatch::now();
        let seen = checks
            .accepted(&token)
            .await
            .map(|()| "signature, revocations and holder are checked".to_owned());
        self.report("a server checks it without asking the daemon", start, seen);

        let start = Stopwatch::now();
        let seen = async {
            let mut client = self.stage.verifier_client()?;
            let seen = client
                .introspect(introspection(&token, checks))
                .await
                .map_err(|s| describe(&s))?
                .into_inner();
            if !seen.active {
                return Err(format!("not active: {}", seen.reason));
            }
            Ok(format!("active, lease {}", seen.lease.unwrap_or_default().id))
        }
        .await;
        self.report("a server checks it by asking the daemon", start, seen);

        let start = Stopwatch::now();
        let seen = async {
            let request = v1::RenewLeaseRequest {
                session: Some(member.session.clone()),
                lease: lease.id.clone(),
                ttl: None,
            };
            let renewed = member.members.renew_lease(request).await.map_err(|s| describe(&s))?.into_inner();
            checks.accepted(&SecretText::new(renewed.token)).await?;
            Ok(format!("generation {}", renewed.lease.unwrap_or_default().generation))
        }
        .await;
        self.report("it is renewed after a new decision", start, seen);

        let start = Stopwatch::now();
        let seen = async {
            let connector = self.stage.deployment.files_connector(Role::Trainer, self.stage.clock.clone());
            let files = FileClient::new(connector.map_err(|e| e.to_string())?);
            let path = format!("/dataset/{TENANT}/data@v1/tickets-0001.jsonl");
            let mut bytes = Vec::new();
            let download = files.get(&path, &token).await.map_err(|e| e.to_string())?;
            download.write_to(&mut bytes).await.map_err(|e| e.to_string())?;
            let put = format!("/checkpoint/{TENANT}/tuned/{}/step-1", member.session.job);
            match files.put(&put, &token, bytes.clone().into()).await {
                Err(_) => {}
                Ok(()) => return Err("the reading token wrote a checkpoint".to_owned()),
            }
            Ok(format!("{} bytes of tickets-0001.jsonl; the same token writes nothing", bytes.len()))
        }
        .await;
        self.report("it reads its dataset, and writes nothing", start, seen);
    }

    async fn show_download(&mut self, checks: &Checks<'_>, running: &Running) {
        let claim = "a download is cut half way when its job is revoked";
        let mut transfers = running.server.transfers();
        let begun = async {
            let job = self.stage.create_job(self.stage.spec(1)).await.map_err(|s| describe(&s))?;
            let mut member = self.stage.join(&job.id, "download").await.map_err(|s| describe(&s))?;
            let (_, token) = member.issue(None).await.map_err(|s| describe(&s))?;
            checks.accepted(&token).await?;
            let connector = self.stage.deployment.files_connector(Role::Trainer, self.stage.clock.clone());
            let files = FileClient::new(connector.map_err(|e| e.to_string())?);
            let path = format!("/dataset/{TENANT}/data@v1/big.bin");
            let mut download = files.get(&path, &token).await.map_err(|e| e.to_string())?;
            while download.got < BIG_FILE / 2 {
                download.next().await.map_err(|e| e.to_string())?;
            }
            Ok::<_, String>((job, member, download))
        }
        .await;
        let (job, _member, mut download) = match begun {
            Ok(begun) => begun,
            Err(why) => return self.report_ms(claim, 0.0, Err(why)),
        };
        // The client stops reading now. The buffers on the way fill up, and the rest of the file does not fit into them. So the
        // download is still under way when the job is revoked.
        let start = Stopwatch::now();
        let revoked = self.revoke(&format!("job:{}", job.id), "demo: this download must be cut").await;
        if let Err(why) = revoked {
            return self.report(claim, start, Err(why));
        }
        let acknowledged = start.ms();
        let cut = within("the server to cut the transfer", async {
            loop {
                match transfers.recv().await {
                    Ok(t) if t.path == "big.bin" => return Ok(t),
                    Ok(_) => {}
                    Err(e) => return Err(e.to_string()),
                }
            }
        })
        .await
        .and_then(|t| t);
        let ms = start.ms();
        let seen = match cut {
            Err(why) => Err(why),
            Ok(_) => {
                let end = loop {
                    match download.next().await {
                        Ok(Some(_)) => {}
                        Ok(None) => break Err("the client got all of it".to_owned()),
                        Err(e) => break Ok(e.to_string()),
                    }
                };
                end.map(|e| {
                    format!(
                        "{e}; the server cut it {:.1} ms after the revocation was confirmed",
                        (ms - acknowledged).max(0.0)
                    )
                })
            }
        };
        self.report_ms(claim, ms, seen);
    }
}

/// Makes the request that asks the daemon about a token, with all facts about the token's presenter.
pub(super) fn introspection(token: &SecretText, checks: &Checks<'_>) -> v1::IntrospectRequest {
    let (presenter, presenter_sha256) = match checks.presenter {
        Presenter::Svid { id, x5t_s256 } => {
            (id.to_string(), x5t_s256.map(|x| x.to_vec()).unwrap_or_default())
        }
        Presenter::Unseen | Presenter::KeyHolder(_) => (String::new(), Vec::new()),
    };
    v1::IntrospectRequest { token: token.expose().to_owned(), presenter, presenter_sha256 }
}

/// Connects without a client certificate. The server must send a TLS alert, and no byte of an answer.
async fn connect_without_certificate(stage: &Stage) -> Observed<String> {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(stage.deployment.authority().bundle().as_bytes())
        .map_err(|e| e.to_string())?;
    roots.add(root).map_err(|e| e.to_string())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp =
        TcpStream::connect(("localhost", stage.deployment.ports.grpc)).await.map_err(|e| e.to_string())?;
    let name = ServerName::try_from("localhost").map_err(|e| e.to_string())?;
    let answer = async {
        let mut tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        let _ = tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        let mut byte = [0u8; 1];
        tls.read(&mut byte).await
    };
    match within("the server's answer", answer).await? {
        Ok(0) => Ok("closed without a byte".into()),
        Ok(_) => Err("the server answered".into()),
        Err(e) => Ok(e.to_string()),
    }
}
