use super::library::Implementation;
use super::method::check_options;
use super::{names, task_check};
use sparta_plugin::Error;
use sparta_plugin::abi::{SpartaBytes, SpartaTask};
use sparta_plugin::task::{Dataset, Example, Examples, OpenRequest, Recipe, Task, TaskInfo, TaskPluginInfo};
use std::cell::Cell;
use std::collections::VecDeque;
use std::marker::PhantomData;

/// The most bytes of an example's texts; no model has positions for more.
const LONGEST_TEXT: usize = 1 << 20;

/// Examples fetched in one call.
const BATCH: usize = 256;

/// A task plugin from a loaded library.
pub struct LoadedTask {
    plugin: Implementation<SpartaTask>,
    info: TaskPluginInfo,
}

impl LoadedTask {
    /// Asks the plugin to describe itself. Errors: no answer, or a task that contradicts itself.
    pub fn new(mut plugin: Implementation<SpartaTask>) -> Result<Self, Error> {
        // SAFETY: the function of a loaded library, called as the ABI says.
        let answer = plugin.call("describe", plugin.table.describe, None, |f, call| unsafe { f(call) })?;
        let info: TaskPluginInfo = plugin.parse("describe", &answer)?;
        names::check("name", &info.name)
            .and_then(|()| names::check_version(&info.version))
            .and_then(|()| check_options(&info.options))
            .map_err(|reason| Error(format!("plugin {}: {reason}", plugin.name)))?;
        for task in &info.tasks {
            task_check::described(task)
                .map_err(|reason| Error(format!("plugin {}: task `{}`: {reason}", plugin.name, task.id)))?;
        }
        plugin.name = format!("{} ({})", info.name, plugin.name);
        Ok(LoadedTask { plugin, info })
    }

    pub fn info(&self) -> &TaskPluginInfo {
        &self.info
    }
}

impl Task for LoadedTask {
    fn describe(&self) -> TaskPluginInfo {
        self.info.clone()
    }

    fn open(&self, request: &OpenRequest) -> Result<Box<dyn Dataset>, Error> {
        let plugin = &self.plugin;
        let task = self.info.tasks.iter().find(|task| task.id == request.task);
        let task = task.ok_or_else(|| Error(format!("plugin {}: it has no task `{}`", plugin.name, request.task)))?;
        let message = serde_json::to_vec(request)
            .map_err(|e| Error(format!("{}: cannot be passed to a plugin: {e}", request.data.display())))?;
        let mut id = 0;
        let message = SpartaBytes::new(&message);
        // SAFETY: the function of a loaded library, called as the ABI says; pointers are to live locals.
        plugin.call("open", plugin.table.open, None, |f, call| unsafe { f(call, message, &mut id) })?;
        let handle = DatasetHandle { plugin: plugin.clone(), id, one_thread: PhantomData };
        // SAFETY: as above, with the handle that `open` gave.
        let answer = plugin.call("recipe", plugin.table.recipe, None, |f, call| unsafe { f(call, id) })?;
        let recipe: Recipe = plugin.parse("recipe", &answer)?;
        let task = recipe.task.as_ref().unwrap_or(task).clone();
        let named = match task.id == request.task {
            true => task_check::resolved(&task),
            false => Err(format!("the opened data belong to a different task, `{}`", task.id)),
        };
        named.map_err(|reason| Error(format!("plugin {}: task `{}`: {reason}", plugin.name, request.task)))?;
        Ok(Box::new(LoadedDataset { handle, task, recipe }))
    }
}

struct LoadedDataset {
    handle: DatasetHandle,
    task: TaskInfo,
    recipe: Recipe,
}

/// A data set opened by a plugin.
struct DatasetHandle {
    plugin: Implementation<SpartaTask>,
    id: u64,
    /// `Send` but not `Sync`: used by one thread at a time.
    one_thread: PhantomData<Cell<()>>,
}

impl Drop for DatasetHandle {
    fn drop(&mut self) {
        if let Some(close) = self.plugin.table.close {
            // SAFETY: the handle is closed once, here; iterators borrow from its owner and are closed before.
            unsafe { close(self.id) };
        }
    }
}

impl Dataset for LoadedDataset {
    fn recipe(&self) -> Recipe {
        self.recipe.clone()
    }

    fn examples(&self, part: &str) -> Result<Examples<'_>, Error> {
        let plugin = &self.handle.plugin;
        let mut id = 0;
        // SAFETY: the function of a loaded library, called as the ABI says; pointers are to live locals.
        plugin.call("examples", plugin.table.examples, None, |f, call| unsafe {
            f(call, self.handle.id, SpartaBytes::new(part.as_bytes()), &mut id)
        })?;
        Ok(Box::new(LoadedExamples { dataset: self, id, batch: VecDeque::new(), ended: false }))
    }
}

/// The examples of one part, fetched in batches.
struct LoadedExamples<'a> {
    dataset: &'a LoadedDataset,
    id: u64,
    batch: VecDeque<Example>,
    ended: bool,
}

impl LoadedExamples<'_> {
    fn fetch(&mut self) -> Result<(), Error> {
        let plugin = &self.dataset.handle.plugin;
        // SAFETY: the function of a loaded library, called as the ABI says, with the handle that `examples` gave.
        let answer = plugin.call("next", plugin.table.next, None, |f, call| unsafe { f(call, self.id, BATCH) })?;
        self.batch = plugin.parse("next", &answer)?;
        self.ended = self.batch.is_empty();
        let task = &self.dataset.task;
        let longest = |example: &Example| example.texts().map(str::len).max().unwrap_or_default();
        if let Some(bytes) = self.batch.iter().map(longest).find(|&bytes| bytes > LONGEST_TEXT) {
            return Err(Error(format!(
                "plugin {}: an example of `{}` has a text of {bytes} bytes, expected at most {LONGEST_TEXT}",
                plugin.name, task.id
            )));
        }
        let checked = self.batch.iter().try_for_each(|example| task_check::check_example(task, example));
        checked.map_err(|what| Error(format!("plugin {}: an example of `{}`: {what}", plugin.name, task.id)))
    }
}

impl Iterator for LoadedExamples<'_> {
    type Item = Result<Example, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.batch.is_empty()
            && !self.ended
            && let Err(error) = self.fetch()
        {
            // After an error nothing more is read.
            (self.ended, self.batch) = (true, VecDeque::new());
            return Some(Err(error));
        }
        self.batch.pop_front().map(Ok)
    }
}

impl Drop for LoadedExamples<'_> {
    fn drop(&mut self) {
        if let Some(close) = self.dataset.handle.plugin.table.close_examples {
            // SAFETY: the handle is closed once, here.
            unsafe { close(self.id) };
        }
    }
}
