//! TIFF's compression methods. Each is a stream that is read one row of samples at a time.

use std::io::{self, BufRead, Read};

use ruzstd::decoding::errors::FrameDecoderError;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use crate::error::{Error, Result};
use crate::image::jpeg::{Colors, Jpeg, Rows};
use crate::image::limits::{Limits, Watched, read_buffered};
use crate::image::picture::Format;

pub(crate) const NONE: u64 = 1;
pub(crate) const FAX3: u64 = 3;
pub(crate) const FAX4: u64 = 4;
pub(crate) const LZW: u64 = 5;
pub(crate) const OLD_JPEG: u64 = 6;
pub(crate) const JPEG: u64 = 7;
pub(crate) const DEFLATE: u64 = 8;
pub(crate) const OLD_DEFLATE: u64 = 32946;
pub(crate) const PACKBITS: u64 = 32773;
pub(crate) const ZSTD: u64 = 50000;

/// Maximum bytes of a stream's state: an inflater's window and state, or an LZW dictionary and its buffer.
pub(crate) const STREAM_BYTES: u64 = 256 << 10;

/// The properties of a strip or tile that its decoder needs.
pub(crate) struct Sort<'a> {
    pub compression: u64,
    /// Whether the bits of each byte are in reverse order.
    pub reversed: bool,
    pub width: u32,
    pub height: u32,
    /// For JPEG: the tables that the strips or tiles share.
    pub tables: Option<&'a [u8]>,
    pub colors: Colors,
    /// Maximum window of Zstandard data, in bytes.
    pub window: u64,
}

/// Opens the decoder of a strip or tile.
pub(crate) fn open<'a>(sort: &Sort<'a>, bytes: &'a [u8], limits: &'a Limits) -> Result<Box<dyn Source + 'a>> {
    let input = Input { inner: Watched::new(bytes, limits), reversed: sort.reversed, piece: Vec::new() };
    Ok(match sort.compression {
        NONE => Box::new(Stream(input)),
        LZW => {
            if matches!(bytes, [0, second, ..] if second & 1 == 1) {
                return Err(Format::Tiff.unsupported("Its LZW is of the form before TIFF 6."));
            }
            let decoder = weezl::decode::Decoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8);
            Box::new(Stream(Lzw { input, decoder }))
        }
        DEFLATE | OLD_DEFLATE => Box::new(Stream(flate2::bufread::ZlibDecoder::new(input))),
        ZSTD => {
            let decoder = StreamingDecoder::new_with_max_window_size(input, sort.window);
            Box::new(Stream(Zstd(decoder.map_err(|error| match error {
                FrameDecoderError::WindowSizeTooBig { requested, .. } => {
                    Format::Tiff.unsupported(format!("Its Zstandard data look back over {requested} bytes."))
                }
                error => Format::Tiff.broken(format!("The decoder says: {error}.")),
            })?)))
        }
        PACKBITS => Box::new(Stream(PackBits { input, literal: 0, repeated: None })),
        FAX4 | FAX3 => Box::new(Fax::new(sort, input)?),
        JPEG => Box::new(Jpeg::open_with(bytes, sort.tables, limits)?.rows(sort.colors)?),
        OLD_JPEG => {
            return Err(Format::Tiff.unsupported(
                "Its JPEG data are of the form before TIFF technical note 2, and in more than one piece.",
            ));
        }
        other => return Err(Format::Tiff.unsupported(format!("Its compression is {other}."))),
    })
}

/// A source of rows of samples.
pub(crate) trait Source {
    /// Fills the row. Returns an error of kind [`io::ErrorKind::UnexpectedEof`] if the data end early.
    fn row(&mut self, row: &mut [u8]) -> io::Result<()>;
}

struct Stream<R>(R);

impl<R: Read> Source for Stream<R> {
    fn row(&mut self, row: &mut [u8]) -> io::Result<()> {
        self.0.read_exact(row)
    }
}

impl Source for Rows<'_> {
    fn row(&mut self, row: &mut [u8]) -> io::Result<()> {
        if row.len() != self.row_bytes() {
            return Err(io::Error::other("the JPEG data have another width"));
        }
        self.read(row).map_err(|error: Error| io::Error::other(error.to_string()))
    }
}

/// A reader of the compressed bytes.
struct Input<'a> {
    inner: Watched<'a>,
    reversed: bool,
    /// The bytes read, with their bits in the right order.
    piece: Vec<u8>,
}

impl BufRead for Input<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if !self.reversed {
            return self.inner.fill_buf();
        }
        self.piece.clear();
        self.piece.extend(self.inner.fill_buf()?.iter().map(|byte| byte.reverse_bits()));
        Ok(&self.piece)
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
    }
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, buffer)
    }
}

/// Zstandard. Its decoder reports the end of the data like any other error.
struct Zstd<'a>(StreamingDecoder<Input<'a>, FrameDecoder>);

