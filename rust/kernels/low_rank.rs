//! Low-rank changes of matrices (LoRA, Hu et al. 2021): `w x + scale * b (a x)`, without a changed `w`.
//!
//! The matrices stay as they are mapped; what is added to their products is two thin products more. Which rows of a batch
//! get which changes is said once, in the [`Context`], and all products with a matrix get them: a step of a pass knows
//! nothing of it. A row's result depends on its own changes alone, one after another in their order.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::Context;
use super::activations::Activations;
use super::matmul::{self, Matmul};
use crate::error::Result;
use crate::mapping::Mapping;
use crate::tensor::TensorView;
use crate::threads::Disjoint;

/// A change of one matrix.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// `(rank, columns)`
    pub a: TensorView,
    /// `(rows, rank)`
    pub b: TensorView,
    /// What the product is multiplied with.
    pub scale: f32,
    /// The row of the matrix that each row of `b` belongs to, if it is another.
    pub order: Option<Arc<[u32]>>,
}

/// Changes of some matrices of one model.
#[derive(Debug, Default)]
pub struct LowRanks {
    of: HashMap<usize, LowRank>, // by the address of the matrix
    maps: Vec<Arc<Mapping>>,
}

impl LowRanks {
    /// No changes yet, out of these files.
    pub fn new(maps: &[Arc<Mapping>]) -> Self {
        Self { of: HashMap::new(), maps: maps.to_vec() }
    }

    /// Changes `w`. Gives whether it fits, and was not changed before.
    pub fn insert(&mut self, w: &TensorView, change: LowRank) -> bool {
        let LowRank { a, b, order, .. } = &change;
        let fits = a.row_len() == w.row_len() && b.n_rows() == w.n_rows() && a.n_rows() == b.row_len();
        let is_order = order.as_ref().is_none_or(|order| {
            let mut seen = vec![false; w.n_rows()];
            order.len() == seen.len()
                && order
                    .iter()
                    .all(|&row| seen.get_mut(row as usize).is_some_and(|seen| !std::mem::replace(seen, true)))
        });
        let supported = a.dtype().is_supported() && b.dtype().is_supported();
        fits && is_order && supported && self.of.insert(address(w), change).is_none()
    }

    /// Number of matrices that are changed.
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// Whether the files are what they were, see [`Mapping::check`].
    ///
    /// # Errors
    /// [`Error::Changed`](crate::error::Error::Changed).
    pub fn check(&self) -> Result<()> {
        self.maps.iter().try_for_each(|map| map.check())
    }
}

/// What is changed, each with what its scale is multiplied with, in the order in which it is added.
pub type Changes = [(Arc<LowRanks>, f32)];

/// Rows of a batch, and what is changed for them.
#[derive(Debug, Clone)]
pub struct Adapted<'a> {
    /// The rows.
    pub rows: Range<usize>,
    /// The changes.
    pub changes: &'a Changes,
}

fn address(w: &TensorView) -> usize {
    w.bytes().as_ptr() as usize
}

/// A change of the product of a job, for some of its rows.
struct Todo<'t> {
    job: &'t Matmul<'t>,
    rows: Range<usize>,
    change: &'t LowRank,
    scale: f32,
}

/// Adds to what `jobs`, which are done, have written.
pub(super) fn add(cx: &Context, jobs: &[Matmul]) {
    let most = cx.adapted.iter().map(|adapted| adapted.changes.len()).max().unwrap_or(0);
    for nth in 0..most {
        let mut todo = Vec::new();
        for (Adapted { rows, changes }, job) in cx.adapted.iter().flat_map(|a| jobs.iter().map(move |job| (a, job))) {
            let Some((changes, times)) = changes.get(nth) else { continue };
            let Some(change) = changes.of.get(&address(job.w)) else { continue };
            todo.push(Todo { job, rows: rows.clone(), change, scale: change.scale * times });
        }
        if !todo.is_empty() {
            add_one_each(cx, &todo);
        }
    }
}

