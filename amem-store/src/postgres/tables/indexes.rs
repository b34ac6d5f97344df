//! Indexes that recall keeps, so that it need not build them again.

use amem_core::{Namespace, Revision, SavedIndex};

use super::super::rows::{get, index_checksum, name_hash};
use super::{Locked, MAX_TEXT_BYTES, Result, Tables};

impl Tables<'_> {
    /// Keeps an index, unless something that may be in it was forgotten since.
    pub(in crate::postgres) async fn save_index(
        &self,
        namespace: &Namespace,
        name: &str,
        index: &SavedIndex,
    ) -> Result<bool> {
        let Some(locked) = self.lock(namespace).await? else { return Ok(false) };
        let revision = i64::try_from(index.revision.0).unwrap_or(i64::MAX);
        // One of a later revision than there is was made before the ledger was set back.
        let is_sound = (locked.forgotten..=locked.changes).contains(&revision) && locked.deleted <= revision;
        if !is_sound || index.bytes.len() > MAX_TEXT_BYTES {
            return Ok(false);
        }
        let save = "INSERT INTO saved_index (namespace, name, revision, bytes, checksum) VALUES ($1, $2, $3, $4, $5) \
                    ON CONFLICT (namespace, name) DO UPDATE SET revision = excluded.revision, bytes = excluded.bytes, \
                    checksum = excluded.checksum";
        let checksum = index_checksum(&locked.hash, name, revision, &index.bytes);
        self.execute(save, &[&locked.id, &name.as_bytes(), &revision, &index.bytes, &checksum]).await?;
        Ok(true)
    }

    /// The index that was kept last. A damaged one is none, for it can be built again.
    pub(in crate::postgres) async fn saved_index(
        &self,
        namespace: &Namespace,
        name: &str,
    ) -> Result<Option<SavedIndex>> {
        let select = "SELECT i.revision, i.bytes, i.checksum FROM namespace n JOIN saved_index i ON i.namespace = n.id \
                      WHERE n.hash = $1 AND i.name = $2 AND i.revision BETWEEN n.forgotten AND n.changes";
        let hash = name_hash(namespace);
        let rows = self.rows(select, &[&hash.as_slice(), &name.as_bytes()]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let (revision, bytes, checksum): (i64, &[u8], i64) = (get(row, 0)?, get(row, 1)?, get(row, 2)?);
        let is_sound = checksum == index_checksum(&hash, name, revision, bytes);
        Ok(is_sound.then(|| SavedIndex { revision: Revision(revision.unsigned_abs()), bytes: bytes.to_vec() }))
    }

    pub(super) async fn drop_indexes(&self, locked: &Locked<'_>) -> Result<()> {
        self.execute("DELETE FROM saved_index WHERE namespace = $1", &[&locked.id]).await?;
        Ok(())
    }
}
