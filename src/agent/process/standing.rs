//! Standing credentials are keys and passwords that give access without a lease. This file decides which inherited variables
//! contain them, and whether the command gets them.
//!
//! | Variable | The command |
//! |---|---|
//! | `REMOVED`: a credential for a store of data or models, or its path | does not get it: with it, a script would reach data without a lease |
//! | `KEPT`: a credential that a run needs for something else | gets it, and a message names it once |
//! | by a part of its name, such as `_PASSWORD`, `_PAT`, `_SESSION_KEY`, `COOKIE` or `OAUTH` | does not get it |
//! | by its value: a key, a token of a well-known form, a signed URL, a URL or a connection string with a password | does not get it |
//! | by its value: it may be encoded bytes, such as a token of an unknown form | gets it, and a message names it once |
//!
//! Upper and lower case are the same. `keep_env` and `scrub` decide before this table.

use crate::secret::{has_secret_form, looks_secret};

/// The decision about an inherited variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inheritance {
    /// The variable is not a credential.
    Plain,
    /// A standing credential that the command gets.
    Named,
    /// A standing credential that the command does not get.
    Removed,
}

/// Variables with a standing credential for a store of data or models, or with its path. With such a credential, a script can
/// bypass the broker, often unintentionally.
///
/// Regions, endpoints and account names stay, because they give no access.
const REMOVED: &[&str] = &[
    "ALIBABA_CLOUD_CREDENTIALS_URI",
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
    "AZURE_CONFIG_DIR",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_PASSWORD",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "B2_APPLICATION_KEY",
    "BOTO_CONFIG",
    "BW_SESSION",
    "CIRCLE_OIDC_TOKEN_V2",
    "CI_JOB_JWT_V1",
    "CI_JOB_JWT_V2",
    "CLOUDSDK_AUTH_ACCESS_TOKEN",
    "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE",
    "CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE",
    "CLOUDSDK_CONFIG",
    "DATABRICKS_CLIENT_SECRET",
    "DATABRICKS_CONFIG_FILE",
    "DATABRICKS_TOKEN",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_CREDENTIALS",
    "GOOGLE_OAUTH_ACCESS_TOKEN",
    "HADOOP_TOKEN_FILE_LOCATION",
    "HF_API_TOKEN",
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "HUGGINGFACEHUB_API_TOKEN",
    "HUGGINGFACE_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "IDENTITY_HEADER",
    "KAGGLE_CONFIG_DIR",
    "KAGGLE_KEY",
    "KRB5CCNAME",
    "KRB5_CLIENT_KTNAME",
    "KRB5_KTNAME",
    "LAKECTL_CREDENTIALS_ACCESS_KEY_ID",
    "LAKECTL_CREDENTIALS_SECRET_ACCESS_KEY",
    "LAKEFS_SECRET_ACCESS_KEY",
    "MINIO_ROOT_PASSWORD",
    "MINIO_SECRET_KEY",
    "MODAL_TOKEN_ID",
    "MSI_SECRET",
    "MYSQL_PWD",
    "NETRC",
    "NGC_API_KEY",
    "NGC_CLI_API_KEY",
    "OSS_ACCESS_KEY_SECRET",
    "OS_PASSWORD",
    "PGPASSFILE",
    "PGPASSWORD",
    "PGSERVICEFILE",
    "R2_SECRET_ACCESS_KEY",
    "RCLONE_CONFIG",
    "RCLONE_CONFIG_PASS",
    "REDISCLI_AUTH",
    "S3_ACCESS_KEY_ID",
    "S3_SECRET_ACCESS_KEY",
    "S3_SECRET_KEY",
    "SNOWFLAKE_PASSWORD",
    "SNOWSQL_PWD",
    "SOPS_AGE_KEY",
    "SOPS_AGE_KEY_FILE",
    "SPACES_KEY",
    "SSHPASS",
    "ST_KEY",
    "SWIFT_KEY",
    "VAULT_ROLE_ID",
    "VAULT_TOKEN",
];

