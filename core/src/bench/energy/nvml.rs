//! The energy counter of an NVIDIA card, from the driver's management library, which is loaded when it is needed.

use libloading::Library;
use std::ffi::{CString, c_char, c_int, c_void};

#[cfg(windows)]
const LIBRARY: &str = "nvml.dll";
#[cfg(not(windows))]
const LIBRARY: &str = "libnvidia-ml.so.1";

/// A code of the library; 0 is success.
type Code = c_int;
type Device = *mut c_void;
type Plain = unsafe extern "C" fn() -> Code;
type ByAddress = unsafe extern "C" fn(*const c_char, *mut Device) -> Code;
/// Millijoules since the driver was loaded.
type Energy = unsafe extern "C" fn(Device, *mut u64) -> Code;

/// An open card.
pub struct Card {
    device: Device,
    energy: Energy,
    shutdown: Plain,
    /// Outlives the functions, which are copied out of it.
    _library: Library,
}

impl Card {
    /// The card at a PCI address such as `0000:01:00.0`; `None` without the library, or if it does not know the card.
    pub fn at(address: &str) -> Option<Card> {
        let address = CString::new(address).ok()?;
        // SAFETY: NVIDIA's library has no initialisers with requirements of their own.
        let library = unsafe { Library::new(LIBRARY) }.ok()?;
        // SAFETY: the functions have these types since the library's first 64-bit versions, and `Card` keeps the library.
        let (init, shutdown, by_address, energy) = unsafe {
            (
                *library.get::<Plain>(b"nvmlInit_v2\0").ok()?,
                *library.get::<Plain>(b"nvmlShutdown\0").ok()?,
                *library.get::<ByAddress>(b"nvmlDeviceGetHandleByPciBusId_v2\0").ok()?,
                *library.get::<Energy>(b"nvmlDeviceGetTotalEnergyConsumption\0").ok()?,
            )
        };
        // SAFETY: it may be called at any time; each success is paired with a shutdown, in `drop`.
        if unsafe { init() } != 0 {
            return None;
        }
        let mut card = Card { device: std::ptr::null_mut(), energy, shutdown, _library: library };
        // SAFETY: the address ends with a zero, and the handle is written to a live local.
        let found = unsafe { by_address(address.as_ptr(), &mut card.device) };
        (found == 0).then_some(card)
    }

    /// `None`: a card older than Volta, which does not count.
    pub fn microjoules(&self) -> Option<f64> {
        let mut millijoules = 0;
        // SAFETY: the handle is valid until the shutdown, and the pointer is to a live local.
        let read = unsafe { (self.energy)(self.device, &mut millijoules) };
        (read == 0).then_some(millijoules as f64 * 1e3)
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        // SAFETY: the library was initialised once for this card, and no other handle to it is left here.
        unsafe { (self.shutdown)() };
    }
}
