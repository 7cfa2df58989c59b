//! From a library's entry point to a checked table of functions.

use super::PluginKind;
use super::host::{self, HOST};
use super::running;
use serde::de::DeserializeOwned;
use sparta_plugin::Error;
use sparta_plugin::abi::*;
use sparta_plugin::method::{GraphBuilder, StepTensors};
use std::mem::MaybeUninit;

/// The functions that may take as long as the device or another process needs for its work.
const WORK: [&str; 11] = [
    "write",
    "read",
    "run",
    "run_profiled",
    "submit",
    "fetch",
    "on_step",
    "barrier",
    "broadcast",
    "all_gather",
    "all_reduce",
];

/// The type of `sparta_plugin_entry`.
pub type Entry = unsafe extern "C" fn(*const SpartaHost) -> *const SpartaPlugin;

/// A copy of one interface's table.
#[derive(Clone, Copy)]
pub enum Functions {
    Method(SpartaMethod),
    Task(SpartaTask),
    Backend(SpartaBackend),
    Communicator(SpartaCommunicator),
}

impl Functions {
    pub fn kind(&self) -> PluginKind {
        match self {
            Functions::Method(_) => PluginKind::Method,
            Functions::Task(_) => PluginKind::Task,
            Functions::Backend(_) => PluginKind::Backend,
            Functions::Communicator(_) => PluginKind::Communicator,
        }
    }
}

/// One interface of an open library. `table` is one of the tables of [`sparta_plugin::abi`].
#[derive(Clone)]
pub struct Implementation<T> {
    pub table: T,
    /// For error messages: `lora (/usr/lib/libsparta_method_lora.so)`.
    pub name: String,
}

impl<T> Implementation<T> {
    /// Calls a function of the table; errors name the plugin and `what`.
    pub fn call<F>(
        &self,
        what: &str,
        function: Option<F>,
        graph: Option<&mut dyn GraphBuilder>,
        call: impl FnOnce(F, SpartaCall) -> SpartaStatus,
    ) -> Result<Vec<u8>, Error> {
        self.named(self.call_unnamed(what, function, graph, call))
    }

    /// As [`Implementation::call`], for a function that reads and changes tensors.
    pub fn call_on_step<F>(
        &self,
        what: &str,
        function: Option<F>,
        tensors: &mut dyn StepTensors,
        call: impl FnOnce(F, SpartaCall) -> SpartaStatus,
    ) -> Result<Vec<u8>, Error> {
        self.named(self.enter(what, function, |f| host::call_on_step(tensors, |id| call(f, id))))
    }

    fn named<R>(&self, result: Result<R, Error>) -> Result<R, Error> {
        result.map_err(|e| if e.0.contains(&self.name) { e } else { Error(format!("{} [plugin {}]", e.0, self.name)) })
    }

    /// As [`Implementation::call`], with the plugin's messages unchanged.
    pub fn call_unnamed<F>(
        &self,
        what: &str,
        function: Option<F>,
        graph: Option<&mut dyn GraphBuilder>,
        call: impl FnOnce(F, SpartaCall) -> SpartaStatus,
    ) -> Result<Vec<u8>, Error> {
        self.enter(what, function, |f| host::call(graph, |id| call(f, id)))
    }

    fn enter<F>(
        &self,
        what: &str,
        function: Option<F>,
        call: impl FnOnce(F) -> Result<Vec<u8>, Option<String>>,
    ) -> Result<Vec<u8>, Error> {
        let function =
            function.ok_or_else(|| Error::new(format!("plugin {}: it has no function `{what}`", self.name)))?;
        let _running = running::Call::begin(|| format!("{}: {what}", self.name), WORK.contains(&what));
        call(function).map_err(|message| {
            Error(
                message
                    .filter(|message| !message.trim().is_empty())
                    .unwrap_or_else(|| format!("plugin {}: `{what}` failed without a message", self.name)),
            )
        })
    }

    /// Parses the result of a function.
    pub fn parse<M: DeserializeOwned>(&self, what: &str, result: &[u8]) -> Result<M, Error> {
        if result.is_empty() {
            let message = format!("plugin {}: `{what}` gave no answer: pass one to the host's `result`", self.name);
            return Err(Error(message));
        }
        serde_json::from_slice(result).map_err(|e| {
            Error(format!("plugin {}: the answer of `{what}` cannot be read: {}", self.name, unreadable(&e)))
        })
    }
}

/// Why a plugin's JSON cannot be read. A serializer writes null for NaN.
pub fn unreadable(error: &serde_json::Error) -> String {
    let why = error.to_string();
    match why.starts_with("invalid type: null, expected f") {
        true => format!("{why}; a number that is not finite becomes null in JSON"),
        false => why,
    }
}

