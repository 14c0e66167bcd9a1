#!/usr/bin/env bash
# Runs what CI does not, and leaves a line of it in docs/records.md: when, of which commit, on what machine, how long it took and what came
# of it. Commit the line with the change that it is of; the README and the docs claim only what is recorded there.
#   record.sh TARGET COMMAND…    the target of the Makefile, and what it runs
# RECORD=no leaves no line.
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1
shift
# Settings that choose a part of it: a record of a part must not pass for the whole.
for setting in TESTS K SOAK FUZZ TARGETS KILLS HOSTILE BENCH MODEL PG_CONFIGS FILES ONLY; do
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
# What it says at its end: pytest's counts, a table's last line. Colours and bars would break the table.
last=$(sed 's/\x1b\[[0-9;]*m//g; s/|/ /g; s/=\{2,\}//g; s/^ *//; s/ *$//' "$output" | grep -v '^$' | tail -n 1 | cut -c1-160)
cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo 2>/dev/null | head -n 1)
# Two runs may end at once.
(
    flock 9
    # shellcheck disable=SC2016
    printf '| %s | `make %s` | %s | %s × %s | %s s | %s | %s |\n' "$(date -u +%F)" "$name" "$commit" "$(nproc)" "${cpu:-CPU}" \
        "$((SECONDS - start))" "$result" "$last" >>docs/records.md
) 9>>docs/records.md
exit "$status"
