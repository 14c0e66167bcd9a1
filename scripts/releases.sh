#!/usr/bin/env bash
# Builds the released versions from their commits into target/releases, for tests/release/test_update.py: a minute each,
# once, because they are built with this version's dependencies. If the history does not reach back to a commit (an
# archive, a shallow clone), the test is skipped with the reason.
# shellcheck source=scripts/lib/common.sh
source "$(dirname "$0")/lib/common.sh"
require_pg
cd "$root"
while read -r version commit; do
    built=$target/releases/$version/pg$pg_major$pg_lib/clip_search.so
    [ ! -e "$built" ] || continue
    if ! git cat-file -e "$commit^{commit}" 2>/dev/null; then
        say "clip_search $version can't be built: commit ${commit:0:10} is not in the history here"
        continue
    fi
    source=$target/releases/$version/source
    rm -rf "$source"
    mkdir -p "$source"
    git archive "$commit" | tar -x -C "$source"
    "$root/scripts/build.sh" release "$version" "$source"
    rm -rf "$source" "$target/releases/build"
done < <(grep -v '^#' tests/fixtures/releases/commits)
