use crate::Tensor;
use sparta_backend_cpu::Reference;
use sparta_graph::{Backend, BackendError, BufferId, DType, DeviceInfo, Graph, Plan, PlanId, expand};
use std::collections::BTreeMap;

/// Tensors by the name of the external.
pub type Tensors = BTreeMap<String, Tensor>;

/// A backend under test, or the reference.
pub enum Device {
    /// In f64; f32 tensors keep all digits.
    Reference(Box<Reference>),
    Backend(Box<dyn Backend>),
}

impl Device {
    pub fn reference() -> Self {
        Device::Reference(Box::new(Reference::new(Some(1)).expect("a thread")))
    }

    pub fn info(&mut self) -> DeviceInfo {
        self.backend().info()
    }

    /// The plan of a graph, with memory shared in place or not.
    pub fn plan(&mut self, graph: &Graph, in_place: bool) -> Plan {
        let info = self.info();
        Plan::in_segments(&expand(graph, &info.own_kernels), in_place, info.segment_limit())
    }

    fn backend(&mut self) -> &mut dyn Backend {
        match self {
            Device::Reference(backend) => backend.as_mut(),
            Device::Backend(backend) => backend.as_mut(),
        }
    }

    /// Uploads the data, runs the plan once and returns every tensor that it wrote.
    pub fn run(&mut self, plan: &Plan, data: &Tensors) -> Result<Tensors, BackendError> {
        let mut bound = BoundPlan::open(self, plan)?;
        bound.upload(data)?;
        bound.run()?;
        bound.download()
    }
}

/// A plan with its own memory on a device.
pub struct BoundPlan<'a> {
    device: &'a mut Device,
    plan: &'a Plan,
    buffers: Vec<BufferId>,
    arena: Vec<BufferId>,
    id: PlanId,
}

impl<'a> BoundPlan<'a> {
    pub fn open(device: &'a mut Device, plan: &'a Plan) -> Result<Self, BackendError> {
        let backend = device.backend();
        let externals = plan.externals.iter();
        let buffers = externals
            .map(|e| backend.alloc(e.ty.dtype, e.ty.numel(), &e.name))
            .collect::<Result<Vec<_>, BackendError>>()?;
        let segments = plan.arena_buffers().iter();
        let arena = segments
            .map(|bytes| backend.alloc(DType::F32, bytes / 4, "arena"))
            .collect::<Result<Vec<_>, BackendError>>()?;
        let id = backend.prepare(plan, &arena, &buffers)?;
        Ok(BoundPlan { device, plan, buffers, arena, id })
    }

    pub fn run(&mut self) -> Result<(), BackendError> {
        self.device.backend().run(self.id)
    }

    pub fn upload(&mut self, data: &Tensors) -> Result<(), BackendError> {
        for (external, &buffer) in self.plan.externals.iter().zip(&self.buffers) {
            let tensor = data.get(&external.name).unwrap_or_else(|| panic!("no data for `{}`", external.name));
            write(self.device, buffer, tensor)?;
        }
        Ok(())
    }

    pub fn write(&mut self, name: &str, tensor: &Tensor) -> Result<(), BackendError> {
        let i = self.plan.externals.iter().position(|e| e.name == name);
        write(self.device, self.buffers[i.unwrap_or_else(|| panic!("`{name}` is not in the plan"))], tensor)
    }

    /// Every external tensor that the plan writes.
    pub fn download(&mut self) -> Result<Tensors, BackendError> {
        let mut out = Tensors::new();
        for (i, external) in self.plan.externals.iter().enumerate() {
            if is_written(self.plan, i) {
                let mut tensor = Tensor::zeros(external.ty.clone());
                read(self.device, self.buffers[i], &mut tensor)?;
                out.insert(external.name.clone(), tensor);
            }
        }
        Ok(out)
    }
}

impl Drop for BoundPlan<'_> {
    fn drop(&mut self) {
        let backend = self.device.backend();
        backend.release(self.id);
        self.buffers.drain(..).chain(self.arena.drain(..)).for_each(|buffer| backend.free(buffer));
    }
}

fn is_written(plan: &Plan, external: usize) -> bool {
    let place = sparta_graph::Place::External(external);
    plan.calls.iter().any(|call| call.op.writes().iter().any(|&i| call.inputs[i].place == place))
}

fn write(device: &mut Device, buffer: BufferId, tensor: &Tensor) -> Result<(), BackendError> {
    match device {
        Device::Reference(backend) if tensor.ty.dtype == DType::F32 => backend.write_f64(buffer, 0, &tensor.values),
        _ => device.backend().write(buffer, 0, &tensor.bytes()),
    }
}

fn read(device: &mut Device, buffer: BufferId, tensor: &mut Tensor) -> Result<(), BackendError> {
    match device {
        Device::Reference(backend) if tensor.ty.dtype == DType::F32 => backend.read_f64(buffer, 0, &mut tensor.values),
        _ => {
            let mut bytes = vec![0; tensor.ty.bytes()];
            device.backend().read(buffer, 0, &mut bytes)?;
            *tensor = Tensor::from_bytes(tensor.ty.clone(), &bytes);
            Ok(())
        }
    }
}
