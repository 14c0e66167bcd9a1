//! Every setting (GUC) of the extension.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use clip::Setting;
use clip::image::Limits;
use clip::model::AUTO_INT8;
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use pgrx::pg_sys;

static MODEL: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"photo-mini"));
static PRECISION: GucSetting<Precision> = GucSetting::<Precision>::new(Precision::Float32);
static MODEL_PATH: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"$system"));
static ONNXRUNTIME: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"$libdir/clip_search/libonnxruntime.so"));
static CACHE_PATH: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"$data/pgsql_tmp.clip_search"));
static WORDS: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static PRELOAD: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static THREADS: GucSetting<i32> = GucSetting::<i32>::new(1);
static MAX_THREADS: GucSetting<i32> = GucSetting::<i32>::new(0);
static CORES: OnceLock<usize> = OnceLock::new();
static MEMO_TEXTS: GucSetting<i32> = GucSetting::<i32>::new(256);
static MEMO_IMAGES: GucSetting<i32> = GucSetting::<i32>::new(64);
static MAX_IMAGE_PIXELS: GucSetting<i32> = GucSetting::<i32>::new(100_000_000);
static MAX_IMAGE_MEMORY: GucSetting<i32> = GucSetting::<i32>::new(1 << 20);
static MAX_IMAGE_BYTES: GucSetting<i32> = GucSetting::<i32>::new(256 << 20);
static CLUSTER_THRESHOLD: GucSetting<f64> = GucSetting::<f64>::new(0.82);
static ALLOW_TRUNCATED_IMAGES: GucSetting<bool> = GucSetting::<bool>::new(false);
static EXACT_JPEG: GucSetting<bool> = GucSetting::<bool>::new(false);
static TRUNCATE_TEXT: GucSetting<bool> = GucSetting::<bool>::new(true);
static WORKER_BATCH: GucSetting<i32> = GucSetting::<i32>::new(16);
static WORKER: GucSetting<bool> = GucSetting::<bool>::new(true);
static WORKER_ATTEMPTS: GucSetting<i32> = GucSetting::<i32>::new(5);
static WORKER_RETRY_DELAY: GucSetting<i32> = GucSetting::<i32>::new(1000);
static WORKER_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(60_000);

/// clip_search.precision
#[derive(Clone, Copy, PostgresGucEnum)]
pub enum Precision {
    #[name = c"float32"]
    Float32,
    #[name = c"int8"]
    Int8,
}

