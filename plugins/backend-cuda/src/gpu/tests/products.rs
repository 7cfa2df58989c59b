//! Products by cuBLASLt.

use super::*;

#[test]
fn products_are_those_of_rows() {
    let Some(mut gpu) = open(&[]) else { return };
    // Small whole numbers, which bf16 has exactly: 8 rows of 8.
    let value = |seed: usize, row: usize, column: usize| ((seed * 7 + row * 3 + column * 5) % 9) as f32 - 4.0;
    let matrix = |seed| (0..64).map(|i| value(seed, i / 8, i % 8)).collect::<Vec<f32>>();
    let encode = |values: &[f32], dtype| match dtype {
        DType::F32 => bytes(values),
        _ => values.iter().flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()).collect(),
    };
    let decode = |data: &[u8], dtype| match dtype {
        DType::F32 => floats(data),
        _ => data
            .chunks_exact(2)
            .map(|two| f32::from_bits(u32::from(u16::from_le_bytes([two[0], two[1]])) << 16))
            .collect(),
    };
    let (a, b, residual, bias) = (matrix(1), matrix(2), matrix(3), &matrix(4)[..5]);
    for layout in [Layout::Nt, Layout::Nn, Layout::Tn] {
        for (factors, result) in [(DType::F32, DType::F32), (DType::BF16, DType::BF16), (DType::BF16, DType::F32)] {
            for (with_bias, with_residual) in [(false, false), (true, false), (false, true), (true, true)] {
                if with_bias && result != DType::F32 {
                    continue;
                }
                let form = Product { bias: with_bias, residual: with_residual, ..product(layout, factors, result) };
                let id = gpu.product(&form).unwrap().unwrap();
                let place = Factors {
                    a: put(&mut gpu, &encode(&a, factors)),
                    b: put(&mut gpu, &encode(&b, factors)),
                    c: put(&mut gpu, &encode(&[8.0; 64], result)),
                    bias: put(&mut gpu, &encode(bias, result)),
                    residual: put(&mut gpu, &encode(&residual, result)),
                    scale: 0.5,
                };
                // SAFETY: the factors are of the form.
                unsafe { gpu.multiply(id, &place) }.unwrap();
                let length = 64 * result.size();
                let c = decode(&get(&mut gpu, place.c, length), result);
                for (i, j) in (0..3).flat_map(|i| (0..5).map(move |j| (i, j))) {
                    let term = |l: usize| match layout {
                        Layout::Nt => value(1, i, l) * value(2, j, l),
                        Layout::Nn => value(1, i, l) * value(2, l, j),
                        Layout::Tn => value(1, l, i) * value(2, l, j),
                    };
                    let mut wanted = 0.5 * (0..4).map(term).sum::<f32>();
                    wanted += if with_bias { bias[j] } else { 0.0 };
                    wanted += if with_residual { residual[8 * i + j] } else { 0.0 };
                    assert_eq!(c[8 * i + j], wanted, "{form:?} at {i}, {j}");
                }
                assert!((0..3).all(|i| c[8 * i + 5..8 * i + 8] == [8.0; 3]) && c[24..] == [8.0; 40], "{form:?}");
            }
        }
    }
}

#[test]
fn products_that_the_library_lacks_are_none() {
    let Some(mut gpu) = open(&["-DNO_ALGORITHM"]) else { return };
    assert_eq!(gpu.product(&product(Layout::Nt, DType::BF16, DType::F32)).unwrap(), None);
    let Some(mut gpu) = open(&[]) else { return };
    let mut mixed = product(Layout::Nt, DType::BF16, DType::F32);
    mixed.a.dtype = DType::F32;
    let narrow_bias = Product { bias: true, ..product(Layout::Nt, DType::BF16, DType::BF16) };
    let empty = Product { k: 0, ..product(Layout::Nt, DType::F32, DType::F32) };
    for form in [mixed, narrow_bias, empty] {
        assert_eq!(gpu.product(&form).unwrap(), None, "{form:?}");
    }
    let mut narrow = product(Layout::Nt, DType::F32, DType::F32);
    narrow.a.stride = 2;
    let failure = gpu.product(&narrow).unwrap_err();
    assert_eq!(failure, Failure::Other("cublasLtMatrixLayoutCreate: some status (7)".into()));
}

