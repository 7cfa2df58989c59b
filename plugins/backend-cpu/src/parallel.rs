//! Work in chunks whose bounds depend on the shape alone, so that results do not depend on the number of threads.

use rayon::prelude::*;
use std::ops::Range;

/// Elements of elementwise work that are worth a separate piece.
pub const GRAIN: usize = 16 * 1024;

/// Calls `f` for chunks of `size` that cover `0..n`, in parallel.
pub fn chunks(n: usize, size: usize, f: impl Fn(Range<usize>) + Send + Sync) {
    let size = size.max(1);
    let chunk = |i: usize| f(i * size..n.min((i + 1) * size));
    tasks(n.div_ceil(size), chunk);
}

/// [`chunks`] of rows, each of about [`GRAIN`] elements.
pub fn rows(n: usize, width: usize, f: impl Fn(Range<usize>) + Send + Sync) {
    chunks(n, GRAIN.div_ceil(width.max(1)), f);
}

/// Calls `f` for each of `0..n`, in parallel.
pub fn tasks(n: usize, f: impl Fn(usize) + Send + Sync) {
    match n {
        0 => {}
        1 => f(0),
        _ => (0..n).into_par_iter().with_max_len(1).for_each(f),
    }
}

/// [`tasks`] that can fail; the error is that of the first failing task.
pub fn try_tasks(n: usize, f: impl Fn(usize) -> Result<(), String> + Send + Sync) -> Result<(), String> {
    let failed = |i| f(i).err().map(|e| (i, e));
    let first = (0..n).into_par_iter().with_max_len(1).filter_map(failed).min_by_key(|(i, _)| *i);
    first.map_or(Ok(()), |(_, e)| Err(e))
}
