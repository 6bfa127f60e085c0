#!/bin/sh
# Installs the programs that the tests run against, where they are missing, from Debian's packages.
# Elsewhere it says which are missing.
set -eu

missing=
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }

PATH="$PATH:/usr/sbin:/sbin"
need chromium chromium
need nginx nginx-light
need haproxy haproxy
need caddy caddy
need node nodejs
need npm npm
need curl curl
need cc "gcc libc6-dev"
need strace strace

install_missing() {
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "please install, with your system's package manager:$missing" >&2
        exit 1
    fi

    as_root=
    [ "$(id -u)" -eq 0 ] || as_root="sudo"
    echo "installing:$missing" >&2
    $as_root apt-get update -qq
    # shellcheck disable=SC2086 # a list of words is meant
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -qq -y --no-install-recommends $missing >/dev/null
}

[ -z "$missing" ] || install_missing

# An upstream that others wrote. Its environment is its own: it wants other versions than ours of much that we use.
litellm="litellm[proxy]>=1.80,<2"
environment="$(dirname "$0")/acceptance/.litellm"
if [ "$(cat "$environment/installed" 2>/dev/null)" != "$litellm" ]; then
    echo "installing: $litellm" >&2
    rm -rf "$environment"
    "${PYTHON:-python3}" -m venv "$environment"
    echo "*" >"$environment/.gitignore"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check "$litellm"
    echo "$litellm" >"$environment/installed" # only now: an install that was cut is begun again
fi

# Clients in JavaScript, at the versions in the lock file.
npm ci --prefix "$(dirname "$0")/acceptance" --no-audit --no-fund --loglevel=error
