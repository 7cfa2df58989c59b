//! Waiting for a device. Code in a browser must not block: there the WebAssembly stack is suspended until a promise settles
//! (JavaScript Promise Integration), so that callers need not be asynchronous.

#[cfg(all(target_family = "wasm", target_os = "unknown"))]
mod browser;
#[cfg(not(all(target_family = "wasm", target_os = "unknown")))]
mod native;

#[cfg(all(target_family = "wasm", target_os = "unknown"))]
pub(crate) use browser::{Submitted, block_on};
#[cfg(not(all(target_family = "wasm", target_os = "unknown")))]
pub(crate) use native::{Submitted, block_on};

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Whether this is compiled for a browser, the one platform of WebAssembly without an operating system.
pub(crate) const IN_BROWSER: bool = cfg!(all(target_family = "wasm", target_os = "unknown"));

/// A value that a callback of the device delivers once.
pub(crate) struct Signal<T>(Arc<Mutex<State<T>>>);

struct State<T> {
    value: Option<T>,
    waker: Option<Waker>,
}

impl<T> Signal<T> {
    pub fn new() -> Self {
        Signal(Arc::new(Mutex::new(State { value: None, waker: None })))
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set(&self, value: T) {
        let mut state = self.lock();
        state.value = Some(value);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The value, if it is there.
    pub fn take(&self) -> Option<T> {
        self.lock().value.take()
    }
}

impl<T> Clone for Signal<T> {
    fn clone(&self) -> Self {
        Signal(self.0.clone())
    }
}

impl<T> Future for Signal<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut state = self.lock();
        match state.value.take() {
            Some(value) => Poll::Ready(value),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl std::fmt::Debug for Submitted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Submitted")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_wakes_whoever_waits_for_it() {
        let signal = Signal::new();
        let set = signal.clone();
        let waiting = std::thread::spawn(move || block_on(signal));
        set.set(7);
        assert_eq!(waiting.join().ok(), Some(7));
        assert_eq!(set.take(), None);
    }
}
