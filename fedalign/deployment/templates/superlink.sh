#!/usr/bin/env bash
# Starts this federation's SuperLink in the foreground. What it must not forget is in state/; a run whose output is a
# relative path is written beside this file. FEDALIGN_LISTEN and FEDALIGN_PORT change where it listens. FEDALIGN_OPERATORS
# names the addresses and networks, with blanks between them, from which keys may be registered and runs submitted; this
# machine's own if it is not set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
%%{environment}
exec "$(dirname "$(command -v flower-superlink)")/python" -m fedalign.deployment.superlink --host "${FEDALIGN_LISTEN:-%%{listen}}" --port "${FEDALIGN_PORT:-%%{port}}" \
    --ssl-ca-certfile ca.crt --ssl-certfile server.crt --ssl-keyfile server.key \
    --enable-supernode-auth --database state/superlink.db --disable-runtime-dependency-installation
