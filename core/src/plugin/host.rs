//! The host's table of functions, and the state of running calls.
//!
//! A call is identified by an integer, looked up among the calls of the current thread, so a plugin that keeps one or
//! passes it to another thread gets an error instead of access to foreign memory.

use super::library::unreadable;
use sparta_graph::ops::CpuFunction;
use sparta_plugin::abi::*;
use sparta_plugin::export::panic_message;
use sparta_plugin::graph::{Op, Value};
use sparta_plugin::method::{GraphBuilder, StepTensors};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub static HOST: SpartaHost = SpartaHost {
    size: size_of::<SpartaHost>(),
    abi_major: ABI_MAJOR,
    abi_minor: ABI_MINOR,
    error,
    result,
    last_error,
    graph_apply,
    graph_shape,
    graph_rng,
    step_read,
    step_write,
    graph_own,
};

/// The graph that a call may build on; only dereferenced while [`call`] holds the `&mut` it was made from.
type GraphPointer = *mut (dyn GraphBuilder + 'static);
/// The tensors that a call may read and change; as above.
type TensorsPointer = *mut (dyn StepTensors + 'static);

#[derive(Default)]
struct State {
    result: Vec<u8>,
    /// Why the result was rejected.
    refused: Option<String>,
    error: Option<String>,
    /// The message of the latest host function that failed.
    host_error: String,
    graph: Option<GraphPointer>,
    tensors: Option<TensorsPointer>,
    /// The last read tensor and its bytes: a plugin asks once for the size and once for the content.
    read: Option<([Vec<u8>; 2], Vec<u8>)>,
}

thread_local! {
    static CALLS: RefCell<HashMap<SpartaCall, State>> = RefCell::default();
    static NEXT: Cell<SpartaCall> = const { Cell::new(1) };
}

/// The most bytes of a plugin's answer: the size of a batch of the longest texts.
const ANSWER: usize = 256 << 20;
/// The most bytes of a plugin's message.
const MESSAGE: usize = 1 << 16;

/// Calls a plugin's function and returns its result as bytes, or its error message, `None` if it gave none.
pub fn call(
    graph: Option<&mut dyn GraphBuilder>,
    function: impl FnOnce(SpartaCall) -> SpartaStatus,
) -> Result<Vec<u8>, Option<String>> {
    // SAFETY: only the lifetime changes; the state that holds the pointer is removed before this function returns.
    let graph = graph.map(|g| unsafe { std::mem::transmute::<&mut dyn GraphBuilder, GraphPointer>(g) });
    run(State { graph, ..State::default() }, function)
}

/// [`call`] of a function that reads and changes tensors. Fails if a change was refused, even if the plugin reports
/// success.
pub fn call_on_step(
    tensors: &mut dyn StepTensors,
    function: impl FnOnce(SpartaCall) -> SpartaStatus,
) -> Result<Vec<u8>, Option<String>> {
    // SAFETY: only the lifetime changes; the state that holds the pointer is removed before this function returns.
    let tensors = unsafe { std::mem::transmute::<&mut dyn StepTensors, TensorsPointer>(tensors) };
    run(State { tensors: Some(tensors), ..State::default() }, function)
}

fn run(state: State, function: impl FnOnce(SpartaCall) -> SpartaStatus) -> Result<Vec<u8>, Option<String>> {
    let id = NEXT.replace(NEXT.get() + 1);
    CALLS.with_borrow_mut(|calls| calls.insert(id, state));
    let status = function(id);
    let state = CALLS.with_borrow_mut(|calls| calls.remove(&id)).unwrap_or_default();
    match status {
        OK => state.refused.map_or(Ok(state.result), |why| Err(Some(why))),
        _ => Err(state.error),
    }
}

fn with_state<T>(call: SpartaCall, f: impl FnOnce(&mut State) -> T) -> Option<T> {
    CALLS.with_borrow_mut(|calls| calls.get_mut(&call).map(f))
}

unsafe extern "C" fn error(call: SpartaCall, message: SpartaBytes) {
    // SAFETY: the plugin passes bytes that live until this function returns.
    let message = unsafe { message.as_slice() };
    let message = String::from_utf8_lossy(&message[..message.len().min(MESSAGE)]).into_owned();
    with_state(call, |state| state.error = Some(message));
}

unsafe extern "C" fn result(call: SpartaCall, bytes: SpartaBytes) {
    // SAFETY: the plugin passes bytes that live until this function returns.
    let bytes = unsafe { bytes.as_slice() };
    with_state(call, |state| match bytes.len() {
        0..=ANSWER => state.result = bytes.to_vec(),
        size => state.refused = Some(format!("its answer has {size} bytes, at most {ANSWER} are allowed")),
    });
}

unsafe extern "C" fn last_error(call: SpartaCall) -> SpartaBytes {
    with_state(call, |state| SpartaBytes::new(state.host_error.as_bytes())).unwrap_or(SpartaBytes::new(&[]))
}

/// Runs `body` on the part of the call's state selected by `of`; an error or panic becomes the call's `last_error`.
fn on<P: Copy>(
    call: SpartaCall,
    of: fn(&mut State) -> &mut Option<P>,
    elsewhere: &str,
    body: impl FnOnce(P) -> Result<(), String>,
) -> SpartaStatus {
    // Taken out while in use, so that a nested host function does not find it.
    let Some(Some(pointer)) = with_state(call, |state| of(state).take()) else {
        with_state(call, |state| state.host_error = elsewhere.into());
        return FAILED;
    };
    let failure = match catch_unwind(AssertUnwindSafe(|| body(pointer))) {
        Ok(Ok(())) => None,
        Ok(Err(message)) => Some(message),
        Err(panic) => Some(format!("the host panicked: {}", panic_message(&*panic))),
    };
    let status = if failure.is_none() { OK } else { FAILED };
    with_state(call, |state| {
        *of(state) = Some(pointer);
        state.host_error = failure.unwrap_or_default();
    });
    status
}

fn on_graph(call: SpartaCall, body: impl FnOnce(&mut dyn GraphBuilder) -> Result<(), String>) -> SpartaStatus {
    let elsewhere =
        "graph functions can be called only in the functions of a method that get values, on the thread of the call";
    // SAFETY: `host::call` is still on this thread's stack and holds the borrow; nobody else uses the pointer, because
    // it was taken out of the state.
    on(call, |state| &mut state.graph, elsewhere, |graph| body(unsafe { &mut *graph }))
}

fn on_tensors(call: SpartaCall, body: impl FnOnce(&mut dyn StepTensors) -> Result<(), String>) -> SpartaStatus {
    let elsewhere = "step_read and step_write can be called only in on_step, on the thread of the call";
    // SAFETY: as in `on_graph`, with `host::call_on_step`.
    on(call, |state| &mut state.tensors, elsewhere, |tensors| body(unsafe { &mut *tensors }))
}

unsafe extern "C" fn graph_apply(
    call: SpartaCall,
    op: SpartaBytes,
    inputs: *const u32,
    input_count: usize,
    outputs: *mut u32,
    capacity: usize,
    output_count: *mut usize,
) -> SpartaStatus {
    // SAFETY: the arguments are those that the plugin passed to this function, without a function of its own.
    unsafe { graph_own(call, op, None, inputs, input_count, outputs, capacity, output_count) }
}

unsafe extern "C" fn graph_own(
    call: SpartaCall,
    op: SpartaBytes,
    function: Option<OwnFunction>,
    inputs: *const u32,
    input_count: usize,
    outputs: *mut u32,
    capacity: usize,
    output_count: *mut usize,
) -> SpartaStatus {
    on_graph(call, |graph| {
        // SAFETY: the plugin passes bytes and an array that live until this function returns.
        let (op, inputs) = unsafe { (op.as_slice(), slice(inputs, input_count)) };
        let mut op: Op = serde_json::from_slice(op).map_err(|e| {
            format!("not an operation of this host: {}: {}", unreadable(&e), String::from_utf8_lossy(op))
        })?;
        if output_count.is_null() || (outputs.is_null() && capacity > 0) {
            return Err("there is no place for the outputs of an operation: a pointer is null".into());
        }
        let name = op.name();
        match (&mut op, function) {
            (_, None) => {}
            // SAFETY: the plugin passes a function of this operation, as the header says; libraries stay loaded.
            (Op::Own(own), Some(function)) => own.0.function = Some(unsafe { CpuFunction::new(function) }),
            _ => {
                return Err(format!(
                    "a function can only be given for one of the plugin's own operations, not for `{name}`"
                ));
            }
        }
        let inputs: Vec<Value> = inputs.iter().map(|&v| Value(v)).collect();
        let values = graph.apply(op, &inputs).map_err(|e| e.0)?;
        if values.len() > capacity {
            return Err(format!("{name} has {} outputs, the plugin has room for {capacity}", values.len()));
        }
        for (i, value) in values.iter().enumerate() {
            // SAFETY: the plugin passes an array of `capacity` writable elements, and `i` is below that.
            unsafe { outputs.add(i).write(value.0) };
        }
        // SAFETY: the plugin passes a writable `size_t`.
        unsafe { output_count.write(values.len()) };
        Ok(())
    })
}

unsafe extern "C" fn graph_shape(
    call: SpartaCall,
    value: u32,
    dims: *mut u64,
    capacity: usize,
    rank: *mut usize,
) -> SpartaStatus {
    on_graph(call, |graph| {
        if rank.is_null() || (dims.is_null() && capacity > 0) {
            return Err("graph_shape: there is no place for the shape: a pointer is null".into());
        }
        let shape = graph.shape(Value(value)).map_err(|e| e.0)?;
        if shape.len() > capacity {
            return Err(format!("the value has {} dimensions, the plugin has room for {capacity}", shape.len()));
        }
        for (i, &n) in shape.iter().enumerate() {
            // SAFETY: the plugin passes an array of `capacity` writable elements, and `i` is below that.
            unsafe { dims.add(i).write(n as u64) };
        }
        // SAFETY: the plugin passes a writable `size_t`.
        unsafe { rank.write(shape.len()) };
        Ok(())
    })
}

unsafe extern "C" fn graph_rng(call: SpartaCall, value: *mut u32) -> SpartaStatus {
    on_graph(call, |graph| {
        if value.is_null() {
            return Err("graph_rng: there is no place for the value: the pointer is null".into());
        }
        let rng = graph.rng().map_err(|e| e.0)?;
        // SAFETY: the plugin passes a writable `uint32_t`.
        unsafe { value.write(rng.0) };
        Ok(())
    })
}

/// # Safety
/// `bytes` is what the plugin passed to the host function that is running.
unsafe fn utf8<'a>(bytes: SpartaBytes) -> Result<&'a str, String> {
    // SAFETY: the caller vouches for it.
    std::str::from_utf8(unsafe { bytes.as_slice() }).map_err(|e| format!("a name is not UTF-8: {e}"))
}

unsafe extern "C" fn step_read(
    call: SpartaCall,
    what: SpartaBytes,
    name: SpartaBytes,
    out: *mut u8,
    capacity: usize,
    byte_count: *mut usize,
) -> SpartaStatus {
    on_tensors(call, |tensors| {
        if byte_count.is_null() || (out.is_null() && capacity > 0) {
            return Err("step_read: there is no place for the elements: a pointer is null".into());
        }
        // SAFETY: the plugin passes bytes that live until this function returns.
        let (what, name) = unsafe { (utf8(what)?, utf8(name)?) };
        let key = [what, name].map(|text| text.as_bytes().to_vec());
        let kept = with_state(call, |state| state.read.take()).flatten().filter(|(of, _)| *of == key);
        let bytes = match kept {
            Some((_, bytes)) => bytes,
            None if what == "indices" => bytemuck::cast_slice(&tensors.indices(name).map_err(|e| e.0)?).to_vec(),
            None => bytemuck::cast_slice(&tensors.read(what, name).map_err(|e| e.0)?).to_vec(),
        };
        // SAFETY: the plugin passes a writable `size_t`, and `capacity` writable bytes.
        unsafe {
            byte_count.write(bytes.len());
            if capacity >= bytes.len() {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), out, bytes.len());
                return Ok(());
            }
        }
        with_state(call, |state| state.read = Some((key, bytes)));
        Ok(())
    })
}

unsafe extern "C" fn step_write(
    call: SpartaCall,
    what: SpartaBytes,
    name: SpartaBytes,
    data: SpartaBytes,
) -> SpartaStatus {
    let status = on_tensors(call, |tensors| {
        // SAFETY: the plugin passes bytes that live until this function returns.
        let (what, name, data) = unsafe { (utf8(what)?, utf8(name)?, data.as_slice()) };
        let (words, []) = data.as_chunks() else {
            return Err(format!("{name}: {} bytes are not a whole number of 4-byte elements", data.len()));
        };
        let changed = match what {
            "values" => tensors.set(name, &words.iter().map(|&word| f32::from_le_bytes(word)).collect::<Vec<_>>()),
            "indices" => tensors.replace(name, &words.iter().map(|&word| u32::from_le_bytes(word)).collect::<Vec<_>>()),
            _ => return Err(format!("`{what}` cannot be changed, only `values` and `indices`")),
        };
        changed.map_err(|e| e.0)
    });
    if status != OK {
        with_state(call, |state| state.refused.get_or_insert(state.host_error.clone()).len());
    }
    status
}
