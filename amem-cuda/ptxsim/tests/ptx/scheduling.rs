//! A pipelined kernel: it gives the same for every order of things, and each of its instructions matters.

use amem_ptxsim::{Copies, Counts, Kernel, Launch, Memory, Module, Schedule, run};
use half::bf16;

const DEPTH: usize = 96;

pub(crate) const PRODUCT: &str = include_str!("product.ptx");

fn number(index: usize) -> f32 {
    bf16::from_f32(((index * 37 % 101) as f32 - 50.0) / 16.0).to_f32()
}

/// Runs the product. Returns what it did and the result's bytes, of which none may be missing.
fn product(kernel: &Kernel, schedule: Schedule) -> Result<(Counts, Vec<f32>), String> {
    let mut memory = Memory::new();
    let mut upload = |name: &str, range: std::ops::Range<usize>| {
        let bytes: Vec<u8> = range.flat_map(|index| bf16::from_f32(number(index)).to_le_bytes()).collect();
        let address = memory.allocate(name, bytes.len());
        memory.write(address, &bytes).unwrap();
        address
    };
    let addresses = [upload("a", 0..32 * DEPTH), upload("b", 32 * DEPTH..40 * DEPTH)];
    let c = memory.allocate("c", 32 * 8 * 4);
    let mut parameters: Vec<u8> = addresses.iter().chain([&c]).flat_map(|address| address.to_le_bytes()).collect();
    parameters.extend((DEPTH as u32).to_le_bytes());
    let launch =
        Launch { kernel, grid: [1; 3], block: [64, 1, 1], dynamic_shared: 8192, parameters: &parameters, schedule };
    let counts = run(&launch, &mut memory).map_err(|fault| fault.to_string())?;
    let mut bytes = vec![0; 32 * 8 * 4];
    memory.read(c, &mut bytes).map_err(|error| error.to_string())?;
    Ok((counts, bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()))
}

fn is_right(result: &[f32]) -> bool {
    (0..32).all(|row| {
        (0..8).all(|column| {
            let terms =
                (0..DEPTH).map(|k| f64::from(number(row * DEPTH + k)) * f64::from(number((32 + column) * DEPTH + k)));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size): (f64, f64), term| (sum + term, size + term.abs()));
            (f64::from(result[row * 8 + column]) - sum).abs() <= size * 1e-6
        })
    })
}

#[test]
fn every_interleaving_of_warps_and_copies_gives_the_same_result() {
    let module = Module::parse(PRODUCT).unwrap();
    let kernel = module.kernel("product").unwrap();
    let (counts, first) = product(kernel, Schedule::default()).unwrap();
    assert!(is_right(&first));
    assert_eq!(counts.matrix_products, 2 * 2 * 3);
    assert_eq!(counts.matrix_loads, 2 * 2 * 2 * 3);
    assert_eq!(counts.barriers, 2 * 3);
    // a and b once, c once: 2 bytes for each element of a and b, 4 for each of c.
    let bytes = 40 * DEPTH * 2 + 32 * 8 * 4;
    assert_eq!(counts.global_bytes, bytes as u64);
    assert_eq!(counts.global_sectors, bytes as u64 / 32);
    for seed in 0..32 {
        for copies in [Copies::Late, Copies::Early] {
            let (again, result) = product(kernel, Schedule { seed, copies }).unwrap();
            assert_eq!((again, &result), (counts, &first));
        }
    }
}

#[test]
fn rows_that_lie_apart_avoid_conflicts_of_banks() {
    let conflicts = |text: &str| {
        let module = Module::parse(text).unwrap();
        product(module.kernel("product").unwrap(), Schedule::default()).unwrap().0.bank_conflicts
    };
    assert_eq!(conflicts(PRODUCT), 0);
    // Rows of 64 bytes without gaps: of 8 rows, every second one begins in the same bank, so each of the 4 + 2 matrices
    // that are loaded at a time takes 4 cycles instead of 1.
    let dense = PRODUCT.replace(", 80", ", 64").replace("1280", "1024").replace("2560", "2048");
    assert_eq!(conflicts(&dense), 2 * 2 * 3 * (4 + 2) * 3);
}

/// Each of these deletions would often pass on a GPU.
#[test]
fn a_missing_wait_or_barrier_is_found_in_every_order() {
    let module = Module::parse(PRODUCT).unwrap();
    let kernel = module.kernel("product").unwrap();
    let find = |text: &str| -> Vec<usize> {
        (0..kernel.instructions()).filter(|index| kernel.instruction_text(*index).starts_with(text)).collect()
    };
    let checks: [(&str, usize); 4] =
        [("cp.async.wait_group", 0), ("bar.sync", 0), ("bar.sync", 1), ("cp.async.commit_group", 1)];
    for (text, which) in checks {
        let broken = kernel.without(find(text)[which]);
        for seed in 0..16 {
            for copies in [Copies::Late, Copies::Early] {
                let result = product(&broken, Schedule { seed, copies });
                assert!(result.is_err(), "{text} {which}, seed {seed}, {copies:?}");
            }
        }
    }
}

/// What tests of kernels with this crate can find: nearly every deletion.
#[test]
fn deleting_an_instruction_of_the_product_is_noticed() {
    let module = Module::parse(PRODUCT).unwrap();
    let kernel = module.kernel("product").unwrap().with_step_limit(100_000);
    let survivors: Vec<&str> = (0..kernel.instructions())
        .filter(|index| match product(&kernel.without(*index), Schedule::default()) {
            Ok((_, result)) => is_right(&result),
            Err(_) => false,
        })
        .map(|index| kernel.instruction_text(index))
        .collect();
    // Their work is done already: copies were all waited for, the end comes anyway, and this lies at the end.
    assert_eq!(survivors, ["cp.async.wait_all;", "ret;"]);
}

#[test]
fn a_kernel_can_be_inspected() {
    let module = Module::parse(PRODUCT).unwrap();
    assert_eq!(module.target(), "sm_80");
    assert_eq!(module.kernels().len(), 1);
    let kernel = module.kernel("product").unwrap();
    assert!(module.kernel("other").is_none());
    assert_eq!(kernel.name(), "product");
    let parameters: Vec<_> = kernel.parameters().iter().map(|p| (p.name.as_str(), p.offset, p.size, p.align)).collect();
    assert_eq!(parameters, [("a", 0, 8, 8), ("b", 8, 8, 8), ("c", 16, 8, 8), ("depth", 24, 4, 4)]);
    assert_eq!(kernel.parameter_bytes(), 28);
    assert_eq!(kernel.max_threads(), Some([64, 1, 1]));
    assert_eq!(kernel.static_shared(), 0);
    let last = kernel.instructions() - 1;
    assert_eq!(kernel.instruction_text(last), "ret;");
    assert_eq!(PRODUCT.lines().nth(kernel.instruction_line(last) as usize - 1), Some("    ret;"));
    assert_eq!(kernel.instruction_text(last + 1), "");
}

#[test]
fn a_kernel_without_an_instruction_is_the_same_but_for_it() {
    let module = Module::parse(PRODUCT).unwrap();
    let kernel = module.kernel("product").unwrap();
    let first = kernel.without(0);
    assert_eq!(first.instructions(), kernel.instructions());
    let fault = product(&first, Schedule::default()).unwrap_err();
    assert!(fault.contains("`%d0` was never written"), "{fault}");
    assert!(product(&kernel.without(kernel.instructions()), Schedule::default()).is_ok());
}
