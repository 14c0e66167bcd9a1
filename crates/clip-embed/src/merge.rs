//! Joins the outputs of several runs, and reports missing and repeated keys.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use clap::Parser;
use clip::{Error, Kind, Result};
use serde_json::Value;

use crate::input;
use crate::list::{Columns, List};
use crate::output::{self, About, Failures, Finished, Format, Key, Writer};
use crate::progress::{files, tell};
use crate::remote;
use crate::shard::Shard;

/// The number of keys that a message names; the file of failures has all of them.
const NAMED: usize = 5;

/// Joins the outputs of several runs of clip-embed, such as all shards, into one. If several outputs contain a key, its
/// vector is taken from the first of them.
///
/// Reports missing and unfinished shards, keys that occur more than once, and, with --list, files without a vector.
/// FILE.failures.csv lists these files. The result is an output like any other: the command that made the shards,
/// without --shard, embeds what is missing.
///
/// Exit status: 0 if nothing is missing; 3 if something is.
#[derive(Parser)]
#[command(name = "clip-embed merge", max_term_width = 100)]
pub struct Merge {
    /// The outputs of the runs, each with its FILE.json.
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// The file to write, or "-" for standard output. The result of an earlier merge is replaced.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Format of the result [default: that of the first output].
    #[arg(short, long)]
    format: Option<Format>,
    /// The list or directory that the runs embedded.
    #[arg(long, value_name = "INPUT")]
    list: Option<PathBuf>,
    #[command(flatten)]
    columns: Columns,
    #[command(flatten)]
    remote: remote::Options,
}

/// One of the outputs to join.
struct Part {
    path: PathBuf,
    about: About,
    format: Format,
    key: Key,
    shard: Option<Shard>,
}

/// Joins the outputs; returns the number of missing files, plus the number of gaps if no list is given.
pub fn run(mut arguments: Merge) -> Result<usize> {
    // A shell's pattern also matches the files beside an output.
    let beside: HashSet<PathBuf> =
        arguments.inputs.iter().flat_map(|path| output::files(path).into_iter().skip(1)).collect();
    let inputs = arguments.inputs.iter().filter(|path| !beside.contains(*path));
    let parts: Vec<Part> = inputs.map(|path| part(path)).collect::<Result<_>>()?;
    let first = &parts[0];
    let made_by = common(&parts)?;
    let format = arguments.format.unwrap_or(first.format);
    let mut result = Target::open(&arguments.output, &parts, format, first.key, &made_by)?;
    // The list is read before anything is written, because it may be wrong.
    let list = match &arguments.list {
        Some(list) => {
            let column = made_by["key_column"].as_str().map(str::to_owned);
            arguments.columns.key_column = arguments.columns.key_column.or(column);
            let own: Vec<PathBuf> = parts
                .iter()
                .map(|part| &part.path)
                .chain([&arguments.output])
                .flat_map(|path| output::files(path))
                .collect();
            Some(input::list(list, &arguments.columns, &arguments.remote, &own)?)
        }
        None => None,
    };
    let rows = join(&parts, format, &mut result)?;
    let mut failures = Failures::create(&arguments.output)?;
    let gaps = gaps(&parts);
    let mut missing = failed(&parts, &rows)?;
    if let Some(list) = list {
        missing = missing_of(list, &parts, &rows, missing);
    }
    for (key, error) in &missing {
        failures.add(key, error)?;
    }
    failures.finish()?;
    result.finish(missing.len())?;
    for gap in &gaps {
        tell(format_args!("clip-embed: {gap}"));
    }
    tell(format_args!(
        "clip-embed: {} joined; vectors in {}: {}",
        files(parts.len() as u64),
        result.name(),
        rows.len()
    ));
    if !missing.is_empty() {
        tell(format_args!(
            "clip-embed: {} without a vector ({}): see {}",
            keys(missing.len()),
            named(missing.keys()),
            failures.place()
        ));
    } else if arguments.list.is_some() {
        tell(format_args!("clip-embed: every file of the list has its vector"));
    }
    // With a list, `missing` has everything that is missing, in any shard.
    Ok(missing.len() + if arguments.list.is_some() { 0 } else { gaps.len() })
}

