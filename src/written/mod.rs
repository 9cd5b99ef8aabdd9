//! The strict reading of files that people write. All mistakes are reported at once, each with its line and a
//! correction. A text that looks like a secret is never quoted.
//!
//! This module does not know the keys of files. Other modules read the configuration, the contexts, the catalog and the
//! job file.
//!
//! | File | Contains |
//! |---|---|
//! | `section` | `Section`: one table of a file, read key by key |
//! | `document` | a TOML text as a tree in which each value has its line |
//! | `problem` | [`Problems`]: the mistakes in a file |
//! | `text` | the text of a file |
//! | `units` | durations and sizes, as people write them |

mod document;
mod problem;
mod section;
mod text;
mod units;

pub(crate) use document::{Field, Node, Parsed, Value, parse_toml};
pub use problem::{Problem, Problems};
pub use section::DefaultUsed;
pub(crate) use section::{Notes, Placed, Section, path, read_document};
pub(crate) use text::{Lines, nearest, one_line, read_file, read_regular_text, read_text, shown_key_path};
pub(crate) use units::{size, size_text, span, span_text};
