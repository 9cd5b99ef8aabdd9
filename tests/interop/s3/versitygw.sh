# versitygw, an S3 server of others, as the store behind a gateway that runs by itself. Sourced by `run`, after lib.sh.

# Sets `versitygw` to the program, built if it is not there yet. LEASEHOLD_VERSITYGW names one that is there.
need_versitygw() {
    versitygw=${LEASEHOLD_VERSITYGW:-}
    if [ -z "$versitygw" ]; then
        need_go_tools versitygw "$here/versitygw" 0 versitygw
        versitygw=$tools/versitygw
    fi
    [ -x "$versitygw" ] || die "LEASEHOLD_VERSITYGW names no program: $versitygw"
}

# start_versitygw: with the bucket `dev`, and the same data in it. Sets `store_port`.
start_versitygw() {
    store_port=$(free_ports 1)
    mkdir "$work/store" "$work/store-iam"
    ROOT_ACCESS_KEY=store-key ROOT_SECRET_KEY=store-secret "$versitygw" --port "127.0.0.1:$store_port" --iam-dir "$work/store-iam" --quiet \
        --health /healthz posix "$work/store" >"$work/versitygw.log" 2>&1 </dev/null &
    started+=("$!")
    wait_for 60 curl -sf -o /dev/null "http://127.0.0.1:$store_port/healthz" || die "versitygw was not ready within 60 s: $(tail -n 2 "$work/versitygw.log")"
    store_aws s3 mb s3://dev >/dev/null || die 'the store has no bucket'
    store_aws s3 cp --recursive --exclude '*.bin' --no-progress "$work/data" s3://dev/data/ >/dev/null || die 'the store takes no data'
    store_aws s3 cp --recursive --no-progress "$folder/models/base" s3://dev/models/tiny/ >/dev/null || die 'the store takes no model'
    # An object without an end in sight, which no one could upload. versitygw keeps entity tags beside its files.
    truncate -s 256G "$work/store/dev/data/endless.bin"
    python3 -c 'import os, sys; os.setxattr(sys.argv[1], "user.etag", b"0123456789abcdef0123456789abcdef")' "$work/store/dev/data/endless.bin" ||
        not_run "the file system of $work keeps no attributes"
}

# The aws CLI as the owner of the store.
store_aws() {
    AWS_ACCESS_KEY_ID=store-key AWS_SECRET_ACCESS_KEY=store-secret AWS_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true \
        AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null \
        "$(dirname "$aws_python")/aws" --endpoint-url "http://127.0.0.1:$store_port" "$@"
}

# start_own_gateway: `leasehold gateway` in front of the store, and the catalog leads there.
start_own_gateway() {
    local port
    port=$(free_ports 1)
    mkdir "$work/gateway"
    printf 'store-key\n' >"$work/gateway/store.id"
    printf 'store-secret\n' >"$work/gateway/store.key"
    chmod 600 "$work/gateway/store.id" "$work/gateway/store.key"
    sed -i "s|^s3_endpoint = .*|s3_endpoint = \"localhost:$port\"|" "$folder/catalog.d/dev.toml"
    cat >"$work/gateway/gateway.toml" <<TOML
[daemon]
address = "$grpc"
spiffe_id = "spiffe://dev.leasehold/daemon"
[identity]
cert = "$folder/svid/s3.pem"
key = "$folder/svid/s3.key"
bundles = { "dev.leasehold" = "$folder/ca/bundle.pem" }
[gateway]
listen = "127.0.0.1:$port"
audience = "spiffe://dev.leasehold/s3"
catalog = "$folder/catalog.d"
[[gateway.store]]
location = "s3://dev/"
endpoint = "http://127.0.0.1:$store_port"
region = "us-east-1"
access_key_file = "store.id"
secret_key_file = "store.key"
TOML
    "$leasehold" catalog reload >/dev/null 2>"$work/reload.log" || die "the catalog does not take the gateway: $(tail -n 2 "$work/reload.log")"
    "$leasehold" gateway --config "$work/gateway/gateway.toml" >"$work/gateway.log" 2>&1 </dev/null &
    started+=("$!")
    wait_for 60 grep -qs ready "$work/gateway.log" || die "leasehold gateway was not ready within 60 s: $(tail -n 2 "$work/gateway.log")"
}
