//! A chunk: a run of tokens, its keys and values, and where they came from.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use super::encoding::Half;
use super::{ChunkId, Encoding, Fingerprint, KvShape, PrefixId, Token};
use crate::{Error, Result};

/// What holds a chunk's keys and values: host memory, a mapped file, a buffer on a device, …
///
/// A backend that knows a kind of data reaches it by a downcast (`&dyn KvData as &dyn Any`) and may then copy it without
/// a detour through host memory; every kind can be read layer by layer.
pub trait KvData: Any + Send + Sync {
    /// How the bytes are to be read.
    fn encoding(&self) -> Encoding;

    /// Bytes of all layers together.
    fn size(&self) -> usize;

    /// One layer's bytes, as [`Encoding`] lays them out. May wait for a disk or a device, and checks what it reads
    /// against checksums where it has some.
    ///
    /// # Errors
    /// Any, when a checksum does not fit or the bytes cannot be read: [`KvChunk`] makes it an [`Error::DamagedKv`] of its
    /// id.
    fn layer(&self, layer: usize) -> Result<Cow<'_, [u8]>>;

    /// One layer's bytes, as [`layer`](Self::layer) gives them; if they have to be read from somewhere, `buffer` may hold
    /// them. Who reads many layers has memory allocated once, and in the processor's cache.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    fn layer_in<'a>(&'a self, layer: usize, buffer: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        match self.layer(layer)? {
            Cow::Borrowed(bytes) => Ok(bytes),
            Cow::Owned(bytes) => {
                *buffer = bytes;
                Ok(buffer)
            }
        }
    }

    /// All layers, one behind the other, where they lie like that in host memory and need no check: they can then be
    /// written in one piece.
    fn contiguous(&self) -> Option<&[u8]> {
        None
    }
}

/// KV in host memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostKv {
    encoding: Encoding,
    layers: usize,
    bytes: Vec<u8>,
}

impl HostKv {
    /// The bytes of so many layers, one behind the other: as many layers as the shape has of the chunk that this becomes
    /// part of.
    pub fn new(encoding: Encoding, layers: usize, bytes: Vec<u8>) -> Self {
        Self { encoding, layers, bytes }
    }
}

impl KvData for HostKv {
    fn encoding(&self) -> Encoding {
        self.encoding
    }

    fn size(&self) -> usize {
        self.bytes.len()
    }

    fn layer(&self, layer: usize) -> Result<Cow<'_, [u8]>> {
        let len = self.bytes.len() / self.layers.max(1);
        let bytes = self.bytes.get(layer.saturating_mul(len)..).and_then(|rest| rest.get(..len));
        bytes.map(Cow::Borrowed).ok_or_else(|| no_such_layer(layer, self.layers))
    }

    fn contiguous(&self) -> Option<&[u8]> {
        Some(&self.bytes)
    }
}

fn no_such_layer(layer: usize, layers: usize) -> Error {
    Error::WrongKv { reason: format!("layer {layer} of a chunk with {layers} layers") }
}

/// One layer of a chunk.
#[derive(Clone, Debug)]
pub struct LayerKv<'a> {
    encoding: Encoding,
    shape: KvShape,
    tokens: usize,
    /// Where the values begin.
    values: usize,
    bytes: Cow<'a, [u8]>,
}

impl LayerKv<'_> {
    /// How the bytes are to be read.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// All of its bytes: the keys, then the values.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Keys (before rotation), `[tokens][kv_heads][head_dim]` in the encoding.
    #[inline(always)]
    pub fn keys(&self) -> &[u8] {
        &self.bytes[..self.values]
    }

    /// Values, `[tokens][kv_heads][head_dim]` in the encoding.
    #[inline(always)]
    pub fn values(&self) -> &[u8] {
        &self.bytes[self.values..]
    }

    /// One head of one token's keys: `head_dim` numbers. Nothing is written for a token or head that is not there.
    #[inline(always)]
    pub fn key(&self, token: usize, head: usize, numbers: &mut [f32]) {
        let half = (Half::Keys, self.keys());
        self.encoding.decode_head(&self.shape, half, self.tokens, (token, head), numbers);
    }

    /// One head of the keys of consecutive tokens, `[tokens][head_dim]`: what [`key`](Self::key) gives for each, and
    /// faster where tokens share scales.
    #[inline(always)]
    pub fn keys_from(&self, token: usize, head: usize, numbers: &mut [f32]) {
        self.encoding.decode_keys(&self.shape, self.keys(), self.tokens, (token, head), numbers);
    }

    /// One head of one token's values: `head_dim` numbers. Nothing is written for a token or head that is not there.
    #[inline(always)]
    pub fn value(&self, token: usize, head: usize, numbers: &mut [f32]) {
        let half = (Half::Values, self.values());
        self.encoding.decode_head(&self.shape, half, self.tokens, (token, head), numbers);
    }
}

