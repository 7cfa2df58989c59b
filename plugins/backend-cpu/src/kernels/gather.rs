use crate::bind::{Io, Kernel};
use crate::memory::Need;
use crate::parallel::{GRAIN, try_tasks};
use crate::real::Real;

pub fn prepare<T: Real>(io: &Io) -> Result<Kernel, String> {
    let (x, index, y) = (io.floats::<T>(0)?, io.words(1)?, io.float_output::<T>(0)?);
    let (elements, n) = (io.numel(0)?, io.numel(1)?);
    Ok(Kernel::new(Need::default(), move |_| {
        try_tasks(n.div_ceil(GRAIN), |task| {
            for i in task * GRAIN..n.min((task + 1) * GRAIN) {
                // SAFETY: i is below n; what it names is checked before it is read.
                unsafe {
                    let at = *index.at(i) as usize;
                    if at >= elements {
                        return Err(format!("index[{i}] is {at}, but x has {elements} elements"));
                    }
                    y.set(i, x.get(at));
                }
            }
            Ok(())
        })
    }))
}

#[cfg(test)]
mod tests {
    use crate::testing::{Tensor, check, error};
    use sparta_graph::DType;
    use sparta_graph::ops::Gather;

    #[test]
    fn picks_elements() {
        let x = Tensor::random(DType::F32, &[200, 300], 1);
        let index: Vec<u32> = (0..60_000).step_by(3).collect();
        let expected = index.iter().map(|&i| x.values()[i as usize]).collect::<Vec<_>>();
        check(Gather {}, &[x.clone(), Tensor::u32(&[index.len()], &index)], &[expected], 0.0);
        assert!(error(Gather {}, &[x, Tensor::u32(&[1], &[60_000])]).contains("index[0] is 60000"));
    }
}
