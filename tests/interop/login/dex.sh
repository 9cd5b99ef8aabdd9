# Dex of one machine: built from its Go module. Sourced by `run`, after lib.sh.

# Sets `dex` to the program, built if it is not there yet. LEASEHOLD_DEX names one that is there.
need_dex() {
    if [ -n "${LEASEHOLD_DEX:-}" ]; then
        dex=$LEASEHOLD_DEX
        [ -x "$dex" ] || die "LEASEHOLD_DEX names no program: $dex"
        return
    fi
    need_go_tools Dex "$interop/login" 1 dex
    dex=$tools/dex
}

# start_dex PORT: with memory only, a client without a secret, and a connector that believes two headers about the user.
start_dex() {
    cat >"$work/dex.yaml" <<YAML
issuer: http://127.0.0.1:$1/dex
storage: {type: memory}
web: {http: 127.0.0.1:$1}
telemetry: {http: 127.0.0.1:$(($1 + 1))}
oauth2:
  skipApprovalScreen: true
  grantTypes: [authorization_code, "urn:ietf:params:oauth:grant-type:device_code"]
expiry: {idTokens: 10m, deviceRequests: 5m}
staticClients:
- {id: leasehold-cli, name: leasehold, public: true}
connectors:
- {type: authproxy, id: proxy, name: proxy, config: {userHeader: X-Remote-User, groupHeader: X-Remote-Group}}
YAML
    "$dex" serve "$work/dex.yaml" >"$work/dex.log" 2>&1 </dev/null &
    started+=("$!")
    wait_for 60 curl -sf -o /dev/null "http://127.0.0.1:$(($1 + 1))/healthz/ready" || die "Dex was not ready within 60 s"
}

# The browser of one person: follows redirects by hand, and says who signs in where Dex asks for it.
# browse USER GROUPS URL: goes on from a URL of Dex until it leads nowhere, or to the callback of the command.
browse() {
    local user=$1 groups=$2 url=$3 jar=$work/cookies.$1 step
    for step in 1 2 3 4 5 6 7 8 9; do
        [ -n "$url" ] || return 0
        url=${url/\/dex\/auth\?/\/dex\/auth\/proxy?}
        url=$(curl -s -o "$work/page" -w '%{redirect_url}' -b "$jar" -c "$jar" -H "X-Remote-User: $user" -H "X-Remote-Group: $groups" "$url")
    done
    return 1
}
