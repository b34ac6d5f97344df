//! A service of OpenDAL whose requests fail when they are told to.

use std::sync::{Arc, Mutex};

use amem_store::remote::opendal::raw::{
    Layer, OpCopy, OpCreateDir, OpDelete, OpList, OpPresign, OpRead, OpRename, OpStat, OpWrite, RpCreateDir, RpPresign,
    RpRead, RpRename, RpStat, Service, ServiceInfo, Servicer, oio,
};
use amem_store::remote::opendal::{
    Buffer, BytesRange, Capability, Error, ErrorKind, Metadata, OperationContext, Result,
};

/// How a request fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// It is not done.
    Refused,
    /// What it writes or removes is done, and nobody is told.
    Unanswered,
    /// It is not done, and nothing ever comes back.
    Hangs,
    /// It is done, and takes a millisecond or some more.
    Late,
}

/// Which requests fail: so many work, and so many after them fail.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) after: u32,
    pub(crate) count: u32,
    pub(crate) fault: Fault,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Faults(Arc<Mutex<Option<Plan>>>);

impl Faults {
    pub(crate) fn plan(&self, plan: Option<Plan>) {
        *self.0.lock().unwrap() = plan;
    }

    /// How the next request fails, if it does.
    fn next(&self) -> Option<Fault> {
        let mut planned = self.0.lock().unwrap();
        let plan = planned.as_mut()?;
        if plan.after > 0 {
            plan.after -= 1;
            return None;
        }
        let fault = plan.fault;
        match plan.count {
            0 => *planned = None,
            _ => plan.count -= 1,
        }
        planned.is_some().then_some(fault)
    }

    /// Does a request, or fails.
    async fn request<T>(&self, does: impl Future<Output = Result<T>>) -> Result<T> {
        match self.next() {
            None => does.await,
            Some(Fault::Refused) => Err(failed()),
            Some(Fault::Unanswered) => {
                does.await?;
                Err(failed())
            }
            Some(Fault::Late) => {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                does.await
            }
            Some(Fault::Hangs) => std::future::pending().await,
        }
    }
}

fn failed() -> Error {
    Error::new(ErrorKind::Unexpected, "a planned failure")
}

impl Layer for Faults {
    fn apply_service(&self, inner: Servicer) -> Servicer {
        Arc::new(Faulty { inner, faults: self.clone() })
    }
}

#[derive(Debug)]
struct Faulty<T> {
    inner: T,
    faults: Faults,
}

impl Service for Faulty<Servicer> {
    type Reader = Faulty<oio::Reader>;
    type Writer = Faulty<oio::Writer>;
    type Lister = oio::Lister;
    type Deleter = Faulty<oio::Deleter>;
    type Copier = oio::Copier;
    type Composer = oio::Composer;

    fn info(&self) -> ServiceInfo {
        self.inner.info()
    }

    fn capability(&self) -> Capability {
        self.inner.capability()
    }

    async fn create_dir(&self, context: &OperationContext, path: &str, args: OpCreateDir) -> Result<RpCreateDir> {
        self.inner.create_dir(context, path, args).await
    }

    async fn stat(&self, context: &OperationContext, path: &str, args: OpStat) -> Result<RpStat> {
        self.faults.request(self.inner.stat(context, path, args)).await
    }

    fn read(&self, context: &OperationContext, path: &str, args: OpRead) -> Result<Self::Reader> {
        Ok(Faulty { inner: self.inner.read(context, path, args)?, faults: self.faults.clone() })
    }

    fn write(&self, context: &OperationContext, path: &str, args: OpWrite) -> Result<Self::Writer> {
        Ok(Faulty { inner: self.inner.write(context, path, args)?, faults: self.faults.clone() })
    }

    fn delete(&self, context: &OperationContext) -> Result<Self::Deleter> {
        Ok(Faulty { inner: self.inner.delete(context)?, faults: self.faults.clone() })
    }

    fn list(&self, context: &OperationContext, path: &str, args: OpList) -> Result<Self::Lister> {
        self.inner.list(context, path, args)
    }

    fn copy(&self, context: &OperationContext, from: &str, to: &str, args: OpCopy) -> Result<Self::Copier> {
        self.inner.copy(context, from, to, args)
    }

    async fn rename(&self, context: &OperationContext, from: &str, to: &str, args: OpRename) -> Result<RpRename> {
        self.inner.rename(context, from, to, args).await
    }

    async fn presign(&self, context: &OperationContext, path: &str, args: OpPresign) -> Result<RpPresign> {
        self.inner.presign(context, path, args).await
    }
}

impl oio::Read for Faulty<oio::Reader> {
    async fn open(&self, range: BytesRange) -> Result<(RpRead, Box<dyn oio::ReadStreamDyn>)> {
        self.faults.request(self.inner.open(range)).await
    }

    async fn read(&self, range: BytesRange) -> Result<(RpRead, Buffer)> {
        self.faults.request(self.inner.read(range)).await
    }
}

impl oio::Write for Faulty<oio::Writer> {
    async fn write(&mut self, bytes: Buffer) -> Result<()> {
        self.inner.write(bytes).await
    }

    async fn close(&mut self) -> Result<Metadata> {
        self.faults.request(self.inner.close()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

impl oio::Delete for Faulty<oio::Deleter> {
    async fn delete(&mut self, path: &str, args: OpDelete) -> Result<()> {
        self.faults.request(self.inner.delete(path, args)).await
    }

    async fn close(&mut self) -> Result<()> {
        self.inner.close().await
    }
}
