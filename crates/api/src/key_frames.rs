//! The frames from which later ones say their differences: the last that each node sent whole, as far as
//! they have room. One that is not here is looked for in the store, since another replica may have taken
//! it.

use bytes::Bytes;
use moka::future::Cache;
use nodestats_core::SampleKey;
use nodestats_store::Store;

use crate::ApiError;

/// Bytes of frames that there is room for: those of 5,000 nodes of some hundred processes.
const ROOM: u64 = 32 << 20;
/// A larger one is nobody's key but of frames that come with it: it would be in memory beside what bodies
/// may take.
const LARGEST: usize = 1 << 20;
/// What keeping a frame takes beside its own bytes.
const OVERHEAD: usize = 256;

/// The frames, by the UID of the node. Cloning is cheap; all clones are one.
#[derive(Debug, Clone)]
pub(crate) struct KeyFrames(Cache<String, (SampleKey, Bytes)>);

impl Default for KeyFrames {
    fn default() -> Self {
        let weight = |_: &String, (_, frame): &(SampleKey, Bytes)| {
            u32::try_from(frame.len() + OVERHEAD).unwrap_or(u32::MAX)
        };
        Self(Cache::builder().max_capacity(ROOM).weigher(weight).build())
    }
}

impl KeyFrames {
    /// A frame's own bytes; an error that says so where it is not stored either.
    pub(crate) async fn find(
        &self,
        store: &Store,
        uid: &str,
        key: SampleKey,
    ) -> Result<Bytes, ApiError> {
        match self.0.get(uid).await {
            Some((kept, frame)) if kept == key => return Ok(frame),
            _ => {}
        }
        let stored = store.frame(uid, &key).await?;
        let stored = stored.filter(|frame| frame.len() <= LARGEST);
        let frame = stored.ok_or_else(ApiError::missing_key_frame)?;
        self.keep(uid, key, frame.clone()).await;
        Ok(frame)
    }

    /// Keeps a node's frame in the place of the one before.
    pub(crate) async fn keep(&self, uid: &str, key: SampleKey, frame: Bytes) {
        if frame.len() <= LARGEST {
            self.0.insert(uid.to_owned(), (key, frame)).await;
        }
    }
}
