//! What a pass tells the GPU of its rows, and attention over the paged KV cache.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use amem_core::transformer::{Attention, Backend, BlockTable, Rope, Row};
use amem_core::{Dtype, Error, KvShape};

use crate::angles::Table;
use crate::backend::CudaBackend;
use crate::cache::{Cache, physical};
use crate::driver::{Buffer, Device, Launch};
use crate::error::CudaError;
use crate::plan::{self, BLOCK_TOKENS, Cut, Item, SHORT_PASS, Work};
use crate::tensor::Tensor;

/// The rows of a pass, on the GPU: everything that the kernels need to know of them goes up once.
pub struct Plan {
    pub(crate) rows: Vec<Row>,
    /// The rows' indexes, by context and slot.
    order: Vec<u32>,
    /// Where each context's table begins among all tables.
    starts: Vec<u32>,
    /// How many blocks all tables have, and the highest of them.
    blocks: usize,
    highest_block: Option<u32>,
    lists: Lists,
    pub(crate) angles: Arc<Table>,
    /// How attention is cut, once it is known for which heads.
    work: RefCell<Option<(Cut, Arc<Staged>)>>,
}

/// Arrays of u32, one behind the other in one piece of the GPU's memory.
struct Lists {
    memory: Buffer,
    parts: Vec<Range<usize>>,
}

/// Which array is which in a plan's [`Lists`].
#[derive(Clone, Copy)]
enum List {
    Positions,
    Slots,
    Spans,
    Tables,
}

/// Work, and what the kernels read of it.
struct Staged {
    work: Work,
    lists: Lists,
}

impl Lists {
    /// Uploads arrays. If the pass is a short one, each has room for a power of two, so that a decode step submits what
    /// the one before it did.
    fn upload(device: &Arc<Device>, arrays: &[&[u32]], short: bool) -> amem_core::Result<Self> {
        const ALIGNMENT: usize = 4;
        let (mut all, mut parts) = (Vec::new(), Vec::new());
        for array in arrays {
            let start = all.len();
            all.extend_from_slice(array);
            parts.push(4 * start..4 * all.len());
            let room = if short { array.len().next_power_of_two() } else { array.len() };
            all.resize((start + room).next_multiple_of(ALIGNMENT), 0);
        }
        Ok(Self { memory: device.upload(bytemuck::cast_slice(&all))?, parts })
    }

    /// One of them, as the next argument of a launch.
    fn argument<'b>(&'b self, launch: Launch<'b>, index: usize) -> Result<Launch<'b>, CudaError> {
        let part = self.parts.get(index).cloned().unwrap_or_default();
        launch.part(&self.memory, part.start, part.len())
    }
}

