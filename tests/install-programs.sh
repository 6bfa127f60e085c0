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

# Clients in JavaScript, at the versions in the lock file.
npm ci --prefix "$(dirname "$0")/acceptance" --no-audit --no-fund --loglevel=error
