//! Eight-bit towers: found in the cache, or made with built-in pictures and texts.

use std::path::Path;

use crate::error::{Error, Kind, Result, Setting};
use crate::model::Model;
use crate::model::eight_bit::{self, refused};
use crate::model::session::{Runtime, Tower};

/// Pictures for the image tower: half to calibrate, half to check.
pub(super) const PICTURES: usize = 24;
/// Texts for the text tower, alternately to calibrate and to check.
pub(super) const TEXTS: [&str; 24] = [
    "a photo of a cat",
    "a dog",
    "two children playing football on a green field in front of a school",
    "sunset over the sea",
    "a red car parked on a street at night",
    "an old man reading a newspaper",
    "a plate of spaghetti with tomatoes and basil on a wooden table, seen from above",
    "birthday cake with candles",
    "snow-covered mountains under a blue sky",
    "a black and white portrait of a woman with curly hair",
    "tax return form",
    "map",
    "a screenshot of a conversation on a phone",
    "the Eiffel Tower",
    "a bicycle leaning against a brick wall",
    "people dancing at a wedding party",
    "close-up of a yellow flower with water drops",
    "a flock of birds flying over a lake in autumn",
    "an empty room",
    "a crowded market in a narrow street with fruit, vegetables and spices",
    "drawing of a horse",
    "IMG_2041.JPG",
    "a train arriving at the station, motion blur, low light, film grain, 35 mm",
    "my hand",
];

/// What is known of the eight-bit form of a tower.
pub(super) enum Known {
    /// It was made before.
    Made(Box<Tower>),
    /// It is to be made.
    Unmade,
    /// There is none, which was remarked, or none is asked for.
    No,
}

/// The eight-bit form of a tower.
///
/// # Errors
/// [`Kind::Unsupported`] if there is none: the tower then runs in float32. [`Kind::BadModel`] if it may not be made now.
pub(super) fn eight_bit(embedder: (&Model, &Path, usize, Option<&Path>), file: &Path, may_make: bool) -> Result<Known> {
    let (model, library, threads, cache) = embedder;
    if model.combined {
        return Err(refused(file, "Its two towers are one graph; take an export with separate towers."));
    }
    let Some(cache) = cache else {
        return Err(refused(file, "It would have to be made for each connection.")
            .hint_setting(Setting::Cache, "Set {setting} to a directory."));
    };
    match eight_bit::find(Runtime::load(library)?, file, threads, cache)? {
        Some(tower) => Ok(Known::Made(Box::new(tower))),
        None if may_make => Ok(Known::Unmade),
        None => {
            Err(Error::new(Kind::BadModel, format!("the eight-bit form of \"{}\" was not made yet", file.display()))
                .hint(format!("Call clip_check_model('{}') once, which makes it, and restart the server.", model.name)))
        }
    }
}

/// Turns the error that there is no eight-bit form into a remark.
pub(super) fn remarked<T>(result: Result<T>, instead: T, warnings: &mut Vec<Error>) -> Result<T> {
    match result {
        Err(error) if error.kind == Kind::Unsupported => {
            warnings.push(error);
            Ok(instead)
        }
        other => other,
    }
}

pub(super) fn runtime() -> &'static Runtime {
    Runtime::loaded().expect("the float32 tower is loaded")
}
