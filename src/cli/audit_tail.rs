//! Implements `leasehold audit tail`.

use std::collections::BTreeSet;

use clap::Args;
use serde_json::{Value, json};

use super::{
    Client, Exit, Failure, Session, catalog,
    client::CallKind,
    client::Retries,
    ids,
    output::{note, print_line},
    parse,
    record::{self, About},
    table::cut,
    timestamp,
};
use crate::{
    clock::Wall,
    ledger::SignedHead,
    name::{FenceKind, FenceName, PrincipalKind, ResourceName},
    proto::v1,
    reason::Reason,
    written::nearest,
};

/// The options that select records, and whether to wait for more records.
#[derive(Debug, Args)]
pub(super) struct TailArgs {
    /// Begin with this record [default: the next one that is written]. Records of one tenant have no index: for them, only 1 is possible
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    from: u64,
    /// Begin at this time (2026-11-29T08:00:00Z), or this long ago (2h)
    #[arg(long, value_name = "WHEN", value_parser = parse::since)]
    since: Option<parse::Since>,
    /// Stop at the first record after this time
    #[arg(long, value_name = "WHEN", value_parser = parse::since)]
    until: Option<parse::Since>,
    /// Only records of this type, for example denied or job.closed. Repeatable. `revoked` also shows the jobs and attempts
    /// that were closed as revoked
    #[arg(long = "type", value_name = "TYPE", value_parser = parse::record_type, value_delimiter = ',')]
    types: Vec<String>,
    /// Go on with new records, which is the default
    #[arg(long, short, conflicts_with = "no_follow")]
    follow: bool,
    /// Stop at the last record
    #[arg(long)]
    no_follow: bool,
    /// Only records about this name (as for `revoke`), its jobs and its leases
    #[arg(long, value_name = "NAME", value_parser = parse::ending_name)]
    about: Option<String>,
}

const READERS: [PrincipalKind; 2] = [PrincipalKind::Auditor, PrincipalKind::Operator];

/// What to do after the end of a stream.
enum After {
    More,
    Done,
}

/// The state of a running `audit tail`.
struct RecordTail<'a> {
    session: &'a Session,
    types: Vec<String>,
    about: Option<About>,
    /// How many records were shown.
    shown: u64,
    /// How many records were about the name, including types that are not shown.
    matched: u64,
    since: Option<Wall>,
    until: Option<Wall>,
    no_follow: bool,
    /// Whether the first record to show is the first of the ledger.
    is_whole: bool,
    /// The next record to request, or 0 while it is not known.
    next: u64,
    /// The hash of the last record that was read, if that record had no index. The next stream begins after this record.
    after: String,
    /// Whether the note was printed that only the records of one tenant are shown.
    has_noted: bool,
    retries: Retries,
}

impl TailArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let now = session.now().wall;
        let (since, until) =
            (self.since.map(|since| since.wall(now)), self.until.map(|until| until.wall(now)));
        if since.zip(until).is_some_and(|(since, until)| since > until) {
            let failure = Failure::usage("--since is later than --until, so no record can match".to_owned());
            return Err(failure.fix("a span is counted back from now: --since 2h --until 1h"));
        }
        let name = match &self.about {
            Some(name) => {
                let client = session.client(&READERS)?;
                let name = ids::resolve_name(&client, name).await?;
                if let Some(warning) = unknown(&client, &name).await? {
                    note(&warning);
                } else if !self.no_follow && self.from == 0 && self.since.is_none() {
                    note(&format!("Waiting for new records about {name}. To see earlier ones, add --from 1"));
                }
                Some(name)
            }
            None => None,
        };
        let mut tail = RecordTail {
            session,
            types: self.types,
            about: name.as_deref().map(About::new),
            shown: 0,
            matched: 0,
            since,
            until,
            no_follow: self.no_follow,
            is_whole: self.from == 1 && since.is_none(),
            next: self.from,
            after: String::new(),
            has_noted: false,
            retries: Retries::new(),
        };
        loop {
            match tail.read().await {
                Ok(After::Done) => {
                    if let Some(nothing) = tail.nothing_shown(name.as_deref()) {
                        note(&nothing);
                    }
                    return Ok(Exit::Ok);
                }
                Ok(After::More) => tail.retries.wait(Ok(()), session).await?,
                Err(failure) if self.no_follow => return Err(failure),
                Err(failure) => tail.retries.wait(Err(failure), session).await?,
            }
        }
    }
}

