//! An opened data set: the recipe and the files it names.

use crate::part::Part;
use crate::schema::Schema;
use sparta_plugin::Error;
use sparta_plugin::task::{Dataset, Examples, Recipe};

pub struct FileSet {
    pub schema: Schema,
    pub parts: Vec<Part>,
    pub recipe: Recipe,
}

impl Dataset for FileSet {
    fn recipe(&self) -> Recipe {
        self.recipe.clone()
    }

    fn examples(&self, part: &str) -> Result<Examples<'_>, Error> {
        match self.parts.iter().find(|known| known.name == part) {
            Some(part) => part.examples(&self.schema),
            None => {
                let known: Vec<&str> = self.parts.iter().map(|part| part.name.as_str()).collect();
                Err(Error(format!("no part `{part}`: expected one of {}", known.join(", "))))
            }
        }
    }
}
