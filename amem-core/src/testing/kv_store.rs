//! What every [`KvStore`] promises.

use std::sync::Arc;
use std::time::Duration;

use futures_lite::future::block_on;

use crate::{ChunkId, Dtype, Encoding, Fingerprint, HostKv, KvChunk, KvShape, KvStore, OwnerId, PrefixId};

/// Checks a store against the promises of [`KvStore`]. `make` gives a fresh, empty one each time it is called; it must
/// have room for some hundred kilobytes.
///
/// # Panics
/// With the promise that was broken.
pub fn kv_store<S: KvStore>(make: impl Fn() -> S) {
    block_on(async {
        an_empty_store_has_nothing(&make()).await;
        what_was_put_comes_back_whole(&make()).await;
        a_held_chunk_is_left_as_it_is(&make()).await;
        a_sensitivity_is_taken_in_and_kept(&make()).await;
        what_was_deleted_is_gone_and_can_be_put_again(&make()).await;
        many_are_asked_for_at_once_in_their_order(&make()).await;
        it_lists_what_it_holds_in_pages(&make()).await;
        it_lists_the_chunks_of_an_owner(&make()).await;
        it_lists_what_it_holds_and_lets_go_of_what_is_evicted(&make()).await;
        chunks_that_were_handed_out_stay_readable(&make()).await;
        it_counts_what_it_holds_and_sees(&make()).await;
        hints_change_nothing(&make()).await;
    });
    many_threads_may_use_it_at_once(&make());
}

async fn an_empty_store_has_nothing(store: &impl KvStore) {
    let chunk = chunk(1, 3, Dtype::F16);
    assert!(store.get(&chunk.id()).await.unwrap().is_none(), "a chunk that was never put is not found");
    assert!(!store.contains(&chunk.id()).await, "a chunk that was never put is not contained");
    store.put(&[]).await.expect("putting no chunks is no error");
    store.delete(&[]).await.expect("deleting no chunks is no error");
    store.delete(&[chunk.id()]).await.expect("deleting a chunk that is not there is no error");
    store.sync().await.expect("syncing an empty store is no error");
}

async fn what_was_put_comes_back_whole(store: &impl KvStore) {
    // One token and many; each kind of number; KV of an odd length, of a page, and of several blocks.
    let kinds = [Dtype::F32, Dtype::F16, Dtype::Bf16].map(Encoding::Plain);
    let kinds = kinds.into_iter().chain([Encoding::Int8, Encoding::Int4]);
    let tokens = [1, 32, 2000, 9, 70];
    let chunks: Vec<_> = kinds.zip(tokens).map(|(encoding, tokens)| encoded(7, tokens, encoding)).collect();
    store.put(&chunks).await.expect("an empty store takes chunks");
    store.put(&[measured(&chunk(9, 5, Dtype::F16))]).await.expect("it takes a chunk with a sensitivity");
    for chunk in chunks.iter().chain([&measured(&chunk(9, 5, Dtype::F16))]) {
        assert_same(&found(store, chunk).await, chunk);
        assert!(store.contains(&chunk.id()).await, "a chunk that get finds is contained");
    }
    store.sync().await.expect("sync works");
    assert_same(&found(store, &chunks[0]).await, &chunks[0]);
}

async fn a_held_chunk_is_left_as_it_is(store: &impl KvStore) {
    let chunk = chunk(1, 4, Dtype::F16);
    store.put(&[chunk.clone(), chunk.clone()]).await.expect("a chunk may be put twice at once");
    store.put(std::slice::from_ref(&chunk)).await.expect("a chunk may be put twice");
    assert_same(&found(store, &chunk).await, &chunk);
    assert_eq!(store.stats().await.chunks, 1, "a chunk that is put several times is one chunk");
    let other_kv = with_other_kv(&chunk);
    store.put(&[other_kv]).await.expect("a chunk may be put with other KV");
    let found = found(store, &chunk).await;
    assert!(found.to_bytes().unwrap() == chunk.to_bytes().unwrap(), "a held chunk is left as it is, KV and all");
}

