//! The texts of the files that a deployment begins with: configuration, catalog, job file.

use super::{Ports, Role};
use crate::name::{TenantName, TrustDomain};

/// The built-in policy, as a file to change.
pub(super) const POLICY: &str = include_str!("../../config/policy/leasehold.cedar");

/// The values in the texts. `leasehold init` and `leasehold dev` use different values.
pub(super) struct SampleFiles<'a> {
    pub(super) domain: &'a TrustDomain,
    /// The team that owns the sample data.
    pub(super) tenant: &'a TenantName,
    pub(super) ports: Ports,
    /// The URL of the server that holds the data, without a slash at its end.
    pub(super) file_server: &'a str,
}

impl SampleFiles<'_> {
    /// Returns the daemon's configuration. Its last table is `[policy]`, to which `policy_keys` are added.
    pub(super) fn config(&self, header: &str, policy_keys: &str) -> String {
        let SampleFiles { domain, ports: Ports { grpc, issuer, probe, .. }, .. } = self;
        format!(
            r#"# {header}
[server]
grpc  = "127.0.0.1:{grpc}"
probe = "127.0.0.1:{probe}"
state = "state"

[issuer]
url    = "http://localhost:{issuer}"
listen = "127.0.0.1:{issuer}"

# To try it: a certificate from `ca`, which `leasehold svid mint` renews. In production write instead
# workload_api = "unix:///PATH", with the socket of your SPIFFE agent.
[identity]
cert    = "svid/daemon.pem"
key     = "svid/daemon.key"
bundles = {{ "{domain}" = "ca/bundle.pem" }}

[policy]
dir     = "policy"
catalog = "catalog.d"
{policy_keys}"#
        )
    }

    /// Returns the catalog file of the operators.
    pub(super) fn platform(&self) -> String {
        let SampleFiles { domain, tenant, .. } = self;
        format!(
            r#"# The operators of this daemon. They see and end access in every tenant, and approve jobs that the gates of the policy hold back.
# In a team the approvers are other people: write an entry for each group that a gate names.
[tenant.platform]
contact = "you"

# The SPIFFE IDs that the catalog file of each other tenant may name.
[[claim]]
tenant = "{tenant}"
match  = ["spiffe://{domain}/**"]

[[principal]]
match  = "spiffe://{domain}/people/*"
kind   = "operator"
human  = "segment:2"
groups = ["platform-operators", "model-owners", "data-protection"]
"#
        )
    }

    /// Returns the catalog file of the tenant. `launcher_keys` are added to its launcher, and `more` is added at the end.
    pub(super) fn catalog(&self, header: &str, launcher_keys: &str, more: &str) -> String {
        let SampleFiles { domain, tenant, file_server, .. } = self;
        let data = self.dataset("data@v1", "internal", "[]");
        let location = format!("{file_server}/model/{tenant}/base@1/");
        let model = model_entry("base@1", &location, &format!("spiffe://{domain}/files"));
        format!(
            r#"# {header}
[tenant.{tenant}]
contact = "you"

[[principal]]
match = "spiffe://{domain}/trainer"
kind  = "workload"
roles = ["trainer"]

[[principal]]
match = "spiffe://{domain}/launcher"
kind  = "launcher"
{launcher_keys}
# The server that holds the data and checks the tokens.
[[audience]]
name      = "spiffe://{domain}/files"
verifiers = ["spiffe://{domain}/files"]
checks    = "feed"
presenter = "mtls"
{data}{model}
[[checkpoint]]
name     = "tuned"
model    = "base@1"
location = "{file_server}/checkpoint/{tenant}/tuned/"
audience = "spiffe://{domain}/files"
owner    = "you"
{more}"#
        )
    }

    /// Returns the catalog entry of a dataset.
    pub(super) fn dataset(&self, name: &str, classification: &str, data_classes: &str) -> String {
        let location = format!("{}/dataset/{}/{name}/", self.file_server, self.tenant);
        let audience = format!("spiffe://{}/files", self.domain);
        dataset_entry(name, &location, &audience, classification, data_classes)
    }

    /// Returns the catalog entries for the S3 gateway and for the resources that it serves: the same data under `s3://dev/`.
    pub(super) fn s3_resources(&self) -> String {
        let SampleFiles { domain, tenant, ports, .. } = self;
        let (location, audience) = (format!("s3://{tenant}/data/"), format!("spiffe://{domain}/s3"));
        let dataset = dataset_entry("shards@v1", &location, &audience, "internal", "[]");
        let model = model_entry("tiny@1", &format!("s3://{tenant}/models/tiny/"), &audience);
        format!(
            r#"
# The S3 gateway, for programs that know nothing of Leasehold.
[[audience]]
name        = "{audience}"
verifiers   = ["{audience}"]
checks      = "feed"
presenter   = "mtls"
s3_endpoint = "localhost:{s3}"
{dataset}{model}
[[checkpoint]]
name     = "tiny-tuned"
model    = "tiny@1"
location = "s3://{tenant}/out/"
audience = "{audience}"
owner    = "you"
"#,
            s3 = ports.s3
        )
    }

    /// Returns the job file for the resources that the S3 gateway serves.
    pub(super) fn s3_job(&self) -> String {
        let tenant = self.tenant;
        format!(
            r#"# A job whose program uses S3 and knows nothing of Leasehold.
name         = "try-s3"
purpose      = "trying-out"
why          = "looking around"
max_duration = "1h"

[tune]
method = "lora"
[[read]]
resource = "dataset:{tenant}/shards@v1"    # s3://{tenant}/data/
[[read]]
resource = "model:{tenant}/tiny@1"         # s3://{tenant}/models/tiny/

[[write]]
resource = "checkpoint:{tenant}/tiny-tuned"   # s3://{tenant}/out/JOB/
"#
        )
    }

    /// Returns a job file. `tune_keys` are added to its table `[tune]`, and `more` is added at the end.
    pub(super) fn job(&self, tune_keys: &str, more: &str) -> String {
        let tenant = self.tenant;
        format!(
            r#"# What a job needs. Nothing here is secret. `leasehold job check` says whether it would be allowed.
name         = "try-it"
purpose      = "trying-out"            # a purpose that every dataset below allows
why          = "looking around"
max_duration = "1h"                    # all access ends after this time at the latest

[tune]
method = "lora"
{tune_keys}
[[read]]
resource = "dataset:{tenant}/data@v1"
[[read]]
resource = "model:{tenant}/base@1"

[[write]]
resource = "checkpoint:{tenant}/tuned"
{more}"#
        )
    }
}

fn dataset_entry(
    name: &str,
    location: &str,
    audience: &str,
    classification: &str,
    data_classes: &str,
) -> String {
    format!(
        r#"
[[dataset]]
name           = "{name}"
location       = "{location}"
audience       = "{audience}"
pin            = "none"
classification = "{classification}"
data_classes   = {data_classes}
source_trust   = "curated"
purposes       = ["trying-out"]
owner          = "you"
"#
    )
}

fn model_entry(name: &str, location: &str, audience: &str) -> String {
    format!(
        r#"
[[model]]
name        = "{name}"
location    = "{location}"
audience    = "{audience}"
pin         = "none"
tier        = "lab"
environment = "development"
risk        = "low"
tool_access = "none"
owner       = "you"
"#
    )
}

/// Returns the path of an SVID's certificate or key in the folder of a deployment.
pub(super) fn svid_path(role: Role, ending: &str) -> String {
    format!("svid/{}.{ending}", role.as_str())
}
