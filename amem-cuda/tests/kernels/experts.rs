//! The kernels of `experts_<T>`.

use amem_ptxsim::{Counts, Kernel, Schedule};

use super::check::{Case, hold};
use super::harness::{Argument, Device, Random, SCHEDULES, Type, constant, kernel};
use super::matvec::{ExpertSizes, OfExperts};

/// Tiles of these choices, in an order of their own, as `group_choices` makes them; and one without choices.
fn tiles(chosen: &[u32], experts: usize, rows: usize) -> (Vec<u32>, Vec<[u32; 4]>) {
    let mut random = Random::new(chosen.len() as u64);
    let (mut order, mut tiles) = (Vec::new(), vec![[0; 4]]);
    for expert in 0..experts as u32 {
        let mut own: Vec<u32> = (0..chosen.len() as u32).filter(|&choice| chosen[choice as usize] == expert).collect();
        let count = own.len() as u32;
        (0..own.len()).for_each(|at| own.swap(at, random.below(count) as usize));
        for tile in own.chunks(rows) {
            tiles.push([expert, order.len() as u32, tile.len() as u32, 0]);
            order.extend(tile);
        }
    }
    (order, tiles)
}

/// Products of rows with the experts that each of them chose, of which there are `each` for a row.
fn products(
    kernel: &Kernel,
    schedule: Schedule,
    dtype: Type,
    sizes: (usize, usize, usize),
    (experts, each): (usize, usize),
) -> Result<Counts, String> {
    let (_, inputs, outputs) = sizes;
    let gated = kernel.name() == "experts_swiglu";
    let of = OfExperts::new(dtype, sizes, (experts, each), gated);
    let module = format!("experts_{}", dtype.name());
    let of_kernel = |what: &str| constant(&module, kernel.name(), what);
    let (order, tiles) = tiles(&of.chosen, experts, of_kernel("rows") as usize);
    let mut device = Device::new();
    let (x, order) = (of.upload_x(&mut device), device.upload("order", &order));
    let tiles_at = device.upload("tiles", &tiles);
    // What goes into the last product has a row for each choice.
    let each = if gated { each as u32 } else { 1 };
    let mut arguments: Vec<Argument> =
        vec![x.into(), (inputs as u32).into(), order.into(), tiles_at.into(), each.into()];
    arguments.extend(of.upload_tables(&mut device));
    let out = of.allocate_out(&mut device);
    arguments.extend([Argument::from(out), (outputs as u32).into()]);
    let grid = [(outputs as u32).div_ceil(of_kernel("outputs")), tiles.len() as u32, 1];
    let counts = device.launch(kernel, grid, 128, of_kernel("shared"), &arguments, schedule)?;
    of.check(kernel.name(), &device.read_as(dtype, out)?)?;
    Ok(counts)
}

/// Experts and how many of them a row chooses; rows, inputs and outputs. Inputs that are less than a step of 64, that end
/// within one, that are more steps than stages, and whose sums have to be rounded; tiles of one choice, of all they can
/// have, and more than one for an expert; columns that end within a panel, with one, and behind a block.
const SIZES: [ExpertSizes; 9] = [
    ((1, 1), (1, 8, 2)),
    ((1, 1), (1, 8, 10)),
    ((1, 1), (1, 8, 18)),
    ((4, 2), (9, 64, 64)),
    ((3, 2), (70, 72, 130)),
    ((16, 8), (33, 328, 22)),
    ((2, 2), (64, 128, 96)),
    ((40, 12), (12, 200, 258)),
    ((2, 2), (66, 1544, 64)),
];

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (dtype, (experts, sizes)) in [Type::F16, Type::Bf16].into_iter().flat_map(|t| SIZES.map(|sizes| (t, sizes))) {
        for entry in ["experts_swiglu", "experts_product"] {
            all.push(Case::of("experts", dtype, entry, move |k, s| products(k, s, dtype, sizes, experts).map(drop)));
        }
    }
    all
}

#[test]
fn many_rows_are_multiplied_with_the_experts_that_each_of_them_chose() {
    hold(cases(), "experts_product");
}

#[test]
fn a_swiglu_of_many_rows_is_that_of_two_rounded_products() {
    hold(cases(), "experts_swiglu");
}

#[test]
fn each_tile_reads_its_weights_once_and_no_bank_is_asked_twice_at_a_time() {
    // Two experts with 64 rows each: two tiles.
    let (rows, inputs, outputs) = (64, 256, 256);
    for entry in ["experts_swiglu", "experts_product"] {
        let k = kernel("experts_bf16", entry);
        let counts = products(k, SCHEDULES[0], Type::Bf16, (rows, inputs, outputs), (2, 2)).unwrap();
        let matrices = if entry == "experts_swiglu" { 2 } else { 1 };
        let blocks = outputs / constant("experts_bf16", entry, "outputs") as usize;
        // Sectors of what comes out are written in two halves.
        let floor = 2 * 2 * (matrices * inputs * outputs + blocks * rows * inputs + 2 * rows * outputs);
        let moved = 32 * counts.global_sectors as usize;
        assert!(moved <= floor + floor / 20, "{entry}: {moved} bytes moved where {floor} would do");
        assert_eq!(counts.bank_conflicts, 0, "{entry}");
    }
}
