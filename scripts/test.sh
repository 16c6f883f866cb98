#!/usr/bin/env bash
# Sets up the virtual environment and runs the tests; arguments are passed on to pytest:
#
#   bash scripts/test.sh
#   bash scripts/test.sh -m "not slow" tests/quant
#   PADDLE_VERSION=2.6.2 bash scripts/test.sh
#
# scripts/setup_env.sh says what the environment variables mean.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh

setup_env requirements.txt requirements-dev.txt
exec "$VENV_DIR/bin/python" -m pytest "$@"
