//! Compiles every CUDA kernel that the conformance suite needs with NVRTC, for the oldest and the newest
//! supported architectures. Needs no GPU; `.ci/nvrtc DIR` fetches NVRTC, and `SPARTA_CUDA_PATH=DIR` points to it.

use sparta_backend_cuda::{
    Arguments, Cache, Compiler, CudaBackend, Factors, Failure, KernelId, KernelText, MAX_BINDING, Machine, Product,
    ProductId, Reading, Search, Threads,
};
use sparta_graph::{DType, DeviceInfo, DeviceKind};
use sparta_suites::conformance::AREAS;
use sparta_suites::{BoundPlan, Device, Precision};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Kernels by entry and text.
type Kernels = Arc<Mutex<BTreeMap<(String, String), KernelText>>>;

/// A machine that only records the kernels of plans.
struct Collecting {
    kernels: Kernels,
    capability: (u32, u32),
    products: bool,
}

impl Machine for Collecting {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            id: "cuda:none".into(),
            name: "no card".into(),
            kind: DeviceKind::DiscreteGpu,
            card: None,
            driver: String::new(),
            memory: None,
            max_buffer: u64::MAX,
            max_binding: Some(MAX_BINDING),
            segments: true,
            in_place: true,
            activations: vec![DType::F32, DType::BF16],
            products: vec![DType::BF16],
            multiplier: None,
            rounds_in_attention: false,
            tf32: false,
            sampled_cost: None,
            own_kernels: vec![],
        }
    }

    fn capability(&self) -> (u32, u32) {
        self.capability
    }

    fn alloc(&mut self, _: usize) -> Result<u64, Failure> {
        Ok(256)
    }

    fn free(&mut self, _: u64) {}

    unsafe fn write(&mut self, _: u64, _: &[u8]) -> Result<(), Failure> {
        Ok(())
    }

    unsafe fn read(&mut self, _: u64, _: &mut [u8]) -> Result<(), Failure> {
        Ok(())
    }

    unsafe fn copy(&mut self, _: u64, _: u64, _: usize) -> Result<(), Failure> {
        Ok(())
    }

    unsafe fn start_read(&mut self, _: u64, _: usize) -> Result<Reading, Failure> {
        Ok(Reading(0))
    }

    fn finish_read(&mut self, _: Reading, _: &mut [u8]) -> Result<(), Failure> {
        Ok(())
    }

    fn load(&mut self, kernels: &[KernelText]) -> Result<Vec<KernelId>, Failure> {
        let mut all = self.kernels.lock().unwrap();
        for kernel in kernels {
            all.insert((kernel.entry.clone(), kernel.text.clone()), kernel.clone());
        }
        Ok(vec![KernelId(0); kernels.len()])
    }

    unsafe fn launch(&mut self, _: KernelId, _: [u32; 3], _: Threads, _: &mut Arguments) -> Result<(), Failure> {
        Ok(())
    }

    fn product(&mut self, _: &Product) -> Result<Option<ProductId>, Failure> {
        Ok(self.products.then_some(ProductId(0)))
    }

    unsafe fn multiply(&mut self, _: ProductId, _: &Factors) -> Result<(), Failure> {
        Ok(())
    }

    fn mark(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn times(&mut self) -> Result<Vec<Duration>, Failure> {
        Ok(vec![])
    }
}

/// The kernels of all cases on a card of this capability, forward and backward, with and without a library of products.
fn kernels(capability: (u32, u32)) -> Vec<KernelText> {
    let kernels = Kernels::default();
    for products in [false, true] {
        let machine = Collecting { kernels: kernels.clone(), capability, products };
        let mut device = Device::Backend(Box::new(CudaBackend::new(Box::new(machine)).unwrap()));
        let info = device.info();
        for case in AREAS.iter().flat_map(|area| (area.cases)()) {
            for (precision, backward) in
                [(Precision::F32, false), (Precision::F32, true), (Precision::Bf16, false), (Precision::Bf16, true)]
            {
                let plan = info.plan(&case.program(precision, false, backward).graph);
                BoundPlan::open(&mut device, &plan).unwrap_or_else(|error| panic!("{}: {error}", case.name));
            }
        }
    }
    let all = kernels.lock().unwrap();
    all.values().cloned().collect()
}

#[test]
fn all_kernels_compile_for_all_architectures() {
    let compiler = match Compiler::open(&Search::of_environment(), 13) {
        Ok(compiler) => compiler,
        Err(reason) => {
            assert!(std::env::var_os("SPARTA_NVRTC").is_none(), "{reason}");
            return sparta_tests::skipped(&reason);
        }
    };
    let cache = Cache::at(Some(concat!(env!("CARGO_TARGET_TMPDIR"), "/nvrtc").into()));
    for capability in [(7, 5), (8, 0), (9, 0)] {
        let kernels = kernels(capability);
        assert!(kernels.len() > 100, "{} kernels", kernels.len());
        let architecture = compiler.architecture(capability).unwrap();
        if let Err(why) = compiler.compile_all(&kernels, &architecture, &cache) {
            panic!("{architecture}: {why}");
        }
        println!("{} kernels for {architecture} by {}", kernels.len(), compiler.title());
    }
}
