//! A plugin's own operation, by the plugin's function.

use crate::bind::{Io, Kernel};
use crate::memory::{Need, Ptr};
use crate::real::Real;
use sparta_graph::ops::{Own, RawTensor};

/// Where a tensor lies, and its shape.
struct Bound {
    data: Ptr<f32>,
    shape: Vec<u64>,
}

impl Bound {
    fn tensor(&self) -> RawTensor {
        RawTensor { data: self.data.at(0), shape: self.shape.as_ptr(), rank: self.shape.len() }
    }
}

pub fn prepare<T: Real>(op: &Own, io: &Io) -> Result<Kernel, String> {
    let name = op.0.name.clone();
    let Some(function) = op.0.function else { return Err(format!("`{name}` has no function for the CPU")) };
    if size_of::<T>() != size_of::<f32>() {
        return Err(format!("the function of `{name}` computes in f32 only"));
    }
    let shape = |shape: &[usize]| shape.iter().map(|&n| n as u64).collect();
    let input = |i| Ok(Bound { data: Ptr::new(io.real::<T>(i)?.at(0).cast()), shape: shape(&io.ty(i)?.shape) });
    let output =
        |o| Ok(Bound { data: Ptr::new(io.output::<T>(o)?.at(0).cast()), shape: shape(&io.output_ty(o)?.shape) });
    let inputs = (0..io.inputs()).map(input).collect::<Result<Vec<Bound>, String>>()?;
    let outputs = (0..io.outputs()).map(output).collect::<Result<Vec<Bound>, String>>()?;
    Ok(Kernel::new(Need::default(), move |_| {
        let [inputs, outputs] = [&inputs, &outputs].map(|all| all.iter().map(Bound::tensor).collect::<Vec<_>>());
        // SAFETY: tensors of the operation's types, f32 in this backend, which nobody else writes concurrently, and
        // whose outputs overlap nothing; the rest is the contract of `CpuFunction::new`.
        let status = unsafe { (function.raw())(inputs.as_ptr(), inputs.len(), outputs.as_ptr(), outputs.len()) };
        match status {
            0 => Ok(()),
            _ => Err(format!("the plugin's function for `{name}` failed")),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tensor, run};
    use sparta_graph::ops::{Body, BodyCall, CpuFunction, Mul, OwnOp};

    /// `y = a b` of two matrices, or a failure if the first number is negative.
    unsafe extern "C" fn product(inputs: *const RawTensor, count: usize, outputs: *const RawTensor, _: usize) -> i32 {
        // SAFETY: two inputs and an output of one shape.
        unsafe {
            let (a, b, y) = (*inputs, *inputs.add(count - 1), *outputs);
            let n: u64 = std::slice::from_raw_parts(a.shape, a.rank).iter().product();
            (0..n as usize).for_each(|i| y.data.add(i).write(*a.data.add(i) * *b.data.add(i)));
            i32::from(*a.data < 0.0)
        }
    }

    #[test]
    fn a_function_computes_the_op_or_fails() {
        let calls = vec![BodyCall { op: Mul {}.into(), inputs: vec![0, 1] }];
        let op = |function| {
            Own(Box::new(OwnOp {
                name: "product".into(),
                inputs: vec!["a".into(), "b".into()],
                outputs: vec!["y".into()],
                body: Body { calls: calls.clone(), outputs: vec![2] },
                gradient: None,
                wgsl: None,
                function,
            }))
        };
        // SAFETY: it keeps to the shapes.
        let function = Some(unsafe { CpuFunction::new(product) });
        let tensors = |first: f64| [Tensor::f32(&[2, 2], &[first, 2.0, 3.0, 4.0]), Tensor::f32(&[2, 2], &[0.5; 4])];
        assert_eq!(run::<f32>(op(function), &tensors(1.0)).unwrap(), [[0.5, 1.0, 1.5, 2.0]]);
        let refused = |op, first| run::<f32>(op, &tensors(first)).unwrap_err().to_string();
        assert!(refused(op(function), -1.0).contains("the plugin's function for `product` failed"));
        assert!(refused(op(None), 1.0).contains("`product` has no function for the CPU"));
        assert!(run::<f64>(op(function), &tensors(1.0)).unwrap_err().to_string().contains("computes in f32 only"));
    }
}
