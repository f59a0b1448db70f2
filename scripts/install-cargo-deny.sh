#!/bin/sh
# Makes sure that cargo-deny is there, which looks at licences, versions and sources of all that is built in.
#
# It is built without optimisation: it runs for seconds, and would take several times as long to build.
set -eu

cargo=${CARGO:-cargo}

"$cargo" deny --version >/dev/null 2>&1 && exit 0
printf '%s\n' "no cargo-deny; building it" >&2
"$cargo" install --locked --debug --version '^0.20' cargo-deny ||
    {
        printf '%s\n' "$0: cannot install cargo-deny; see https://github.com/EmbarkStudios/cargo-deny for binaries" >&2
        exit 1
    }
