//! GLUE's tasks. The splits are those of Table 9 of the SpaRTA paper.

mod recipe;
mod tasks;
#[cfg(test)]
mod tests;

use sparta_plugin::Error;
use sparta_plugin::task::{Dataset, OpenRequest, Prompt, Target, Task, TaskInfo, TaskPluginInfo};
use sparta_task_files::{FileSet, Search, find};

pub struct Glue;

sparta_plugin::export_task!(entry: Glue);

impl Task for Glue {
    fn describe(&self) -> TaskPluginInfo {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let info = |task: &tasks::GlueTask| TaskInfo {
            id: task.id.to_owned(),
            title: task.title.to_owned(),
            labels: task.number.map_or_else(|| owned(task.schema.classes), |name| vec![name.to_owned()]),
            metrics: owned(task.metrics),
            primary: task.primary.to_owned(),
            target: task.number.map(|_| Target::Number),
            weights: vec![],
            pair: task.pair,
            prompt: task
                .number
                .is_none()
                .then(|| Prompt { template: task.prompt.to_owned(), verbalizers: owned(task.verbalizers) }),
        };
        TaskPluginInfo {
            name: "glue".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            tasks: tasks::TASKS.iter().map(info).collect(),
            options: vec![],
        }
    }

    fn open(&self, request: &OpenRequest) -> Result<Box<dyn Dataset>, Error> {
        let Some(task) = tasks::TASKS.iter().find(|task| task.id == request.task) else {
            let known: Vec<&str> = tasks::TASKS.iter().map(|task| task.id).collect();
            return Err(Error(format!("no task `{}` in glue: expected one of {}", request.task, known.join(", "))));
        };
        let places: &[&[&str]] = &[&[], &[task.folder], &["glue", task.folder]];
        let found = find(&Search { request, schema: &task.schema, places, layouts: task.layouts })?;
        let recipe = recipe::recipe(task, &found, request)?;
        Ok(Box::new(FileSet { schema: task.schema, parts: found.parts(), recipe }))
    }
}
