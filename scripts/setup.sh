#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes this checkout runnable on Debian 12: distribution packages, and nfcore with its Python packages in .venv.
#
#   scripts/setup.sh [EXTRA]...       EXTRA: extras of pyproject.toml, such as test or dev
#
# What is already there is left alone: a second run touches neither apt nor the package index.
set -eu

usage='usage: scripts/setup.sh [EXTRA]...   (extras of pyproject.toml: test, dev)'
packages='python3-bpfcc python3-venv linux-libc-dev iproute2 ethtool util-linux libbpf1'
test_packages='clang libbpf-dev'

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cd "$root"
for extra in "$@"; do
    case $extra in
        -h | --help) echo "$usage"; exit 0 ;;
        *[!a-z0-9_-]* | -*) echo "$usage" >&2; exit 2 ;;
    esac
done

# The venv belongs to whom the checkout belongs to, also under sudo.
owner=$(stat -c %U .)
as_owner() {
    if [ "$(id -u)" -eq 0 ] && [ "$owner" != root ] && [ "$owner" != UNKNOWN ]; then
        runuser -u "$owner" -- "$@"
    else
        "$@"
    fi
}
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo > /dev/null; then
        sudo "$@"
    else
        die "needs root for: $* (run it as root, or install sudo)"
    fi
}

# Tests compile objects as others do.
case " $* " in
    *' test '*) packages="$packages $test_packages" ;;
esac
. scripts/packages.sh
# shellcheck disable=SC2086  # a list of words
install_missing $packages

# One stamp per extra, so that asking for less than is installed installs nothing. The path is part of it:
# a venv does not survive a move.
fingerprint() { { printf '%s\n%s\n' "$root" "$1"; cat pyproject.toml scripts/setup.sh; } | sha256sum | cut -d ' ' -f 1; }
stamps=.venv/nfcore-setup
done_before() { [ "$(cat "$stamps/$1" 2> /dev/null)" = "$(fingerprint "$1")" ]; }

wanted=''
for extra in base "$@"; do
    done_before "$extra" || wanted="$wanted $extra"
done
if [ -n "$wanted" ]; then
    # bcc's Python side comes with the distribution's own interpreter, hence this one and no other.
    if ! grep -qs '^include-system-site-packages = true' .venv/pyvenv.cfg || ! [ -x .venv/bin/python ] \
        || ! .venv/bin/python -c 'import pip' 2> /dev/null; then
        say 'making .venv'
        as_owner /usr/bin/python3 -m venv --clear --system-site-packages .venv
    fi
    extras=$(printf '%s,' "$@")
    extras=${extras%,}
    say "installing nfcore${extras:+[$extras]} into .venv"
    as_owner .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${extras:+[$extras]}" >&2
    as_owner mkdir -p "$stamps"
    for extra in base "$@"; do
        fingerprint "$extra" | as_owner tee "$stamps/$extra" > /dev/null
    done
fi
case " $* " in
    # Without network the tests that need it say so.
    *' test '*) scripts/promtool.sh prepare > /dev/null || say 'promtool is missing: scripts/promtool.sh prepare' ;;
esac
.venv/bin/python -c 'import bcc' 2> /dev/null || die '.venv cannot import bcc: is python3-bpfcc intact? (apt-get install --reinstall python3-bpfcc)'
say 'ready'
