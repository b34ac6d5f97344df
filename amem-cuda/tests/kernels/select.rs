//! The kernels of `select`.

use amem_ptxsim::{Counts, Kernel, Schedule};

use super::check::{Case, Check, at_floor, hold, near, same};
use super::harness::{Argument, Device, NULL, Random, SCHEDULES, constant, kernel};

const INFINITY: f32 = f32::INFINITY;
const NAN: f32 = f32::NAN;

/// The place of the largest number that is one, and of equal ones of the first.
fn first_of_the_largest(row: &[f32]) -> u32 {
    let mut best: Option<(usize, f32)> = None;
    for (at, &x) in row.iter().enumerate().filter(|(_, x)| !x.is_nan()) {
        if best.is_none_or(|(_, largest)| x > largest) {
            best = Some((at, x));
        }
    }
    best.map_or(0, |(at, _)| at as u32)
}

fn argmax(kernel: &Kernel, schedule: Schedule, rows: &[f32], columns: usize) -> Result<Counts, String> {
    let expected: Vec<u32> = rows.chunks(columns).map(first_of_the_largest).collect();
    let mut device = Device::new();
    let (x, out) = (device.upload("x", rows), device.allocate("out", 4 * expected.len()));
    let arguments = [x.into(), out.into(), (columns as u32).into()];
    let counts = device.launch(kernel, [expected.len() as u32, 1, 1], 1024, 0, &arguments, schedule)?;
    same("place", &device.read::<u32>(out)?, &expected)?;
    Ok(counts)
}

/// Rows of which each begins at another distance from a multiple of 16, with a largest number that comes twice.
fn rows_with_ties(columns: usize) -> Vec<f32> {
    let mut random = Random::new(columns as u64);
    let mut rows = random.units(4 * columns);
    for row in rows.chunks_mut(columns) {
        for _ in 0..2 {
            row[random.below(columns as u32) as usize] = 1.5;
        }
        row[random.below(columns as u32) as usize] = NAN;
    }
    rows
}

/// Rows of so many columns that have their largest number at each place there is.
fn rows_with_each_place(columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|place| (0..columns).map(move |at| if at == place { -1.0 } else { -2.0 })).collect()
}

/// Rows of 20,000 columns, whose largest number each of a thread's numbers is in turn.
fn rows_for_each_number_of_a_thread() -> Vec<f32> {
    let mut random = Random::new(16);
    let mut rows = random.units(16 * 20_000);
    for (number, row) in rows.chunks_mut(20_000).enumerate() {
        // Threads have fours that are 4,096 apart, and take the first one of the row and the others of the later ones.
        let four = 4096 * (number / 4) + 4 * random.below(if number < 12 { 1024 } else { 700 }) as usize;
        row[four + number % 4] = 1.5;
        row[19_999] = if number % 2 == 0 { 1.5 } else { 1.25 };
    }
    rows
}

/// Rows of numbers that are the same from a place on: in other lanes, and in other warps.
fn rows_of_equals() -> Vec<f32> {
    let places = (0..10).map(|power| 4usize << power);
    places.flat_map(|place| (0..4096).map(move |at| if at < place { -1.0 } else { 1.0 })).collect()
}

/// Rows of seven in which the largest number is hard to tell.
fn odd_rows() -> Vec<f32> {
    let rows: [[f32; 7]; 8] = [
        [NAN; 7],
        [NAN, NAN, NAN, NAN, NAN, -INFINITY, NAN],
        [-INFINITY; 7],
        [NAN, -INFINITY, NAN, -3e38, -INFINITY, -3e38, NAN],
        [NAN, INFINITY, INFINITY, NAN, 1.0, 2.0, 3.0],
        [-1.0, -0.0, 0.0, -0.0, 0.0, NAN, -1.0],
        [-1.0, 0.0, -0.0, -1e-45, -0.0, 0.0, -1.0],
        [-1e-45, -1e-44, NAN, -1e-45, -2e-45, -1.0, NAN],
    ];
    rows.concat()
}

/// Minus infinity in places that are far apart.
fn rows_of_nothing(columns: usize) -> Vec<f32> {
    (0..2 * columns).map(|i| if i % columns > columns / 2 && i % 3 == 0 { -INFINITY } else { NAN }).collect()
}

