//! A built-in plugin as a shared library. The plugin itself is an ordinary crate, so that the command can link it, too.

sparta_plugin::export_entry!(plugin::entry);
