#!/usr/bin/env bash
# Installs what tests run against (PostgreSQL, Chromium, and Node, which builds what the pages load), where Debian's
# packages and the rights to install them are at hand.
set -euo pipefail

missing=() better=()
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || missing+=(postgresql)
command -v chromium >/dev/null || missing+=(chromium fonts-dejavu-core)
command -v npm >/dev/null || missing+=(nodejs npm)
# Without it the browser tests use Chromium itself, which takes more time.
command -v chromium-headless-shell >/dev/null || better+=(chromium-headless-shell)
[ ${#missing[@]} -gt 0 ] || [ ${#better[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
  [ ${#missing[@]} -eq 0 ] ||
    echo "not installed: ${missing[*]} (no apt-get, or not root): the tests that need them are skipped" >&2
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -y -qq --no-install-recommends "$@"; }
# a machine without a way to its package mirror still runs all other tests
apt-get update -qq || true
[ ${#missing[@]} -eq 0 ] || install "${missing[@]}" ||
  echo "apt-get could not install ${missing[*]}: the tests that need them are skipped" >&2
[ ${#better[@]} -eq 0 ] || install "${better[@]}" ||
  echo "apt-get could not install ${better[*]}: the browser tests take longer" >&2
