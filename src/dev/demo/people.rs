//! The people of the story `governance`, and the catalog entries that they and their model need.

use std::fs;

use tonic::{Status, transport::Channel};

use super::{Stage, watch::Observed};
use crate::{
    dev::{deployment::TENANT, sample::SampleFiles},
    name::SpiffeId,
    proto::v1::{
        self, approval_service_client::ApprovalServiceClient, operator_service_client::OperatorServiceClient,
    },
};

/// A person, named by the last segment of the SPIFFE ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Person {
    /// A person who owns models.
    Ada,
    /// Another person who owns models.
    Grace,
    /// A person who protects data, and owns no model.
    Dana,
    /// A person who operates the platform, and approves nothing.
    You,
}

impl Person {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Person::Ada => "ada",
            Person::Grace => "grace",
            Person::Dana => "dana",
            Person::You => "you",
        }
    }

    const fn group(self) -> &'static str {
        match self {
            Person::Ada | Person::Grace => "model-owners",
            Person::Dana => "data-protection",
            Person::You => "platform-operators",
        }
    }
}

/// The production model. Below are the line of its checkpoints, and a second dataset.
pub(super) const MODEL: &str = "assistant@1";
pub(super) const LINE: &str = "assistant-tuned";
pub(super) const OTHER_DATASET: &str = "more@v1";

impl Stage {
    /// Writes the catalog of the story, before the daemon starts.
    pub(super) fn write_catalog(&self) -> Observed<()> {
        let deployment = &self.deployment;
        let domain = deployment.domain().map_err(|e| e.to_string())?;
        let mut platform = format!(
            "[tenant.platform]\ncontact = \"you\"\n\n[[claim]]\ntenant = \"{TENANT}\"\nmatch  = [\"spiffe://{domain}/**\"]\n"
        );
        for person in [Person::Ada, Person::Grace, Person::Dana, Person::You] {
            let (name, group) = (person.name(), person.group());
            platform.push_str(&format!(
                "\n[[principal]]\nmatch  = \"spiffe://{domain}/people/{name}\"\nkind   = \"operator\"\nhuman  = \"segment:2\"\ngroups = [\"{group}\"]\n"
            ));
        }
        fs::write(deployment.path("catalog.d/platform.toml"), platform).map_err(|e| e.to_string())?;
        let file = deployment.path("catalog.d/dev.toml");
        let catalog = fs::read_to_string(&file).map_err(|e| e.to_string())?;
        let location = format!("https://localhost:{}", deployment.ports.files);
        let tenant = TENANT.parse().map_err(|e| format!("{e}"))?;
        let sample =
            SampleFiles { domain: &domain, tenant: &tenant, ports: deployment.ports, file_server: &location };
        let more = sample.dataset(OTHER_DATASET, "internal", "[]");
        let model = format!(
            r#"
[[model]]
name        = "{MODEL}"
location    = "{location}/model/{TENANT}/{MODEL}/"
audience    = "spiffe://{domain}/files"
pin         = "none"
tier        = "production"
environment = "production"
risk        = "high"
tool_access = "none"
owner       = "model-owners"

[[checkpoint]]
name     = "{LINE}"
model    = "{MODEL}"
location = "{location}/checkpoint/{TENANT}/{LINE}/"
audience = "spiffe://{domain}/files"
owner    = "model-owners"
"#
        );
        fs::write(file, catalog + &more + &model).map_err(|e| e.to_string())
    }

    fn id_of(&self, person: Person) -> Observed<SpiffeId> {
        let path = format!("/people/{}", person.name());
        self.deployment.authority().id_at(&path).map_err(|e| e.to_string())
    }

    fn channel_of(&self, person: Person) -> Observed<Channel> {
        let id = self.id_of(person)?;
        Ok(self.connector_as(self.deployment.authority(), &id)?.channel())
    }

    /// Makes a client for the operator calls of a person.
    pub(super) fn operator_of(&self, person: Person) -> Observed<OperatorServiceClient<Channel>> {
        Ok(OperatorServiceClient::new(self.channel_of(person)?))
    }

    /// Approves a job as a person who saw the request with this digest.
    pub(super) async fn approve_as(
        &self,
        person: Person,
        job: &str,
        request_digest: &str,
    ) -> Result<v1::Job, Status> {
        let channel = self.channel_of(person).map_err(Status::internal)?;
        let request = v1::ApproveRequest {
            job: job.to_owned(),
            request_digest: request_digest.to_owned(),
            gates: Vec::new(),
            reason: "reviewed in the demo".into(),
        };
        let answer = ApprovalServiceClient::new(channel).approve(request).await?.into_inner();
        Ok(answer.job.unwrap_or_default())
    }
}