fn weigh(
    kernel: &Kernel,
    schedule: Schedule,
    (count, mass_len): (usize, usize),
    sensitive: bool,
) -> Result<(), String> {
    let mut random = Random::new(count as u64);
    let mass = random.units(mass_len);
    let last = mass_len as u32;
    let edges = [0, last.wrapping_sub(1), last, last + 1, u32::MAX, u32::MAX - 1, 1];
    let slots: Vec<u32> = (0..count).map(|i| edges.get(i).copied().unwrap_or_else(|| random.below(last + 2))).collect();
    let sensitivity = random.units(count);
    // What lies outside of the mass counts as none.
    let at = |slot: i64| usize::try_from(slot).ok().and_then(|slot| mass.get(slot)).copied().unwrap_or(0.0);
    let weight = |(&slot, &sensitivity): (&u32, &f32)| {
        let slot = i64::from(slot);
        let weight = at(slot) + 0.5 * (at(slot - 1) + at(slot + 1));
        if sensitive { weight * sensitivity } else { weight }
    };
    let expected: Vec<f32> = slots.iter().zip(&sensitivity).map(weight).collect();
    for blocks in [count.div_ceil(256) as u32, 1] {
        let mut device = Device::new();
        let (mass_at, slots_at) = (device.upload("mass", &mass), device.upload("slots", &slots));
        let sensitivity_at = if sensitive { device.upload("sensitivity", &sensitivity).into() } else { NULL };
        let out = device.allocate("out", 4 * count);
        let numbers: [Argument; 2] = [(count as u32).into(), last.into()];
        let arguments = [&[mass_at.into(), slots_at.into(), sensitivity_at, out.into()], &numbers[..]].concat();
        device.launch(kernel, [blocks, 1, 1], 256, 0, &arguments, schedule)?;
        same("weight", &device.read::<f32>(out)?, &expected)?;
    }
    Ok(())
}

/// The places of the `k` largest weights, in ascending order: by sorting all of them.
fn largest(weights: &[f32], k: usize) -> Vec<u32> {
    let mut places: Vec<u32> = (0..weights.len() as u32).filter(|&at| weights[at as usize] > 0.0).collect();
    places.sort_by(|&a, &b| weights[b as usize].total_cmp(&weights[a as usize]).then(a.cmp(&b)));
    places.truncate(k);
    places.sort_unstable();
    places
}

fn top_k(kernel: &Kernel, schedule: Schedule, weights: &[f32], k: usize) -> Result<Counts, String> {
    let expected = largest(weights, k);
    let mut device = Device::new();
    let weights_at = device.upload("weights", weights);
    // No room for more than what is expected.
    let (out, found) = (device.allocate("out", 4 * expected.len()), device.allocate("found", 4));
    let numbers: [Argument; 2] = [(weights.len() as u32).into(), (k as u32).into()];
    let arguments = [&[weights_at.into()], &numbers[..], &[out.into(), found.into()]].concat();
    let counts = device.launch(kernel, [1, 1, 1], 1024, 0, &arguments, schedule)?;
    same("found", &device.read::<u32>(found)?, &[expected.len() as u32])?;
    same("place", &device.read::<u32>(out)?, &expected)?;
    Ok(counts)
}

/// Weights of all kinds: few different ones, such that differ in single bytes only, and what is no weight.
fn weights(count: usize, kind: usize) -> Vec<f32> {
    let mut random = Random::new((count + kind) as u64);
    let mut weight = |_| match kind {
        // Many equal ones.
        0 => random.below(4) as f32 - 1.0,
        // Of all magnitudes, with both signs, and NaN.
        1 => f32::from_bits(random.next() as u32),
        // One byte of four differs.
        2 => f32::from_bits(0x3e12_3456 ^ random.below(256) << (8 * random.below(3))),
        // Few above zero.
        3 if random.below(50) == 0 => random.unit(),
        3 => [0.0, -0.0, NAN, -1.0, -INFINITY][random.below(5) as usize],
        // The least, the largest and infinite ones.
        4 => f32::from_bits([1, 2, 0x7f7f_ffff, 0x7f80_0000, 0x7f80_0001, 0, 0x8000_0001][random.below(7) as usize]),
        // As attention is.
        _ => (12.0 * random.unit()).exp(),
    };
    (0..count).map(&mut weight).collect()
}

/// A row's choices of experts, and their shares with what arithmetic in f32 may change.
fn chosen_of(scores: &[f32], each: usize, normalised: bool) -> (Vec<u32>, Vec<(f64, f64)>) {
    let mut ranked: Vec<usize> = (0..scores.len()).collect();
    ranked.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let behind = |expert: usize| f64::from(scores[expert]) - f64::from(scores[ranked[0]]);
    let counted = if normalised { &ranked[..each] } else { &ranked[..] };
    let total: f64 = counted.iter().map(|&expert| behind(expert).exp()).sum();
    let share = |&expert: &usize| {
        let share = behind(expert).exp() / total;
        // An exponential is off by its power's rounding, and what is hardly there has few digits.
        let off = if share > 0.0 { share * (1e-6 + 2e-7 * behind(expert).abs()) } else { 0.0 };
        (share, off + 1e-44)
    };
    (ranked[..each].iter().map(|&expert| expert as u32).collect(), ranked[..each].iter().map(share).collect())
}

