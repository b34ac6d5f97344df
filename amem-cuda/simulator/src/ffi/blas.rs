//! The functions of cuBLASLt.

use super::guarded;
use super::pointer::{Bytes, In, Out, OutArray};
use crate::blas::description::{Description, MatrixLayout, Preference, Value};
use crate::blas::product::{Algorithm, Product, choose, rounds_parts};
use crate::blas::{BlasError, BlasStatus, Result, refuse};
use crate::machine::{Machine, new_handle};
use crate::operation::Work;
use std::ffi::{CStr, c_char, c_uint};

/// `cublasLtMatmulHeuristicResult_t`
#[repr(C)]
#[derive(Clone, Copy)]
struct Heuristic {
    algorithm: Algorithm,
    workspace: usize,
    status: c_uint,
    waves: f32,
    reserved: [i32; 4],
}

fn call(function: &'static str, body: impl FnOnce(&mut Machine) -> Result<()>) -> u32 {
    let outcome = guarded(|machine| {
        if let Err(error) = machine.count_call(function) {
            return refuse(BlasStatus(error.status.0), error.reason);
        }
        body(machine)
    });
    match outcome {
        Ok(()) => BlasStatus::SUCCESS.0,
        Err(BlasError { status, reason }) => {
            if !reason.is_empty() {
                eprintln!("simulated CUDA: {function} returns {}: {reason}", status.0);
            }
            status.0
        }
    }
}

