//! The environment of the child: what the wrapper sets, and the standing credentials that the child does not inherit.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
};

/// Variables with a standing credential for a store of data or models, or with its path. With one of them a script can bypass
/// the broker, often without knowing.
///
/// Regions, endpoints and account names stay, because they open nothing. Keys of experiment trackers (`WANDB_API_KEY`,
/// `MLFLOW_TRACKING_TOKEN`) stay too: a run needs its metrics, and the broker does not guard them.
const STANDING_CREDENTIALS: &[&str] = &[
    "AWS_ACCESS_KEY_ID",
    "AWS_BEARER_TOKEN_BEDROCK",
    "AWS_CONFIG_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CREDENTIAL_EXPIRATION",
    "AWS_DEFAULT_PROFILE",
    "AWS_PROFILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AZCOPY_SPA_CLIENT_SECRET",
    "AZURE_CLIENT_CERTIFICATE_PASSWORD",
    "AZURE_CLIENT_CERTIFICATE_PATH",
    "AZURE_CLIENT_SECRET",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_PASSWORD",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "B2_APPLICATION_KEY",
    "CLOUDSDK_AUTH_ACCESS_TOKEN",
    "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE",
    "CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE",
    "CLOUDSDK_CONFIG",
    "DATABRICKS_CLIENT_SECRET",
    "DATABRICKS_TOKEN",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_CREDENTIALS",
    "GOOGLE_OAUTH_ACCESS_TOKEN",
    "HF_API_TOKEN",
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "HUGGINGFACEHUB_API_TOKEN",
    "HUGGINGFACE_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "IDENTITY_HEADER",
    "KAGGLE_KEY",
    "LAKECTL_CREDENTIALS_ACCESS_KEY_ID",
    "LAKECTL_CREDENTIALS_SECRET_ACCESS_KEY",
    "LAKEFS_SECRET_ACCESS_KEY",
    "MINIO_ROOT_PASSWORD",
    "MINIO_SECRET_KEY",
    "MSI_SECRET",
    "OSS_ACCESS_KEY_SECRET",
    "OS_PASSWORD",
    "PGPASSWORD",
    "R2_SECRET_ACCESS_KEY",
    "S3_SECRET_KEY",
    "SNOWFLAKE_PASSWORD",
    "VAULT_TOKEN",
];

/// The variables that the wrapper sets. If they are inherited, they belong to another job.
const WRAPPER_VARIABLES: &[&str] = &[
    "LEASEHOLD_ATTEMPT",
    "LEASEHOLD_BUNDLE",
    "LEASEHOLD_CREDENTIALS",
    "LEASEHOLD_DRAIN_FILE",
    "LEASEHOLD_JOB",
    "LEASEHOLD_SVID_CERT",
    "LEASEHOLD_SVID_KEY",
    "LEASEHOLD_TOKEN_FILE_READING",
    "LEASEHOLD_TOKEN_FILE_WRITING",
];

/// How the child's environment differs from the wrapper's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChildEnvironment {
    /// Set for the child. No value is a secret.
    pub set: Vec<(OsString, OsString)>,
    /// Removed from the child's environment.
    pub removed: BTreeSet<OsString>,
}

impl ChildEnvironment {
    /// Marks for removal the inherited standing credentials that `keep` (`keep_env`) does not list, and every inherited
    /// variable that the wrapper sets.
    pub fn new(
        inherited: impl IntoIterator<Item = OsString>,
        keep: &[String],
        set: Vec<(OsString, OsString)>,
    ) -> Self {
        let kept = |name: &OsStr| keep.iter().any(|k| OsStr::new(k) == name);
        let is = |list: &[&str], name: &OsStr| list.iter().any(|n| OsStr::new(n) == name);
        let removed = inherited
            .into_iter()
            .filter(|name| is(WRAPPER_VARIABLES, name) || is(STANDING_CREDENTIALS, name) && !kept(name))
            .collect();
        ChildEnvironment { set, removed }
    }

    /// Starts from the environment of this process.
    pub fn of_this_process(keep: &[String], set: Vec<(OsString, OsString)>) -> Self {
        Self::new(std::env::vars_os().map(|(name, _)| name), keep, set)
    }

    /// A message with the names of the standing credentials that were removed, if any.
    pub fn notice(&self) -> Option<String> {
        let names: Vec<_> = self
            .removed
            .iter()
            .filter_map(|n| n.to_str())
            .filter(|n| STANDING_CREDENTIALS.contains(n))
            .collect();
        (!names.is_empty()).then(|| {
            format!(
                "standing credentials are not passed on: {}; list a name in [run] keep_env to pass it",
                names.join(", ")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<OsString> {
        list.iter().map(OsString::from).collect()
    }

    #[test]
    fn standing_credentials_are_removed() {
        let inherited =
            names(&["PATH", "AWS_REGION", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "HF_HOME", "WANDB_API_KEY"]);
        let env = ChildEnvironment::new(inherited, &[], Vec::new());
        assert_eq!(env.removed, names(&["AWS_SECRET_ACCESS_KEY", "HF_TOKEN"]).into_iter().collect());
        assert_eq!(
            env.notice().unwrap(),
            "standing credentials are not passed on: AWS_SECRET_ACCESS_KEY, HF_TOKEN; list a name in [run] keep_env to pass it"
        );
    }

    #[test]
    fn only_names_in_keep_env_are_kept() {
        let env = ChildEnvironment::new(
            names(&["AWS_PROFILE", "AWS_SESSION_TOKEN"]),
            &["AWS_PROFILE".into()],
            Vec::new(),
        );
        assert_eq!(env.removed, names(&["AWS_SESSION_TOKEN"]).into_iter().collect());
    }

    #[test]
    fn variables_of_an_outer_wrapper_are_removed() {
        let env = ChildEnvironment::new(names(WRAPPER_VARIABLES), &["LEASEHOLD_JOB".into()], Vec::new());
        assert_eq!(env.removed.len(), WRAPPER_VARIABLES.len());
        assert_eq!(env.notice(), None);
    }

    #[test]
    fn the_list_is_sorted_and_has_no_duplicates() {
        assert!(STANDING_CREDENTIALS.is_sorted_by(|a, b| a < b));
    }
}
