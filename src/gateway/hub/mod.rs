//! A read-only server with the API of the Hugging Face Hub. `from_pretrained`, `load_dataset` and `snapshot_download`
//! load what a lease allows.
//!
//! A leased model or dataset is a repository `TENANT/NAME`, and its versions are the revisions. `main` is the newest
//! version that the lease has. The server shows nothing that the lease does not open. It sends no Xet fields (another
//! download protocol of the Hub), so clients load all bytes from here.
//!
//! | File | Contains |
//! |---|---|
//! | `path` | [`Question`](path::Question): the request in a path |
//! | `repository` | the repositories of a lease, their revisions and files |
//! | `serve` | the answers |
//! | `refused` | refusals that the Hub's clients show |

mod path;
mod refused;
mod repository;
mod serve;

pub(super) use path::is_hub_path;
pub(super) use refused::hub_refusal;
pub(super) use serve::answer;
