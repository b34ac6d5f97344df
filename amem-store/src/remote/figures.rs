//! How fast the store and the bare client are, on real servers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use amem_core::{ChunkId, Dtype, Encoding, HostKv, KvChunk, KvShape, KvStore, PrefixId};
use futures_lite::future::block_on;
use opendal::{Operator, services};

use super::{RemoteOptions, RemoteStore};

#[path = "../../tests/common/servers.rs"]
mod servers;

/// `cargo test --release -p amem-store --features redis,s3 --lib -- --ignored --nocapture`
#[test]
#[ignore = "prints how fast the store and the bare client are"]
fn rates_of_64_mebibytes() {
    // 512 tokens of a model of 32 layers with 8 heads of 128 numbers.
    let (shape, encoding) = (KvShape { layers: 32, kv_heads: 8, head_dim: 128 }, Encoding::Plain(Dtype::F16));
    let bytes: Vec<u8> =
        (0..encoding.bytes(&shape, 512) as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    assert_eq!(bytes.len(), 64 << 20);
    let data = Arc::new(HostKv::new(encoding, 32, bytes.clone()));
    let tokens: Arc<[u32]> = (0..512).collect();
    let chunk = KvChunk::new(ChunkId([7; 32]), PrefixId([0; 32]), shape, tokens, data).unwrap();
    let redis = servers::redis(None).expect("redis is installed");
    let s3 = servers::s3().expect("moto is installed");
    let (url, endpoint) = (format!("redis://127.0.0.1:{}", redis.port), format!("http://127.0.0.1:{}", s3.port));
    let bucket = || {
        let bucket = services::S3::default().bucket("agents-kv").region("us-east-1").endpoint(&endpoint);
        bucket.access_key_id("somebody").secret_access_key("secret").disable_config_load().disable_ec2_metadata()
    };
    let dir = tempfile::tempdir().unwrap();
    let files = || Operator::new(services::Fs::default().root(dir.path().to_str().unwrap())).unwrap();
    let options = || RemoteOptions::default().deadline(Duration::from_secs(60));
    let stores = [
        (
            "redis",
            RemoteStore::redis(&url, options()).unwrap(),
            Operator::new(services::Redis::default().endpoint(&url)).unwrap(),
        ),
        ("s3 (moto)", RemoteStore::s3(bucket(), options()).unwrap(), Operator::new(bucket()).unwrap()),
        ("files", RemoteStore::new(files(), options()).unwrap(), files()),
    ];
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    for (name, store, client) in stores {
        let rate = |work: &mut dyn FnMut()| {
            let times = (0..5).map(|_| {
                let begin = Instant::now();
                work();
                begin.elapsed().as_secs_f64()
            });
            64.0 / times.fold(f64::MAX, f64::min)
        };
        let put = rate(&mut || {
            block_on(store.delete(&[chunk.id()])).unwrap();
            block_on(store.put(std::slice::from_ref(&chunk))).unwrap();
        });
        let get = rate(&mut || assert!(block_on(store.get(&chunk.id())).unwrap().is_some()));
        // One object of 8 MiB at a time: Redis has no time for more in one.
        let piece = |index: usize| bytes[index << 23..][..8 << 20].to_vec();
        let write = rate(&mut || {
            (0..8).for_each(|index| drop(runtime.block_on(client.write(&index.to_string(), piece(index))).unwrap()));
        });
        let read = rate(&mut || {
            (0..8).for_each(|index| drop(runtime.block_on(client.read(&index.to_string())).unwrap()));
        });
        println!("{name}: put {put:.0}, get {get:.0} MiB/s; bare client: write {write:.0}, read {read:.0} MiB/s");
    }
}
