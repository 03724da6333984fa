//! From logits to a token.
//!
//! Sampling is a chain of steps, a file each, in the order of llama.cpp: bias and penalties change logits; `top_k`,
//! `top_p` and `min_p` cut; then comes the temperature, then one draw. [`Candidates`] is what they work on. A new step is
//! a file, a line in `chain.rs`, and rows in [`SamplingParams`] for what can be said about it.

mod bias;
mod candidates;
mod chain;
mod min_p;
mod params;
mod penalties;
mod rng;
mod temperature;
mod top_k;
mod top_p;

pub use candidates::Candidates;
pub use chain::{Sampler, Step};
pub(crate) use params::parameters;
pub use params::{Field, Kind, Parameter, SamplingParams, Value};
pub use rng::Rng;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    /// What the steps mean, written without a thought for speed: sorts everything, in f64.
    fn probabilities(logits: &[f32], recent: &[u32], params: &SamplingParams) -> Vec<f64> {
        let mut logits = logits.to_vec();
        params.logit_bias.iter().for_each(|&(id, bias)| logits[id as usize] += bias);
        let recent = &recent[recent.len().saturating_sub(params.repeat_last_n)..];
        for (id, x) in logits.iter_mut().enumerate() {
            let count = recent.iter().filter(|&&r| r as usize == id).count();
            if count > 0 {
                *x = if *x > 0.0 { *x / params.repeat_penalty } else { *x * params.repeat_penalty };
                *x -= params.presence_penalty + count as f32 * params.frequency_penalty;
            }
        }
        let mut order: Vec<usize> = (0..logits.len()).filter(|&i| logits[i] > f32::NEG_INFINITY).collect();
        order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
        if params.temperature == 0.0 {
            order.truncate(1);
        }
        if params.top_k > 0 {
            order.truncate(params.top_k);
        }
        let max = f64::from(logits[order[0]]);
        let mass: Vec<f64> = order.iter().map(|&i| (f64::from(logits[i]) - max).exp()).collect();
        let total: f64 = mass.iter().sum();
        let mut keep = order.len();
        if params.top_p < 1.0 {
            let mut sum = 0.0;
            keep = 1 + mass
                .iter()
                .take_while(|&&m| {
                    sum += m;
                    sum < f64::from(params.top_p) * total
                })
                .count();
        }
        order.truncate(keep);
        order.retain(|&i| (f64::from(logits[i]) - max).exp() >= f64::from(params.min_p));
        let mut p = vec![0.0; logits.len()];
        let temperature = if params.temperature == 0.0 { 1.0 } else { f64::from(params.temperature) };
        order.iter().for_each(|&i| p[i] = ((f64::from(logits[i]) - max) / temperature).exp());
        let total: f64 = p.iter().sum();
        p.iter().map(|x| x / total).collect()
    }

    fn random_logits(rng: &mut Rng, n: usize, spread: f64) -> Vec<f32> {
        let mut normal = || (0..12).map(|_| rng.next_f64()).sum::<f64>() - 6.0;
        (0..n).map(|_| (spread * normal()) as f32).collect()
    }

    #[test]
    fn never_leaves_what_the_twin_allows_and_reaches_all_of_it() {
        let mut rng = Rng::new(1);
        for round in 0..200 {
            let n = 1 + rng.next_u64() as usize % 3000;
            let mut logits = random_logits(&mut rng, n, 4.0);
            if round % 4 == 0 {
                logits.iter_mut().for_each(|x| *x = x.round()); // ties
            }
            let recent: Vec<u32> = (0..rng.next_u64() % 100).map(|_| (rng.next_u64() % n as u64) as u32).collect();
            let pick = |rng: &mut Rng, of: &[f32]| of[rng.next_u64() as usize % of.len()];
            let params = SamplingParams {
                temperature: pick(&mut rng, &[0.0, 0.3, 0.8, 1.0, 2.0]),
                top_k: pick(&mut rng, &[0.0, 1.0, 5.0, 40.0, 1000.0]) as usize,
                top_p: pick(&mut rng, &[0.0, 0.3, 0.9, 0.95, 1.0]),
                min_p: pick(&mut rng, &[0.0, 0.05, 0.5, 1.0]),
                repeat_penalty: pick(&mut rng, &[1.0, 1.1, 0.8]),
                repeat_last_n: pick(&mut rng, &[0.0, 10.0, 64.0]) as usize,
                presence_penalty: pick(&mut rng, &[0.0, 0.5]),
                frequency_penalty: pick(&mut rng, &[0.0, -0.3]),
                logit_bias: if round % 3 == 0 { vec![(0, 4.0), (n as u32 - 1, -3.5)] } else { vec![] },
                seed: Some(round),
            };
            let p = probabilities(&logits, &recent, &params);
            let mut sampler = Sampler::new(params.clone()).unwrap();
            let mut seen = vec![false; n];
            for _ in 0..300 {
                let token = sampler.sample(&logits, &recent).unwrap() as usize;
                assert!(p[token] > 0.0, "token {token} of {n}, {params:?}");
                seen[token] = true;
            }
            // What has 5 % is missed 300 times with a chance of 2e-7.
            let missed = (0..n).find(|&i| p[i] > 0.05 && !seen[i]);
            assert_eq!(missed, None, "{params:?}");
        }
    }

    #[test]
    fn draws_with_the_probabilities_of_the_twin() {
        let mut rng = Rng::new(2);
        let logits = random_logits(&mut rng, 500, 2.0);
        let all = SamplingParams { top_k: 0, top_p: 1.0, min_p: 0.0, temperature: 1.0, ..Default::default() };
        for params in [
            SamplingParams::default(),
            all.clone(),
            SamplingParams { temperature: 2.0, ..all.clone() },
            SamplingParams { top_p: 0.7, ..all },
        ] {
            let p = probabilities(&logits, &[], &params);
            let mut sampler = Sampler::new(SamplingParams { seed: Some(3), ..params }).unwrap();
            let draws = 100_000;
            let mut counts = vec![0.0; p.len()];
            (0..draws).for_each(|_| counts[sampler.sample(&logits, &[]).unwrap() as usize] += 1.0);
            // Pearson's chi-squared over what is expected at least five times: mean k, deviation sqrt(2 k).
            let cells = p.iter().zip(&counts).map(|(p, n)| (p * f64::from(draws), n)).filter(|(e, _)| *e >= 5.0);
            let terms: Vec<f64> = cells.map(|(e, n)| (n - e).powi(2) / e).collect();
            let (chi, k) = (terms.iter().sum::<f64>(), terms.len() as f64);
            assert!((chi - k).abs() < 5.0 * (2.0 * k).sqrt() + 5.0, "chi-squared {chi} over {k} cells");
        }
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
            (
                SamplingParams { min_p: 0.0, temperature: 3.0, ..open.clone() },
                [1567, 353, 2417, 307, 2802, 301, 636, 872],
            ),
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
}
