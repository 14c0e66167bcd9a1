# shellcheck shell=bash disable=SC2034,SC2154,SC2164
# Shared by the scripts: progress lines, root privileges, the server's directories, Python environments.
# Sourced, never run. Progress goes to stderr, so that stdout stays free for `make -s env`.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
target=$root/target
logs=$target/log
python=${PYTHON:-python3}
destdir=${DESTDIR:-}
# The version of pgrx in Cargo.toml: cargo-pgrx must be the same.
pgrx_version=0.18.1

say() { printf '· %s\n' "$*" >&2; }

# Prints one line: what was wrong, with which value, and the remedy.
die() {
    printf 'clip_search: %s\n' "$*" >&2
    exit 1
}

# step LOG MESSAGE COMMAND…: prints the message, sends the output to target/log/LOG.log, and shows its end on failure.
step() {
    local log=$logs/$1.log message=$2 start=$SECONDS status
    shift 2
    mkdir -p "$logs"
    say "$message…"
    # In a subshell with its own set -e: inside `if !`, a function would continue after an error.
    set +e
    (
        set -e
        "$@"
    ) >"$log" 2>&1 </dev/null
    status=$?
    set -e
    if [ "$status" -ne 0 ]; then
        tail -n 30 "$log" | sed 's/^/  | /' >&2
        die "failed: $message (the whole log: $log)"
    fi
    if ((SECONDS - start >= 5)); then
        printf '  done in %d s\n' $((SECONDS - start)) >&2
    fi
}

# as_root WHY COMMAND…: runs it directly if this is root, otherwise through sudo.
as_root() {
    local why=$1
    shift
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -- "$@"
    else
        die "$why needs root, and there is no sudo: run make as root, or do it by hand: $*"
    fi
}

# Asks for sudo's password before a step sends its output, including the prompt, to a log file.
warm_sudo() {
    if [ "$(id -u)" -ne 0 ] && command -v sudo >/dev/null && ! sudo -n true 2>/dev/null; then
        sudo -v || die "sudo refused: run make as root, or as a user who may use sudo"
    fi
}

apt_fresh=
# apt_install PACKAGE…: updates the package lists once per run, however many packages follow.
apt_install() {
    command -v apt-get >/dev/null || die "missing: $*; there is no apt-get here, install them with your package manager"
    apt_update
    step "apt-$1" "installing $* (apt)" as_root "installing $*" \
        env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        -o DPkg::Lock::Timeout=300 "$@"
}
apt_update() {
    [ -z "$apt_fresh" ] || return 0
    warm_sudo
    step apt-update "renewing the package lists (apt)" as_root "renewing the package lists" \
        apt-get update -q -o DPkg::Lock::Timeout=300
    apt_fresh=yes
}

# find_pg: sets pg_config (absolute), pg_major, pg_bin, pg_lib, pg_share; fails silently if there is no pg_config.
find_pg() {
    local version
    if [ -n "${PG_CONFIG:-}" ]; then
        pg_config=$(command -v -- "$PG_CONFIG") || die "PG_CONFIG=$PG_CONFIG is not a program: give the path of pg_config"
    else
        pg_config=$(command -v pg_config) || return 1
    fi
    pg_config=$(realpath -s -- "$pg_config")
    version=$("$pg_config" --version 2>/dev/null) || return 1
    pg_major=$(sed -E 's/^PostgreSQL ([0-9]+).*/\1/' <<<"$version")
    pg_bin=$("$pg_config" --bindir)
    pg_lib=$("$pg_config" --pkglibdir)
    pg_share=$("$pg_config" --sharedir)
    grep -q "^pg$pg_major *=" "$root/Cargo.toml" ||
        die "$pg_config is of $version; clip_search builds for" \
            "$(sed -nE 's/^pg([0-9]+) *=.*/\1/p' "$root/Cargo.toml" | paste -sd' '): set PG_CONFIG to one of those"
}

# os_release KEY: a value from this system's description, such as VERSION_CODENAME.
os_release() { sed -nE "s/^$1=\"?([^\"]*)\"?\$/\1/p" /etc/os-release; }
# The version of this source.
own_version() { sed -nE 's/^version *= *"(.*)"/\1/p' "$root/Cargo.toml" | head -1; }

require_pg() { find_pg || die "no PostgreSQL found: run make deps, or set PG_CONFIG to your server's pg_config"; }