async fn a_sensitivity_is_taken_in_and_kept(store: &impl KvStore) {
    let bare = chunk(1, 4, Dtype::F16);
    store.put(std::slice::from_ref(&bare)).await.unwrap();
    store.put(&[measured(&bare)]).await.expect("a chunk may be put again with its sensitivity");
    assert!(found(store, &bare).await.sensitivity().is_some(), "a put brings a sensitivity that the held one lacks");
    store.put(std::slice::from_ref(&bare)).await.unwrap();
    assert_same(&found(store, &bare).await, &measured(&bare));
    let otherwise = bare.clone().with_sensitivity(vec![9.0; 4].into()).unwrap();
    store.put(&[otherwise]).await.expect("a chunk may be put with another sensitivity");
    assert_same(&found(store, &bare).await, &measured(&bare));
    assert_eq!(store.stats().await.chunks, 1, "a chunk that gets a sensitivity is still one chunk");
}

async fn what_was_deleted_is_gone_and_can_be_put_again(store: &impl KvStore) {
    let [a, b, c] = [chunk(1, 4, Dtype::F16), chunk(2, 4, Dtype::F16), chunk(3, 4, Dtype::F16)];
    store.put(&[a.clone(), b.clone(), measured(&c)]).await.unwrap();
    store.delete(&[a.id(), c.id(), a.id(), chunk(4, 1, Dtype::F16).id()]).await.expect("any ids may be deleted");
    for gone in [&a, &c] {
        assert!(store.get(&gone.id()).await.unwrap().is_none(), "a deleted chunk is not found");
        assert!(!store.contains(&gone.id()).await, "a deleted chunk is not contained");
    }
    assert_same(&found(store, &b).await, &b);
    store.delete(&[a.id()]).await.expect("deleting again is no error");
    store.put(std::slice::from_ref(&a)).await.expect("a deleted chunk can be put again");
    assert_same(&found(store, &a).await, &a);
    store.put(std::slice::from_ref(&c)).await.expect("a deleted chunk can be put again");
    assert_same(&found(store, &c).await, &c);
}

async fn many_are_asked_for_at_once_in_their_order(store: &impl KvStore) {
    let chunks: Vec<KvChunk> = (0..5).map(|seed| chunk(seed, 4 + seed as usize, Dtype::F16)).collect();
    store.put(&[chunks[3].clone(), chunks[0].clone(), chunks[4].clone()]).await.expect("put works");
    let asked: Vec<ChunkId> = [4, 1, 0, 2, 0, 3].map(|at: usize| chunks[at].id()).to_vec();
    store.prefetch(&asked);
    let found = store.get_many(&asked).await.expect("get_many works");
    let ids: Vec<Option<ChunkId>> = found.iter().map(|found| found.as_ref().map(KvChunk::id)).collect();
    let expected = [Some(asked[0]), None, Some(asked[2]), None, Some(asked[4]), Some(asked[5])];
    assert_eq!(ids, expected, "get_many answers in the order of the ids, a miss for each that is not there");
    for found in found.into_iter().flatten() {
        let put = chunks.iter().find(|chunk| chunk.id() == found.id()).expect("it was put");
        assert_same(&found, put);
    }
    let contained = store.contains_many(&asked).await;
    assert_eq!(contained, [true, false, true, false, true, true], "contains_many answers in the order of the ids");
    assert!(store.get_many(&[]).await.expect("asking for nothing is no error").is_empty());
    assert!(store.contains_many(&[]).await.is_empty());
}

async fn it_lists_what_it_holds_in_pages(store: &impl KvStore) {
    let chunks: Vec<KvChunk> = (800..807).map(|seed| chunk(seed, 4, Dtype::F16)).collect();
    store.put(&chunks).await.expect("put works");
    let mut expected: Vec<ChunkId> = chunks.iter().map(KvChunk::id).collect();
    expected.sort_unstable();
    let listed: Vec<ChunkId> = store.list().await.expect("list works").iter().map(|held| held.id).collect();
    assert_eq!(listed, expected, "list names every chunk once, in the order of their ids");
    let (mut paged, mut after) = (Vec::new(), None);
    loop {
        let page = store.page(after, 3).await.expect("page works");
        assert!(page.len() <= 3, "a page has no more than was asked for");
        assert!(paged.len() <= chunks.len(), "pages end");
        paged.extend(page.iter().map(|held| held.id));
        after = paged.last().copied();
        if page.len() < 3 {
            break;
        }
    }
    assert_eq!(paged, expected, "pages follow one another without gaps or repeats");
    let tokens = store.page(None, 1).await.expect("page works")[0].tokens;
    assert!(tokens > 0, "a chunk has tokens");
    // Where a page begins need not be held any more.
    store.delete(&[expected[2]]).await.expect("delete works");
    let page = store.page(Some(expected[2]), 2).await.expect("page works");
    assert_eq!(page.iter().map(|held| held.id).collect::<Vec<_>>(), expected[3..5], "a page begins behind its id");
}