/// Observes layers being read from storage, to measure read cost.
pub(crate) trait LayerReads: Send + Sync {
    /// A layer is about to be read. Says whether that counts; [`end`](Self::end) is called then.
    fn begin(&self, layer: usize) -> bool;

    /// A layer was read, or could not be.
    fn end(&self, is_read: bool);
}

/// A layer that is being read, even if that panics.
struct Reading<'a> {
    reads: &'a dyn LayerReads,
    is_read: bool,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.reads.end(self.is_read);
    }
}

/// A run of tokens and its KV. Cheap to clone: the data is shared.
#[derive(Clone)]
pub struct KvChunk {
    id: ChunkId,
    model: Option<Fingerprint>,
    prefix: PrefixId,
    shape: KvShape,
    tokens: Arc<[Token]>,
    sensitivity: Option<Arc<[f32]>>,
    data: Arc<dyn KvData>,
    reads: Option<Arc<dyn LayerReads>>,
}

impl KvChunk {
    /// A chunk of its parts.
    ///
    /// # Errors
    /// [`Error::WrongKv`] when the data's size is not that of the tokens in this shape, or there are no tokens.
    pub fn new(
        id: ChunkId,
        prefix: PrefixId,
        shape: KvShape,
        tokens: Arc<[Token]>,
        data: Arc<dyn KvData>,
    ) -> Result<Self> {
        let (found, expected) = (data.size(), data.encoding().bytes(&shape, tokens.len()));
        if found != expected || tokens.is_empty() {
            let reason = format!("{} tokens need {expected} bytes and {found} are there", tokens.len());
            return Err(Error::WrongKv { reason });
        }
        Ok(Self { id, model: None, prefix, shape, tokens, sensitivity: None, data, reads: None })
    }

    /// The same chunk, saying which model computed it. A context of another model refuses it.
    #[must_use]
    pub fn with_model(self, model: Fingerprint) -> Self {
        Self { model: Some(model), ..self }
    }

    /// The same chunk with a measured [`sensitivity`](Self::sensitivity).
    ///
    /// # Errors
    /// [`Error::WrongKv`] unless there is one finite number, zero or more, for each token.
    pub fn with_sensitivity(mut self, sensitivity: Arc<[f32]>) -> Result<Self> {
        if sensitivity.len() != self.tokens.len() || sensitivity.iter().any(|s| !s.is_finite() || *s < 0.0) {
            let reason = format!("a sensitivity for each of {} tokens is expected", self.tokens.len());
            return Err(Error::WrongKv { reason });
        }
        self.sensitivity = Some(sensitivity);
        Ok(self)
    }

    /// The same chunk with its KV held by something else: another tier's memory, another encoding.
    ///
    /// # Errors
    /// [`Error::WrongKv`] when the data's size is not that of the tokens in this shape.
    pub fn with_data(self, data: Arc<dyn KvData>) -> Result<Self> {
        let moved = Self::new(self.id, self.prefix, self.shape, self.tokens, data)?;
        Ok(Self { model: self.model, sensitivity: self.sensitivity, ..moved })
    }

    /// Has these told of each layer that is read, of this chunk and its clones, but not of what `with_data` makes of it.
    pub(crate) fn count_reads(&mut self, reads: Arc<dyn LayerReads>) {
        self.reads = Some(reads);
    }

    /// The chunk's name.
    pub fn id(&self) -> ChunkId {
        self.id
    }

    /// The model that computed it and the numerics it was computed with, where that was written down: stores of the
    /// first format did not.
    pub fn model(&self) -> Option<Fingerprint> {
        self.model
    }

    /// What the chunk was computed behind.
    pub fn prefix(&self) -> PrefixId {
        self.prefix
    }

    /// The shape of its KV.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Its tokens.
    pub fn tokens(&self) -> &Arc<[Token]> {
        &self.tokens
    }

    /// For each token, how far its keys and values move when something else stands before the chunk: squared distances
    /// relative to the layer's scale, summed over the layers with falling weights. Only how tokens of one context compare
    /// matters. `None` until it has been measured: its rows count 1 each then.
    pub fn sensitivity(&self) -> Option<&Arc<[f32]>> {
        self.sensitivity.as_ref()
    }

