use super::library::Implementation;
use super::names;
use sparta_plugin::Error;
use sparta_plugin::abi::{SpartaBytes, SpartaCall, SpartaCommunicator, SpartaStatus};
use sparta_plugin::communicator::{Communicator, CommunicatorPluginInfo, Launch, Place};

/// A communicator plugin of a loaded library.
pub struct LoadedCommunicatorPlugin {
    plugin: Implementation<SpartaCommunicator>,
    info: CommunicatorPluginInfo,
}

impl LoadedCommunicatorPlugin {
    /// Asks the plugin to describe itself.
    pub fn new(mut plugin: Implementation<SpartaCommunicator>) -> Result<Self, Error> {
        // SAFETY: the function of a loaded library, called as the ABI says.
        let answer = plugin.call("describe", plugin.table.describe, None, |f, call| unsafe { f(call) })?;
        let info: CommunicatorPluginInfo = plugin.parse("describe", &answer)?;
        names::check("name", &info.name)
            .and_then(|()| names::check_version(&info.version))
            .map_err(|reason| Error(format!("plugin {}: {reason}", plugin.name)))?;
        plugin.name = format!("{} ({})", info.name, plugin.name);
        Ok(LoadedCommunicatorPlugin { plugin, info })
    }

    pub fn info(&self) -> &CommunicatorPluginInfo {
        &self.info
    }

    /// The launch that this process belongs to; `None` if it was started alone.
    pub fn launched(&self) -> Result<Option<Launch>, Error> {
        let plugin = &self.plugin;
        // SAFETY: the function of a loaded library, called as the ABI says.
        let answer = plugin.call("launched", plugin.table.launched, None, |f, call| unsafe { f(call) })?;
        plugin.parse("launched", &answer)
    }

    /// Connects to the other processes of the launch.
    ///
    /// Errors: no connection; a place that contradicts itself.
    pub fn join(&self) -> Result<Box<dyn Communicator>, Error> {
        let plugin = self.plugin.clone();
        let mut handle = 0;
        // SAFETY: the function of a loaded library, called as the ABI says, with a pointer to a live local.
        let answer = plugin.call("join", plugin.table.join, None, |f, call| unsafe { f(call, &mut handle) })?;
        let place: Place = plugin.parse("join", &answer)?;
        let Place { rank, size, local_rank, .. } = place;
        if rank >= size || local_rank > rank {
            return Err(Error(format!(
                "plugin {}: process {rank} of {size}, {local_rank} on its machine, is impossible",
                plugin.name
            )));
        }
        Ok(Box::new(Joined { plugin, handle, place }))
    }
}

/// What a plugin has joined.
struct Joined {
    plugin: Implementation<SpartaCommunicator>,
    handle: u64,
    place: Place,
}

impl Joined {
    fn call<F>(
        &self,
        what: &str,
        function: Option<F>,
        call: impl FnOnce(F, SpartaCall) -> SpartaStatus,
    ) -> Result<(), Error> {
        self.plugin.call(what, function, None, call).map(drop)
    }
}

impl Communicator for Joined {
    fn place(&self) -> Place {
        self.place.clone()
    }

    fn barrier(&mut self) -> Result<(), Error> {
        // SAFETY: the function of a loaded library, called as the ABI says, with the handle that `join` gave.
        self.call("barrier", self.plugin.table.barrier, |f, call| unsafe { f(call, self.handle) })
    }

    fn broadcast(&mut self, root: usize, data: &mut [u8]) -> Result<(), Error> {
        let (data, len) = (data.as_mut_ptr(), data.len());
        // SAFETY: as for `barrier`; the bytes are borrowed for as long as the call takes.
        self.call("broadcast", self.plugin.table.broadcast, |f, call| unsafe { f(call, self.handle, root, data, len) })
    }

    fn all_gather(&mut self, own: &[u8], all: &mut [u8]) -> Result<(), Error> {
        let (all, len) = (all.as_mut_ptr(), all.len());
        // SAFETY: as for `broadcast`.
        self.call("all_gather", self.plugin.table.all_gather, |f, call| unsafe {
            f(call, self.handle, SpartaBytes::new(own), all, len)
        })
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), Error> {
        let (values, len) = (values.as_mut_ptr(), values.len());
        // SAFETY: as for `broadcast`.
        self.call("all_reduce", self.plugin.table.all_reduce, |f, call| unsafe { f(call, self.handle, values, len) })
    }

    fn abort(&mut self, reason: &str) {
        if let Some(abort) = self.plugin.table.abort {
            // SAFETY: as for `barrier`.
            unsafe { abort(self.handle, SpartaBytes::new(reason.as_bytes())) };
        }
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The others would wait for this process.
            self.abort("a process panicked; its message is above");
        }
        if let Some(leave) = self.plugin.table.leave {
            // SAFETY: the handle is given back once, here.
            unsafe { leave(self.handle) };
        }
    }
}