/// Writes each key's first vector. Returns a fingerprint of the vector by key, and says which keys are in several parts.
fn join(parts: &[Part], format: Format, result: &mut Target) -> Result<HashMap<String, u64>> {
    let mut rows: HashMap<String, u64> = HashMap::new();
    let (mut twice, mut other) = (BTreeSet::new(), 0);
    for part in parts {
        output::read(&part.path, part.format, part.key, &mut |key, vector| {
            let values = vector.floats().ok_or_else(|| unusable(&part.path, key))?;
            let print = fingerprint(&values);
            match rows.entry(key.to_owned()) {
                Entry::Occupied(there) => {
                    other += usize::from(*there.get() != print);
                    twice.insert(key.to_owned());
                    Ok(())
                }
                Entry::Vacant(place) => {
                    // Another format may not be able to store the key.
                    part.key.canonical(key, format)?;
                    place.insert(print);
                    result.write(key, &values)
                }
            }
        })?;
    }
    if !twice.is_empty() {
        let differ = if other > 0 { format!(", {other} with another vector") } else { String::new() };
        tell(format_args!(
            "clip-embed: in several files{differ}, taken from the first of them: {} ({})",
            keys(twice.len()),
            named(twice.iter())
        ));
    }
    Ok(rows)
}

/// The keys that failed in their run and have no vector in any part, with the first error of each.
fn failed(parts: &[Part], rows: &HashMap<String, u64>) -> Result<BTreeMap<String, Error>> {
    let mut failed = BTreeMap::new();
    for part in parts {
        for (key, error) in output::failures::read(&part.path)? {
            if !rows.contains_key(&key) {
                failed.entry(key).or_insert(error);
            }
        }
    }
    Ok(failed)
}

/// The keys of the list that have no vector, each with its error in `failed`, or with the shard that it belongs to.
fn missing_of(
    list: List,
    parts: &[Part],
    rows: &HashMap<String, u64>,
    mut failed: BTreeMap<String, Error>,
) -> BTreeMap<String, Error> {
    let counts: BTreeSet<u32> = parts.iter().filter_map(|part| part.shard).map(|shard| shard.count).collect();
    let absent = |key: &str| {
        let error = Error::new(Kind::MissingFile, "no file has its vector");
        match counts.first() {
            Some(&count) if counts.len() == 1 => {
                error.detail(format!("It belongs to shard {}/{count}.", Shard::of(key, count)))
            }
            _ => error,
        }
    };
    let mut missing: BTreeMap<String, Error> = list.unusable.into_iter().collect();
    let first = &parts[0];
    for item in list.items {
        // A key of the wrong type failed in its run.
        let key = first.key.canonical(&item.key, first.format).unwrap_or(item.key);
        if !rows.contains_key(&key) {
            let error = failed.remove(&key).unwrap_or_else(|| absent(&key));
            missing.insert(key, error);
        }
    }
    missing
}

fn part(path: &Path) -> Result<Part> {
    let Some(about) = About::read(path) else {
        let about = output::files(path)[1].display().to_string();
        let what = if path.exists() || Path::new(&about).exists() {
            "is not an output of clip-embed"
        } else {
            "does not exist"
        };
        return Err(Error::new(Kind::MissingFile, format!("\"{}\" {what}", path.display()))
            .detail(format!("\"{about}\", which says how it was made, cannot be read."))
            .hint("Give the file that was named by --output, with the files beside it."));
    };
    let text = |field: &str| about.made_by[field].as_str().map(str::to_owned);
    let of_this = |field: &str, value: Option<String>| {
        value.ok_or_else(|| {
            Error::new(Kind::InvalidInput, format!("\"{}\" was made otherwise", path.display()))
                .detail(format!("Its description has no {field} that this version knows: {}.", about.made_by))
        })
    };
    let format = of_this("format", text("format"))?;
    let format = clap::ValueEnum::from_str(&format, false).map_err(|_| of_this("format", None).unwrap_err())?;
    let key = of_this("key_type", text("key_type"))?;
    let key = clap::ValueEnum::from_str(&key, false).map_err(|_| of_this("key_type", None).unwrap_err())?;
    let shard = text("shard").and_then(|shard| shard.parse().ok());
    Ok(Part { path: path.to_owned(), about, format, key, shard })
}

/// The options that all outputs share, without shard and format. They must be equal.
fn common(parts: &[Part]) -> Result<Value> {
    let stripped = |part: &Part| {
        let mut made_by = part.about.made_by.clone();
        made_by["shard"] = Value::Null;
        made_by["format"] = Value::Null;
        made_by
    };
    let made_by = stripped(&parts[0]);
    for part in parts {
        let other = stripped(part);
        if other != made_by {
            return Err(Error::new(Kind::InvalidInput, format!("\"{}\" was made otherwise", part.path.display()))
                .detail(format!("It was made by {other}; \"{}\" by {made_by}.", parts[0].path.display()))
                .hint("Join outputs of the same options; vectors of different models don't go together."));
        }
    }
    Ok(made_by)
}

