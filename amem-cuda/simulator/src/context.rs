//! Contexts: which of them exist, and which is current in each thread.

use crate::machine::{Machine, new_handle};
use crate::status::{Result, Status, refuse};
use std::cell::RefCell;
use std::collections::HashMap;

thread_local! {
    /// The thread's contexts. The last one is current.
    static CURRENT: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// All contexts of the process.
#[derive(Debug, Default)]
pub(crate) struct Contexts {
    /// The device of every context that exists.
    devices: HashMap<u64, i32>,
    /// The primary context of a device, and how often it is retained.
    primary: HashMap<i32, (u64, usize)>,
}

impl Contexts {
    /// Whether there are any.
    pub(crate) fn exist(&self) -> bool {
        !self.devices.is_empty()
    }
}

impl Machine {
    /// Fails without `cuInit`.
    pub(crate) fn check_initialised(&self) -> Result<()> {
        match self.initialised {
            true => Ok(()),
            false => refuse(Status::NOT_INITIALIZED, "cuInit was not called"),
        }
    }

    /// Fails when the thread has no current context.
    pub(crate) fn check_context(&self) -> Result<()> {
        self.check_initialised()?;
        match CURRENT.with_borrow(|stack| stack.last().copied()) {
            Some(context) if self.contexts.devices.contains_key(&context) => Ok(()),
            _ => refuse(Status::INVALID_CONTEXT, "this thread has no current context"),
        }
    }

    pub(crate) fn check_device(&self, device: i32) -> Result<()> {
        self.check_initialised()?;
        match (0..self.settings.devices).contains(&device) {
            true => Ok(()),
            false => refuse(Status::INVALID_DEVICE, format!("there is no device {device}")),
        }
    }

    pub(crate) fn retain_primary(&mut self, device: i32) -> Result<u64> {
        self.check_device(device)?;
        let (context, count) = self.contexts.primary.entry(device).or_insert_with(|| (new_handle(), 0));
        *count += 1;
        self.contexts.devices.insert(*context, device);
        Ok(*context)
    }

    pub(crate) fn release_primary(&mut self, device: i32) -> Result<()> {
        self.check_device(device)?;
        let Some((context, count)) = self.contexts.primary.get_mut(&device) else {
            return refuse(Status::INVALID_CONTEXT, "releases a primary context that is not retained");
        };
        *count -= 1;
        if *count > 0 {
            return Ok(());
        }
        let context = *context;
        self.contexts.primary.remove(&device);
        self.destroy_context(context)
    }

    pub(crate) fn create_context(&mut self, device: i32) -> Result<u64> {
        self.check_device(device)?;
        let context = new_handle();
        self.contexts.devices.insert(context, device);
        CURRENT.with_borrow_mut(|stack| stack.push(context));
        Ok(context)
    }

    /// Destroys a context. The last one takes all memory, streams and modules with it.
    pub(crate) fn destroy_context(&mut self, context: u64) -> Result<()> {
        if self.contexts.devices.remove(&context).is_none() {
            return refuse(Status::INVALID_CONTEXT, "there is no such context");
        }
        CURRENT.with_borrow_mut(|stack| stack.retain(|&current| current != context));
        if self.contexts.devices.is_empty() && self.check_fault().is_ok() {
            self.run_everything()?;
            self.release_everything();
        }
        Ok(())
    }

    pub(crate) fn current_context(&self) -> u64 {
        let current = CURRENT.with_borrow(|stack| stack.last().copied());
        current.filter(|context| self.contexts.devices.contains_key(context)).unwrap_or(0)
    }

    pub(crate) fn set_current_context(&self, context: u64) -> Result<()> {
        self.check_initialised()?;
        if context != 0 && !self.contexts.devices.contains_key(&context) {
            return refuse(Status::INVALID_CONTEXT, "there is no such context");
        }
        CURRENT.with_borrow_mut(|stack| {
            stack.pop();
            if context != 0 {
                stack.push(context);
            }
        });
        Ok(())
    }

    pub(crate) fn push_context(&self, context: u64) -> Result<()> {
        self.check_initialised()?;
        if !self.contexts.devices.contains_key(&context) {
            return refuse(Status::INVALID_CONTEXT, "there is no such context");
        }
        CURRENT.with_borrow_mut(|stack| stack.push(context));
        Ok(())
    }

    pub(crate) fn pop_context(&self) -> Result<u64> {
        match CURRENT.with_borrow_mut(Vec::pop) {
            Some(context) => Ok(context),
            None => refuse(Status::INVALID_CONTEXT, "this thread has no context to pop"),
        }
    }

    /// The device of the current context.
    pub(crate) fn current_device(&self) -> Result<i32> {
        self.check_context()?;
        Ok(self.contexts.devices.get(&self.current_context()).copied().unwrap_or(0))
    }
}
