//! Each step against what it means, written without a thought for speed; and the draws.

use super::*;
use crate::Error;

/// What there is to choose from after each step, in f64, always as a whole list; for `samplers` in any order. Of XTC, what
/// it does when it does something.
fn twin(logits: &[f32], tokens: &[u32], params: &SamplingParams) -> Vec<(u32, f64)> {
    let mut list: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|&x| f64::from(x))).collect();
    for &(id, bias) in &params.logit_bias {
        list[id as usize].1 += f64::from(bias);
    }
    let last = |n: i64| &tokens[if n < 0 { 0 } else { tokens.len().saturating_sub(n as usize) }..];
    let samplers: Vec<&str> = params.samplers.iter().map(String::as_str).collect();
    for name in samplers {
        list.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let p = softmax(&list);
        let up_to = |share: f64, at_least: bool| {
            let mut sum = 0.0;
            let end = p.iter().position(|p| {
                sum += p;
                if at_least { sum >= share } else { sum > share }
            });
            end.map_or(p.len(), |i| i + 1)
        };
        match name {
            "penalties" => {
                let recent = last(params.repeat_last_n);
                for (id, x) in &mut list {
                    let count = recent.iter().filter(|t| *t == id).count() as f64;
                    if count > 0.0 {
                        let repeat = f64::from(params.repeat_penalty);
                        *x = if *x > 0.0 { *x / repeat } else { *x * repeat };
                        *x -= f64::from(params.presence_penalty) + count * f64::from(params.frequency_penalty);
                    }
                }
            }
            "dry" => {
                let recent = last(params.dry_penalty_last_n);
                let whole: String = recent.iter().map(|&t| text(t)).collect();
                let ends = |b: &String| whole.rmatch_indices(b.as_str()).map(|(at, b)| at + b.len()).max();
                let broken = params.dry_sequence_breakers.iter().filter_map(ends).max().unwrap_or(0);
                // Each token is one character here.
                let fresh = whole.chars().count() - whole[..broken].chars().count();
                for (id, x) in &mut list {
                    let mut longest = 0;
                    for i in (1..recent.len()).filter(|&i| recent[i] == *id) {
                        let same = (0..i).take_while(|k| recent[i - 1 - k] == recent[recent.len() - 1 - k]).count();
                        longest = longest.max(same.min(fresh));
                    }
                    let allowed = params.dry_allowed_length;
                    if params.dry_multiplier > 0.0 && longest >= allowed && recent.len() > allowed && longest > 0 {
                        let power = f64::from(params.dry_base).powi((longest - allowed) as i32);
                        *x -= f64::from(params.dry_multiplier) * power;
                    }
                }
            }
            "top_n_sigma" if params.top_n_sigma > 0.0 => {
                let n = list.len() as f64;
                let mean = list.iter().map(|c| c.1).sum::<f64>() / n;
                let deviation = (list.iter().map(|c| (c.1 - mean).powi(2)).sum::<f64>() / n).sqrt();
                let least = list[0].1 - f64::from(params.top_n_sigma) * deviation;
                list.retain(|c| c.1 >= least);
            }
            "top_k" if params.top_k > 0 => list.truncate(params.top_k),
            "typ_p" if params.typical_p < 1.0 => {
                let entropy: f64 = p.iter().map(|p| -p * p.ln()).sum();
                let mut order: Vec<usize> = (0..list.len()).collect();
                order.sort_by(|&i, &j| (-p[i].ln() - entropy).abs().total_cmp(&(-p[j].ln() - entropy).abs()));
                let mut sum = 0.0;
                let end = order.iter().position(|&i| {
                    sum += p[i];
                    sum > f64::from(params.typical_p)
                });
                order.truncate(end.map_or(order.len(), |i| i + 1));
                list = order.iter().map(|&i| list[i]).collect();
            }
            "top_p" if params.top_p < 1.0 => list.truncate(up_to(f64::from(params.top_p), true)),
            "min_p" => {
                list = list
                    .iter()
                    .zip(&p)
                    .filter(|(_, q)| **q >= f64::from(params.min_p) * p[0])
                    .map(|(c, _)| *c)
                    .collect()
            }
            "xtc" if params.xtc_probability > 0.0 && params.xtc_threshold <= 0.5 => {
                let likely = p.iter().filter(|p| **p >= f64::from(params.xtc_threshold)).count();
                list.drain(..likely.max(1) - 1);
            }
            "temperature" => {
                let mut t = f64::from(params.temperature);
                let range = f64::from(params.dynatemp_range);
                if range > 0.0 && p.len() > 1 {
                    let entropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
                    let unsure = entropy / (p.len() as f64).ln();
                    let low = (t - range).max(0.0);
                    t = low + (t + range - low) * unsure.powf(f64::from(params.dynatemp_exponent));
                }
                list.iter_mut().for_each(|c| c.1 /= t);
            }
            _ => {}
        }
    }
    let p = softmax(&list);
    let mut list: Vec<_> = list.iter().zip(p).map(|(c, p)| (c.0, p)).collect();
    list.sort_by_key(|c| c.0);
    list
}

