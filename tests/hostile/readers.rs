//! Responses that the client does not read.

use std::time::Duration;

use leasehold::{limits, proto::v1};

use crate::{attacker::Attacker, harness::*, siege::Siege};

const LIST: &str = "/leasehold.v1.JobService/ListJobs";
const WATCH: &str = "/leasehold.v1.JobService/WatchJob";

/// A job specification that is almost as large as allowed.
fn large(n: usize) -> v1::JobSpec {
    let tune = v1::Tuning {
        method: v1::Method::Lora as i32,
        params_digest: format!("sha256:{}", "ab".repeat(32)),
        prompts: (0..limits::SPEC_LIST_MAX).map(|i| format!("prompts:/{}/{i}", "p".repeat(400))).collect(),
        ..Default::default()
    };
    v1::JobSpec { name: format!("large-{n}"), tune: Some(tune), acting_for: String::new(), ..spec() }
}

async fn large_jobs(siege: &Siege, count: usize) -> Vec<String> {
    let launcher = siege.place.client(NIGHTLY);
    let mut jobs = Vec::new();
    for n in 0..count {
        let answer = launcher.create(large(n), &format!("large-{n}")).await.unwrap();
        jobs.push(answer.into_inner().job.unwrap().id);
    }
    jobs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_of_large_jobs_are_short_and_still_complete() {
    let siege = Siege::begin().await;
    let jobs = large_jobs(&siege, 40).await;
    let launcher = siege.place.client(NIGHTLY);
    let (mut shown, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListJobsRequest { page_size: 1_000, page_token, ..Default::default() };
        let answer = launcher.jobs().list_jobs(request).await.unwrap().into_inner();
        assert!(prost::Message::encoded_len(&answer) <= limits::PAGE_BYTES_MAX + 1_024);
        assert!(answer.jobs.iter().all(|j| j.spec.is_none()));
        shown.extend(answer.jobs.into_iter().map(|j| j.id));
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    shown.sort();
    let mut jobs = jobs;
    jobs.sort();
    assert_eq!(shown, jobs);
    let whole = launcher.jobs().get_job(v1::GetJobRequest { job: jobs[0].clone() }).await.unwrap();
    assert!(whole.into_inner().job.unwrap().spec.is_some(), "one job is shown whole");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_lists_at_once_that_are_not_read_stay_within_bytes() {
    let siege = Siege::begin().await;
    large_jobs(&siege, 40).await;
    let attack = async {
        let mut held = Vec::new();
        for window in [0, 1, 65_535, 1 << 20] {
            let Ok(attacker) = Attacker::with_window(&siege.place, NIGHTLY, window).await else { continue };
            for _ in 0..250 {
                let request = v1::ListJobsRequest { page_size: 1_000, ..Default::default() };
                held.extend(attacker.ask(LIST, &request).await);
            }
            held.push(attacker.ask(LIST, &v1::ListJobsRequest::default()).await.unwrap());
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    };
    let ((), measured) = siege.during("lists that are not read", attack).await;
    measured.holds();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_with_a_closed_window_stay_within_bytes_and_are_cut() {
    let siege = Siege::begin().await;
    let jobs = large_jobs(&siege, 1).await;
    let request = v1::WatchJobRequest { job: jobs[0].clone() };
    let attack = async {
        let mut attackers = Vec::new();
        for window in [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1] {
            let Ok(attacker) = Attacker::with_window(&siege.place, NIGHTLY, window).await else { continue };
            let mut held = Vec::new();
            for _ in 0..250 {
                held.extend(attacker.ask(WATCH, &request).await);
            }
            attackers.push((attacker, held));
        }
        let cut = limits::READER_STALL + 2 * limits::READER_LOOK + limits::CONNECTION_GRACE;
        tokio::time::sleep(cut).await;
        attackers
    };
    let (attackers, measured) = siege.during("watches with a closed window", attack).await;
    measured.holds();
    let mut cut = 0;
    for (attacker, held) in attackers {
        for call in held {
            assert!(call.ends().await, "a stream that is not read goes on");
        }
        cut += usize::from(attacker.is_closed());
    }
    assert!(cut > 0, "no connection was cut");
}
