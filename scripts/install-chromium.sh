#!/bin/sh
# Installs Chromium and its driver, with which tests use the console, and axe-core, which looks for barriers in it.
# None of them is needed to run Samovar. Where they cannot be installed, this says so, and the tests leave them out.
#
# With SAMOVAR_TEST_ALL=on, as in CI, the tests leave out nothing that can be had. What cannot be had on this machine
# (no apt-get, nobody who may install, no npm, packages that do not come) is noted in target/cannot-be-had.
set -u

noted=target/cannot-be-had

say() { printf '%s\n' "$*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

may_install() { has apt-get && { [ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null; }; }

cannot_be_had() {
    mkdir -p "$noted" && : >"$noted/$1"
    say "$0: $1 cannot be had here, as $2; what needs it is not tried"
}

# One dead mirror is no reason to give up: the lists of packages may be there already.
browser() {
    as_root apt-get update -q -o Acquire::Retries=1 -o Acquire::http::Timeout=20
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends -o Acquire::http::Timeout=20 chromium chromium-driver
}

rm -rf "$noted"
if ! has chromium || ! has chromedriver; then
    if may_install; then
        say "no chromium and chromedriver on the PATH; installing them"
        if ! browser || ! has chromium || ! has chromedriver; then
            cannot_be_had chromium "apt-get says above"
        fi
    else
        cannot_be_had chromium "it is not on the PATH, and there is no apt-get that this user may use"
    fi
fi

axe=target/axe/node_modules/axe-core/axe.min.js
if ! [ -e "$axe" ]; then
    if ! has npm; then
        cannot_be_had axe-core "there is no npm"
    elif ! npm install --silent --no-audit --no-fund --fetch-retries 1 --fetch-timeout 20000 \
        --prefix target/axe axe-core@4.11.0; then
        cannot_be_had axe-core "npm says above"
    fi
fi
exit 0