/// Of the list, in its order.
fn softmax(list: &[(u32, f64)]) -> Vec<f64> {
    let max = list.iter().map(|c| c.1).fold(f64::NEG_INFINITY, f64::max);
    let p: Vec<f64> = list.iter().map(|c| (c.1 - max).exp()).collect();
    let sum: f64 = p.iter().sum();
    p.iter().map(|p| p / sum).collect()
}

/// What tokens stand for in these tests: one character each.
fn text(id: u32) -> String {
    char::from_u32(0x100 + id).unwrap_or('\n').to_string()
}

fn history(tokens: &[u32]) -> History<'_> {
    History { tokens, text: &|id| text(id).into_bytes() }
}

/// A chain that changes nothing.
fn open() -> SamplingParams {
    SamplingParams { top_k: 0, top_p: 1.0, min_p: 0.0, temperature: 1.0, ..Default::default() }
}

fn random_logits(rng: &mut Rng, n: usize, spread: f64) -> Vec<f32> {
    let mut normal = || (0..12).map(|_| rng.next_f64()).sum::<f64>() - 6.0;
    (0..n).map(|_| (spread * normal()) as f32).collect()
}

fn random_params(rng: &mut Rng, n: usize, tokens: &[u32]) -> SamplingParams {
    let pick = |rng: &mut Rng, of: &[f32]| of[rng.next_u64() as usize % of.len()];
    let mut samplers: Vec<String> = SAMPLERS.map(String::from).to_vec();
    if rng.next_u64().is_multiple_of(2) {
        for i in (1..samplers.len()).rev() {
            samplers.swap(i, rng.next_u64() as usize % (i + 1));
        }
        samplers.truncate(rng.next_u64() as usize % 10);
    }
    SamplingParams {
        temperature: pick(rng, &[0.3, 0.8, 1.0, 2.0]),
        dynatemp_range: pick(rng, &[0.0, 0.0, 0.2, 1.5]),
        dynatemp_exponent: pick(rng, &[1.0, 0.5, 2.0]),
        top_k: pick(rng, &[0.0, 1.0, 5.0, 40.0, 1000.0]) as usize,
        top_p: pick(rng, &[0.0, 0.3, 0.9, 0.95, 1.0]),
        min_p: pick(rng, &[0.0, 0.05, 0.5, 1.0]),
        typical_p: pick(rng, &[1.0, 1.0, 0.2, 0.9]),
        top_n_sigma: pick(rng, &[-1.0, 0.0, 0.5, 1.0, 3.0]),
        xtc_probability: pick(rng, &[0.0, 0.0, 1.0]),
        xtc_threshold: pick(rng, &[0.001, 0.05, 0.1, 0.6]),
        repeat_penalty: pick(rng, &[1.0, 1.1, 0.8]),
        repeat_last_n: pick(rng, &[0.0, 10.0, 64.0, -1.0]) as i64,
        presence_penalty: pick(rng, &[0.0, 0.5]),
        frequency_penalty: pick(rng, &[0.0, -0.3]),
        dry_multiplier: pick(rng, &[0.0, 0.8, 3.0]),
        dry_base: pick(rng, &[1.0, 1.75]),
        dry_allowed_length: pick(rng, &[1.0, 2.0, 3.0]) as usize,
        dry_penalty_last_n: pick(rng, &[0.0, 20.0, 64.0, -1.0]) as i64,
        dry_sequence_breakers: tokens.iter().take(rng.next_u64() as usize % 2).map(|&t| text(t)).collect(),
        logit_bias: if rng.next_u64().is_multiple_of(3) { vec![(n as u32 - 1, -3.5), (0, 4.0)] } else { vec![] },
        samplers,
        ..open()
    }
}

