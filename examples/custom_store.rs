//! Your own place for KV: a directory with a file for each chunk.
//!
//! ```text
//! cargo run --release --example custom_store
//! ```

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use amem_core::transformer::{Options, Transformer};
use amem_core::{
    ChunkId, Encoding, Error, Fingerprint, HostKv, KvChunk, KvShape, KvStore, Memory, PrefixId, Result, StoreStats,
    StoredChunk, Token,
};
use amem_cpu::Cpu;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

/// What a file says of its chunk, in a line of JSON: all that a store has to keep beside the KV itself.
#[derive(Serialize, Deserialize)]
struct Header {
    model: Option<[u8; 32]>,
    prefix: [u8; 32],
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    encoding: u8,
    tokens: Vec<Token>,
    sensitivity: Option<Vec<f32>>,
}

/// A file is a BLAKE3 hash of what follows, the header's line, and the KV. Its name is the chunk's id.
struct FileStore {
    dir: PathBuf,
    hits: AtomicU64,
    misses: AtomicU64,
    damaged: AtomicU64,
}

impl FileStore {
    fn open(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let dir = dir.into();
        fs::create_dir_all(&dir)?;
        Ok(Self { dir, hits: AtomicU64::new(0), misses: AtomicU64::new(0), damaged: AtomicU64::new(0) })
    }
}

fn path_of(dir: &Path, id: &ChunkId) -> PathBuf {
    dir.join(id.0.map(|byte| format!("{byte:02x}")).concat())
}

