//! A deployment in a folder, for `leasehold demo` and `leasehold bench`.

use std::{path::Path, sync::Arc};

use super::{
    Failure, Session,
    dev::{contexts_of, failed},
};
use crate::dev::{DevDeployment, FreePorts, demo::Stage, free_ports};

/// Sets up new identities, a configuration and a context in a folder. While the caller holds the ports, no other program gets
/// them.
pub(super) fn set_up_stage(folder: &Path, session: &Session) -> Result<(Stage, FreePorts), Failure> {
    let free = free_ports().map_err(|e| failed("no free ports were found on localhost", &e))?;
    let deployment = DevDeployment::set_up(folder, None, free.ports, session.clock.clone())
        .map_err(|e| failed("the deployment could not be set up", &e))?;
    let contexts = deployment.path("contexts.toml");
    contexts_of(&deployment)?.save(&contexts).map_err(|e| failed("the context could not be written", &e))?;
    let program = std::env::current_exe().map_err(|e| failed("the path of this program is not known", &e))?;
    let stage = Stage { deployment: Arc::new(deployment), clock: session.clock.clone(), program, contexts };
    Ok((stage, free))
}
