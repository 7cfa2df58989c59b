//! The plugin's side of the C ABI: implements the functions of [`crate::abi`] over safe traits. Used through the export
//! macros.

use crate::Error;
use crate::abi::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicPtr, Ordering};

#[doc(hidden)]
pub mod backend;
#[doc(hidden)]
pub mod communicator;
#[doc(hidden)]
pub mod method;
#[doc(hidden)]
pub mod task;

/// The object behind an exported interface, made when the host first asks for it.
pub trait Exported: 'static {
    /// `dyn Method`, `dyn Task`, `dyn BackendPlugin` or `dyn CommunicatorPlugin`.
    type Object: ?Sized + 'static;
    /// The one instance, made on the first call.
    fn object() -> &'static Self::Object;
}

static HOST: AtomicPtr<SpartaHost> = AtomicPtr::new(std::ptr::null_mut());

/// Remembers the host that loads this library if it speaks our ABI; if not, the host rejects us by our version.
///
/// # Safety
/// `host` is what the host passed to the entry function.
pub unsafe fn enter(host: *const SpartaHost) {
    if host.is_null() {
        return;
    }
    // SAFETY: in every version a host starts with `size`, `abi_major`, and lives as long as the process.
    let (size, major) = unsafe { ((&raw const (*host).size).read(), (&raw const (*host).abi_major).read()) };
    if major == ABI_MAJOR && size >= size_of::<SpartaHost>() {
        HOST.store(host.cast_mut(), Ordering::Release);
    }
}

fn host() -> Option<&'static SpartaHost> {
    // SAFETY: `enter` stored null or a host that lives as long as the process.
    unsafe { HOST.load(Ordering::Acquire).as_ref() }
}

/// Runs the body of an ABI function: its error, or the message of its panic, goes to the host.
fn guarded(call: SpartaCall, body: impl FnOnce() -> Result<(), Error>) -> SpartaStatus {
    let message = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return OK,
        Ok(Err(error)) => error.0,
        Err(panic) => format!("the plugin panicked: {}", panic_message(&*panic)),
    };
    if let Some(host) = host() {
        // SAFETY: `call` came from the host, and the bytes live until the function returns.
        unsafe { (host.error)(call, SpartaBytes::new(message.as_bytes())) };
    }
    FAILED
}

/// Runs the body of an ABI function that cannot fail; a panic in it ends here.
fn guarded_close(body: impl FnOnce()) {
    // The panic hook has already printed the message, and nothing else can be done about a failing destructor.
    let _ = catch_unwind(AssertUnwindSafe(body));
}

/// The message of a caught panic.
pub fn panic_message(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text,
        (None, None) => "no message",
    }
}

/// Hands a message to the host as the result of the call.
fn respond<T: Serialize + ?Sized>(call: SpartaCall, message: &T) -> Result<(), Error> {
    let json = serde_json::to_vec(message).map_err(|e| Error::new(format!("cannot serialise the answer: {e}")))?;
    let host = host().ok_or("the host has not called the entry function")?;
    // SAFETY: `call` came from the host, and the bytes live until the function returns.
    unsafe { (host.result)(call, SpartaBytes::new(&json)) };
    Ok(())
}

/// # Safety
/// `bytes` is what the host passed to the ABI function that is running.
unsafe fn request<T: DeserializeOwned>(bytes: SpartaBytes) -> Result<T, Error> {
    // SAFETY: the caller vouches for it.
    let bytes = unsafe { bytes.as_slice() };
    serde_json::from_slice(bytes).map_err(|e| Error::new(format!("the plugin does not understand the request: {e}")))
}

/// # Safety
/// `bytes` is what the host passed to the ABI function that is running.
unsafe fn text<'a>(bytes: SpartaBytes) -> Result<&'a str, Error> {
    // SAFETY: the caller vouches for it.
    let bytes = unsafe { bytes.as_slice() };
    std::str::from_utf8(bytes).map_err(|e| Error::new(format!("the request is not UTF-8: {e}")))
}