/// What can be reported without the list: missing shards and unfinished runs.
fn gaps(parts: &[Part]) -> Vec<String> {
    let mut gaps = Vec::new();
    let mut counts: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for shard in parts.iter().filter_map(|part| part.shard) {
        counts.entry(shard.count).or_default().insert(shard.index);
    }
    for (count, indices) in counts {
        let absent: Vec<String> =
            (1..=count).filter(|i| !indices.contains(i)).map(|i| format!("{i}/{count}")).collect();
        if !absent.is_empty() {
            let more = if absent.len() > NAMED { ", …" } else { "" };
            let shown = absent[..absent.len().min(NAMED)].join(", ");
            gaps.push(format!("no file is of shard {shown}{more} ({} of {count} missing)", absent.len()));
        }
    }
    for part in parts.iter().filter(|part| part.about.finished.is_none() && !part.about.merged) {
        gaps.push(format!("\"{}\" is unfinished: run its command again", part.path.display()));
    }
    gaps
}

/// The result. It is written beside its final path and moved there at the end.
struct Target {
    path: PathBuf,
    new: PathBuf,
    writer: Writer,
    made_by: Value,
    /// The lock that keeps other processes out; None for standard output.
    lock: Option<File>,
}

impl Target {
    fn open(path: &Path, parts: &[Part], format: Format, key: Key, made_by: &Value) -> Result<Self> {
        let mut made_by = made_by.clone();
        made_by["format"] = format.to_string().into();
        let about = made_by.to_string();
        if path == Path::new("-") {
            let writer = output::stream().and_then(|file| Writer::begin(file, format, key, &about));
            let writer = writer.map_err(|e| output::failed(path, &e))?;
            return Ok(Self { path: path.to_owned(), new: PathBuf::new(), writer, made_by, lock: None });
        }
        let same = |part: &Part| matches!((path.canonicalize(), part.path.canonicalize()), (Ok(a), Ok(b)) if a == b);
        if parts.iter().any(same) {
            return Err(Error::new(Kind::InvalidInput, format!("\"{}\" is both joined and written", path.display()))
                .hint("Give another --output."));
        }
        if path.exists() && !About::read(path).is_some_and(|about| about.merged) {
            return Err(Error::new(Kind::InvalidInput, format!("\"{}\" is there already", path.display()))
                .detail("It is not the result of an earlier merge, which would be replaced.")
                .hint("Give another --output."));
        }
        let new = output::beside(path, ".merging");
        let lock = output::open_alone(&new, path)?;
        let writer = lock.set_len(0).and_then(|()| lock.try_clone());
        let writer = writer.and_then(|file| Writer::begin(file, format, key, &about));
        let writer = writer.map_err(|e| output::failed(&new, &e))?;
        Ok(Self { path: path.to_owned(), new, writer, made_by, lock: Some(lock) })
    }

    fn write(&mut self, key: &str, vector: &[f32]) -> Result<()> {
        self.writer.write(key, vector).map_err(|e| output::failed(&self.path, &e))
    }

    fn finish(&mut self, missing: usize) -> Result<()> {
        let failed = |e: std::io::Error| output::failed(&self.path, &e);
        self.writer.finish().map_err(failed)?;
        if self.lock.is_some() {
            output::sync(&self.new)?;
            std::fs::rename(&self.new, &self.path).map_err(failed)?;
            let finished = Some(Finished { missing });
            About { made_by: self.made_by.clone(), finished, merged: true }.write(&self.path)?;
        }
        Ok(())
    }

    fn name(&self) -> String {
        if self.lock.is_some() { format!("\"{}\"", self.path.display()) } else { "standard output".to_owned() }
    }
}

fn unusable(path: &Path, key: &str) -> Error {
    Error::new(Kind::InvalidInput, format!("\"{}\" is not what clip-embed writes", path.display()))
        .detail(format!("What belongs to the key {key:?} is not a vector."))
        .hint("Delete it, and run its command again.")
}

fn fingerprint(vector: &[f32]) -> u64 {
    let mut state = DefaultHasher::new();
    vector.iter().for_each(|value| value.to_bits().hash(&mut state));
    state.finish()
}

fn keys(count: usize) -> String {
    if count == 1 { "1 key".to_owned() } else { format!("{count} keys") }
}

/// The first few of some keys, for a message.
fn named<'a>(keys: impl ExactSizeIterator<Item = &'a String>) -> String {
    let more = if keys.len() > NAMED { ", …" } else { "" };
    let shown: Vec<String> = keys.take(NAMED).map(|key| format!("{key:?}")).collect();
    shown.join(", ") + more
}