#[test]
fn leaves_what_the_twin_leaves_with_any_parameters_in_any_order() {
    let mut rng = Rng::new(1);
    for round in 0..600 {
        let n = 1 + rng.next_u64() as usize % 600;
        let mut logits = random_logits(&mut rng, n, 4.0);
        if round % 4 == 0 {
            logits.iter_mut().for_each(|x| *x = x.round()); // ties
        }
        // A few tokens only, so that sequences come again.
        let tokens: Vec<u32> = (0..rng.next_u64() % 100).map(|_| (rng.next_u64() % n.min(3) as u64) as u32).collect();
        let mut params = random_params(&mut rng, n, &tokens);
        if round % 4 == 0 {
            // Of equals, rounding decides which one is over the edge.
            (params.typical_p, params.top_n_sigma, params.xtc_probability) = (1.0, -1.0, 0.0);
            (params.repeat_penalty, params.frequency_penalty, params.dry_multiplier) = (1.0, 0.0, 0.0);
            params.top_p = params.top_p.round();
        }
        let expected = twin(&logits, &tokens, &params);
        let found = Sampler::new(params.clone()).unwrap().probabilities(&history(&tokens), &logits);
        let ids = |list: &[(u32, f64)]| list.iter().map(|c| c.0).collect::<Vec<_>>();
        assert_eq!(ids(&found), ids(&expected), "round {round}: {n} tokens, {params:?}");
        for (a, b) in found.iter().zip(&expected) {
            assert!((a.1 - b.1).abs() < 1e-4, "round {round}: {a:?} {b:?} {params:?}");
        }
    }
}

#[test]
fn the_order_is_that_of_llama_cpp() {
    // As its --samplers documents it.
    let theirs = "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature";
    assert_eq!(SAMPLERS.join(";"), theirs);
    assert_eq!(SamplingParams::default().samplers, SAMPLERS);
}

#[test]
fn draws_with_the_probabilities_of_the_twin() {
    let mut rng = Rng::new(2);
    let logits = random_logits(&mut rng, 500, 2.0);
    let tokens = [7, 8, 9, 3, 7, 8, 9];
    for params in [
        SamplingParams::default(),
        open(),
        SamplingParams { temperature: 2.0, ..open() },
        SamplingParams { top_p: 0.7, ..open() },
        SamplingParams { typical_p: 0.5, ..open() },
        SamplingParams { top_n_sigma: 1.5, ..open() },
        SamplingParams { dynatemp_range: 0.5, ..open() },
        SamplingParams { xtc_probability: 1.0, xtc_threshold: 0.01, ..open() },
        SamplingParams { dry_multiplier: 2.0, ..open() },
        SamplingParams { repeat_penalty: 1.5, presence_penalty: 0.3, ..open() },
    ] {
        let p = twin(&logits, &tokens, &params);
        let mut sampler = Sampler::new(SamplingParams { seed: Some(3), ..params.clone() }).unwrap();
        let draws = 20_000;
        let mut counts = vec![0.0; logits.len()];
        (0..draws).for_each(|_| counts[sampler.sample_after(&history(&tokens), &logits).unwrap() as usize] += 1.0);
        let allowed: f64 = p.iter().map(|c| counts[c.0 as usize]).sum();
        assert_eq!(allowed, f64::from(draws), "{params:?}");
        // Pearson's chi-squared over what is expected at least five times: mean k, deviation sqrt(2 k).
        let cells = p.iter().map(|(id, p)| (p * f64::from(draws), counts[*id as usize])).filter(|(e, _)| *e >= 5.0);
        let terms: Vec<f64> = cells.map(|(e, n)| (n - e).powi(2) / e).collect();
        let (chi, k) = (terms.iter().sum::<f64>(), terms.len() as f64);
        assert!((chi - k).abs() < 5.0 * (2.0 * k).sqrt() + 5.0, "chi-squared {chi} over {k} cells, {params:?}");
    }
}

#[test]
fn xtc_leaves_top_choices_out_as_often_as_one_says() {
    let logits = [2.0, 1.9, 1.8, -1.0];
    let params = SamplingParams { xtc_probability: 0.3, xtc_threshold: 0.2, seed: Some(5), ..open() };
    let mut sampler = Sampler::new(params).unwrap();
    let whole = |sampler: &mut Sampler| sampler.probabilities(&history(&[]), &logits).len() == 4;
    let left_out = (0..10_000).filter(|_| !whole(&mut sampler)).count();
    assert!((2800..3200).contains(&left_out), "{left_out}"); // four standard deviations are 183
}

