#!/bin/sh
# Miri and ThreadSanitizer on the CPU backend, the crate with most of the `unsafe` and with threads that share memory.
# Needs a nightly toolchain with the components miri and rust-src: give its name, or `nightly` is used. Arguments after
# it choose tests for Miri, which takes about a minute for each.
set -eu
cd "$(dirname "$0")/.."
toolchain="+${1:-nightly}"
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- backend:: memory:: segments:: draw::
target="$(rustc -vV | sed -n 's/^host: //p')"

# The pool's threads still sleep at the end. Tree borrows: the pool's library does not pass stacked ones.
MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-ignore-leaks -Zmiri-tree-borrows" RAYON_NUM_THREADS=2 \
    cargo "$toolchain" miri test -p sparta-backend-cpu --lib -- "$@"

RAYON_NUM_THREADS=4 RUSTFLAGS="-Zsanitizer=thread" \
    cargo "$toolchain" test -Zbuild-std --target "$target" -p sparta-backend-cpu --lib
