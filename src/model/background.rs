//! The words that photos are compared with. Each model embeds them once; they are kept in this process and in
//! `clip_search.cache_path`.

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use clip::model::Model;
use clip::relevance::{Background, Builder, Entry, Photo, Words};
use clip::{Error, Kind, regular_file};
use pgrx::prelude::*;

use crate::guc;
use crate::model::{cache, loaded, origin};
use crate::pg::error::{SqlResult, report};
use crate::pg::spi::spi;
use crate::pg::text::non_utf8_encoding;
use crate::pg::vector::Vector;

/// The number of words that are embedded in one call. A call takes half a second to two seconds.
const BATCH: usize = 64;
/// The time between two NOTICEs about the progress.
const PROGRESS: Duration = Duration::from_secs(10);
/// The maximum size of a list of words.
const LONGEST_FILE: u64 = 16 << 20;

/// The state that the words' vectors depend on.
#[derive(PartialEq, Clone)]
struct Key {
    spec: String,
    search: Vec<PathBuf>,
    runtime: PathBuf,
    /// The list's path, length and time of the last change; None for the built-in list.
    list: Option<(PathBuf, u64, SystemTime)>,
}

/// The last photo: several queries about one row compute its position among the words only once.
struct Last {
    background: Rc<Background>,
    vector: Vec<f32>,
    photo: Rc<Photo>,
}

thread_local! {
    static KNOWN: RefCell<Vec<(Key, Rc<Background>)>> = const { RefCell::new(Vec::new()) };
    /// The list that [`tell_of_own_list`] has checked last.
    static TOLD: RefCell<Option<Option<PathBuf>>> = const { RefCell::new(None) };
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
}

impl Key {
    fn new(spec: &str) -> SqlResult<Self> {
        let list =
            guc::words().map(|path| match fs::metadata(&path).and_then(|about| Ok((about.len(), about.modified()?))) {
                Ok((length, changed)) => Ok((path, length, changed)),
                Err(error) => Err(unreadable(&path, &error.to_string())),
            });
        Ok(Self {
            spec: spec.to_owned(),
            search: guc::model_path(),
            runtime: guc::onnxruntime(),
            list: list.transpose().map_err(report)?,
        })
    }

    fn words(&self) -> clip::Result<Words> {
        let Some((path, length, _)) = &self.list else { return Words::everyday() };
        if *length > LONGEST_FILE {
            return Err(Error::new(Kind::LimitExceeded, format!("list of words \"{}\" is too long", path.display()))
                .detail(format!("It has {length} bytes; {LONGEST_FILE} are allowed.")));
        }
        let text = regular_file::read_to_string(path).map_err(|e| unreadable(path, &e.to_string()))?;
        Words::parse(&text).map_err(|mut error| {
            error.hint = Some(format!("It is in \"{}\", which clip_search.words names.", path.display()));
            error
        })
    }
}

/// Refuses a list that is not ASCII if the database's encoding is not UTF-8: functions return words as texts.
fn in_encoding(words: Words) -> clip::Result<Words> {
    match words.words.iter().find(|word| !word.is_ascii()).zip(non_utf8_encoding()) {
        Some((word, encoding)) => Err(Error::new(
            Kind::Unsupported,
            format!("word \"{}\" can't be used in a database of encoding {encoding}", word.escape_unicode()),
        )
        .detail("Only ASCII is the same there as in UTF-8.")
        .hint("Use a database of encoding UTF8, or a list of words in ASCII (clip_search.words).")),
        None => Ok(words),
    }
}

fn unreadable(path: &std::path::Path, why: &str) -> Error {
    Error::new(Kind::MissingFile, format!("list of words \"{}\" cannot be read", path.display()))
        .detail(why)
        .hint("clip_search.words names it; an empty setting uses the list that is built in.")
}

/// Reports, once per connection and list, that the tags of a watch will come from a list that other connections don't
/// use. A role that can't read the setting can't change it either.
pub fn tell_of_own_list() -> SqlResult<()> {
    let list = guc::words();
    if TOLD.with_borrow(|told| *told == Some(list.clone())) {
        return Ok(());
    }
    TOLD.set(Some(list));
    let own = Spi::connect(|client| {
        let found = client.select(include_str!("sql/own_list.sql"), Some(1), &[]).map_err(spi)?;
        found.first().get_one::<bool>().map_err(spi)
    })?;
    if own == Some(true) {
        let notice =
            Error::new(Kind::InvalidInput, "this connection's own setting of clip_search.words determines the tags")
                .detail("The worker and other connections may use another list, and tag the same table by that one.")
                .hint(
                    "Set it for the whole database (ALTER DATABASE … SET clip_search.words = …) or in postgresql.conf.",
                );
        report(notice).report(PgLogLevel::NOTICE);
    }
    Ok(())
}

