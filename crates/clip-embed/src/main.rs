//! Embeds image files outside the server with the engine of clip_search, and writes files for COPY.
//!
//! One thread receives the vectors and writes the output; the other threads embed. The output only grows, record by
//! record, so a run that was killed can be resumed.

mod columns;
mod input;
mod list;
mod merge;
mod output;
mod progress;
mod remote;
mod shard;
mod workers;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clip::embedder::Embedder;
use clip::image::Limits;
use clip::model::{Model, cache_directory};
use clip::{Error, Kind, Setting};

use sha2::{Digest, Sha256};

use list::{Columns, Item, List, is_remote};
use merge::Merge;
use output::{Failures, Format, Key, Output};
use progress::{Progress, files, tell};
use shard::Shard;
use workers::Message;

/// The paths where the Debian packages install models and the runtime library (scripts/deb.sh).
const PACKAGED_MODELS: &str = "/usr/share/clip-search/models";
const PACKAGED_LIBRARY: &str = "/usr/lib/clip-search/libonnxruntime.so";

/// Exit status: some files could not be embedded; all others are done.
const SOME_FAILED: u8 = 3;

/// Embeds image files and writes a file for COPY: one vector per image, as clip_embed_image returns it.
///
/// The vectors equal the extension's bit for bit if --threads equals clip_search.threads and the extension embeds
/// single images without mapped weights (clip_search.cache_path = ''). Otherwise they are equal up to rounding, with a
/// cosine above 1 - 1e-12.
///
/// "clip-embed check DIRECTORY" checks a model, and "clip-embed merge" joins outputs; see "clip-embed check --help" and
/// "clip-embed merge --help".
///
/// The output only grows. The same command resumes a run that was killed, and retries files that failed.
///
/// Exit status: 0 if all files are embedded; 3 if some are not (FILE.failures.csv lists the reasons); 1 if the run
/// could not start or had to stop; 2 if the command line is wrong.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    /// A directory, searched recursively for image files, or a list of paths: a CSV file with a header, or a Parquet
    /// file. "-" reads CSV from standard input. Paths in a list may be https:// and s3:// addresses, and the input may
    /// be s3://BUCKET/PREFIX.
    input: PathBuf,
    /// The file to write or resume. FILE.failures.csv lists failures; FILE.json records the options. "-" is standard
    /// output, which can't be resumed; failures are then lines of standard error.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// csv for COPY … (FORMAT csv, HEADER) into vector or halfvec; binary for COPY … (FORMAT binary) into vector;
    /// parquet for other programs: columns key and embedding, a list of float32.
    #[arg(short, long, default_value = "csv")]
    format: Format,
    /// Type of the key column in the table, which binary COPY depends on.
    #[arg(long, default_value = "text")]
    key_type: Key,
    #[command(flatten)]
    columns: Columns,
    /// Embed only shard I of N, counted from 1. A hash of the key decides to which shard a file belongs. Give each
    /// process the same command with another I and another --output.
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    #[command(flatten)]
    remote: remote::Options,
    /// Name of the model, as in clip_search.model.
    #[arg(short, long, default_value = "photo-mini")]
    model: String,
    /// Directories to search for models, separated by colons [default: where "make install" puts models].
    #[arg(long, value_name = "PATH")]
    model_path: Option<String>,
    /// Path of libonnxruntime [default: the library that "make install" puts beside the extension].
    #[arg(long, value_name = "FILE", env = "ORT_DYLIB_PATH", hide_env_values = true, value_parser = path())]
    onnxruntime: Option<PathBuf>,
    /// The pg_config program of the server for which models and libonnxruntime are installed.
    #[arg(long, value_name = "PROGRAM", env = "PG_CONFIG", hide_env_values = true, default_value = "pg_config", value_parser = path())]
    pg_config: PathBuf,
    /// Directory for optimized copies of models; the variant NAME:auto-int8 needs one [default: none].
    #[arg(long, value_name = "DIRECTORY")]
    cache: Option<PathBuf>,
    /// Number of workers, each with a copy of the model [default: the number of cores].
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// Threads per inference, as clip_search.threads. More jobs use the cores better than more threads.
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Largest image to decode, in pixels.
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_pixels)]
    max_image_pixels: u64,
    /// Largest file to read, in bytes.
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_bytes)]
    max_image_bytes: u64,
    /// Most memory for decoding one image, in bytes.
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_memory)]
    max_image_memory: u64,
    /// Embed truncated files as far as they can be decoded.
    #[arg(long)]
    allow_truncated_images: bool,
    /// Decode JPEGs in full even if they are far larger than the model's input.
    #[arg(long)]
    exact_jpeg: bool,
    /// Show no progress.
    #[arg(short, long)]
    quiet: bool,
}

