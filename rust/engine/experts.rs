//! A mixture of experts: the router's choice, the chosen experts, the weighted sum, and the expert that all share.
//!
//! Tokens are put together by expert, so that each chosen expert's weights are read once for all tokens of the batch that
//! go to it, and all experts are one region of the pool. Those that nobody chose are not touched: they need not be in memory.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::pass::{Add, Buffers, Pass, apply_norm, floats, linear, product, rescale, room};
use crate::arch::{DenseConfig, ExpertsConfig, Gating, LayerConfig};
use crate::kernels::activations::Activations;
use crate::kernels::matmul::Matmul;
use crate::tensor::TensorView;
use crate::threads::Disjoint;
use crate::weights::{BesideWeights, DenseWeights, ExpertsWeights, LayerWeights, NormWeights, Stack};

/// The smallest sum that weights are divided by: what f16 has as its smallest normal number.
const SMALLEST_SUM: f32 = 6.103_515_6e-5;

/// What a mixture needs beside what a dense network does. A pair is a token and an expert that it goes to.
#[derive(Default)]
pub struct Chosen {
    logits: Vec<f32>,         // (tokens, n_experts)
    choices: Vec<(u32, f32)>, // (tokens, n_used): expert and weight
    tokens: Vec<u32>,         // of each pair, in the order of the experts
    places: Vec<u32>,         // (tokens, n_used): where the pair is in that order
    inputs: Activations,      // (pairs, dim)
    gate: Vec<f32>,           // (pairs, hidden_dim)
    up: Vec<f32>,             // (pairs, hidden_dim)
    hidden: Activations,      // (pairs, hidden_dim)
    out: Vec<f32>,            // (pairs, dim)
    shared: Vec<f32>,         // (tokens, dim)
}

/// An expert that was chosen.
struct Active {
    expert: usize,
    pairs: Range<usize>,
    w_gate: Option<TensorView>,
    w_up: TensorView,
    w_down: TensorView,
}

impl Pass<'_, '_> {
    /// `x += sum of weight * expert(norm(x))` over the chosen ones, and the shared one.
    pub(super) fn experts(
        &mut self,
        config: &ExpertsConfig,
        w: &ExpertsWeights,
        layer_config: &LayerConfig,
        layer: &LayerWeights,
    ) {
        self.experts_sum(config, w, layer.ffn_norm.as_ref(), None);
        let (cx, dim, norm) = (self.cx, self.engine.config.dim, self.engine.config.norm);
        let Buffers { x, branch, .. } = &mut *self.buffers;
        let add = Add::ffn(cx, norm, layer_config, layer);
        add.rows(room(x, self.n * dim), room(branch, self.n * dim), dim);
    }

    /// `x += norm(norm(dense(norm(x))) + norm(experts(norm(x))))`
    pub(super) fn both(
        &mut self,
        (dense, experts): (&DenseConfig, &ExpertsConfig),
        (of_dense, of_experts, beside): &(DenseWeights, ExpertsWeights, BesideWeights),
        layer_config: &LayerConfig,
        layer: &LayerWeights,
    ) {
        self.experts_sum(experts, of_experts, Some(&beside.before_experts), Some(&beside.router_scale));
        let consumers: Vec<_> = of_dense.w_gate.iter().map(|w| &w.weight).chain([&of_dense.w_up.weight]).collect();
        self.normed(layer.ffn_norm.as_ref(), &consumers);
        self.hidden(dense, of_dense);
        let (cx, n, dim, norm) = (self.cx, self.n, self.engine.config.dim, self.engine.config.norm);
        let Buffers { x, branch, hidden, chosen, .. } = &mut *self.buffers;
        let (x, branch, out) = (room(x, n * dim), room(branch, n * dim), room(&mut chosen.shared, n * dim));
        cx.matmul(&[linear(out, &of_dense.w_down, hidden)]);
        rescale(out, &of_dense.w_down);
        let sums = Disjoint::new(&mut *branch);
        cx.each(n, &|t| {
            let range = t * dim..(t + 1) * dim;
            // SAFETY: each token has its own row.
            let sum = unsafe { sums.slice(range.clone()) };
            let of_experts = sum.to_vec();
            let mut of_dense = vec![0.0; dim];
            apply_norm(cx, norm, sum, &of_experts, &beside.after_experts);
            apply_norm(cx, norm, &mut of_dense, &out[range], &beside.after_dense);
            sum.iter_mut().zip(of_dense).for_each(|(sum, x)| *sum += x);
        });
        let add = Add::ffn(cx, norm, layer_config, layer);
        add.rows(x, branch, dim);
    }

