#!/bin/sh
# Miri on the crates that have `unsafe` and can run without files and drivers, ThreadSanitizer on the threaded kernels.
# Needs a nightly toolchain with the components miri and rust-src; give its name, or `nightly` is used.
set -eu
cd "$(dirname "$0")/.."
toolchain="+${1:-nightly}"
target="$(rustc -vV | sed -n 's/^host: //p')"

# Threads of a pool are still asleep at the end, and files are read: neither is what is looked for.
export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-ignore-leaks"
export RAYON_NUM_THREADS=2
echo "miri: sparta-graph, sparta-plugin"
cargo "$toolchain" miri test -p sparta-graph -p sparta-plugin --lib
echo "miri: sparta-backend-cpu"
cargo "$toolchain" miri test -p sparta-backend-cpu --lib -- --skip speed

echo "thread sanitizer: sparta-backend-cpu"
RAYON_NUM_THREADS=4 RUSTFLAGS="-Zsanitizer=thread" \
    cargo "$toolchain" test -Zbuild-std --target "$target" -p sparta-backend-cpu --lib
