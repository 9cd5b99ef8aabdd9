//! The file server and the S3 gateway of a development deployment, which run beside the daemon.

use std::{collections::HashMap, io, net::Ipv4Addr, path::PathBuf, sync::Arc};

use tokio::{
    net::{TcpListener, TcpSocket},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{DevDeployment, FileServer, Ports, Role, SetupError, deployment::TENANT};
use crate::{
    catalog::Catalog,
    clock::Clock,
    gateway::{Gateway, GatewaySettings, KeptIn, StoreFault, StoreSettings},
    identity::FileSource,
    link::{Connector, Endpoint, EndpointError, ServeOptions},
    verify::{UseReporter, Verifier, VerifierSettings},
};

/// The running file server and S3 gateway, and the renewal of the identities.
pub struct Running {
    pub verifier: Verifier,
    /// The verifier of the S3 gateway.
    pub s3_verifier: Verifier,
    pub server: FileServer,
    tasks: Vec<JoinHandle<()>>,
    stop: CancellationToken,
}

/// Why the file server or the S3 gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum RunningError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error("{what} cannot listen on port {port}")]
    Listen { what: &'static str, port: u16, source: io::Error },
    #[error("the catalog cannot be used: {0}")]
    Catalog(String),
    #[error(transparent)]
    Store(#[from] StoreFault),
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error(transparent)]
    Name(#[from] crate::name::NameError),
}

impl Running {
    /// Starts the file server and the S3 gateway of a deployment. The daemon may start later. Until then, every request is
    /// refused.
    pub async fn start(deployment: &Arc<DevDeployment>, clock: Arc<dyn Clock>) -> Result<Self, RunningError> {
        let stop = CancellationToken::new();
        let listener = listen("the file server", deployment.ports.files).await?;
        let source: Arc<FileSource> = deployment.source(Role::Files)?;
        let connector = deployment.connector(Role::Files, clock.clone())?;
        let verifier = Verifier::start(VerifierSettings {
            connector,
            audience: deployment.id(Role::Files)?,
            clock: clock.clone(),
        });
        let folders = HashMap::from([
            (format!("dataset:{TENANT}/data@v1").parse()?, deployment.data.clone()),
            (format!("model:{TENANT}/base@1").parse()?, deployment.path("models/base")),
        ]);
        let server = FileServer::new(verifier.clone(), folders, deployment.checkpoints());
        let serving = server.clone().serve(listener, source.clone(), clock.clone(), stop.clone());
        let mut tasks = vec![tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the file server stopped");
            }
        })];
        tasks.push(tokio::spawn(source.follow(stop.clone())));
        let (s3_verifier, gateway) = start_gateway(deployment, clock.clone(), &stop).await?;
        tasks.extend(gateway);
        let (deployment, shutdown) = (deployment.clone(), stop.clone());
        tasks.push(tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = clock.sleep(super::SVID_LIFE / 2) => {}
                }
                if let Err(error) = deployment.issue_svids() {
                    tracing::error!(%error, "SVIDs could not be renewed");
                }
            }
        }));
        Ok(Running { verifier, s3_verifier, server, tasks, stop })
    }

    /// Stops the servers and their connections.
    pub async fn stop(self) {
        self.verifier.shutdown().await;
        self.s3_verifier.shutdown().await;
        self.stop.cancel();
        for task in self.tasks {
            let _ = task.await;
        }
    }
}

async fn listen(what: &'static str, port: u16) -> Result<TcpListener, RunningError> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
    bound.map_err(|source| RunningError::Listen { what, port, source })
}