impl RecordTail<'_> {
    /// Prints records until the stream ends. Connects with the present SVID.
    async fn read(&mut self) -> Result<After, Failure> {
        let client = self.session.client(&READERS)?;
        if self.next == 0 && self.after.is_empty() {
            self.next = self.first(&client).await?;
        }
        let mut stream = self.open(&client).await?;
        // The daemon has accepted the stream, so a restart before the first record leads to a retry too.
        self.retries.answered();
        // After a lost connection, a reader who sees no index and has read no record asks for record 1. `since` then leaves out
        // the records that are too old.
        self.next = self.next.max(1);
        while let Some(answer) = next(&client, &mut stream).await? {
            self.retries.answered();
            let record: Value = serde_json::from_str(&answer.record).unwrap_or(Value::Null);
            if self.until.is_some_and(|until| record::time(&record).is_some_and(|at| at > until)) {
                return Ok(After::Done);
            }
            self.note_part(&answer.tenant);
            self.show(answer.index, &record)?;
            match answer.index {
                0 => self.after = record.get("hash").and_then(Value::as_str).unwrap_or_default().to_owned(),
                index => self.next = index.saturating_add(1),
            }
        }
        Ok(if self.no_follow { After::Done } else { After::More })
    }

    async fn open(&self, client: &Client) -> Result<AnswerStream, Failure> {
        let from_index = if self.after.is_empty() { self.next } else { 0 };
        open(client, from_index, self.no_follow, self.after.clone()).await
    }

    /// Notes once that only the records of one tenant are shown.
    fn note_part(&mut self, tenant: &str) {
        if !tenant.is_empty() && !self.has_noted {
            self.has_noted = true;
            note(&format!(
                "These are the records that concern the tenant {tenant}, each with its hash. Only a reader of the whole ledger \
                 can verify the chain."
            ));
        }
    }

    /// Returns the first record to show, if the command line names no record. It is the first record since a time, or the next
    /// record (0 for a reader who sees no index).
    async fn first(&mut self, client: &Client) -> Result<u64, Failure> {
        let answer = client.who_am_i().await?;
        if answer.ledger_head.is_empty() && self.since.is_none() {
            self.since = timestamp::moment(answer.server_time.as_ref());
            return Ok(0);
        }
        let head = answer.ledger_head.parse::<SignedHead>().map_or(0, |signed| signed.head.index);
        let after = if head == 0 { 0 } else { head.saturating_add(1) };
        let Some(since) = self.since else { return Ok(after) };
        // Records are in the order of their times, unless the daemon's clock was set back.
        let (mut low, mut high) = (1, after.max(1));
        while low < high {
            let middle = low + (high - low) / 2;
            let mut stream = open(client, middle, true, String::new()).await?;
            let is_before = match next(client, &mut stream).await {
                Ok(record) => record
                    .and_then(|r| record::time(&serde_json::from_str(&r.record).ok()?))
                    .is_some_and(|at| at < since),
                // The segment of this record was moved away. Operators do this with old segments.
                Err(failure) if failure.reason == Some(Reason::FellBehind) => true,
                Err(failure) => return Err(failure),
            };
            match is_before {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        Ok(low)
    }

    fn show(&mut self, index: u64, record: &Value) -> Result<(), Failure> {
        if self.since.is_some_and(|since| record::time(record).is_some_and(|at| at < since)) {
            return Ok(());
        }
        // Look at every record, even if its type is not shown, because a job is followed from its creation on.
        if let Some(about) = &mut self.about
            && !about.matches(record)?
        {
            return Ok(());
        }
        self.matched = self.matched.saturating_add(1);
        if !self.types.is_empty() && !self.types.iter().any(|t| record::is_of_type(record, t)) {
            return Ok(());
        }
        self.shown = self.shown.saturating_add(1);
        if self.session.for_programs() {
            let index = (index > 0).then_some(index);
            return self.session.print_item(&json!({ "index": index, "record": record::with_times(record) }));
        }
        let size = self.session.table_size();
        print_line(&match size.is_wide {
            true => record::row(index, record),
            false => cut(&record::short_row(index, record), size),
        })
    }

    /// Explains why no record was shown. Without this, a mistyped name would look like a name without records.
    fn nothing_shown(&self, about: Option<&str>) -> Option<String> {
        if self.shown > 0 {
            return None;
        }
        Some(match (about, self.matched) {
            (Some(name), 0) => {
                let earlier = if self.is_whole { "" } else { ", or begin earlier: --from 1" };
                format!("None of the records that were read is about {name}. Compare the name{earlier}.")
            }
            (_, 0) => "There is no record in this range.".to_owned(),
            (about, n) => {
                let about = about.map(|name| format!(" about {name}")).unwrap_or_default();
                format!("There are {n} records{about}, but none of the type {}.", self.types.join(" or "))
            }
        })
    }
}

/// Returns a warning if the daemon does not know this name. The daemon can check only resources and jobs.
async fn unknown(client: &Client, name: &str) -> Result<Option<String>, Failure> {
    match name.parse::<FenceName>().map(|name| name.kind()) {
        Ok(FenceKind::Resource(wanted)) => {
            let is_it = |r: &ResourceName| *r == wanted || r.unversioned() == wanted;
            let names = catalog::names(client).await?;
            if names.iter().any(is_it) {
                return Ok(None);
            }
            let all: BTreeSet<String> =
                names.iter().flat_map(|r| [r.to_string(), r.unversioned().to_string()]).collect();
            let near = nearest(name, all.iter().map(String::as_str));
            let near = near.map(|near| format!(" The nearest name is {near}.")).unwrap_or_default();
            Ok(Some(format!(
                "The catalog has no {name}, so only older records can be about this name.{near}"
            )))
        }
        Ok(FenceKind::Job(job)) => {
            let request = v1::GetJobRequest { job: job.to_string() };
            match client.ask(CallKind::Reads, request, async |r| client.jobs().get_job(r).await).await {
                Err(failure) if failure.reason == Some(Reason::JobNotFound) => Ok(Some(format!(
                    "The daemon knows no job {job}, so only older records can be about this job."
                ))),
                Ok(_) | Err(_) => Ok(None),
            }
        }
        _ => Ok(None),
    }
}

type AnswerStream = tonic::Streaming<v1::TailLedgerResponse>;

async fn open(
    client: &Client,
    from_index: u64,
    no_follow: bool,
    after: String,
) -> Result<AnswerStream, Failure> {
    let request = v1::TailLedgerRequest { from_index, no_follow, after };
    client.follow(request, async |r| client.operator().tail_ledger(r).await).await
}

async fn next(client: &Client, stream: &mut AnswerStream) -> Result<Option<v1::TailLedgerResponse>, Failure> {
    stream.message().await.map_err(|status| client.failure(&status, CallKind::Reads))
}
