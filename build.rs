//! Compiles `proto/` with protox: no `protoc` has to be installed.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

const FILES: [&str; 7] = [
    "leasehold/v1/approval.proto",
    "leasehold/v1/common.proto",
    "leasehold/v1/job.proto",
    "leasehold/v1/member.proto",
    "leasehold/v1/operator.proto",
    "leasehold/v1/policy.proto",
    "leasehold/v1/verifier.proto",
];

/// Messages that carry a secret: their `Debug` is written by hand, in `src/proto.rs`.
const SECRET: [&str; 11] = [
    "leasehold.v1.Session",
    "leasehold.v1.JoinAttemptRequest",
    "leasehold.v1.BeginAttemptRequest",
    "leasehold.v1.BeginAttemptResponse",
    "leasehold.v1.DrainAttemptRequest",
    "leasehold.v1.EndAttemptRequest",
    "leasehold.v1.IssueCredentialResponse",
    "leasehold.v1.RenewLeaseResponse",
    "leasehold.v1.IntrospectRequest",
    "leasehold.v1.ResolveKeyResponse",
    "leasehold.v1.S3Key",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(true).include_imports(true).open_files(FILES)?;
    tonic_prost_build::configure()
        .skip_debug(SECRET)
        .emit_rerun_if_changed(false)
        .compile_fds(compiler.file_descriptor_set())?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptor.bin"), compiler.encode_file_descriptor_set())?;
    workload_api(&out)
}

/// The SPIFFE Workload API is separate: we are its client, so reflection must not name it. The server's half is for the
/// tests.
fn workload_api(out: &Path) -> Result<(), Box<dyn Error>> {
    for (folder, server) in [("workload_client", false), ("workload_server", true)] {
        let folder = out.join(folder);
        fs::create_dir_all(&folder)?;
        let mut compiler = protox::Compiler::new(["proto/spiffe"])?;
        compiler.include_source_info(true).open_files(["workload.proto"])?;
        tonic_prost_build::configure()
            .skip_debug(["X509SVID"])
            .build_server(server)
            .build_client(!server)
            .build_transport(false)
            .out_dir(folder)
            .emit_rerun_if_changed(false)
            .compile_fds(compiler.file_descriptor_set())?;
    }
    Ok(())
}
