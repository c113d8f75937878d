#!/usr/bin/env bash
# Flower's own command line, connected to this federation: ./flower.sh list federation, ./flower.sh log RUN federation.
# Run it on the server's machine, or set FEDALIGN_SUPERLINK to the server's address and name your own address in the
# server's FEDALIGN_OPERATORS.
set -euo pipefail
folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
app="${PWD}"
cd "$folder"
%%{environment}
mkdir -p "$FLWR_HOME"
# Flower wants an absolute path to the certificate, so the connection is written where the folder stands now.
cat > "$FLWR_HOME/config.toml" <<CONNECTION
[superlink]
default = "federation"

[superlink.federation]
address = "${FEDALIGN_SUPERLINK:-%%{operator}}"
root-certificates = "$folder/ca.crt"
CONNECTION
cd "$app"
exec flwr "$@"
