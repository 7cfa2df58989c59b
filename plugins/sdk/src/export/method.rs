use super::{Exported, guarded, host, request, respond};
use crate::Error;
use crate::abi::*;
use crate::method::{GraphBuilder, Method, MethodInfo, Options, Parameter, Site};
use serde::{Deserialize, Serialize};
use sparta_graph::{Op, Value};
use std::borrow::Cow;

/// The answer of `describe`.
#[derive(Serialize, Deserialize)]
pub struct Description<'a> {
    #[serde(flatten)]
    pub info: Cow<'a, MethodInfo>,
    /// [`Method::mergeable`]; plugins of earlier versions do not say so.
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
        let value = E::object().forward(&site, &mut HostGraph::new(call)?, Value(x), Value(w), &extra)?;
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
        let value = E::object().merge(&site, &mut HostGraph::new(call)?, Value(w), &extra)?;
        // SAFETY: the host passes a writable `u32`.
        unsafe { merged.write(value.0) };
        Ok(())
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
        let value = E::object().forward_with_bias(&site, &mut HostGraph::new(call)?, Value(x), layer, &extra)?;
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
        let both = E::object().merge_with_bias(&site, &mut HostGraph::new(call)?, layer, &extra)?;
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
        if let Some(term) = E::object().penalty(&site, &mut HostGraph::new(call)?, Value(w), &extra)? {
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
        let updated = E::object().update(&site, &mut HostGraph::new(call)?, &extra, Value(lr))?;
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

/// The host's graph during one call.
struct HostGraph {
    host: &'static SpartaHost,
    call: SpartaCall,
}

/// More than any operation has outputs, or any tensor dimensions.
const CAPACITY: usize = 8;

impl HostGraph {
    fn new(call: SpartaCall) -> Result<Self, Error> {
        let host = host().ok_or("the host has not called the entry function")?;
        Ok(HostGraph { host, call })
    }

    fn check(&self, status: SpartaStatus) -> Result<(), Error> {
        if status == OK {
            return Ok(());
        }
        // SAFETY: the host keeps the message until its next function is called; it is copied before that.
        let message = unsafe { (self.host.last_error)(self.call).as_slice() };
        Err(Error::new(String::from_utf8_lossy(message)))
    }
}

impl GraphBuilder for HostGraph {
    fn apply(&mut self, op: Op, inputs: &[Value]) -> Result<Vec<Value>, Error> {
        let op = serde_json::to_vec(&op).map_err(|e| Error::new(format!("cannot serialise the operation: {e}")))?;
        let inputs: Vec<u32> = inputs.iter().map(|v| v.0).collect();
        let (mut outputs, mut count) = ([0u32; CAPACITY], 0);
        // SAFETY: every pointer and length describes a live local, and the call is still running.
        self.check(unsafe {
            (self.host.graph_apply)(
                self.call,
                SpartaBytes::new(&op),
                inputs.as_ptr(),
                inputs.len(),
                outputs.as_mut_ptr(),
                CAPACITY,
                &mut count,
            )
        })?;
        Ok(outputs.iter().take(count).map(|&v| Value(v)).collect())
    }

    fn shape(&self, value: Value) -> Result<Vec<usize>, Error> {
        let (mut dims, mut rank) = ([0u64; CAPACITY], 0);
        // SAFETY: every pointer and length describes a live local, and the call is still running.
        self.check(unsafe { (self.host.graph_shape)(self.call, value.0, dims.as_mut_ptr(), CAPACITY, &mut rank) })?;
        Ok(dims.iter().take(rank).map(|&n| n as usize).collect())
    }

    fn rng(&mut self) -> Result<Value, Error> {
        let mut value = 0;
        // SAFETY: the pointer is a live local, and the call is still running.
        self.check(unsafe { (self.host.graph_rng)(self.call, &mut value) })?;
        Ok(Value(value))
    }
}
