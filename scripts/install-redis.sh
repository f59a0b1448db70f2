#!/bin/sh
# Makes sure that a Redis (or Valkey) server of version 7 or newer is on the PATH, installing one if there is none.
#
# Only the program is wanted: Samovar's demo and tests start servers of their own on free ports. So where the package
# would also start a system service on port 6379 (Debian and Ubuntu under systemd), that service is left off.
set -eu

say() { printf '%s\n' "$*" >&2; }
die() { say "$0: $*"; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

server() {
    for name in redis-server valkey-server; do
        if has "$name"; then
            command -v "$name"
            return
        fi
    done
    return 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif has sudo; then
        sudo "$@"
    else
        die "root rights are needed to install a package; run as root, install sudo, or install redis-server yourself"
    fi
}

with_apt() {
    unit=/etc/systemd/system/redis-server.service
    masked=
    if [ -d /run/systemd/system ] && ! [ -e "$unit" ]; then
        as_root systemctl mask --quiet redis-server.service && masked=yes
    fi
    installed=
    as_root apt-get update -q || say "$0: the package lists could not be refreshed; trying with those at hand"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends redis-server &&
        installed=yes
    if [ -n "$masked" ]; then
        as_root systemctl unmask --quiet redis-server.service
        as_root systemctl disable --quiet redis-server.service || true
        say "the redis-server service is off; 'systemctl enable --now redis-server' switches it on"
    fi
    [ -n "$installed" ]
}

install() {
    if has apt-get; then
        with_apt
    elif has dnf; then
        as_root dnf install -y redis || as_root dnf install -y valkey
    elif has apk; then
        as_root apk add redis || as_root apk add valkey
    elif has brew; then
        brew install redis
    else
        die "found none of apt-get, dnf, apk and brew; install redis-server or valkey-server, 7 or newer, by hand"
    fi
}

if ! server >/dev/null; then
    say "no redis-server or valkey-server on the PATH; installing one"
    install || die "the package could not be installed; install redis-server or valkey-server, 7 or newer, by hand"
fi

program=$(server) || die "installed, yet neither redis-server nor valkey-server is on the PATH ($PATH)"
version=$("$program" --version | sed -n 's/.*v=\([0-9][0-9.]*\).*/\1/p')
major=${version%%.*}
if [ -n "$major" ] && [ "$major" -lt 7 ]; then
    die "$program is version $version and 7 or newer is needed;" \
        "see https://redis.io/docs/latest/operate/oss_and_stack/install/"
fi
