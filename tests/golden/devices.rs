//! The devices on which parity is checked.

use sparta_graph::Backend;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum On {
    Cpu,
    Wgpu,
}

impl On {
    pub fn name(self) -> &'static str {
        match self {
            On::Cpu => "cpu",
            On::Wgpu => "wgpu",
        }
    }

    /// Whether the device is there; says so if not.
    pub fn is_present(self) -> bool {
        let present = self == On::Cpu || !sparta_wgpu::devices().is_empty();
        if !present {
            sparta_tests::skipped_unless_in_ci("no wgpu adapter");
        }
        present
    }

    pub fn open(self) -> Box<dyn Backend> {
        match self {
            On::Cpu => Box::new(sparta_backend_cpu::Cpu::new(None).unwrap_or_else(|e| panic!("{e}"))),
            On::Wgpu => Box::new(sparta_wgpu::WgpuBackend::open("wgpu").unwrap_or_else(|e| panic!("{e}"))),
        }
    }
}
