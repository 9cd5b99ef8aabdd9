# A second deployment, for clients without a wrapper: a daemon whose `[gateway]` has a listener for direct keys, and `leasehold gateway`
# with one too. Both have the same audience, so one key opens both. `run` sources this file after lib.sh and `start_dev`, whose
# identities it uses.

# start_direct: sets `direct` to its folder, `inner` and `outer` to the processes of the daemon and the gateway, and `inner_port` and
# `outer_port` to their ports for direct keys.
start_direct() {
    local grpc_port issuer_port probe_port
    direct=$work/direct
    grpc_port=$(free_ports 7)
    issuer_port=$((grpc_port + 1)) probe_port=$((grpc_port + 2))
    inner_port=$((grpc_port + 4)) outer_port=$((grpc_port + 6))
    mkdir "$direct"
    cp -r "$folder/catalog.d" "$folder/policy" "$folder/s3-job.toml" "$direct"
    # Wrappers and agents use the standalone gateway.
    sed -i "s|^verifiers *= \[\"spiffe://dev.leasehold/s3\"\]|verifiers = [\"spiffe://dev.leasehold/s3\", \"spiffe://dev.leasehold/daemon\"]|
        s|^s3_endpoint = .*|s3_endpoint = \"localhost:$((grpc_port + 5))\"|" "$direct/catalog.d/dev.toml"
    sed "s|^server = .*|server = \"localhost:$grpc_port\"|; s|^issuer = .*|issuer = \"http://localhost:$issuer_port\"|" \
        "$LEASEHOLD_CONTEXTS" >"$direct/contexts.toml"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:TRUE \
        -keyout "$direct/web.key" -out "$direct/web.pem" 2>"$direct/openssl.log" ||
        die "there is no certificate for direct keys: $(tail -n 1 "$direct/openssl.log")"
    cat >"$direct/leasehold.toml" <<TOML
[server]
grpc  = "127.0.0.1:$grpc_port"
probe = "127.0.0.1:$probe_port"
state = "state"
[issuer]
url    = "http://localhost:$issuer_port"
listen = "127.0.0.1:$issuer_port"
[identity]
cert    = "$folder/svid/daemon.pem"
key     = "$folder/svid/daemon.key"
bundles = { "dev.leasehold" = "$folder/ca/bundle.pem" }
[policy]
dir     = "policy"
catalog = "catalog.d"
[ledger]
free_space_stop = "16MiB"
$(gateway_section inner $((grpc_port + 3)) '')
TOML
    cat >"$direct/gateway.toml" <<TOML
[daemon]
address   = "localhost:$grpc_port"
spiffe_id = "spiffe://dev.leasehold/daemon"
[identity]
cert    = "$folder/svid/s3.pem"
key     = "$folder/svid/s3.key"
bundles = { "dev.leasehold" = "$folder/ca/bundle.pem" }
$(gateway_section outer $((grpc_port + 5)) 'catalog = "catalog.d"')
TOML
    gateway_folder inner
    gateway_folder outer
    "$leasehold" serve --config "$direct/leasehold.toml" >"$direct/daemon.log" 2>&1 </dev/null &
    inner=$!
    started+=("$inner")
    wait_for 60 curl -sf -o /dev/null "http://127.0.0.1:$probe_port/readyz" ||
        die "the daemon for direct keys was not ready within 60 s: $(tail -n 2 "$direct/daemon.log")"
    "$leasehold" gateway --config "$direct/gateway.toml" >"$direct/gateway.log" 2>&1 </dev/null &
    outer=$!
    started+=("$outer")
    wait_for 60 grep -qs ready "$direct/gateway.log" ||
        die "the gateway for direct keys was not ready within 60 s: $(tail -n 2 "$direct/gateway.log")"
}

# gateway_section NAME PORT LINE: prints the section of a gateway. Its direct listener has the next port.
gateway_section() {
    cat <<TOML
[gateway]
listen      = "127.0.0.1:$2"
direct      = "127.0.0.1:$(($2 + 1))"
direct_cert = "web.pem"
direct_key  = "web.key"
audience    = "spiffe://dev.leasehold/s3"
$3
[[gateway.store]]
location  = "s3://dev/data/"
directory = "$1/data"
[[gateway.store]]
location  = "s3://dev/models/tiny/"
directory = "$1/models"
[[gateway.store]]
location  = "s3://dev/out/"
directory = "$1/out"
TOML
}

# gateway_folder NAME: two objects of 12 MiB that look like Parquet, and one without an end in sight. One gateway serves a directory.
gateway_folder() {
    local part
    mkdir -p "$direct/$1"/{data,models,out}
    for part in 0 1; do
        { printf PAR1 && head -c 12582912 /dev/urandom; } >"$direct/$1/data/part-$part.parquet"
    done
    truncate -s 256G "$direct/$1/data/endless.bin"
}

# as_direct SCRIPT WORD…: runs a Python script of this folder with the second deployment.
as_direct() { LEASEHOLD=$leasehold DIRECT=$direct LEASEHOLD_CONTEXTS=$direct/contexts.toml "$aws_python" "$here/$1" "${@:2}"; }