async fn it_lists_the_chunks_of_an_owner(store: &impl KvStore) {
    let owners = ["alice", "bob", "carol"];
    let chunks: Vec<KvChunk> = (0..9_usize).map(|n| owned(owners[n % 3], n as u32)).collect();
    store.put(&chunks).await.expect("put works");
    for owner in owners.map(OwnerId::of) {
        let mut expected: Vec<ChunkId> = chunks.iter().map(KvChunk::id).filter(|id| id.owner() == owner).collect();
        expected.sort_unstable();
        let owned = store.owned(owner).await.expect("owned works");
        let owned: Vec<ChunkId> = owned.iter().map(|held| held.id).collect();
        assert_eq!(owned, expected, "owned names each chunk of the owner, and no other's");
    }
    let nobody = store.owned(OwnerId::of("nobody")).await.expect("owned works");
    assert!(nobody.is_empty(), "an owner of whom nothing is held has no chunks");
}

async fn it_lists_what_it_holds_and_lets_go_of_what_is_evicted(store: &impl KvStore) {
    let chunks: Vec<KvChunk> = (700..703).map(|seed| chunk(seed, 4, Dtype::F16)).collect();
    store.put(&chunks).await.expect("put works");
    let listed = async || store.list().await.expect("list works");
    for chunk in &chunks {
        let held =
            listed().await.into_iter().find(|held| held.id == chunk.id()).expect("a chunk that is held is listed");
        assert!(held.bytes >= chunk.size() as u64, "a chunk occupies at least the bytes of its KV");
    }
    let gone = chunks[1].id();
    store.evict(&[gone]).await.expect("evict works");
    assert!(store.get(&gone).await.expect("get works").is_none(), "an evicted chunk is a miss");
    assert!(listed().await.iter().all(|held| held.id != gone), "an evicted chunk is not listed");
    store.put(&chunks[1..2]).await.expect("put works");
    assert_same(&found(store, &chunks[1]).await, &chunks[1]);
}

async fn chunks_that_were_handed_out_stay_readable(store: &impl KvStore) {
    let chunk = chunk(1, 100, Dtype::F16);
    store.put(std::slice::from_ref(&chunk)).await.unwrap();
    let held = found(store, &chunk).await;
    store.delete(&[chunk.id()]).await.unwrap();
    assert_same(&held, &chunk);
}

async fn it_counts_what_it_holds_and_sees(store: &impl KvStore) {
    let [a, b] = [chunk(1, 40, Dtype::F16), chunk(2, 40, Dtype::F16)];
    store.put(&[a.clone(), b.clone()]).await.unwrap();
    let before = store.stats().await;
    assert_eq!(before.chunks, 2, "stats count the chunks held");
    assert!(before.bytes >= (a.size() + b.size()) as u64, "stats count at least the KV's bytes");
    found(store, &a).await;
    let _ = store.get(&chunk(3, 1, Dtype::F16).id()).await.unwrap();
    let after = store.stats().await;
    assert_eq!((after.hits - before.hits, after.misses - before.misses), (1, 1), "a get is a hit or a miss");
    assert_eq!(after.damaged, 0, "nothing is damaged");
    let three = [a.id(), chunk(3, 1, Dtype::F16).id(), b.id()];
    store.contains_many(&three).await;
    store.prefetch(&three);
    store.page(None, 10).await.expect("page works");
    let unchanged = store.stats().await;
    let counted = (unchanged.hits - after.hits, unchanged.misses - after.misses);
    assert_eq!(counted, (0, 0), "only a get is a hit or a miss");
    store.get_many(&three).await.expect("get_many works");
    let many = store.stats().await;
    let counted = (many.hits - unchanged.hits, many.misses - unchanged.misses);
    assert_eq!(counted, (2, 1), "each chunk of a get_many is a hit or a miss");
    store.delete(&[a.id(), b.id()]).await.unwrap();
    assert_eq!(store.stats().await.chunks, 0, "stats count the chunks held");
    assert!(store.stats().await.bytes < before.bytes, "deleting gives space back");
}