    /// `branch = sum of weight * expert(norm(x))` over the chosen ones, and the shared one. With a scale the router takes
    /// `scale * norm(x) / sqrt(dim)` instead, without weights of the norm.
    fn experts_sum(
        &mut self,
        config: &ExpertsConfig,
        w: &ExpertsWeights,
        norm: Option<&NormWeights>,
        router_scale: Option<&TensorView>,
    ) {
        let &ExpertsConfig { n_experts, n_used, expert, .. } = config;
        let (hidden_dim, activation) = (expert.hidden_dim, expert.activation);
        // The others are of the same types.
        let samples: Vec<TensorView> = w.w_gate.iter().chain([&w.w_up]).map(|stack| stack.expert(0)).collect();
        let down_sample = w.w_down.expert(0);
        let mut consumers = vec![&w.router];
        consumers.extend(&samples);
        consumers.extend([&w.shared_gate, &w.shared_up].into_iter().flatten().map(|w| &w.weight));
        self.normed(norm, &consumers);
        let (engine, cx, n, dim) = (self.engine, self.cx, self.n, self.engine.config.dim);
        let Buffers { x, branch, gate, up, normed, hidden, chosen: c, .. } = &mut *self.buffers;

        // the choice
        let logits = room(&mut c.logits, n * n_experts);
        match router_scale {
            None => cx.matmul(&[product(logits, &w.router, w.router_bias.as_ref(), normed)]),
            Some(scale) => {
                let shrink = 1.0 / (dim as f32).sqrt();
                hidden.reset(n, dim, &[&w.router]);
                hidden.fill(cx, &|t, row| {
                    cx.kernels.norm(engine.config.norm, row, &x[t * dim..(t + 1) * dim], None, None);
                    row.iter_mut().zip(floats(scale)).for_each(|(x, scale)| *x *= scale * shrink);
                });
                cx.matmul(&[product(logits, &w.router, w.router_bias.as_ref(), hidden)]);
            }
        }
        let bias: Option<Vec<f32>> = w.choice_bias.as_ref().map(|bias| floats(bias).collect());
        c.choices.clear();
        for logits in logits.chunks_exact_mut(n_experts) {
            choose(config, logits, bias.as_deref(), &mut c.choices);
        }

        // pairs, in the order of the experts
        let mut ends = vec![0; n_experts];
        c.choices.iter().for_each(|(expert, _)| ends[*expert as usize] += 1);
        let mut active = Vec::new();
        let mut first = 0;
        for (expert, end) in ends.iter_mut().enumerate().filter(|(_, count)| **count > 0) {
            let pairs = first..first + *end;
            *end = first; // from here on the next place of the expert's pairs
            first = pairs.end;
            let [w_up, w_down] = [&w.w_up, &w.w_down].map(|stack| stack.expert(expert));
            let w_gate = w.w_gate.as_ref().map(|stack| stack.expert(expert));
            active.push(Active { expert, pairs, w_gate, w_up, w_down });
        }
        let pairs = c.choices.len();
        c.places.clear();
        c.tokens.clear();
        c.tokens.resize(pairs, 0);
        for (i, (expert, _)) in c.choices.iter().enumerate() {
            let place = &mut ends[*expert as usize];
            c.tokens[*place] = (i / n_used) as u32;
            c.places.push(*place as u32);
            *place += 1;
        }
        if engine.experts_are_cold.load(Ordering::Relaxed) {
            ask_for(engine, &active);
        }

        // gate and up; activation; down
        let (gates, ups, out) =
            (room(&mut c.gate, pairs * hidden_dim), room(&mut c.up, pairs * hidden_dim), room(&mut c.out, pairs * dim));
        // One token goes to all of its experts as it is.
        let inputs = if n == 1 {
            &*normed
        } else {
            c.inputs.reset(pairs, dim, &samples.iter().collect::<Vec<_>>());
            c.inputs.fill(cx, &|pair, row| row.copy_from_slice(normed.x(c.tokens[pair] as usize)));
            &c.inputs
        };
        let rows_of = |active: &Active| if n == 1 { 0..1 } else { active.pairs.clone() };
        let mut jobs = Vec::with_capacity(2 * active.len());
        for (stack, is_gate, out) in [(w.w_gate.as_ref(), true, &mut *gates), (Some(&w.w_up), false, &mut *ups)] {
            let mut rest = out;
            for active in &active {
                let (out, others) = std::mem::take(&mut rest).split_at_mut(active.pairs.len() * hidden_dim);
                rest = others;
                let view = if is_gate { active.w_gate.as_ref() } else { Some(&active.w_up) };
                let (Some(stack), Some(view)) = (stack, view) else { continue };
                jobs.push(expert_linear(out, stack, active.expert, view, inputs, rows_of(active)));
            }
        }
        cx.matmul(&jobs);
        drop(jobs);
        active.iter().for_each(|active| {
            let range = active.pairs.start * hidden_dim..active.pairs.end * hidden_dim;
            if let Some(stack) = &w.w_gate {
                rescale_expert(&mut gates[range.clone()], stack, active.expert);
            }
            rescale_expert(&mut ups[range], &w.w_up, active.expert);
        });
        c.hidden.reset(pairs, hidden_dim, &[&down_sample]);
        c.hidden.fill(cx, &|pair, row| {
            let range = pair * hidden_dim..(pair + 1) * hidden_dim;
            match &w.w_gate {
                Some(_) => cx.kernels.activate(activation, row, &gates[range.clone()], Some(&ups[range])),
                None => cx.kernels.activate(activation, row, &ups[range], None),
            }
        });
        let mut rest = &mut *out;
        let jobs = active.iter().map(|active| {
            let (out, others) = std::mem::take(&mut rest).split_at_mut(active.pairs.len() * dim);
            rest = others;
            expert_linear(out, &w.w_down, active.expert, &active.w_down, &c.hidden, active.pairs.clone())
        });
        cx.matmul(&jobs.collect::<Vec<_>>());
        active.iter().for_each(|active| {
            rescale_expert(&mut out[active.pairs.start * dim..active.pairs.end * dim], &w.w_down, active.expert);
        });

        // the expert that all share
        let shared = room(&mut c.shared, if config.shared.is_some() { n * dim } else { 0 });
        if let (Some(config), Some(w_gate), Some(w_up), Some(w_down)) =
            (config.shared, &w.shared_gate, &w.shared_up, &w.shared_down)
        {
            let width = config.hidden_dim;
            let (gate, up) = (room(gate, n * width), room(up, n * width));
            cx.matmul(&[linear(gate, w_gate, normed), linear(up, w_up, normed)]);
            rescale(gate, w_gate);
            rescale(up, w_up);
            hidden.reset(n, width, &[&w_down.weight]);
            hidden.fill(cx, &|t, row| {
                let range = t * width..(t + 1) * width;
                cx.kernels.activate(activation, row, &gate[range.clone()], Some(&up[range]));
            });
            cx.matmul(&[linear(shared, w_down, hidden)]);
            rescale(shared, w_down);
            if let Some(router) = &w.shared_router {
                let router: Vec<f32> = floats(router).collect();
                for (t, row) in shared.chunks_exact_mut(dim).enumerate() {
                    let dot: f64 = normed.x(t).iter().zip(&router).map(|(x, w)| f64::from(x * w)).sum();
                    let open = 1.0 / (1.0 + (-dot as f32).exp());
                    row.iter_mut().for_each(|x| *x *= open);
                }
            }
        }

        // the weighted sum, in the order of the choice
        let branch = room(branch, n * dim);
        let rows = Disjoint::new(&mut *branch);
        cx.each(n, &|t| {
            // SAFETY: each token has its own row.
            let sum = unsafe { rows.slice(t * dim..(t + 1) * dim) };
            match shared.get(t * dim..(t + 1) * dim) {
                Some(shared) => sum.copy_from_slice(shared),
                None => sum.fill(0.0),
            }
            for i in t * n_used..(t + 1) * n_used {
                let (weight, place) = (c.choices[i].1, c.places[i] as usize);
                let row = &out[place * dim..(place + 1) * dim];
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x);
            }
        });
    }
}

