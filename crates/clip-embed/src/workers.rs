//! The threads that embed files.

use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use clip::embedder::Embedder;
use clip::image::Limits;
use clip::{Error, Kind};

use crate::list::{Item, is_remote};
use crate::remote::{Options, Reader};

/// Messages from a worker.
pub enum Message {
    /// The worker has loaded its model.
    Ready,
    Done {
        item: usize,
        result: clip::Result<Vec<f32>>,
        remarks: Vec<Error>,
    },
    /// The worker can't continue, for a reason that is not a file.
    Broken(Error),
}

/// Embeds the items with `jobs` threads, each with its own embedder. `take` receives their messages in this thread; if
/// it returns an error, the threads end.
pub fn embed(
    items: &[Item],
    jobs: usize,
    limits: &Limits,
    remote: &Options,
    embedder: impl Fn() -> Embedder + Sync,
    mut take: impl FnMut(Message) -> clip::Result<()>,
) -> clip::Result<()> {
    let jobs = jobs.min(items.len());
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    // A few results may wait until they are written. The limit keeps the memory constant.
    let (sender, receiver) = sync_channel(4 * jobs.max(1));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let (sender, embedder, next, stop) = (sender.clone(), &embedder, &next, &stop);
            // An error here means that the receiver no longer exists.
            scope.spawn(move || drop(work(embedder(), items, next, stop, limits, remote, &sender)));
        }
        drop(sender);
        let taken = receiver.iter().try_for_each(&mut take);
        stop.store(true, Ordering::Relaxed);
        // Unblocks workers that wait to send.
        drop(receiver);
        taken
    })
}

/// A worker: embeds the next file until none is left.
fn work(
    mut embedder: Embedder,
    items: &[Item],
    next: &AtomicUsize,
    stop: &AtomicBool,
    limits: &Limits,
    remote: &Options,
    sender: &SyncSender<Message>,
) -> Result<(), std::sync::mpsc::SendError<Message>> {
    let mut fetcher = None;
    let mut check_interrupts = || ();
    // Reports errors of the model before they can be attributed to a file.
    let sample = clip::image::synthetic::photo(64, 64, 1)
        .and_then(|photo| embedder.embed_images(&[&photo], &Limits::default(), &mut check_interrupts));
    if let Err(error) = sample {
        return sender.send(Message::Broken(error));
    }
    sender.send(Message::Ready)?;
    while !stop.load(Ordering::Relaxed) {
        let item = next.fetch_add(1, Ordering::Relaxed);
        let Some(Item { path, .. }) = items.get(item) else { return Ok(()) };
        let file = match path.to_str().filter(|_| is_remote(path)) {
            None => read(path, limits),
            Some(url) => fetch(&mut fetcher, url, remote, limits),
        };
        let vector = file.and_then(|file| {
            embedder.embed_images(&[&file], limits, &mut check_interrupts).map(|mut vectors| vectors.remove(0))
        });
        match vector {
            Err(error)
                if matches!(error.kind, Kind::BadModel | Kind::MissingFile | Kind::UnknownModel | Kind::DiskFull) =>
            {
                return sender.send(Message::Broken(error));
            }
            result => sender.send(Message::Done { item, result, remarks: embedder.take_warnings() })?,
        }
    }
    Ok(())
}

/// Fetches an image file with the worker's reader, which is created when it is first needed.
fn fetch(fetcher: &mut Option<Reader>, url: &str, options: &Options, limits: &Limits) -> clip::Result<Vec<u8>> {
    let reader = match fetcher {
        Some(reader) => reader,
        None => fetcher.insert(Reader::new(options)?),
    };
    reader.read(url, limits)
}

/// Reads an image file, unless it is too large.
fn read(path: &Path, limits: &Limits) -> clip::Result<Vec<u8>> {
    let failed = |e: std::io::Error| Error::new(Kind::InvalidInput, "file cannot be read").detail(format!("{e}."));
    let about = std::fs::metadata(path).map_err(failed)?;
    if !about.is_file() {
        return Err(Error::new(Kind::InvalidInput, "not a regular file"));
    }
    if about.len() > limits.max_bytes {
        return Err(Error::new(Kind::LimitExceeded, "image file is too large")
            .detail(format!("It has {} bytes; the limit is {}.", about.len(), limits.max_bytes))
            .hint(format!("Raise {}, or store a smaller copy.", limits.names.1)));
    }
    let mut bytes = Vec::with_capacity(about.len() as usize);
    std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(failed)?;
    Ok(bytes)
}
