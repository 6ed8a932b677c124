#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Sets this checkout up if need be, checks style and types, and runs every test. Arguments go to pytest.
set -eu
cd -- "$(dirname -- "$0")"
if [ "$(id -u)" -ne 0 ]; then
    echo 'test: needs root (BPF, network namespaces): run sudo ./test.sh' >&2
    exit 1
fi
./scripts/setup.sh dev test
# Without network the guest tier says what it lacks; CI wants every tier.
./scripts/guest.sh prepare || [ "${CI:-}" != true ]
# A venv's tools find each other only when it comes first.
PATH="$PWD/.venv/bin:$PATH"
export PATH
ruff check .
ruff format --check .
mypy
find bpf tests nfcore/scaffold examples -name "*.[ch]" -exec clang-format --dry-run --Werror {} +
exec python -m pytest "$@"
