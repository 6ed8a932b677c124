# SPDX-License-Identifier: Apache-2.0
# Sourced by the scripts beside it, which define say() and as_root().

# Installs those of the given packages that are not installed. Uses no network if all are installed.
install_missing() {
    missing=''
    for package in "$@"; do
        status=$(dpkg-query -W -f '${Status}' "$package" 2> /dev/null || true)
        [ "$status" = 'install ok installed' ] || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    say "installing$missing"
    as_root apt-get -q update >&2
    # shellcheck disable=SC2086  # a list of words
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $missing >&2
}
