//! What a step will take, by what steps have taken.
//!
//! A step of `n` rows takes what reading and multiplying the weights takes, by a table over `n`, and a time for each
//! position that is attended to. The table starts from a guess and corrects itself with every step, at the places next to
//! its number of rows; places where no step has been yet follow their nearest neighbour.

use std::time::Duration;

/// Rows at the places of the table.
const ROWS: [usize; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];

/// How much longer steps take than one of one row, until it is known better: of a small model on two cores.
const SHAPE: [f64; 10] = [1.0, 1.33, 1.8, 2.6, 4.0, 7.2, 14.0, 26.0, 50.0, 111.0];

/// How much of an error is corrected at once: the first times, and later.
const FIRST: f64 = 0.5;
const LATER: f64 = 0.1;

/// A step that takes so much longer or shorter than expected was disturbed, and is believed so far only.
const MOST: f64 = 4.0;

pub(super) struct Cost {
    seconds: [f64; ROWS.len()],
    seen: [u32; ROWS.len()],
    per_position: f64,
}

impl Cost {
    /// A guess for a model of so many bytes, with so many bytes of keys and values per position.
    pub fn new(model_bytes: usize, position_bytes: usize) -> Self {
        let one = (model_bytes as f64 / 10e9).max(20e-6);
        Self { seconds: SHAPE.map(|x| x * one), seen: [0; ROWS.len()], per_position: position_bytes as f64 / 5e9 }
    }

    /// The place before `rows`, and how far it is from there to the next one, 0 to 1.
    fn place(rows: usize) -> (usize, f64) {
        let i = ROWS.partition_point(|&n| n <= rows.max(1)).clamp(1, ROWS.len() - 1) - 1;
        let (a, b) = (ROWS[i] as f64, ROWS[i + 1] as f64);
        (i, ((rows as f64 - a) / (b - a)).clamp(0.0, 1.0))
    }

    /// Seconds of a step of so many rows that attend to so many positions in all.
    pub fn predict(&self, rows: usize, positions: u64) -> f64 {
        let (i, share) = Self::place(rows);
        self.seconds[i] * (1.0 - share) + self.seconds[i + 1] * share + self.per_position * positions as f64
    }

    /// A step has taken so long.
    pub fn learn(&mut self, rows: usize, positions: u64, took: Duration) {
        let predicted = self.predict(rows, positions);
        let of_positions = self.per_position * positions as f64;
        let took = took.as_secs_f64().clamp(predicted / MOST, predicted * MOST);
        let (i, share) = Self::place(rows);
        if of_positions > predicted / 2.0 {
            self.per_position *= 1.0 + LATER * (took - predicted) / predicted;
            return;
        }
        let ratio = (took - of_positions).max(took / MOST) / (predicted - of_positions);
        for (place, weight) in [(i, 1.0 - share), (i + 1, share)] {
            if weight > 0.0 {
                let rate = if self.seen[place] < 8 { FIRST } else { LATER };
                self.seconds[place] *= 1.0 + weight * rate * (ratio - 1.0);
                self.seen[place] += u32::from(weight >= 0.5);
            }
        }
        self.spread();
    }

    /// Places that no step has been at follow the nearest that one has; and more rows never take less.
    fn spread(&mut self) {
        for (i, shape) in SHAPE.iter().enumerate() {
            let seen = (0..ROWS.len()).filter(|&j| self.seen[j] > 0);
            if self.seen[i] == 0
                && let Some(j) = seen.min_by_key(|j| j.abs_diff(i))
            {
                self.seconds[i] = self.seconds[j] * shape / SHAPE[j];
            }
        }
        for i in 1..ROWS.len() {
            self.seconds[i] = self.seconds[i].max(self.seconds[i - 1]);
        }
    }

    /// The table.
    pub fn curve(&self) -> Vec<(usize, f64)> {
        ROWS.into_iter().zip(self.seconds).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::Rng;

    /// Learns from steps of a machine that is nothing like the guess.
    fn learned(truth: impl Fn(usize, u64) -> f64) -> Cost {
        let mut cost = Cost::new(100 << 20, 20 << 10);
        let mut rng = Rng::new(1);
        for _ in 0..3000 {
            let rows = 1 + (rng.next_u64() % 8) as usize * (rng.next_u64() % 30) as usize;
            let positions = rng.next_u64() % 20_000;
            let noise = 0.9 + 0.2 * rng.next_f64();
            cost.learn(rows, positions, Duration::from_secs_f64(truth(rows, positions) * noise));
        }
        cost
    }

    #[test]
    fn it_learns_what_steps_take_whatever_the_guess_was() {
        for (one, row, position) in [(0.2, 0.02, 1e-6), (0.001, 0.0001, 1e-8), (0.01, 0.002, 4e-6)] {
            let truth = |rows: usize, positions: u64| one + row * rows as f64 + position * positions as f64;
            let cost = learned(truth);
            for (rows, positions) in [(1, 100), (4, 1000), (8, 10_000), (60, 5000), (130, 15_000)] {
                let (predicted, right) = (cost.predict(rows, positions), truth(rows, positions));
                // The guess for positions is 400 times too much here, and some of it stays.
                assert!((predicted / right).ln().abs() < 0.5, "{rows} {positions}: {predicted} for {right}");
            }
            assert!(cost.curve().is_sorted_by(|a, b| a.1 <= b.1));
        }
    }

    #[test]
    fn one_that_was_disturbed_changes_little() {
        let mut cost = learned(|rows, _| 0.01 + 0.001 * rows as f64);
        let before = cost.predict(8, 0);
        cost.learn(8, 0, Duration::from_secs(10));
        assert!(cost.predict(8, 0) < 1.4 * before);
    }
}
