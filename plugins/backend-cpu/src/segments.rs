//! The segments of a packed batch.

use crate::memory::Ptr;
use std::ops::Range;

/// The segments that cover rows `0..rows`, from the `[start, end)` of each row.
///
/// Errors: spans that are not those of consecutive segments.
pub fn segments(spans: Ptr<u32>, rows: usize) -> Result<Vec<Range<usize>>, String> {
    // SAFETY: spans are u32 `[rows, 2]`, and no kernel that reads them writes them.
    let (spans, _) = unsafe { spans.slice(0, 2 * rows) }.as_chunks::<2>();
    let mut segments = Vec::new();
    let mut start = 0;
    while let Some(&[first, end]) = spans.get(start) {
        let end = end as usize;
        let rows_of_it = spans.get(start..end).filter(|of_it| !of_it.is_empty());
        let wrong = match rows_of_it {
            Some(of_it) if first as usize == start => of_it.iter().position(|s| *s != [first, end as u32]),
            _ => Some(0),
        };
        if let Some(offset) = wrong {
            let row = start + offset;
            let [a, b] = spans[row];
            return Err(format!("row {row} has the span {a}..{b}, which is not a segment that starts at row {start}"));
        }
        segments.push(start..end);
        start = end;
    }
    Ok(segments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(mut spans: Vec<u32>) -> Result<Vec<Range<usize>>, String> {
        segments(Ptr::new(spans.as_mut_ptr()), spans.len() / 2)
    }

    #[test]
    fn segments_are_found_and_bad_spans_refused() {
        assert_eq!(of(vec![0, 2, 0, 2, 2, 3]).unwrap(), [0..2, 2..3]);
        assert_eq!(of(vec![]).unwrap(), []);
        for bad in [vec![0, 3, 0, 3], vec![0, 2, 0, 1], vec![1, 1], vec![0, 0], vec![0, 1, 0, 2], vec![0, 2, 1, 2]] {
            assert!(of(bad.clone()).is_err(), "{bad:?}");
        }
    }
}