/// Calls an entry point and checks what it returns.
///
/// # Safety
/// `entry` obeys the ABI, and what it returns lives as long as the process.
pub unsafe fn enter(entry: Entry) -> Result<Vec<Functions>, String> {
    // SAFETY: the host's table is a static.
    let plugin = unsafe { entry(&HOST) };
    if plugin.is_null() {
        return Err(format!("{ENTRY} returned nothing: the plugin refused to start"));
    }
    // SAFETY: in every version the struct starts with `size` and `abi_major`.
    let (size, major) = unsafe { ((&raw const (*plugin).size).read(), (&raw const (*plugin).abi_major).read()) };
    if major != ABI_MAJOR {
        return Err(format!(
            "the plugin speaks plugin ABI {major}, this host speaks {ABI_MAJOR}: {}",
            advice(major, ABI_MAJOR)
        ));
    }
    expect_size("SpartaPlugin", size, size_of::<SpartaPlugin>())?;
    // SAFETY: its size covers the struct, and its array has the stated number of pointers.
    let interfaces = unsafe {
        let plugin = &*plugin;
        slice(plugin.interfaces, plugin.interface_count)
    };
    if interfaces.is_empty() {
        return Err("the plugin has no interface".into());
    }
    // SAFETY: a plugin's interfaces live as long as the process.
    interfaces.iter().map(|&interface| unsafe { functions(interface) }).collect()
}

/// # Safety
/// `interface` is null or a plugin's interface, which lives as long as the process.
unsafe fn functions(interface: *const SpartaInterface) -> Result<Functions, String> {
    if interface.is_null() {
        return Err("the plugin's list of interfaces has a null pointer".into());
    }
    // SAFETY: in every version the struct starts with its size.
    let size = unsafe { (&raw const (*interface).size).read() };
    expect_size("SpartaInterface", size, size_of::<SpartaInterface>())?;
    // SAFETY: its size covers the struct.
    let interface = unsafe { &*interface };
    // SAFETY: the id is a static text of the plugin.
    let id = String::from_utf8_lossy(unsafe { interface.id.as_slice() });
    let kind = check_interface(&id)?;
    let table = interface.table;
    if table.is_null() {
        return Err(format!("the table of {id} is a null pointer"));
    }
    // SAFETY: the id says which table it is.
    Ok(unsafe {
        match kind {
            PluginKind::Method => Functions::Method(copy(table.cast())),
            PluginKind::Task => Functions::Task(copy(table.cast())),
            PluginKind::Backend => Functions::Backend(copy(table.cast())),
            PluginKind::Communicator => Functions::Communicator(copy(table.cast())),
        }
    })
}

/// The kind of an interface id. Errors: an id that this host does not know.
pub fn check_interface(id: &str) -> Result<PluginKind, String> {
    let known = PluginKind::ALL.into_iter().find(|kind| kind.interface() == id);
    if let Some(kind) = known {
        return Ok(kind);
    }
    let family = |id: &str| id.rsplit_once('/').map(|(family, major)| (family.to_owned(), major.parse::<u32>().ok()));
    let ours = PluginKind::ALL.into_iter().map(PluginKind::interface);
    for ours in ours.clone() {
        if let (Some((a, Some(theirs))), Some((b, Some(major)))) = (family(id), family(ours))
            && a == b
        {
            return Err(format!("the plugin implements {id}, this host knows {ours}: {}", advice(theirs, major)));
        }
    }
    Err(format!("unknown interface `{id}`; this host knows {}", ours.collect::<Vec<_>>().join(", ")))
}

fn advice(theirs: u32, ours: u32) -> &'static str {
    if theirs > ours { "update sparta-cli" } else { "rebuild the plugin with the current sparta-plugin" }
}

fn expect_size(name: &str, size: usize, expected: usize) -> Result<(), String> {
    if size < expected {
        return Err(format!("its {name} has {size} bytes, expected at least {expected}"));
    }
    Ok(())
}

/// Copies a table of functions. Those that a plugin of an earlier minor version lacks are null.
///
/// # Safety
/// `T` is one of the tables of [`sparta_plugin::abi`]: a size and nullable functions. `table` points to such a table,
/// as long as its size says.
unsafe fn copy<T: Copy>(table: *const T) -> T {
    let mut copy = MaybeUninit::<T>::zeroed();
    // SAFETY: every table starts with its size; reads stay within it and writes within `T`; all zeros are a valid size
    // and null functions.
    unsafe {
        let size = table.cast::<usize>().read();
        let whole_fields = size.min(size_of::<T>()) / size_of::<usize>() * size_of::<usize>();
        std::ptr::copy_nonoverlapping(table.cast::<u8>(), copy.as_mut_ptr().cast(), whole_fields);
        copy.assume_init()
    }
}