    /// How its KV is written.
    pub fn encoding(&self) -> Encoding {
        self.data.encoding()
    }

    /// Whether its bytes are not numbers but something encrypted ([`PrefixId::SEALED`]). In another encoding they would be
    /// lost.
    pub fn is_sealed(&self) -> bool {
        self.prefix == PrefixId::SEALED
    }

    /// Bytes of its KV.
    pub fn size(&self) -> usize {
        self.data.size()
    }

    /// What holds its KV.
    pub fn data(&self) -> &Arc<dyn KvData> {
        &self.data
    }

    /// One layer's keys and values. May wait for a disk or a device.
    ///
    /// # Errors
    /// [`Error::DamagedKv`] when the bytes cannot be read or are not those that were written; [`Error::WrongKv`] when
    /// there is no such layer.
    pub fn layer(&self, layer: usize) -> Result<LayerKv<'_>> {
        self.check_layer(layer)?;
        self.as_layer(layer, self.counted(layer, || self.data.layer(layer))?)
    }

    /// One layer's keys and values, as [`layer`](Self::layer) gives them, maybe held by `buffer`
    /// ([`KvData::layer_in`]).
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn layer_in<'a>(&'a self, layer: usize, buffer: &'a mut Vec<u8>) -> Result<LayerKv<'a>> {
        self.check_layer(layer)?;
        self.as_layer(layer, Cow::Borrowed(self.counted(layer, || self.data.layer_in(layer, buffer))?))
    }

    /// Reads a layer, and tells who counts that.
    fn counted<B>(&self, layer: usize, read: impl FnOnce() -> Result<B>) -> Result<B> {
        // Whatever goes wrong with the data concerns this chunk alone.
        let read = || read().map_err(|error| self.damaged(error));
        let Some(reads) = self.reads.as_deref().filter(|reads| reads.begin(layer)) else { return read() };
        let mut reading = Reading { reads, is_read: false };
        let bytes = read();
        reading.is_read = bytes.is_ok();
        bytes
    }

    fn damaged(&self, error: Error) -> Error {
        match error {
            Error::DamagedKv { .. } => error,
            other => Error::DamagedKv { chunk: self.id, reason: other.to_string() },
        }
    }

    fn check_layer(&self, layer: usize) -> Result<()> {
        if layer < self.shape.layers { Ok(()) } else { Err(no_such_layer(layer, self.shape.layers)) }
    }

    fn as_layer<'a>(&self, layer: usize, bytes: Cow<'a, [u8]>) -> Result<LayerKv<'a>> {
        let (encoding, tokens) = (self.encoding(), self.tokens.len());
        let (found, expected) = (bytes.len(), encoding.layer_bytes(&self.shape, tokens));
        if found != expected {
            let reason = format!("layer {layer} has {found} bytes instead of {expected}");
            return Err(Error::DamagedKv { chunk: self.id, reason });
        }
        let values = encoding.key_bytes(&self.shape, tokens);
        Ok(LayerKv { encoding, shape: self.shape, tokens, values, bytes })
    }

    /// All of its KV, layer by layer, where it lies in one piece in host memory.
    pub fn contiguous(&self) -> Option<&[u8]> {
        let expected = self.encoding().bytes(&self.shape, self.tokens.len());
        self.data.contiguous().filter(|bytes| bytes.len() == expected)
    }

    /// All of its KV, layer by layer, copied.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let (mut bytes, mut buffer) = (Vec::with_capacity(self.size()), Vec::new());
        for layer in 0..self.shape.layers {
            bytes.extend_from_slice(self.layer_in(layer, &mut buffer)?.bytes());
        }
        Ok(bytes)
    }

    /// The chunk in an encoding, in host memory. One that has the encoding already is copied byte for byte.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn encoded_as(&self, encoding: Encoding) -> Result<Self> {
        let bytes = if encoding == self.encoding() { self.to_bytes()? } else { self.encode(encoding)? };
        self.clone().with_data(Arc::new(HostKv::new(encoding, self.shape.layers, bytes)))
    }

    fn encode(&self, encoding: Encoding) -> Result<Vec<u8>> {
        let (heads, width) = (self.shape.kv_heads, self.shape.head_dim);
        let mut bytes = Vec::with_capacity(encoding.bytes(&self.shape, self.tokens.len()));
        let [mut keys, mut values] = [(); 2].map(|()| vec![0f32; self.tokens.len() * self.shape.row()]);
        let mut buffer = Vec::new();
        for layer in 0..self.shape.layers {
            let layer = self.layer_in(layer, &mut buffer)?;
            let both = keys.chunks_exact_mut(width).zip(values.chunks_exact_mut(width));
            for (index, (key, value)) in both.enumerate() {
                layer.key(index / heads, index % heads, key);
                layer.value(index / heads, index % heads, value);
            }
            encoding.encode_layer(&self.shape, &keys, &values, &mut bytes);
        }
        Ok(bytes)
    }
}

