#!/bin/sh
# Fetches other servers for `make matrix`, each as target/servers/NAME/bin/redis-server. Nothing is installed.
#
# They are Debian's packages of later suites. Each runs with the libraries that are fetched beside it.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
servers=$here/target/servers
triplet=$(uname -m)-linux-gnu
libraries=usr/lib/$triplet
# What the servers of a later suite load.
NEEDED="libatomic1 libc6 libcap2 libgcc-s1 libjemalloc2 liblzf1 libssl3t64 libstdc++6 libsystemd0 libzstd1 zlib1g"

say() { printf '%s\n' "$*" >&2; }
die() { say "$0: $*"; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

# The archive from which this machine has its own packages
archive() {
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1
}

# apt-get with lists and a cache of its own, for one suite
apt() {
    suite=$1
    shift
    mkdir -p "$servers/apt/$suite/lists/partial" "$servers/apt/$suite/archives/partial"
    printf 'deb %s %s main\n' "$archive" "$suite" >"$servers/apt/$suite/sources.list"
    apt-get -qq -o "Dir::Etc::SourceList=$servers/apt/$suite/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o "Dir::State::Lists=$servers/apt/$suite/lists" -o Dir::State::Status=/dev/null -o APT::Sandbox::User=root \
        -o "Dir::Cache=$servers/apt/$suite" -o "Dir::Cache::Archives=$servers/apt/$suite/archives" "$@"
}

# Unpacks packages of a suite into a folder.
unpack() {
    suite=$1 into=$2
    shift 2
    rm -rf "$into"
    mkdir -p "$into"
    (cd "$into" && apt "$suite" download "$@")
    for package in "$into"/*.deb; do
        dpkg-deb --extract "$package" "$into"
        rm "$package"
    done
}

has apt-get && has dpkg-deb || die "Debian's packages need apt-get and dpkg-deb; put other servers into $servers/NAME/bin"
archive=$(archive)
[ -n "$archive" ] || die "apt knows no archive: run 'apt-get update' first"

# Fetches a server and what it loads: its name here, the suite, the packages, the program.
fetch() {
    name=$1 suite=$2 packages=$3 program=$4
    root=$servers/$name/root
    apt "$suite" update || die "the archive $archive has no readable package lists of Debian's suite $suite"
    # shellcheck disable=SC2086
    unpack "$suite" "$root" $packages $NEEDED
    loader=$(find "$root/$libraries" -name 'ld-linux-*.so.*' | head -n 1)
    mkdir -p "$servers/$name/bin"
    printf '#!/bin/sh\nexec "%s" --library-path "%s" "%s" "$@"\n' "$loader" "$root/$libraries" "$root/usr/bin/$program" \
        >"$servers/$name/bin/redis-server"
    chmod +x "$servers/$name/bin/redis-server"
    version=$("$servers/$name/bin/redis-server" --version) || die "the server of $servers/$name does not run"
    say "$name: $version"
}

fetch redis-8 trixie "redis-server redis-tools" redis-server
fetch valkey-8 trixie "valkey-server valkey-tools" valkey-server
fetch valkey-9 sid "valkey-server valkey-tools" valkey-server