/// Defines an entry function `$name` for one interface; only the export macros give it the name that hosts look for.
#[doc(hidden)]
#[macro_export]
macro_rules! __entry {
    ($(#[$attribute:meta])* $name:ident, $interface:ident, $id:ident, $table:ident, $object:ty, $value:expr) => {
        /// The entry point of this plugin library.
        ///
        /// # Safety
        /// `host` is null or a host's table that lives as long as the process.
        $(#[$attribute])*
        pub unsafe extern "C" fn $name(host: *const $crate::abi::SpartaHost) -> *const $crate::abi::SpartaPlugin {
            use $crate::abi::{InterfaceList, SpartaBytes, SpartaInterface, SpartaPlugin, $table};
            struct Export;
            impl $crate::export::Exported for Export {
                type Object = $object;
                fn object() -> &'static $object {
                    static OBJECT: std::sync::OnceLock<Box<$object>> = std::sync::OnceLock::new();
                    &**OBJECT.get_or_init(|| Box::new($value))
                }
            }
            static TABLE: $table = $crate::export::$interface::table::<Export>();
            static INTERFACE: SpartaInterface = SpartaInterface {
                size: size_of::<SpartaInterface>(),
                id: SpartaBytes::new($crate::abi::$id.as_bytes()),
                table: (&raw const TABLE).cast(),
            };
            static INTERFACES: InterfaceList<1> = InterfaceList([&raw const INTERFACE]);
            static PLUGIN: SpartaPlugin = SpartaPlugin {
                size: size_of::<SpartaPlugin>(),
                abi_major: $crate::abi::ABI_MAJOR,
                abi_minor: $crate::abi::ABI_MINOR,
                interface_count: 1,
                interfaces: (&raw const INTERFACES).cast(),
            };
            // SAFETY: the pointer is what the host passed to this entry function.
            unsafe { $crate::export::enter(host) };
            &raw const PLUGIN
        }
    };
}

/// Makes this `cdylib` a plugin whose method is the given [`Method`](crate::method::Method). Once per library.
///
/// `export_method!(entry: Lora)` defines a public function `entry` instead, and exports nothing: a program can link
/// many such crates and call their entry points itself, and [`export_entry!`](crate::export_entry!) makes a library
/// of one.
#[macro_export]
macro_rules! export_method {
    ($name:ident: $method:expr) => {
        $crate::__entry!($name, method, METHOD_ID, SpartaMethod, dyn $crate::method::Method, $method);
    };
    ($method:expr) => {
        $crate::__entry!(
            #[unsafe(no_mangle)]
            sparta_plugin_entry,
            method,
            METHOD_ID,
            SpartaMethod,
            dyn $crate::method::Method,
            $method
        );
    };
}

/// Makes this `cdylib` a plugin whose tasks are those of the given [`Task`](crate::task::Task). Once per library.
///
/// `export_task!(entry: Glue)` defines a public function `entry` instead, and exports nothing: a program can link
/// many such crates and call their entry points itself, and [`export_entry!`](crate::export_entry!) makes a library
/// of one.
#[macro_export]
macro_rules! export_task {
    ($name:ident: $task:expr) => {
        $crate::__entry!($name, task, TASK_ID, SpartaTask, dyn $crate::task::Task, $task);
    };
    ($task:expr) => {
        $crate::__entry!(
            #[unsafe(no_mangle)]
            sparta_plugin_entry,
            task,
            TASK_ID,
            SpartaTask,
            dyn $crate::task::Task,
            $task
        );
    };
}

/// Makes this `cdylib` a plugin whose backend is the given [`BackendPlugin`](crate::backend::BackendPlugin). Once per
/// library.
///
/// `export_backend!(entry: Cpu)` defines a public function `entry` instead, and exports nothing: a program can link
/// many such crates and call their entry points itself, and [`export_entry!`](crate::export_entry!) makes a library
/// of one.
#[macro_export]
macro_rules! export_backend {
    ($name:ident: $backend:expr) => {
        $crate::__entry!($name, backend, BACKEND_ID, SpartaBackend, dyn $crate::backend::BackendPlugin, $backend);
    };
    ($backend:expr) => {
        $crate::__entry!(
            #[unsafe(no_mangle)]
            sparta_plugin_entry,
            backend,
            BACKEND_ID,
            SpartaBackend,
            dyn $crate::backend::BackendPlugin,
            $backend
        );
    };
}

/// Makes this `cdylib` a plugin of the given [`CommunicatorPlugin`](crate::communicator::CommunicatorPlugin). Once per
/// library.
///
/// `export_communicator!(entry: Mpi)` defines a public function `entry` instead, and exports nothing: a program can link
/// many such crates and call their entry points itself, and [`export_entry!`](crate::export_entry!) makes a library
/// of one.
#[macro_export]
macro_rules! export_communicator {
    ($name:ident: $communicator:expr) => {
        $crate::__entry!(
            $name,
            communicator,
            COMMUNICATOR_ID,
            SpartaCommunicator,
            dyn $crate::communicator::CommunicatorPlugin,
            $communicator
        );
    };
    ($communicator:expr) => {
        $crate::__entry!(
            #[unsafe(no_mangle)]
            sparta_plugin_entry,
            communicator,
            COMMUNICATOR_ID,
            SpartaCommunicator,
            dyn $crate::communicator::CommunicatorPlugin,
            $communicator
        );
    };
}

/// Makes this `cdylib` a plugin of another crate's entry point. Once per library.
#[macro_export]
macro_rules! export_entry {
    ($entry:path) => {
        /// The entry point of this plugin library.
        ///
        /// # Safety
        /// `host` is null or a host's table that lives as long as the process.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn sparta_plugin_entry(
            host: *const $crate::abi::SpartaHost,
        ) -> *const $crate::abi::SpartaPlugin {
            // SAFETY: the pointer is what the host passed to this entry function.
            unsafe { $entry(host) }
        }
    };
}