impl fmt::Debug for KvChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoding = self.encoding();
        write!(f, "KvChunk({:?}, {} tokens, {} bytes of {encoding:?})", self.id, self.tokens.len(), self.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

    const SHAPE: KvShape = KvShape { layers: 2, kv_heads: 1, head_dim: 2 };

    fn chunk(encoding: Encoding, tokens: usize) -> KvChunk {
        let mut bytes = Vec::new();
        for layer in 0..SHAPE.layers {
            let numbers: Vec<f32> = (0..tokens * SHAPE.row()).map(|n| (n + 10 * layer) as f32 / 8.0).collect();
            encoding.encode_layer(&SHAPE, &numbers, &numbers, &mut bytes);
        }
        let (data, tokens) = (HostKv::new(encoding, SHAPE.layers, bytes), vec![7; tokens]);
        KvChunk::new(ChunkId([1; 32]), PrefixId([2; 32]), SHAPE, tokens.into(), Arc::new(data)).unwrap()
    }

    #[test]
    fn an_encoding_changes_neither_name_nor_origin() {
        let model = Fingerprint([3; 32]);
        let exact = chunk(Encoding::Plain(Dtype::F32), 3).with_model(model).with_sensitivity([1.0; 3].into()).unwrap();
        for encoding in [Encoding::Plain(Dtype::Bf16), Encoding::Int8, Encoding::Int4, Encoding::Plain(Dtype::F32)] {
            let other = exact.encoded_as(encoding).unwrap();
            assert_eq!((other.id(), other.model(), other.prefix()), (exact.id(), Some(model), exact.prefix()));
            assert_eq!((other.tokens(), other.sensitivity()), (exact.tokens(), exact.sensitivity()));
            assert_eq!(other.encoding(), encoding);
            let mut key = [0.0; 2];
            other.layer(1).unwrap().key(2, 0, &mut key);
            assert!((key[0] - 14.0 / 8.0).abs() < 0.02, "{encoding:?}: {key:?}");
        }
        let same = exact.encoded_as(exact.encoding()).unwrap();
        assert_eq!(same.to_bytes().unwrap(), exact.to_bytes().unwrap());
    }

    /// Data whose store is gone.
    struct Gone(usize);

    impl KvData for Gone {
        fn encoding(&self) -> Encoding {
            Encoding::Plain(Dtype::F16)
        }

        fn size(&self) -> usize {
            self.0
        }

        fn layer(&self, _: usize) -> Result<Cow<'_, [u8]>> {
            Err(Error::Store("the store was closed".into()))
        }
    }

    #[test]
    fn whatever_goes_wrong_with_data_is_damage_of_its_chunk() {
        let chunk = chunk(Encoding::Plain(Dtype::F16), 3);
        let gone = chunk.clone().with_data(Arc::new(Gone(chunk.size()))).unwrap();
        let lost = |error: Error| matches!(error, Error::DamagedKv { chunk, .. } if chunk == gone.id());
        assert!(lost(gone.layer(0).unwrap_err()) && lost(gone.layer_in(1, &mut Vec::new()).unwrap_err()));
    }

    #[test]
    fn data_of_another_size_is_refused() {
        let chunk = chunk(Encoding::Plain(Dtype::F16), 3);
        let short = HostKv::new(Encoding::Plain(Dtype::F16), SHAPE.layers, vec![0; chunk.size() - 2]);
        assert!(matches!(chunk.clone().with_data(Arc::new(short)), Err(Error::WrongKv { .. })));
        assert!(matches!(chunk.layer(2), Err(Error::WrongKv { .. })));
        assert!(matches!(chunk.clone().with_sensitivity([1.0].into()), Err(Error::WrongKv { .. })));
        let data = Arc::clone(chunk.data());
        assert!(matches!(KvChunk::new(chunk.id(), chunk.prefix(), SHAPE, [].into(), data), Err(Error::WrongKv { .. })));
    }
}