/// Variables with a standing credential that a run needs for something else: its metrics, its code, its cluster, a proxy.
const KEPT: &[&str] = &[
    "ALL_PROXY",
    "ANTHROPIC_API_KEY",
    "AZURE_DEVOPS_EXT_PAT",
    "AZURE_OPENAI_API_KEY",
    "CI_JOB_TOKEN",
    "CLEARML_API_ACCESS_KEY",
    "CLEARML_API_SECRET_KEY",
    "COMET_API_KEY",
    "DD_API_KEY",
    "DOCKER_AUTH_CONFIG",
    "DOCKER_CONFIG",
    "FTP_PROXY",
    "GH_PAT",
    "GH_TOKEN",
    "GITHUB_PAT",
    "GITHUB_TOKEN",
    "GITLAB_PAT",
    "GITLAB_TOKEN",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "KUBECONFIG",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_URI",
    "NEPTUNE_API_TOKEN",
    "NPM_TOKEN",
    "OPENAI_API_KEY",
    "PIP_EXTRA_INDEX_URL",
    "PIP_INDEX_URL",
    "SENTRY_DSN",
    "SLACK_WEBHOOK_URL",
    "SLURM_JWT",
    "SSH_AUTH_SOCK",
    "SWANLAB_API_KEY",
    "SYSTEM_ACCESSTOKEN",
    "TWINE_PASSWORD",
    "UV_EXTRA_INDEX_URL",
    "UV_INDEX_URL",
    "VSS_NUGET_EXTERNAL_FEED_ENDPOINTS",
    "WANDB_API_KEY",
];

/// Variables of `KEPT` whose value is usually not a credential: they count only if the value contains one.
const KEPT_IF_SECRET: &[&str] = &[
    "ALL_PROXY",
    "FTP_PROXY",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "MLFLOW_TRACKING_URI",
    "PIP_EXTRA_INDEX_URL",
    "PIP_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_INDEX_URL",
];

/// The ends of the names of other credentials. A name that consists only of such a word counts too.
const REMOVED_ENDS: &[&str] = &[
    "_ACCESSKEY",
    "_ACCESSTOKEN",
    "_ACCESS_KEY",
    "_ACCESS_KEY_ID",
    "_ACCOUNT_KEY",
    "_APIKEY",
    "_API_KEY",
    "_APPLICATION_KEY",
    "_AUTH",
    "_AUTHKEY",
    "_AUTHORIZATION",
    "_AUTHTOKEN",
    "_AUTH_HEADER",
    "_AUTH_KEY",
    "_BEARER",
    "_CONNECTION_STRING",
    "_CREDENTIAL",
    "_CREDENTIALS",
    "_CREDENTIALS_FILE",
    "_CREDENTIALS_JSON",
    "_CREDS",
    "_DEPLOY_KEY",
    "_ENCRYPTION_KEY",
    "_JWT",
    "_KEYTAB",
    "_KEY_CONTENT",
    "_MASTER_KEY",
    "_PASS",
    "_PASSCODE",
    "_PASSKEY",
    "_PASSPHRASE",
    "_PASSPHRASE_FILE",
    "_PASSWD",
    "_PASSWORD",
    "_PASSWORD_COMMAND",
    "_PASSWORD_FILE",
    "_PASS_KEY",
    "_PAT",
    "_PRIVATE_KEY",
    "_PW",
    "_PWD",
    "_SAS",
    "_SA_KEY",
    "_SERVICE_KEY",
    "_SESSIONKEY",
    "_SESSION_KEY",
    "_SHARED_KEY",
    "_SIGNING_KEY",
    "_SSH_KEY",
    "_STORAGE_KEY",
    "_TOKEN",
    "_TOKEN_FILE",
];

/// Values that switch something on or off, as in `DB_AUTH=true`. They are not credentials.
const SWITCHES: &[&str] = &["0", "1", "FALSE", "NO", "NONE", "OFF", "ON", "TRUE", "YES"];

/// A word in the names of other credentials.
const REMOVED_PART: &str = "SECRET";