/// The chunk whose file this is; `None` for other files.
fn id_of(path: &Path) -> Option<ChunkId> {
    let name = path.file_name()?.to_str()?;
    let mut id = [0; 32];
    if name.len() != 64 {
        return None;
    }
    for (at, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(name.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(ChunkId(id))
}

/// Puts the chunk into a file in one step: whoever reads it, and a process that is killed, finds all of it or none.
fn write(dir: &Path, chunk: &KvChunk) -> Result<()> {
    let KvShape { layers, kv_heads, head_dim } = *chunk.shape();
    let header = Header {
        model: chunk.model().map(|model| model.0),
        prefix: chunk.prefix().0,
        layers,
        kv_heads,
        head_dim,
        encoding: chunk.encoding().code(),
        tokens: chunk.tokens().to_vec(),
        sensitivity: chunk.sensitivity().map(|sensitivity| sensitivity.to_vec()),
    };
    let mut bytes = serde_json::to_vec(&header).map_err(|error| Error::Store(error.into()))?;
    bytes.push(b'\n');
    bytes.extend(chunk.to_bytes()?);
    let mut file = NamedTempFile::new_in(dir).map_err(failed)?;
    file.write_all(blake3::hash(&bytes).as_bytes()).and_then(|()| file.write_all(&bytes)).map_err(failed)?;
    file.persist(path_of(dir, &chunk.id())).map_err(|error| failed(error.error))?;
    Ok(())
}

/// The chunk, if there is one. An error for a file that is not what was written.
fn read(dir: &Path, id: &ChunkId) -> Result<Option<KvChunk>> {
    let file = match fs::read(path_of(dir, id)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    chunk_of(id, &file).map(Some).ok_or_else(|| Error::DamagedKv { chunk: *id, reason: "its file is damaged".into() })
}

fn chunk_of(id: &ChunkId, file: &[u8]) -> Option<KvChunk> {
    let (hash, bytes) = file.split_first_chunk::<32>()?;
    if blake3::hash(bytes) != *hash {
        return None;
    }
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let header: Header = serde_json::from_slice(&bytes[..end]).ok()?;
    let shape = KvShape { layers: header.layers, kv_heads: header.kv_heads, head_dim: header.head_dim };
    let kv = HostKv::new(Encoding::from_code(header.encoding)?, shape.layers, bytes[end + 1..].to_vec());
    let mut chunk = KvChunk::new(*id, PrefixId(header.prefix), shape, header.tokens.into(), Arc::new(kv)).ok()?;
    if let Some(model) = header.model {
        chunk = chunk.with_model(Fingerprint(model));
    }
    match header.sensitivity {
        Some(sensitivity) => chunk.with_sensitivity(sensitivity.into()).ok(),
        None => Some(chunk),
    }
}

/// The files of all chunks, in the order of their ids.
fn files(dir: &Path) -> Result<Vec<(ChunkId, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        files.extend(id_of(&path).map(|id| (id, path)));
    }
    files.sort();
    Ok(files)
}

/// What a file holds, by its first line; `None` if it is gone or damaged.
fn stored(id: ChunkId, path: &Path) -> Option<StoredChunk> {
    let file = File::open(path).ok()?;
    let bytes = file.metadata().ok()?.len();
    let (mut file, mut line) = (BufReader::new(file), Vec::new());
    file.read_exact(&mut [0; 32]).ok()?;
    file.read_until(b'\n', &mut line).ok()?;
    let header: Header = serde_json::from_slice(&line).ok()?;
    Some(StoredChunk { id, tokens: header.tokens.len(), bytes })
}

fn failed(error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::StorageFull => Error::Full { what: "the store's disk".into(), reason: error.to_string() },
        _ => Error::Store(error.into()),
    }
}

/// Files are read and written on threads where waiting hurts nobody.
#[async_trait::async_trait]
impl KvStore for FileStore {
    async fn get_many(&self, ids: &[ChunkId]) -> Result<Vec<Option<KvChunk>>> {
        let (dir, ids) = (self.dir.clone(), ids.to_vec());
        let read: Vec<_> = blocking::unblock(move || ids.iter().map(|id| read(&dir, id)).collect()).await;
        let mut found = Vec::new();
        for chunk in read {
            // One that cannot be read is missed, and computed again; the others are there.
            let count = match &chunk {
                Ok(Some(_)) => &self.hits,
                Ok(None) => &self.misses,
                Err(_) => &self.damaged,
            };
            count.fetch_add(1, Relaxed);
            found.push(chunk.unwrap_or(None));
        }
        Ok(found)
    }

    async fn put(&self, chunks: &[KvChunk]) -> Result<()> {
        let (dir, chunks) = (self.dir.clone(), chunks.to_vec());
        blocking::unblock(move || {
            for chunk in &chunks {
                // What is held stays, unless it lacks a sensitivity that this one has. What is damaged is written anew.
                let is_news = match read(&dir, &chunk.id()) {
                    Ok(Some(held)) => held.sensitivity().is_none() && chunk.sensitivity().is_some(),
                    _ => true,
                };
                if is_news {
                    write(&dir, chunk)?;
                }
            }
            Ok(())
        })
        .await
    }

    async fn delete(&self, ids: &[ChunkId]) -> Result<()> {
        let (dir, ids) = (self.dir.clone(), ids.to_vec());
        blocking::unblock(move || {
            for id in &ids {
                match fs::remove_file(path_of(&dir, id)) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
                    _ => {}
                }
            }
            Ok(())
        })
        .await
    }

    async fn contains_many(&self, ids: &[ChunkId]) -> Vec<bool> {
        ids.iter().map(|id| path_of(&self.dir, id).exists()).collect()
    }

    async fn stats(&self) -> StoreStats {
        let dir = self.dir.clone();
        let sizes = blocking::unblock(move || {
            let files = files(&dir).unwrap_or_default();
            files.iter().filter_map(|(_, path)| Some(fs::metadata(path).ok()?.len())).collect::<Vec<u64>>()
        });
        let sizes = sizes.await;
        StoreStats {
            chunks: sizes.len(),
            bytes: sizes.iter().sum(),
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            damaged: self.damaged.load(Relaxed),
        }
    }

    async fn page(&self, after: Option<ChunkId>, limit: usize) -> Result<Vec<StoredChunk>> {
        let dir = self.dir.clone();
        blocking::unblock(move || {
            let files = files(&dir)?;
            let behind = files.iter().filter(|(id, _)| after.is_none_or(|after| *id > after));
            Ok(behind.filter_map(|(id, path)| stored(*id, path)).take(limit).collect())
        })
        .await
    }

    async fn sync(&self) -> Result<()> {
        let dir = self.dir.clone();
        blocking::unblock(move || {
            files(&dir)?.iter().try_for_each(|(_, path)| File::open(path)?.sync_all()).map_err(failed)?;
            // Names are safe once the directory is.
            if cfg!(unix) { File::open(&dir).and_then(|dir| dir.sync_all()).map_err(failed) } else { Ok(()) }
        })
        .await
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = Arc::new(Transformer::load(&amem_demo::files(), Cpu::new()?, Options::default())?);
    let dir = tempfile::tempdir()?;
    futures_lite::future::block_on(async {
        // The second memory finds the KV that the first one computed.
        for _ in 0..2 {
            let memory = Memory::builder(model.clone()).kv(Arc::new(FileStore::open(dir.path())?)).build()?;
            memory.remember_all("you", ["Alice lives in Denver.", "Bob is a nurse.", "Bob lives in Oslo."]).await?;
            let answer = memory.ask("you", "Where does Bob live?").await?;
            println!("{}\n{}", answer.text, answer.usage);
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_store() {
        let (dir, count) = (tempfile::tempdir().unwrap(), AtomicU64::new(0));
        let fresh = || FileStore::open(dir.path().join(count.fetch_add(1, Relaxed).to_string())).unwrap();
        amem_core::testing::kv_store(fresh);
    }
}