/// Asks the system for what is not in memory of the chosen experts, all at once. Nothing missing: they are not cold.
fn ask_for(engine: &super::Engine, active: &[Active]) {
    let mut missing = false;
    for bytes in active.iter().flat_map(|a| a.w_gate.iter().chain([&a.w_up, &a.w_down])).map(TensorView::bytes) {
        if bytes.mapping().resident(bytes.range()) < bytes.len() {
            missing = true;
            bytes.mapping().will_need(bytes.range());
        }
    }
    if missing {
        engine.expert_was_cold.store(true, Ordering::Relaxed);
    }
}

/// `out = w x` of an expert for some rows, or `w x + b`; see [`linear`].
fn expert_linear<'a>(
    out: &'a mut [f32],
    stack: &Stack,
    expert: usize,
    w: &'a TensorView,
    x: &'a Activations,
    rows: Range<usize>,
) -> Matmul<'a> {
    let Some(bias) = stack.bias.as_ref().filter(|_| stack.scale.is_none()) else {
        return Matmul::of(out, w, x, rows);
    };
    for row in out.chunks_exact_mut(w.n_rows()) {
        let bias = floats(bias).skip(expert * w.n_rows());
        row.iter_mut().zip(bias).for_each(|(out, bias)| *out = bias);
    }
    Matmul::of(out, w, x, rows).adding()
}

