use super::{Exported, guarded, host, request, respond};
use crate::Error;
use crate::abi::*;
use crate::method::{GraphBuilder, Method, MethodInfo, Options, Parameter, Site, StepInfo, StepTensors};
use serde::{Deserialize, Serialize};
use sparta_graph::ops::CpuFunction;
use sparta_graph::{Op, Value};
use std::borrow::Cow;

/// The answer of `describe`.
#[derive(Serialize, Deserialize)]
pub struct Description<'a> {
    #[serde(flatten)]
    pub info: Cow<'a, MethodInfo>,
    /// [`Method::mergeable`]; plugins built with earlier versions leave it out.
    #[serde(default = "yes")]
    pub mergeable: bool,
}

fn yes() -> bool {
    true
}

/// The request of `select`.
#[derive(Serialize, Deserialize)]
pub struct SelectRequest<'a> {
    pub parameters: Cow<'a, [Parameter]>,
    pub options: Cow<'a, Options>,
}

pub const fn table<E: Exported<Object = dyn Method>>() -> SpartaMethod {
    SpartaMethod {
        size: size_of::<SpartaMethod>(),
        describe: Some(describe::<E>),
        select: Some(select::<E>),
        forward: Some(forward::<E>),
        merge: Some(merge::<E>),
        forward_with_bias: Some(forward_with_bias::<E>),
        merge_with_bias: Some(merge_with_bias::<E>),
        penalty: Some(penalty::<E>),
        update: Some(update::<E>),
        steps: Some(steps::<E>),
        on_step: Some(on_step::<E>),
    }
}

unsafe extern "C" fn describe<E: Exported<Object = dyn Method>>(call: SpartaCall) -> SpartaStatus {
    guarded(call, || {
        let method = E::object();
        respond(call, &Description { info: Cow::Owned(method.describe()), mergeable: method.mergeable() })
    })
}

unsafe extern "C" fn select<E: Exported<Object = dyn Method>>(call: SpartaCall, message: SpartaBytes) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passed the message to this function.
        let message: SelectRequest = unsafe { request(message) }?;
        respond(call, &E::object().select(&message.parameters, &message.options)?)
    })
}

unsafe extern "C" fn forward<E: Exported<Object = dyn Method>>(
    call: SpartaCall,
    site: SpartaBytes,
    x: u32,
    w: u32,
    extra: *const u32,
    extra_count: usize,
    y: *mut u32,
) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passed the message and the array to this function.
        let (site, extra): (Site, _) = unsafe { (request(site)?, values(extra, extra_count)) };
        let value = E::object().forward(&site, &mut HostGraph(HostCall::new(call)?), Value(x), Value(w), &extra)?;
        // SAFETY: the host passes a writable `u32`.
        unsafe { y.write(value.0) };
        Ok(())
    })
}

unsafe extern "C" fn merge<E: Exported<Object = dyn Method>>(
    call: SpartaCall,
    site: SpartaBytes,
    w: u32,
    extra: *const u32,
    extra_count: usize,
    merged: *mut u32,
) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passed the message and the array to this function.
        let (site, extra): (Site, _) = unsafe { (request(site)?, values(extra, extra_count)) };
        let value = E::object().merge(&site, &mut HostGraph(HostCall::new(call)?), Value(w), &extra)?;
        // SAFETY: the host passes a writable `u32`.
        unsafe { merged.write(value.0) };
        Ok(())
    })
}

unsafe extern "C" fn steps<E: Exported<Object = dyn Method>>(call: SpartaCall, options: SpartaBytes) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passed the message to this function.
        let options: Options = unsafe { request(options) }?;
        respond(call, &E::object().steps(&options)?)
    })
}

unsafe extern "C" fn on_step<E: Exported<Object = dyn Method>>(call: SpartaCall, step: SpartaBytes) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passed the message to this function.
        let step: StepInfo = unsafe { request(step) }?;
        respond(call, &E::object().on_step(&step, &mut HostTensors(HostCall::new(call)?))?)
    })
}

