#!/bin/sh
# Installs Chromium and its driver, with which tests use the console, and axe-core, which looks for barriers in it.
# None of them is needed to run Samovar. Where they cannot be installed, this says so, and the tests leave them out.
set -u

say() { printf '%s\n' "$*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; elif has sudo; then sudo "$@"; else return 1; fi
}

browser() {
    if ! has apt-get; then
        return 1
    fi
    as_root apt-get update -q &&
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -q --no-install-recommends chromium chromium-driver
}

if ! has chromium || ! has chromedriver; then
    say "no chromium and chromedriver on the PATH; installing them"
    browser || say "$0: they could not be installed, so the console is not tried in a browser"
fi

axe=target/axe/node_modules/axe-core/axe.min.js
if ! [ -e "$axe" ] && has npm; then
    npm install --silent --no-audit --no-fund --prefix target/axe axe-core@4 ||
        say "$0: axe-core could not be installed, so barriers in the console are not looked for"
fi
exit 0
