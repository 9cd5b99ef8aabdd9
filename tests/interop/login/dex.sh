# Dex of one machine: built from its Go module. Sourced by `run`, after lib.sh.

# Sets `dex` to the program, built if it is not there yet. LEASEHOLD_DEX names one that is there.
need_dex() {
    if [ -n "${LEASEHOLD_DEX:-}" ]; then
        dex=$LEASEHOLD_DEX
        [ -x "$dex" ] || die "LEASEHOLD_DEX names no program: $dex"
        return
    fi
    local go wanted folder from=$SECONDS
    wanted=$(cat "$interop/login/go.mod" "$interop/login/go.sum" | sha256sum | cut -c1-12)
    folder=$kept/dex-$wanted
    dex=$folder/dex
    if [ -x "$dex" ]; then
        printf 'Dex: built before\n'
        return
    fi
    go=$(command -v go || true)
    [ -n "$go" ] || go=/usr/local/go/bin/go
    [ -x "$go" ] || not_run "the program go is absent"
    command -v "${CC:-cc}" >/dev/null || not_run "there is no C compiler, which Dex needs"
    printf 'Dex: building, a minute or two\n'
    # Reads every module that is needed and compiles none: a failure here means that Dex cannot be had.
    several dex_go "$go" list -deps tool >/dev/null 2>"$work/go.log" ||
        not_run "the Go module github.com/dexidp/dex cannot be had: $(grep -v '^go: downloading' "$work/go.log" | head -n 1)"
    mkdir -p "$folder.draft"
    if ! GOBIN=$folder.draft dex_go "$go" install -p 2 -ldflags '-s -w' tool 2>"$work/go.log"; then
        tail -n 20 "$work/go.log"
        die "Dex does not build"
    fi
    mv "$folder.draft" "$folder"
    printf 'Dex: built in %d s\n' $((SECONDS - from))
}

dex_go() {
    local go=$1
    shift
    (cd "$interop/login" && CGO_ENABLED=1 GOWORK=off GOTOOLCHAIN=local GOFLAGS="-mod=readonly -trimpath -buildvcs=false" "$go" "$@")
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
