//! The calls of the API and the relations of callers to the objects of their calls. In the Cedar schema, each call is
//! an action.

use std::fmt;

macro_rules! closed {
    ($(#[$doc:meta])* $name:ident { $( $(#[$vdoc:meta])* $variant:ident = $text:literal, )* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $( $(#[$vdoc])* $variant, )* }

        impl $name {
            /// All variants, in the order of their declaration.
            pub const ALL: &'static [$name] = &[ $($name::$variant,)* ];

            /// Returns the text that [`parse`](Self::parse) reads.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }

            /// Reads a text. Returns `None` if no variant has this text.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some($name::$variant),)* _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

closed! {
    /// One call of the API, by its name in the proto.
    #[allow(missing_docs, reason = "the proto says what each call does")]
    Rpc {
        CreateJob = "CreateJob",
        GetJob = "GetJob",
        ListJobs = "ListJobs",
        ListResources = "ListResources",
        CloseJob = "CloseJob",
        BeginAttempt = "BeginAttempt",
        DrainAttempt = "DrainAttempt",
        EndAttempt = "EndAttempt",
        WatchJob = "WatchJob",
        JoinAttempt = "JoinAttempt",
        KeepAlive = "KeepAlive",
        IssueCredential = "IssueCredential",
        RenewLease = "RenewLease",
        ReleaseLease = "ReleaseLease",
        ListLeases = "ListLeases",
        GetLease = "GetLease",
        Revoke = "Revoke",
        Lock = "Lock",
        Unlock = "Unlock",
        ListLocks = "ListLocks",
        RecallDataset = "RecallDataset",
        UnrecallDataset = "UnrecallDataset",
        Offboard = "Offboard",
        VerifyClean = "VerifyClean",
        WaitDurable = "WaitDurable",
        ReloadCatalog = "ReloadCatalog",
        TailLedger = "TailLedger",
        ListApprovals = "ListApprovals",
        Approve = "Approve",
        Reject = "Reject",
        WithdrawApproval = "WithdrawApproval",
        BreakGlass = "BreakGlass",
        ListReviews = "ListReviews",
        FinishReview = "FinishReview",
        WhoAmI = "WhoAmI",
        LogOut = "LogOut",
        EvaluatePolicy = "EvaluatePolicy",
        WhoCan = "WhoCan",
        ExplainJob = "ExplainJob",
        ApplyPolicy = "ApplyPolicy",
        ListPolicies = "ListPolicies",
        ListWaivers = "ListWaivers",
        Introspect = "Introspect",
        WatchFences = "WatchFences",
        ReportUse = "ReportUse",
        ResolveKey = "ResolveKey",
        GetKeys = "GetKeys",
    }
}

closed! {
    /// The relation of a caller to the job, member or audience that a call names. The broker determines it from the
    /// state.
    Relation {
        /// The caller created the job.
        Launcher = "launcher",
        /// The job names the caller in `members.start`.
        Start = "start",
        /// The job names the caller in `members.join`.
        Join = "join",
        /// The caller is a member of the attempt.
        Member = "member",
        /// The call concerns only the caller: its own membership, or its own rights.
        Itself = "self",
        /// The caller checks tokens for the audience.
        Verifier = "verifier",
    }
}

impl Rpc {
    /// Whether the call changes the rules. A policy can require approvals for such calls and for the actions of jobs,
    /// and for nothing else.
    pub const fn is_change(self) -> bool {
        matches!(self, Rpc::ApplyPolicy | Rpc::ReloadCatalog)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        assert!(Rpc::ALL.iter().all(|r| Rpc::parse(r.as_str()) == Some(*r)));
        assert!(Relation::ALL.iter().all(|r| Relation::parse(r.as_str()) == Some(*r)));
    }
}