/// Checks a model directory, as clip_check_model does, and prints what it finds; the last line is the verdict.
///
/// Exit status: 0 if the verdict is good; 3 if it is not.
#[derive(Parser)]
#[command(name = "clip-embed check", max_term_width = 100)]
struct Check {
    /// Directory of the model, optionally with a variant: DIRECTORY:variant.
    directory: PathBuf,
    /// Path of libonnxruntime [default: the library that "make install" puts beside the extension].
    #[arg(long, value_name = "FILE", env = "ORT_DYLIB_PATH", hide_env_values = true, value_parser = path())]
    onnxruntime: Option<PathBuf>,
    /// The pg_config program of the server for which libonnxruntime is installed.
    #[arg(long, value_name = "PROGRAM", env = "PG_CONFIG", hide_env_values = true, default_value = "pg_config", value_parser = path())]
    pg_config: PathBuf,
}

fn main() -> ExitCode {
    // These are not subcommands of the parser, because the positional argument may be a directory with any name.
    let first = std::env::args_os().nth(1);
    if first.as_ref().is_some_and(|first| first == "check") {
        return outcome(check(&Check::parse_from(std::env::args_os().skip(1))));
    }
    if first.is_some_and(|first| first == "merge") {
        return outcome(merge::run(Merge::parse_from(std::env::args_os().skip(1))));
    }
    outcome(run(&Arguments::parse()))
}

/// Prints the error, if there is one, and returns the exit status.
fn outcome(result: clip::Result<usize>) -> ExitCode {
    match result {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(SOME_FAILED),
        Err(error) => {
            tell(format_args!("clip-embed: {}", error.message));
            let hint = error.hint_for(option);
            for (what, text) in [("detail", error.detail), ("hint", hint)] {
                text.into_iter().for_each(|text| tell(format_args!("  {what}: {text}")));
            }
            ExitCode::FAILURE
        }
    }
}

/// Checks a model; returns the number of problems.
fn check(arguments: &Check) -> clip::Result<usize> {
    let library = library(arguments.onnxruntime.as_ref(), &arguments.pg_config)?;
    let directory = arguments.directory.components().as_path();
    let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name().and_then(|name| name.to_str())) else {
        return Err(Error::new(Kind::UnknownModel, format!("\"{}\" is not a model's directory", directory.display())));
    };
    let rows = Embedder::new(Model::find(&[parent.to_owned()], name)?, library, 1).check(option);
    let width = rows.iter().map(|(what, _)| what.chars().count()).max().unwrap_or_default();
    for (what, value) in &rows {
        println!("{what:width$}  {value}");
    }
    Ok(usize::from(rows.last().is_none_or(|(_, verdict)| verdict != "good")))
}

/// The option for a setting in the engine's hints. clip-embed does not embed texts, so one setting has none.
fn option(setting: Setting) -> &'static str {
    match setting {
        Setting::Runtime => "--onnxruntime",
        Setting::Cache => "--cache",
        Setting::TruncateText => "",
    }
}

