#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Sets this checkout up if need be and shows the load balancer at work: see demo/README.md, ./demo.sh --help.
set -eu
cd -- "$(dirname -- "$0")"
if [ "$(id -u)" -ne 0 ]; then
    echo 'demo: needs root (network namespaces, XDP): run sudo ./demo.sh' >&2
    exit 1
fi
./scripts/setup.sh
exec .venv/bin/python -m demo "$@"
