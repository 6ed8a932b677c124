#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs Debian's kernel in QEMU on this machine's files; all that the guest writes is discarded. Needs root.
#
#   scripts/guest.sh prepare [--newest]   install what the guest needs: packages, a kernel in the cache
#   scripts/guest.sh run -- COMMAND...    run a command in the guest, in the current folder
#   scripts/guest.sh shell                open a shell in the guest
set -eu

# Packages of the host. The guest's kernel is not among them: it is downloaded and unpacked, not installed.
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