/// Words in the names of other credentials, if the value is not a switch and the name does not end as a setting does.
const REMOVED_PARTS: &[&str] = &["COOKIE", "OAUTH", "PASSKEY"];

/// The ends of the names of settings that contain such a word, as in `OAUTH_ISSUER_URL`. They give no access.
const SETTING_ENDS: &[&str] = &[
    "_AUDIENCE",
    "_CLIENT_ID",
    "_DOMAIN",
    "_ENDPOINT",
    "_ISSUER",
    "_NAME",
    "_PROVIDER",
    "_SAMESITE",
    "_SCOPE",
    "_SCOPES",
    "_TTL",
    "_URI",
    "_URL",
];

/// The end of the names of personal access tokens. A value with one of `OF_PATTERNS` is a pattern or a path instead.
const ACCESS_TOKEN_END: &str = "_PAT";

/// Characters that are not in a personal access token.
const OF_PATTERNS: &[char] = &['*', '?', '[', '(', '^', '$', '\\', '/', '{', ' '];

/// The beginnings of the names of other credentials: connection strings for Azure, session keys of a password manager.
const REMOVED_BEGINNINGS: &[&str] = &["AZURE_CONN", "OP_SESSION_"];

/// The variable with the shell's directory. Its name ends like the name of a password.
const SHELL_DIRECTORY: &str = "PWD";

/// The settings of this program that its user sets. They are not credentials.
const SETTINGS: &[&str] = &[
    "LEASEHOLD_CONFIG",
    "LEASEHOLD_CONTEXT",
    "LEASEHOLD_CONTEXTS",
    "LEASEHOLD_IDENTITY_WAIT",
    "LEASEHOLD_LOG",
];

/// Decides about one variable that `keep_env` and `scrub` do not name.
pub(super) fn inheritance(name: &str, value: &str) -> Inheritance {
    let name = name.to_ascii_uppercase();
    let is_in = |list: &[&str]| list.binary_search(&name.as_str()).is_ok();
    if value.is_empty() || is_in(SETTINGS) {
        return Inheritance::Plain;
    }
    if is_in(REMOVED) {
        return Inheritance::Removed;
    }
    if is_in(KEPT) {
        let counts = !is_in(KEPT_IF_SECRET) || has_secret_form(value);
        return if counts { Inheritance::Named } else { Inheritance::Plain };
    }
    let whole = format!("_{name}");
    let is_switch = SWITCHES.contains(&value.to_ascii_uppercase().as_str());
    let is_pattern = whole.ends_with(ACCESS_TOKEN_END) && value.contains(OF_PATTERNS);
    let ends_so = name != SHELL_DIRECTORY && REMOVED_ENDS.iter().any(|end| whole.ends_with(end));
    let has_part = REMOVED_PARTS.iter().any(|part| name.contains(part))
        && !SETTING_ENDS.iter().any(|end| whole.ends_with(end));
    let is_named_so = !is_switch && !is_pattern && (ends_so || has_part)
        || name.contains(REMOVED_PART)
        || REMOVED_BEGINNINGS.iter().any(|begin| name.starts_with(begin));
    if is_named_so && !is_word_of_a_model(&whole, value) || has_secret_form(value) {
        return Inheritance::Removed;
    }
    // Environment modules keep their state in encoded bytes.
    let is_state = name.starts_with("_MODULETABLE");
    if looks_secret(value) && !is_state { Inheritance::Named } else { Inheritance::Plain }
}