fn find<T: Copy>(known: &std::collections::HashMap<u64, T>, handle: u64, what: &str) -> Result<T> {
    match known.get(&handle) {
        Some(object) => Ok(*object),
        None => refuse(BlasStatus::INVALID_VALUE, format!("there is no {what} {handle:#x}, or it is destroyed")),
    }
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtCreate(handle: Out<u64>) -> u32 {
    call("cublasLtCreate", |machine| {
        machine.check_fault()?;
        let new = new_handle();
        machine.blas.handles.insert(new);
        Ok(handle.put(new)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtDestroy(handle: u64) -> u32 {
    call("cublasLtDestroy", |machine| match machine.blas.handles.remove(&handle) {
        true if machine.contexts.exist() => Ok(()),
        true => Err(machine.fault("cublasLtDestroy after the last context was destroyed".to_string()).into()),
        false => refuse(BlasStatus::INVALID_VALUE, "there is no such handle"),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtGetVersion() -> usize {
    guarded(|machine| Ok::<_, BlasError>(machine.settings.cublas)).unwrap_or(0)
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtGetStatusName(status: c_uint) -> *const c_char {
    let name: &CStr = match status {
        0 => c"CUBLAS_STATUS_SUCCESS",
        1 => c"CUBLAS_STATUS_NOT_INITIALIZED",
        3 => c"CUBLAS_STATUS_ALLOC_FAILED",
        7 => c"CUBLAS_STATUS_INVALID_VALUE",
        8 => c"CUBLAS_STATUS_ARCH_MISMATCH",
        13 => c"CUBLAS_STATUS_EXECUTION_FAILED",
        14 => c"CUBLAS_STATUS_INTERNAL_ERROR",
        15 => c"CUBLAS_STATUS_NOT_SUPPORTED",
        _ => c"CUBLAS_STATUS_UNKNOWN",
    };
    name.as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtGetStatusString(status: c_uint) -> *const c_char {
    cublasLtGetStatusName(status)
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulDescCreate(description: Out<u64>, compute: c_uint, scale: c_uint) -> u32 {
    call("cublasLtMatmulDescCreate", |machine| {
        let handle = new_handle();
        machine.blas.descriptions.insert(handle, Description::new(compute, scale)?);
        Ok(description.put(handle)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulDescSetAttribute(description: u64, attribute: c_uint, value: Bytes, bytes: usize) -> u32 {
    call("cublasLtMatmulDescSetAttribute", |machine| {
        let mut known = find(&machine.blas.descriptions, description, "description")?;
        known.set(attribute, &Value(&value.take(bytes)?))?;
        machine.blas.descriptions.insert(description, known);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulDescDestroy(description: u64) -> u32 {
    call("cublasLtMatmulDescDestroy", |machine| {
        find(&machine.blas.descriptions, description, "description")?;
        machine.blas.descriptions.remove(&description);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatrixLayoutCreate(
    layout: Out<u64>,
    number: c_uint,
    rows: u64,
    columns: u64,
    leading: i64,
) -> u32 {
    call("cublasLtMatrixLayoutCreate", |machine| {
        let handle = new_handle();
        machine.blas.layouts.insert(handle, MatrixLayout::new(number, rows, columns, leading)?);
        Ok(layout.put(handle)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatrixLayoutSetAttribute(layout: u64, attribute: c_uint, value: Bytes, bytes: usize) -> u32 {
    call("cublasLtMatrixLayoutSetAttribute", |machine| {
        let mut known = find(&machine.blas.layouts, layout, "matrix layout")?;
        known.set(attribute, &Value(&value.take(bytes)?))?;
        machine.blas.layouts.insert(layout, known);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatrixLayoutDestroy(layout: u64) -> u32 {
    call("cublasLtMatrixLayoutDestroy", |machine| {
        find(&machine.blas.layouts, layout, "matrix layout")?;
        machine.blas.layouts.remove(&layout);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulPreferenceCreate(preference: Out<u64>) -> u32 {
    call("cublasLtMatmulPreferenceCreate", |machine| {
        let handle = new_handle();
        machine.blas.preferences.insert(handle, Preference::default());
        Ok(preference.put(handle)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulPreferenceSetAttribute(
    preference: u64,
    attribute: c_uint,
    value: Bytes,
    bytes: usize,
) -> u32 {
    call("cublasLtMatmulPreferenceSetAttribute", |machine| {
        let mut known = find(&machine.blas.preferences, preference, "preference")?;
        known.set(attribute, &Value(&value.take(bytes)?))?;
        machine.blas.preferences.insert(preference, known);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulPreferenceDestroy(preference: u64) -> u32 {
    call("cublasLtMatmulPreferenceDestroy", |machine| {
        find(&machine.blas.preferences, preference, "preference")?;
        machine.blas.preferences.remove(&preference);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    handle: u64,
    description: u64,
    a: u64,
    b: u64,
    c: u64,
    d: u64,
    preference: u64,
    room: i32,
    results: OutArray<Heuristic>,
    count: Out<i32>,
) -> u32 {
    call("cublasLtMatmulAlgoGetHeuristic", |machine| {
        check_handle(machine, handle)?;
        machine.counts.heuristics += 1;
        let description = find(&machine.blas.descriptions, description, "description")?;
        let layouts = find_layouts(machine, [a, b, c, d])?;
        let preference = find(&machine.blas.preferences, preference, "preference")?;
        if room < 1 {
            return refuse(BlasStatus::INVALID_VALUE, "no algorithm is asked for");
        }
        let (algorithm, workspace) = match choose(&description, layouts.each_ref(), &preference) {
            Ok(chosen) => chosen,
            Err(error) => {
                count.put_if_present(0);
                return Err(error);
            }
        };
        let workspace = workspace as usize;
        let found = Heuristic { algorithm, workspace, status: 0, waves: 1.0, reserved: [0; 4] };
        if !results.put(&[found], room as usize) {
            return refuse(BlasStatus::INVALID_VALUE, "the results have nowhere to go");
        }
        Ok(count.put(1)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtMatmul(
    handle: u64,
    description: u64,
    alpha: In<f32>,
    a: u64,
    a_layout: u64,
    b: u64,
    b_layout: u64,
    beta: In<f32>,
    c: u64,
    c_layout: u64,
    d: u64,
    d_layout: u64,
    algorithm: In<Algorithm>,
    workspace: u64,
    workspace_bytes: usize,
    stream: u64,
) -> u32 {
    call("cublasLtMatmul", |machine| {
        check_handle(machine, handle)?;
        machine.check_fault()?;
        let description = find(&machine.blas.descriptions, description, "description")?;
        let layouts = find_layouts(machine, [a_layout, b_layout, c_layout, d_layout])?;
        let algorithm = match algorithm.get_if_present() {
            Some(algorithm) => algorithm,
            None => {
                let preference =
                    Preference { workspace: workspace_bytes as u64, alignment: [1; 4], ..Preference::default() };
                choose(&description, layouts.each_ref(), &preference)?.0
            }
        };
        let [a_layout, b_layout, c_layout, d_layout] = layouts;
        let product = Product {
            description,
            a: (a, a_layout),
            b: (b, b_layout),
            c: (c, c_layout),
            d: (d, d_layout),
            alpha: alpha.get()?,
            beta: beta.get()?,
            workspace: workspace..workspace,
            rounds_parts: rounds_parts(&algorithm),
        };
        machine.submit_product(product, &algorithm, workspace_bytes as u64, stream)
    })
}

fn check_handle(machine: &Machine, handle: u64) -> Result<()> {
    match machine.blas.handles.contains(&handle) {
        true => Ok(()),
        false => refuse(BlasStatus(1), "there is no such handle: call cublasLtCreate first"),
    }
}

fn find_layouts(machine: &Machine, handles: [u64; 4]) -> Result<[MatrixLayout; 4]> {
    let layout = |handle| find(&machine.blas.layouts, handle, "matrix layout");
    let [a, b, c, d] = handles;
    Ok([layout(a)?, layout(b)?, layout(c)?, layout(d)?])
}

impl Machine {
    fn submit_product(
        &mut self,
        mut product: Product,
        algorithm: &Algorithm,
        workspace_bytes: u64,
        stream: u64,
    ) -> Result<()> {
        product.check(algorithm, workspace_bytes)?;
        // All of the workspace that was passed has to be there; the algorithm uses what it asked for.
        self.check_device_range(&(product.workspace.start..product.workspace.start.saturating_add(workspace_bytes)))?;
        product.workspace.end = product.workspace.start + algorithm[2];
        for range in product.reads().iter().chain(&product.writes()) {
            self.check_device_range(range)?;
        }
        let actor = self.stream(stream)?;
        if self.capture_of(actor).is_none() {
            self.counts.products += 1;
        }
        Ok(self.submit(actor, Work::Product(product.into()))?)
    }
}
