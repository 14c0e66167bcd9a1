//! Fetches files from web servers and object stores: https:// and s3:// paths.
//!
//! This is a build feature, because it adds 90 crates. Without it, such paths are refused at the start.

#[cfg(feature = "remote")]
use clap::builder::RangedU64ValueParser;
#[cfg(feature = "remote")]
pub use fetch::{Reader, list};

/// Options for fetching files.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    #[cfg(feature = "remote")]
    /// Seconds per attempt to fetch one https:// or s3:// file.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = RangedU64ValueParser::<u64>::new().range(1..=3600))]
    pub timeout: u64,
    #[cfg(feature = "remote")]
    /// Number of further attempts after a temporary failure, with growing pauses.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = RangedU64ValueParser::<u64>::new().range(0..=100))]
    pub retries: u64,
    #[cfg(feature = "remote")]
    /// Also fetch http:// paths, which anybody on the network path can read and change.
    #[arg(long)]
    pub allow_http: bool,
}

#[cfg(not(feature = "remote"))]
mod without {
    use clip::image::Limits;
    use clip::{Error, Kind, Result};

    use super::Options;
    use crate::list::List;

    pub enum Reader {}

    impl Reader {
        pub fn new(_: &Options) -> Result<Self> {
            Err(Error::new(Kind::Unsupported, "this clip-embed reads no https:// and s3:// paths")
                .detail("They are a build feature, which the packages have.")
                .hint("Build it with REMOTE=1 make, or by cargo build with --features remote."))
        }

        pub fn read(&mut self, _: &str, _: &Limits) -> Result<Vec<u8>> {
            match *self {}
        }

        pub fn need_credentials(&mut self, _: &str) -> Result<()> {
            match *self {}
        }
    }

    pub fn list(_: &str, options: &Options, _: impl Fn(&str) -> bool) -> Result<List> {
        Reader::new(options).map(|_| List::default())
    }
}
#[cfg(not(feature = "remote"))]
pub use without::{Reader, list};