fn choose_experts(
    kernel: &Kernel,
    schedule: Schedule,
    scores: &[f32],
    (experts, each): (usize, usize),
    normalised: bool,
) -> Result<Counts, String> {
    let rows = scores.len() / experts;
    let mut device = Device::new();
    let scores_at = device.upload("scores", scores);
    let chosen = device.allocate("chosen", 4 * rows * each);
    let picked = device.allocate("picked", 8 * rows * each);
    let numbers = [experts as u32, each as u32, u32::from(normalised)].map(Argument::from);
    let arguments = [&[scores_at.into(), chosen.into(), picked.into()], &numbers[..]].concat();
    let counts = device.launch(kernel, [rows as u32, 1, 1], 32, 0, &arguments, schedule)?;
    let expected: Vec<_> = scores.chunks(experts).map(|row| chosen_of(row, each, normalised)).collect();
    let (experts, shares): (Vec<_>, Vec<_>) = expected.into_iter().unzip();
    same("expert", &device.read::<u32>(chosen)?, &experts.concat())?;
    let found: Vec<[u32; 2]> = device.read(picked)?;
    let indexes: Vec<u32> = (0..(rows * each) as u32).collect();
    same("index", &found.iter().map(|[index, _]| *index).collect::<Vec<_>>(), &indexes)?;
    let found: Vec<f32> = found.iter().map(|[_, share]| f32::from_bits(*share)).collect();
    near("share", &found, shares.concat().into_iter())?;
    Ok(counts)
}

/// Choices by expert, and their tiles.
fn group_choices(kernel: &Kernel, schedule: Schedule, chosen: &[u32], experts: usize) -> Result<Counts, String> {
    let rows = constant("select", "group_choices", "rows") as usize;
    let most = chosen.len() / rows + experts.min(chosen.len());
    let mut device = Device::new();
    let chosen_at = device.upload("chosen", chosen);
    let order_at = device.allocate("order", 4 * chosen.len());
    let tiles_at = device.allocate("tiles", 16 * most);
    let numbers = [chosen.len(), experts, most].map(|number| Argument::from(number as u32));
    let arguments = [&[chosen_at.into(), order_at.into(), tiles_at.into()], &numbers[..]].concat();
    let counts = device.launch(kernel, [1, 1, 1], 1024, 0, &arguments, schedule)?;
    let order: Vec<u32> = device.read(order_at)?;
    let mut all = order.clone();
    all.sort_unstable();
    same("choice", &all, &(0..chosen.len() as u32).collect::<Vec<_>>())?;
    same("expert in order", &order.iter().map(|&choice| chosen[choice as usize]).collect::<Vec<_>>(), &{
        let mut sorted = chosen.to_vec();
        sorted.sort_unstable();
        sorted
    })?;
    let (mut expected, mut first) = (Vec::new(), 0);
    for expert in 0..experts as u32 {
        let mut left = chosen.iter().filter(|&&chosen| chosen == expert).count() as u32;
        while left > 0 {
            let count = left.min(rows as u32);
            expected.push([expert, first, count, 0]);
            (first, left) = (first + count, left - count);
        }
    }
    expected.resize(most, [0; 4]);
    same("tile", &device.read::<[u32; 4]>(tiles_at)?, &expected)?;
    Ok(counts)
}

/// Choices that are spread over the experts, or over a few of them.
fn choices(count: usize, experts: usize) -> Vec<u32> {
    let mut random = Random::new((count * experts) as u64);
    let spread = if count.is_multiple_of(2) { experts } else { experts.min(5) };
    (0..count).map(|_| experts as u32 - 1 - random.below(spread as u32)).collect()
}