/// The same for one change of each row.
fn add_one_each(cx: &Context, todo: &[Todo]) {
    // a x; where only floats were made ready and `a` is quantised, of a copy that is ready for it
    let copies: Vec<Option<Activations>> = todo
        .iter()
        .map(|Todo { job, rows, change, .. }| {
            (!job.x.is_ready_for(&change.a)).then(|| {
                let mut copy = Activations::default();
                copy.reset(rows.len(), job.x.n(), &[&change.a]);
                copy.fill(cx, &|t, row| row.copy_from_slice(job.x.x(rows.start + t)));
                copy
            })
        })
        .collect();
    let mut short: Vec<Vec<f32>> =
        todo.iter().map(|Todo { rows, change, .. }| vec![0.0; rows.len() * change.a.n_rows()]).collect();
    let products = todo.iter().zip(&copies).zip(&mut short).map(|((todo, copy), out)| match copy {
        Some(copy) => Matmul::new(out, &todo.change.a, copy),
        None => Matmul::of(out, &todo.change.a, todo.job.x, todo.rows.clone()),
    });
    matmul::matmul(cx, &products.collect::<Vec<_>>());

    // b (scale a x)
    let scaled: Vec<Activations> = todo
        .iter()
        .zip(&short)
        .map(|(Todo { rows, change, scale, .. }, short)| {
            let rank = change.a.n_rows();
            let mut scaled = Activations::default();
            scaled.reset(rows.len(), rank, &[&change.b]);
            scaled.fill(cx, &|t, row| {
                row.iter_mut().zip(&short[t * rank..(t + 1) * rank]).for_each(|(to, from)| *to = scale * from);
            });
            scaled
        })
        .collect();
    let mut apart: Vec<Vec<f32>> = todo
        .iter()
        .map(|Todo { rows, change, .. }| {
            vec![0.0; if change.order.is_some() { rows.len() * change.b.n_rows() } else { 0 }]
        })
        .collect();
    let products = todo.iter().zip(&scaled).zip(&mut apart).map(|((todo, x), apart)| match todo.change.order {
        Some(_) => Matmul::new(apart, &todo.change.b, x),
        // SAFETY: the job is done, and each row is changed once.
        None => unsafe { Matmul::more(todo.job, todo.rows.clone(), &todo.change.b, x) },
    });
    matmul::matmul(cx, &products.collect::<Vec<_>>());
    for (Todo { job, rows, change, .. }, apart) in todo.iter().zip(&apart) {
        let (Some(order), n) = (&change.order, change.b.n_rows()) else { continue };
        // SAFETY: the job is done, and each row is changed once.
        let out: Disjoint<f32> = unsafe { job.out_of(rows.clone()) };
        cx.each(rows.len(), &|t| {
            // SAFETY: each token has its own row.
            let out = unsafe { out.slice(t * n..(t + 1) * n) };
            for (&to, &x) in order.iter().zip(&apart[t * n..(t + 1) * n]) {
                out[to as usize] += x;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels;
    use crate::mapping::Bytes;
    use crate::quant::DType;
    use crate::sampling::Rng;
    use crate::threads::Interrupt;

    fn matrix(rows: usize, columns: usize, rng: &mut Rng) -> (TensorView, Vec<f32>) {
        let values: Vec<f32> = (0..rows * columns).map(|_| (rng.next_f64() - 0.5) as f32).collect();
        let map = Mapping::from_vec(bytemuck::cast_slice(&values).to_vec(), "test".as_ref());
        let bytes = Bytes::new(&map, 0..4 * values.len()).unwrap();
        (TensorView::new(bytes, DType::F32, &[columns, rows]).unwrap(), values)
    }

    /// Against loops, for ranks of any size, several changes of a row, and rows with none.
    #[test]
    fn a_changed_product_is_the_product_with_the_changed_matrix() {
        let interrupt = Interrupt::never();
        for kernels in kernels::all() {
            for (rank, seed) in [(1, 1), (5, 2), (8, 3), (33, 4)] {
                let (rows, columns, tokens) = (70, 64, 9);
                let mut rng = Rng::new(seed);
                let (w, w_values) = matrix(rows, columns, &mut rng);
                let changes: Vec<_> = (0..2)
                    .map(|i| {
                        let ((a, a_values), (b, b_values)) =
                            (matrix(rank, columns, &mut rng), matrix(rows, rank, &mut rng));
                        let order: Vec<u32> = (0..rows as u32).map(|r| (r * 3 + 5) % rows as u32).collect();
                        let order = (i == 1).then(|| Arc::from(order));
                        let mut all = LowRanks::new(&[]);
                        assert!(all.insert(&w, LowRank { a, b, scale: 0.5, order: order.clone() }));
                        (Arc::new(all), a_values, b_values, order)
                    })
                    .collect();
                let both = [(Arc::clone(&changes[0].0), 2.0), (Arc::clone(&changes[1].0), -1.0)];
                let adapted = [Adapted { rows: 2..5, changes: &both }, Adapted { rows: 6..9, changes: &both[1..] }];
                let cx = Context { kernels, threads: 2, interrupt: &interrupt, observer: None, adapted: &adapted };
                let x_values: Vec<f32> = (0..tokens * columns).map(|_| (rng.next_f64() - 0.5) as f32).collect();
                let mut x = Activations::default();
                x.reset(tokens, columns, &[&w]);
                x.fill(&cx, &|t, row| row.copy_from_slice(&x_values[t * columns..(t + 1) * columns]));
                let mut out = vec![0.0; tokens * rows];
                cx.matmul(&[Matmul::new(&mut out, &w, &x)]);
                for t in 0..tokens {
                    let x = &x_values[t * columns..(t + 1) * columns];
                    let dot = |w: &[f32], x: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(w * x)).sum::<f64>();
                    let mut expected: Vec<f64> = w_values.chunks(columns).map(|w| dot(w, x)).collect();
                    let of_row =
                        adapted.iter().find(|adapted| adapted.rows.contains(&t)).map_or(&[][..], |a| a.changes);
                    for (change, times) in of_row {
                        let (_, a, b, order) =
                            changes.iter().find(|(known, ..)| Arc::ptr_eq(known, change)).expect("one of the two");
                        let short: Vec<f32> = a.chunks(columns).map(|a| dot(a, x) as f32).collect();
                        for (r, b) in b.chunks(rank).enumerate() {
                            let to = order.as_ref().map_or(r, |order| order[r] as usize);
                            expected[to] += f64::from(0.5 * times) * dot(b, &short);
                        }
                    }
                    for (got, expected) in out[t * rows..(t + 1) * rows].iter().zip(expected) {
                        assert!((f64::from(*got) - expected).abs() < 1e-5, "{} rank {rank}", kernels.name());
                    }
                }
            }
        }
    }
}
