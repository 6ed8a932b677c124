#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs Prometheus' promtool, which checks metrics and alert rules: the one on the PATH, or Debian's, which is unpacked
# into a cache and not installed, since installing that package starts a Prometheus.
#
#   scripts/promtool.sh prepare       download it if it is missing; print its path
#   scripts/promtool.sh ARGUMENT...   run it
set -eu

say() { printf 'promtool: %s\n' "$*" >&2; }

[ "$#" -gt 0 ] || { sed -n '3,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
promtool=$(command -v promtool || true)
if [ -z "$promtool" ]; then
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/nfcore/promtool
    [ "$(id -u)" -ne 0 ] || cache=/var/cache/nfcore/promtool
    promtool=$cache/usr/bin/promtool
    if ! [ -x "$promtool" ]; then
        [ "$1" = prepare ] || { say 'it is not there yet: scripts/promtool.sh prepare'; exit 1; }
        say "unpacking Debian's into $cache"
        mkdir -p "$cache"
        draft=$(mktemp -d "$cache/draft.XXXXXX")
        trap 'rm -rf "$draft"' EXIT
        (cd "$draft" && apt-get -q download prometheus >&2)
        dpkg-deb -x "$draft"/prometheus_*.deb "$draft"
        mkdir -p "$cache/usr/bin"
        mv "$draft/usr/bin/promtool" "$promtool"
    fi
fi
if [ "$1" = prepare ]; then
    echo "$promtool"
else
    exec "$promtool" "$@"
fi
