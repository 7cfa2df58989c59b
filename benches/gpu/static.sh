#!/usr/bin/env bash
# What compilers make of every hot kernel, without a card: registers, spills, scratch, occupancy.
#
#   static.sh         prints a table for navi31 (RX 7900), or for the RADV_FORCE_FAMILY that is set
#   static.sh cuda    prints what NVRTC says for sm_80 and sm_90
set -euo pipefail
cd "$(dirname "$0")/../.."
# The whole workspace, so that no dependency is rebuilt with different features.
cargo build --release --locked --workspace --bin gpu-static
release=$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release
if [ "${1-}" = cuda ]; then
    nvrtc=$PWD/target/tools/nvrtc
    .ci/nvrtc "$nvrtc" >&2
    SPARTA_CUDA_PATH=$nvrtc exec "$release/gpu-static" cuda
fi
mesa=$PWD/target/tools/mesa-trixie
[ -x "$mesa/amd" ] || .ci/mesa trixie "$mesa" >&2
exec "$mesa/amd" "$release/gpu-static"
