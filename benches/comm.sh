#!/bin/sh
# Compares two processes with one core each to one with one core, on the same batch, and measures their exchanges:
#
#   benches/comm.sh MPICH [CELLS...]     MPICH is a directory that .ci/mpich made; CELLS are options of `bench comm`
#
# The machine should be idle. Run `cargo build --release` first.
set -eu
mpich=$1
shift
[ $# -gt 0 ] || set -- --shape 15M --method sparta-0.005
command="$(dirname "$0")/../target/release/sparta-cli bench comm --device cpu"
export RAYON_NUM_THREADS=1
# shellcheck disable=SC2086
exec "$mpich"/bin/mpiexec -n 1 taskset -c 0 $command "$@" : -n 1 taskset -c 1 $command "$@"
