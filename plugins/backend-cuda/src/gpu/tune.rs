//! Chooses among cuBLASLt's algorithms by time.
//!
//! Two algorithms may differ in the last bits, so a choice is made once: it is stored on disk by form, card and
//! versions, and every later process takes it from there.

use super::Session;
use super::driver::{EVENT_DEFAULT, Event};
use super::product::Algorithm;
use crate::compile::{Cache, key};
use crate::machine::{Factors, Failure, Product};
use sparta_graph::ops::Layout;
use std::time::Duration;

/// Timed runs of an algorithm; the fastest counts. They take turns with those of the others, since a card's clock rises
/// while it works.
const RUNS: usize = 5;

/// Chooses algorithms for one card.
pub struct Tuner {
    pub cache: Cache,
    /// Card and versions.
    pub title: String,
}

/// Starts a product with an algorithm; `false` if cuBLASLt refuses it.
type Run<'r> = &'r mut dyn FnMut(&Algorithm, &Factors) -> Result<bool, Failure>;

impl Tuner {
    /// The stored choice for a form, or the fastest of `candidates`, at least one. Without memory to
    /// measure in, the first of them, which is not stored.
    pub fn choose(
        &self,
        session: &Session,
        product: &Product,
        candidates: &[Algorithm],
        run: Run,
    ) -> Result<Algorithm, Failure> {
        let key = format!("{}.product", key([self.title.as_str(), &format!("{product:?}")]));
        if let Some(stored) = self.cache.get(&key).and_then(|bytes| algorithm(&bytes)) {
            return Ok(stored);
        }
        let first = candidates.first().copied().unwrap_or_default();
        let mut memory = vec![];
        let measured = match allocate(session, product, &mut memory) {
            Ok(factors) => measure(session, candidates, &factors, run),
            Err(Failure::OutOfMemory { .. }) => Ok(None),
            Err(failure) => Err(failure),
        };
        let freed = session.wait().and_then(|()| memory.into_iter().try_for_each(|address| session.free(address)));
        let fastest = measured.and_then(|fastest| freed.map(|()| fastest))?;
        if let Some(fastest) = fastest {
            self.cache.put(&key, &fastest.data.map(u64::to_le_bytes).concat());
        }
        Ok(fastest.unwrap_or(first))
    }
}

fn algorithm(bytes: &[u8]) -> Option<Algorithm> {
    let words: Vec<u64> =
        bytes.chunks_exact(8).filter_map(|word| word.try_into().ok()).map(u64::from_le_bytes).collect();
    Some(Algorithm { data: words.try_into().ok()? })
}

/// Operands of a form, filled with zeros. What is allocated is in `memory` in any case.
fn allocate(session: &Session, product: &Product, memory: &mut Vec<u64>) -> Result<Factors, Failure> {
    let Product { layout, m, n, k, a, b, c, bias, .. } = *product;
    let a_rows = if layout == Layout::Tn { k } else { m };
    let b_rows = if layout == Layout::Nt { n } else { k };
    let mut place = |bytes: usize| -> Result<u64, Failure> {
        let address = session.alloc(bytes)?;
        memory.push(address);
        Ok(address)
    };
    Ok(Factors {
        a: place(a_rows * a.stride * a.dtype.size())?,
        b: place(b_rows * b.stride * b.dtype.size())?,
        c: place(m * c.stride * c.dtype.size())?,
        bias: place(if bias { 4 * n } else { 1 })?,
        residual: place(m * c.stride * c.dtype.size())?,
        scale: 1.0,
    })
}

/// The fastest of the algorithms that cuBLASLt does not refuse; of equals, the first.
fn measure(
    session: &Session,
    candidates: &[Algorithm],
    factors: &Factors,
    run: Run,
) -> Result<Option<Algorithm>, Failure> {
    let (start, end) = (session.event(EVENT_DEFAULT)?, session.event(EVENT_DEFAULT)?);
    let mut usable = vec![];
    for algorithm in candidates {
        // The first run also loads the kernel.
        if run(algorithm, factors)? {
            usable.push(algorithm);
        }
    }
    let mut fastest: Option<(Duration, Algorithm)> = None;
    for _ in 0..RUNS {
        for &algorithm in &usable {
            let time = timed(session, [start, end], || run(algorithm, factors).map(drop))?;
            if fastest.is_none_or(|(least, _)| time < least) {
                fastest = Some((time, *algorithm));
            }
        }
    }
    session.forget(start)?;
    session.forget(end)?;
    Ok(fastest.map(|(_, algorithm)| algorithm))
}

fn timed(
    session: &Session,
    [start, end]: [Event; 2],
    run: impl FnOnce() -> Result<(), Failure>,
) -> Result<Duration, Failure> {
    session.record(start)?;
    run()?;
    session.record(end)?;
    session.wait_for(end)?;
    session.elapsed(start, end)
}
