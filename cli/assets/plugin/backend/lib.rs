//! The backend `@name@`: for now the CPU backend under another name, to be replaced function by function. `describe`
//! lists the operations it has; `sparta-cli plugin check` says which of them are right and which are refused.

use sparta_backend_cpu::Cpu;
use sparta_plugin::backend::*;

struct @type@;

sparta_plugin::export_backend!(@type@);

/// The name that `--device` takes.
const NAME: &str = "@name@";

impl BackendPlugin for @type@ {
    fn describe(&self) -> BackendPluginInfo {
        let ops = Op::NAMES.iter().map(|name| name.to_string()).collect();
        BackendPluginInfo { name: NAME.into(), version: env!("CARGO_PKG_VERSION").into(), ops: Some(ops) }
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>, BackendError> {
        Ok(vec![Device::open()?.info()])
    }

    fn open(&self, device: &str) -> Result<Box<dyn Backend>, BackendError> {
        match device == NAME {
            true => Ok(Box::new(Device::open()?)),
            false => Err(BackendError::Other { device: device.into(), reason: format!("there is only `{NAME}`") }),
        }
    }
}

/// An open device: its memory, and the plans prepared for it.
struct Device {
    cpu: Cpu,
}

impl Device {
    fn open() -> Result<Device, BackendError> {
        Ok(Device { cpu: Cpu::new(None)? })
    }
}

impl Backend for Device {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { id: NAME.into(), ..self.cpu.info() }
    }

    fn alloc(&mut self, dtype: DType, len: usize, label: &str) -> Result<BufferId, BackendError> {
        self.cpu.alloc(dtype, len, label)
    }

    fn free(&mut self, buffer: BufferId) {
        self.cpu.free(buffer);
    }

    fn memory_use(&self) -> Option<MemoryUse> {
        self.cpu.memory_use()
    }

    fn write(&mut self, buffer: BufferId, offset: usize, data: &[u8]) -> Result<(), BackendError> {
        self.cpu.write(buffer, offset, data)
    }

    fn read(&mut self, buffer: BufferId, offset: usize, out: &mut [u8]) -> Result<(), BackendError> {
        self.cpu.read(buffer, offset, out)
    }

    fn prepare(&mut self, plan: &Plan, arena: &[BufferId], externals: &[BufferId]) -> Result<PlanId, BackendError> {
        self.cpu.prepare(plan, arena, externals)
    }

    fn run(&mut self, plan: PlanId) -> Result<(), BackendError> {
        self.cpu.run(plan)
    }

    fn release(&mut self, plan: PlanId) {
        self.cpu.release(plan);
    }
}
