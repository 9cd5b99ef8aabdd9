# What the interop suites share. Sourced by their `run` scripts; see README.md.
#
# A suite exits with 0 if all of its checks passed, with 1 if one failed, with 77 if a program that it needs is absent and cannot be
# installed. It ends only processes that it started, by their ids.

set -euo pipefail

# gRPC prints each refused handshake on stderr, and some are refused here on purpose.
export GRPC_VERBOSITY=NONE

interop=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$interop/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
# Programs that a suite builds or installs stay between runs, and between checkouts; `work` is new for each run.
kept=${LEASEHOLD_INTEROP_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/leasehold-interop}
work=

passed=0
failed=0
started=()
# More options of `leasehold dev`.
dev_options=()
# Other folders, which are always removed at the end.
scratch=()

pass() {
    passed=$((passed + 1))
    printf 'PASS  %s\n' "$*"
}

fail() {
    failed=$((failed + 1))
    printf 'FAIL  %s\n' "$*"
}

# check WORDS COMMAND…: passes if the command succeeds.
check() {
    local words=$1
    shift
    if "$@"; then pass "$words"; else fail "$words"; fi
}

# The last line of a suite, and its exit code.
finish() {
    printf '%d passed, %d failed\n' "$passed" "$failed"
    [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
}

die() {
    printf 'FAIL  %s\n' "$*"
    failed=$((failed + 1))
    finish || true
    exit 1
}

not_run() {
    printf 'not run: %s, because %s\n' "$suite" "$*"
    exit 77
}

# Begins the suite NAME: a new folder for this run, removed at the end if all checks passed.
begin() {
    suite=$1
    mkdir -p "$kept" "$target/interop"
    work=$(mktemp -d "$target/interop/$suite.XXXXXX")
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

clean_up() {
    local code=$? pid
    trap - EXIT
    for pid in "${started[@]}"; do
        stop "$pid" || true
    done
    rm -rf "${scratch[@]}"
    if [ "$code" -eq 0 ] || [ "$code" -eq 77 ]; then
        rm -rf "$work"
    else
        printf 'what was left for you to look at: %s\n' "$work"
    fi
    exit "$code"
}

# wait_for SECONDS COMMAND…: tries ten times a second.
wait_for() {
    local tries=$(($1 * 10))
    shift
    while ! "$@"; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 0.1
    done
}

gone() { ! kill -0 "$1" 2>/dev/null; }

# Asks a process to end, and kills it after 10 s.
stop() {
    kill -TERM "$1" 2>/dev/null || return 0
    wait_for 10 gone "$1" || kill -KILL "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

# several COMMAND…: tries up to three times, because a network may fail for a moment.
several() {
    local turn
    for turn in 1 2 3; do
        "$@" && return 0
        [ "$turn" -eq 3 ] || sleep $((turn * 3))
    done
    return 1
}

# may_install: whether Debian's packages may be installed here.
may_install() { [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; }

# install_package PACKAGE: installs a Debian package; fails if it is not available.
install_package() {
    local apt=(apt-get -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120)
    several "${apt[@]}" update >>"$work/apt.log" 2>&1 </dev/null || true
    DEBIAN_FRONTEND=noninteractive several "${apt[@]}" install -y --no-install-recommends "$1" >>"$work/apt.log" 2>&1 </dev/null
}

# need PROGRAM PACKAGE: installs the Debian package if the program is absent and may be installed.
need() {
    command -v "$1" >/dev/null && return 0
    if may_install; then
        printf 'installing %s\n' "$2"
        install_package "$2" || true
        hash -r
    fi
    command -v "$1" >/dev/null || not_run "the program $1 is absent and could not be installed"
}

# Sets `leasehold` to the program under test: $LEASEHOLD, or one that it builds.
need_leasehold() {
    if [ -n "${LEASEHOLD:-}" ]; then
        leasehold=$LEASEHOLD
        [ -x "$leasehold" ] || die "LEASEHOLD names no program: $leasehold"
    else
        (cd "$root" && cargo build --quiet --locked) || die "leasehold does not build"
        leasehold=$target/debug/leasehold
    fi
}

# need_python [FILE]: sets `python` to one with the packages of FILE, or of this suite's requirements.txt, in an environment
# for this suite.
need_python() {
    local wanted=${1:-$interop/$suite/requirements.txt} env=$kept/venv-$suite
    need python3 python3
    python=$env/bin/python
    cmp -s "$wanted" "$env/installed.txt" && return 0
    rm -rf "$env"
    if ! python3 -m venv "$env" >"$work/venv.log" 2>&1; then
        # On Debian the module is in a separate package.
        need_venv_package
        python3 -m venv "$env" >>"$work/venv.log" 2>&1 || not_run "python3 cannot make a virtual environment"
    fi
    several "$python" -m pip install --quiet --disable-pip-version-check --no-input --only-binary :all: -r "$wanted" \
        >"$work/pip.log" 2>&1 </dev/null || not_run "the packages of requirements.txt are not available: $(tail -n 1 "$work/pip.log")"
    cp "$wanted" "$env/installed.txt"
}

need_venv_package() {
    may_install || not_run "python3 has no module venv"
    install_package python3-venv || not_run "python3 has no module venv, and it could not be installed"
}

# need_go_tools NAME FOLDER CGO PROGRAM…: sets `tools` to a folder with the programs that FOLDER/go.mod pins, and builds them if they are
# not there. CGO is 1 if they need a C compiler.
need_go_tools() {
    local name=$1 pins=$2 cgo=$3 go wanted from=$SECONDS
    shift 3
    wanted=$(cat "$pins/go.mod" "$pins/go.sum" | sha256sum | cut -c1-12)
    tools=$kept/${name,,}-$wanted
    if all_in "$tools" "$@"; then
        printf '%s: built before\n' "$name"
        return
    fi
    go=$(command -v go || true)
    [ -n "$go" ] || go=/usr/local/go/bin/go
    [ -x "$go" ] || not_run "the program go is absent"
    [ "$cgo" -eq 0 ] || command -v "${CC:-cc}" >/dev/null || not_run "there is no C compiler, which $name needs"
    printf '%s: building, some minutes\n' "$name"
    # Downloads every module without compiling it. A failure here means that a module is not available.
    several go_in "$pins" "$cgo" "$go" list -deps tool >/dev/null 2>"$work/go.log" ||
        not_run "the Go module of $name cannot be had: $(grep -v '^go: downloading' "$work/go.log" | head -n 1)"
    mkdir -p "$tools.draft"
    if ! GOBIN=$tools.draft go_in "$pins" "$cgo" "$go" install -p 2 -ldflags '-s -w' tool 2>"$work/go.log"; then
        tail -n 20 "$work/go.log"
        die "$name does not build"
    fi
    mv "$tools.draft" "$tools"
    printf '%s: built in %d s\n' "$name" $((SECONDS - from))
}

# all_in FOLDER PROGRAM…: whether the folder has all of these programs.
all_in() {
    local folder=$1 program
    shift
    for program in "$@"; do
        [ -x "$folder/$program" ] || return 1
    done
}

go_in() {
    local pins=$1 cgo=$2 go=$3
    shift 3
    (cd "$pins" && CGO_ENABLED=$cgo GOWORK=off GOTOOLCHAIN=local GOFLAGS="-mod=readonly -trimpath -buildvcs=false" "$go" "$@")
}

# free_ports COUNT: prints the first of this many consecutive ports, none of which was printed before in this run.
free_ports() { python3 "$interop/ports.py" "$1" "$work/ports"; }

# start_calm: from now on, records how long any process of this machine had to wait for a processor.
start_calm() {
    python3 "$interop/calm.py" keep "$work/calm" &
    started+=("$!")
    wait_for 60 test -s "$work/calm" || die 'the record of how busy this machine is was not begun'
}

# calm A B: prints the seconds between two moments without that time. at_most SECONDS A B: whether that is at most SECONDS.
calm() { python3 "$interop/calm.py" between "$work/calm" "$1" "$2"; }
at_most() { [ "$(python3 -c 'import sys; print(float(sys.argv[1]) <= float(sys.argv[2]))' "$(calm "$2" "$3")" "$1")" = True ]; }

# Starts `leasehold dev` in its own folder on free ports, and waits until it is ready. Sets `folder`, `log`, `grpc` and
# `issuer`, and LEASEHOLD_CONTEXTS, so that all other commands find it.
start_dev() {
    folder=$work/dev
    log=$work/dev.log
    export LEASEHOLD_CONTEXTS=$work/contexts.toml
    unset LEASEHOLD_LOG LEASEHOLD_CONTEXT
    "$leasehold" dev --dir "$folder" --port 0 "${dev_options[@]}" >"$work/dev.out" 2>"$log" </dev/null &
    daemon=$!
    started+=("$daemon")
    wait_for 180 dev_settled || die "leasehold dev was not ready within 180 s"
    gone "$daemon" && die "leasehold dev ended: $(tail -n 3 "$log")"
    grpc=$(sed -n 's/^ *daemon *\(localhost:[0-9]*\),.*/\1/p' "$work/dev.out")
    issuer=$(sed -n 's|^ *keys *\(http://localhost:[0-9]*\)/keys$|\1|p' "$work/dev.out")
    [ -n "$grpc" ] && [ -n "$issuer" ] || die "leasehold dev did not print its addresses"
}

dev_settled() { grep -qs "is ready" "$work/dev.out" || gone "$daemon"; }
