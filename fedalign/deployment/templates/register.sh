#!/usr/bin/env bash
# Tells the SuperLink which keys are those of the sites; it lets nobody else in. Once a federation is enough.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
address="${FEDALIGN_SUPERLINK:-%%{operator}}"
host="${address%:*}"
host="${host#[}"
# The SuperLink may have been started a moment ago.
for _ in {1..60}; do
    if (exec 3<>"/dev/tcp/${host%]}/${address##*:}") 2>/dev/null; then
        break
    fi
    sleep 1
done
for key in keys/*.pub; do
    ./flower.sh supernode register "$key" federation
done