#[test]
fn mirostat_keeps_the_surprise_that_is_wanted() {
    let logits = random_logits(&mut Rng::new(6), 2000, 2.0);
    let list: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|&x| f64::from(x))).collect();
    let p = softmax(&list);
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
    for (version, tau) in [(1, 3.0), (2, 3.0), (2, 5.0)] {
        let params = SamplingParams { mirostat: version, mirostat_tau: tau, seed: Some(1), ..open() };
        let mut sampler = Sampler::new(params).unwrap();
        let tau = f64::from(tau);
        let (mut mu, mut surprise) = (2.0 * tau, 0.0);
        for _ in 0..2000 {
            let id = sampler.sample(&logits, &[]).unwrap() as usize;
            let allowed = if version == 1 {
                // The paper's estimate of Zipf's exponent from the first hundred, and of how many then have this surprise.
                let t: Vec<f64> = (1..100).map(|i| (f64::from(i + 1) / f64::from(i)).ln()).collect();
                let b: Vec<f64> = (1..100).map(|i| (p[order[i - 1]] / p[order[i]]).ln()).collect();
                let s = t.iter().zip(&b).map(|(t, b)| t * b).sum::<f64>() / t.iter().map(|t| t * t).sum::<f64>();
                let k = ((s - 1.0) * mu.exp2() / (1.0 - 2000_f64.powf(1.0 - s))).powf(1.0 / s);
                &order[..k.clamp(1.0, 2000.0) as usize]
            } else {
                let n = order.iter().take_while(|&&i| -p[i].log2() <= mu).count();
                &order[..n.max(1)]
            };
            assert!(allowed.contains(&id), "version {version}: token of {} bits, {mu} allowed", -p[id].log2());
            let whole: f64 = allowed.iter().map(|&i| p[i]).sum();
            let observed = -(p[id] / whole).log2();
            mu -= 0.1 * (observed - tau);
            surprise += observed;
        }
        let mean = surprise / 2000.0;
        assert!((mean - tau).abs() < 0.2, "version {version}: {mean} bits a token, {tau} wanted");
    }
    // Where there is nothing to estimate from.
    for logits in [&[1.0][..], &[1.0; 5], &[f32::NAN, 1.0], &[f32::INFINITY, 1.0]] {
        for version in [1, 2] {
            let mut sampler = Sampler::new(SamplingParams { mirostat: version, ..open() }).unwrap();
            (0..20).for_each(|_| assert!(sampler.sample(logits, &[]).is_some()));
        }
    }
}

#[test]
fn logprobs_are_those_of_the_logits_as_they_came() {
    let logits = random_logits(&mut Rng::new(8), 1000, 3.0);
    let list: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|&x| f64::from(x))).collect();
    let p = softmax(&list);
    let (chosen, top) = log_probabilities(&logits, 17, 5);
    assert!((f64::from(chosen) - p[17].ln()).abs() < 1e-5);
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
    assert_eq!(top.iter().map(|t| t.0 as usize).collect::<Vec<_>>(), order[..5]);
    assert!(top.iter().all(|&(id, log)| (f64::from(log) - p[id as usize].ln()).abs() < 1e-5));
    let (chosen, top) = log_probabilities(&[f32::NAN, f32::NEG_INFINITY, 0.0, f32::INFINITY], 3, 9);
    assert_eq!((chosen, top), (0.0, vec![(3, 0.0), (2, f32::NEG_INFINITY.max(-f32::MAX))]));
}

