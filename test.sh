#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Sets this checkout up if need be, checks style and types, and runs tests.
#
#   sudo ./test.sh                 every test: all that CI runs
#   sudo ./test.sh --fast          unit tests, and the kernel tests of what was changed last, without the slow ones
#   sudo ./test.sh ARGUMENT...     what these arguments of pytest say
set -eu
cd -- "$(dirname -- "$0")"
if [ "$(id -u)" -ne 0 ]; then
    echo 'test: needs root (BPF, network namespaces): run sudo ./test.sh' >&2
    exit 1
fi
./scripts/setup.sh dev test
# A venv's tools find each other only when it comes first.
PATH="$PWD/.venv/bin:$PATH"
export PATH

# Most tests wait for daemons: one process more than there are CPUs. One file's tests stay in one process.
in_parallel() {
    python -m pytest -n $(($(nproc) + 1)) --dist loadfile --no-loadscope-reorder "$@"
}
check_style() {
    ruff check .
    ruff format --check .
    mypy
    find bpf tests nfcore/kernel nfcore/scaffold examples -name "*.[ch]" -exec clang-format --dry-run --Werror {} +
}

case ${1:-} in
    '') ;;
    --fast)
        check_style
        # shellcheck disable=SC2046  # a list of folders
        in_parallel -m 'not slow' tests/unit $(python -m tests.changed)
        exit
        ;;
    *)
        ./scripts/guest.sh prepare || [ "${CI:-}" != true ]
        check_style
        exec python -m pytest "$@"
        ;;
esac

# Without network the guest tier says what it lacks; CI wants every tier.
./scripts/guest.sh prepare || [ "${CI:-}" != true ]
# The virtual machine has one CPU: its tests run beside all others, and are shown after them.
output=$(mktemp)
python -m pytest tests/guest > "$output" 2>&1 &
guest=$!
trap 'kill "$guest" 2> /dev/null || true; rm -f "$output"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
check_style
failed=0
in_parallel tests/unit tests/kernel || failed=$?
wait "$guest" || failed=$?
cat "$output"
exit "$failed"