impl Plan {
    pub(crate) fn new(
        backend: &CudaBackend,
        rope: &Rope,
        rows: &[Row],
        tables: &[BlockTable<'_>],
    ) -> amem_core::Result<Self> {
        // What the kernels that rotate have room for.
        const WIDEST: usize = 512;
        let head_dim = 2 * rope.inverse_frequencies.len();
        if head_dim > WIDEST {
            return Err(CudaError::HeadDim { head_dim, dtype: backend.precision().name() }.into());
        }
        let short = rows.len() <= SHORT_PASS;
        if !short {
            backend.device().launch_at_once()?;
        }
        let mut starts = Vec::with_capacity(tables.len());
        let mut blocks: Vec<u32> = Vec::new();
        for table in tables {
            starts.push(blocks.len() as u32);
            blocks.extend_from_slice(table);
        }
        for row in rows {
            let known = tables.get(row.context).map_or(0, |table| table.len() * BLOCK_TOKENS) as u32;
            if row.slot >= known || row.sees.own.end > known || row.sees.shared.end > known {
                let value = format!("slot {} of context {}", row.slot, row.context);
                return Err(Error::BadValue { what: "row", value, expected: "within its context's blocks" });
            }
        }
        let positions: Vec<u32> = rows.iter().map(|row| row.position).collect();
        let slots: Vec<u32> = rows.iter().map(|row| physical(tables[row.context], row.slot)).collect();
        let span = |row: &Row| [row.sees.shared.start, row.sees.shared.end, row.sees.own.start, row.sees.own.end];
        let spans: Vec<u32> = rows.iter().flat_map(span).collect();
        let order = plan::order(rows);
        let angles = backend.angles(rope, positions.iter().copied().max().unwrap_or(0))?;
        let arrays = [&positions[..], &slots, &spans, &blocks];
        let lists = Lists::upload(backend.device(), &arrays, short)?;
        let highest_block = blocks.iter().max().copied();
        let (rows, blocks, work) = (rows.to_vec(), blocks.len(), RefCell::new(None));
        Ok(Self { rows, order, starts, blocks, highest_block, lists, angles, work })
    }

    /// The rows' positions, as the next argument of a launch.
    pub(crate) fn positions<'b>(&'b self, launch: Launch<'b>) -> Result<Launch<'b>, CudaError> {
        self.lists.argument(launch, List::Positions as usize)
    }

    /// The rows' places in the cache, as the next argument of a launch.
    pub(crate) fn slots<'b>(&'b self, launch: Launch<'b>) -> Result<Launch<'b>, CudaError> {
        self.lists.argument(launch, List::Slots as usize)
    }

    /// The angles of RoPE, as the next argument of a launch.
    pub(crate) fn angles<'b>(&'b self, launch: Launch<'b>) -> Result<Launch<'b>, CudaError> {
        launch.buffer(&self.angles.pairs, self.angles.bytes())
    }

    /// How many blocks a context has.
    fn blocks_of(&self, context: usize) -> usize {
        let end = self.starts.get(context + 1).copied().unwrap_or(self.blocks as u32);
        end.saturating_sub(self.starts.get(context).copied().unwrap_or(end)) as usize
    }

    /// Refuses a cache that lacks blocks of the contexts.
    pub(crate) fn check(&self, cache: &Cache) -> amem_core::Result<()> {
        cache.check(self.highest_block)
    }

    fn staged(&self, backend: &CudaBackend, cut: Cut) -> amem_core::Result<Arc<Staged>> {
        let mut known = self.work.borrow_mut();
        match &*known {
            Some((of, staged)) if *of == cut => Ok(Arc::clone(staged)),
            _ => {
                let staged = Arc::new(Staged::new(backend, self, &self.order, cut)?);
                *known = Some((cut, Arc::clone(&staged)));
                Ok(staged)
            }
        }
    }
}

/// Which array is which in the lists of [`Staged`].
#[derive(Clone, Copy)]
enum WorkList {
    Tiles,
    Short,
    Joins,
    Order,
}

impl Staged {
    /// Attention of the rows that `order` names.
    fn new(backend: &CudaBackend, plan: &Plan, order: &[u32], cut: Cut) -> amem_core::Result<Self> {
        let work = plan::work(&plan.rows, order, 0..order.len(), &plan.starts, cut);
        let words = |items: &[Item]| items.iter().flat_map(Item::words).collect::<Vec<u32>>();
        let joins = work.joins.iter().flat_map(|join| [join.first, join.rows, join.partial, join.splits]);
        let (tiles, few, joins) = (words(&work.tiles), words(&work.short), joins.collect::<Vec<u32>>());
        let short = plan.rows.len() <= SHORT_PASS;
        let lists = Lists::upload(backend.device(), &[&tiles, &few, &joins, order], short)?;
        Ok(Self { work, lists })
    }
}

/// Attention of one layer: which heads, and over what.
struct Layer<'a> {
    backend: &'a CudaBackend,
    cache: &'a Cache,
    attention: Attention,
    plan: &'a Plan,
    module: &'static str,
    cut: Cut,
}

impl<'a> Layer<'a> {
    fn new(
        backend: &'a CudaBackend,
        cache: &'a Cache,
        attention: Attention,
        plan: &'a Plan,
        queries: &Tensor,
    ) -> amem_core::Result<Self> {
        plan.check(cache)?;
        backend.check_attention(&attention)?;
        let layer = attention.layer;
        let KvShape { layers, kv_heads, head_dim } = cache.shape;
        let group = queries.columns / cache.shape.row().max(1);
        if group * cache.shape.row() != queries.columns || queries.rows != plan.rows.len() || layer >= layers {
            let value = format!("{} rows of {} numbers in layer {layer}", queries.rows, queries.columns);
            return Err(Error::BadValue {
                what: "queries",
                value,
                expected: "a row of heads for each row of the plan",
            });
        }
        let module = backend.attention_module(head_dim)?;
        let tile_rows = backend.device().kernel(module, "attend_rows")?.rows();
        let cut = Cut { group, kv_heads, tile_rows, parallel: backend.device().multiprocessors() };
        Ok(Self { backend, cache, attention, plan, module, cut })
    }