/// Defines the settings; called once per process.
pub fn register() {
    GucRegistry::define_string_guc(
        c"clip_search.model",
        c"Model that the embedding functions use if the call does not name one.",
        c"The name of a directory in clip_search.model_path, optionally with a variant: name or name:variant.",
        &MODEL,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"clip_search.model_path",
        c"Directories that are searched for models, separated by colons.",
        c"$system stands for the directory clip_search/models below PostgreSQL's shared files (pg_config --sharedir).",
        &MODEL_PATH,
        GucContext::Suset,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_string_guc(
        c"clip_search.onnxruntime",
        c"Path of libonnxruntime, version 1.17 or later.",
        c"$libdir stands for PostgreSQL's library directory. Each process loads the library once, so a change affects new connections only.",
        &ONNXRUNTIME,
        GucContext::Suset,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_string_guc(
        c"clip_search.cache_path",
        c"Directory for optimized copies of models, whose weights connections map instead of loading.",
        c"$data stands for the data directory. The cache takes about as much disk space as the models in use. A directory of another user, or one that others can write to, is not used. Empty: no cache.",
        &CACHE_PATH,
        GucContext::Suset,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_string_guc(
        c"clip_search.words",
        c"File with the words that clip_relevance and clip_tags compare photos with.",
        c"One word or phrase per line; lines that begin with + are tags only. Empty: the built-in list of 5,500 everyday words and 870 phrases. Tables that are watched with tags use it as well, so set it for a whole database or server.",
        &WORDS,
        GucContext::Suset,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_string_guc(
        c"clip_search.preload",
        c"Models that the server loads at startup for all connections, separated by commas.",
        c"It requires clip_search in shared_preload_libraries and a restart. Connections with clip_search.threads above 1 load their own copy.",
        &PRELOAD,
        preload_context(),
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"clip_search.precision",
        c"Precision of the default model.",
        c"float32 is the reference. int8 creates an eight-bit variant of clip_search.model once, keeps it in the cache, and is two to three times as fast. It does not affect models that a call or a watched table names.",
        &PRECISION,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"clip_search.threads",
        c"Number of threads that a backend uses for one inference.",
        c"1 suits servers with many connections; raise it in a single session that loads data. After a change, the next call reloads the model.",
        &THREADS,
        1,
        256,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"clip_search.max_threads",
        c"Upper limit of clip_search.threads.",
        c"0: the number of the server's cores. A larger clip_search.threads is reduced to this value.",
        &MAX_THREADS,
        0,
        256,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"clip_search.max_image_pixels",
        c"Largest image that is decoded, in pixels (width times height).",
        c"Larger images are refused before memory is allocated.",
        &MAX_IMAGE_PIXELS,
        1,
        i32::MAX,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"clip_search.memo_texts",
        c"Number of text embeddings that a connection caches for each model.",
        c"The least recently used embeddings are evicted. 0 disables the cache. A vector of 512 dimensions takes 2 kB.",
        &MEMO_TEXTS,
        0,
        1 << 20,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"clip_search.memo_images",
        c"Number of image embeddings that a connection caches for each model.",
        c"The cache serves queries by a photo, which PostgreSQL evaluates for each row. The least recently used embeddings are evicted. 0 disables the cache.",
        &MEMO_IMAGES,
        0,
        1 << 20,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"clip_search.max_image_bytes",
        c"Largest image file that is decoded, in bytes.",
        c"Larger files are refused before their content is read.",
        &MAX_IMAGE_BYTES,
        1,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_BYTE,
    );
    GucRegistry::define_int_guc(
        c"clip_search.max_image_memory",
        c"Memory that decoding and resizing one image may take.",
        c"An image that would take more is refused before memory is allocated. Most images take three bytes per pixel, progressive JPEGs up to nine, lossy WebPs with transparency eleven.",
        &MAX_IMAGE_MEMORY,
        1024,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_float_guc(
        c"clip_search.cluster_threshold",
        c"Lowest cosine to a cluster's centroid at which an embedding joins the cluster.",
        c"At 1 only equal vectors join. The default suits cosines between images; cosines between text and image are far lower.",
        &CLUSTER_THRESHOLD,
        -1.0,
        1.0,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"clip_search.allow_truncated_images",
        c"Embed truncated image files with a warning.",
        c"The missing part of the image is grey or black. Off: a truncated file is an error.",
        &ALLOW_TRUNCATED_IMAGES,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"clip_search.exact_jpeg",
        c"Decode JPEGs at full size even if they are far larger than the model's input.",
        c"Off: JPEGs of at least eight times that size are decoded at 1/2, 1/4 or 1/8, which is faster; their cosine to the exact embeddings was 0.9999 in the median and 0.9939 at least.",
        &EXACT_JPEG,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"clip_search.truncate_text",
        c"Truncate texts that are longer than the model's context, with a warning.",
        c"On truncates as the reference tokenizers do. Off: such a text is an error.",
        &TRUNCATE_TEXT,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"clip_search.worker",
        c"Let the background worker embed queued rows.",
        c"Off: the queue grows until the setting is on again or clip_backfill is called.",
        &WORKER,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"clip_search.worker_batch",
        c"Number of rows that the background worker embeds in one transaction.",
        c"Their files are in memory at the same time, up to 64 MB. A failed transaction is repeated row by row.",
        &WORKER_BATCH,
        1,
        1024,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"clip_search.worker_attempts",
        c"Number of attempts before the background worker gives up on a row and lists it in clip_search.failure.",
        c"An attempt that ended in a server crash counts, so a row can crash the server at most this many times.",
        &WORKER_ATTEMPTS,
        1,
        100,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"clip_search.worker_retry_delay",
        c"How long the background worker waits before it retries a failed row.",
        c"The delay doubles with each attempt, up to one hour.",
        &WORKER_RETRY_DELAY,
        10,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"clip_search.worker_timeout",
        c"How long a table's own triggers may run when the background worker writes a row.",
        c"A table whose triggers run longer would delay the rows of other tables, so its rows are postponed.",
        &WORKER_TIMEOUT,
        100,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    // SAFETY: PostgreSQL copies the name; called in _PG_init after every setting is defined.
    #[allow(unsafe_code)]
    unsafe {
        pg_sys::MarkGUCPrefixReserved(c"clip_search".as_ptr());
    }
}

/// With RUST_BACKTRACE in the server's environment, an error that PostgreSQL raises inside an SQL function, for example
/// in a read-only transaction, would carry 30 lines of backtrace as its DETAIL. To get backtraces, set
/// RUST_LIB_BACKTRACE=1.
#[allow(unsafe_code)]
pub fn leave_out_backtraces() {
    const NAME: &str = "RUST_LIB_BACKTRACE";
    if std::env::var_os(NAME).is_none() {
        // SAFETY: this process has one thread when the library is loaded: PostgreSQL's processes have no other threads,
        // and the engine starts its own later.
        unsafe { std::env::set_var(NAME, "0") };
    }
}

/// The setting (GUC) to name in a hint of the engine.
pub fn name(setting: Setting) -> &'static str {
    match setting {
        Setting::Runtime => "clip_search.onnxruntime",
        Setting::Cache => "clip_search.cache_path",
        Setting::TruncateText => "clip_search.truncate_text",
    }
}

fn string(setting: &'static GucSetting<Option<CString>>) -> String {
    setting.get().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The default model, in the precision of clip_search.precision. A model that names a variant is not changed.
pub fn model() -> String {
    let spec = string(&MODEL);
    match PRECISION.get() {
        Precision::Float32 => spec,
        Precision::Int8 => {
            let part = |part: &str| if part.contains(':') { part.to_owned() } else { format!("{part}:{AUTO_INT8}") };
            spec.split('+').map(part).collect::<Vec<_>>().join("+")
        }
    }
}

/// The model that a call names, or the default one.
pub fn model_or_default(named: Option<&str>) -> String {
    named.map_or_else(model, str::to_owned)
}

/// The default model as clip_search.model names it.
pub fn model_name() -> String {
    string(&MODEL)
}

/// The directories of `clip_search.model_path`, in order.
pub fn model_path() -> Vec<PathBuf> {
    const MODELS: &str = "clip_search/models";
    let mut path = Vec::new();
    for entry in string(&MODEL_PATH).split(':').filter(|entry| !entry.is_empty()) {
        if entry == "$system" {
            path.push(share_directory().join(MODELS));
            let beside = own_directory().and_then(|own| Some(own.parent()?.join("share").join(MODELS)));
            path.extend(beside.filter(|beside| beside.is_dir() && !path.contains(beside)));
        } else {
            path.push(PathBuf::from(entry));
        }
    }
    path
}

/// The file with the background's words; `None` for the built-in list.
pub fn words() -> Option<PathBuf> {
    let path = string(&WORDS);
    (!path.is_empty()).then(|| PathBuf::from(path))
}

/// The path of libonnxruntime.
pub fn onnxruntime() -> PathBuf {
    let path = string(&ONNXRUNTIME);
    match path.strip_prefix("$libdir/") {
        Some(rest) => {
            let usual = library_directory().join(rest);
            match own_directory() {
                Some(own) if !usual.exists() && own.join(rest).exists() => own.join(rest),
                _ => usual,
            }
        }
        None => PathBuf::from(path),
    }
}

/// The directory that this library was loaded from. It differs from PostgreSQL's if dynamic_library_path names another,
/// for example in an image volume, which has its own lib/ and share/. `None` if the loader does not report it.
#[allow(unsafe_code)]
fn own_directory() -> Option<PathBuf> {
    // SAFETY: dladdr fills `about` for an address of this library; the name that it points to lives as long as the
    // library.
    let file = unsafe {
        let mut about: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(own_directory as *const libc::c_void, &raw mut about) == 0 || about.dli_fname.is_null() {
            return None;
        }
        std::ffi::CStr::from_ptr(about.dli_fname).to_string_lossy().into_owned()
    };
    PathBuf::from(file).parent().map(Path::to_owned)
}

/// The directory of the graph cache; `None` if it is disabled.
///
/// The default is in the data directory under a name that base backups omit (they skip names that begin with
/// `pgsql_tmp`).
#[allow(unsafe_code)]
pub fn cache() -> Option<PathBuf> {
    let path = string(&CACHE_PATH);
    match path.strip_prefix("$data/") {
        // SAFETY: a nul-terminated string that is set at the server's start.
        Some(rest) => Some(unsafe {
            let data = std::ffi::CStr::from_ptr((&raw const pg_sys::DataDir).read());
            PathBuf::from(data.to_string_lossy().into_owned()).join(rest)
        }),
        None => (!path.is_empty()).then(|| PathBuf::from(path)),
    }
}

/// `Postmaster` if the server preloads the library. PostgreSQL refuses to define such a setting later, and a library
/// that is loaded later can't preload models.
#[allow(unsafe_code)]
fn preload_context() -> GucContext {
    // SAFETY: a flag that only this thread writes.
    if unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        GucContext::Postmaster
    } else {
        GucContext::Sighup
    }
}

/// The models of `clip_search.preload`.
pub fn preload() -> Vec<String> {
    let list = string(&PRELOAD);
    list.split(',').map(str::trim).filter(|spec| !spec.is_empty()).map(str::to_owned).collect()
}

/// Threads of one inference: the session's setting, up to the administrator's limit.
pub fn threads() -> usize {
    let most = match MAX_THREADS.get() {
        // The system is asked only once, because this reads files.
        0 => *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from)),
        most => most as usize,
    };
    (THREADS.get() as usize).min(most)
}

pub fn memo_texts() -> usize {
    MEMO_TEXTS.get() as usize
}

pub fn memo_images() -> usize {
    MEMO_IMAGES.get() as usize
}

pub fn limits() -> Limits {
    Limits {
        max_pixels: MAX_IMAGE_PIXELS.get() as u64,
        max_bytes: MAX_IMAGE_BYTES.get() as u64,
        max_memory: MAX_IMAGE_MEMORY.get() as u64 * 1024,
        allow_truncated: ALLOW_TRUNCATED_IMAGES.get(),
        exact_jpeg: EXACT_JPEG.get(),
        names: ("clip_search.max_image_pixels", "clip_search.max_image_bytes", "clip_search.max_image_memory"),
        ..Limits::default()
    }
}

pub fn cluster_threshold() -> f64 {
    CLUSTER_THRESHOLD.get()
}

pub fn worker_batch() -> i64 {
    i64::from(WORKER_BATCH.get())
}

pub fn worker() -> bool {
    WORKER.get()
}

pub fn worker_attempts() -> i32 {
    WORKER_ATTEMPTS.get()
}

/// The delay after the first failure, in milliseconds.
pub fn worker_retry_delay() -> i32 {
    WORKER_RETRY_DELAY.get()
}

/// The time limit for a table owner's code in the worker, in milliseconds.
pub fn worker_timeout() -> i32 {
    WORKER_TIMEOUT.get()
}

pub fn truncate_text() -> bool {
    TRUNCATE_TEXT.get()
}

/// PostgreSQL's shared files of the running installation (`pg_config --sharedir`), even if it was moved.
#[allow(unsafe_code)]
fn share_directory() -> PathBuf {
    let mut buffer = [0; pg_sys::MAXPGPATH as usize];
    // SAFETY: my_exec_path is set at start-up, and the function writes at most MAXPGPATH bytes with their nul.
    unsafe {
        pg_sys::get_share_path((&raw const pg_sys::my_exec_path).cast(), buffer.as_mut_ptr());
        PathBuf::from(std::ffi::CStr::from_ptr(buffer.as_ptr()).to_string_lossy().into_owned())
    }
}

/// The directory of PostgreSQL's loadable modules (`pg_config --pkglibdir`).
#[allow(unsafe_code)]
fn library_directory() -> PathBuf {
    // SAFETY: pkglib_path is a nul-terminated static that is set at start-up.
    unsafe {
        PathBuf::from(std::ffi::CStr::from_ptr((&raw const pg_sys::pkglib_path).cast()).to_string_lossy().into_owned())
    }
}