/// The background of a model: from this process, from the cache, or embedded now.
pub fn of(spec: &str) -> SqlResult<Rc<Background>> {
    let key = Key::new(spec)?;
    let known =
        KNOWN.with_borrow(|known| known.iter().find(|(other, _)| *other == key).map(|(_, found)| found.clone()));
    if let Some(known) = known {
        return Ok(known);
    }
    let words = key.words().and_then(in_encoding).map_err(report)?;
    let model = Model::find(&key.search, spec).map_err(report)?;
    let entry =
        cache::directory().and_then(|cache| Entry::of(&cache, &model, &words, &key.runtime.display().to_string()));
    let kept = match &entry {
        Some(entry) => entry.read(words).map_err(report)?,
        None => Err(words),
    };
    let background = match kept {
        Ok(background) => background,
        Err(words) => {
            let made = embed(spec, words, entry.as_ref())?;
            if let Some(Err(error)) = entry.map(|entry| entry.write(&made)) {
                // The next connection embeds the words again, so tell the administrator why.
                pgrx::log!(
                    "clip_search: {error}{}",
                    error.detail.as_deref().map(|d| format!(": {d}")).unwrap_or_default()
                );
            }
            made
        }
    };
    let background = Rc::new(background);
    KNOWN.with_borrow_mut(|known| {
        known.retain(|(other, _)| other.spec != spec);
        known.push((key, background.clone()));
    });
    Ok(background)
}

/// Embeds the words, in batches between which a cancel takes effect. With a cache, a call after a cancelled one embeds
/// only the remaining words.
fn embed(spec: &str, words: Words, entry: Option<&Entry>) -> SqlResult<Background> {
    let all = words.words.len();
    let mut builder = Builder::new(words);
    let mut progress = match entry {
        Some(entry) => entry.resume(&mut builder).map_err(report)?,
        None => None,
    };
    let mut done = all - builder.next(all).len();
    match done {
        0 => pgrx::notice!("embedding {all} words with model \"{spec}\", which is done once"),
        _ => {
            pgrx::notice!("embedding the last {} of {all} words with model \"{spec}\", which is done once", all - done)
        }
    }
    let mut told = Instant::now();
    while done < all {
        let batch: Vec<Option<&str>> = builder.next(BATCH).iter().map(|word| Some(word.as_str())).collect();
        let vectors = loaded::try_texts(spec, &batch).map_err(report)?;
        done += vectors.len();
        for Vector(vector) in vectors.into_iter().flatten() {
            builder.push(&vector).map_err(report)?;
        }
        if let Some(progress) = &mut progress {
            progress.append(&builder);
        }
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            pgrx::notice!("embedded {done} of {all} words");
        }
    }
    builder.finish().map_err(report)
}

/// A photo's position among the words of a model.
pub fn photo(background: &Rc<Background>, vector: Vec<f32>, spec: &str) -> SqlResult<Rc<Photo>> {
    let known = LAST.with_borrow(|last| {
        let last = last.as_ref()?;
        (Rc::ptr_eq(&last.background, background) && last.vector == vector).then(|| last.photo.clone())
    });
    if let Some(known) = known {
        return Ok(known);
    }
    origin::check_dimensions(vector.len(), background.width(), spec)?;
    origin::check_origin(&vector, spec)?;
    let photo = Rc::new(background.photo(&vector).map_err(report)?);
    LAST.set(Some(Last { background: background.clone(), vector, photo: photo.clone() }));
    Ok(photo)
}

/// Texts relative to the words of a model.
pub fn texts(background: &Background, texts: &[Option<&str>], spec: &str) -> SqlResult<Vec<Vec<f32>>> {
    let vectors = loaded::embed_texts(spec, texts)?;
    vectors.iter().flatten().map(|Vector(vector)| background.relative(vector).map_err(report)).collect()
}
