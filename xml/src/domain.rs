//! Typed views over a `<domain>` tree.
