#!/usr/bin/env bash
# Writes the Homebrew formula and the winget manifest of a release into OUT, which .ci/release has filled.
#
#   cli/packaging/fill.sh OUT HOMEPAGE
set -euo pipefail
[ $# = 2 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../../Cargo.toml" | head -n 1)
edits=(-e "s|@VERSION@|$version|g" -e "s|@HOMEPAGE@|$2|g" -e "s|@RELEASES@|$2/releases/download|g")
while read -r sum file; do
    part=${file#sparta-cli-"$version"-}
    edits+=(-e "s|@SHA256_${part%%.*}@|$sum|g")
done <"$1/SHA256SUMS"
for template in homebrew.rb winget.yaml; do
    sed -e '/^# Template/d' "${edits[@]}" "$here/$template" >"$1/$template"
    if left=$(grep -o '@SHA256_[^@]*@' "$1/$template"); then
        echo "$template: SHA256SUMS has no" $left >&2
        exit 1
    fi
done
