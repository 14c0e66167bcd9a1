//! The models of recently computed vectors in this session, so that vectors of different models are not compared.

use std::cell::RefCell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use lru::LruCache;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::panic::ErrorReport;

use crate::pg::error::{SqlResult, sql_error};
use crate::pg::vector::Vector;

/// The number of vectors whose model is recorded, so that clusters can refuse vectors of another model: a trigger
/// assigns vectors that it has just computed. An entry takes 8 bytes plus the name.
const ORIGINS: usize = 1024;

thread_local! {
    /// A vector's hash -> the model that computed it.
    static ORIGIN: RefCell<LruCache<u64, Rc<str>>> = RefCell::new(LruCache::new(ORIGINS.try_into().expect("not zero")));
}

fn hash(vector: &[f32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    vector.iter().for_each(|value| value.to_bits().hash(&mut hasher));
    hasher.finish()
}

/// Records the model that computed vectors.
pub fn note_origin(spec: &str, vectors: &[Option<Vector>]) {
    let name: Rc<str> = spec.into();
    ORIGIN.with_borrow_mut(|origins| {
        // More vectors would evict each other.
        for vector in vectors.iter().flatten().take(ORIGINS) {
            origins.put(hash(&vector.0), name.clone());
        }
    });
}

/// The model that computed a vector in this session, if it did so recently.
pub fn model_of(vector: &[f32]) -> Option<String> {
    ORIGIN.with_borrow_mut(|origins| origins.get(&hash(vector)).map(|name| name.to_string()))
}

/// A model's name without its variant: vectors of a model's variants are close enough to be compared.
pub fn base_name(spec: &str) -> &str {
    spec.split(':').next().unwrap_or(spec)
}

fn mixed(message: String, detail: String) -> ErrorReport {
    let hint = "Name the model that made the vector: model => …, or clip_search.model.";
    sql_error(PgSqlErrorCode::ERRCODE_DATA_EXCEPTION, message).set_detail(detail).set_hint(hint)
}

/// Refuses a vector that another model has recently computed in this session.
pub fn check_origin(vector: &[f32], spec: &str) -> SqlResult<()> {
    match model_of(vector) {
        Some(model) if base_name(&model) != base_name(spec) => Err(mixed(
            format!("a vector of model \"{model}\" can't be compared with those of \"{spec}\""),
            format!("It is what \"{model}\" has just returned in this session."),
        )),
        _ => Ok(()),
    }
}

/// Refuses a vector whose length differs from the model's.
pub fn check_dimensions(found: usize, models: usize, spec: &str) -> SqlResult<()> {
    if found == models {
        return Ok(());
    }
    Err(mixed(
        format!("different vector dimensions {found} and {models}"),
        format!("Vectors of model \"{spec}\" have {models} dimensions; this one has {found}."),
    ))
}
