//! Loops of many rounds, which llvmpipe would end early.

use super::attention::{check, plain};
use super::{bench, f32s};
use sparta_graph::ops::{Layout, Linear};

#[test]
fn long_inner_dimensions() {
    let Some(mut bench) = bench() else { return };
    bench.backends.truncate(1);
    let k = 70_000;
    for (layout, a, b) in [
        (Layout::Nt, [9, k], [10, k]),
        (Layout::Nt, [3, k], [10, k]),
        (Layout::Nn, [9, k], [k, 10]),
        (Layout::Tn, [k, 9], [k, 10]),
    ] {
        bench.check_to(1e-5, Linear::plain(layout), &[f32s(&a, 1), f32s(&b, 2)]);
    }
}

#[test]
fn long_segments() {
    check(plain(8, 1, 256), &[300]);
    check(plain(2, 1, 16), &[1500]);
}
