//! The controls of a governed tuning pipeline as data, and a run that tries each control as a user would.
//!
//! `docs/controls.toml` is the source. Each control has tests, and steps: commands of this program and the exit codes that they
//! must have. A run starts a daemon with the shipped catalogs and policy, and runs the steps.
//!
//! | File | Contains |
//! |---|---|
//! | `list` | [`ControlList`]: the controls, read from the file |
//! | `lab` | [`Lab`]: a daemon with the shipped samples, and an SVID for each identity |
//! | `trial` | [`ControlTrial`]: runs the steps of one control |

mod lab;
mod list;
mod markdown;
mod trial;

pub use lab::{Lab, LabPerson};
pub use list::{Control, ControlList, Standing};
pub use markdown::page;
pub use trial::{ControlTrial, Tried};