# install_tree STAGE MESSAGE: copies the files of STAGE/ to DESTDIR/ unless the same content is already there. A new file replaces the old
# one by rename: a backend that has mapped the old library keeps it intact.
install_tree() {
    local stage=$1 message=$2 file dest dir unwritable="" changed=()
    while IFS= read -r -d '' file; do
        dest=$destdir/$file
        if ! cmp -s "$stage/$file" "$dest"; then
            changed+=("$file")
            dir=$(dirname "$dest")
            while [ ! -e "$dir" ]; do dir=$(dirname "$dir"); done
            [ -w "$dir" ] || unwritable=$dir
        fi
    done < <(cd "$stage" && find . -type f -printf '%P\0' | sort -z)
    [ ${#changed[@]} -gt 0 ] || return 0
    say "$message"
    if [ -z "$unwritable" ]; then
        copy_files "$stage" "$destdir" "${changed[@]}"
    else
        as_root "writing to $unwritable" bash -euc "$(declare -f copy_files); copy_files \"\$@\"" - \
            "$stage" "$destdir" "${changed[@]}" || die "could not write to $unwritable: run make as root, or use DESTDIR"
    fi
}
copy_files() {
    local stage=$1 dest=$2 file mode
    shift 2
    for file in "$@"; do
        mode=644
        case $file in *.so) mode=755 ;; esac
        install -D -m "$mode" "$stage/$file" "$dest/$file.new" && mv -f "$dest/$file.new" "$dest/$file" || return 1
    done
}

has_sha256() { [ -r "$1" ] && [ "$(sha256sum <"$1")" = "$2  -" ]; }

# find_cargo_pgrx: sets cargo_pgrx_program to a cargo-pgrx of the pinned version. It is called directly, because `cargo
# pgrx` would take the first on PATH.
find_cargo_pgrx() {
    for cargo_pgrx_program in "$target/tools/bin/cargo-pgrx" "$(command -v cargo-pgrx || true)" \
        "${CARGO_HOME:-$HOME/.cargo}/bin/cargo-pgrx"; do
        if [ -x "$cargo_pgrx_program" ] &&
            [ "$("$cargo_pgrx_program" pgrx --version 2>/dev/null)" = "cargo-pgrx $pgrx_version" ]; then
            return 0
        fi
    done
    return 1
}

# cargo_setup: prepares every call of cargo; call it after require_pg. Cargo enables the dependency features that the selected packages
# need: with another selection, half of the dependencies would be compiled again. So all calls select the whole workspace, by
# "${workspace[@]}", and cargo-pgrx's call does so by PGRX_BUILD_FLAGS. tests/release/test_build.py checks it.
cargo_setup() {
    local config
    features="pg$pg_major"
    # HEIC=0 leaves out the HEIC decoder, because patents cover the codec in some countries.
    [ "${HEIC:-1}" = 0 ] || features+=" heic"
    # AVIF=0 and JXL=0 leave out the decoders of AVIF and JPEG XL.
    [ "${AVIF:-1}" = 0 ] || features+=" avif"
    [ "${JXL:-1}" = 0 ] || features+=" jxl"
    # REMOTE=1 adds https:// and s3:// paths to clip-embed, with 90 crates that no other part needs.
    [ "${REMOTE:-0}" = 0 ] || features+=" remote"
    workspace=(--workspace --no-default-features --features "$features")
    export PGRX_BUILD_FLAGS="--workspace --bins --locked"
    # cargo-pgrx looks up its PostgreSQL in $PGRX_HOME/config.toml, which `cargo pgrx init` writes for servers that it builds itself. An
    # installed server needs these two lines. Each major version has its own folder, since pgrx generates its bindings again whenever the
    # file has changed.
    export PGRX_HOME=$target/pgrx/pg$pg_major
    mkdir -p "$PGRX_HOME"
    config=$(printf '[configs]\npg%s = "%s"' "$pg_major" "$pg_config")
    [ "$(cat "$PGRX_HOME/config.toml" 2>/dev/null)" = "$config" ] || echo "$config" >"$PGRX_HOME/config.toml"
    # pgrx formats the bindings it writes, and stops without rustfmt (rustup's minimal profile has none). Nobody reads the bindings, so any
    # program that succeeds will do.
    rustfmt --version >/dev/null 2>&1 || export RUSTFMT=true
}

# shellcheck source=scripts/lib/python.sh
source "$root/scripts/lib/python.sh"
