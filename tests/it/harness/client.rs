//! An identity on a connection, and refusals as it sees them.

use leasehold::proto::v1::{
    approval_service_client::ApprovalServiceClient, job_service_client::JobServiceClient,
    member_service_client::MemberServiceClient, operator_service_client::OperatorServiceClient,
    verifier_service_client::VerifierServiceClient,
};
use tonic::{Code, Response, Status, transport::Channel};
use tonic_types::StatusExt;

use super::Credentials;

/// One caller. A clone shares its connection.
#[derive(Clone)]
pub struct Client {
    pub id: String,
    pub credentials: Credentials,
    pub channel: Channel,
}

impl Client {
    pub fn new(id: &str, credentials: Credentials, channel: Channel) -> Self {
        Client { id: id.to_owned(), credentials, channel }
    }

    pub fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.channel.clone())
    }

    pub fn members(&self) -> MemberServiceClient<Channel> {
        MemberServiceClient::new(self.channel.clone())
    }

    pub fn operators(&self) -> OperatorServiceClient<Channel> {
        OperatorServiceClient::new(self.channel.clone())
    }

    pub fn approvals(&self) -> ApprovalServiceClient<Channel> {
        ApprovalServiceClient::new(self.channel.clone())
    }

    pub fn verifiers(&self) -> VerifierServiceClient<Channel> {
        VerifierServiceClient::new(self.channel.clone())
    }
}

/// A refusal as a caller reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub code: Code,
    pub reason: String,
    pub text: String,
    pub facts: std::collections::BTreeMap<String, String>,
}

impl Refused {
    pub fn of(status: &Status) -> Self {
        let info = status.get_error_details().error_info().cloned();
        let info = info.unwrap_or_else(|| panic!("an error without ErrorInfo: {status:?}"));
        assert_eq!(info.domain, "leasehold");
        Refused {
            code: status.code(),
            reason: info.reason,
            text: status.message().to_owned(),
            facts: info.metadata.into_iter().collect(),
        }
    }

    /// The same if the error may not be a refusal: a broken connection has none.
    pub fn read(status: &Status) -> Option<Self> {
        status.get_error_details().error_info().map(|_| Self::of(status))
    }

    /// Code and reason, to compare.
    pub fn is(&self, code: Code, reason: &str) {
        assert_eq!((self.code, self.reason.as_str()), (code, reason), "{}", self.text);
    }
}

/// The refusal in an answer.
pub fn refused<T>(answer: Result<Response<T>, Status>) -> Refused {
    match answer {
        Ok(_) => panic!("it was not refused"),
        Err(status) => Refused::of(&status),
    }
}