    fn head_dim(&self) -> usize {
        self.cache.shape.head_dim
    }

    /// What follows the parameters that all modules share.
    fn finish(&self, launch: Launch<'_>) -> Result<(), CudaError> {
        // One text serves all sizes of heads in f32, and is told which it is.
        let launch = if self.module == "attention_f32" { launch.count(self.head_dim()) } else { launch };
        launch.submit(self.backend.device())
    }

    /// What scores are made with, for exponentials to the base 2: `scale_log2`, and `squash` if they are capped. The
    /// kernels' templates say what they are.
    fn scores(&self) -> (f32, Option<f32>) {
        let log2 = |x: f64| (std::f64::consts::LOG2_E * x) as f32;
        let scale = f64::from(self.attention.scale);
        match self.attention.soft_cap.map(f64::from) {
            None => (log2(scale), None),
            Some(cap) => (log2(2.0 * cap), Some(log2(-2.0 * scale / cap))),
        }
    }

    fn attend(&self, staged: &Staged, queries: &Tensor, lse: Option<&Tensor>) -> amem_core::Result<Tensor> {
        let device = self.backend.device();
        let (rows, columns) = (queries.rows, queries.columns);
        let out = Tensor::new(device, rows, columns, queries.dtype)?;
        let partial_rows = staged.work.partial_rows.max(1);
        let partial_out = Buffer::new(device, 4 * partial_rows * self.head_dim())?;
        let partial_lse = Buffer::new(device, 4 * partial_rows)?;
        let Cut { group, kv_heads, tile_rows, .. } = self.cut;
        // More heads than packed rows in a tile go through in slices.
        let passes = [
            ("attend_rows", WorkList::Tiles, staged.work.tiles.len(), group.div_ceil(tile_rows.max(1))),
            ("attend_short", WorkList::Short, staged.work.short.len(), group.div_ceil(16)),
        ];
        for (name, list, items, slices) in passes {
            let kernel = device.kernel(self.module, name)?;
            let launch = Launch::new(&kernel, [items, kv_heads, slices])
                .buffer(&queries.buffer, queries.bytes())?
                .buffer(&out.buffer, out.bytes())?;
            let launch = optional(launch, lse)?;
            let launch =
                self.cache.argument(self.cache.argument(launch, self.attention.layer, 0)?, self.attention.layer, 1)?;
            let launch = staged.lists.argument(launch, list as usize)?;
            let launch = staged.lists.argument(launch, WorkList::Order as usize)?;
            let launch = self.plan.lists.argument(launch, List::Spans as usize)?;
            let launch = self.plan.lists.argument(launch, List::Tables as usize)?;
            let (scale, squash) = self.scores();
            let launch = launch.count(kv_heads).count(group).real(scale).real(squash.unwrap_or(0.0));
            let launch = launch
                .buffer(&partial_out, 4 * partial_rows * self.head_dim())?
                .buffer(&partial_lse, 4 * partial_rows)?;
            self.finish(launch)?;
        }
        let joins = staged.work.joins.len();
        if joins > 0 {
            let kernel = device.kernel(self.module, "combine")?;
            // A warp for each packed row, four to a block.
            let most = staged.work.joins.iter().map(|join| join.rows as usize * group).max().unwrap_or(1);
            let launch = Launch::new(&kernel, [joins, kv_heads, most.div_ceil(4)])
                .buffer(&partial_out, 4 * partial_rows * self.head_dim())?
                .buffer(&partial_lse, 4 * partial_rows)?
                .buffer(&out.buffer, out.bytes())?;
            let launch = optional(launch, lse)?;
            let launch = staged.lists.argument(launch, WorkList::Joins as usize)?;
            let launch = staged.lists.argument(launch, WorkList::Order as usize)?;
            self.finish(launch.count(kv_heads).count(group))?;
        }
        Ok(out)
    }
}

