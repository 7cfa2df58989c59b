#!/usr/bin/env bash
# What the compiler for AMD cards makes of every hot kernel, without a card: registers, spills, scratch, occupancy.
#
#   static.sh      prints a table for navi31 (RX 7900), or for the RADV_FORCE_FAMILY that is set
set -euo pipefail
cd "$(dirname "$0")/../.."
mesa=$PWD/target/tools/mesa-trixie
[ -x "$mesa/amd" ] || .ci/mesa trixie "$mesa" >&2
# The whole workspace, so that no dependency is rebuilt with different features.
cargo build --release --locked --workspace --bin gpu-static
release=$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release
exec "$mesa/amd" "$release/gpu-static"
