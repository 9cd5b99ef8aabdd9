//! nginx with the same files. Its rate is shown beside the gateway's rate, as the best that this machine can do.

use std::{
    fmt::Write,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};

use crate::dev::{
    DevDeployment, Role,
    bench::peers::{find_program, unused_ports},
};

/// The folders in which systems keep programs for administrators. They are often not in PATH.
const ELSEWHERE: [&str; 3] = ["/usr/sbin", "/usr/local/sbin", "/usr/local/nginx/sbin"];

/// Finds nginx in PATH, or in the usual folders of such programs.
pub fn find_nginx() -> Option<PathBuf> {
    find_program("nginx", &ELSEWHERE)
}

/// A running nginx. Ends with this value.
pub(super) struct Nginx {
    master: Child,
    /// The port with TLS. `plain_port` has no TLS.
    pub(super) tls_port: u16,
    pub(super) plain_port: u16,
}

impl Nginx {
    /// Starts nginx with the sample data of a deployment. It shows the SVID of the gateway, and asks for one as the gateway does.
    pub(super) fn start(program: &Path, deployment: &DevDeployment) -> Result<Self, String> {
        let folder = deployment.path("nginx");
        let [tls_port, plain_port] = unused_ports()?;
        let text = config(&folder, deployment, tls_port, plain_port);
        let written = fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join("nginx.conf"), text));
        written.map_err(|e| format!("the configuration of nginx cannot be written: {e}"))?;
        let log = File::create(folder.join("stderr")).map_err(|e| e.to_string())?;
        let master = Command::new(program)
            .arg("-p")
            .arg(&folder)
            .arg("-c")
            .arg(folder.join("nginx.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|e| format!("`{}` could not be started: {e}", crate::plain::path(program)))?;
        let mut nginx = Nginx { master, tls_port, plain_port };
        nginx.wait_until_listening().map_err(|why| {
            format!("{why}: {}", fs::read_to_string(folder.join("stderr")).unwrap_or_default().trim())
        })?;
        Ok(nginx)
    }

    fn wait_until_listening(&mut self) -> Result<(), String> {
        for _ in 0..1_500 {
            if std::net::TcpStream::connect(("127.0.0.1", self.tls_port)).is_ok() {
                return Ok(());
            }
            if let Ok(Some(status)) = self.master.try_wait() {
                return Err(format!("nginx ended with {status}"));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err("nginx did not start".to_owned())
    }

    /// The ids of the processes of nginx.
    pub(super) fn processes(&self) -> Vec<u32> {
        let master = self.master.id();
        let children =
            fs::read_to_string(format!("/proc/{master}/task/{master}/children")).unwrap_or_default();
        let children = children.split_ascii_whitespace().filter_map(|id| id.parse().ok());
        std::iter::once(master).chain(children).collect()
    }
}

/// SIGTERM ends the workers of nginx too. After SIGKILL, they would go on.
impl Drop for Nginx {
    fn drop(&mut self) {
        if let Ok(id) = i32::try_from(self.master.id()) {
            let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
            let _ = self.master.wait();
        }
    }
}

fn config(folder: &Path, deployment: &DevDeployment, tls_port: u16, plain_port: u16) -> String {
    let mut text = String::new();
    // If root starts nginx, its workers change to another user by default. That user cannot read the folder.
    if geteuid().is_root() {
        text.push_str("user root;\n");
    }
    let show = |path: &Path| path.display().to_string();
    let (root, own) = (show(&deployment.data), show(folder));
    let (cert, key) = (show(&deployment.cert(Role::S3)), show(&deployment.key(Role::S3)));
    let bundle = show(&deployment.bundle());
    // Writing to a String does not fail.
    let _ = write!(
        text,
        r#"daemon off;
worker_processes auto;
pid "{own}/pid";
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    default_type application/octet-stream;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 100000000;
    keepalive_timeout 600s;
    output_buffers 2 256k;
    client_body_temp_path "{own}/body";
    proxy_temp_path "{own}/proxy";
    fastcgi_temp_path "{own}/fastcgi";
    uwsgi_temp_path "{own}/uwsgi";
    scgi_temp_path "{own}/scgi";
    root "{root}";
    server {{ listen 127.0.0.1:{plain_port}; }}
    server {{
        listen 127.0.0.1:{tls_port} ssl;
        ssl_protocols TLSv1.3;
        ssl_certificate "{cert}";
        ssl_certificate_key "{key}";
        ssl_client_certificate "{bundle}";
        ssl_verify_client on;
    }}
}}
"#
    );
    text
}
