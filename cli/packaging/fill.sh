#!/usr/bin/env bash
# Writes the Homebrew formula and the winget manifest of a release into OUT, which .ci/release has filled. The manifest is
# the directory that winget-pkgs expects as manifests/p/PUBLISHER/sparta-cli/VERSION, p being the publisher's first letter.
#
#   cli/packaging/fill.sh OUT HOMEPAGE PUBLISHER
set -euo pipefail
[[ $# = 3 && $3 =~ ^[A-Za-z0-9-]+$ ]] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../../Cargo.toml" | head -n 1)
edits=(-e "s|@VERSION@|$version|g" -e "s|@HOMEPAGE@|$2|g" -e "s|@RELEASES@|$2/releases/download|g" -e "s|@PUBLISHER@|$3|g")
while read -r sum file; do
    part=${file#sparta-cli-"$version"-}
    edits+=(-e "s|@SHA256_${part%%.*}@|$sum|g")
done <"$1/SHA256SUMS"

# fill TEMPLATE FILE
fill() {
    sed -e '/^# Template/d' "${edits[@]}" "$here/$1" >"$2"
    if left=$(grep -o '@SHA256_[^@]*@' "$2"); then
        echo "$1: SHA256SUMS has no" $left >&2
        exit 1
    fi
}

fill homebrew.rb "$1/homebrew.rb"
mkdir -p "$1/winget"
# winget names files after the package.
fill winget/version.yaml "$1/winget/$3.sparta-cli.yaml"
fill winget/installer.yaml "$1/winget/$3.sparta-cli.installer.yaml"
fill winget/locale.en-US.yaml "$1/winget/$3.sparta-cli.locale.en-US.yaml"