unsafe extern "C" fn forward_with_bias<E: Exported<Object = dyn Method>>(
    call: SpartaCall,
    site: SpartaBytes,
    x: u32,
    w: u32,
    bias: u32,
    extra: *const u32,
    extra_count: usize,
    y: *mut u32,
) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passed the message and the array to this function.
        let (site, extra): (Site, _) = unsafe { (request(site)?, values(extra, extra_count)) };
        let layer = [Value(w), Value(bias)];
        let value =
            E::object().forward_with_bias(&site, &mut HostGraph(HostCall::new(call)?), Value(x), layer, &extra)?;
        // SAFETY: the host passes a writable `u32`.
        unsafe { y.write(value.0) };
        Ok(())
    })
}

unsafe extern "C" fn merge_with_bias<E: Exported<Object = dyn Method>>(
    call: SpartaCall,
    site: SpartaBytes,
    w: u32,
    bias: u32,
    extra: *const u32,
    extra_count: usize,
    merged: *mut [u32; 2],
) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passed the message and the array to this function.
        let (site, extra): (Site, _) = unsafe { (request(site)?, values(extra, extra_count)) };
        let layer = [Value(w), Value(bias)];
        let both = E::object().merge_with_bias(&site, &mut HostGraph(HostCall::new(call)?), layer, &extra)?;
        // SAFETY: the host passes two writable `u32`.
        unsafe { merged.write(both.map(|value| value.0)) };
        Ok(())
    })
}

unsafe extern "C" fn penalty<E: Exported<Object = dyn Method>>(
    call: SpartaCall,
    site: SpartaBytes,
    w: u32,
    extra: *const u32,
    extra_count: usize,
    value: *mut u32,
) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passed the message and the array to this function.
        let (site, extra): (Site, _) = unsafe { (request(site)?, values(extra, extra_count)) };
        if let Some(term) = E::object().penalty(&site, &mut HostGraph(HostCall::new(call)?), Value(w), &extra)? {
            // SAFETY: the host passes a writable `u32`.
            unsafe { value.write(term.0) };
        }
        Ok(())
    })
}

unsafe extern "C" fn update<E: Exported<Object = dyn Method>>(
    call: SpartaCall,
    site: SpartaBytes,
    lr: u32,
    values: *mut u32,
    value_count: usize,
) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passed the message and the array to this function.
        let (site, extra): (Site, _) = unsafe { (request(site)?, self::values(values, value_count)) };
        let updated = E::object().update(&site, &mut HostGraph(HostCall::new(call)?), &extra, Value(lr))?;
        if updated.len() != extra.len() {
            let (got, expected) = (updated.len(), extra.len());
            return Err(Error::new(format!("`update` gave {got} values, expected one for each of {expected} tensors")));
        }
        for (i, value) in updated.into_iter().enumerate() {
            // SAFETY: the host passes an array of `value_count` writable `u32`, and `i` is below that.
            unsafe { values.add(i).write(value.0) };
        }
        Ok(())
    })
}

/// # Safety
/// `data` and `count` are an array that the host passed to the ABI function that is running.
unsafe fn values(data: *const u32, count: usize) -> Vec<Value> {
    // SAFETY: the caller vouches for it.
    unsafe { slice(data, count) }.iter().map(|&v| Value(v)).collect()
}

/// The host during one call.
#[derive(Clone, Copy)]
struct HostCall {
    host: &'static SpartaHost,
    call: SpartaCall,
}

impl HostCall {
    fn new(call: SpartaCall) -> Result<Self, Error> {
        let host = host().ok_or("the host has not called the entry function")?;
        Ok(HostCall { host, call })
    }

    fn check(&self, status: SpartaStatus) -> Result<(), Error> {
        if status == OK {
            return Ok(());
        }
        // SAFETY: the host keeps the message until its next function is called, and it is copied before that.
        let message = unsafe { (self.host.last_error)(self.call).as_slice() };
        Err(Error::new(String::from_utf8_lossy(message)))
    }
}

/// The host's graph during one call.
struct HostGraph(HostCall);

