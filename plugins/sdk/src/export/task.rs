use super::{Exported, guarded, guarded_close, request, respond, text};
use crate::Error;
use crate::abi::*;
use crate::task::{Dataset, Example, Examples, OpenRequest, Task};

pub const fn table<E: Exported<Object = dyn Task>>() -> SpartaTask {
    SpartaTask {
        size: size_of::<SpartaTask>(),
        describe: Some(describe::<E>),
        open: Some(open::<E>),
        recipe: Some(recipe),
        examples: Some(examples),
        next: Some(next),
        close_examples: Some(close_examples),
        close: Some(close),
    }
}

/// A batch ends with the example that brings its text to this many bytes.
const BATCH_BYTES: usize = 1 << 20;

/// What a data set's handle points to.
type DatasetHandle = Box<dyn Dataset>;

/// What an iterator's handle points to. It borrows from a data set, which the host closes only after the iterator.
struct Iteration {
    examples: Examples<'static>,
    /// An error that came after examples that must be delivered first.
    pending: Option<Error>,
}

unsafe extern "C" fn describe<E: Exported<Object = dyn Task>>(call: SpartaCall) -> SpartaStatus {
    guarded(call, || respond(call, &E::object().describe()))
}

unsafe extern "C" fn open<E: Exported<Object = dyn Task>>(
    call: SpartaCall,
    message: SpartaBytes,
    handle: *mut u64,
) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passed the message to this function.
        let message: OpenRequest = unsafe { request(message) }?;
        let dataset: DatasetHandle = E::object().open(&message)?;
        // SAFETY: the host passes a writable `u64`.
        unsafe { handle.write(Box::into_raw(Box::new(dataset)) as u64) };
        Ok(())
    })
}

unsafe extern "C" fn recipe(call: SpartaCall, dataset: u64) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passes a handle that `open` made and `close` has not freed.
        let dataset = unsafe { &*(dataset as *const DatasetHandle) };
        respond(call, &dataset.recipe())
    })
}

unsafe extern "C" fn examples(call: SpartaCall, dataset: u64, part: SpartaBytes, handle: *mut u64) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passes a handle that `open` made, and closes it only after the iterators made from it.
        let dataset: &'static DatasetHandle = unsafe { &*(dataset as *const DatasetHandle) };
        // SAFETY: the host passed the name to this function.
        let part = unsafe { text(part) }?;
        let iteration = Iteration { examples: dataset.examples(part)?, pending: None };
        // SAFETY: the host passes a writable `u64`.
        unsafe { handle.write(Box::into_raw(Box::new(iteration)) as u64) };
        Ok(())
    })
}

unsafe extern "C" fn next(call: SpartaCall, iterator: u64, max: usize) -> SpartaStatus {
    guarded(call, || {
        // SAFETY: the host passes a handle that `examples` made, from one thread at a time.
        let iteration = unsafe { &mut *(iterator as *mut Iteration) };
        respond(call, &iteration.next_batch(max)?)
    })
}

impl Iteration {
    fn next_batch(&mut self, max: usize) -> Result<Vec<Example>, Error> {
        if let Some(error) = self.pending.take() {
            return Err(error);
        }
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < max && bytes < BATCH_BYTES {
            let Some(example) = self.examples.next() else { break };
            match example {
                Ok(example) => {
                    bytes += example.texts().map(str::len).sum::<usize>();
                    batch.push(example);
                }
                Err(error) if batch.is_empty() => return Err(error),
                Err(error) => {
                    self.pending = Some(error);
                    break;
                }
            }
        }
        Ok(batch)
    }
}

unsafe extern "C" fn close_examples(iterator: u64) {
    // SAFETY: the host passes a handle that `examples` made, once.
    guarded_close(|| drop(unsafe { Box::from_raw(iterator as *mut Iteration) }));
}

unsafe extern "C" fn close(dataset: u64) {
    // SAFETY: the host passes a handle that `open` made, once.
    guarded_close(|| drop(unsafe { Box::from_raw(dataset as *mut DatasetHandle) }));
}
