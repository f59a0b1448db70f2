#!/bin/sh
# Makes sure that faketime is on the PATH, with which tests give a worker a wrong clock.
set -eu

say() { printf '%s\n' "$*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" -eq 0 ] || ! has sudo; then
        "$@"
    else
        sudo "$@"
    fi
}
apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends faketime
}

has faketime && exit 0
say "no faketime on the PATH; installing it"
if has apt-get; then
    apt_install || { as_root apt-get update -q && apt_install; }
elif has dnf; then
    as_root dnf install -y libfaketime
elif has apk; then
    as_root apk add libfaketime
elif has brew; then
    brew install libfaketime
fi
has faketime || { say "$0: it could not be installed; install faketime by hand"; exit 1; }