/// Whether a variable such as `PAD_TOKEN` contains a word of a tokenizer (`<pad>`, `[CLS]`) or a number.
fn is_word_of_a_model(name: &str, value: &str) -> bool {
    name.ends_with("_TOKEN") && (value.len() < 8 || value.starts_with(['<', '[']))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "4kX9cQ2mZr7bT5wYv1LsNd8HfGa0Pq3E";

    #[test]
    fn what_opens_a_store_of_data_is_removed() {
        for name in [
            "AWS_SECRET_ACCESS_KEY",
            "aws_secret_access_key",
            "S3_SECRET_ACCESS_KEY",
            "TEAM_S3_ACCESS_KEY_ID",
            "WAREHOUSE_PASSWORD",
            "db_passwd",
            "PGPASSFILE",
            "NETRC",
            "GOOGLE_APPLICATION_CREDENTIALS",
            "ML_CREDENTIALS",
            "FEATURES_TOKEN",
            "TOKEN",
            "LAKE_API_KEY",
            "CLIENT_SECRET_FILE",
            "SNOWSQL_PWD",
            "WAREHOUSE_PWD",
            "LAKE_CREDS",
            "SSL_KEY_CONTENT",
            "ST_KEY",
            "SWIFT_KEY",
            "OS_PASSWORD",
            "DATABRICKS_CONFIG_FILE",
            "KRB5_KTNAME",
            "KRB5CCNAME",
            "AZURE_CONN",
            "azure_connstr",
            "LEASEHOLD_LAKE_TOKEN",
            "DB_PASS",
            "PASS",
            "pg_pass",
            "LAKE_PASSPHRASE",
            "REDIS_AUTH",
            "BASIC_AUTH",
            "npm_config__authToken",
            "npm_config__auth",
            "npm_config_//registry.acme.example/:_authToken",
            "npm_config__password",
            "DB_PW",
            "LAKE_AUTHORIZATION",
            "LAKE_SECRETKEY",
            "LAKE_ACCESSKEY",
            "LAKE_PASSCODE",
        ] {
            assert_eq!(inheritance(name, "/a/path-or-value"), Inheritance::Removed, "{name}");
        }
        for value in [
            "postgres://ml:hunter2@db.acme.example/features",
            "AKIAIOSFODNN7EXAMPLE",
            "-----BEGIN PRIVATE KEY-----",
            "https://acme.blob.core.windows.net/data/train?sv=2024-11-04&sp=r&sig=Zm9vYmFy%2Bx%3D",
            "https://s3.acme.example/b/k?AWSAccessKeyId=ada&Signature=Zm9v%3D&Expires=1795148000",
            "https://s3.acme.example/b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=4be1c0de",
            "https://storage.googleapis.com/b/k?X-Goog-Expires=60&X-Goog-Signature=4be1c0de",
            "DefaultEndpointsProtocol=https;AccountName=acme;AccountKey=Zm9vYmFy==;",
            "Endpoint=sb://acme.example/;SharedAccessKeyName=root;SharedAccessKey=Zm9vYmFy=",
            "Server=db.acme.example;User Id=ml;Password=hunter2;",
            "Driver={ODBC Driver 18 for SQL Server};Server=db;UID=ml;PWD={hunter;2}",
            "Authorization: Bearer hunter2-and-more",
            "Authorization: Basic bWw6aHVudGVyMg==",
        ] {
            assert_eq!(inheritance("WHATEVER", value), Inheritance::Removed, "{value}");
        }
    }

    #[test]
    fn keys_and_cookies_of_sessions_and_ci_are_removed() {
        for name in [
            "GOOGLE_OAUTH",
            "OAUTH2_REFRESH",
            "LAKE_OAUTH_CODE",
            "SESSION_KEY",
            "LAKE_SESSIONKEY",
            "JUPYTER_COOKIE",
            "COOKIES_FILE",
            "ERLANG_COOKIE",
            "LAKE_PASSKEY",
            "LAKE_PASS_KEY",
            "GCLOUD_SERVICE_KEY",
            "GCP_SA_KEY",
            "BLOB_ACCOUNT_KEY",
            "RAILS_MASTER_KEY",
            "RESTIC_PASSWORD_FILE",
            "OCI_CLI_SECURITY_TOKEN_FILE",
            "ALIBABA_CLOUD_CREDENTIALS_FILE",
            "CI_JOB_JWT",
            "CI_JOB_JWT_V2",
            "SOPS_AGE_KEY_FILE",
            "TS_AUTHKEY",
            "BW_SESSION",
            "OP_SESSION_acme",
            "MODAL_TOKEN_ID",
        ] {
            assert_eq!(inheritance(name, "/a/path-or-value"), Inheritance::Removed, "{name}");
        }
        for name in ["LAKE_PAT", "pat", "SNOWFLAKE_PAT"] {
            assert_eq!(inheritance(name, "x7f3c9a0"), Inheritance::Removed, "{name}");
        }
    }

    #[test]
    fn what_a_run_needs_for_something_else_is_named() {
        for (name, value) in [
            ("WANDB_API_KEY", SECRET),
            ("GITHUB_TOKEN", "ghp_0123456789abcdefABCDEF0123456789abcd"),
            ("gh_token", "x"),
            ("GITLAB_PAT", "x7f3c9a0"),
            ("AZURE_DEVOPS_EXT_PAT", "x7f3c9a0"),
            ("SYSTEM_ACCESSTOKEN", "x7f3c9a0"),
            ("SLACK_WEBHOOK_URL", "https://hooks.acme.example/services/T0/B0/x"),
            ("KUBECONFIG", "/home/ada/.kube/config"),
            ("HTTPS_PROXY", "http://ada:hunter2@proxy.acme.example:3128"),
            ("WHATEVER", "4kX9cQ2mZr7bT5wYv1LsNd8HfGa0Pq3E4kX9cQ2m"),
        ] {
            assert_eq!(inheritance(name, value), Inheritance::Named, "{name}");
        }
    }

    #[test]
    fn what_is_no_credential_is_inherited_without_a_word() {
        for (name, value) in [
            ("PATH", "/usr/bin:/bin"),
            ("AWS_REGION", "eu-central-1"),
            ("HF_HOME", "/data/hf"),
            ("HTTPS_PROXY", "http://proxy.acme.example:3128"),
            ("PAD_TOKEN", "<|endoftext|>"),
            ("MAX_TOKEN", "4096"),
            ("TOKENIZERS_PARALLELISM", "false"),
            ("DB_PASSWORD", ""),
            ("_ModuleTable001_", "X01vZHVsZVRhYmxlXyA9IHsKTVR2ZXJzaW9uID0gMywKY19yZWJ1aWxkVGltZSA9IGZhbHNl"),
            ("LEASEHOLD_CONTEXT", "dev"),
            ("LEASEHOLD_CONTEXTS", "/home/ada/contexts.toml"),
            ("PWD", "/home/ada"),
            ("OLDPWD", "/home/ada/project"),
            ("DATASET_URL", "https://data.acme.example/tickets?version=3&format=parquet"),
            ("REDIS_AUTH", "true"),
            ("LOG_PAT", "*.log"),
            ("SESSION_COOKIE_SECURE", "true"),
            ("SESSION_COOKIE_NAME", "sid"),
            ("OAUTH_ISSUER_URL", "https://login.acme.example"),
            ("OAUTH_CLIENT_ID", "leasehold"),
            ("XDG_SESSION_ID", "2"),
            ("SORT_KEY", "name"),
            ("XAUTHORITY", "/home/ada/.Xauthority"),
            ("GIT_AUTHOR_NAME", "Ada"),
            ("COMPASS", "north"),
            ("NCCL_BYPASS", "1"),
            ("LS_COLORS", "rs=0:di=01;34:ln=01;36:mh=00:pi=40;33:so=01;35:do=01;35"),
        ] {
            assert_eq!(inheritance(name, value), Inheritance::Plain, "{name}");
        }
    }

    #[test]
    fn the_lists_are_sorted_and_have_no_duplicates() {
        for list in [
            REMOVED,
            REMOVED_BEGINNINGS,
            REMOVED_ENDS,
            REMOVED_PARTS,
            KEPT,
            KEPT_IF_SECRET,
            SETTINGS,
            SETTING_ENDS,
            SWITCHES,
        ] {
            assert!(list.is_sorted_by(|a, b| a < b), "{list:?}");
        }
        assert!(KEPT_IF_SECRET.iter().all(|name| KEPT.contains(name)));
        assert!(KEPT.iter().all(|name| !REMOVED.contains(name)));
    }
}
