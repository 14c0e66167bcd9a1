//! Quantizes a float32 graph to eight bits, and decides how coarse each matrix product may be.
//!
//! A matrix product with constant weights gets one of three schemes:
//! - *int8*: weights with a scale for each output column; activations with one scale for the tensor, computed in each
//!   run (DynamicQuantizeLinear, MatMulInteger). This is the fastest scheme. In a trained tower some channels are a
//!   hundred times as strong as others and would leave the rest with two or three bits, so both sides are balanced
//!   first: activations are divided by a factor for each channel, and weights are multiplied by it (Xiao et al. 2023,
//!   "SmoothQuant"). With six strong channels in each layer of a ViT-B/32 with random weights, the mean cosine to
//!   float32 is 0.877 without balancing and 0.99984 with it.
//! - *blockwise*: weights with a scale for each 32 of a column, and activations likewise within a row (MatMulNBits).
//!   This is half as fast, and hardly sensitive to strong channels or strong tokens.
//! - *float32*, unchanged.
//!
//! Each activation gets the balance with the least expected error on built-in pictures or texts. Then the effect of
//! each product on the vectors is measured, with one graph that contains all three schemes of each product behind
//! switches. All products start as int8. The products that gain most accuracy for their added time become finer, until
//! the sum of all effects is small enough and the vectors of other built-in samples are close to float32's.

mod balance;
mod choose;
mod layers;
mod samples;
mod write;

use std::fs;
use std::path::Path;

use self::balance::{balance, observe};
use self::choose::{COSTS, choose, measure};
use self::layers::{FOLDED, Scheme, Source};
pub use self::samples::{Inputs, Samples};
use self::write::write;
use crate::error::{Error, Kind, Result, Setting};
use crate::model::cache_directory;
use crate::model::graph_cache::{Entry, Form};
use crate::model::session::{Runtime, Tower, give_back_memory};
use crate::vector::cosine;

/// The mean and minimum cosine to float32's vectors that the built-in samples must reach. The documented values for
/// other inputs are 0.9998 and 0.9995.
const MEAN: f64 = 0.999_82;
const LEAST: f64 = 0.999_55;
/// The budget for the sum of all effects (one minus the mean cosine) in the first attempt; [`STRICTER`] multiplies it
/// for each further attempt.
const BUDGET: f64 = 1.5e-4;
const STRICTER: f64 = 0.75;
const TRIES: usize = 8;
/// The minimum share of the products' time that a quantized graph must save.
const GAIN: f64 = 0.2;
/// Quantizing takes up to this many times the disk space of the float32 graph: for the folded graph, for the graph with
/// each product in three schemes, and for the result.
const SPACE: u64 = 3;
/// The file in the cache that describes how a graph was quantized.
const RECIPE: &str = "recipe";

/// How many products have each scheme, and the mean and minimum cosine of the vectors to float32's.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    pub int8: usize,
    pub blockwise: usize,
    pub float32: usize,
    pub mean: f64,
    pub least: f64,
}

impl std::fmt::Display for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { int8, blockwise, float32, mean, least } = self;
        write!(f, "{int8} matrix products int8, {blockwise} blockwise, {float32} float32; ")?;
        write!(f, "cosine to float32 {mean:.6} on average, {least:.6} at least")
    }
}

/// The quantized graph from the cache, if it is there.
///
/// # Errors
/// [`Kind::Unsupported`] if an earlier attempt found that the graph can't be quantized.
pub fn find(runtime: &Runtime, file: &Path, threads: usize, cache: &Path) -> Result<Option<Tower>> {
    let Some(entry) = Entry::of(cache, file, &runtime.version, Form::Int8) else { return Ok(None) };
    if let Some(why) = entry.refusal() {
        return Err(refused(file, &why));
    }
    Ok(entry.graph().and_then(|graph| Tower::mapped(runtime, graph, threads, file)))
}

/// The description of how a tower was quantized, if it was.
pub fn recipe(tower: &Tower) -> Option<String> {
    tower.recall(RECIPE)
}

/// Checks in advance whether quantizing a graph, which takes minutes, can succeed.
///
/// # Errors
/// [`Kind::DiskFull`] if the disk has no room for it; [`Kind::BadModel`] if it failed recently for another reason.
pub fn check_before(runtime: &Runtime, file: &Path, cache: &Path) -> Result<()> {
    if let Some(full) = without_room(file, cache, stored(file), 0) {
        return Err(full);
    }
    match Entry::of(cache, file, &runtime.version, Form::Int8).and_then(|entry| entry.failure()) {
        // The disk has room for it now.
        Some(why) if is_full(&why) => Ok(()),
        Some(why) => Err(not_kept(file, format!("It was tried less than an hour ago, and failed: {why}"))),
        None => Ok(()),
    }
}

