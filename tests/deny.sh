#!/usr/bin/env bash
# Licences, bans and sources of everything that the project is built from, as deny.toml has them; and known holes, where the database
# of advisories can be had. Offline it says that it could not look, and that is no failure. Wants tests/setup.sh, or cargo-deny.
set -euo pipefail
cd "$(dirname "$0")/.."

deny=target/test-tools/bin/cargo-deny
[ -x "$deny" ] || deny=$(command -v cargo-deny) || {
    echo "deny: cargo-deny is not installed: run tests/setup.sh" >&2
    exit 1
}

"$deny" check --hide-inclusion-graph licenses bans sources
if timeout 120 "$deny" fetch db >/dev/null 2>&1; then
    "$deny" check --disable-fetch advisories
else
    echo "deny: the database of advisories cannot be reached: known holes were NOT looked for"
fi
