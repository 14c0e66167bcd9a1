#!/usr/bin/env bash
# Runs a check that CI does not run, and appends a line to docs/records.md: date, target, commit, machine, time, result. Commit the line with
# the change that was checked; the README and the docs claim only what is recorded there.
#   record.sh TARGET COMMAND…    TARGET is the Makefile's, COMMAND is what it runs
# RECORD=no appends nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1
shift
# Settings that select a part or another variant are recorded, so that the record doesn't pass for the whole check.
for setting in TESTS K SOAK FUZZ TARGETS KILLS HOSTILE BENCH MODEL PG_CONFIGS FILES ONLY SHARD MAJOR SUITE ARCH \
    FORMAT IMAGES STRINGS CONFIGURATIONS MODELS UNIT ORDER HEIC AVIF JXL; do
    [ -z "${!setting:-}" ] || name+=" $setting='${!setting}'"
done
output=$(mktemp)
trap 'rm -f "$output"' EXIT
start=$SECONDS status=0
"$@" 2>&1 | tee "$output" || status=${PIPESTATUS[0]}
[ "${RECORD:-yes}" != no ] || exit "$status"
commit=$(git rev-parse --short=10 HEAD 2>/dev/null || echo unknown)
# The records themselves don't count as a change.
[ -z "$(git status --porcelain -- . ':!docs/records.md' 2>/dev/null)" ] || commit+=" with changes"
if [ "$status" -eq 0 ]; then result=passed; else result="failed ($status)"; fi
# The last line of output, such as pytest's counts. Colours and progress bars would break the table.
last=$(sed 's/\x1b\[[0-9;]*m//g; s/|/ /g; s/=\{2,\}//g; s/^ *//; s/ *$//' "$output" | grep -v '^$' | tail -n 1 | cut -c1-160)
cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo 2>/dev/null | head -n 1)
# Two runs may end at the same time.
(
    flock 9
    # shellcheck disable=SC2016
    printf '| %s | `make %s` | %s | %s × %s | %s s | %s | %s |\n' "$(date -u +%F)" "$name" "$commit" "$(nproc)" "${cpu:-CPU}" \
        "$((SECONDS - start))" "$result" "$last" >>docs/records.md
) 9>>docs/records.md
exit "$status"