#[test]
fn a_seed_draws_the_tokens_that_it_has_always_drawn() {
    // Drawn by the sampler of version 0.1.0, which was one function.
    let logits = random_logits(&mut Rng::new(11), 3000, 2.0);
    let d = SamplingParams { seed: Some(7), ..Default::default() };
    let open = SamplingParams { top_k: 0, ..d.clone() };
    for (params, expected) in [
        (d.clone(), [214, 320, 2917, 2934, 1356, 1536, 1929, 2985]),
        (SamplingParams { temperature: 1.7, ..d.clone() }, [214, 2985, 1329, 2769, 1451, 1141, 1893, 2268]),
        (open.clone(), [214, 1395, 71, 2769, 1937, 144, 1412, 2268]),
        (SamplingParams { top_p: 1.0, ..open.clone() }, [169, 277, 2268, 1329, 2985, 1395, 2268, 1064]),
        (SamplingParams { top_p: 1.0, min_p: 0.0, ..open.clone() }, [169, 320, 2238, 1340, 2985, 1395, 2268, 1042]),
        (SamplingParams { min_p: 0.0, temperature: 3.0, ..open.clone() }, [1567, 353, 2417, 307, 2802, 301, 636, 872]),
        (
            SamplingParams {
                repeat_penalty: 1.3,
                presence_penalty: 0.2,
                frequency_penalty: 0.1,
                top_p: 0.99,
                temperature: 2.0,
                ..open
            },
            [1395, 1141, 2034, 2107, 1428, 494, 1585, 2367],
        ),
        (SamplingParams { logit_bias: vec![(5, 9.0), (6, 8.0), (7, 8.5)], ..d.clone() }, [5; 8]),
        (SamplingParams { temperature: 0.0, ..d }, [214; 8]),
    ] {
        let mut sampler = Sampler::new(params.clone()).unwrap();
        let mut tokens = vec![];
        (0..8).for_each(|_| tokens.push(sampler.sample(&logits, &tokens).unwrap()));
        assert_eq!(tokens, expected, "{params:?}");
    }
}

#[test]
fn greedy_takes_the_first_of_equals() {
    for n in 1..100 {
        for at in 0..n {
            let mut logits = vec![-1.0; n];
            logits[at..].fill(2.5);
            let mut sampler = Sampler::new(SamplingParams::greedy()).unwrap();
            assert_eq!(sampler.sample(&logits, &[]), Some(at as u32));
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_tokens() {
    let logits = random_logits(&mut Rng::new(4), 1000, 2.0);
    let draw = |seed| {
        let mut sampler = Sampler::new(SamplingParams { seed, temperature: 1.5, ..Default::default() }).unwrap();
        (sampler.seed(), (0..20).map(|_| sampler.sample(&logits, &[]).unwrap()).collect::<Vec<_>>())
    };
    assert_eq!(draw(Some(7)), draw(Some(7)));
    assert_ne!(draw(Some(7)).1, draw(Some(8)).1);
    let (seed, tokens) = draw(None);
    assert_eq!(draw(Some(seed)).1, tokens);
}

#[test]
fn logits_that_are_no_numbers_are_never_chosen() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for temperature in [0.0, 1e-40, 0.8, 1e30] {
        for top_k in [0, 1, 2, 40] {
            let params = SamplingParams { temperature, top_k, repeat_penalty: 1.3, ..Default::default() };
            let mut sampler = Sampler::new(params).unwrap();
            assert_eq!(sampler.sample(&[], &[0]), None);
            assert_eq!(sampler.sample(&[nan; 300], &[0]), None);
            assert_eq!(sampler.sample(&[nan, -inf, -nan], &[0, 1, 2, 3, u32::MAX]), None);
            assert_eq!(sampler.sample(&[nan, -5.0, -inf, nan], &[1]), Some(1));
            assert_eq!(sampler.sample(&[nan, 3.0, inf, f32::MIN], &[2]), Some(2));
            let token = sampler.sample(&[inf, 3.0, inf], &[2]);
            assert!(token == Some(0) || token == Some(2));
        }
    }
}

#[test]
fn parameters_out_of_range_are_refused() {
    let d = SamplingParams::default();
    for (name, params) in [
        ("temperature", SamplingParams { temperature: -0.1, ..d.clone() }),
        ("temperature", SamplingParams { temperature: f32::NAN, ..d.clone() }),
        ("temperature", SamplingParams { temperature: f32::INFINITY, ..d.clone() }),
        ("top_p", SamplingParams { top_p: 1.1, ..d.clone() }),
        ("top_p", SamplingParams { top_p: f32::NAN, ..d.clone() }),
        ("min_p", SamplingParams { min_p: -0.5, ..d.clone() }),
        ("repeat_penalty", SamplingParams { repeat_penalty: 0.0, ..d.clone() }),
        ("presence_penalty", SamplingParams { presence_penalty: f32::NAN, ..d.clone() }),
        ("frequency_penalty", SamplingParams { frequency_penalty: f32::INFINITY, ..d.clone() }),
        ("logit_bias", SamplingParams { logit_bias: vec![(0, f32::NAN)], ..d.clone() }),
    ] {
        let e = Sampler::new(params).unwrap_err();
        assert!(matches!(&e, Error::Argument(text) if text.starts_with(name)), "{e}");
    }
}
