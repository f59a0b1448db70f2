#!/bin/sh
# Installs what `make bench PEERS=1` compares with: BullMQ, below target/, and wrk. Fails if it cannot.
set -eu

has() { command -v "$1" >/dev/null 2>&1; }

if ! has node || ! has npm; then
    echo "$0: node and npm are missing: see https://nodejs.org" >&2
    exit 1
fi
if ! has wrk; then
    if has apt-get && [ "$(id -u)" -eq 0 ]; then
        apt-get update -q && apt-get install -y -q --no-install-recommends wrk
    elif has apt-get && has sudo; then
        sudo apt-get update -q && sudo apt-get install -y -q --no-install-recommends wrk
    else
        echo "$0: wrk is missing: see https://github.com/wg/wrk" >&2
        exit 1
    fi
fi
mkdir -p target/peers
cp benches/peers/* target/peers
npm ci --prefix target/peers --no-audit --no-fund --silent