#[cfg(feature = "remote")]
mod fetch {
    use std::collections::HashMap;
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, OnceLock};
    use std::time::Duration;

    use async_trait::async_trait;
    use clip::image::Limits;
    use clip::{Error, Kind, Result, without_panic};
    use futures_util::TryStreamExt;
    use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
    use object_store::client::{
        ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
    };
    use object_store::http::HttpBuilder;
    use object_store::path::Path as Key;
    use object_store::{BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig};
    use tokio::runtime::Runtime;

    use super::Options;
    use crate::list::{Item, List};

    /// The first and the longest pause between attempts, in object_store and in `take`.
    const FIRST_PAUSE: Duration = Duration::from_millis(100);
    const LAST_PAUSE: Duration = Duration::from_secs(15);

    /// Maximum number of characters in a detail, which may quote a page that a server sent.
    const LONGEST_DETAIL: usize = 500;

    /// Maximum number of bytes to read of such a page.
    const LONGEST_PAGE: usize = 16 << 10;

    const CREDENTIALS: &str =
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket.";

    /// Fetches files for one worker.
    pub struct Reader {
        runtime: Runtime,
        web: Shared,
        buckets: HashMap<String, AmazonS3>,
        options: Options,
    }

    impl Reader {
        pub fn new(options: &Options) -> Result<Self> {
            // The first worker installs the provider; for the others the call has no effect.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime =
                runtime.map_err(|e| Error::new(Kind::Internal, "no connection can be made").detail(format!("{e}.")))?;
            Ok(Self { runtime, web: Shared::default(), buckets: HashMap::new(), options: options.clone() })
        }

        /// Fetches a file.
        ///
        /// # Errors
        /// If the file does not exist, can't be fetched in time, or is too large.
        pub fn read(&mut self, url: &str, limits: &Limits) -> Result<Vec<u8>> {
            // object_store limits its attempts, but not the time that a server may take for the last byte.
            let most = Duration::from_secs(self.options.timeout * (self.options.retries + 1) + 60);
            if let Some(place) = url.strip_prefix("s3://") {
                let (bucket, key) = place.split_once('/').unwrap_or((place, ""));
                let key = Key::parse(key).map_err(|e| failed(&e).hint("A key has no empty part, and no . or .."))?;
                let store = self.bucket(bucket)?.clone();
                self.runtime.block_on(within(most, take(&store, &key, limits, self.options.retries)))
            } else {
                let insecure = url.starts_with("http://");
                if insecure && !self.options.allow_http {
                    return Err(Error::new(Kind::InvalidInput, "file cannot be fetched")
                        .detail("http:// has no encryption.")
                        .hint("Take https://, or give --allow-http."));
                }
                let options = ClientOptions::new()
                    .with_timeout(Duration::from_secs(self.options.timeout))
                    .with_connect_timeout(Duration::from_secs(self.options.timeout.min(10)))
                    .with_allow_http(self.options.allow_http);
                // The store's URL is the whole address, so that its query and its escapes remain unchanged.
                let store = HttpBuilder::new()
                    .with_url(url)
                    .with_http_connector(self.web.clone())
                    .with_client_options(options)
                    .with_retry(retry(&self.options))
                    .build()
                    .map_err(|e| failed(&e))?;
                let key = Key::default();
                // object_store asserts that an address fits an HTTP request, which one of 70 kB doesn't.
                let unfit = || {
                    Error::new(Kind::InvalidInput, "file cannot be fetched")
                        .detail(format!("No request can be made of its address of {} bytes.", url.len()))
                };
                without_panic(unfit, || {
                    self.runtime.block_on(within(most, take(&store, &key, limits, self.options.retries)))
                })
            }
        }

        /// Checks that there are credentials for an s3:// path, so that a run without them ends before its first file.
        ///
        /// # Errors
        /// If there are no credentials.
        pub fn need_credentials(&mut self, url: &str) -> Result<()> {
            let Some(place) = url.strip_prefix("s3://") else { return Ok(()) };
            let bucket = place.split('/').next().unwrap_or(place);
            let credentials = Arc::clone(self.bucket(bucket)?.credentials());
            // object_store reads the variable in this way.
            let unsigned = std::env::var("AWS_SKIP_SIGNATURE").unwrap_or_default().to_ascii_lowercase();
            if ["1", "true", "on", "yes", "y"].contains(&unsigned.as_str()) {
                return Ok(());
            }
            self.runtime.block_on(credentials.get_credential()).map(drop).map_err(|e| {
                let mut error = failed(&e).hint(format!("{CREDENTIALS} Without them, the machine's role is asked."));
                error.message = format!("no credentials for \"s3://{bucket}\"");
                error
            })
        }

        fn bucket(&mut self, name: &str) -> Result<&AmazonS3> {
            if !self.buckets.contains_key(name) {
                let seconds = |seconds: u64| format!("{seconds} seconds");
                let timeout = self.options.timeout;
                let mut builder = AmazonS3Builder::from_env()
                    .with_bucket_name(name)
                    .with_http_connector(Connector)
                    .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), seconds(timeout))
                    .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::ConnectTimeout), seconds(timeout.min(10)))
                    .with_retry(retry(&self.options));
                if self.options.allow_http {
                    builder = builder.with_allow_http(true);
                }
                let store = builder.build().map_err(|e| failed(&e).hint(CREDENTIALS))?;
                self.buckets.insert(name.to_owned(), store);
            }
            Ok(&self.buckets[name])
        }
    }

    fn retry(options: &Options) -> RetryConfig {
        let max_retries = usize::try_from(options.retries).unwrap_or(usize::MAX);
        let retry_timeout = Duration::from_secs(options.timeout * (options.retries + 1));
        let backoff = BackoffConfig { init_backoff: FIRST_PAUSE, max_backoff: LAST_PAUSE, base: 2. };
        RetryConfig { backoff, max_retries, retry_timeout }
    }

    async fn within<T>(most: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::time::timeout(most, work).await.unwrap_or_else(|_| {
            let detail = format!("It was not there after {} seconds.", most.as_secs());
            Err(Error::new(Kind::InvalidInput, "file cannot be fetched").detail(detail))
        })
    }

    /// The bytes of a file. If a response ends early, object_store fetches the rest, provided that the file has an
    /// ETag; otherwise the file is fetched again from its start.
    async fn take(store: &impl ObjectStore, key: &Key, limits: &Limits, mut retries: u64) -> Result<Vec<u8>> {
        let mut pause = FIRST_PAUSE;
        loop {
            let answer = store.get(key).await.map_err(|e| failed(&e))?;
            if answer.meta.size > limits.max_bytes {
                return Err(Error::new(Kind::LimitExceeded, "image file is too large")
                    .detail(format!("It has {} bytes; the limit is {}.", answer.meta.size, limits.max_bytes))
                    .hint(format!("Raise {}, or store a smaller copy.", limits.names.1)));
            }
            let has_tag = answer.meta.e_tag.is_some();
            match answer.bytes().await {
                Ok(bytes) => return Ok(bytes.into()),
                Err(e) if has_tag || retries == 0 => return Err(failed(&e)),
                Err(_) => {
                    retries -= 1;
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
        }
    }

    /// The error with the texts of all causes. The innermost ones are the most useful: "404 Not Found", "Connection
    /// refused".
    fn failed(e: &dyn std::error::Error) -> Error {
        let mut text = e.to_string();
        let mut cause = e.source();
        while let Some(e) = cause {
            let more = e.to_string();
            if !text.contains(&more) {
                text = format!("{text}: {more}");
            }
            cause = e.source();
        }
        let mut text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some((end, _)) = text.char_indices().nth(LONGEST_DETAIL) {
            text.truncate(end);
            text.push('…');
        }
        Error::new(Kind::InvalidInput, "file cannot be fetched").detail(format!("{}.", text.trim_end_matches('.')))
    }

    /// Lists the objects of a bucket below a prefix, like the files of a directory.
    pub fn list(url: &str, options: &Options, wanted: impl Fn(&str) -> bool) -> Result<List> {
        let Some(place) = url.strip_prefix("s3://") else {
            return Err(Error::new(Kind::Unsupported, format!("\"{url}\" is not a directory"))
                .detail("Web servers don't say what they have.")
                .hint("Give a list of paths; it may have https:// paths."));
        };
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let named = |e: &dyn std::error::Error| {
            let mut error = failed(e);
            error.message = format!("\"{url}\" cannot be read");
            error
        };
        let by_list = "Give a list of paths, without keys that have an empty part, . or .., or a control character.";
        let prefix = Key::parse(prefix).map_err(|e| named(&e).hint(by_list))?;
        let mut reader = Reader::new(options)?;
        reader.need_credentials(url)?;
        let store = reader.bucket(bucket)?.clone();
        let objects = reader.runtime.block_on(store.list(Some(&prefix)).try_collect::<Vec<_>>());
        let mut list = List::default();
        let objects = objects.map_err(|e| match e {
            object_store::Error::InvalidPath { .. } => named(&e).hint(by_list),
            e => named(&e),
        })?;
        for object in objects {
            let Some(below) = object.location.prefix_match(&prefix) else { continue };
            let parts: Vec<String> = below.map(|part| part.as_ref().to_owned()).collect();
            if parts.iter().any(|part| part.starts_with('.')) {
                continue;
            }
            let key = parts.join("/");
            // A folder created in a console: an empty object whose name ends with a slash, which object_store removes.
            if object.size == 0 && Path::new(&key).extension().is_none() {
                continue;
            }
            if wanted(&key) {
                let path = PathBuf::from(format!("s3://{bucket}/{}", object.location));
                list.items.push(Item { key, path });
            } else {
                list.left_out += 1;
            }
        }
        list.items.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(list)
    }

    /// One HTTP client for all addresses, which keeps its connections open.
    #[derive(Clone, Debug, Default)]
    struct Shared(Arc<OnceLock<HttpClient>>);

    impl HttpConnector for Shared {
        fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
            if let Some(client) = self.0.get() {
                return Ok(client.clone());
            }
            let client = Connector.connect(options)?;
            Ok(self.0.get_or_init(|| client).clone())
        }
    }

    #[derive(Debug)]
    struct Connector;

    impl HttpConnector for Connector {
        fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
            Ok(HttpClient::new(Brief(ReqwestConnector::default().connect(options)?)))
        }
    }

    /// A client that reads only the beginning of a server's error page, regardless of its length and encoding.
    /// object_store would read all of it.
    #[derive(Debug)]
    struct Brief(HttpClient);

    #[async_trait]
    impl HttpService for Brief {
        async fn call(&self, request: HttpRequest) -> std::result::Result<HttpResponse, HttpError> {
            let answer = self.0.execute(request).await?;
            if answer.status().is_success() {
                return Ok(answer);
            }
            let (parts, body) = answer.into_parts();
            let (mut page, mut pieces) = (Vec::new(), body.bytes_stream());
            while page.len() < LONGEST_PAGE
                && let Some(piece) = pieces.try_next().await?
            {
                page.extend_from_slice(&piece);
            }
            page.truncate(LONGEST_PAGE);
            Ok(HttpResponse::from_parts(parts, String::from_utf8_lossy(&page).into_owned().into()))
        }
    }
}