async fn hints_change_nothing(store: &impl KvStore) {
    let chunk = chunk(1, 4, Dtype::F16);
    store.note_relevance(&[(chunk.id(), 1.0), (chunk.id(), f32::NAN), (chunk.id(), -1.0)]);
    store.put(std::slice::from_ref(&chunk)).await.unwrap();
    store.note_relevance(&[(chunk.id(), 0.0)]);
    for (tokens, time) in [(0, Duration::ZERO), (10, Duration::from_secs(100)), (usize::MAX, Duration::MAX)] {
        store.note_prefill(tokens, time);
    }
    assert_same(&found(store, &chunk).await, &chunk);
}

fn many_threads_may_use_it_at_once(store: &impl KvStore) {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                block_on(async {
                    for round in 0..10 {
                        // Some chunks are the thread's own, some are everybody's.
                        let [own, shared] = [100 + 10 * thread + round, round].map(|seed| chunk(seed, 3, Dtype::F16));
                        store.put(&[own.clone(), shared.clone()]).await.expect("threads may put at once");
                        assert_same(&found(store, &own).await, &own);
                        assert_same(&found(store, &shared).await, &shared);
                        if round % 3 == 0 {
                            store.delete(&[own.id()]).await.expect("threads may delete at once");
                            assert!(!store.contains(&own.id()).await, "a deleted chunk is gone");
                        }
                    }
                });
            });
        }
    });
}

async fn found(store: &impl KvStore, chunk: &KvChunk) -> KvChunk {
    let found = store.get(&chunk.id()).await.expect("get works");
    found.expect("a chunk that was put, and that there is room for, is found")
}

fn assert_same(found: &KvChunk, put: &KvChunk) {
    assert_eq!(found.id(), put.id(), "a chunk comes back under its id");
    assert_eq!(found.prefix(), put.prefix(), "a chunk comes back with its prefix");
    assert_eq!(found.model(), put.model(), "a chunk comes back with the model that computed it");
    assert_eq!(found.shape(), put.shape(), "a chunk comes back in its shape");
    assert_eq!(found.tokens(), put.tokens(), "a chunk comes back with its tokens");
    assert_eq!(found.sensitivity(), put.sensitivity(), "a chunk comes back with its sensitivity");
    assert!(found.to_bytes().unwrap() == put.to_bytes().unwrap(), "a chunk comes back with its KV, byte for byte");
}

/// A chunk of made-up KV that is different for each `seed` and number of tokens.
fn chunk(seed: u32, tokens: usize, dtype: Dtype) -> KvChunk {
    encoded(seed, tokens, Encoding::Plain(dtype))
}

fn encoded(seed: u32, tokens: usize, encoding: Encoding) -> KvChunk {
    made_up("conformance", seed, tokens, encoding)
}

fn owned(owner: &str, seed: u32) -> KvChunk {
    made_up(owner, seed, 4, Encoding::Plain(Dtype::F16))
}

fn made_up(owner: &str, seed: u32, tokens: usize, encoding: Encoding) -> KvChunk {
    let (shape, model) = (KvShape { layers: 3, kv_heads: 2, head_dim: 5 }, Fingerprint([1; 32]));
    let tokens: Arc<[u32]> = (0..tokens as u32).map(|i| seed.wrapping_mul(7919).wrapping_add(i)).collect();
    let prefix = PrefixId::of(&[seed]);
    let id = ChunkId::of(&model, &prefix, owner, &tokens);
    let noise = (0..encoding.bytes(&shape, tokens.len()) as u64)
        .map(|i| (i + u64::from(seed)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let data: Vec<u8> = noise.map(|noise| (noise >> 56) as u8).collect();
    let data = Arc::new(HostKv::new(encoding, shape.layers, data));
    KvChunk::new(id, prefix, shape, tokens, data).unwrap().with_model(model)
}

/// The same chunk, with every byte of its KV turned around.
fn with_other_kv(chunk: &KvChunk) -> KvChunk {
    let bytes = chunk.to_bytes().unwrap().into_iter().map(|byte| !byte).collect();
    chunk.clone().with_data(Arc::new(HostKv::new(chunk.encoding(), chunk.shape().layers, bytes))).unwrap()
}

fn measured(chunk: &KvChunk) -> KvChunk {
    let sensitivity = (0..chunk.tokens().len()).map(|i| i as f32 / 8.0).collect();
    chunk.clone().with_sensitivity(sensitivity).unwrap()
}