/// The error if the cache's disk has less room than quantizing a graph of this size needs. `used` is the number of
/// bytes that the attempt already takes.
fn without_room(file: &Path, cache: &Path, size: u64, used: u64) -> Option<Error> {
    let needed = SPACE * size;
    let available = cache_directory::available(cache)?;
    (available.saturating_add(used) < needed).then(|| {
        disk_full(file, cache)
            .detail(format!("Up to {needed} bytes are needed while it is made; {available} bytes are free."))
    })
}

/// The error if a step failed because the disk is full. ONNX Runtime reports only that a graph can't be saved, or later
/// that it is damaged.
fn filled(file: &Path, cache: &Path, draft: &Path, why: &str) -> Option<Error> {
    if is_full(why) {
        return Some(disk_full(file, cache).detail(why.to_owned()));
    }
    // A graph in 16 bits takes twice its size in float32.
    let folded = fs::metadata(draft.join("work").join(FOLDED)).map_or(0, |about| about.len());
    let size = stored(file).max(folded);
    // Each intermediate file is about as large as the graph.
    let is_left = cache_directory::available(cache).is_none_or(|available| available >= size);
    let used = if is_left { cache_directory::used(draft) } else { 0 };
    without_room(file, cache, size, used)
}

/// The number of bytes of a graph and of the files beside it whose names begin with its name: these contain its
/// weights.
fn stored(file: &Path) -> u64 {
    let (Some(directory), Some(name)) = (file.parent(), file.file_name()) else { return 0 };
    let of_graph = |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes().starts_with(name.as_encoded_bytes());
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().filter(of_graph);
    entries.filter_map(|entry| fs::metadata(entry.path()).ok()).map(|about| about.len()).sum()
}

/// Whether an error's text is the system's message for a full disk or an exhausted quota.
fn is_full(why: &str) -> bool {
    ["No space left on device", "Disk quota exceeded"].iter().any(|text| why.contains(text))
}

fn disk_full(file: &Path, cache: &Path) -> Error {
    Error::new(
        Kind::DiskFull,
        format!("cache directory \"{}\" has no room for the eight-bit form of \"{}\"", cache.display(), file.display()),
    )
    .hint_setting(Setting::Cache, "Free disk space, set {setting} to a directory on another disk, or use float32.")
}

fn not_kept(file: &Path, why: String) -> Error {
    Error::new(Kind::BadModel, format!("the eight-bit form of \"{}\" could not be kept", file.display()))
        .detail(why)
        .hint("See that the cache's directory can be written and the disk has room, or use float32.")
}

/// Quantizes a graph and stores it in the cache. `threads` is the number of threads for running it.
///
/// # Errors
/// [`Kind::Unsupported`] if no quantized graph is close enough to float32; [`Kind::DiskFull`]; [`Kind::BadModel`] if
/// the graph can't be written for another reason.
pub fn make(
    runtime: &Runtime,
    file: &Path,
    threads: usize,
    cache: &Path,
    samples: &Samples<'_>,
    check_interrupts: &mut dyn FnMut(),
) -> Result<Tower> {
    let failed = |why| not_kept(file, why);
    let entry = Entry::of(cache, file, &runtime.version, Form::Int8)
        .ok_or_else(|| failed(format!("\"{}\" can't be read.", file.display())))?;
    // Quantizing takes minutes of a core and gigabytes of memory, so only one process does it at a time.
    let _lock = entry.lock(check_interrupts);
    if let Some(tower) = find(runtime, file, threads, cache)? {
        return Ok(tower);
    }
    // Another process may have failed while this one waited.
    check_before(runtime, file, cache)?;
    // The cached file is damaged or missing.
    entry.remove();
    let mut refusal = None;
    let write = |graph: &Path| {
        let draft = graph.parent().expect("a path in a directory");
        let work = graph.with_file_name("work");
        fs::create_dir(&work).map_err(|e| e.to_string())?;
        let made = work.join("eight-bit.onnx");
        let recipe = quantize(runtime, file, &made, samples, check_interrupts).map_err(|e| {
            if e.kind == Kind::Interrupted {
                // An interrupt is not an error of the graph, which would be recorded. This call unwinds.
                check_interrupts();
            }
            let text = e.to_string();
            let full = if e.kind == Kind::Unsupported { None } else { filled(file, cache, draft, &text) };
            refusal = Some(full.unwrap_or(e));
            text
        })?;
        Tower::write_optimized(runtime, &made, threads, graph)
            .inspect_err(|why| refusal = filled(file, cache, draft, why))?;
        fs::remove_dir_all(&work).map_err(|e| e.to_string())?;
        fs::write(graph.with_file_name(RECIPE), recipe.to_string()).map_err(|e| e.to_string())
    };
    let written = entry.write(write);
    give_back_memory();
    match written {
        Some(Ok(())) => find(runtime, file, threads, cache)?
            .ok_or_else(|| failed("It can't be loaded after it was written.".to_owned())),
        Some(Err(why)) => {
            let full = is_full(&why).then(|| disk_full(file, cache).detail(why.clone()));
            let error = refusal.or(full).unwrap_or_else(|| failed(why));
            if error.kind == Kind::Unsupported {
                entry.refuse(error.detail.as_deref().unwrap_or_default());
            }
            Err(error)
        }
        None => Err(failed("It was tried less than an hour ago, and failed.".to_owned())),
    }
}

