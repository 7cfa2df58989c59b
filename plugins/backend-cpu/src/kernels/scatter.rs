use crate::bind::{Io, Kernel};
use crate::memory::Need;
use crate::parallel::{GRAIN, try_tasks};
use crate::real::Real;

pub fn prepare<T: Real>(io: &Io) -> Result<Kernel, String> {
    let (w, index, base, delta) = (io.floats::<T>(0)?, io.words(1)?, io.real::<T>(2)?, io.real::<T>(3)?);
    let (elements, n) = (io.numel(0)?, io.numel(1)?);
    Ok(Kernel::new(Need::default(), move |_| {
        try_tasks(n.div_ceil(GRAIN), |task| {
            for i in task * GRAIN..n.min((task + 1) * GRAIN) {
                // SAFETY: i is below n; indices are checked to lie in w and to ascend, so that no other task writes
                // the same element.
                unsafe {
                    let at = *index.at(i) as usize;
                    if at >= elements || i > 0 && *index.at(i - 1) as usize >= at {
                        return Err(format!("index[{i}] is {at}: indices must ascend and be below {elements}"));
                    }
                    w.set(at, *base.at(i) + *delta.at(i));
                }
            }
            Ok(())
        })
    }))
}