/// Embeds the files that are missing in the output; returns the number of failures.
fn run(arguments: &Arguments) -> clip::Result<usize> {
    let search = match &arguments.model_path {
        Some(path) => path.split(':').map(PathBuf::from).collect(),
        None => {
            vec![installed(&arguments.pg_config, "--sharedir", "clip_search/models", PACKAGED_MODELS, "--model-path")?]
        }
    };
    let library = library(arguments.onnxruntime.as_ref(), &arguments.pg_config)?;
    let model = Model::find(&search, &arguments.model)?;
    if model.vision.is_none() {
        return Err(Error::new(Kind::MissingFile, format!("model \"{}\" has no image tower", model.name))
            .detail(format!("No ONNX file for it is in \"{}\".", model.directory.display())));
    }
    arguments.cache.as_deref().map_or(Ok(()), cache_directory::check)?;
    let list = input::list(&arguments.input, &arguments.columns, &arguments.remote, &output::files(&arguments.output))?;
    let mut paths =
        list.items.iter().filter(|item| is_remote(&item.path)).filter_map(|item| item.path.to_str()).peekable();
    if paths.peek().is_some() {
        // If remote paths are not built in, this refuses them before any work is done.
        let mut reader = remote::Reader::new(&arguments.remote)?;
        if let Some(path) = paths.find(|path| path.starts_with("s3://")) {
            reader.need_credentials(path)?;
        }
    }
    let mut output =
        Output::open(&arguments.output, arguments.format, arguments.key_type, &made_by(arguments, &model)?)?;
    let mut failures = Failures::create(&arguments.output)?;
    let chosen = choose(list, arguments, &output, &mut failures)?;
    let progress = Progress::new(chosen.items.len() as u64, arguments.quiet);
    chosen.tell(&progress, &arguments.output, arguments.shard);
    let limits = Limits {
        max_pixels: arguments.max_image_pixels,
        max_bytes: arguments.max_image_bytes,
        allow_truncated: arguments.allow_truncated_images,
        exact_jpeg: arguments.exact_jpeg,
        max_memory: arguments.max_image_memory,
        interrupted: || false,
        names: ("--max-image-pixels", "--max-image-bytes", "--max-image-memory"),
    };
    let embedder = || {
        Embedder::new(model.clone(), library.clone(), usize::from(arguments.threads))
            .with_cache(arguments.cache.clone())
    };
    let jobs = arguments.jobs.map_or_else(cores, usize::from);
    let (mut failed, mut told) = (chosen.failed, HashSet::new());
    workers::embed(&chosen.items, jobs, &limits, &arguments.remote, embedder, |message| {
        let (item, result, remarks) = match message {
            Message::Ready => {
                progress.begin();
                return Ok(());
            }
            Message::Broken(error) => return Err(error),
            Message::Done { item, result, remarks } => (&chosen.items[item], result, remarks),
        };
        for remark in remarks {
            match remark.element {
                Some(_) => progress.say(&format!("\"{}\": {remark}", item.key)),
                // A remark about the model, which each worker sends.
                None if told.insert(remark.message.clone()) => progress.say(&remark.to_string()),
                None => {}
            }
        }
        match result {
            Ok(vector) => output.write(&item.key, &vector)?,
            Err(error) => {
                progress.suspend(|| failures.add(&item.key, &error))?;
                failed += 1;
                progress.fail();
            }
        }
        progress.step();
        Ok(())
    })?;
    output.finish(failed)?;
    failures.finish()?;
    progress.finish(output.count(), failed, &arguments.output, &failures.place());
    Ok(failed)
}

/// The entries of a list to embed, and the numbers of the others by reason.
struct Chosen {
    items: Vec<Item>,
    given: usize,
    left_out: usize,
    repeated: usize,
    /// The number of keys that are in the output already.
    there: usize,
    /// The number of keys in other shards.
    elsewhere: usize,
    failed: usize,
}

fn choose(list: List, arguments: &Arguments, output: &Output, failures: &mut Failures) -> clip::Result<Chosen> {
    let mine = |key: &str| arguments.shard.is_none_or(|shard| shard.takes(key));
    let (given, left_out) = (list.items.len(), list.left_out);
    let mut chosen = Chosen { items: Vec::new(), given, left_out, repeated: 0, there: 0, elsewhere: 0, failed: 0 };
    // Only one of the shards reports each unusable entry.
    for (path, error) in list.unusable.iter().filter(|(path, _)| mine(path)) {
        failures.add(path, error)?;
        chosen.failed += 1;
    }
    let mut seen = HashSet::new();
    for Item { key, path } in list.items {
        match arguments.key_type.canonical(&key, arguments.format) {
            Ok(key) if !mine(&key) => chosen.elsewhere += 1,
            Ok(key) if !seen.insert(key.clone()) => chosen.repeated += 1,
            Ok(key) if output.has(&key) => chosen.there += 1,
            Ok(key) => chosen.items.push(Item { key, path }),
            Err(_) if !mine(&key) => chosen.elsewhere += 1,
            Err(error) => {
                failures.add(&key, &error)?;
                chosen.failed += 1;
            }
        }
    }
    chosen.given -= chosen.elsewhere;
    Ok(chosen)
}