/// More outputs than any operation has, and more dimensions than any tensor has.
const CAPACITY: usize = 8;

impl GraphBuilder for HostGraph {
    fn apply(&mut self, op: Op, inputs: &[Value]) -> Result<Vec<Value>, Error> {
        let function = match &op {
            Op::Own(own) => own.0.function.map(CpuFunction::raw),
            _ => None,
        };
        let op = serde_json::to_vec(&op).map_err(|e| Error::new(format!("cannot serialise the operation: {e}")))?;
        let inputs: Vec<u32> = inputs.iter().map(|v| v.0).collect();
        let (mut outputs, mut count) = ([0u32; CAPACITY], 0);
        let (HostCall { host, call }, op) = (self.0, SpartaBytes::new(&op));
        let (all, given, made) = (inputs.as_ptr(), inputs.len(), outputs.as_mut_ptr());
        // SAFETY: every pointer and length describes a live local, and the call is still running.
        self.0.check(unsafe { (host.graph_own)(call, op, function, all, given, made, CAPACITY, &mut count) })?;
        Ok(outputs.iter().take(count).map(|&v| Value(v)).collect())
    }

    fn shape(&self, value: Value) -> Result<Vec<usize>, Error> {
        let (mut dims, mut rank) = ([0u64; CAPACITY], 0);
        // SAFETY: every pointer and length describes a live local, and the call is still running.
        self.0.check(unsafe {
            (self.0.host.graph_shape)(self.0.call, value.0, dims.as_mut_ptr(), CAPACITY, &mut rank)
        })?;
        Ok(dims.iter().take(rank).map(|&n| n as usize).collect())
    }

    fn rng(&mut self) -> Result<Value, Error> {
        let mut value = 0;
        // SAFETY: the pointer is a live local, and the call is still running.
        self.0.check(unsafe { (self.0.host.graph_rng)(self.0.call, &mut value) })?;
        Ok(Value(value))
    }
}

/// The tensors of a step during one call.
struct HostTensors(HostCall);

impl HostTensors {
    fn bytes(&mut self, what: &str, name: &str) -> Result<Vec<u8>, Error> {
        let HostCall { host, call } = self.0;
        let (mut bytes, mut count) = (Vec::new(), 0);
        // The first call learns the size, the second gets the content, which the host has kept.
        for _ in 0..2 {
            bytes.resize(count, 0u8);
            let (what, name) = (SpartaBytes::new(what.as_bytes()), SpartaBytes::new(name.as_bytes()));
            // SAFETY: every pointer and length describes a live local, and the call is still running.
            self.0.check(unsafe { (host.step_read)(call, what, name, bytes.as_mut_ptr(), bytes.len(), &mut count) })?;
        }
        Ok(bytes)
    }

    fn write(&mut self, what: &str, name: &str, data: &[u8]) -> Result<(), Error> {
        let HostCall { host, call } = self.0;
        let [what, name] = [what, name].map(|text| SpartaBytes::new(text.as_bytes()));
        // SAFETY: every pointer and length describes a live local, and the call is still running.
        self.0.check(unsafe { (host.step_write)(call, what, name, SpartaBytes::new(data)) })
    }
}

/// Little-endian words of four bytes.
fn words<T>(bytes: &[u8], read: fn([u8; 4]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|&word| read(word)).collect()
}

impl StepTensors for HostTensors {
    fn read(&mut self, what: &str, name: &str) -> Result<Vec<f32>, Error> {
        Ok(words(&self.bytes(what, name)?, f32::from_le_bytes))
    }

    fn indices(&mut self, name: &str) -> Result<Vec<u32>, Error> {
        Ok(words(&self.bytes("indices", name)?, u32::from_le_bytes))
    }

    fn set(&mut self, name: &str, values: &[f32]) -> Result<(), Error> {
        self.write("values", name, &values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
    }

    fn replace(&mut self, name: &str, indices: &[u32]) -> Result<(), Error> {
        self.write("indices", name, &indices.iter().flat_map(|i| i.to_le_bytes()).collect::<Vec<u8>>())
    }
}
