//! stub
use std::collections::BTreeMap;
use std::sync::Mutex;
use crate::{Namespace, Record, RecordId, Recalled, Recaller, Result};
/// stub
#[derive(Default)]
pub struct Lexical { map: Mutex<BTreeMap<RecordId, Record>> }
#[async_trait::async_trait]
impl Recaller for Lexical {
    async fn index(&self, records: &[Record]) -> Result<()> { for r in records { self.map.lock().unwrap().insert(r.id, r.clone()); } Ok(()) }
    async fn remove(&self, _: &Namespace, ids: &[RecordId]) -> Result<()> { for i in ids { self.map.lock().unwrap().remove(i); } Ok(()) }
    async fn recall(&self, ns: &Namespace, query: &str, k: usize) -> Result<Vec<Recalled>> {
        let q: Vec<String> = query.to_lowercase().split(|c: char| !c.is_alphanumeric()).filter(|w| w.len()>2).map(str::to_owned).collect();
        let mut v: Vec<Recalled> = self.map.lock().unwrap().values().filter(|r| r.namespace == *ns).map(|r| { let t = r.text.to_lowercase(); Recalled { id: r.id, score: q.iter().filter(|w| t.contains(w.as_str())).count() as f32 } }).filter(|r| r.score > 0.0).collect();
        v.sort_by(|a,b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id))); v.truncate(k); Ok(v) }
}
