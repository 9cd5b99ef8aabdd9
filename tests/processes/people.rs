//! What people read on these paths.
