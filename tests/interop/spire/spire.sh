# SPIRE of one machine: built from its Go module, a server and an agent for each trust domain. Sourced by `run`, after lib.sh.

spire_version=$(sed -n 's|.*github.com/spiffe/spire v\([0-9.]*\).*|\1|p' "$interop/spire/go.mod")

# Sets `spire` to the folder with spire-server and spire-agent, and builds them if they are not there. LEASEHOLD_SPIRE names a folder
# that has them already.
need_spire() {
    if [ -n "${LEASEHOLD_SPIRE:-}" ]; then
        spire=$LEASEHOLD_SPIRE
        [ -x "$spire/spire-server" ] && [ -x "$spire/spire-agent" ] || die "LEASEHOLD_SPIRE names no folder with spire-server and spire-agent"
        return
    fi
    need_go_tools "SPIRE-$spire_version" "$interop/spire" 1 spire-server spire-agent
    spire=$tools
}

# domain NAME TRUST_DOMAIN SVID_TTL CA_TTL: starts a server, which serves its bundle by https_spiffe, and an agent. The sockets are
# $sockets/NAME-server and $sockets/NAME; `bundle_port_NAME` is the port of its bundle endpoint.
domain() {
    local name=$1 trust_domain=$2 svid_ttl=$3 ca_ttl=$4 dir=$work/$1 port token pid
    port=$(free_ports 1)
    declare -g "bundle_port_$name=$(free_ports 1)"
    local bundle_port=bundle_port_$name
    mkdir -p "$dir/server" "$dir/agent"
    cat >"$dir/server.conf" <<HCL
server {
    bind_address = "127.0.0.1"
    bind_port = "$port"
    trust_domain = "$trust_domain"
    data_dir = "$dir/server"
    socket_path = "$sockets/$name-server"
    log_level = "DEBUG"
    ca_ttl = "$ca_ttl"
    default_x509_svid_ttl = "$svid_ttl"
    # The SVID of the agent. The agent cannot use a join token twice, so the SVID must not end while this machine stalls.
    agent_ttl = "10m"
    federation {
        bundle_endpoint {
            address = "127.0.0.1"
            port = ${!bundle_port}
            # SPIRE fetches the bundle four times in this time, and does not accept a shorter one.
            refresh_hint = "1m"
            profile "https_spiffe" {}
        }
    }
}
plugins {
    DataStore "sql" {
        plugin_data {
            database_type = "sqlite3"
            connection_string = "$dir/server/db.sqlite3"
        }
    }
    NodeAttestor "join_token" {
        plugin_data {}
    }
    KeyManager "disk" {
        plugin_data {
            keys_path = "$dir/server/keys.json"
        }
    }
}
HCL
    cat >"$dir/agent.conf" <<HCL
agent {
    server_address = "127.0.0.1"
    server_port = "$port"
    trust_domain = "$trust_domain"
    trust_bundle_path = "$dir/bundle.pem"
    data_dir = "$dir/agent"
    socket_path = "$sockets/$name"
    log_level = "DEBUG"
    experimental {
        sync_interval = "1s"
    }
}
plugins {
    NodeAttestor "join_token" {
        plugin_data {}
    }
    KeyManager "disk" {
        plugin_data {
            directory = "$dir/agent"
        }
    }
    # Everything here runs as one user, so workloads are distinguished by the path of their program: each has its own link.
    WorkloadAttestor "unix" {
        plugin_data {
            discover_workload_path = true
            workload_size_limit = -1
        }
    }
}
HCL
    "$spire/spire-server" run -config "$dir/server.conf" >"$dir/server.log" 2>&1 </dev/null &
    pid=$!
    started+=("$pid")
    wait_for 180 server "$name" healthcheck >/dev/null 2>&1 || die "the SPIRE server of $trust_domain was not healthy within 180 s: $(tail -n 1 "$dir/server.log")"
    server "$name" bundle show >"$dir/bundle.pem"
    token=$(server "$name" token generate -spiffeID "spiffe://$trust_domain/node" | sed -n 's/^Token: //p')
    start_agent "$name" -joinToken "$token"
    wait_for 180 agent "$name" healthcheck >/dev/null 2>&1 || die "the SPIRE agent of $trust_domain was not healthy within 180 s: $(tail -n 1 "$dir/agent.log")"
}

# start_agent NAME OPTION…: sets `agent_NAME` to its process. An agent that was attested before needs no token.
start_agent() {
    local name=$1
    shift
    "$spire/spire-agent" run -config "$work/$name/agent.conf" "$@" >>"$work/$name/agent.log" 2>&1 </dev/null &
    declare -g "agent_$name=$!"
    started+=("$!")
}

# server NAME COMMAND… and agent NAME COMMAND…: the command line of each. The socket's option comes after the words of the command.
server() {
    local name=$1 words=()
    shift
    while [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; do
        words+=("$1")
        shift
    done
    "$spire/spire-server" "${words[@]}" -socketPath "$sockets/$name-server" "$@"
}

agent() {
    local name=$1
    shift
    "$spire/spire-agent" "$@" -socketPath "$sockets/$name"
}

# federate NAME WITH TRUST_DOMAIN_OF_WITH: NAME follows the bundle of WITH at its endpoint.
federate() {
    local port=bundle_port_$2
    server "$2" bundle show -format spiffe >"$work/$2/bundle.json"
    server "$1" federation create -trustDomain "$3" -bundleEndpointURL "https://127.0.0.1:${!port}" \
        -bundleEndpointProfile https_spiffe -endpointSpiffeID "spiffe://$3/spire/server" \
        -trustDomainBundlePath "$work/$2/bundle.json" -trustDomainBundleFormat spiffe >>"$work/$1/commands.log"
}

# workload NAME TRUST_DOMAIN PATH PROGRAM TTL OPTION…: each process of $work/bin/PROGRAM is spiffe://TRUST_DOMAIN/PATH. Prints the entry's id.
workload() {
    local name=$1 trust_domain=$2 path=$3 program=$4 ttl=$5
    shift 5
    server "$name" entry create -parentID "spiffe://$trust_domain/node" -spiffeID "spiffe://$trust_domain/$path" \
        -selector "unix:uid:$(id -u)" -selector "unix:path:$work/bin/$program" -x509SVIDTTL "$ttl" "$@" |
        tee -a "$work/$name/commands.log" | sed -n 's/^Entry ID *: //p'
}
