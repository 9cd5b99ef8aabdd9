//! Answers of the daemon as table rows, pages and JSON values.
//!
//! | File | Renders |
//! |---|---|
//! | `words` | the values of enums, such as states and outcomes |
//! | `job` `gate` | jobs; their gates, approvals and decisions |
//! | `lease` `resource` `lock` | leases, resources of the catalog, locks and endings |

mod gate;
mod job;
mod lease;
mod lock;
mod resource;
mod words;

pub(super) use gate::{all_gates_table, decision_table, decision_value, gate_table};
pub(super) use job::{job_page, job_table, job_value, risk_text, risk_value};
pub(super) use lease::{lease_page, lease_table, lease_value};
pub(super) use lock::{ending_value, lock_table, lock_value};
pub(super) use resource::{resource_page, resource_table, resource_value};
pub(super) use words::{job_state_or_outcome, method, none_if_empty};
