#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Debian's kernel in QEMU over this machine's files: what is written there is thrown away. Needs root.
#
#   scripts/guest.sh prepare [--newest]   get what the guest needs: packages, a kernel in the cache
#   scripts/guest.sh run -- COMMAND...    run a command there; it sees the current folder
#   scripts/guest.sh shell                a shell there
set -eu

# The one place that names them. The kernel is no package of the host: it is downloaded and unpacked.
packages='qemu-system-x86 qemu-system-common kmod gcc libc6-dev make util-linux'

say() { printf 'guest: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
case ${1:-} in
    prepare | run | shell) ;;
    *) sed -n '3,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
[ "$(id -u)" -eq 0 ] || die 'needs root: sudo scripts/guest.sh'
[ -x "$root/.venv/bin/python" ] || die 'there is no .venv yet: run scripts/setup.sh test'
if [ "$1" = prepare ]; then
    as_root() { "$@"; }
    . "$root/scripts/packages.sh"
    # shellcheck disable=SC2086  # a list of words
    install_missing $packages
fi
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
exec "$root/.venv/bin/python" -m tests.guest "$@"
