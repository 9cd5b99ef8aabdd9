//! The policy and the catalog with which the daemon decides.

use crate::{
    catalog::Catalog,
    policy::{Engine, SignedBundle},
};

/// A policy, and the catalog that was loaded with it. A decision never mixes two loads.
pub struct Rules {
    /// The engine that decides with policy and catalog.
    pub engine: Engine,
    /// The signatures of the policy, if it has signatures.
    pub signed: Option<SignedBundle>,
}

impl Rules {
    /// Returns the catalog of the engine.
    pub fn catalog(&self) -> &Catalog {
        self.engine.catalog()
    }
}