#[test]
fn an_algorithm_that_is_refused_gives_way_to_the_next() {
    let Some(mut gpu) = open(&["-DREFUSED=2"]) else { return };
    let id = gpu.product(&product(Layout::Nt, DType::F32, DType::F32)).unwrap().unwrap();
    let place = factors(&mut gpu, 2.0);
    for _ in 0..2 {
        // SAFETY: the factors are of the form.
        unsafe { gpu.multiply(id, &place) }.unwrap();
        assert_eq!(floats(&get(&mut gpu, place.c, 20)), [16.0; 5]);
    }
    let Some(mut gpu) = open(&["-DREFUSED=3"]) else { return };
    let id = gpu.product(&product(Layout::Nt, DType::F32, DType::F32)).unwrap().unwrap();
    let place = factors(&mut gpu, 2.0);
    // SAFETY: as above.
    let Err(Failure::Other(said)) = (unsafe { gpu.multiply(id, &place) }) else { panic!("all are refused") };
    assert!(
        said.starts_with("cublasLtMatmul: not supported (15) for Nt 3x5x4, a f32 stride 8 at a multiple of 256, b ")
    );
    assert!(said.ends_with(", algorithm 3 of 3"), "{said}");
}

#[test]
fn tf32_is_for_products_that_allow_it() {
    let Some(mut gpu) = open(&[]) else { return };
    // The last bit of this number is not one of TF32's.
    let value = 1.0 + 2f32.powi(-11);
    for (tf32, wanted) in [(false, 4.0 * value * value), (true, 4.0)] {
        let form = Product { tf32, ..product(Layout::Nt, DType::F32, DType::F32) };
        let (id, place) = (gpu.product(&form).unwrap().unwrap(), factors(&mut gpu, value));
        // SAFETY: the factors are of the form.
        unsafe { gpu.multiply(id, &place) }.unwrap();
        assert_eq!(floats(&get(&mut gpu, place.c, 4)), [wanted], "{form:?}");
    }
}

#[test]
fn measured_choices_are_kept() {
    let Some(dir) = libraries(&["-DREFUSED=1"]) else { return };
    let form = product(Layout::Nn, DType::F32, DType::F32);
    let stored = || {
        let files = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|end| end == "product")).collect::<Vec<_>>()
    };
    let mut gpu = tuned(&dir);
    assert!(gpu.info().driver.ends_with("cuBLASLt 13.0.2 (tuned)"));
    gpu.product(&form).unwrap().unwrap();
    let files = stored();
    assert_eq!(files.len(), 1, "{files:?}");
    let kept = std::fs::read(&files[0]).unwrap();
    // The stand-in's clock counts launches, and a product is not one: all tie, and the first that is not refused wins.
    assert_eq!(kept[56..64], 4712u64.to_le_bytes());
    drop(gpu);
    let mut gpu = tuned(&dir);
    let (id, place) = (gpu.product(&form).unwrap().unwrap(), factors(&mut gpu, 1.0));
    // SAFETY: the factors are of the form.
    unsafe { gpu.multiply(id, &place) }.unwrap();
    assert_eq!(floats(&get(&mut gpu, place.c, 20)), [4.0; 5]);
    assert_eq!((stored(), std::fs::read(&files[0]).unwrap()), (files.clone(), kept));
}

#[test]
fn a_failing_product_says_what_the_driver_says() {
    let Some(mut gpu) = open(&["-DFAIL=\"cublasLtMatmul\"", "-DCODE=13"]) else { return };
    let id = gpu.product(&product(Layout::Nn, DType::F32, DType::F32)).unwrap().unwrap();
    let place = Factors { a: 0, b: 0, c: 0, bias: 0, residual: 0, scale: 1.0 };
    // SAFETY: the stand-in fails before it reads.
    let failure = unsafe { gpu.multiply(id, &place) };
    let Err(Failure::Other(said)) = failure else { panic!("{failure:?}") };
    assert!(said.starts_with("cublasLtMatmul: some status (13) for Nn 3x5x4, a f32 stride 8"), "{said}");
    assert!(said.contains("algorithm 1 of 3"), "{said}");
    let recorded = gpu.record(&mut |machine| {
        // SAFETY: as above.
        unsafe { machine.multiply(id, &place) }
    });
    let Err(Failure::Other(said)) = recorded else { panic!("{recorded:?}") };
    assert!(said.starts_with("cublasLtMatmul: some status (13) for Nn 3x5x4"), "{said}");
}