impl Read for Zstd<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.0.read(buffer);
        match result {
            Err(_) if self.0.get_mut().fill_buf().is_ok_and(<[u8]>::is_empty) => {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            result => result,
        }
    }
}

struct Lzw<'a> {
    input: Input<'a>,
    decoder: weezl::decode::Decoder,
}

impl Read for Lzw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let piece = self.input.fill_buf()?;
            let is_end = piece.is_empty();
            let result = self.decoder.decode_bytes(piece, buffer);
            self.input.consume(result.consumed_in);
            match result.status {
                _ if result.consumed_out > 0 => return Ok(result.consumed_out),
                Ok(weezl::LzwStatus::Done) => return Ok(0),
                Ok(weezl::LzwStatus::NoProgress) => return Ok(0),
                Ok(_) if is_end => return Ok(0),
                Ok(_) => {}
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
            }
        }
    }
}

/// Apple's run lengths (TIFF 6, section 9).
struct PackBits<'a> {
    input: Input<'a>,
    /// The number of bytes to copy unchanged.
    literal: usize,
    /// The number of repetitions, and the byte.
    repeated: Option<(usize, u8)>,
}

impl PackBits<'_> {
    fn byte(&mut self) -> io::Result<Option<u8>> {
        let byte = self.input.fill_buf()?.first().copied();
        self.input.consume(usize::from(byte.is_some()));
        Ok(byte)
    }
}

impl Read for PackBits<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some((count, byte)) = self.repeated {
                let taken = count.min(buffer.len());
                buffer[..taken].fill(byte);
                self.repeated = (count > taken).then_some((count - taken, byte));
                return Ok(taken);
            }
            if self.literal > 0 {
                let most = self.literal.min(buffer.len());
                let taken = self.input.read(&mut buffer[..most])?;
                self.literal = if taken == 0 { 0 } else { self.literal - taken };
                return Ok(taken);
            }
            match self.byte()? {
                None => return Ok(0),
                Some(128) => {}
                Some(count @ 0..128) => self.literal = usize::from(count) + 1,
                Some(count) => {
                    let Some(byte) = self.byte()? else { return Ok(0) };
                    self.repeated = Some((257 - usize::from(count), byte));
                }
            }
        }
    }
}

/// CCITT's fax codes: rows of one bit per pixel, 0 for white.
struct Fax<'a> {
    decoder: FaxDecoder<'a>,
    width: u16,
    /// Whether the data have ended.
    done: bool,
}

type FaxBytes<'a> = std::iter::Map<io::Bytes<Input<'a>>, fn(io::Result<u8>) -> io::Result<u8>>;

enum FaxDecoder<'a> {
    Three(fax::decoder::Group3Decoder<FaxBytes<'a>>),
    Four(fax::decoder::Group4Decoder<FaxBytes<'a>>),
}

impl<'a> Fax<'a> {
    fn new(sort: &Sort, input: Input<'a>) -> Result<Self> {
        let width = u16::try_from(sort.width).map_err(|_| Format::Tiff.unsupported("Its fax rows are too long."))?;
        let bytes: FaxBytes<'a> = input.bytes().map(std::convert::identity as fn(_) -> _);
        let broken = |_| Format::Tiff.broken("Its fax data don't begin as they should.");
        let decoder = if sort.compression == FAX4 {
            FaxDecoder::Four(fax::decoder::Group4Decoder::new(bytes, width).map_err(|e| broken(format!("{e:?}")))?)
        } else {
            FaxDecoder::Three(fax::decoder::Group3Decoder::new(bytes).map_err(|e| broken(format!("{e:?}")))?)
        };
        Ok(Self { decoder, width, done: false })
    }
}

impl Source for Fax<'_> {
    fn row(&mut self, row: &mut [u8]) -> io::Result<()> {
        if self.done {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let invalid = |e: String| {
            // The decoders report the end of the data like any other invalid code.
            io::Error::new(io::ErrorKind::UnexpectedEof, e)
        };
        let transitions = match &mut self.decoder {
            FaxDecoder::Three(decoder) => {
                match decoder.advance() {
                    Ok(status) => self.done = status == fax::decoder::DecodeStatus::End,
                    // The last row may lack its end marker.
                    Err(_) if decoder.transitions().last() == Some(&self.width) => self.done = true,
                    Err(e) => return Err(invalid(format!("{e:?}"))),
                }
                decoder.transitions()
            }
            FaxDecoder::Four(decoder) => {
                let status = decoder.advance().map_err(|e| invalid(format!("{e:?}")))?;
                if status == fax::decoder::DecodeStatus::End {
                    self.done = true;
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                decoder.transition()
            }
        };
        row.fill(0);
        for (x, color) in fax::decoder::pels(transitions, self.width).enumerate() {
            if color == fax::Color::Black {
                row[x / 8] |= 0x80 >> (x % 8);
            }
        }
        Ok(())
    }
}