/// Quantizes the graph in `file` and writes it to `target`, a path in a separate directory, from which the caller must
/// remove the intermediate files. `check_interrupts` is called between steps, the longest of which loads a graph; it
/// may unwind.
///
/// # Errors
/// [`Kind::Unsupported`] if the graph has no matrix product with float32 weights, or if no attempt is close enough to
/// float32; [`Kind::BadModel`] if a file can't be written.
fn quantize(
    runtime: &Runtime,
    file: &Path,
    target: &Path,
    samples: &Samples<'_>,
    check_interrupts: &mut dyn FnMut(),
) -> Result<Recipe> {
    let directory = target.parent().expect("a path in a directory");
    let source = Source::fold(runtime, file, directory)?;
    check_interrupts();
    if source.layers.is_empty() {
        return Err(refused(
            file,
            "It has no matrix product with constant float32 weights; convolutions stay as they are.",
        ));
    }
    let observed = observe(runtime, &source, samples, check_interrupts)?;
    let factors = balance(&source, &observed.activations, check_interrupts)?;
    let groups = measure(runtime, &source, &factors, samples, check_interrupts)?;
    let mut budget = BUDGET;
    let mut found = None;
    for _ in 0..TRIES {
        let schemes = choose(&groups, source.layers.len(), budget);
        budget *= STRICTER;
        let time = |scheme: &dyn Fn(usize) -> Scheme| -> f64 {
            source.layers.iter().enumerate().map(|(index, l)| source.size(l) * COSTS[scheme(index) as usize]).sum()
        };
        if time(&|layer| schemes[layer]) > (1.0 - GAIN) * time(&|_| Scheme::Float32) {
            break;
        }
        write(&source, &factors, &schemes, target)?;
        check_interrupts();
        let recipe = check(runtime, target, &schemes, samples, &observed.wanted, check_interrupts)?;
        if recipe.mean >= MEAN && recipe.least >= LEAST {
            return Ok(recipe);
        }
        found = Some(recipe);
    }
    Err(match found {
        Some(recipe) => {
            refused(file, &format!("The last try: {recipe}. Asked for: {MEAN} on average, {LEAST} at least."))
        }
        None => refused(file, "Most of its matrix products would lose too much."),
    })
}

/// Compares the vectors of the samples for the check with float32's vectors.
fn check(
    runtime: &Runtime,
    graph: &Path,
    schemes: &[Scheme],
    samples: &Samples<'_>,
    wanted: &[Vec<f32>],
    check_interrupts: &mut dyn FnMut(),
) -> Result<Recipe> {
    let mut tower = Tower::plain(runtime, graph)?;
    let (mut sum, mut least) = (0.0, f64::INFINITY);
    for (sample, wanted) in (samples.half()..samples.count).zip(wanted) {
        check_interrupts();
        let vector = (samples.vector)(sample, tower.run((samples.inputs)(sample)?, samples.output)?)?;
        let cosine = cosine(&vector, wanted);
        sum += cosine;
        least = least.min(cosine);
    }
    let count = |scheme: Scheme| schemes.iter().filter(|&&s| s == scheme).count();
    let (int8, blockwise, float32) = (count(Scheme::Int8), count(Scheme::Blockwise), count(Scheme::Float32));
    Ok(Recipe { int8, blockwise, float32, mean: sum / wanted.len() as f64, least })
}

/// The error for a graph that can't be quantized.
pub fn refused(file: &Path, why: &str) -> Error {
    Error::new(Kind::Unsupported, format!("\"{}\" has no eight-bit form and runs in float32", file.display()))
        .detail(why.to_owned())
}
