//! Places blocks of memory by their lifetimes, so that the arena stays small.

use crate::graph::ALIGNMENT;
use std::ops::Range;

/// Memory in use between two steps of a program.
pub(crate) struct Block {
    bytes: usize,
    /// The last step that uses it.
    pub last: usize,
    parts: Vec<Part>,
}

/// A range of bytes of a block, multiples of [`ALIGNMENT`], and the first step that uses it.
struct Part {
    range: Range<usize>,
    first: usize,
}

impl Block {
    /// An unused block.
    pub fn new(bytes: usize, step: usize) -> Self {
        Block { bytes: bytes.max(1).next_multiple_of(ALIGNMENT), last: step, parts: Vec::new() }
    }

    /// Marks bytes from `offset` on as used from step `first` on, unless they already are.
    pub fn use_from(&mut self, first: usize, offset: usize, bytes: usize) {
        if bytes > 0 && self.parts.iter().all(|part| part.range.start != offset) {
            self.parts.push(Part { range: offset..offset + bytes.next_multiple_of(ALIGNMENT), first });
        }
    }

    fn first(&self) -> usize {
        self.parts.iter().map(|part| part.first).min().unwrap_or(self.last)
    }
}

/// The sizes of the segments, and the segment and offset of each block.
pub(crate) struct Arena {
    pub segments: Vec<usize>,
    pub places: Vec<(usize, usize)>,
}

impl Arena {
    /// Places the largest blocks first, each at the lowest offset free of blocks in use at the same time (Pisarchyk
    /// and Lee 2020, "Efficient Memory Management for Deep Neural Net Inference", greedy by size). The first
    /// segments have the sizes in `reserved`, further ones at most `limit`; a larger block gets its own.
    pub fn of(blocks: &[Block], reserved: &[usize], limit: usize) -> Arena {
        let mut order: Vec<usize> = (0..blocks.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(blocks[i].bytes), blocks[i].first(), i));
        let mut arena = Arena { segments: vec![0; reserved.len()], places: vec![(0, 0); blocks.len()] };
        let mut placed: Vec<Vec<usize>> = vec![Vec::new(); reserved.len()];
        let end = |segment: usize| reserved.get(segment).copied().unwrap_or(limit);
        for i in order {
            let spot = |segment: usize| lowest(blocks, i, &placed[segment], &arena.places);
            let fits = |&(segment, offset): &(usize, usize)| offset.saturating_add(blocks[i].bytes) <= end(segment);
            let found = (0..placed.len()).map(|segment| (segment, spot(segment))).find(fits);
            let (segment, offset) = found.unwrap_or((placed.len(), 0));
            if segment == placed.len() {
                placed.push(Vec::new());
                arena.segments.push(0);
            }
            placed[segment].push(i);
            arena.places[i] = (segment, offset);
            arena.segments[segment] = arena.segments[segment].max(offset + blocks[i].bytes);
        }
        let used = arena.segments.iter().rposition(|&bytes| bytes > 0).map_or(0, |last| last + 1);
        arena.segments.truncate(used);
        arena
    }
}

/// The lowest free offset for block `i` in a segment with these blocks.
fn lowest(blocks: &[Block], i: usize, placed: &[usize], places: &[(usize, usize)]) -> usize {
    let block = &blocks[i];
    let mut taken: Vec<Range<usize>> = Vec::new();
    for &j in placed {
        let (other, offset) = (&blocks[j], places[j].1);
        for theirs in other.parts.iter().filter(|part| part.first <= block.last) {
            for ours in block.parts.iter().filter(|part| part.first <= other.last) {
                // The offsets at which the two would overlap.
                let begin = (offset + theirs.range.start).saturating_sub(ours.range.end.saturating_sub(ALIGNMENT));
                let end = (offset + theirs.range.end).saturating_sub(ours.range.start);
                if begin < end {
                    taken.push(begin..end);
                }
            }
        }
    }
    taken.sort_by_key(|range| range.start);
    let mut offset = 0;
    for range in taken {
        if offset < range.start {
            break;
        }
        offset = offset.max(range.end);
    }
    offset
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(bytes: usize, first: usize, last: usize) -> Block {
        let mut block = Block::new(bytes, first);
        block.use_from(first, 0, bytes);
        block.last = last;
        block
    }

    #[test]
    fn blocks_share_memory_where_their_times_differ() {
        let blocks = [block(1024, 0, 3), block(300, 4, 9), block(512, 5, 6), block(256, 3, 4), block(512, 2, 4)];
        let arena = Arena::of(&blocks, &[], usize::MAX);
        assert_eq!(arena.places, [(0, 0), (0, 0), (0, 512), (0, 1536), (0, 1024)]);
        assert_eq!(arena.segments, [1792]);
    }

    #[test]
    fn what_is_not_in_use_yet_belongs_to_others() {
        let mut joined = Block::new(1024, 0);
        for (first, offset) in [(5, 0), (3, 256), (1, 512), (7, 768), (9, 512)] {
            joined.use_from(first, offset, 256);
        }
        joined.last = 9;
        let arena = Arena::of(&[joined, block(512, 0, 2), block(256, 4, 6), block(256, 5, 6)], &[], usize::MAX);
        assert_eq!(arena.places, [(0, 0), (0, 0), (0, 768), (0, 1024)]);
    }

    #[test]
    fn segments_end_at_the_limit() {
        let blocks = [700, 200, 256, 256, 5000].map(|bytes| block(bytes, 0, 1));
        let arena = Arena::of(&blocks, &[], 1000);
        assert_eq!(arena.places, [(1, 0), (2, 0), (2, 256), (2, 512), (0, 0)]);
        assert_eq!(arena.segments, [5120, 768, 768]);
        let arena = Arena::of(&blocks[..4], &[512, 1024, 512], 1000);
        assert_eq!(arena.places, [(1, 0), (0, 0), (0, 256), (1, 768)]);
        assert_eq!(arena.segments, [512, 1024]);
    }
}