impl Layer<'_> {
    /// Adds what the rows that `order` names attend to. Their context's table begins at `table`.
    fn mass(&self, order: &[u32], table: u32, queries: &Tensor, mass: &mut Tensor) -> amem_core::Result<()> {
        let device = self.backend.device();
        let Cut { group, kv_heads, .. } = self.cut;
        let slots = mass.numbers();
        // How large the sums of weights are is found by attending first. What comes of that is not needed.
        let staged = Staged::new(self.backend, self.plan, order, self.cut)?;
        let lse = Tensor::new(device, queries.rows, kv_heads * group, Dtype::F32)?;
        self.attend(&staged, queries, Some(&lse))?;
        let partial = Buffer::new(device, 4 * kv_heads * slots)?;
        let (scale, squash) = self.scores();
        let name = if squash.is_some() { "attention_mass_capped" } else { "attention_mass" };
        let kernel = device.kernel(self.module, name)?;
        let launch = Launch::new(&kernel, [slots.div_ceil(BLOCK_TOKENS), kv_heads, 1])
            .buffer(&queries.buffer, queries.bytes())?
            .buffer(&lse.buffer, lse.bytes())?;
        let launch = self.cache.argument(launch, self.attention.layer, 0)?;
        let launch = staged.lists.argument(launch, WorkList::Order as usize)?;
        let launch = self.plan.lists.argument(launch, List::Spans as usize)?;
        let launch = self.plan.lists.argument(launch, List::Tables as usize)?;
        let launch = launch.count(0).count(order.len()).count(table as usize);
        let launch = launch.count(kv_heads).count(group).real(scale);
        let launch = squash.into_iter().fold(launch, Launch::real);
        self.finish(launch.buffer(&partial, 4 * kv_heads * slots)?.count(slots))?;
        let kernel = device.kernel(self.module, "mass_sum")?;
        Launch::new(&kernel, [slots.div_ceil(kernel.threads()), 1, 1])
            .buffer(&partial, 4 * kv_heads * slots)?
            .buffer(&mass.buffer, mass.bytes())?
            .count(kv_heads)
            .count(slots)
            .submit(device)?;
        Ok(())
    }
}

fn optional<'b>(launch: Launch<'b>, tensor: Option<&'b Tensor>) -> Result<Launch<'b>, CudaError> {
    match tensor {
        Some(tensor) => launch.buffer(&tensor.buffer, tensor.bytes()),
        None => Ok(launch.none()),
    }
}

impl CudaBackend {
    /// Attention of all rows of a plan.
    pub(crate) fn attention(
        &self,
        cache: &Cache,
        attention: Attention,
        plan: &Plan,
        queries: &Tensor,
    ) -> amem_core::Result<Tensor> {
        let layer = Layer::new(self, cache, attention, plan, queries)?;
        let queries = self.narrowed(queries)?;
        layer.attend(&*plan.staged(self, layer.cut)?, &queries, None)
    }

    /// Adds what some rows of a plan attend to, summed over rows and heads.
    pub(crate) fn attention_mass_of(
        &self,
        (cache, attention): (&Cache, Attention),
        plan: &Plan,
        rows: Range<usize>,
        queries: &Tensor,
        mass: &mut Tensor,
    ) -> amem_core::Result<()> {
        let layer = Layer::new(self, cache, attention, plan, queries)?;
        let of_rows = plan.rows.get(rows.clone()).unwrap_or_default();
        let Some(row) = of_rows.first() else { return Ok(()) };
        if of_rows.iter().any(|other| other.context != row.context) {
            let value = format!("rows {rows:?}");
            return Err(Error::BadValue { what: "attention", value, expected: "of one context" });
        }
        let blocks = plan.blocks_of(row.context);
        if mass.dtype != Dtype::F32 || mass.numbers() > blocks * BLOCK_TOKENS {
            let value = format!("{} numbers in {:?}", mass.numbers(), mass.dtype);
            return Err(Error::BadValue {
                what: "attention",
                value,
                expected: "an f32 for each of the context's slots",
            });
        }
        let queries = self.narrowed(queries)?;
        let mut order: Vec<u32> = (rows.start as u32..rows.end as u32).collect();
        order.sort_by_key(|&index| plan.rows[index as usize].slot);
        layer.mass(&order, plan.starts[row.context], &queries, mass)
    }
}
