#!/usr/bin/env bash
# Rebuilds the default model from its pinned packages and compares the result.
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
ensure_python
exec "$python" "$root/models/photo-mini/rebuild.py"