impl Chosen {
    fn tell(&self, progress: &Progress, output: &Path, shard: Option<Shard>) {
        let Self { given, left_out, repeated, there, elsewhere, .. } = self;
        if let Some(shard) = shard {
            progress.say(&format!("shard {shard}: {given} of {}", files((given + elsewhere) as u64)));
        }
        if *left_out > 0 {
            let names = files(*left_out as u64);
            progress.say(&format!("left out by the end of their names: {names} (--every-file takes all)"));
        }
        if *repeated > 0 {
            progress.say(&format!("{repeated} of {given} keys are there more than once; the first of each is taken"));
        }
        if *there > 0 {
            progress.say(&format!("{there} of {given} are in \"{}\" already", output.display()));
        }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The options that must be equal for two runs that write to the same output.
fn made_by(arguments: &Arguments, model: &Model) -> clip::Result<serde_json::Value> {
    Ok(serde_json::json!({
        "format": arguments.format.to_string(),
        "key_type": arguments.key_type.to_string(),
        "key_column": arguments.columns.key_column,
        "shard": arguments.shard.map(|shard| shard.to_string()),
        "model": model.name,
        "model_sha256": digest(model)?,
        "exact_jpeg": arguments.exact_jpeg,
        "clip_embed": env!("CARGO_PKG_VERSION"),
    }))
}

/// SHA-256 of the files that determine image vectors. Two models can have the same name and vector length, and nobody
/// would notice mixed vectors. Hashing the 350 MB of ViT-B/32 takes less time than loading them.
fn digest(model: &Model) -> clip::Result<String> {
    let mut state = Sha256::new();
    let mut take = |path: &Path| -> clip::Result<Vec<u8>> {
        let content = std::fs::read(path).map_err(|e| {
            Error::new(Kind::MissingFile, format!("\"{}\" cannot be read", path.display())).detail(format!("{e}."))
        })?;
        state.update((content.len() as u64).to_le_bytes());
        state.update(&content);
        Ok(content)
    };
    if let Some(file) = &model.vision {
        let graph = take(file)?;
        // Weights outside the graph are in files beside it, whose names the graph contains.
        let beside = file.parent().and_then(|folder| folder.read_dir().ok());
        let mut named: Vec<PathBuf> = beside
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| memchr::memmem::find(&graph, entry.file_name().as_encoded_bytes()).is_some())
            .map(|entry| entry.path())
            .filter(|path| path != file && path.is_file())
            .collect();
        drop(graph);
        named.sort();
        for path in named {
            take(&path)?;
        }
    }
    for path in model.preprocess.iter().cloned().chain([model.directory.join("config.json")]).filter(|p| p.is_file()) {
        take(&path)?;
    }
    Ok(format!("{:x}", state.finalize()))
}

/// A parser of paths that accepts an empty path. An environment variable that is set but empty counts as not set; the
/// usual parser of paths would refuse it.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// The path of libonnxruntime.
fn library(given: Option<&PathBuf>, pg_config: &Path) -> clip::Result<PathBuf> {
    match given.filter(|path| !path.as_os_str().is_empty()) {
        Some(path) => Ok(path.clone()),
        None => installed(pg_config, "--pkglibdir", "clip_search/libonnxruntime.so", PACKAGED_LIBRARY, "--onnxruntime"),
    }
}

/// The path of a file that is installed below a directory of the server, or by the Debian packages, which need no
/// pg_config.
fn installed(program: &Path, which: &str, below: &str, packaged: &str, option: &str) -> clip::Result<PathBuf> {
    let program = if program.as_os_str().is_empty() { Path::new("pg_config") } else { program };
    let failed = |why: String| {
        if Path::new(packaged).exists() {
            return Ok(PathBuf::from(packaged));
        }
        Err(Error::new(Kind::MissingFile, format!("\"{} {which}\" failed", program.display()))
            .detail(why)
            .hint(format!("Set PG_CONFIG to your server's pg_config, or give {option}.")))
    };
    let answer = match Command::new(program).arg(which).output() {
        Ok(answer) => answer,
        Err(e) => return failed(format!("{e}.")),
    };
    let text = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
    if answer.status.success() && !text.is_empty() {
        Ok(PathBuf::from(text).join(below))
    } else {
        failed(format!("It says: {}", String::from_utf8_lossy(&answer.stderr).trim()))
    }
}
