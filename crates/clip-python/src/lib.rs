//! The engine of clip_search for Python. The Python package around it, in python/, finds the files and defines the
//! exceptions.

mod engine;
mod error;

use pyo3::prelude::*;

#[pymodule]
fn _clip_search(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<engine::Engine>()
}
