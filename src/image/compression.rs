//! Opens what may be compressed: gzip, zstd and xz are recognized by their first bytes, and disk formats that are not
//! archives at all are named.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// How much is looked at to recognize a format.
pub const MAGIC_BYTES: usize = 512;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
const BZIP2: &[u8] = b"BZh";
/// Frames of zstd that have no content begin with these and one of sixteen lower bytes.
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];

/// The format of a file, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// Compressed by gzip.
    Gzip,
    /// Compressed by zstd.
    Zstd,
    /// Compressed by xz.
    Xz,
    /// Compressed by bzip2, which is not supported.
    Bzip2,
    /// A tar archive.
    Tar,
    /// The image of a disk, in a format of this name in the vocabulary of qemu-img.
    Disk(&'static str),
    /// A file system or a disk with partitions, as it is on a disk.
    RawDisk,
    /// None of these.
    Unknown,
}

impl FileFormat {
    /// Recognizes the format of a file that begins with these bytes.
    #[must_use]
    pub fn of(start: &[u8]) -> Self {
        let at = |offset: usize, magic: &[u8]| start.get(offset..offset + magic.len()) == Some(magic);
        let disks: [(&[u8], &str); 6] = [
            (b"QFI\xfb", "qcow2"),
            (b"KDMV", "vmdk"),
            (b"# Disk DescriptorFile", "vmdk"),
            (b"vhdxfile", "vhdx"),
            (b"conectix", "vpc"),
            (b"<<< ", "vdi"),
        ];
        if let Some((_, name)) = disks.iter().find(|(magic, _)| at(0, magic)) {
            return Self::Disk(name);
        }
        match () {
            () if at(0, GZIP) => Self::Gzip,
            () if at(0, ZSTD) || (at(1, &ZSTD_SKIPPABLE) && start[0] & 0xf0 == 0x50) => Self::Zstd,
            () if at(0, XZ) => Self::Xz,
            () if at(0, BZIP2) => Self::Bzip2,
            () if at(257, b"ustar") => Self::Tar,
            () if at(510, &[0x55, 0xaa]) => Self::RawDisk,
            () => Self::Unknown,
        }
    }
}

/// The first bytes of a source, which are read again afterwards.
///
/// # Errors
/// If the source cannot be read.
pub fn peek<R: Read>(source: R) -> io::Result<(Vec<u8>, impl Read)> {
    let mut source = source;
    let mut start = Vec::new();
    source.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut start)?;
    Ok((start.clone(), io::Cursor::new(start).chain(source)))
}

/// The uncompressed content of a source. Of a source that is not compressed it is the source.
///
/// # Errors
/// If the source cannot be read, or is compressed in a way that is not supported.
pub fn decompressed<'a>(source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let (start, source) = peek(source)?;
    let source = BufReader::with_capacity(128 << 10, source);
    Ok(match FileFormat::of(&start) {
        FileFormat::Gzip => Box::new(MultiGzDecoder::new(source)),
        FileFormat::Zstd => Box::new(ZstdReader { source, decoder: FrameDecoder::new(), begun: false }),
        FileFormat::Xz => Box::new(XzReader::new(source, true)),
        FileFormat::Bzip2 => {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "it is compressed with bzip2, which is not supported: use gzip, zstd or xz",
            ));
        }
        _ => Box::new(source),
    })
}

/// Reads all frames of a zstd stream, and passes over frames without content.
struct ZstdReader<R> {
    source: R,
    decoder: FrameDecoder,
    /// Whether the decoder is within a frame.
    begun: bool,
}

impl<R: BufRead> Read for ZstdReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.begun {
                if self.source.fill_buf()?.is_empty() {
                    return Ok(0);
                }
                self.begun = begin_frame(&mut self.decoder, &mut self.source)?;
                continue;
            }
            let read = self.decoder.read(buffer)?;
            if read > 0 {
                return Ok(read);
            }
            if self.decoder.is_finished() {
                check_frame(&self.decoder)?;
                self.begun = false;
                continue;
            }
            let strategy = BlockDecodingStrategy::UptoBytes(buffer.len().max(128 << 10));
            self.decoder.decode_blocks(&mut self.source, strategy).map_err(invalid)?;
        }
    }
}

/// Begins the next frame. Returns `false` if it has no content, and was passed over.
fn begin_frame<R: BufRead>(decoder: &mut FrameDecoder, source: &mut R) -> io::Result<bool> {
    match decoder.reset(&mut *source) {
        Ok(()) => Ok(true),
        Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
            let length = u64::from(length);
            let passed = io::copy(&mut source.take(length), &mut io::sink())?;
            if passed < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(false) }
        }
        Err(error) => Err(invalid(error)),
    }
}

fn check_frame(decoder: &FrameDecoder) -> io::Result<()> {
    match (decoder.get_checksum_from_data(), decoder.get_calculated_checksum()) {
        (Some(declared), Some(found)) if declared != found => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum of a zstd frame is wrong"))
        }
        _ => Ok(()),
    }
}

fn invalid(error: FrameDecoderError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests;