/// Rows of scores: as routers give them, many equal ones, all of them equal, of all magnitudes, and such as are none.
fn scores(rows: usize, experts: usize) -> Vec<f32> {
    let mut random = Random::new((rows * experts) as u64);
    let odd = [NAN, -NAN, INFINITY, -INFINITY, 0.0, -0.0, 1e-45, -1e-45, f32::from_bits(u32::MAX)];
    let mut score = |row: usize| match row % 6 {
        0 => 4.0 * random.unit(),
        1 => random.below(4) as f32 - 2.0,
        2 => -1.5,
        3 => 90.0 * random.unit(),
        4 => odd[random.below(9) as usize],
        // No NaN, so that shares are numbers.
        _ => odd[3 + random.below(5) as usize],
    };
    (0..rows * experts).map(|at| score(at / experts)).collect()
}

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    let mut of = |entry: &str, check: Box<Check>| {
        all.push(Case::new("select", entry, check));
    };
    for columns in [1, 2, 5, 1027, 4096, 12_001, 16_390, 24_001] {
        of("argmax", Box::new(move |k, s| argmax(k, s, &rows_with_ties(columns), columns).map(drop)));
    }
    of("argmax", Box::new(move |k, s| argmax(k, s, &rows_with_each_place(23), 23).map(drop)));
    of("argmax", Box::new(move |k, s| argmax(k, s, &rows_for_each_number_of_a_thread(), 20_000).map(drop)));
    of("argmax", Box::new(move |k, s| argmax(k, s, &rows_of_equals(), 4096).map(drop)));
    of("argmax", Box::new(move |k, s| argmax(k, s, &odd_rows(), 7).map(drop)));
    of("argmax", Box::new(move |k, s| argmax(k, s, &rows_of_nothing(5001), 5001).map(drop)));
    for size in [(1, 1), (7, 2), (257, 100), (1500, 700), (9, 0)] {
        for sensitive in [false, true] {
            of("weigh", Box::new(move |k, s| weigh(k, s, size, sensitive)));
        }
    }
    for (experts, each) in [(8, 2), (128, 8), (1, 1), (33, 32), (32, 32), (64, 6), (40, 1), (160, 5), (7, 7)] {
        for normalised in [true, false] {
            of(
                "choose_experts",
                Box::new(move |k, s| choose_experts(k, s, &scores(12, experts), (experts, each), normalised).map(drop)),
            );
        }
    }
    for (count, experts) in [(1, 1), (64, 1), (129, 2), (2000, 128), (8191, 160), (300, 33), (63, 4096), (2050, 32)] {
        of("group_choices", Box::new(move |k, s| group_choices(k, s, &choices(count, experts), experts).map(drop)));
    }
    for (kind, count, k) in [
        (0, 1, 1),
        (0, 7, 3),
        (0, 257, 100),
        (0, 5000, 2600),
        (1, 130, 20),
        (1, 4095, 1),
        (2, 4097, 700),
        (2, 600, 599),
        (2, 8200, 4000),
        (3, 4096, 30),
        (3, 3000, 3000),
        (3, 70, 0),
        (4, 500, 120),
        (4, 500, 250),
        (4, 500, 1000),
        (5, 10_000, 1500),
        (5, 10_000, 10_000),
        (5, 0, 5),
    ] {
        of("top_k", Box::new(move |kernel, s| top_k(kernel, s, &weights(count, kind), k).map(drop)));
    }
    // With each number of weights there is, or many of them: then each byte of the last one chosen takes many values, and
    // the last weights of all are among the first that are left out.
    for (kind, count, step) in [(0, 7, 1), (0, 11, 1), (1, 260, 3), (2, 1203, 29)] {
        of(
            "top_k",
            Box::new(move |kernel, s| {
                let weights = weights(count, kind);
                (1..=count).step_by(step).try_for_each(|k| top_k(kernel, s, &weights, k).map(drop))
            }),
        );
    }
    all
}

#[test]
fn choices_are_grouped_by_expert_and_cut_into_tiles() {
    hold(cases(), "group_choices");
}

#[test]
fn the_first_of_the_largest_numbers_is_found_and_nan_is_none() {
    hold(cases(), "argmax");
}

#[test]
fn weights_are_lent_to_neighbours_and_end_with_the_mass() {
    hold(cases(), "weigh");
}

#[test]
fn the_largest_weights_are_chosen_and_of_equals_the_earlier() {
    hold(cases(), "top_k");
}

#[test]
fn rows_choose_the_experts_with_the_largest_scores_and_of_equals_the_first() {
    hold(cases(), "choose_experts");
}

#[test]
fn a_large_vocabulary_is_read_once() {
    let rows = rows_with_ties(128_256);
    let counts = argmax(kernel("select", "argmax"), SCHEDULES[0], &rows, 128_256).unwrap();
    assert_eq!(at_floor(&counts, 4 * rows.len(), 0.02), Ok(()));
}

#[test]
fn weights_of_a_long_context_are_read_six_times() {
    let counts = top_k(kernel("select", "top_k"), SCHEDULES[0], &weights(60_000, 5), 6000).unwrap();
    assert_eq!(at_floor(&counts, 6 * 4 * 60_000 + 4 * 6000, 0.15), Ok(()));
}