/// Starts the S3 gateway. It keeps the present catalog, because a reload of the daemon does not reach it.
async fn start_gateway(
    deployment: &DevDeployment,
    clock: Arc<dyn Clock>,
    stop: &CancellationToken,
) -> Result<(Verifier, [JoinHandle<()>; 2]), RunningError> {
    let listener = listen("the S3 gateway", deployment.ports.s3).await?;
    let (source, audience) = (deployment.source(Role::S3)?, deployment.id(Role::S3)?);
    let connector = deployment.connector(Role::S3, clock.clone())?;
    let reporter = UseReporter::new(&connector, audience.clone(), clock.clone());
    let verifier =
        Verifier::start(VerifierSettings { connector, audience: audience.clone(), clock: clock.clone() });
    let store = |location: &str, directory: PathBuf| StoreSettings {
        location: format!("s3://{TENANT}/{location}"),
        kept_in: KeptIn::Directory(directory),
    };
    let stores = vec![
        store("data/", deployment.data.clone()),
        store("models/tiny/", deployment.path("models/base")),
        store("out/", deployment.path("s3/out")),
    ];
    let listen = (Ipv4Addr::LOCALHOST, deployment.ports.s3).into();
    let stores = GatewaySettings { listen, direct: None, audience, stores, manifests: None }.open_stores()?;
    let catalog = Catalog::load(&deployment.path("catalog.d")).map_err(|e| {
        RunningError::Catalog(e.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    })?;
    let gateway = Gateway::new(verifier.clone(), Arc::new(move || catalog.clone()), stores, clock)
        .reporting_to(reporter);
    let serving = gateway.serve(listener, source.clone(), ServeOptions::default(), stop.clone());
    Ok((verifier, [tokio::spawn(serving), tokio::spawn(source.follow(stop.clone()))]))
}

impl DevDeployment {
    /// Makes a connector to the daemon with the identity of a role.
    ///
    /// # Errors
    ///
    /// Fails if a file of the SVID or the bundle cannot be read or used.
    pub fn connector(&self, role: Role, clock: Arc<dyn Clock>) -> Result<Connector, RunningError> {
        let address = format!("localhost:{}", self.ports.grpc);
        let endpoint = Endpoint::new(&address, self.id(Role::Daemon)?)?;
        Ok(Connector::new(self.identity(role)?, clock, endpoint))
    }

    /// Makes a connector to the file server with the identity of a role.
    ///
    /// # Errors
    ///
    /// Fails if a file of the SVID or the bundle cannot be read or used.
    pub fn files_connector(&self, role: Role, clock: Arc<dyn Clock>) -> Result<Connector, RunningError> {
        let address = format!("localhost:{}", self.ports.files);
        let endpoint = Endpoint::new(&address, self.id(Role::Files)?)?;
        Ok(Connector::new(self.identity(role)?, clock, endpoint))
    }
}

/// Five reserved ports on localhost. While this value lives, the system does not give them to a listener that asks for any
/// port, or to an outgoing connection. A listener that names one of them can take it, close it, and take it again.
#[derive(Debug)]
pub struct FreePorts {
    pub ports: Ports,
    /// The sockets, which are bound but do not listen.
    _held: [TcpSocket; 5],
}

/// Finds five free ports on localhost, and reserves them.
///
/// # Errors
///
/// Fails if the system gives no socket, or if no port is free.
pub fn free_ports() -> io::Result<FreePorts> {
    let hold = || {
        let socket = TcpSocket::new_v4()?;
        // The listener sets this option too. Only then can both sockets have the port.
        socket.set_reuseaddr(true)?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        Ok::<_, io::Error>((socket.local_addr()?.port(), socket))
    };
    let (grpc, a) = hold()?;
    let (issuer, b) = hold()?;
    let (probe, c) = hold()?;
    let (files, d) = hold()?;
    let (s3, e) = hold()?;
    Ok(FreePorts { ports: Ports { grpc, issuer, probe, files, s3 }, _held: [a, b, c, d, e] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_held_port_goes_only_to_a_listener_that_names_it() {
        let free = free_ports().unwrap();
        let grpc = (Ipv4Addr::LOCALHOST, free.ports.grpc);
        for _ in 0..2 {
            drop(TcpListener::bind(grpc).await.unwrap());
            // The system does not give a bound port to another socket, as this bind shows.
            let other = TcpSocket::new_v4().unwrap();
            assert_eq!(other.bind(grpc.into()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        }
    }
}
