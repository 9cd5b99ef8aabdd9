//! A client: shows a job and its attempts, with nothing but an X.509-SVID.
//!
//! ```text
//! cargo run --example client -- --daemon HOST:PORT --daemon-id SPIFFE-ID --cert SVID.pem --key SVID.key --bundle CA.pem JOB
//! ```

use std::{error::Error, path::PathBuf, sync::Arc};

use clap::Parser;
use leasehold::{
    clock::{Clock, SystemClock},
    identity::{FileSource, IdentityFiles},
    link::{Connector, Endpoint, RotatingChannel, explain},
    name::SpiffeId,
    proto::v1::{GetJobRequest, job_service_client::JobServiceClient},
};

#[derive(Parser)]
struct Options {
    #[arg(long)]
    daemon: String,
    #[arg(long)]
    daemon_id: SpiffeId,
    #[arg(long)]
    cert: PathBuf,
    #[arg(long)]
    key: PathBuf,
    #[arg(long)]
    bundle: PathBuf,
    job: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let files = IdentityFiles {
        svid: Some((options.cert, options.key)),
        bundles: vec![(options.daemon_id.trust_domain(), options.bundle)],
    };
    let source = Arc::new(FileSource::open(files, clock.clone())?);
    let daemon = Endpoint::new(&options.daemon, options.daemon_id)?;
    // The channel connects at the first call, and again after a connection is lost.
    let daemon = RotatingChannel::new(Connector::new(source, clock, daemon));

    let answer = JobServiceClient::new(daemon.channel()).get_job(GetJobRequest { job: options.job }).await;
    let job = match answer {
        Ok(answer) => answer.into_inner().job.unwrap_or_default(),
        Err(status) => match explain(&status) {
            Some(cause) => return Err(format!("not connected: {cause}").into()),
            None => return Err(format!("refused: {}", status.message()).into()),
        },
    };
    println!("{} {} {:?}", job.id, job.name, job.state());
    for attempt in &job.attempts {
        println!("attempt {} {:?}, {} members", attempt.number, attempt.state(), attempt.members.len());
    }
    Ok(())
}