/// See [`rescale`].
fn rescale_expert(out: &mut [f32], stack: &Stack, expert: usize) {
    let Some(scale) = &stack.scale else { return };
    let scale = floats(scale).nth(expert).expect("one of each");
    for row in out.chunks_exact_mut(stack.rows()) {
        row.iter_mut().for_each(|out| *out *= scale);
        if let Some(bias) = &stack.bias {
            let bias = floats(bias).skip(expert * stack.rows());
            row.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
        }
    }
}

/// The experts of one token, best first, with their weights. `logits` becomes scratch.
fn choose(config: &ExpertsConfig, logits: &mut [f32], bias: Option<&[f32]>, choices: &mut Vec<(u32, f32)>) {
    let &ExpertsConfig { n_experts, n_used, gating, normalized, weight_scale, groups, .. } = config;
    match gating {
        Gating::Softmax => softmax(logits.iter_mut()),
        Gating::Sigmoid => logits.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp())),
        Gating::SoftmaxOfChosen => {}
    }
    let score = |i: usize| logits[i] + bias.map_or(0.0, |bias| bias[i]);
    let best_first = |a: &usize, b: &usize| score(*b).total_cmp(&score(*a)).then(a.cmp(b));
    let mut order: Vec<usize> = (0..n_experts).collect();
    if groups.used < groups.n {
        let size = n_experts / groups.n;
        let mut of_groups: Vec<(f32, usize)> = (0..groups.n)
            .map(|group| {
                let mut members: Vec<usize> = (group * size..(group + 1) * size).collect();
                members.sort_by(best_first);
                (members.iter().take(groups.best).map(|&i| score(i)).sum(), group)
            })
            .collect();
        of_groups.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let used: Vec<usize> = of_groups[..groups.used].iter().map(|(_, group)| *group).collect();
        order.retain(|i| used.contains(&(i / size)));
    }
    if n_used < order.len() {
        order.select_nth_unstable_by(n_used, best_first);
        order.truncate(n_used);
    }
    order.sort_by(best_first);

    let start = choices.len();
    choices.extend(order.iter().map(|&i| (i as u32, logits[i])));
    let chosen = &mut choices[start..];
    if gating == Gating::SoftmaxOfChosen {
        softmax(chosen.iter_mut().map(|(_, weight)| weight));
    }
    let sum = if normalized { chosen.iter().map(|(_, w)| w).sum::<f32>().max(SMALLEST_SUM) } else { 1.0 };
    chosen.iter_mut().for_each(|(_, weight)| *weight = *weight / sum * weight_scale);
}

fn softmax<'a>(x: impl Iterator<Item = &'a mut f32>) {
    let mut x: Vec<&mut f32> = x.collect();
    let max = x.iter().fold(f32::NEG_INFINITY, |max, x| max.max(**x));
    x.iter_mut().for_each(|x| **x = (**x - max).exp());
    let sum: f32 = x.iter().map(|x| **x).sum();
    x.iter_mut().for_each(|x| **x /= sum);
}
