//! Memory by liveness: where tensors lie in an arena while others come and go.

use crate::graph::ALIGNMENT;

/// Best-fit allocation of byte ranges in segments; a segment grows at its end, up to a limit.
pub(crate) struct Arena {
    limit: usize,
    segments: Vec<Segment>,
}

#[derive(Default)]
struct Segment {
    size: usize,
    /// (offset, bytes) of the holes, by offset, never adjacent.
    holes: Vec<(usize, usize)>,
}

impl Arena {
    /// An arena without segments, for segments of at most `limit` bytes; what is larger gets one of its own.
    pub fn new(limit: usize) -> Self {
        Arena { limit, segments: Vec::new() }
    }

    /// Bytes of each segment.
    pub fn sizes(&self) -> Vec<usize> {
        self.segments.iter().map(|segment| segment.size).collect()
    }

    /// Segment and offset of so many bytes: in the smallest hole that fits, else at the end of the segment that has to
    /// grow least, else in a new segment.
    pub fn alloc(&mut self, bytes: usize) -> (usize, usize) {
        let bytes = round_up(bytes);
        let holes = self.segments.iter().enumerate().filter_map(|(i, s)| Some((s.hole(bytes)?, i)));
        if let Some(((_, hole), i)) = holes.min() {
            return (i, self.segments[i].fill(hole, bytes));
        }
        let open = self.segments.iter().enumerate().filter(|(_, s)| s.end().saturating_add(bytes) <= self.limit);
        let least = open.min_by_key(|(_, s)| s.end() + bytes - s.size).map(|(i, _)| i);
        let i = least.unwrap_or_else(|| {
            self.segments.push(Segment::default());
            self.segments.len() - 1
        });
        (i, self.segments[i].grow(bytes))
    }

    pub fn free(&mut self, segment: usize, offset: usize, bytes: usize) {
        self.segments[segment].free(offset, round_up(bytes));
    }
}

impl Segment {
    /// Size and index of the smallest hole that holds so many bytes.
    fn hole(&self, bytes: usize) -> Option<(usize, usize)> {
        let holes = self.holes.iter().enumerate();
        holes.filter(|(_, hole)| hole.1 >= bytes).map(|(i, hole)| (hole.1, i)).min()
    }

    fn fill(&mut self, hole: usize, bytes: usize) -> usize {
        let (offset, size) = self.holes[hole];
        if size == bytes {
            self.holes.remove(hole);
        } else {
            self.holes[hole] = (offset + bytes, size - bytes);
        }
        offset
    }

    /// Where the hole at the end begins, or the end.
    fn end(&self) -> usize {
        match self.holes.last() {
            Some(&(offset, size)) if offset + size == self.size => offset,
            _ => self.size,
        }
    }

    fn grow(&mut self, bytes: usize) -> usize {
        let offset = self.end();
        if offset < self.size {
            self.holes.pop();
        }
        self.size = offset + bytes;
        offset
    }

    fn free(&mut self, offset: usize, bytes: usize) {
        let i = self.holes.partition_point(|hole| hole.0 < offset);
        self.holes.insert(i, (offset, bytes));
        if i + 1 < self.holes.len() && offset + bytes == self.holes[i + 1].0 {
            self.holes[i].1 += self.holes[i + 1].1;
            self.holes.remove(i + 1);
        }
        if i > 0 && self.holes[i - 1].0 + self.holes[i - 1].1 == offset {
            self.holes[i - 1].1 += self.holes[i].1;
            self.holes.remove(i);
        }
    }
}

fn round_up(bytes: usize) -> usize {
    bytes.max(1).next_multiple_of(ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_hole_that_fits_is_reused_and_neighbours_are_joined() {
        let mut arena = Arena::new(usize::MAX);
        let [a, b, c, d] = [1024, 256, 512, 256].map(|bytes| arena.alloc(bytes).1);
        arena.free(0, a, 1024);
        arena.free(0, c, 512);
        assert_eq!(arena.alloc(300), (0, c), "the smaller hole");
        arena.free(0, c, 300);
        arena.free(0, b, 256);
        assert_eq!(arena.segments[0].holes, [(0, 1792)], "one hole before the last tensor");
        arena.free(0, d, 256);
        assert_eq!(arena.alloc(4096), (0, 0), "the hole at the end grows");
        assert_eq!(arena.sizes(), [4096]);
    }

    #[test]
    fn segments_end_at_the_limit() {
        let mut arena = Arena::new(1000);
        assert_eq!([700, 200, 256, 256].map(|bytes| arena.alloc(bytes)), [(0, 0), (1, 0), (1, 256), (1, 512)]);
        assert_eq!(arena.alloc(5000), (2, 0), "larger than a segment: refused where it is allocated");
        assert_eq!(arena.sizes(), [768, 768, 5120]);
        arena.free(1, 256, 256);
        arena.free(1, 512, 256);
        assert_eq!(arena.alloc(600), (3, 0), "256 + 768 bytes are too many for the second segment");
        assert_eq!(arena.alloc(512), (1, 256));
    }
}
